"""VMs that an I/O error paused: what is asked, when they are let go on, and what speaks against it (S6)."""

import pytest
from msgspec.structs import replace
from sentinel_bench import BOOT, WEB, Bench, codes, reports

from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import Result
from virtha.model.ids import BootId, Incarnation
from virtha.model.orders import HeldVm, StopMode
from virtha.model.policy import IoErrorPolicy, Policy
from virtha.model.vm import OnIoError, VmState
from virtha.sentinel.events import (
    Adopted,
    Configured,
    Decision,
    DomainsListed,
    HostShuttingDown,
    LibvirtLost,
    MigrationMarked,
    PauseAccepted,
    ResumeAccepted,
    SentinelEvent,
    StopAccepted,
)
from virtha.sentinel.io_error_events import DisksProbed, ProbeDisks, ResumeDomain, ResumeEnded
from virtha.sentinel.io_errors import PROBE_DEADLINE_MS, RESUME_DEADLINE_MS, objection_to_resume

pytestmark = pytest.mark.req("S6")
DELAY_MS = IoErrorPolicy().delay_ms
PAUSED = DomainReport(vm_id=WEB, name="web", state=DomainState.PAUSED, reason="ioerror")


def paused(on_io_error: OnIoError = OnIoError.AUTO_RESUME) -> Bench:
    bench = Bench()
    bench.vm = replace(bench.vm, on_io_error=on_io_error)
    bench.start()
    error(bench)
    return bench


def error(bench: Bench, detail: str = "vda") -> Decision:
    return bench.tell(bench.happens("io_error", detail), bench.happens("suspended", "ioerror"))


def probes(decision: Decision) -> list[ProbeDisks]:
    return [command for command in decision.commands if isinstance(command, ProbeDisks)]


def resumes(decision: Decision) -> list[ResumeDomain]:
    return [command for command in decision.commands if isinstance(command, ResumeDomain)]


def due(bench: Bench, after_ms: int = DELAY_MS) -> ProbeDisks:
    (probe,) = probes(bench.tell(after_ms=after_ms))
    return probe


def answer(
    bench: Bench, probe: ProbeDisks, why_not: str | None = None, *, after_ms: int = 0
) -> Decision:
    told = DisksProbed(vm_id=WEB, number=probe.number, why_not=why_not)
    return bench.tell(told, after_ms=after_ms)


def ended(command: ResumeDomain, result: Result, detail: str = "") -> ResumeEnded:
    return ResumeEnded(
        vm_id=WEB,
        incarnation=command.incarnation,
        attempt=command.attempt,
        result=result,
        detail=detail,
    )


def told(bench: Bench) -> list[str]:
    return [why.code for why in bench.record.reasons]


def test_it_is_resumed_when_its_storage_answers_and_not_before() -> None:
    bench = paused()
    assert told(bench)[:2] == ["vm.paused.io_error", "io_error.waiting.delay"]
    assert not bench.tell(after_ms=DELAY_MS - 1).commands
    probe = due(bench, 1)
    assert not probe.needs_room
    decision = answer(bench, probe, "storage domain ds1 does not answer", after_ms=20)
    assert not decision.commands
    assert told(bench)[1] == "io_error.waiting.storage"
    again = due(bench, IoErrorPolicy().check_interval_ms)
    decision = answer(bench, again, after_ms=20)
    (resume,) = resumes(decision)
    assert (resume.incarnation, resume.attempt) == (1, 1)
    assert codes(decision) == ["vm.io_error.resuming"]
    assert bench.saved[WEB].resumes_ms == (bench.now,), "counted before it goes out"
    decision = bench.event("resumed", "unpaused", after_ms=80)
    assert codes(decision) == ["vm.resumed", "vm.io_error.resumed"]
    assert (bench.record.state, bench.record.io_pause) == (VmState.RUNNING, None)
    assert not bench.tell(ended(resume, Result.OK)).history


def test_an_answer_to_an_earlier_question_says_nothing() -> None:
    bench = paused()
    stale = due(bench)
    bench.event("resumed", "unpaused")
    error(bench)
    fresh = due(bench)
    assert not answer(bench, stale).commands
    assert not answer(bench, fresh, "away").commands
    assert not answer(bench, fresh).commands, "answered already"


