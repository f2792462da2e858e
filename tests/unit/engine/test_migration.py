"""One live migration: whoever dies or falls dumb at whatever phase, it never runs twice and never stays down without a reason.
Rules G1, G2, G4, G6 of safety.md. ``PlayedMoves`` fails a test at once for a second writer."""

import pytest
from drain_driver import maintain, moved, playing, settled_once, told_why, words
from engine_driver import Play
from played_moves import Phase

from virtha.engine.events import (
    CopyReleased,
    HoldChanged,
    MigrateCommand,
    MigrationEnded,
    MigrationWord,
    SettleMigration,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import MoveStep, VmStage
from virtha.model.evidence import IdentityMatch
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, VmId
from virtha.model.policy import MaintenancePolicy, Policy

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


def failed_with_a_dumb_target(play: Play) -> MigrateCommand:
    """The source said that v1 goes on there; the target has not given its copy back."""
    play.moves.stops_at = Phase.COPYING
    maintain(play)
    play.until(lambda: play.sent(MigrateCommand) != [])
    order = play.sent(MigrateCommand)[0]
    play.moves.dumb = {order.target}
    play.moves.stops_at, play.moves.fails_to = None, {order.target}
    play.until(lambda: play.why_vm("v1") == ["migration.waiting.release"])
    return order


def test_a_target_that_keeps_its_copy_is_a_holder_until_it_gives_it_back():
    play = playing()
    order = failed_with_a_dumb_target(play)
    play.advance(30_000)
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h1", order.target}
    assert len(play.sent(MigrateCommand)) == 1 and "vm.migration_failed" not in play.told()
    play.hosts["h1"].cut()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_PROVEN)
    play.advance(60_000)
    assert play.sent(StartCommand) == [], "a start while the target may hold it"
    assert play.why_vm("v1") == ["migration.waiting.last_side"]
    play.moves.dumb = set()
    play.until(lambda: settled_once(play))
    # What the target had is older than what the source wrote since: it is ended, never run.
    assert {word for host, word in words(play) if host == order.target} == {MigrationWord.CANCEL}


def test_what_the_target_has_of_a_dead_source_is_let_run():
    """All of it was sent when the source lost power: nothing of the guest is lost."""
    play = playing()
    play.moves.stops_at = Phase.SENT
    maintain(play)
    play.until(lambda: play.moves.standing(VmId("v1")) != [])
    play.hosts["h1"].cut()
    play.until(lambda: settled_once(play))
    assert play.where("v1") == [play.sent(MigrateCommand)[0].target]
    assert play.sent(StartCommand) == []
    run = [one for one in play.sent(SettleMigration) if one.word is MigrationWord.RUN]
    assert [proof.host_id for proof in run[0].proofs] == ["h1"]


@pytest.mark.parametrize("last", ["source", "target"])
def test_a_vm_whose_last_side_may_be_dead_is_lost_until_there_is_proof(last: str):
    play = playing(5)
    play.moves.stops_at = Phase.SENT
    maintain(play)
    play.until(lambda: play.moves.standing(VmId("v1")) != [])
    order = play.sent(MigrateCommand)[0]
    first = order.target if last == "source" else order.source
    side = play.hosts[getattr(order, last)]
    play.moves.dumb = {side.id}
    play.hosts[first].cut()
    play.until(lambda: play.verdict(first) is Verdict.DEAD_PROVEN)
    side.hang()
    side.bmc_dead = True
    play.until(lambda: play.vm_record("v1").stage is VmStage.LOST)
    play.advance(30_000)
    assert play.why_vm("v1") == ["recovery.waiting.proof"] and play.sent(StartCommand) == []
    side.beating = side.answers_neighbours = True
    play.moves.dumb = set()
    play.until(lambda: settled_once(play))
    ran_on = [] if last == "source" else [order.target]
    # The source's memory may be older than what the target wrote; the target's never is.
    assert (play.sent(StartCommand) == []) is bool(ran_on)


def test_a_release_of_a_boot_that_is_over_takes_no_copy_away():
    play = playing()
    held = play.vm_record("v1").copies
    play.inbox.append(
        CopyReleased(
            host_id=HostId("h1"),
            boot=BootId("h1b0"),
            vm_id=VmId("v1"),
            incarnation=held[0].incarnation,
        )
    )
    play.tick()
    assert play.vm_record("v1").copies == held


# Whoever dies, at whatever phase


PHASES = [Phase.COPYING, Phase.SENT, Phase.SWITCHED]


@pytest.mark.bad_input("death in a move")
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


@pytest.mark.bad_input("death in a move")
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


@pytest.mark.bad_input("death in a move")
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
