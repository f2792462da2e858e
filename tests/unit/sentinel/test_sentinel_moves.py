"""A live migration as one host's sentinel knows it: what it begins, says, restarts and gives back (G4 to G6, ADR 10)."""

import pytest
from sentinel_bench import BOOT, WEB, Bench, codes, releases, reports

from virtha.model.facts import (
    Awaited,
    Leaving,
    MigrationReport,
    ReleaseCause,
    Released,
    Result,
    VmReport,
)
from virtha.model.ids import BootId, HostId, Incarnation, OperationId
from virtha.model.orders import MigrationSide, MigrationWord, SettleMigration, StopMode
from virtha.model.vm import PossibleCopy, VmState
from virtha.sentinel.events import (
    AbortMove,
    ArrivalAccepted,
    ArrivalCalledOff,
    ArrivalRefused,
    Decision,
    DomainsListed,
    LibvirtLost,
    ListDomains,
    MoveAccepted,
    MoveEnded,
    MoveEnding,
    MoveGivenUp,
    MoveRefused,
    MoveToldAgain,
    ReportAgain,
    Restart,
    StopAccepted,
)
from virtha.sentinel.moves import CopySeen, SettleAction

pytestmark = pytest.mark.req("A8")
MOVE = OperationId("1.7")
SOURCE, TARGET = MigrationSide.SOURCE, MigrationSide.TARGET
TELL, CANCEL = MigrationWord.TELL, MigrationWord.CANCEL
END, RUN = MigrationWord.END, MigrationWord.RUN
NOTHING = DomainsListed(domains=())
RUNS = CopySeen(active=True)
COPIES = CopySeen(active=True, under_way=True)
STANDS = CopySeen(active=True, stands=True)
PART, WHOLE = STANDS, CopySeen(active=True, stands=True, whole=True)
GONE = CopySeen()
GOING = PossibleCopy(host_id=HostId("h1"), incarnation=Incarnation(1), boot=BootId("h1b1"))
COMING = PossibleCopy(host_id=HostId("h2"), incarnation=Incarnation(2), boot=BootId("h2b1"))


def accepted(deadline_ms: int = 60_000) -> MoveAccepted:
    return MoveAccepted(
        vm_id=WEB,
        migration_id=MOVE,
        incarnation=Incarnation(1),
        target_incarnation=Incarnation(2),
        deadline_ms=deadline_ms,
        by="engine",
        target=COMING,
    )


def leaving() -> Bench:
    """Incarnation 1 runs here and is on its way elsewhere as incarnation 2."""
    bench = Bench()
    bench.start()
    assert bench.sentinel.move_refusal(WEB, Incarnation(1), Incarnation(2)) is None
    bench.tell(accepted())
    return bench


def awaiting() -> Bench:
    """Incarnation 2 is to come here."""
    bench = Bench()
    bench.tell(DomainsListed(domains=(), at_start=True))
    assert bench.sentinel.arrival_refusal(WEB, Incarnation(2)) is None
    bench.tell(
        ArrivalAccepted(
            vm=bench.vm,
            migration_id=MOVE,
            incarnation=Incarnation(2),
            ends_ms=60_000,
            by="engine",
            source=GOING,
        )
    )
    return bench


def ended(result: Result) -> MoveEnded:
    return MoveEnded(vm_id=WEB, migration_id=MOVE, result=result)


def words(decision: Decision) -> list[Result]:
    return [one.result for one in decision.notices if isinstance(one, MigrationReport)]


def restarts(decision: Decision) -> bool:
    return any(isinstance(command, Restart) for command in decision.commands)


def order(bench: Bench, side: MigrationSide, word: MigrationWord) -> SettleMigration:
    return SettleMigration(
        vm=bench.vm,
        migration_id=MOVE,
        side=side,
        incarnation=Incarnation(1 if side is SOURCE else 2),
        target_incarnation=Incarnation(2),
        word=word,
    )


# The source


def test_the_mark_is_durable_before_anything_begins() -> None:
    bench = leaving()
    assert bench.saved[WEB].migrating
    assert bench.saved[WEB].moves_to == 2


def test_what_was_handed_over_is_told_and_released() -> None:
    bench = leaving()
    bench.event("suspended", "migrated")
    assert bench.record.state is VmState.PAUSED
    decision = bench.event("stopped", "migrated")
    assert words(decision) == [Result.OK]
    assert releases(decision) == [1]
    released = next(one for one in decision.notices if isinstance(one, Released))
    assert released.cause is ReleaseCause.MOVED
    assert not restarts(decision)


