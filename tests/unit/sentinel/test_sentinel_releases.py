"""When a release is told, and what a start that is not done leaves behind (G1, P5)."""

import pytest
from sentinel_bench import BOOT, WEB, Bench, codes, releases, reports

from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import ReleaseCause, Released, Result
from virtha.model.ids import BootId, Incarnation
from virtha.model.orders import StopMode
from virtha.model.vm import VmState
from virtha.sentinel.events import (
    Adopted,
    Decision,
    DomainsListed,
    HostShuttingDown,
    HostStaysUp,
    LibvirtLost,
    ListDomains,
    ReportAgain,
    Restart,
    StartAccepted,
    StartEnded,
    StartRefused,
    StopAccepted,
)
from virtha.sentinel.restart import ATTEMPT_DEADLINE_MS

pytestmark = pytest.mark.req("A8")
NOTHING = DomainsListed(domains=())


def refused(bench: Bench, incarnation: int) -> StartRefused:
    return StartRefused(vm=bench.vm, incarnation=Incarnation(incarnation), detail="why")


def ready() -> Bench:
    bench = Bench()
    bench.tell(DomainsListed(domains=(), at_start=True))
    return bench


def running() -> Bench:
    bench = Bench()
    bench.start()
    return bench


def test_a_refused_start_is_recorded_before_it_is_released_and_stays_refused() -> None:
    bench = ready()
    decision = bench.tell(refused(bench, 3))
    assert releases(decision) == [3]
    assert bench.saved[WEB].released
    bench.restart()
    bench.tell(DomainsListed(domains=(), at_start=True))
    refusal = bench.sentinel.start_refusal(WEB, Incarnation(3))
    assert refusal is not None
    assert refusal.code == "order.refused.incarnation"
    assert bench.sentinel.start_refusal(WEB, Incarnation(4)) is None


def test_nothing_is_released_over_a_copy_that_runs_or_may_run() -> None:
    bench = running()
    assert releases(bench.tell(refused(bench, 2))) == []
    assert (bench.record.incarnation, bench.record.state) == (1, VmState.RUNNING)

    bench = ready()
    bench.tell(StartAccepted(vm=bench.vm, incarnation=Incarnation(1), by="admin"))
    bench.tell(StartEnded(vm_id=WEB, incarnation=Incarnation(1), result=Result.UNKNOWN))
    bench.tell(LibvirtLost())
    assert releases(bench.tell(refused(bench, 2))) == []
    assert bench.record.incarnation == 1

    bench = Bench()
    bench.tell(bench.listed(at_start=True))  # somebody's copy of a VM that has no record here
    assert releases(bench.tell(refused(bench, 2))) == []
    assert bench.sentinel.view() == ()


def test_without_libvirt_a_release_waits_for_the_list() -> None:
    bench = ready()
    bench.tell(LibvirtLost())
    decision = bench.tell(refused(bench, 2))
    assert releases(decision) == []
    assert reports(decision) == []
    assert not bench.saved[WEB].released
    assert releases(bench.tell(NOTHING, after_ms=1_000)) == [2]

    bench = ready()
    bench.tell(LibvirtLost())
    bench.tell(refused(bench, 2))
    decision = bench.tell(bench.listed(), after_ms=1_000)
    assert releases(decision) == []
    assert "vm.unmanaged_copy" in codes(decision)


@pytest.mark.parametrize("attempt", [False, True])
def test_a_qemu_on_its_way_out_is_no_successful_start(attempt: bool) -> None:
    if attempt:
        bench = running()
        (restart,) = [
            c for c in bench.event("stopped", "failed").commands if isinstance(c, Restart)
        ]
        assert restart.attempt == 1
    else:
        bench = ready()
        bench.tell(StartAccepted(vm=bench.vm, incarnation=Incarnation(1), by="admin"))
    bench.restart()
    decision = bench.tell(bench.listed("shutting_down", "booted", at_start=True), after_ms=1_000)
    assert bench.record.state is VmState.UNKNOWN
    assert not {"vm.started", "vm.restarted"} & set(codes(decision))
    assert not any(isinstance(command, ListDomains) for command in decision.commands)
    later = bench.tell(after_ms=10_000)
    assert any(isinstance(command, ListDomains) for command in later.commands)
    bench.tell(bench.listed("shutoff", "shutdown"))
    assert bench.record.state is not VmState.RUNNING


def test_a_guest_that_panicked_by_then_did_start() -> None:
    bench = ready()
    bench.tell(StartAccepted(vm=bench.vm, incarnation=Incarnation(1), by="admin"))
    bench.restart()
    decision = bench.tell(bench.listed("crashed", "panicked", at_start=True), after_ms=1_000)
    assert bench.record.state is VmState.CRASHED
    assert [code for code in codes(decision) if code.startswith("vm.")] == [
        "vm.started",
        "vm.panicked",
    ]


