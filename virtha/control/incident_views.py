"""The record of an incident as it is shown: the timeline, its phases with what each took, and each VM's way (X4). Pure.

Durations are of cluster time, the leader's monotonic clock, wherever both ends have it (``clock`` is `cluster`); what only
hosts' reports tell (a guest agent's answer) and what was told before the incident began (the suspicion) is timed by
the server's wall clock (`wall`), and is off by as much as that was set meanwhile.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from virtha.model.codes import REGISTRY, Severity, render
from virtha.model.ids import BootId, ClusterId, HostId, IncidentId, VmId
from virtha.model.incident import (
    HostIncident,
    IncidentCause,
    IncidentEntry,
    PathState,
    Sighting,
    VmPath,
)
from virtha.model.power import PowerAction
from virtha.model.proof import ProofKind
from virtha.model.time import UtcMillis
from virtha.model.value import Fields, Value
from virtha.model.vm import Reason

TIMELINE_MAX = 4_000
CLUSTER, WALL = "cluster", "wall"


class IncidentStage(StrEnum):
    """What it waits for now."""

    UNPROVEN = "unproven"
    """For proof that its host is dead."""
    FENCING = "fencing"
    """For proof, with power devices under orders."""
    RECOVERING = "recovering"
    """For its VMs."""
    AWAITING_HOST = "awaiting_host"
    """Its VMs are settled; the host is not back."""
    CLOSED = "closed"


class VmCounts(Value, frozen=True, kw_only=True):
    all: int = 0
    waiting: int = 0
    """For proof, a place or their turn."""
    starting: int = 0
    running: int = 0
    """Started elsewhere, or found there."""
    answering: int = 0
    """Those of them whose guest agent answered."""
    down: int = 0
    unharmed: int = 0
    deleted: int = 0


class IncidentSummary(Value, frozen=True, kw_only=True):
    id: IncidentId
    cluster_id: ClusterId
    host_id: HostId
    host: str
    boot: BootId
    number: int
    """The engine's own; in events' field ``incident``. 0: it counts none of that cause."""
    cause: IncidentCause
    stage: IncidentStage
    open: bool
    opened: UtcMillis
    closed: UtcMillis | None
    silent_ms: int
    """From the last direct sign of life until it was opened."""
    lasted_ms: int | None
    """From the last direct sign of life until it was closed; None: it is open."""
    proof: str | None
    """The kind of the first proof that its host is dead."""
    vms: VmCounts


class IncidentLine(Value, frozen=True, kw_only=True):
    """One line of the timeline. ``at`` is the server's wall clock, for display."""

    at: UtcMillis
    after_ms: int
    """Since the last direct sign of life."""
    clock: str
    """Of ``after_ms``: `cluster` or `wall`."""
    code: str
    severity: Severity
    text: str
    vm: str | None = None
    fields: Fields = {}
    seen: tuple[Sighting, ...] = ()
    """By whom its host was seen, and not seen, when it was judged."""
    reasons: tuple[Reason, ...] = ()
    reason_text: tuple[str, ...] = ()
    """``reasons`` rendered, in the same order."""


class IncidentPhase(Value, frozen=True, kw_only=True):
    """`detect`, `prove`, `fence`, `start`, `guest`, `all`. ``ms`` None: it is not over, or there was none."""

    name: str
    text: str
    ms: int | None
    clock: str


class VmWay(Value, frozen=True, kw_only=True):
    """One VM's way. ``*_after_ms`` count from the last direct sign of life of its host, by cluster time."""

    vm_id: VmId
    vm: str
    state: PathState
    host: str | None
    """Where it was started, or runs."""
    attempts: int
    code: str | None
    """Why it does not run, or why its last start failed."""
    text: str | None
    """``code`` rendered."""
    ordered_after_ms: int | None
    """Its last start was ordered."""
    runs_after_ms: int | None
    start_ms: int | None
    """From that order until it ran."""
    answer_ms: int | None
    """From then until its guest agent answered, by the wall clock. None: it has not, or has none."""
    engine: tuple[Reason, ...] = ()
    """While it is not settled: why it is not where it should be, as the engine sees it now."""
    engine_text: tuple[str, ...] = ()


