"""Halves of migrations that a restored database knows nothing of (M2, G1, G4, G6)."""

import msgspec
import pytest
from engine_driver import Play
from engine_review_driver import named, playing, released, seen
from test_given_back import gives_back

from virtha.engine.events import (
    CancelStart,
    MigrateCommand,
    MigrationEnded,
    MigrationWord,
    MoveAsked,
    SettleMigration,
    StartCommand,
    StartEnded,
    VmSeen,
)
from virtha.engine.records import OrderId, VmStage
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.vm import PossibleCopy, VmState

pytestmark = pytest.mark.req("F4", "F9")

LOST_ORDER = OrderId("0.7")
"""In no records any more."""


def copy_on(play: Play, host: str, incarnation: int) -> PossibleCopy:
    """Also on a host that the records don't name."""
    played = play.hosts.get(host)
    boot = BootId(f"{host}b1") if played is None else played.boot
    return PossibleCopy(host_id=HostId(host), incarnation=Incarnation(incarnation), boot=boot)


def awaits(
    play: Play,
    host: str,
    incarnation: int = 2,
    *,
    source: PossibleCopy | str | None = "h1",
    order_id: OrderId = LOST_ORDER,
) -> None:
    """v1's copy is to come there. ``source`` as a name: its first copy; None: the agent is of an earlier version."""
    played = play.hosts[host]
    play.inbox.append(
        VmSeen(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(incarnation),
            state=VmState.STARTING,
            awaited_by=order_id,
            other=copy_on(play, source, 1) if isinstance(source, str) else source,
        )
    )


def stands(play: Play, target: PossibleCopy, *, host: str = "h1", incarnation: int = 1) -> None:
    """v1 stands still there as the source of a migration to ``target``."""
    played = play.hosts[host]
    played.running.pop(VmId("v1"), None)
    play.inbox.append(
        VmSeen(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(incarnation),
            state=VmState.PAUSED,
            leaves_by=LOST_ORDER,
            other=target,
        )
    )


def says(play: Play, host: str, result: Result, order_id: OrderId = LOST_ORDER) -> None:
    play.inbox.append(
        MigrationEnded(order_id=order_id, host_id=HostId(host), vm_id=VmId("v1"), result=result)
    )


def words(play: Play) -> list[tuple[HostId, MigrationWord]]:
    return [(one.host_id, one.word) for one in play.sent(SettleMigration)]


def by_hand(play: Play) -> Play:
    """Nobody answers words about migrations but the test."""
    play.on_command = lambda command: isinstance(command, SettleMigration)
    return play


def restored(play: Play) -> None:
    play.configs = [msgspec.structs.replace(one, untold=True) for one in play.configs]
    play.new_leader()
    play.configs = [msgspec.structs.replace(one, untold=False) for one in play.configs]


def source_dies(play: Play) -> None:
    play.hosts["h1"].cut()
    play.until(lambda: play.vm_record("v1").proofs != ())


def test_its_target_is_a_holder_before_anything_came():
    play = by_hand(playing())
    awaits(play, "h2")
    play.tick()
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h1", "h2"}
    assert play.vm_record("v1").incarnation == 2
    assert play.told().count("vm.migration_found") == 1


def test_the_source_dies_and_the_half_copy_is_given_back_before_a_start():
    play = by_hand(playing())
    awaits(play, "h2")
    source_dies(play)
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play))
    assert play.sent(StartCommand) == [], "its target holds it"
    released(play, "h2", "v1", 2)
    play.until(lambda: play.where("v1") != [])
    (start,) = play.sent(StartCommand)
    assert start.incarnation == 3
    assert play.vm_record("v1").migration is None


def test_the_source_dies_and_a_whole_copy_runs_on():
    play = by_hand(playing())
    awaits(play, "h2")
    source_dies(play)
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play))
    play.hosts["h2"].running[VmId("v1")] = Incarnation(2)
    play.inbox.append(
        MigrationEnded(
            order_id=LOST_ORDER, host_id=HostId("h2"), vm_id=VmId("v1"), result=Result.OK
        )
    )
    play.tick()
    record = play.vm_record("v1")
    assert record.stage is VmStage.SETTLED and play.sent(StartCommand) == []
    assert [copy.host_id for copy in record.copies] == ["h2"]


