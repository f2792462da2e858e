"""Planned moves: a host is emptied, a VM goes home; whoever dies in the middle, it never runs twice and never stays
down without a reason. Rules G1, G2, G4, G5, G6 of safety.md. ``PlayedMoves`` fails a test at once for a second writer."""

from itertools import pairwise

import pytest
from engine_driver import GIB, Play, vm
from played_moves import Phase

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.events import (
    BrakeLifted,
    EngineHost,
    HoldChanged,
    HostConfigured,
    MaintenanceChanged,
    MigrateCommand,
    MigrationEnded,
    MigrationWord,
    SettleMigration,
    StartCommand,
    VmSeen,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import Drain, MoveStep, VmStage
from virtha.model.evidence import IdentityMatch
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.policy import Failback, MaintenancePolicy, PermissionGrade, Policy, RecoveryPolicy
from virtha.model.vm import VmState


def playing(
    hosts: int = 4, *, on_h1: int = 1, policy: Policy | None = None, **settings: object
) -> Play:
    """v1 … run on h1; everybody is well."""
    vms = settings.pop("vms", None) or [vm(f"v{number}") for number in range(1, on_h1 + 1)]
    play = Play(hosts, vms=vms, policy=policy, **settings)
    for one in vms:
        play.run(one.vm_id, "h1")
    assert play.verdict("h1") is Verdict.ALIVE
    return play


def maintain(play: Play, host: str = "h1", *, on: bool = True, drain: bool = True) -> None:
    play.inbox.append(MaintenanceChanged(host_id=HostId(host), on=on, by="admin", drain=drain))
    play.tick()


def moved(play: Play, vm_id: str = "v1") -> bool:
    return play.vm_record(vm_id).stage is VmStage.SETTLED and play.where(vm_id) not in ([], ["h1"])


def settled_once(play: Play, vm_id: str = "v1") -> bool:
    """Runs somewhere, and that is all that anybody may hold."""
    record = play.vm_record(vm_id)
    holders = [copy.host_id for copy in record.copies]
    return record.stage is VmStage.SETTLED and holders == play.where(vm_id) != []


def told_why(play: Play, vm_id: str = "v1") -> bool:
    """It runs, or somebody can read why not, or nobody can know yet: its only host died within its suspicion time."""
    if play.where(vm_id) or play.why_vm(vm_id):
        return True
    holders = [copy.host_id for copy in play.vm_record(vm_id).copies]
    unjudged = (Verdict.ALIVE, Verdict.SUSPECT)
    return (
        len(holders) == 1
        and play.verdict(holders[0]) in unjudged
        and (not play.hosts[holders[0]].alive)
    )


def words(play: Play) -> list[tuple[HostId, MigrationWord]]:
    return [(one.host_id, one.word) for one in play.sent(SettleMigration)]


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


def report(play: Play, state: VmState, **more: object) -> None:
    host = play.hosts["h1"]
    play.inbox.append(
        VmSeen(
            host_id=host.id,
            boot=host.boot,
            vm_id=VmId("v1"),
            incarnation=host.running[VmId("v1")],
            state=state,
            **more,
        )
    )
    play.tick()


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


# Both sides standing still (G6)


@pytest.mark.parametrize("end", ["source", "target", "both"])
def test_both_sides_left_paused_one_of_them_goes_on(end: str):
    """The connection broke when all was sent: nobody knows who runs it, and neither does by itself."""
    play = playing()
    play.moves.stops_at = Phase.SENT
    maintain(play)
    play.until(lambda: play.moves.standing(VmId("v1")) != [])
    assert play.where("v1") == []
    order = play.sent(MigrateCommand)[0]
    if end in ("source", "both"):
        say(play, order, order.source, Result.UNKNOWN)
    else:
        say(play, order, order.target, Result.FAILED)
        play.moves._settle_target(play.moves.moves[order.order_id], MigrationWord.CANCEL)
    play.until(lambda: settled_once(play))
    assert play.where("v1") == ["h1"], "nobody ran it since: what the source has is as good"
    assert play.sent(StartCommand) == []
    assert MigrationWord.RUN in {word for _, word in words(play)}


def say(play: Play, order: MigrateCommand, host: HostId, result: Result) -> None:
    play.inbox.append(
        MigrationEnded(order_id=order.order_id, host_id=host, vm_id=order.vm_id, result=result)
    )
    play.tick()


def test_nothing_is_let_run_on_hold():
    play = playing()
    play.moves.stops_at = Phase.SENT
    maintain(play)
    play.until(lambda: play.moves.standing(VmId("v1")) != [])
    play.inbox.append(HoldChanged(reason="rewiring"))
    order = play.sent(MigrateCommand)[0]
    say(play, order, order.source, Result.UNKNOWN)
    play.advance(30_000)
    assert play.where("v1") == [] and play.why_vm("v1") == ["recovery.blocked.hold"]
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: settled_once(play))


