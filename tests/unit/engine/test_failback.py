"""VMs go back to where the engine moved them away from, only where the policy wants that, and never at a bad moment."""

import pytest
from drain_driver import maintain, playing, settled_once
from engine_driver import GIB, Play, vm
from played_moves import Phase

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.events import (
    MigrateCommand,
)
from virtha.engine.machine import Verdict
from virtha.model.ids import Incarnation, VmId
from virtha.model.policy import Failback, Policy, RecoveryPolicy

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
    # It came back at once: our own order to its power device may still be under way (J7).
    assert play.why_vm("v1") == ["failback.blocked.unfit"]
    play.until(lambda: play.why_vm("v1") == ["failback.waiting.stable"], within_ms=30_000)
    took_ms = play.until(lambda: play.where("v1") == ["h1"])
    assert took_ms >= STABLE_MS - 30_000
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


@pytest.mark.parametrize("hosts", [2, 3], ids=["no other place", "another place"])
def test_nobody_goes_home_against_a_soft_rule(hosts: int):
    group = AffinityGroup(id=AffinityGroupId("g"), name="g", kind=AffinityKind.APART, hard=False)
    vms = [vm("v1", groups=(group,)), vm("x", groups=(group,), ha=False)]
    play = homesick(hosts, vms=vms)
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