def test_no_word_goes_out_before_every_host_has_told():
    """The real source may be one that has not told yet: its target would be let run beside it."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].bmc_dead = True
    play.hosts["h5"].hang()
    restored(play)
    awaits(play, "h2")
    source_dies(play)
    play.advance(60_000)
    assert words(play) == [] and play.sent(StartCommand) == []
    assert "recovery.waiting.inventory" in play.why_vm("v1")
    play.hosts["h5"].boot_again()
    play._greet(play.hosts["h5"])
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play))


def test_a_start_of_the_incarnation_that_is_awaited_there_never_was():
    """Its target refuses it for ever, and can't confirm that it is taken back."""
    play = by_hand(playing(2))
    play.hosts["h2"].start_result = None
    play.hosts["h2"].confirms_cancel = False
    play.hosts["h1"].cut()
    play.until(lambda: play.sent(StartCommand) != [])
    (start,) = play.sent(StartCommand)
    assert (start.host_id, start.incarnation) == ("h2", 2)
    play.inbox.append(
        StartEnded(
            order_id=start.order_id,
            host_id=start.host_id,
            vm_id=start.vm_id,
            incarnation=start.incarnation,
            result=Result.UNKNOWN,
            code="order.refused.running",
        )
    )
    play.tick()
    assert "vm.start_overdue" not in play.told() and "vm.start_unclear" in play.told()
    awaits(play, "h2")
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play), within_ms=10_000)
    play.hosts["h2"].start_result = Result.OK
    released(play, "h2", "v1", 2)
    play.until(lambda: play.where("v1") == ["h2"])
    assert play.sent(StartCommand)[-1].incarnation == 3
    cancels = len(play.sent(CancelStart))
    play.advance(20_000)
    assert len(play.sent(CancelStart)) == cancels


def test_a_start_elsewhere_is_taken_back_first():
    play = by_hand(playing(3))
    for name in ("h2", "h3"):
        play.hosts[name].start_result = None
    play.hosts["h1"].cut()
    play.until(lambda: play.sent(StartCommand) != [])
    (start,) = play.sent(StartCommand)
    other = "h3" if start.host_id == "h2" else "h2"
    awaits(play, other)
    play.until(lambda: (HostId(other), MigrationWord.RUN) in words(play), within_ms=10_000)
    assert [one.host_id for one in play.sent(CancelStart)] == [start.host_id]
    assert len(play.sent(StartCommand)) == 1


def test_of_an_unknown_source_nothing_is_ended_or_started():
    """The restored records name nobody that held it: a host that they don't name may run it."""
    play = by_hand(Play(3))
    awaits(play, "h2", source=None)
    play.advance(120_000)
    assert words(play) == [] and play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["migration.blocked.source_unknown"]
    assert play.told().count("vm.migration_unsettled") == 1


@pytest.mark.parametrize("source", [None, "h9"])
def test_what_another_copy_left_behind_is_not_the_end_of_its_source(source: str | None):
    """The backup is of when it was down on purpose. It has run on h9 since, which joined later, and runs there still."""
    play = by_hand(named(playing(5)))
    gives_back(play, "v1", ReleaseCause.INTENDED)
    play.tick()
    assert play.vm_record("v1").given_back is not None
    restored(play)
    awaits(play, "h2", 5, source=None if source is None else copy_on(play, source, 4))
    play.advance(120_000)
    assert {word for _, word in words(play)} <= {MigrationWord.TELL}
    assert play.sent(StartCommand) == []
    if source is None:
        assert play.why_vm("v1") == ["migration.blocked.source_unknown"]
    else:
        assert play.why_vm("v1") == ["migration.waiting.word"]
        assert "host.removed_unproven" in play.told()
        assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h2", "h9"}
    assert play.vm_record("v1").given_back is None, "it was about another copy"


