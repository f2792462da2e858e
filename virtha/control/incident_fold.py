"""The record of an incident as a pure fold: what the engine put on record and told goes in, in its order, and nothing else.

No I/O and no clock: ``Moment`` is given. The same inputs give the same record, whoever leads.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

from msgspec.structs import replace

from virtha.engine.records import Fence, FenceStep, Incident, VmRecord, VmStage
from virtha.model.ids import BootId, ClusterId, HostId, IncidentId, VmId
from virtha.model.incident import (
    HostIncident,
    IncidentCause,
    IncidentEntry,
    PathState,
    VmPath,
)
from virtha.model.power import PowerAction, device_name
from virtha.model.proof import ProofKind
from virtha.model.time import UtcMillis
from virtha.model.value import Scalar

HOST_ENTRIES_MAX = 200
PATH_ENTRIES_MAX = 40
VMS_MAX = 500
"""Of one host."""
ANSWER_WAIT_MS = 3_600_000
"""A guest agent that answers later than that after the start was not awaited any more."""
RECOVERING = frozenset(
    {
        VmStage.LOST,
        VmStage.READY,
        VmStage.STARTING,
        VmStage.CANCELLING,
        VmStage.QUARANTINED,
        VmStage.GIVEN_UP,
    }
)
"""The engine is not done with such a VM."""
_READY_OR_ON = RECOVERING - {VmStage.LOST}
HOST_ENDS = frozenset({"host.returned", "host.alive_after_all", "fence.failed_host_lives"})
"""Told when the engine ends an incident."""


class Moment(NamedTuple):
    """``clock_ms``: cluster time."""

    at: UtcMillis
    clock_ms: int

    def entry(self, code: str, *, clock_ms: int | None = None, **fields: Scalar) -> IncidentEntry:
        """``clock_ms``: when it was, where that is on record; else now. The wall clock is set back as far."""
        when = self.clock_ms if clock_ms is None else clock_ms
        at = UtcMillis(max(0, self.at - (self.clock_ms - when)))
        return IncidentEntry(code=code, at=at, clock_ms=when, fields=fields)


def id_of(host_id: HostId, boot: BootId, number: int) -> IncidentId:
    """Of one failure of one boot: the same, whoever leads."""
    return IncidentId(str(uuid5(NAMESPACE_OID, f"incident {host_id} {number} {boot}")))


# A host


def opened(
    moment: Moment, cluster_id: ClusterId, host_id: HostId, host: str, incident: Incident
) -> HostIncident:
    """The engine's own event, or the reason ``incident.opened``, is to follow as an entry."""
    began_ms = min(incident.began_ms, moment.clock_ms)
    found = HostIncident(
        id=id_of(host_id, incident.boot, incident.number),
        cluster_id=cluster_id,
        host_id=host_id,
        host=host,
        boot=incident.boot,
        number=incident.number,
        cause=IncidentCause.REMOVED if incident.by_removal else IncidentCause.JUDGED,
        opened=moment.entry("incident.opened", clock_ms=began_ms).at,
        opened_ms=began_ms,
        silent_since_ms=min(incident.silent_since_ms, began_ms),
    )
    last = moment.entry("incident.last_sign", clock_ms=found.silent_since_ms, host=host)
    return fold_host(found, (last,))


def rebooted(
    moment: Moment, cluster_id: ClusterId, host_id: HostId, host: str, boot: BootId
) -> HostIncident:
    """It was over before the engine opened any: ``boot`` is the one that ended."""
    return HostIncident(
        id=id_of(host_id, boot, 0),
        cluster_id=cluster_id,
        host_id=host_id,
        host=host,
        boot=boot,
        number=0,
        cause=IncidentCause.REBOOTED,
        opened=moment.at,
        opened_ms=moment.clock_ms,
        silent_since_ms=moment.clock_ms,
        host_end="host.rebooted_unseen",
        host_end_ms=moment.clock_ms,
    )


def host_entries(
    moment: Moment, host: str, before: Incident | None, after: Incident
) -> Iterator[IncidentEntry]:
    """What the record of one incident says that it did not say before. Read in this order they make sense."""
    if after.poisoned and not (before is not None and before.poisoned):
        yield moment.entry("incident.poisoned")
    if after.storage_fenced and not (before is not None and before.storage_fenced):
        yield moment.entry("incident.storage_fenced")
    if after.fence is not None:
        yield from _fence_entries(
            moment, host, before.fence if before is not None else None, after.fence
        )
    had = before.proofs if before is not None else ()
    for proof in after.proofs[len(had) :]:
        if proof is not after.proofs[0]:  # the first is an event of the log
            yield moment.entry("incident.proof", proof=proof.kind.value, detail=proof.detail)


