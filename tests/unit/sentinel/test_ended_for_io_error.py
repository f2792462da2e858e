"""A VM that its host ends because an I/O error keeps it paused: what its end is taken for, and what speaks against it (S6)."""

import pytest
from msgspec.structs import replace
from sentinel_bench import BOOT, WEB, Bench, codes, releases

from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import ReleaseCause, Released
from virtha.model.ids import BootId, Incarnation
from virtha.model.orders import EndPausedVm, HeldVm, StopMode
from virtha.model.policy import Policy
from virtha.model.vm import OnIoError, VmState
from virtha.sentinel.events import (
    Configured,
    Decision,
    DomainsListed,
    HostShuttingDown,
    KilledForLease,
    LibvirtLost,
    MigrationMarked,
    PauseAccepted,
    ResumeAccepted,
    StopAccepted,
)
from virtha.sentinel.io_error_events import EndPausedAccepted, ProbeDisks, ResumeDomain
from virtha.sentinel.io_errors import ended_so, objection_to_end, objection_to_resume

pytestmark = pytest.mark.req("S6")
ONE = Incarnation(1)
ORDER = EndPausedVm(vm_id=WEB, incarnation=ONE, by="engine")
ACCEPTED = EndPausedAccepted(vm_id=WEB, incarnation=ONE, by="engine")
PAUSED = DomainReport(vm_id=WEB, name="web", state=DomainState.PAUSED, reason="ioerror")


def paused(on_io_error: OnIoError = OnIoError.KILL, detail: str = "vda") -> Bench:
    bench = Bench()
    bench.vm = replace(bench.vm, on_io_error=on_io_error)
    bench.start()
    bench.tell(bench.happens("io_error", detail), bench.happens("suspended", "ioerror"))
    return bench


def causes(*decisions: Decision) -> list[ReleaseCause | None]:
    return [
        notice.cause
        for decision in decisions
        for notice in decision.notices
        if isinstance(notice, Released)
    ]


def ending() -> Bench:
    bench = paused()
    bench.tell(ACCEPTED)
    return bench


def test_until_it_is_ended_its_host_lets_it_go_on_as_any_other() -> None:
    bench = paused()
    decision = bench.tell(after_ms=Policy().io_error.delay_ms)
    assert [type(one) for one in decision.commands] == [ProbeDisks]


@pytest.mark.parametrize("detail", ["destroyed", "failed", "crashed", "shutdown", "unknown"])
def test_its_end_is_what_was_ordered_whatever_libvirt_calls_it(detail: str) -> None:
    """A destroy asks QEMU by a signal first, and one whose libvirt begins anew meanwhile is told of as anything."""
    decision = ending().event("stopped", detail)
    assert causes(decision) == [ReleaseCause.IO_ERROR]
    assert codes(decision) == ["vm.stopped_unexpectedly"]


def test_a_signal_of_that_destroy_is_no_guests_wish() -> None:
    bench = ending()
    decisions = [bench.event("shutdown", "host"), bench.event("stopped", "shutdown")]
    assert causes(*decisions) == [ReleaseCause.IO_ERROR]


def test_the_same_end_without_that_order_was_somebody_elses_wish() -> None:
    assert causes(paused().event("stopped", "destroyed")) == [ReleaseCause.INTENDED]


def test_it_is_not_restarted_where_its_storage_failed_it() -> None:
    bench = ending()
    bench.event("stopped", "failed")
    for _ in range(5):
        assert not bench.tell(after_ms=60_000).commands
    assert bench.record.released


@pytest.mark.parametrize("at_start", [True, False])
def test_an_agent_that_comes_after_knows_why_it_ended(at_start: bool) -> None:
    """The mark is on disk before libvirt is asked."""
    bench = ending()
    if at_start:
        bench.restart()
        decision = bench.tell(bench.listed("shutoff", "destroyed", at_start=True))
    else:
        bench.tell(LibvirtLost())
        decision = bench.tell(DomainsListed(domains=()))
    assert causes(decision) == [ReleaseCause.IO_ERROR]


def test_the_hosts_next_boot_ends_it_like_any_other() -> None:
    bench = ending()
    bench.restart(boot=BootId("boot-2"))
    assert causes(bench.tell()) == [ReleaseCause.HOST_BOOTED]