def test_a_proof_of_another_host_is_not_the_end_of_its_source():
    """h1 died with it before the backup; since then it was recovered on h3, which moves it."""
    play = by_hand(named(playing(5)))
    for host in play.hosts.values():
        host.start_result = None
    source_dies(play)
    restored(play)
    starts = len(play.sent(StartCommand))
    awaits(play, "h2", 4, source=copy_on(play, "h3", 3))
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: (HostId("h3"), MigrationWord.CANCEL) in words(play))
    play.advance(60_000)
    assert (HostId("h2"), MigrationWord.RUN) not in words(play)
    assert len(play.sent(StartCommand)) == starts


def test_a_source_in_another_boot_than_the_order_named_is_over():
    """h1 came up anew between backup and order: the restored records never heard of the boot that moved it (P4)."""
    play = by_hand(playing())
    moved = copy_on(play, "h1", 1)
    play.hosts["h1"].boot_again()
    restored(play)
    awaits(play, "h2", source=msgspec.structs.replace(moved, boot=BootId("between")))
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play))
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h2"}


def test_beside_two_others_that_may_hold_it_somebody_is_told():
    play = by_hand(playing(5))
    awaits(play, "h2", 4)
    seen(play, "h3", "v1", incarnation=3)
    play.hosts["h3"].running.clear()
    play.advance(60_000)
    assert words(play) == [] and play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["migration.blocked.copies"]
    assert play.engine.explain_vm(VmId("v1"))[0].fields["hosts"] == "h3"
    assert play.told().count("vm.migration_unsettled") == 1
    released(play, "h3", "v1", 3)
    play.until(lambda: (HostId("h2"), MigrationWord.CANCEL) in words(play), within_ms=10_000)


def test_a_half_beside_a_migration_on_record_is_asked_when_that_one_is_over():
    """The backup is of the middle of one move; the next was ordered since, and forgotten."""
    play = by_hand(playing(5))
    play.inbox.append(MoveAsked(vm_id=VmId("v1"), target=HostId("h3"), by="admin"))
    play.on_command = lambda command: isinstance(command, SettleMigration | MigrateCommand)
    play.until(lambda: play.sent(MigrateCommand) != [])
    (first,) = play.sent(MigrateCommand)
    restored(play)
    play.hosts["h1"].running.clear()
    seen(play, "h3", "v1", incarnation=2)
    awaits(play, "h4", 3, source=copy_on(play, "h3", 2))
    play.tick()
    play.advance(90_000)
    assert {word for _, word in words(play)} == {MigrationWord.TELL}
    assert play.why_vm("v1") == ["migration.blocked.copies"]
    released(play, "h1", "v1", 1)
    play.until(lambda: (HostId("h4"), MigrationWord.CANCEL) in words(play), within_ms=10_000)
    migration = play.vm_record("v1").migration
    assert migration is not None and migration.order_id == LOST_ORDER != first.order_id
    assert (migration.source, migration.target) == ("h3", "h4")
    says(play, "h4", Result.FAILED)
    says(play, "h3", Result.FAILED)
    play.until(lambda: play.vm_record("v1").stage is VmStage.SETTLED, within_ms=10_000)
    assert [copy.host_id for copy in play.vm_record("v1").copies] == ["h3"]


def test_a_half_beside_a_migration_on_record_is_asked_also_when_both_its_sides_are_over():
    play = by_hand(playing(5))
    play.inbox.append(MoveAsked(vm_id=VmId("v1"), target=HostId("h3"), by="admin"))
    play.on_command = lambda command: isinstance(command, SettleMigration | MigrateCommand)
    play.until(lambda: play.sent(MigrateCommand) != [])
    restored(play)
    play.hosts["h1"].running.clear()
    awaits(play, "h4", 3, source=copy_on(play, "h3", 2))
    play.tick()
    released(play, "h1", "v1", 1)
    gives_back(play, "v1", ReleaseCause.MOVED, host="h3", incarnation=2)
    play.until(lambda: (HostId("h3"), MigrationWord.CANCEL) in words(play))
    gives_back(play, "v1", ReleaseCause.MOVED, host="h3", incarnation=2)
    play.until(lambda: (HostId("h4"), MigrationWord.RUN) in words(play))


