"""The fold that the record of an incident is: the same whoever makes it, bounded, and in words that the registry has (X4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as some
from msgspec.structs import replace

from virtha.control.incident_fold import (
    ANSWER_WAIT_MS,
    HOST_ENTRIES_MAX,
    PATH_ENTRIES_MAX,
    Moment,
    fold_host,
    fold_vm,
    host_entries,
    opened,
    path_of,
)
from virtha.control.incident_views import view_of
from virtha.engine.records import FeedProgress, Fence, FenceStep, Incident, OrderId
from virtha.model.codes import REGISTRY
from virtha.model.codes.incident import INCIDENT_REASONS
from virtha.model.ids import BootId, ClusterId, HostId, VmId
from virtha.model.incident import HostIncident, IncidentEntry, PathState, VmPath
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import UtcMillis

pytestmark = pytest.mark.req("X4")
H1, H2, V1, BOOT = HostId("h1"), HostId("h2"), VmId("v1"), BootId("boot1")
NOW = Moment(at=UtcMillis(1_700_000_000_000), clock_ms=50_000)
INCIDENT = Incident(number=1, boot=BOOT, silent_since_ms=40_000, began_ms=48_000)
FEED = FeedProgress(device=PowerDeviceId("bmc@1"))
FENCE = Fence(
    action=PowerAction.OFF,
    level=0,
    attempt=1,
    step=FenceStep.OFF_ORDERED,
    order_id=OrderId("1.1"),
    ordered_ms=49_000,
    began_ms=49_000,
    feeds=(FEED,),
)
OF_A_VM = (
    "incident.vm.lost",
    "incident.vm.ready",
    "vm.recovery_started",
    "vm.recovery_failed",
    "vm.recovery_blocked",
    "vm.recovered",
    "vm.agent.connected",
    "vm.recovery_given_up",
    "vm.freed",
    "vm.quarantined",
    "incident.vm.unharmed",
    "of.the.future",
)


def an_incident() -> HostIncident:
    return opened(NOW, ClusterId("c1"), H1, "h1", INCIDENT)


def entry(code: str, number: int = 0, host: HostId | None = None) -> IncidentEntry:
    return IncidentEntry(
        code=code,
        at=UtcMillis(NOW.at + number),
        clock_ms=NOW.clock_ms + number,
        host_id=host,
        fields={"number": number, "why": f"why {number}"},
    )


entries = some.lists(
    some.builds(
        entry,
        some.sampled_from((*OF_A_VM, "host.proven_dead", "incident.fence.intended")),
        some.integers(0, 10_000),
        some.sampled_from((None, H1, H2)),
    ),
    max_size=3 * PATH_ENTRIES_MAX,
)


@given(entries, some.integers(0, 3 * PATH_ENTRIES_MAX))
def test_written_at_once_or_one_by_one_it_is_the_same_and_bounded(
    told: list[IncidentEntry], cut: int
) -> None:
    path = path_of(an_incident(), V1, "web1")
    whole = fold_vm(path, told)
    assert whole == fold_vm(fold_vm(path, told[:cut]), told[cut:])
    assert len(whole.entries) + whole.left_out == len(told)
    assert len(whole.entries) <= PATH_ENTRIES_MAX
    half = PATH_ENTRIES_MAX // 2
    assert whole.entries[:half] == tuple(told[:half]), "how it began"
    assert whole.entries[half:] == tuple(told[half:][-half:]), "how it ends"
    assert whole.open is (whole.state not in _SETTLED or whole.code in _DOWN_AND_OPEN)
    of_host = fold_host(an_incident(), told)
    assert of_host == fold_host(fold_host(an_incident(), told[:cut]), told[cut:])
    assert len(of_host.entries) + of_host.left_out == len(told) + 1 <= HOST_ENTRIES_MAX
    view = view_of(of_host, [whole])
    moments = [line.after_ms for line in view.timeline]
    assert moments == sorted(moments) and min(moments) >= 0


_SETTLED = (PathState.RUNS, PathState.ANSWERS, PathState.DOWN, PathState.UNHARMED)
_DOWN_AND_OPEN = ("vm.recovery_given_up", "vm.quarantined")


def moved(path: VmPath, *codes: str) -> VmPath:
    return fold_vm(path, [entry(code, number, H2) for number, code in enumerate(codes)])


@pytest.mark.parametrize(
    ("codes", "state", "code", "attempts"),
    [
        (("incident.vm.lost",), PathState.WAITING, None, 0),
        (("vm.recovery_started",), PathState.STARTING, None, 1),
        (("vm.recovery_started", "vm.recovery_failed"), PathState.WAITING, "why 1", 1),
        (("vm.recovery_started",) * 3 + ("vm.recovered",), PathState.RUNS, None, 3),
        (("vm.recovery_blocked", "vm.recovered"), PathState.RUNS, None, 0),
        (("vm.recovery_started", "vm.agent.connected"), PathState.STARTING, None, 1),
        (
            ("vm.recovery_started", "vm.agent.connected", "vm.recovered"),
            PathState.ANSWERS,
            None,
            1,
        ),
        (
            ("vm.recovery_started", "vm.recovered", "vm.agent.connected"),
            PathState.ANSWERS,
            None,
            1,
        ),
        (("vm.agent.connected", "vm.recovery_started"), PathState.STARTING, None, 1),
        (("vm.recovery_given_up",), PathState.DOWN, "vm.recovery_given_up", 0),
        (("vm.recovery_given_up", "vm.freed"), PathState.WAITING, None, 0),
        (("of.the.future",), PathState.WAITING, None, 0),
    ],
)
def test_how_far_a_vm_is(
    codes: tuple[str, ...], state: PathState, code: str | None, attempts: int
) -> None:
    path = moved(path_of(an_incident(), V1, "web1"), *codes)
    assert (path.state, path.code, path.attempts) == (state, code, attempts)


def test_a_guest_agent_that_answers_long_after_was_not_awaited() -> None:
    runs = moved(path_of(an_incident(), V1, "web1"), "vm.recovery_started", "vm.recovered")
    late = fold_vm(runs, [entry("vm.agent.connected", ANSWER_WAIT_MS + 10, H2)])
    assert late.state is PathState.RUNS and late.answered_at is None


def changed(before: Incident | None, **changes: object) -> list[str]:
    after = replace(before or INCIDENT, **changes)
    return [one.code for one in host_entries(NOW, "h1", before, after)]


def test_each_step_of_a_fence_that_is_on_record_is_told_once() -> None:
    ordered = replace(INCIDENT, fence=FENCE)
    assert changed(INCIDENT, fence=FENCE) == ["incident.fence.intended"]
    assert changed(ordered) == []

    def feed(**changes: object) -> Fence:
        return replace(FENCE, feeds=(replace(FEED, **changes),))

    taken, off = feed(accepted=True), feed(accepted=True, off_since_ms=49_500)
    twice = feed(accepted=True, off_since_ms=49_500, confirmed=True)
    steps = [
        (ordered, taken, ["incident.fence.accepted"]),
        (replace(INCIDENT, fence=taken), off, ["incident.fence.read_off"]),
        (replace(INCIDENT, fence=off), twice, ["incident.fence.confirmed"]),
        (replace(INCIDENT, fence=off), taken, ["incident.fence.reading_lost"]),
    ]
    for before, fence, codes in steps:
        assert changed(before, fence=fence) == codes
    everything = ["incident.fence.intended", *(codes[0] for _, _, codes in steps[:3])]
    assert changed(None, fence=twice) == everything, "a leader that wrote them all at once"
    retrying = replace(FENCE, step=FenceStep.RETRYING, order_id=OrderId("1.2"))
    assert changed(ordered, fence=retrying) == []
    proofs = tuple(
        Proof(kind=kind, host_id=H1, boot=BOOT, at_ms=49_000, detail="")
        for kind in (ProofKind.POWER_OFF, ProofKind.LEASE)
    )
    assert changed(INCIDENT, proofs=proofs) == ["incident.proof"], "of the first there is an event"
    assert changed(INCIDENT, poisoned=True, storage_fenced=True) == [
        "incident.poisoned",
        "incident.storage_fenced",
    ]


def test_when_something_was_is_shown_by_the_wall_clock_and_timed_by_the_clusters() -> None:
    (line,) = view_of(an_incident(), ()).timeline
    assert (line.code, line.after_ms, line.clock) == ("incident.last_sign", 0, "cluster")
    assert line.at == NOW.at - 10_000
    told = replace(entry("vm.agent.connected", 3_000), clock_ms=None)
    found = fold_host(an_incident(), [told])
    later = view_of(found, ()).timeline[-1]
    assert (later.after_ms, later.clock) == (13_000, "wall")


def test_its_own_codes_are_in_the_registry() -> None:
    assert all(REGISTRY[one.name] is one for one in INCIDENT_REASONS)
    assert {one.number for one in INCIDENT_REASONS} <= set(range(6300, 6340))