def test_both_say_that_it_runs_there_and_nothing_is_done_to_either():
    play = playing()
    play.moves.stops_at = Phase.SWITCHED
    maintain(play)
    play.moves.dumb = {"h1"}
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    order = play.sent(MigrateCommand)[0]
    play.tick()
    sent = len(words(play))
    say(play, order, order.source, Result.FAILED)  # a lie, or worse
    play.advance(2_000)
    assert play.told().count("vm.migration_contradicted") == 1
    assert play.why_vm("v1") == ["migration.blocked.contradicted"]
    assert {word for _, word in words(play)[sent:]} == {MigrationWord.TELL}
    assert play.vm_record("v1").migration.step is MoveStep.CONTRADICTED


def test_a_source_that_keeps_its_copy_is_asked_until_it_gives_it_back():
    play = playing()
    play.moves.stops_at = Phase.SWITCHED
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    play.moves.dumb = {"h1"}  # its agent hangs; the hypervisors went on
    play.advance(60_000)
    assert play.why_vm("v1") == ["migration.waiting.release"]
    assert {copy.host_id for copy in play.vm_record("v1").copies} > {"h1"}
    asked = words(play).count((HostId("h1"), MigrationWord.END))
    assert 10 <= asked <= 14, "every five seconds"
    play.moves.dumb = set()
    play.until(lambda: settled_once(play), within_ms=6_000)


# Whoever dies, at whatever phase


PHASES = [Phase.COPYING, Phase.SENT, Phase.SWITCHED]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("who", ["source", "target", "both", "leader", "source and leader"])
@pytest.mark.parametrize("how", ["cut", "hang"])
def test_whoever_dies_at_whatever_phase_it_runs_once_in_the_end(phase: Phase, who: str, how: str):
    play = playing(5)
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH  # two that die at once are not taken for swapped
        play.test_power(host)
    play.moves.stops_at = phase
    maintain(play)
    play.until(lambda: any(one.phase is phase for one in play.moves.moves.values()))
    order = play.sent(MigrateCommand)[0]
    for name in ("source", "target"):
        if name in who or who == "both":
            host = play.hosts[getattr(order, name)]
            host.cut() if how == "cut" else host.hang()
    if "leader" in who:
        play.new_leader(away_ms=3_000)
    if who == "leader":
        play.moves.stops_at = None
    until_up(play)
    assert play.sent(MigrateCommand).count(order) == 1


def until_up(play: Play) -> None:
    """At each moment it runs, or somebody can read why not; in the end it runs and nobody else may hold it."""

    def up() -> bool:
        assert told_why(play), "down without a reason"
        if play.vm_record("v1").stage is VmStage.QUARANTINED:
            return True  # two hosts died with it (M5): an operator frees it
        return settled_once(play)

    play.until(up, within_ms=1_200_000)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("host", ["source", "target"])
def test_a_side_whose_agent_is_down_is_asked_when_it_is_back(phase: Phase, host: str):
    """A migration that commits with one side's agent down: the hypervisors go on, nobody hears of it."""
    policy = Policy(maintenance=MaintenancePolicy(migration_deadline_ms=30_000))
    play = playing(policy=policy)
    play.moves.stops_at = phase
    maintain(play)
    play.until(lambda: any(one.phase is phase for one in play.moves.moves.values()))
    order = play.sent(MigrateCommand)[0]
    name = getattr(order, host)
    play.moves.dumb = {name}
    play.hosts[name].agent_alive = False
    play.moves.stops_at = None
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    play.new_leader(away_ms=1_000)
    play.advance(20_000)
    assert told_why(play)
    play.moves.dumb = set()
    play.hosts[name].agent_alive = True
    until_up(play)
    assert play.offs() == [], "a dead agent is no dead host"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("host", ["source", "target"])