def test_what_is_adopted_is_listed_once_more() -> None:
    bench = ready()
    report = DomainReport(vm_id=WEB, name="web", state=DomainState.RUNNING, pid=7)
    decision = bench.tell(Adopted(vm=bench.vm, incarnation=Incarnation(1), domain=report))
    assert any(isinstance(command, ListDomains) for command in decision.commands)
    bench.tell(bench.listed("shutoff", "failed"), after_ms=5)
    assert bench.record.state is not VmState.RUNNING


def test_a_list_from_before_an_adoption_does_not_judge_it() -> None:
    bench = running()
    bench.tell(ReportAgain(vm_id=WEB))  # asks for a list, which is on its way
    report = DomainReport(vm_id=WEB, name="web", state=DomainState.RUNNING, pid=7)
    bench.tell(Adopted(vm=bench.vm, incarnation=Incarnation(1), domain=report))
    decision = bench.tell(NOTHING, after_ms=5)
    assert bench.record.state is VmState.RUNNING
    assert any(isinstance(command, ListDomains) for command in decision.commands)


def test_a_shutdown_of_the_host_that_was_called_off_blocks_no_restart() -> None:
    bench = running()
    bench.tell(HostShuttingDown())
    bench.tell(HostStaysUp())
    decision = bench.event("stopped", "failed", after_ms=1_000)
    assert any(isinstance(command, Restart) for command in decision.commands)


def test_vms_are_reported_again_when_asked() -> None:
    bench = running()
    assert reports(bench.tell(after_ms=1_000)) == []
    (report,) = reports(bench.tell(ReportAgain(), after_ms=1_000))
    assert (report.vm_id, report.state) == (WEB, VmState.RUNNING)
    decision = bench.tell(ReportAgain(vm_id=WEB), after_ms=1_000)
    assert len(reports(decision)) == 1
    assert any(isinstance(command, ListDomains) for command in decision.commands)
    assert bench.record.boot == BOOT


# What the release says of the end


def causes(*decisions: Decision) -> list[ReleaseCause | None]:
    return [
        notice.cause
        for decision in decisions
        for notice in decision.notices
        if isinstance(notice, Released)
    ]


@pytest.mark.parametrize(
    ("before", "detail", "cause"),
    [
        ([], "shutdown", ReleaseCause.INTENDED),
        ([], "destroyed", ReleaseCause.INTENDED),
        ([], "migrated", ReleaseCause.INTENDED),
        ([("shutdown", "host")], "shutdown", ReleaseCause.INTENDED),
        ([], "something new", ReleaseCause.ENDED),
    ],
)
def test_a_release_says_whether_somebody_meant_it(
    before: list[tuple[str, str]], detail: str, cause: ReleaseCause
) -> None:
    bench = running()
    for kind, word in before:
        bench.event(kind, word)
    assert causes(bench.event("stopped", detail)) == [cause]


@pytest.mark.parametrize("detail", ["shutdown", "failed"])
def test_a_host_that_goes_down_says_so_of_what_it_takes_along(detail: str) -> None:
    """Also of a QEMU that crashes then: it would have been restarted here but for that."""
    bench = running()
    bench.tell(HostShuttingDown())
    bench.event("shutdown", "host")
    assert causes(bench.event("stopped", detail)) == [ReleaseCause.HOST_SHUTDOWN]
    bench.restart()
    assert causes(bench.tell()) == [ReleaseCause.HOST_SHUTDOWN]


def test_a_stop_that_was_ordered_before_the_host_goes_down_is_meant() -> None:
    bench = running()
    bench.tell(StopAccepted(vm_id=WEB, mode=StopMode.SHUTDOWN, by="admin", deadline_ms=60_000))
    bench.tell(HostShuttingDown())
    assert causes(bench.event("stopped", "shutdown")) == [ReleaseCause.INTENDED]


def test_a_refused_start_never_ran_and_a_new_boot_ended_what_ran() -> None:
    bench = ready()
    assert causes(bench.tell(refused(bench, 3))) == [ReleaseCause.NEVER_RAN]
    bench = running()
    bench.now = 0
    bench.restart(boot=BootId("boot-2"))
    assert causes(bench.tell()) == [ReleaseCause.HOST_BOOTED]


# A start under way, whatever is seen to end meanwhile (G2)


