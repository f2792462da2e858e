"""An operator moves a running VM, or calls a move off; and what a VM that is stopped in its move comes to.
Rules G1, G4, G6 of safety.md. ``PlayedMoves`` fails a test at once for a second writer."""

import pytest
from drain_driver import maintain, playing, settled_once, words
from engine_driver import Play, vm
from played_moves import Phase

from virtha.engine.events import (
    CopyReleased,
    HoldChanged,
    MigrateCommand,
    MigrationEnded,
    MigrationWord,
    MoveAsked,
    MoveCancelled,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import MovePurpose, MoveStep, VmStage
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import HostId, VmId
from virtha.model.policy import MaintenancePolicy, PermissionGrade, Policy, RecoveryPolicy

V1 = VmId("v1")


def ask(play: Play, target: str | None = "h3", vm_id: str = "v1") -> None:
    host_id = None if target is None else HostId(target)
    play.inbox.append(MoveAsked(vm_id=VmId(vm_id), target=host_id, by="admin"))
    play.tick()


def call_off(play: Play) -> None:
    play.inbox.append(MoveCancelled(vm_id=V1, by="admin"))
    play.tick()


def refusals(play: Play) -> list[object]:
    return [one.fields["why"] for one in play.notices if one.code == "vm.move_refused"]


def test_it_goes_where_it_was_sent_and_is_at_home_there():
    play = playing()
    ask(play, "h3")
    (order,) = play.sent(MigrateCommand)
    assert (order.source, order.target) == ("h1", "h3")
    play.until(lambda: settled_once(play))
    assert play.where("v1") == ["h3"]
    assert play.vm_record("v1").home is None, "nobody takes it away from there by itself"


def test_without_a_target_it_goes_where_it_is_placed_best():
    play = playing()
    ask(play, None)
    play.until(lambda: settled_once(play))
    assert play.where("v1") not in ([], ["h1"])


@pytest.mark.bad_input("host that can't take a move")
@pytest.mark.parametrize(
    ("target", "why"),
    [("h1", "migration.blocked.no_target"), ("h9", "migration.blocked.no_target")],
)
def test_it_is_refused_at_once_and_told(target: str, why: str):
    play = playing()
    ask(play, target)
    assert refusals(play) == [why]
    play.advance(60_000)
    assert play.sent(MigrateCommand) == []


def test_on_hold_it_is_refused():
    play = playing()
    play.inbox.append(HoldChanged(reason="rewiring"))
    ask(play)
    assert refusals(play) == ["recovery.blocked.hold"]


def test_a_grade_for_automatic_action_does_not_bind_the_operator():
    policy = Policy(recovery=RecoveryPolicy(grade=PermissionGrade.OBSERVE))
    play = playing(policy=policy)
    ask(play)
    assert len(play.sent(MigrateCommand)) == 1


def test_a_vm_out_of_automatic_action_is_moved_by_its_operator_only():
    play = playing(vms=[vm("v1", ignore=True)])
    maintain(play)
    play.advance(5_000)
    assert play.sent(MigrateCommand) == []
    ask(play)
    assert [one.target for one in play.sent(MigrateCommand)] == ["h3"]


def test_no_more_at_once_than_a_host_may_take_part_in():
    play = playing(on_h1=2, policy=Policy(maintenance=MaintenancePolicy(migrations_per_host=1)))
    play.moves.stops_at = Phase.COPYING
    ask(play, "h3", "v1")
    ask(play, "h4", "v2")
    assert refusals(play) == ["migration.waiting.limit"]


def test_asked_twice_it_moves_once():
    play = playing()
    play.moves.stops_at = Phase.COPYING
    ask(play, "h3")
    ask(play, "h4")
    assert len(play.sent(MigrateCommand)) == 1
    assert refusals(play) == ["migration.under_way"]


def test_it_is_not_sent_to_a_host_that_is_judged_in_the_same_step():
    """What was asked while the leader slept is answered by what it sees when it wakes."""
    play = playing()
    play.hosts["h3"].cut()
    play.until(lambda: play.verdict("h3") is not Verdict.ALIVE)
    ask(play, "h3")
    assert refusals(play) == ["migration.blocked.no_target"]


def test_called_off_while_memory_flows_it_stays():
    play = playing()
    play.moves.stops_at = Phase.COPYING
    ask(play)
    call_off(play)
    assert play.told().count("vm.migration_cancelled") == 1
    assert {word for _, word in words(play)} == {MigrationWord.CANCEL}
    play.until(lambda: settled_once(play))
    assert play.where("v1") == ["h1"]


def test_called_off_too_late_it_arrives():
    play = playing()
    play.moves.stops_at = Phase.SWITCHED
    ask(play)
    play.until(lambda: play.where("v1") == ["h3"])
    play.inbox.append(MoveCancelled(vm_id=V1, by="admin"))
    play.moves.stops_at = None
    play.until(lambda: settled_once(play))
    assert play.where("v1") == ["h3"]


def test_calling_off_what_does_not_move_does_nothing():
    play = playing()
    call_off(play)
    assert "vm.migration_cancelled" not in play.told()
    assert play.vm_record("v1").stage is VmStage.SETTLED


# Stopped in mid-move


def over_at_both(play: Play, cause: ReleaseCause) -> None:
    """The source's copy ended for ``cause`` while memory flowed; the target ends its part."""
    play.moves.stops_at = Phase.COPYING
    ask(play)
    (order,) = play.sent(MigrateCommand)
    play.moves.moves.clear()
    play.hosts["h1"].running.pop(V1)
    source = CopyReleased(
        host_id=order.source,
        boot=order.source_boot,
        vm_id=V1,
        incarnation=order.source_incarnation,
        cause=cause,
    )
    target = CopyReleased(
        host_id=order.target,
        boot=order.target_boot,
        vm_id=V1,
        incarnation=order.incarnation,
        cause=ReleaseCause.NEVER_RAN,
    )
    failed = MigrationEnded(
        order_id=order.order_id, host_id=order.target, vm_id=V1, result=Result.FAILED
    )
    play.inbox += [source, failed, target]
    play.tick()


def test_a_guest_that_shuts_down_in_its_move_stays_down():
    play = playing()
    over_at_both(play, ReleaseCause.INTENDED)
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]
    assert "vm.migration_lost" not in play.told(), "nothing is lost"


@pytest.mark.parametrize("cause", [ReleaseCause.ENDED, ReleaseCause.MOVED, ReleaseCause.NEVER_RAN])
def test_one_that_is_lost_in_its_move_starts_afresh(cause: ReleaseCause):
    play = playing()
    over_at_both(play, cause)
    play.until(lambda: play.where("v1") != [])
    assert len(play.sent(StartCommand)) == 1


def test_purposes_are_recorded():
    play = playing()
    play.moves.stops_at = Phase.COPYING
    ask(play)
    migration = play.vm_record("v1").migration
    assert migration is not None
    assert (migration.purpose, migration.step) == (MovePurpose.OPERATOR, MoveStep.ORDERED)