def test_a_side_that_reboots_faster_than_any_suspicion(phase: Phase, host: str):
    play = playing()
    play.moves.stops_at = phase
    maintain(play)
    play.until(lambda: any(one.phase is phase for one in play.moves.moves.values()))
    side = play.hosts[getattr(play.sent(MigrateCommand)[0], host)]
    side.boot_again()
    play._greet(side)
    play.moves.stops_at = None
    until_up(play)


@pytest.mark.parametrize("phase", PHASES)
def test_a_source_that_nobody_can_prove_dead_keeps_it_from_being_started(phase: Phase):
    play = playing()
    play.moves.stops_at = phase
    maintain(play)
    play.until(lambda: any(one.phase is phase for one in play.moves.moves.values()))
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.advance(300_000)
    assert play.sent(StartCommand) == [] and told_why(play)
    if phase is not Phase.SWITCHED:
        assert play.where("v1") in ([], ["h1"])
        assert play.why_vm("v1") != []
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: settled_once(play), within_ms=1_200_000)


def test_a_source_that_turns_out_to_live_goes_on():
    play = playing()
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    order = play.sent(MigrateCommand)[0]
    play.moves.dumb = {"h1"}
    play.hosts[order.target].cut()
    play.until(lambda: play.verdict(order.target) is Verdict.DEAD_PROVEN)
    assert play.why_vm("v1") == ["migration.waiting.last_side"]
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.vm_record("v1").stage is VmStage.LOST, within_ms=600_000)
    play.hosts["h1"].beating = play.hosts["h1"].answers_neighbours = True
    play.moves.dumb = set()
    play.until(lambda: settled_once(play))
    assert play.where("v1") == ["h1"] and play.sent(StartCommand) == []


@pytest.mark.parametrize("step", range(12))
def test_a_leader_that_dies_at_any_step_of_a_move_is_followed_by_one_that_ends_it(step: int):
    play = playing(on_h1=3)
    maintain(play)
    for _ in range(step):
        play.tick()
    play.new_leader(away_ms=2_000)
    play.until(lambda: "host.drained" in play.told(), within_ms=900_000)
    assert all(settled_once(play, f"v{number}") for number in (1, 2, 3))
    orders = play.sent(MigrateCommand)
    assert len({one.order_id for one in orders}) == len(orders), "an order sent twice"


def test_a_new_leader_asks_and_lets_what_is_under_way_go_on():
    play = playing()
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    play.new_leader()
    play.advance(20_000)
    assert {word for _, word in words(play)} == {MigrationWord.TELL}
    assert play.why_vm("v1") == ["migration.under_way"]
    play.moves.stops_at = None
    play.until(lambda: moved(play))
    assert len(play.sent(MigrateCommand)) == 1


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


# Failback

STABLE_MS = 60_000


def homesick(
    hosts: int = 3, *, failback: Failback = Failback.AUTOMATIC, **settings: object
) -> Play:
    """v1 ran on h1, which died; it was started elsewhere, and h1 is back."""
    recovery = RecoveryPolicy(
        failback=failback, failback_stable_ms=STABLE_MS, **settings.pop("recovery", {})
    )
    play = playing(hosts, policy=Policy(recovery=recovery), **settings)
    play.hosts["h1"].cut()
    play.until(lambda: all(settled_once(play, one.vm_id) for one in play.vms if one.ha))
    assert play.vm_record("v1").home == "h1"
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: play.verdict("h1") is Verdict.ALIVE)
    return play


def test_a_vm_goes_home_when_its_host_has_been_well_for_long_enough():
    play = homesick()
    play.tick()
    assert play.why_vm("v1") == ["failback.waiting.stable"]
    took_ms = play.until(lambda: play.where("v1") == ["h1"])
    assert took_ms >= STABLE_MS - 1_000
    play.until(lambda: settled_once(play))
    assert play.vm_record("v1").home is None and play.why_vm("v1") == []
    play.advance(120_000)
    assert len(play.sent(MigrateCommand)) == 1