def ended_while_starting(kind: str = "shutdown") -> Bench:
    """An ordered start hangs; somebody started the VM by hand meanwhile, and it ended."""
    bench = ready()
    bench.tell(StartAccepted(vm=bench.vm, incarnation=Incarnation(1), by="admin"))
    bench.tell(bench.happens("started", "booted"), bench.happens("resumed", "unpaused"))
    decision = bench.event("stopped", kind)
    assert releases(decision) == [] and bench.record.state is VmState.DOWN
    assert [why.code for why in bench.record.reasons][-1] == "start.waiting.result"
    return bench


def start_ended(result: Result) -> StartEnded:
    return StartEnded(vm_id=WEB, incarnation=Incarnation(1), result=result)


def test_nothing_is_given_back_that_a_start_under_way_may_still_make() -> None:
    bench = ended_while_starting()
    assert releases(bench.tell(NOTHING, after_ms=30_000)) == []
    assert releases(bench.tell(NOTHING)) == []
    refusal = bench.sentinel.start_refusal(WEB, Incarnation(2))
    assert refusal is not None and refusal.code == "order.refused.running"
    decision = bench.tell(start_ended(Result.UNKNOWN))
    assert releases(decision) == [] and bench.record.state is VmState.UNKNOWN
    assert any(isinstance(command, ListDomains) for command in decision.commands)
    assert causes(bench.tell(NOTHING)) == [ReleaseCause.INTENDED], "its guest shut it down"


@pytest.mark.parametrize("result", [Result.UNKNOWN, Result.OK])
def test_what_a_start_made_after_all_is_kept(result: Result) -> None:
    bench = ended_while_starting()
    assert releases(bench.tell(start_ended(result))) == []
    assert releases(bench.tell(bench.listed())) == []
    assert bench.record.state is VmState.RUNNING and not bench.record.outside
    assert (bench.record.exit, bench.record.pending) == (None, None)


def test_what_an_unclear_start_makes_before_the_list_comes_is_kept() -> None:
    bench = ended_while_starting("failed")
    bench.tell(start_ended(Result.UNKNOWN))
    bench.tell(bench.happens("started", "booted"), bench.happens("resumed", "unpaused"))
    assert bench.record.state is VmState.RUNNING and not bench.record.outside
    assert (bench.record.exit, bench.record.pending) == (None, None)


@pytest.mark.parametrize("seen_by", ["events", "list"])
def test_what_a_start_makes_after_somebody_elses_copy_ended_is_its_own(seen_by: str) -> None:
    bench = ended_while_starting("failed")
    if seen_by == "list":
        bench.tell(ReportAgain(vm_id=WEB))
        bench.tell(bench.listed("paused", "starting"))
    else:
        bench.tell(bench.happens("started", "booted"), bench.happens("suspended", "paused"))
    assert bench.record.state is VmState.STARTING
    bench.tell(bench.happens("resumed", "unpaused"), start_ended(Result.OK))
    assert bench.record.state is VmState.RUNNING and not bench.record.outside
    assert (bench.record.exit, bench.record.pending) == (None, None)


def test_a_start_that_certainly_failed_ends_the_wait_at_once() -> None:
    bench = ended_while_starting()
    assert causes(bench.tell(start_ended(Result.FAILED))) == [ReleaseCause.INTENDED]


def test_a_start_under_way_is_not_doubled_by_a_restart() -> None:
    bench = ended_while_starting("failed")
    bench.tell(after_ms=30_000)
    assert bench.record.attempt is None
    bench.tell(start_ended(Result.UNKNOWN))
    decision = bench.tell(NOTHING)
    assert releases(decision) == [] and bench.record.attempt == 1, "it crashed: that stands"


def test_a_start_that_nobody_answers_is_unclear_in_the_end() -> None:
    bench = ended_while_starting()
    assert bench.tell().wake_at == ATTEMPT_DEADLINE_MS
    decision = bench.tell(after_ms=ATTEMPT_DEADLINE_MS)
    assert any(isinstance(command, ListDomains) for command in decision.commands)
    assert releases(decision) == []
    assert releases(bench.tell(NOTHING)) == [1]


@pytest.mark.parametrize("made", [False, True])
def test_the_next_agent_asks_libvirt_what_came_of_a_start_under_way(made: bool) -> None:
    bench = ended_while_starting()
    bench.restart()
    assert releases(bench.tell()) == []
    listed = bench.listed(at_start=True) if made else DomainsListed(domains=(), at_start=True)
    assert releases(bench.tell(listed, after_ms=1_000)) == ([] if made else [1])
    assert (bench.record.state is VmState.RUNNING) is made and not bench.record.outside


def test_in_another_boot_no_start_is_under_way() -> None:
    bench = ended_while_starting()
    bench.now = 0
    bench.restart(boot=BootId("boot-2"))
    assert releases(bench.tell()) == [1]