def test_the_word_comes_before_the_release() -> None:
    """Else the server would let the target run what it was about to be told of."""
    decision = _handed_over(leaving())
    kinds = [type(one) for one in decision.states]
    assert kinds.index(MigrationReport) < kinds.index(Released)


def _handed_over(bench: Bench) -> Decision:
    bench.event("suspended", "migrated")
    return bench.event("stopped", "migrated")


def test_a_crash_while_memory_flows_is_restarted_when_the_attempt_is_over() -> None:
    bench = leaving()
    assert not restarts(bench.event("stopped", "failed"))
    decision = bench.tell(ended(Result.FAILED))
    assert words(decision) == [Result.FAILED]
    assert restarts(decision) or restarts(bench.tell(after_ms=1_000))


def test_what_ended_when_all_was_sent_is_given_back_and_never_restarted() -> None:
    bench = leaving()
    bench.event("suspended", "migrated")
    bench.event("stopped", "failed")
    decision = bench.tell(ended(Result.FAILED))
    assert releases(decision) == [1]
    assert Result.FAILED not in words(decision), "nobody knows that it was not handed over"
    assert not restarts(bench.tell(after_ms=60_000))


def test_a_copy_that_stands_still_is_unclear_whatever_libvirt_says() -> None:
    bench = leaving()
    bench.event("suspended", "migrated")
    assert words(bench.tell(ended(Result.FAILED))) == [Result.UNKNOWN]
    assert bench.record.migrating


def test_one_that_its_libvirt_let_run_on_stays_here() -> None:
    bench = leaving()
    bench.event("suspended", "migrated")
    bench.event("resumed", "migrated")
    assert words(bench.tell(ended(Result.FAILED))) == [Result.FAILED]
    assert restarts(bench.event("stopped", "failed")), "no longer marked"


def test_the_end_of_an_attempt_that_no_agent_saw_is_found_in_the_list() -> None:
    bench = leaving()
    bench.restart()
    decision = bench.tell(bench.listed("shutoff", "migrated", at_start=True))
    assert words(decision) == [Result.OK]
    assert releases(decision) == [1]


def test_a_copy_that_vanished_unseen_is_given_back_when_libvirt_has_no_word_on_it() -> None:
    bench = leaving()
    bench.restart()
    assert not restarts(bench.tell(bench.listed("shutoff", "crashed", at_start=True)))
    decision = bench.tell(ended(Result.UNKNOWN))
    assert releases(decision) == [1]
    assert not restarts(bench.tell(after_ms=60_000))


def test_what_was_told_is_told_again_by_the_next_agent() -> None:
    bench = leaving()
    _handed_over(bench)
    bench.restart()
    decision = bench.tell(DomainsListed(domains=(), at_start=True))
    assert words(decision) == [Result.OK]


@pytest.mark.parametrize("seen", ["copying", "stands", "asked to stop", "ended"])
def test_a_source_whose_host_ended_in_mid_move_tells_of_no_stop_and_no_missing_restart(
    seen: str,
) -> None:
    """The VM may run at its target: that it stopped, or is not restarted, nobody here knows."""
    bench = leaving()
    match seen:
        case "stands":
            bench.event("suspended", "migrated")
        case "asked to stop":
            bench.tell(StopAccepted(vm_id=WEB, mode=StopMode.SHUTDOWN, by="a", deadline_ms=60_000))
        case "ended":
            assert codes(bench.event("stopped", "failed")) == ["vm.crashed", "vm.restart.blocked"]
    bench.now = 0
    bench.restart(boot=BootId("boot-2"))
    decision = bench.tell()
    assert codes(decision) == ([] if seen == "ended" else ["vm.migration_source_ended"])
    assert releases(decision) == [1]
    (report,) = reports(decision)
    why = [one.code for one in report.reasons]
    assert ("restart.blocked.migrating" in why) is (seen != "asked to stop"), (
        "X1 has it all the same"
    )
    assert not restarts(bench.tell(bench.listed("shutoff", "unknown", at_start=True)))


def test_a_source_whose_move_was_over_before_its_host_ended_tells_as_any_other() -> None:
    bench = leaving()
    bench.tell(ended(Result.FAILED))
    bench.now = 0
    bench.restart(boot=BootId("boot-2"))
    assert codes(bench.tell()) == ["vm.stop.reconstructed", "vm.restart.blocked"]