def test_a_look_that_nobody_answers_is_asked_again() -> None:
    bench = paused()
    first = due(bench)
    assert not bench.tell(after_ms=PROBE_DEADLINE_MS - 1).commands
    assert due(bench, 1).number > first.number


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (StopAccepted(vm_id=WEB, mode=StopMode.POWER_OFF, by="ann"), None),
        (PauseAccepted(vm_id=WEB, by="ann"), "vm.paused.as_ordered"),
        (MigrationMarked(vm_id=WEB, migrating=True), "restart.blocked.migrating"),
        (HostShuttingDown(), "restart.blocked.host_shutting_down"),
        (LibvirtLost(), "restart.blocked.libvirt_lost"),
    ],
    ids=["stop", "pause", "migration", "shutdown", "libvirt"],
)
def test_what_comes_meanwhile_keeps_it_paused(event: SentinelEvent, code: str | None) -> None:
    bench = paused()
    probe = due(bench)
    decision = bench.tell(event)
    assert not resumes(decision)
    assert not resumes(answer(bench, probe))
    for _ in range(20):
        decision = bench.tell(after_ms=30_000)
        assert not resumes(decision)
        assert not probes(decision)
    if code is not None:
        assert code in told(bench)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"wanted_up": False}, "restart.blocked.stopped_on_purpose"),
        ({"incarnation": Incarnation(2)}, "restart.blocked.superseded"),
    ],
    ids=["unwanted", "superseded"],
)
def test_what_the_server_says_meanwhile_keeps_it_paused(
    changes: dict[str, object], code: str
) -> None:
    bench = paused()
    probe = due(bench)
    held = replace(HeldVm(vm=bench.vm, incarnation=Incarnation(1), wanted_up=True), **changes)
    bench.tell(Configured(policy=Policy(), hold=None, vms=(held,)))
    assert not resumes(answer(bench, probe))
    assert code in told(bench)


def test_hold_keeps_it_paused_until_it_is_lifted() -> None:
    bench = paused()
    held = HeldVm(vm=bench.vm, incarnation=Incarnation(1), wanted_up=True)
    bench.tell(Configured(policy=Policy(), hold="testing", vms=(held,)))
    assert not bench.tell(after_ms=60_000).commands
    assert "restart.blocked.hold" in told(bench)
    decision = bench.tell(Configured(policy=Policy(), hold=None, vms=(held,)))
    assert resumes(answer(bench, probes(decision)[0]))


@pytest.mark.parametrize("first", ["pause", "error"])
def test_a_persons_pause_wins_whichever_came_first(first: str) -> None:
    bench = Bench()
    bench.start()
    if first == "pause":
        bench.tell(PauseAccepted(vm_id=WEB, by="ann"))
        error(bench)
    else:
        error(bench)
        decision = bench.tell(PauseAccepted(vm_id=WEB, by="ann"))
        assert codes(decision) == ["vm.paused"]
    for _ in range(20):
        assert not bench.tell(after_ms=10_000).commands
    assert told(bench)[0] == "vm.paused.as_ordered"
    bench.tell(ResumeAccepted(vm_id=WEB, by="ann"))
    decision = bench.event("resumed", "unpaused")
    assert "vm.io_error.resumed" in codes(decision)
    error(bench)
    assert due(bench).vm_id == WEB


def test_an_error_after_a_persons_pause_is_told_for_it_ran_unseen() -> None:
    """libvirt tells no pause of what is paused already. One line of the log said "paused", by a person, and nobody was called."""
    bench = Bench()
    bench.start()
    bench.tell(PauseAccepted(vm_id=WEB, by="ann"))
    bench.event("suspended", "paused")
    decision = error(bench)
    assert codes(decision) == ["vm.io_error.paused"]
    assert told(bench)[0] == "vm.paused.io_error"
    assert codes(error(bench)) == [], "once"


def test_a_full_storage_is_told_apart_and_has_to_have_room() -> None:
    bench = Bench()
    bench.start()
    decision = error(bench, "vdb no-room")
    assert reports(decision)[0].reasons[0].code == "vm.paused.no_room"
    assert reports(decision)[0].reasons[0].fields == {"disk": "vdb"}
    assert due(bench).needs_room
    bench.event("resumed", "unpaused")
    error(bench)
    assert not due(bench).needs_room, "what was full then is not what failed now"


def test_left_paused_is_never_resumed() -> None:
    bench = paused(OnIoError.LEAVE_PAUSED)
    for _ in range(10):
        assert not bench.tell(after_ms=60_000).commands
    assert told(bench)[:2] == ["vm.paused.io_error", "io_error.left_paused"]


def test_the_waits_grow_to_the_limit_and_a_person_counts_anew() -> None:
    bench = paused()
    policy, last = bench.policy.io_error, Decision()
    for attempt in range(1, policy.resumes_max + 1):
        probe = due(bench, policy.delay_before_ms(attempt))
        (resume,) = resumes(answer(bench, probe))
        assert resume.attempt == attempt
        bench.event("resumed", "unpaused")
        last = error(bench)
    assert codes(last) == ["vm.io_error.paused", "vm.io_error.given_up"]
    for _ in range(30):
        assert not bench.tell(after_ms=policy.window_ms).commands
    assert "io_error.given_up" in told(bench)
    bench.tell(ResumeAccepted(vm_id=WEB, by="ann"))
    bench.event("resumed", "unpaused")
    error(bench)
    assert due(bench, policy.delay_before_ms(1)).vm_id == WEB