def _fence_entries(
    moment: Moment, host: str, before: Fence | None, after: Fence
) -> Iterator[IncidentEntry]:
    same = before is not None and before.order_id == after.order_id
    if not same and after.step is not FenceStep.RETRYING:
        yield moment.entry(
            "incident.fence.intended",
            clock_ms=min(after.ordered_ms, moment.clock_ms),
            action=after.action.value,
            level=after.level + 1,
            attempt=after.attempt,
            devices=", ".join(device_name(feed.device) for feed in after.feeds),
            order=after.order_id,
            known_off=after.known_off,
        )
    had = {feed.device: feed for feed in before.feeds} if same and before is not None else {}
    for feed in after.feeds:
        old = had.get(feed.device)
        device = device_name(feed.device)
        if feed.accepted and not (old is not None and old.accepted):
            yield moment.entry("incident.fence.accepted", device=device)
        since = old.off_since_ms if old is not None else None
        if feed.off_since_ms is not None and feed.off_since_ms != since:
            yield moment.entry("incident.fence.read_off", clock_ms=feed.off_since_ms, device=device)
        if feed.confirmed and not (old is not None and old.confirmed):
            yield moment.entry("incident.fence.confirmed", device=device)
        if feed.off_since_ms is None and since is not None:
            yield moment.entry("incident.fence.reading_lost", device=device)
    taken = before is not None and before.step is FenceStep.ON_TAKEN
    if after.step is FenceStep.ON_TAKEN and not taken:
        yield moment.entry("incident.fence.on_taken", host=host)


def fold_host(found: HostIncident, entries: Iterable[IncidentEntry]) -> HostIncident:
    kept, left_out = found.entries, found.left_out
    changes: dict[str, object] = {}
    for entry in entries:
        kept, left_out = _appended(kept, left_out, entry, HOST_ENTRIES_MAX)
        if entry.code == "incident.fence.intended":
            changes["fencing"] = entry.fields.get("action") != PowerAction.ON.value
        if entry.code == "host.proven_dead" and found.proven is None:
            changes["proven"] = str(entry.fields.get("proof"))
            changes["proven_ms"] = entry.clock_ms
        if ProofKind.OPERATOR.value == entry.fields.get("proof"):
            changes["confirmed"] = True
    if found.fencing:
        changes["fencing"] = True
    return replace(found, entries=kept, left_out=left_out, **changes)


def host_over(found: HostIncident, moment: Moment, code: str) -> HostIncident:
    """The engine ended it. ``code``: of the event that told so, which is an entry already, or of a reason of our own."""
    if found.host_end is not None:
        return found
    if code not in HOST_ENDS:
        found = fold_host(found, (moment.entry(code, host=found.host),))
    return replace(found, host_end=code, host_end_ms=moment.clock_ms)


def may_close(found: HostIncident) -> bool:
    """As far as its host goes: it is back, or an operator said that it is dead."""
    return found.closed is None and (found.host_end is not None or found.confirmed)


def closed(found: HostIncident, moment: Moment) -> HostIncident:
    found = fold_host(found, (moment.entry("incident.closed"),))
    return replace(found, closed=moment.at, closed_ms=moment.clock_ms)


# Its VMs


def hosts_of_loss(
    before: VmRecord | None, after: VmRecord
) -> Iterator[tuple[HostId, BootId | None]]:
    """Which boots of which hosts a VM may have been lost with. A boot None: of whichever was there."""
    for record in (before, after):
        for copy in record.copies if record is not None else ():
            yield copy.host_id, copy.boot
    for proof in after.proofs:
        yield proof.host_id, proof.boot


def path_of(found: HostIncident, vm_id: VmId, vm: str) -> VmPath:
    return VmPath(incident_id=found.id, vm_id=vm_id, vm=vm)


def vm_entries(
    moment: Moment,
    path: VmPath,
    host: str,
    before: VmRecord | None,
    after: VmRecord | None,
    told: Iterable[IncidentEntry],
) -> Iterator[IncidentEntry]:
    """What comes to the path of one VM, in this order. ``host``: of the incident. ``after`` None: the VM was deleted.
    ``told``: what the engine tells of it."""
    if after is not None and path.lost_ms is None:
        since = moment.clock_ms if after.lost_ms is None else after.lost_ms
        when = min(since, moment.clock_ms)
        yield moment.entry("incident.vm.lost", clock_ms=when, vm=path.vm, host=host)
    elif _is_lost_anew(before, after):
        yield moment.entry("incident.vm.lost", vm=path.vm, host=path.host or host)
    ready_ms = after.ready_ms if after is not None and after.stage in _READY_OR_ON else None
    if ready_ms is not None and path.ready_ms is None:
        when = min(ready_ms, moment.clock_ms)
        yield moment.entry("incident.vm.ready", clock_ms=when, vm=path.vm)
    ended = False
    for entry in told:
        ended = ended or entry.code in ("vm.recovered", "vm.not_recovered")
        if entry.code == "vm.recovery_started" and after is not None and after.start is not None:
            yield replace(entry, clock_ms=min(after.start.ordered_ms, moment.clock_ms))
        else:
            yield entry
    if after is None:
        yield moment.entry("incident.vm.deleted", vm=path.vm)
    elif after.stage not in RECOVERING and not ended:
        yield moment.entry(_quiet_end(before, after), vm=path.vm)