def test_late_attempts_are_ended_once() -> None:
    bench = Bench()
    bench.start()
    decision = bench.tell(accepted(deadline_ms=10_000))
    assert decision.wake_at is not None
    late = bench.tell(after_ms=10_000)
    assert [type(one) for one in late.commands if isinstance(one, AbortMove)] == [AbortMove]
    assert not any(isinstance(one, AbortMove) for one in bench.tell(after_ms=10_000).commands)


def test_no_attempt_is_ended_when_all_was_sent() -> None:
    bench = Bench()
    bench.start()
    bench.tell(accepted(deadline_ms=10_000))
    bench.event("suspended", "migrated")
    assert not any(isinstance(one, AbortMove) for one in bench.tell(after_ms=20_000).commands)


def test_a_migration_that_was_asked_about_begins_no_more_however_late_its_order_comes() -> None:
    bench = Bench()
    bench.start()
    refuse = MoveRefused(
        vm=bench.vm,
        migration_id=MOVE,
        incarnation=Incarnation(1),
        target_incarnation=Incarnation(2),
    )
    assert words(bench.tell(refuse)) == [Result.REFUSED]
    bench.restart()
    bench.tell(bench.listed(at_start=True))
    refusal = bench.sentinel.move_refusal(WEB, Incarnation(1), Incarnation(2))
    assert refusal is not None
    assert refusal.code == "order.refused.migration"
    assert bench.sentinel.move_refusal(WEB, Incarnation(1), Incarnation(3)) is None


def test_a_source_that_has_no_such_copy_releases_it() -> None:
    bench = Bench()
    bench.tell(DomainsListed(domains=(), at_start=True))
    decision = bench.tell(
        MoveRefused(
            vm=bench.vm,
            migration_id=MOVE,
            incarnation=Incarnation(1),
            target_incarnation=Incarnation(2),
        )
    )
    assert releases(decision) == [1]
    assert words(decision) == [], "that it goes on here would be a lie"


def test_a_copy_that_its_operator_paused_stands_here_for_that_reason() -> None:
    bench = leaving()
    bench.event("suspended", "paused")
    assert words(bench.tell(ended(Result.FAILED))) == [Result.FAILED]


@pytest.mark.parametrize("state", ["stopping", "paused", "released", "outside"])
def test_what_does_not_just_run_is_not_moved(state: str) -> None:
    bench = Bench()
    bench.start()
    match state:
        case "stopping":
            bench.event("shutdown", "guest")
        case "paused":
            bench.event("suspended", "paused")
        case "released":
            bench.event("stopped", "destroyed")
        case _:
            bench.event("stopped", "destroyed")
            bench.event("started", "booted")
            bench.event("resumed", "unpaused")
    refusal = bench.sentinel.move_refusal(WEB, Incarnation(1), Incarnation(2))
    assert refusal is not None
    assert refusal.code == "order.refused.state"


def told_to_wait_for(decision: Decision) -> list[Leaving | None]:
    return [one.leaves for one in decision.states if isinstance(one, VmReport)]


def test_a_source_that_stands_tells_whose_word_it_waits_for() -> None:
    """Who has no record of that migration must know whom to ask (M2): before it stands there is nothing to be asked."""
    bench = leaving()
    assert told_to_wait_for(bench.tell(ReportAgain())) == [None]
    waits = Leaving(migration_id=MOVE, target=COMING)
    assert told_to_wait_for(bench.event("suspended", "migrated")) == [waits]
    assert told_to_wait_for(bench.tell(ReportAgain())) == [waits]
    bench.restart()
    bench.tell(bench.listed("paused", "migration", at_start=True))
    assert told_to_wait_for(bench.tell(ReportAgain())) == [waits], "also by the next agent"


def test_a_source_that_goes_on_waits_for_nobody() -> None:
    bench = leaving()
    bench.event("suspended", "migrated")
    assert told_to_wait_for(bench.event("resumed", "migrated")) == [None]
    bench.tell(ended(Result.FAILED))
    bench.event("suspended", "paused")
    assert told_to_wait_for(bench.tell(ReportAgain())) == [None], "paused for another reason"


# The target


def test_nothing_is_reported_of_a_copy_that_is_on_its_way() -> None:
    bench = awaiting()
    told = [*bench.tell(after_ms=1_000).notices, *bench.event("started", "migrated").notices]
    assert told == []