def test_that_it_was_given_up_is_said_again_after_a_hold() -> None:
    bench = Bench()
    bench.policy = Policy(io_error=IoErrorPolicy(resumes_max=1))
    bench.restart()
    bench.start()
    error(bench)
    assert resumes(answer(bench, due(bench)))
    bench.event("resumed", "unpaused")
    error(bench)
    held = HeldVm(vm=bench.vm, incarnation=Incarnation(1), wanted_up=True)
    for hold, code in (("testing", "restart.blocked.hold"), (None, "io_error.given_up")):
        decision = bench.tell(Configured(policy=bench.policy, hold=hold, vms=(held,)))
        assert code in told(bench)
        assert not decision.commands
    assert not bench.tell(after_ms=bench.policy.io_error.window_ms).commands


def test_a_person_resumes_it_while_a_resume_is_under_way() -> None:
    bench = paused()
    (resume,) = resumes(answer(bench, due(bench)))
    bench.tell(ended(resume, Result.UNKNOWN))
    for event, after_ms in ((ResumeAccepted(vm_id=WEB, by="ann"), 100), (None, 120_000)):
        decision = bench.tell(*([event] if event else []), after_ms=after_ms)
        assert not (resumes(decision) or probes(decision))
    assert "vm.io_error.resumed" in codes(bench.event("resumed", "unpaused"))


def test_a_resume_that_fails_is_told_and_tried_again_later() -> None:
    bench = paused()
    (resume,) = resumes(answer(bench, due(bench)))
    decision = bench.tell(ended(resume, Result.REFUSED, "its lease is lost"))
    assert codes(decision) == ["vm.io_error.resume_failed"]
    assert not decision.commands
    probe = due(bench, bench.policy.io_error.delay_before_ms(2))
    assert resumes(answer(bench, probe))[0].attempt == 2


def test_a_resume_without_an_answer_is_not_sent_twice_before_its_deadline() -> None:
    bench = paused()
    (resume,) = resumes(answer(bench, due(bench)))
    bench.tell(ended(resume, Result.UNKNOWN))
    bench.tell(DomainsListed(domains=(PAUSED,)))
    assert not resumes(bench.tell(after_ms=RESUME_DEADLINE_MS - 1))
    bench.tell(after_ms=1)
    bench.tell(DomainsListed(domains=(PAUSED,)))
    assert due(bench, bench.policy.io_error.delay_before_ms(2)).vm_id == WEB


def test_the_next_agent_goes_on_where_the_one_before_was() -> None:
    bench = paused()
    assert resumes(answer(bench, due(bench)))
    bench.restart()
    decision = bench.tell(DomainsListed(domains=(PAUSED,), at_start=True), after_ms=500)
    assert not resumes(decision)
    probe = due(bench, bench.policy.io_error.delay_before_ms(2))
    assert resumes(answer(bench, probe))[0].attempt == 2


def test_one_that_was_paused_while_nobody_watched_is_resumed() -> None:
    bench = Bench()
    bench.start()
    bench.restart()
    bench.tell(DomainsListed(domains=(PAUSED,), at_start=True), after_ms=5_000)
    assert told(bench)[0] == "vm.paused.io_error"
    assert resumes(answer(bench, due(bench)))


def test_one_that_somebody_paused_while_nobody_watched_is_theirs() -> None:
    bench = paused()
    bench.restart()
    user = replace(PAUSED, reason="user")
    decision = bench.tell(DomainsListed(domains=(user,), at_start=True), after_ms=500)
    assert codes(decision) == ["vm.paused"]
    for _ in range(10):
        assert not resumes(bench.tell(after_ms=10_000))
    assert told(bench)[0] == "vm.paused.outside"


def test_a_new_boot_forgets_it() -> None:
    bench = paused()
    bench.restart(boot=BootId("boot-2"))
    bench.tell(DomainsListed(domains=(), at_start=True))
    assert (bench.record.state, bench.record.io_pause) == (VmState.DOWN, None)


def test_one_that_is_adopted_as_it_stands_is_resumed() -> None:
    bench = Bench()
    bench.tell(DomainsListed(domains=(PAUSED,), at_start=True))
    bench.tell(Adopted(vm=bench.vm, incarnation=Incarnation(1), domain=PAUSED))
    bench.tell(DomainsListed(domains=(PAUSED,)))
    assert resumes(answer(bench, due(bench)))


def test_what_came_between_decision_and_act_is_seen_under_the_lock() -> None:
    bench = paused()
    (command,) = resumes(answer(bench, due(bench)))
    record = bench.record
    assert objection_to_resume(record, command, PAUSED) is None
    ran = replace(PAUSED, state=DomainState.RUNNING, reason="unpaused")
    assert objection_to_resume(record, command, ran)
    assert objection_to_resume(record, command, replace(PAUSED, reason="user"))
    assert objection_to_resume(None, command, PAUSED)
    for changed in (
        replace(record, incarnation=Incarnation(2)),
        replace(record, superseded_by=Incarnation(2)),
        replace(record, wanted_up=False),
        replace(record, migrating=True),
    ):
        assert objection_to_resume(changed, command, PAUSED)
    bench.tell(PauseAccepted(vm_id=WEB, by="ann"))
    assert objection_to_resume(bench.record, command, PAUSED)
    assert bench.record.boot == BOOT