def test_by_default_nothing_that_runs_is_moved():
    play = homesick(failback=Failback.NEVER)
    play.advance(3 * STABLE_MS)
    assert play.sent(MigrateCommand) == [] and play.why_vm("v1") == []


def test_one_vm_goes_home_at_a_time():
    play = homesick(on_h1=3)
    play.moves.stops_at = Phase.COPYING
    play.advance(2 * STABLE_MS)
    assert len(play.sent(MigrateCommand)) == 1
    codes = sorted(play.why_vm(f"v{number}")[0] for number in (1, 2, 3))
    assert codes == ["failback.waiting.turn", "failback.waiting.turn", "migration.under_way"]
    play.moves.stops_at = None
    play.until(lambda: all(play.where(f"v{number}") == ["h1"] for number in (1, 2, 3)))


def test_a_drained_host_gets_its_vms_back_when_it_is_in_service_again():
    recovery = RecoveryPolicy(failback=Failback.AUTOMATIC, failback_stable_ms=STABLE_MS)
    play = playing(policy=Policy(recovery=recovery))
    maintain(play)
    play.until(lambda: "host.drained" in play.told())
    play.advance(2 * STABLE_MS)
    assert play.where("v1") != ["h1"] and play.why_vm("v1") == ["failback.blocked.unfit"]
    maintain(play, on=False)
    play.until(lambda: play.where("v1") == ["h1"])
    play.until(lambda: settled_once(play))
    assert play.vm_record("v1").home is None


def test_a_vm_that_somebody_moved_since_stays_where_it_was_put():
    play = homesick()
    was = play.where("v1")[0]
    other = next(name for name in ("h2", "h3") if name != was)
    record = play.vm_record("v1")
    # The operator's own move: the new host tells, the old one releases.
    played = play.hosts[other]
    del play.hosts[was].running[VmId("v1")]
    played.running[VmId("v1")] = Incarnation(record.incarnation + 1)
    play._say(played, VmId("v1"))
    play._release(play.hosts[was], VmId("v1"), record.incarnation)
    play.advance(3 * STABLE_MS)
    assert play.where("v1") == [other] and play.sent(MigrateCommand) == []
    assert play.vm_record("v1").home is None


def test_nobody_goes_home_while_a_failure_is_dealt_with():
    play = homesick(5)
    suspect = next(name for name in ("h4", "h5") if play.where("v1") != [name])
    play.hosts[suspect].hang()
    play.hosts[suspect].bmc_dead = True
    play.until(lambda: play.verdict(suspect) is Verdict.DEAD_UNPROVEN)
    play.advance(2 * STABLE_MS)
    assert play.sent(MigrateCommand) == [] and play.why_vm("v1") == ["failback.waiting.calm"]


def test_nobody_goes_home_into_overcommit_or_against_a_soft_rule():
    group = AffinityGroup(id=AffinityGroupId("g"), name="g", kind=AffinityKind.APART, hard=False)
    play = homesick(vms=[vm("v1", groups=(group,)), vm("x", groups=(group,), ha=False)])
    played = play.hosts["h1"]
    played.running[VmId("x")] = Incarnation(9)
    play._say(played, VmId("x"))
    play.advance(3 * STABLE_MS)
    assert play.sent(MigrateCommand) == [] and play.why_vm("v1") == ["failback.blocked.room"]


def test_nobody_goes_home_into_memory_that_is_promised_twice():
    vms = [vm("v1", memory_bytes=6 * GIB), vm("x", memory_bytes=4 * GIB, ha=False)]
    play = homesick(vms=vms, recovery={"memory_overcommit_percent": 200})
    played = play.hosts["h1"]
    played.running[VmId("x")] = Incarnation(9)
    play._say(played, VmId("x"))
    play.advance(3 * STABLE_MS)
    assert play.sent(MigrateCommand) == [] and play.why_vm("v1") == ["failback.blocked.room"]


def test_a_failback_that_fails_is_tried_again_later():
    play = homesick()
    play.moves.fails_to = {"h1"}
    play.until(lambda: "vm.migration_failed" in play.told())
    assert settled_once(play) and play.where("v1") != ["h1"]
    play.moves.fails_to = set()
    play.until(lambda: play.where("v1") == ["h1"])