def awaited(decision: Decision) -> list[tuple[int, str]]:
    return [
        (one.incarnation, one.migration_id) for one in decision.states if isinstance(one, Awaited)
    ]


def test_a_server_with_a_new_memory_is_told_what_is_awaited_here() -> None:
    """It may have been restored from before that migration was ordered (M2)."""
    bench = awaiting()
    decision = bench.tell(ReportAgain())
    assert awaited(decision) == [(2, MOVE)]
    assert [one.source for one in decision.states if isinstance(one, Awaited)] == [GOING]
    bench.event("started", "migrated")
    assert awaited(bench.tell(ReportAgain())) == [(2, MOVE)], "it has not run here yet"
    bench.event("resumed", "migrated")
    assert awaited(bench.tell(ReportAgain())) == []


def test_so_it_is_by_an_agent_that_began_after_it_was_accepted() -> None:
    bench = awaiting()
    bench.restart()
    assert awaited(bench.tell(DomainsListed(domains=(), at_start=True))) == [(2, MOVE)]


def test_what_did_not_come_is_awaited_no_more() -> None:
    bench = awaiting()
    bench.event("started", "migrated")
    decision = bench.event("stopped", "destroyed")
    assert awaited(decision) == [] and releases(decision) == [2]
    assert awaited(bench.tell(ReportAgain())) == []


def test_a_copy_that_arrives_is_told_and_restarted_here_when_it_crashes() -> None:
    bench = awaiting()
    bench.event("started", "migrated")
    decision = bench.event("resumed", "migrated")
    assert words(decision) == [Result.OK]
    assert reports(decision)[-1].state is VmState.RUNNING
    assert restarts(bench.event("stopped", "failed"))


def test_a_copy_that_ends_before_it_ran_is_told_as_that_and_released() -> None:
    bench = awaiting()
    bench.event("started", "migrated")
    decision = bench.event("stopped", "destroyed")
    assert words(decision) == [Result.FAILED]
    assert releases(decision) == [2]
    assert reports(decision) == [], "it runs elsewhere: it is not down"


def test_one_that_ran_for_a_moment_before_it_was_ended_did_run() -> None:
    """The agent saw it stand still, slept, and ended what had begun to run: the events tell."""
    bench = awaiting()
    bench.event("started", "migrated")
    decision = bench.tell(
        bench.happens("resumed", "migrated"), bench.happens("stopped", "destroyed")
    )
    assert Result.FAILED not in words(decision)
    assert releases(decision) == [2]


def test_that_it_never_ran_is_not_said_of_what_was_not_watched() -> None:
    bench = awaiting()
    bench.restart()
    bench.tell(DomainsListed(domains=(), at_start=True))
    decision = bench.tell(ArrivalCalledOff(vm_id=WEB))
    assert any(isinstance(one, ListDomains) for one in decision.commands)
    decision = bench.tell(NOTHING)
    assert words(decision) == []
    assert releases(decision) == [2]


def test_one_that_still_stands_there_after_a_gap_has_not_run() -> None:
    bench = awaiting()
    bench.event("started", "migrated")
    bench.tell(LibvirtLost())
    bench.tell(bench.listed("paused", "migration"))
    assert words(bench.event("stopped", "destroyed")) == [Result.FAILED]


def test_one_that_began_to_run_in_a_gap_is_told_from_the_list() -> None:
    bench = awaiting()
    bench.restart()
    decision = bench.tell(bench.listed("running", "migrated", at_start=True))
    assert words(decision) == [Result.OK]


def test_a_new_boot_releases_what_was_awaited() -> None:
    bench = awaiting()
    bench.restart(boot=BootId("boot-2"))
    decision = bench.tell(DomainsListed(domains=(), at_start=True))
    assert releases(decision) == [2]
    assert words(decision) == []


def test_an_arrival_is_never_asked_for_twice() -> None:
    bench = awaiting()
    bench.event("started", "migrated")
    bench.event("stopped", "destroyed")
    refusal = bench.sentinel.arrival_refusal(WEB, Incarnation(2))
    assert refusal is not None
    assert refusal.code == "order.refused.incarnation"
    assert bench.sentinel.arrival_refusal(WEB, Incarnation(3)) is None