class IncidentView(Value, frozen=True, kw_only=True):
    incident: IncidentSummary
    phases: tuple[IncidentPhase, ...]
    vms: tuple[VmWay, ...]
    """By name."""
    timeline: tuple[IncidentLine, ...]
    """Oldest first."""
    left_out: int
    """Lines that are not kept, or not shown."""
    vms_left_out: int
    """VMs above the number that an incident keeps."""
    engine: tuple[Reason, ...] = ()
    """While it is open: why its host is as it is now, and what is waited for."""
    engine_text: tuple[str, ...] = ()


def summary_of(found: HostIncident, counted: Mapping[PathState, int]) -> IncidentSummary:
    vms = VmCounts(
        all=sum(counted.values()) + found.vms_left_out,
        waiting=counted.get(PathState.WAITING, 0),
        starting=counted.get(PathState.STARTING, 0),
        running=counted.get(PathState.RUNS, 0) + counted.get(PathState.ANSWERS, 0),
        answering=counted.get(PathState.ANSWERS, 0),
        down=counted.get(PathState.DOWN, 0),
        unharmed=counted.get(PathState.UNHARMED, 0),
        deleted=counted.get(PathState.DELETED, 0),
    )
    lasted_ms = None
    if found.closed is not None:
        end_ms = found.closed_ms
        lasted_ms = (
            end_ms - found.silent_since_ms
            if end_ms is not None
            else _after_by_wall(found, found.closed)
        )
    return IncidentSummary(
        id=found.id,
        cluster_id=found.cluster_id,
        host_id=found.host_id,
        host=found.host,
        boot=found.boot,
        number=found.number,
        cause=found.cause,
        stage=_stage(found, vms),
        open=found.closed is None,
        opened=found.opened,
        closed=found.closed,
        silent_ms=found.opened_ms - found.silent_since_ms,
        lasted_ms=lasted_ms,
        proof=found.proven,
        vms=vms,
    )


def _stage(found: HostIncident, vms: VmCounts) -> IncidentStage:
    if found.closed is not None:
        return IncidentStage.CLOSED
    if found.host_end is None and found.proven is None:
        return IncidentStage.FENCING if found.fencing else IncidentStage.UNPROVEN
    if vms.waiting or vms.starting or vms.down:
        return IncidentStage.RECOVERING
    return IncidentStage.AWAITING_HOST


def view_of(
    found: HostIncident,
    paths: Iterable[VmPath],
    *,
    engine: tuple[Reason, ...] = (),
    of_vms: Mapping[VmId, tuple[Reason, ...]] | None = None,
) -> IncidentView:
    """``engine``, ``of_vms``: what the engine says of its host and of its VMs now."""
    ways = tuple(sorted(paths, key=lambda path: (path.vm, path.vm_id)))
    counted: dict[PathState, int] = {}
    for path in ways:
        counted[path.state] = counted.get(path.state, 0) + 1
    lines = [_line(found, entry, None) for entry in found.entries]
    for path in ways:
        lines += [_line(found, entry, path.vm) for entry in path.entries]
    lines.sort(key=lambda line: (line.after_ms, line.code == "incident.closed"))
    left_out = found.left_out + sum(path.left_out for path in ways)
    return IncidentView(
        incident=summary_of(found, counted),
        phases=_phases(found, ways),
        vms=tuple(_way(found, path, (of_vms or {}).get(path.vm_id, ())) for path in ways),
        timeline=tuple(lines[:TIMELINE_MAX]),
        left_out=left_out + max(0, len(lines) - TIMELINE_MAX),
        vms_left_out=found.vms_left_out,
        engine=engine,
        engine_text=_texts(engine),
    )