def test_what_is_stronger_than_that_order_is_said_instead() -> None:
    bench = ending()
    bench.tell(KilledForLease(vm_id=WEB))
    assert causes(bench.event("stopped", "failed")) == [ReleaseCause.LEASE_LOST]
    bench = ending()
    bench.tell(StopAccepted(vm_id=WEB, mode=StopMode.POWER_OFF, by="ann"))
    assert causes(bench.event("stopped", "destroyed")) == [ReleaseCause.INTENDED]
    bench = ending()
    bench.tell(HostShuttingDown())
    decisions = [bench.event("shutdown", "host"), bench.event("stopped", "shutdown")]
    assert causes(*decisions) == [ReleaseCause.HOST_SHUTDOWN]


def test_one_that_is_being_ended_is_not_let_go_on_by_itself() -> None:
    bench = ending()
    for _ in range(10):
        assert not bench.tell(after_ms=60_000).commands
    assert [why.code for why in bench.record.reasons][:2] == [
        "vm.paused.io_error",
        "io_error.ending",
    ]
    command = ResumeDomain(vm_id=WEB, incarnation=ONE, attempt=1)
    assert objection_to_resume(bench.record, command, PAUSED) == "it is being ended"


def test_one_that_runs_after_all_is_as_any_other_that_runs() -> None:
    bench = ending()
    bench.tell(ResumeAccepted(vm_id=WEB, by="ann"))
    bench.event("resumed", "unpaused")
    assert bench.record.io_kill is None and bench.record.state is VmState.RUNNING
    assert causes(bench.event("stopped", "destroyed")) == [ReleaseCause.INTENDED]


def test_nothing_speaks_against_ending_one_that_asks_for_it() -> None:
    bench = paused()
    assert objection_to_end(bench.record, ORDER, PAUSED) is None
    bench.tell(ACCEPTED)
    assert objection_to_end(bench.record, ORDER, PAUSED) is None, "it may be ordered again"


def held(bench: Bench, **changes: object) -> Configured:
    wish = HeldVm(vm=bench.vm, incarnation=ONE, wanted_up=True)
    return Configured(policy=Policy(), hold=None, vms=(replace(wish, **changes),))


def test_what_came_before_the_order_speaks_against_it() -> None:
    """Looked at under the VM's lock, right before."""
    left = replace(Bench().vm, on_io_error=OnIoError.LEAVE_PAUSED)
    for event in (
        lambda bench: bench.happens("resumed", "unpaused"),
        lambda bench: PauseAccepted(vm_id=WEB, by="ann"),
        lambda bench: StopAccepted(vm_id=WEB, mode=StopMode.SHUTDOWN, by="ann"),
        lambda bench: MigrationMarked(vm_id=WEB, migrating=True),
        lambda bench: held(bench, wanted_up=False),
        lambda bench: held(bench, incarnation=Incarnation(2)),
        lambda bench: held(bench, vm=left),
    ):
        bench = paused()
        bench.tell(event(bench))
        assert objection_to_end(bench.record, ORDER, PAUSED) is not None, event(bench)
    record = paused().record
    later = replace(ORDER, incarnation=Incarnation(2))
    running = replace(PAUSED, state=DomainState.RUNNING, reason="unpaused")
    by_hand = replace(PAUSED, reason="user")
    assert objection_to_end(None, ORDER, PAUSED) is not None
    assert objection_to_end(record, later, PAUSED) is not None
    assert objection_to_end(record, ORDER, running) is not None
    assert objection_to_end(record, ORDER, by_hand) is not None
    assert objection_to_end(replace(record, outside=True), ORDER, PAUSED) is not None
    full = paused(detail="vda no-room").record
    assert objection_to_end(full, ORDER, PAUSED) == "its storage is full, for every host"


def test_an_order_about_another_incarnation_marks_nothing() -> None:
    bench = paused()
    bench.tell(replace(ACCEPTED, incarnation=Incarnation(2)))
    assert bench.record.io_kill is None


def test_an_order_that_comes_again_finds_that_it_was_done() -> None:
    bench = ending()
    assert ended_so(bench.record, ORDER)
    assert releases(bench.event("stopped", "destroyed")) == [1]
    assert ended_so(bench.record, ORDER) and bench.record.boot == BOOT
    assert not ended_so(bench.record, replace(ORDER, incarnation=Incarnation(2)))
    other = paused()
    other.event("stopped", "destroyed")
    assert not ended_so(other.record, ORDER)