def test_an_unknown_migration_is_refused_for_good_at_its_target() -> None:
    bench = Bench()
    bench.tell(DomainsListed(domains=(), at_start=True))
    decision = bench.tell(
        ArrivalRefused(vm=bench.vm, migration_id=MOVE, incarnation=Incarnation(2))
    )
    assert words(decision) == [Result.REFUSED]
    assert releases(decision) == [2]
    bench.restart()
    bench.tell(DomainsListed(domains=(), at_start=True))
    assert bench.sentinel.arrival_refusal(WEB, Incarnation(2)) is not None


def test_nothing_is_refused_over_a_copy_that_runs() -> None:
    bench = Bench()
    bench.start()
    decision = bench.tell(
        ArrivalRefused(vm=bench.vm, migration_id=MOVE, incarnation=Incarnation(2))
    )
    assert (words(decision), releases(decision)) == ([], [])


# The server's words


@pytest.mark.parametrize(
    ("copy", "word", "action"),
    [
        (COPIES, TELL, SettleAction.NOTHING),
        (COPIES, CANCEL, SettleAction.ABORT),
        (COPIES, END, SettleAction.ABORT),
        (COPIES, RUN, SettleAction.ABORT),
        (RUNS, TELL, SettleAction.STAYS),
        (RUNS, END, SettleAction.STAYS),
        (STANDS, TELL, SettleAction.UNCLEAR),
        (STANDS, CANCEL, SettleAction.UNCLEAR),
        (STANDS, END, SettleAction.END),
        (STANDS, RUN, SettleAction.RUN),
        (GONE, END, SettleAction.NOTHING),
    ],
)
def test_words_to_the_source(copy: CopySeen, word: MigrationWord, action: SettleAction) -> None:
    bench = leaving()
    assert bench.sentinel.settle_action(order(bench, SOURCE, word), copy) is action


@pytest.mark.parametrize(
    ("copy", "word", "action"),
    [
        (PART, TELL, SettleAction.NOTHING),
        (PART, CANCEL, SettleAction.END),
        (PART, RUN, SettleAction.END),
        (WHOLE, TELL, SettleAction.UNCLEAR),
        (WHOLE, CANCEL, SettleAction.END),
        (WHOLE, RUN, SettleAction.RUN),
        (RUNS, CANCEL, SettleAction.NOTHING),
        (GONE, TELL, SettleAction.NOTHING),
        (GONE, CANCEL, SettleAction.END),
        (GONE, RUN, SettleAction.END),
    ],
)
def test_words_to_the_target(copy: CopySeen, word: MigrationWord, action: SettleAction) -> None:
    bench = awaiting()
    assert bench.sentinel.settle_action(order(bench, TARGET, word), copy) is action


@pytest.mark.parametrize("side", [SOURCE, TARGET])
@pytest.mark.parametrize("word", list(MigrationWord))
def test_an_unknown_migration_is_refused_whatever_the_word(
    side: MigrationSide, word: MigrationWord
) -> None:
    bench = Bench()
    if side is SOURCE:
        bench.start()
    else:
        bench.tell(DomainsListed(domains=(), at_start=True))
    copy = RUNS if side is SOURCE else GONE
    assert bench.sentinel.settle_action(order(bench, side, word), copy) is SettleAction.REFUSE


def test_a_crashed_source_restarts_itself_when_the_target_never_ran() -> None:
    bench = leaving()
    bench.event("stopped", "failed")
    settle = bench.sentinel.settle_action
    assert settle(order(bench, SOURCE, RUN), GONE) is SettleAction.STAYS
    assert settle(order(bench, SOURCE, END), GONE) is SettleAction.GIVE_UP
    assert releases(bench.tell(MoveGivenUp(vm_id=WEB))) == [1]


def test_what_is_ended_on_the_servers_word_was_handed_over() -> None:
    bench = leaving()
    bench.event("suspended", "migrated")
    bench.tell(MoveEnding(vm_id=WEB))
    assert bench.saved[WEB].move is not None
    assert bench.saved[WEB].move.ending, "durable before the end"
    decision = bench.event("stopped", "destroyed")
    assert words(decision) == [Result.OK]
    assert releases(decision) == [1]


def test_asked_again_it_says_the_same_again() -> None:
    bench = leaving()
    _handed_over(bench)
    again = MoveToldAgain(vm_id=WEB, migration_id=MOVE, target_incarnation=Incarnation(2))
    decision = bench.tell(again)
    assert words(decision) == [Result.OK]
    assert releases(decision) == [1]
    assert bench.record.boot == BOOT
