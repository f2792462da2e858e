"""Planned moves: a host is emptied, a VM goes home; whoever dies in the middle, it never runs twice and never stays
down without a reason. Rules G1, G2, G4, G5, G6 of safety.md. ``PlayedMoves`` fails a test at once for a second writer."""

from itertools import pairwise

import pytest
from drain_driver import maintain, moved, playing, report, settled_once, words
from engine_driver import GIB, Play, vm
from played_moves import Phase

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.configured import EngineHost
from virtha.engine.events import (
    BrakeLifted,
    HoldChanged,
    HostConfigured,
    MigrateCommand,
    MigrationWord,
    StartCommand,
    VmSeen,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import Drain
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.policy import MaintenancePolicy, PermissionGrade, Policy
from virtha.model.vm import VmState

# Emptying a host


def test_a_host_in_maintenance_is_emptied_a_few_at_a_time():
    play = playing(on_h1=5)
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.tick()
    assert len(play.sent(MigrateCommand)) == play.policy.maintenance.migrations_per_host == 2
    assert play.why("h1") == ["host.maintenance", "host.draining"]
    waiting = [f"v{number}" for number in range(1, 6) if not play.why_vm(f"v{number}")]
    assert waiting == [], "a VM without a reason"
    codes = sorted(play.why_vm(f"v{number}")[0] for number in range(1, 6))
    assert codes == ["migration.under_way"] * 2 + ["migration.waiting.limit"] * 3
    play.moves.stops_at = None
    play.until(lambda: "host.drained" in play.told())
    assert all(settled_once(play, f"v{number}") for number in range(1, 6))
    assert play.why("h1") == ["host.maintenance", "host.empty"]
    assert play.told().count("vm.migrated") == 5
    assert play.host_record("h1").drain is Drain.DRAINED
    assert play.sent(StartCommand) == []


def test_the_targets_copy_is_a_holder_with_an_incarnation_of_its_own_before_the_order():
    play = playing()
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    order = play.sent(MigrateCommand)[0]
    saved = play.saved["vm v1"].record
    assert {copy.host_id: copy.incarnation for copy in saved.copies} == {
        order.source: order.source_incarnation,
        order.target: order.incarnation,
    }
    assert order.incarnation > order.source_incarnation
    assert (order.source_boot, order.target_boot) == ("h1b1", f"{order.target}b1")


def test_maintenance_without_emptying_leaves_the_vms_where_they_are():
    play = playing()
    maintain(play, drain=False)
    play.advance(30_000)
    assert play.sent(MigrateCommand) == [] and play.where("v1") == ["h1"]
    assert play.why("h1") == ["host.maintenance"] and play.why_vm("v1") == []
    maintain(play)
    play.until(lambda: moved(play))


def test_nothing_starts_or_goes_to_a_host_that_is_being_emptied():
    play = playing(3, on_h1=4)
    maintain(play, "h2")
    maintain(play)
    play.until(lambda: "host.drained" in [one.code for one in play.notices if one.host_id == "h1"])
    assert {order.target for order in play.sent(MigrateCommand)} == {"h3"}


def test_cancelled_the_moves_under_way_end_and_no_other_begins():
    play = playing(on_h1=5)
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.tick()
    maintain(play, on=False)
    play.moves.stops_at = None
    play.until(lambda: play.told().count("vm.migrated") == 2)
    play.advance(30_000)
    assert len(play.sent(MigrateCommand)) == 2
    assert "host.drain_stopped" in play.told() and "host.drained" not in play.told()
    assert [play.why_vm(f"v{number}") for number in range(1, 6)] == [[]] * 5
    assert play.why("h1") == []


def test_vms_without_ha_leave_as_well():
    play = playing(vms=[vm("v1", ha=False)])
    maintain(play)
    play.until(lambda: moved(play))


def test_a_vm_that_comes_to_an_empty_host_is_sent_away_again():
    play = playing(on_h1=0, vms=[vm("v1")], hosts=3)
    maintain(play, "h2")
    play.until(lambda: "host.drained" in play.told())
    play.inbox.append(
        VmSeen(
            host_id=HostId("h2"),
            boot=BootId("h2b1"),
            vm_id=VmId("v1"),
            incarnation=Incarnation(5),
            state=VmState.PAUSED,
        )
    )
    play.advance(1_000)
    assert play.host_record("h2").drain is Drain.DRAINING
    assert play.why("h2")[-1] == "host.draining"


# Who can't leave says why


def io_error(play: Play) -> None:
    report(play, VmState.PAUSED, io_error=True)


@pytest.mark.req("S6")
def test_a_vm_paused_on_an_io_error_is_never_moved():
    play = playing()
    io_error(play)
    maintain(play)
    play.advance(30_000)
    assert play.sent(MigrateCommand) == []
    assert play.why_vm("v1") == ["migration.blocked.io_error"]
    blocked = play.engine.explain_host(HostId("h1"))[-1].fields
    assert blocked == {"left": 1, "moving": 0, "blocked": 1}
    report(play, VmState.RUNNING)
    play.until(lambda: moved(play))


BLOCKED = {
    "ignored": ("migration.blocked.ignored", {"ignore": True}),
    "grade": ("migration.blocked.grade", {"grade": PermissionGrade.RESTART}),
    "too large": ("migration.blocked.no_target", {"memory_bytes": 9 * GIB}),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_a_vm_that_may_not_or_cannot_leave_says_why(case: str):
    code, changes = BLOCKED[case]
    play = playing(vms=[vm("v1", **changes)])
    maintain(play)
    play.advance(30_000)
    assert play.sent(MigrateCommand) == []
    assert play.why_vm("v1")[0] == code
    assert play.why("h1")[-1] == "host.draining"


@pytest.mark.bad_input("host that can't take a move")
def test_no_target_names_what_is_missing_and_goes_on_when_there_is_room():
    play = playing(2, on_h1=3, vms=[vm("v1", memory_bytes=3 * GIB), vm("v2", memory_bytes=3 * GIB)])
    small = EngineHost(host_id=HostId("h2"), name="h2", number=2, memory_bytes=4 * GIB, cpus=8)
    play.inbox.append(HostConfigured(host=small))
    maintain(play)
    play.until(lambda: play.told().count("vm.migrated") == 1)
    play.advance(5_000)
    left = next(one for one in ("v1", "v2") if play.where(one) == ["h1"])
    assert play.why_vm(left)[:2] == ["migration.blocked.no_target", "recovery.blocked.no_capacity"]
    play.inbox.append(HostConfigured(host=play.configs[1]))
    play.until(lambda: "host.drained" in play.told())


def test_hold_stops_new_moves():
    play = playing()
    play.inbox.append(HoldChanged(reason="rewiring"))
    maintain(play)
    play.advance(10_000)
    assert play.sent(MigrateCommand) == [] and play.why_vm("v1") == ["recovery.blocked.hold"]
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: moved(play))


def test_a_vm_whose_state_nobody_told_in_this_term_waits():
    play = playing()
    play.moves.dumb = {"h1"}

    def untold() -> None:
        play.inbox = [one for one in play.inbox if not isinstance(one, VmSeen)]

    play.before_first_step = untold
    play.new_leader()
    maintain(play)
    play.advance(5_000)
    assert play.why_vm("v1") == ["migration.waiting.state"]
    play.moves.dumb = set()
    report(play, VmState.RUNNING)
    play.until(lambda: moved(play))


def test_those_that_belong_together_follow_each_other_to_one_host():
    group = AffinityGroup(id=AffinityGroupId("g"), name="g", kind=AffinityKind.TOGETHER, hard=True)
    vms = [vm(f"v{number}", groups=(group,), memory_bytes=2 * GIB) for number in range(1, 4)]
    play = Play(4, vms=[*vms, vm("x1", memory_bytes=3 * GIB), vm("x2", memory_bytes=3 * GIB)])
    play.run("x1", "h2")
    play.run("x2", "h4")
    for one in vms:
        play.run(one.vm_id, "h1")
    maintain(play)
    play.until(lambda: "host.drained" in play.told())
    assert {play.where(one.vm_id)[0] for one in vms} == {"h3"}


def test_those_that_belong_apart_stay_apart():
    group = AffinityGroup(id=AffinityGroupId("g"), name="g", kind=AffinityKind.APART, hard=True)
    play = Play(3, vms=[vm("v1", groups=(group,)), vm("v2", groups=(group,))])
    play.run("v1", "h1")
    play.run("v2", "h2")
    maintain(play)
    play.until(lambda: moved(play))
    assert play.where("v1") == ["h3"]


# Moves that fail


def test_a_move_that_fails_leaves_the_vm_and_is_tried_to_others_ever_more_slowly():
    play = playing()
    play.moves.fails_to = {"h2", "h3", "h4"}
    maintain(play)
    play.advance(1_200_000)
    orders = [(at, one) for at, one in play.commands if isinstance(one, MigrateCommand)]
    assert {one.target for _, one in orders[:3]} == {"h2", "h3", "h4"}, "another host each time"
    pauses = [later[0] - at for (at, _), later in pairwise(orders)]
    assert pauses[0] >= play.policy.recovery.delay_ms and pauses == sorted(pauses)
    incarnations = [one.incarnation for _, one in orders]
    assert incarnations == sorted(set(incarnations)), "a number given twice"
    assert play.where("v1") == ["h1"] and play.why_vm("v1") == ["migration.waiting.retry"]
    told = play.told()
    assert told.count("vm.migration_failed") == play.policy.recovery.attempts_max
    assert told.count("vm.migration_keeps_failing") == 1
    play.moves.fails_to = set()
    play.until(lambda: moved(play), within_ms=600_000)
    assert play.vm_record("v1").retry is None


def test_after_a_failed_move_its_reports_and_its_recovery_count_as_before():
    play = playing()
    play.moves.fails_to = {"h2", "h3", "h4"}
    maintain(play)
    play.until(lambda: "vm.migration_failed" in play.told())
    maintain(play, on=False)
    report(play, VmState.RUNNING, guest_agent=True)
    assert play.vm_record("v1").copies[0].incarnation == 1
    play.hosts["h1"].cut()
    play.until(lambda: settled_once(play))
    start = play.sent(StartCommand)[0]
    assert start.incarnation > max(one.incarnation for one in play.sent(MigrateCommand))
    assert start.proofs


def test_a_move_that_never_ends_is_called_off_by_its_deadline():
    policy = Policy(maintenance=MaintenancePolicy(migration_deadline_ms=20_000))
    play = playing(policy=policy)
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.until(lambda: "vm.migration_doubtful" in play.told())
    play.until(lambda: "vm.migration_failed" in play.told(), within_ms=2_000)
    assert words(play)[0] == ("h1", MigrationWord.CANCEL)
    assert settled_once(play) and play.where("v1") == ["h1"]


def test_an_order_that_never_arrived_is_refused_from_then_on():
    play = playing()
    play.moves.lost_orders = True
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    play.new_leader(away_ms=3_000)
    play.until(lambda: "vm.migration_failed" in play.told())
    first = play.sent(MigrateCommand)[0]
    assert {word for _, word in words(play)} >= {MigrationWord.TELL}
    play.moves.lost_orders = False
    play.moves.begin(first)  # late, as it may be
    assert play.moves.moves == {}
    play.until(lambda: moved(play))


# Maintenance and fencing


def test_a_host_that_dies_while_it_is_emptied_is_fenced_for_the_vms_that_are_left():
    play = playing(on_h1=5)
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.tick()
    play.hosts["h1"].hang()
    play.until(lambda: all(settled_once(play, f"v{number}") for number in range(1, 6)))
    assert play.offs() == ["h1"]
    assert "host.drained" in play.told()


def test_an_empty_host_is_not_fenced():
    play = playing()
    maintain(play)
    play.until(lambda: "host.drained" in play.told())
    play.hosts["h1"].hang()
    play.advance(120_000)
    assert play.offs() == [] and "fence.blocked.maintenance" in play.why("h1")


def test_a_host_somebody_works_on_is_not_fenced_and_its_vms_say_why_they_wait():
    play = playing()
    maintain(play, drain=False)
    play.hosts["h1"].hang()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.advance(60_000)
    assert play.offs() == []
    assert play.why_vm("v1") == ["recovery.waiting.proof", "recovery.waiting.maintenance"]
    maintain(play, on=False)
    play.until(lambda: settled_once(play))


def test_the_brake_stops_moves_as_well():
    play = Play(12, vms=[vm(f"v{number}") for number in range(1, 6)])
    for number in range(1, 6):
        play.run(f"v{number}", f"h{number}")
    for host in play.hosts.values():
        host.storage = False
        play.survey(host)
    for number in range(1, 5):
        play.hosts[f"h{number}"].hang()
    play.until(lambda: "fence.brake.tripped" in play.told())
    maintain(play, "h5")
    play.advance(5_000)
    assert play.sent(MigrateCommand) == [] and play.why_vm("v5") == ["migration.waiting.brake"]
    play.inbox.append(BrakeLifted(by="admin"))
    play.until(lambda: play.where("v5") not in ([], ["h5"]))


def test_a_move_takes_no_room_that_a_recovery_needs():
    """One place is left: it is kept for the VM whose host nobody can prove dead yet."""
    vms = [vm("lost", memory_bytes=6 * GIB), vm("v1", memory_bytes=6 * GIB)]
    play = Play(3, vms=vms)
    play.run("lost", "h2")
    play.run("v1", "h1")
    play.hosts["h2"].hang()
    play.hosts["h2"].bmc_dead = True
    play.until(lambda: play.verdict("h2") is Verdict.DEAD_UNPROVEN)
    maintain(play)
    play.advance(30_000)
    assert play.sent(MigrateCommand) == []
    assert play.why_vm("v1")[:2] == ["migration.blocked.no_target", "recovery.blocked.no_capacity"]
    play.hosts["h2"].bmc_dead = False
    play.until(lambda: play.where("lost") == ["h3"], within_ms=1_200_000)
