"""Halves of migrations that a restored database knows nothing of (M2, G1, G4, G6)."""

import msgspec
import pytest
from engine_driver import Play
from engine_review_driver import named, playing, released, seen
from test_given_back import gives_back

from virtha.engine.events import (
    CancelStart,
    MigrationEnded,
    MigrationWord,
    SettleMigration,
    StartCommand,
    StartEnded,
    VmSeen,
)
from virtha.engine.records import OrderId, VmStage
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import HostId, Incarnation, VmId
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("F4", "F9")

LOST_ORDER = OrderId("0.7")
"""In no records any more."""


def awaits(play: Play, host: str, incarnation: int = 2, vm_id: str = "v1") -> None:
    played = play.hosts[host]
    play.inbox.append(
        VmSeen(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId(vm_id),
            incarnation=Incarnation(incarnation),
            state=VmState.STARTING,
            awaited_by=LOST_ORDER,
        )
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
    awaits(play, "h2")
    play.advance(120_000)
    assert words(play) == [] and play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["migration.blocked.source_unknown"]


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