# A source that stands still


def test_a_source_that_stands_runs_on_when_its_target_says_that_it_never_ran():
    play = by_hand(playing())
    stands(play, copy_on(play, "h2", 2))
    play.tick()
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h1", "h2"}
    assert play.told().count("vm.migration_source_found") == 1
    play.until(lambda: (HostId("h2"), MigrationWord.CANCEL) in words(play), within_ms=10_000)
    play.advance(60_000)
    assert (HostId("h1"), MigrationWord.RUN) not in words(play)
    says(play, "h2", Result.FAILED)
    play.until(lambda: (HostId("h1"), MigrationWord.RUN) in words(play), within_ms=10_000)
    seen(play, "h1", "v1", incarnation=1)
    says(play, "h1", Result.FAILED)
    play.tick()
    assert play.vm_record("v1").stage is VmStage.SETTLED


def test_a_source_that_stands_is_ended_when_its_target_runs():
    play = by_hand(playing())
    stands(play, copy_on(play, "h2", 2))
    seen(play, "h2", "v1", incarnation=2)
    play.until(lambda: (HostId("h2"), MigrationWord.CANCEL) in words(play), within_ms=10_000)
    says(play, "h2", Result.OK)
    play.until(lambda: (HostId("h1"), MigrationWord.END) in words(play), within_ms=10_000)
    released(play, "h1", "v1", 1)
    play.tick()
    assert [copy.host_id for copy in play.vm_record("v1").copies] == ["h2"]
    assert (HostId("h1"), MigrationWord.RUN) not in words(play)


def test_what_a_host_said_of_a_migration_that_is_long_over_leaves_no_holder():
    """Facts that the backup has not seen come again, each side's in its own order."""
    play = by_hand(named(playing(5)))
    restored(play)
    stands(play, copy_on(play, "h3", 2))
    play.tick()
    gives_back(play, "v1", ReleaseCause.MOVED)
    awaits(play, "h2", 3, source=copy_on(play, "h3", 2))
    play.tick()
    seen(play, "h2", "v1", incarnation=3)
    play.advance(90_000)
    assert [copy.host_id for copy in play.vm_record("v1").copies] == ["h2"]
    assert words(play) == [] and play.vm_record("v1").stage is VmStage.SETTLED
    assert play.why_vm("v1") == [] and "vm.migration_unsettled" not in play.told()


@pytest.mark.parametrize("known", [True, False])
def test_a_source_that_stands_is_ended_when_its_target_has_another_boot(known: bool):
    """It may have run there in the boot that the order named; what the next one says is worth nothing (G6)."""
    play = by_hand(playing())
    target = copy_on(play, "h2", 2)
    play.hosts["h2"].boot_again()
    play.tick()
    play._greet(play.hosts["h2"])
    play.tick()
    stands(play, target if known else msgspec.structs.replace(target, boot=BootId("between")))
    play.until(lambda: (HostId("h1"), MigrationWord.END) in words(play), within_ms=10_000)
    assert (HostId("h1"), MigrationWord.RUN) not in words(play)
    released(play, "h1", "v1", 1)
    play.until(lambda: play.where("v1") != [])
    assert play.sent(StartCommand)[-1].incarnation == 3