def _after_by_wall(found: HostIncident, at: UtcMillis) -> int:
    return max(0, at - found.opened + found.opened_ms - found.silent_since_ms)


def _line(found: HostIncident, entry: IncidentEntry, vm: str | None) -> IncidentLine:
    known = REGISTRY.get(entry.code)
    exact = entry.clock_ms
    return IncidentLine(
        at=entry.at,
        after_ms=_after_by_wall(found, entry.at)
        if exact is None
        else max(0, exact - found.silent_since_ms),
        clock=WALL if exact is None else CLUSTER,
        code=entry.code,
        severity=Severity.WARNING if known is None else known.severity,
        text=render(entry.code, entry.fields),
        vm=vm,
        fields=entry.fields,
        seen=entry.seen,
        reasons=entry.reasons,
        reason_text=_texts(entry.reasons),
    )


def _texts(reasons: tuple[Reason, ...]) -> tuple[str, ...]:
    return tuple(render(one.code, one.fields) for one in reasons)


def _why(path: VmPath) -> str | None:
    """The words of the line that its code is from."""
    for entry in reversed(path.entries):
        if path.code is not None and path.code in (entry.code, entry.fields.get("why")):
            return render(entry.code, entry.fields)
    return None if path.code is None else render(path.code, {"vm": path.vm})


def _way(found: HostIncident, path: VmPath, engine: tuple[Reason, ...] = ()) -> VmWay:
    began, runs_at = found.silent_since_ms, path.runs_at
    answered = path.answered_at
    return VmWay(
        vm_id=path.vm_id,
        vm=path.vm,
        state=path.state,
        host=path.host,
        attempts=path.attempts,
        code=path.code,
        text=_why(path),
        ordered_after_ms=_between(began, path.ordered_ms),
        runs_after_ms=_between(began, path.runs_ms),
        start_ms=_between(path.ordered_ms, path.runs_ms),
        answer_ms=None if answered is None or runs_at is None else max(0, answered - runs_at),
        engine=engine,
        engine_text=_texts(engine),
    )


def _between(first_ms: int | None, last_ms: int | None) -> int | None:
    return None if first_ms is None or last_ms is None else max(0, last_ms - first_ms)


def _phases(found: HostIncident, paths: tuple[VmPath, ...]) -> tuple[IncidentPhase, ...]:
    began, proven = found.silent_since_ms, found.proven_ms
    running = [path for path in paths if path.runs_ms is not None]
    last_ms = max((path.runs_ms for path in running if path.runs_ms is not None), default=None)
    done = running and not any(path.open for path in paths)
    runs_ms = last_ms if done else None
    fenced = proven if found.proven == ProofKind.POWER_OFF.value else None
    answers = [way for way in (_way(found, path) for path in running) if way.answer_ms is not None]
    guest_ms = max((way.answer_ms for way in answers if way.answer_ms is not None), default=None)
    steps = (
        ("detect", "last sign of life to verdict", _between(began, found.opened_ms)),
        ("prove", "verdict to first proof", _between(found.opened_ms, proven)),
        ("fence", "first power order on record to proof", _between(_first_order(found), fenced)),
        ("start", "first proof to last VM running", _between(proven, runs_ms)),
        ("all", "last sign of life to last VM running", _between(began, runs_ms)),
    )
    phases = [IncidentPhase(name=n, text=text, ms=ms, clock=CLUSTER) for n, text, ms in steps]
    guest = IncidentPhase(
        name="guest",
        text="VM running to its guest agent's answer, the slowest",
        ms=guest_ms,
        clock=WALL,
    )
    return (*phases[:4], guest, phases[4])


def _first_order(found: HostIncident) -> int | None:
    for entry in found.entries:
        ordered = entry.code == "incident.fence.intended"
        if ordered and entry.fields.get("action") != PowerAction.ON.value:
            return entry.clock_ms
    return None