def _is_lost_anew(before: VmRecord | None, after: VmRecord | None) -> bool:
    """With the target of its start."""
    if before is None or after is None or before.stage is VmStage.LOST:
        return False
    return after.stage is VmStage.LOST


def _quiet_end(before: VmRecord | None, after: VmRecord) -> str:
    """Of a recovery that ended, and no event says so."""
    if not after.copies:
        return "incident.vm.stays_down"
    if before is None or before.stage is VmStage.LOST:
        return "incident.vm.unharmed"
    return "incident.vm.found"


_OPEN_STATES = {
    "incident.vm.lost": PathState.WAITING,
    "incident.vm.ready": PathState.WAITING,
    "vm.recovery_started": PathState.STARTING,
    "vm.recovery_failed": PathState.WAITING,
    "vm.recovery_blocked": PathState.WAITING,
    "vm.start_overdue": PathState.WAITING,
    "vm.start_unclear": PathState.WAITING,
    "vm.freed": PathState.WAITING,
    "vm.quarantined": PathState.DOWN,
    "vm.recovery_given_up": PathState.DOWN,
}
_ENDS = {
    "vm.recovered": PathState.RUNS,
    "vm.not_recovered": PathState.DOWN,
    "incident.vm.unharmed": PathState.UNHARMED,
    "incident.vm.found": PathState.RUNS,
    "incident.vm.stays_down": PathState.DOWN,
    "incident.vm.deleted": PathState.DELETED,
}
_WHY_NOT = frozenset({"vm.recovery_failed", "vm.recovery_blocked", "vm.start_unclear"})
AGENT_ANSWERS = "vm.agent.connected"


def fold_vm(path: VmPath, entries: Iterable[IncidentEntry]) -> VmPath:
    for entry in entries:
        kept, left_out = _appended(path.entries, path.left_out, entry, PATH_ENTRIES_MAX)
        path = replace(_moved(path, entry), entries=kept, left_out=left_out)
    return path


def _moved(path: VmPath, entry: IncidentEntry) -> VmPath:
    code = entry.code
    if code == AGENT_ANSWERS:
        return _answered(path, entry)
    if code in _ENDS:
        why = code if _ENDS[code] is PathState.DOWN else None
        path = replace(path, state=_ENDS[code], open=False, code=why)
        if path.state is not PathState.RUNS:
            return path
        path = replace(path, runs_ms=entry.clock_ms, runs_at=entry.at, **_where(entry))
        return path if path.answered_at is None else replace(path, state=PathState.ANSWERS)
    if code not in _OPEN_STATES:
        return path
    path = replace(path, state=_OPEN_STATES[code], open=True)
    if code == "incident.vm.lost":
        first_ms = entry.clock_ms if path.lost_ms is None else path.lost_ms
        return replace(path, lost_ms=first_ms, ready_ms=None)
    if code == "incident.vm.ready":
        return replace(path, ready_ms=entry.clock_ms)
    if code == "vm.recovery_started":
        return replace(
            path,
            ordered_ms=entry.clock_ms,
            attempts=path.attempts + 1,
            answered_at=None,
            **_where(entry),
        )
    if code in _WHY_NOT:
        return replace(path, code=str(entry.fields.get("why") or code))
    return replace(path, code=None if code == "vm.freed" else code)


def _where(entry: IncidentEntry) -> dict[str, object]:
    if entry.host_id is None:
        return {}
    return {"host_id": entry.host_id, "host": str(entry.fields.get("host") or entry.host_id)}


def _answered(path: VmPath, entry: IncidentEntry) -> VmPath:
    if not awaits_answer(path, entry.host_id, entry.at):
        return path
    state = PathState.ANSWERS if path.state is PathState.RUNS else path.state
    return replace(path, answered_at=entry.at, state=state)


def awaits_answer(path: VmPath, host_id: HostId | None, at: UtcMillis) -> bool:
    """Of its guest agent, from where it was started."""
    if path.answered_at is not None or path.host_id is None or path.host_id != host_id:
        return False
    if path.state is PathState.RUNS:
        return path.runs_at is None or at - path.runs_at <= ANSWER_WAIT_MS
    return path.open and path.ordered_ms is not None


def _appended(
    kept: tuple[IncidentEntry, ...], left_out: int, entry: IncidentEntry, most: int
) -> tuple[tuple[IncidentEntry, ...], int]:
    """The first half and the last ones stay: how it began, and how it ends."""
    if len(kept) < most:
        return (*kept, entry), left_out
    half = most // 2
    return (*kept[:half], *kept[half + 1 :], entry), left_out + 1