def test_a_target_that_gave_it_back_before_all_had_told_is_asked_once_more():
    """Only its word that the copy never ran lets the source go on; a release does not say it."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].bmc_dead = True
    play.hosts["h5"].hang()
    restored(play)
    stands(play, copy_on(play, "h2", 2))
    play.tick()
    gives_back(play, "v1", ReleaseCause.NEVER_RAN, host="h2", incarnation=2)
    play.advance(10_000)
    assert words(play) == []
    play.hosts["h5"].boot_again()
    play._greet(play.hosts["h5"])
    play.until(lambda: (HostId("h2"), MigrationWord.CANCEL) in words(play))
    says(play, "h2", Result.FAILED)
    play.until(lambda: (HostId("h1"), MigrationWord.RUN) in words(play), within_ms=10_000)


def test_a_source_that_stands_waits_for_a_target_that_the_records_don_t_name():
    play = by_hand(playing())
    stands(play, copy_on(play, "h9", 2))
    play.advance(120_000)
    assert MigrationWord.RUN not in {word for _, word in words(play)}
    assert MigrationWord.END not in {word for _, word in words(play)}
    assert "host.removed_unproven" in play.told() and play.why_vm("v1") != []


def test_of_a_migration_on_record_its_source_is_nothing_new():
    play = by_hand(playing())
    awaits(play, "h2")
    play.tick()
    play.tick()
    stands(play, copy_on(play, "h2", 2))
    play.advance(10_000)
    assert "vm.migration_source_found" not in play.told()


@pytest.mark.parametrize("cause", [ReleaseCause.MOVED, ReleaseCause.INTENDED])
def test_its_source_says_that_its_copy_is_over(cause: ReleaseCause):
    """Moved: what has become of it only the target knows. Stopped on purpose: it stays down."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].bmc_dead = True
    play.hosts["h5"].hang()
    restored(play)
    awaits(play, "h2")
    play.tick()
    gives_back(play, "v1", cause)
    play.tick()
    play.hosts["h5"].boot_again()
    play._greet(play.hosts["h5"])
    play.until(lambda: (HostId("h1"), MigrationWord.CANCEL) in words(play))
    gives_back(play, "v1", cause)  # asked, it says so again
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play))
    released(play, "h2", "v1", 2)
    play.advance(60_000)
    assert (play.where("v1") == []) == (cause is ReleaseCause.INTENDED)


def test_of_two_living_sides_both_are_asked_to_end_it():
    play = by_hand(playing())
    awaits(play, "h2")
    play.tick()
    play.tick()
    assert set(words(play)) == {
        (HostId("h1"), MigrationWord.CANCEL),
        (HostId("h2"), MigrationWord.CANCEL),
    }
    released(play, "h2", "v1", 2)
    play.inbox.append(
        MigrationEnded(
            order_id=LOST_ORDER, host_id=HostId("h1"), vm_id=VmId("v1"), result=Result.FAILED
        )
    )
    play.tick()
    record = play.vm_record("v1")
    assert record.stage is VmStage.SETTLED and record.incarnation == 2
    assert [copy.host_id for copy in record.copies] == ["h1"]


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED])
def test_a_half_that_has_run_is_none_any_more(state: VmState):
    """Paused: it may have left by another forgotten migration since, and its memory be older than its disks."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].bmc_dead = True
    play.hosts["h5"].hang()
    restored(play)
    awaits(play, "h2")
    play.tick()
    seen(play, "h2", "v1", incarnation=2)
    play.tick()
    seen(play, "h2", "v1", state, incarnation=2)
    del play.hosts["h1"].running[VmId("v1")]
    released(play, "h1", "v1", 1)
    play.hosts["h5"].boot_again()
    play._greet(play.hosts["h5"])
    play.advance(120_000)
    assert words(play) == [] and play.vm_record("v1").stage is VmStage.SETTLED
    assert play.sent(StartCommand) == []


def test_it_outlives_a_change_of_leader():
    """The next one is told again, and knows the holder from the records."""
    play = by_hand(named(playing(5)))
    play.hosts["h5"].bmc_dead = True
    play.hosts["h5"].hang()
    restored(play)
    awaits(play, "h2")
    source_dies(play)
    play.new_leader()
    assert "h2" in {copy.host_id for copy in play.vm_record("v1").copies}
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    awaits(play, "h2")
    play.hosts["h5"].boot_again()
    play._greet(play.hosts["h5"])
    play.until(lambda: (HostId("h2"), MigrationWord.RUN) in words(play))
