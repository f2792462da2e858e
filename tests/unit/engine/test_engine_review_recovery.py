"""Sequences of events after which a protected VM stays down, the engine raises, or it wakes without end.

Ranked.

1. It raises, and every leader after it raises again from the same records: g1, g2, g3, g4, g7.
2. Down for ever, with no reason and nobody told: d1, d2, d3, d4, d13, d14, d15, d16, d19.
3. Down for ever, with a reason that no event ends: d5, d6, d7, d8, d9, d10, d11, d17.
4. A leader that spins: g5. A false alarm at each change of leader: g6. Nobody told: d12, d18.
"""

import msgspec
from engine_driver import GIB, Play, vm
from engine_review_driver import ended, playing, released, seen, starting, third, unanswered_offs

from virtha.engine.events import (
    BeatSeen,
    EngineEvent,
    HoldChanged,
    HostConfigured,
    HostRemoved,
    HostSurveyed,
    LeaseRenewed,
    OrderPower,
    Poison,
    PowerOrdered,
    VmConfigured,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.evidence import IdentityMatch
from virtha.model.facts import Result
from virtha.model.ids import HostId
from virtha.model.policy import FencingAction, FencingPolicy
from virtha.model.power import PowerAction
from virtha.model.time import Millis
from virtha.model.vm import VmState

# D. Down for ever


def stays_told(play: Play, vm_id: str) -> bool:
    """Up somewhere, or a reason."""
    return bool(play.where(vm_id) or play.why_vm(vm_id))


def test_d1_a_late_answer_settles_a_vm_whose_target_is_lost():
    play = playing()
    start = starting(play)
    target = start.host_id
    play.hosts[target].hang()
    play.until(lambda: play.verdict(target) is Verdict.DEAD_UNPROVEN)
    ended(play, start, Result.OK)
    play.advance(120_000)
    assert stays_told(play, "v1")


def test_d2_a_report_of_a_host_in_incident():
    play = playing(vms=[vm("v1"), vm("v2"), vm("v3")])
    play.hosts["h1"].hang()
    play.until(lambda: play.host_record("h1").incident is not None)
    seen(play, "h1", "v3")
    play.hosts["h1"].running.clear()  # it was cut when it was judged
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    play.advance(30_000)
    assert stays_told(play, "v3")


def both_hold(play: Play) -> None:
    """v1 on its way from h1 to h3."""
    seen(play, "h3", "v1", VmState.PAUSED)
    play.tick()
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h1", "h3"}


def test_d3_one_holder_is_back_while_the_other_is_still_lost():
    play = playing()
    both_hold(play)
    play.answers = True
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.hosts["h3"].beating = play.hosts["h3"].answers_neighbours = False
    play.hosts["h3"].bmc_dead = True
    play.inbox.append(LeaseRenewed(until_ms=play.now))
    play.lease_ms = 0
    play.until(lambda: play.verdict("h3") is play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.hosts["h3"].beating = True
    play.tick()
    play.tick()
    assert play.vm_record("v1").stage is VmStage.LOST


def test_d4_the_target_of_a_migration_releases_after_its_source_was_proven_dead():
    play = playing()
    both_hold(play)
    play.hosts["h1"].cut()
    play.until(lambda: "host.proven_dead" in play.told())
    play.advance(1_000)
    released(play, "h3", "v1", 1)
    play.advance(60_000)
    assert stays_told(play, "v1")


def test_d5_a_release_while_its_host_is_in_an_incident():
    play = playing()
    for host in play.hosts.values():
        host.confirms_cancel = False
    start = starting(play)
    target = start.host_id
    play.until(lambda: play.vm_record("v1").stage is VmStage.CANCELLING)
    play.hosts[target].hang()
    play.hosts[target].bmc_dead = True
    play.until(lambda: play.vm_record("v1").stage is VmStage.LOST)
    for host in play.hosts.values():
        host.start_result = Result.OK
    released(play, target, "v1", int(start.incarnation))
    play.advance(120_000)
    assert play.where("v1") != []


def test_d6_poison_is_not_repeated_by_a_new_leader():
    play = Play(4, levels=0)
    play.run("v1", "h1")
    play.hosts["h1"].cut()
    play.until(lambda: len(play.sent(Poison)) == 1)
    play.new_leader()
    play.advance(60_000)
    assert len(play.sent(Poison)) == 2


def test_d7_a_long_dead_host_and_a_new_leader_in_mid_fence():
    play = playing(5)
    play.hosts["h5"].cut()
    play.advance(600_000)
    play.hosts["h1"].hang()
    play.until(lambda: play.offs()[-1:] == ["h1"])
    play.new_leader()
    play.advance(1_800_000)
    assert play.where("v1") not in ([], ["h1"])


def test_d8_a_host_that_is_off_for_good_blocks_all_recoveries_after_a_new_leader():
    play = playing(5)
    play.hosts["h5"].cut()
    play.advance(600_000)
    play.new_leader()
    play.advance(60_000)
    play.hosts["h1"].cut()
    play.advance(600_000)
    assert play.where("v1") != []


def test_d9_a_host_that_never_surveys_blocks_all_recoveries():
    play = playing(5)
    host = play.hosts["h5"]
    host.boot_again()
    host.agent_alive = False
    play.inbox.append(BeatSeen(host_id=host.id, boot=host.boot, agent_alive=False))
    play.tick()
    play.hosts["h1"].cut()
    play.advance(600_000)
    assert play.where("v1") != []


def test_d10_the_awaited_host_is_removed():
    play = playing(5)
    host = play.hosts["h5"]
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])

    def silent_agent() -> None:
        play.inbox = [
            one
            for one in play.inbox
            if not (isinstance(one, HostSurveyed) and one.host_id == host.id)
        ]

    play.before_first_step = silent_agent
    play.new_leader()
    play.until(lambda: play.why_vm("v1") == ["recovery.waiting.inventory"])
    host.beating = False
    play.inbox.append(HostRemoved(host_id=host.id))
    play.advance(10_000)
    assert play.where("v1") != []


def test_d11_capacity_that_appears_by_a_release():
    play = Play(2, vms=[vm("v1", memory_bytes=6 * GIB), vm("v2", memory_bytes=6 * GIB)])
    play.inbox.append(HostConfigured(host=play.configs[0]))
    play.run("v1", "h1")
    play.run("v2", "h2")
    play.hosts["h1"].bmc_identity = IdentityMatch.MATCH
    play.test_power(play.hosts["h1"])
    play.reference = True
    play.hosts["h1"].cut()
    play.until(lambda: "recovery.blocked.no_capacity" in play.why_vm("v1"))
    down = msgspec.structs.replace(play.vms[1], wanted_up=False)
    play.inbox.append(VmConfigured(vm=down))
    play.tick()
    released(play, "h2", "v2", 1)
    play.advance(60_000)
    assert play.where("v1") == ["h2"]


def test_d12_nobody_is_told_of_a_vm_that_fits_nowhere():
    play = Play(4, vms=[vm("v1", memory_bytes=7 * GIB), vm("v2"), vm("v3", memory_bytes=6 * GIB)])
    play.run("v1", "h1")
    for host in ("h2", "h3", "h4"):
        play.inbox.append(
            HostConfigured(
                host=msgspec.structs.replace(play.configs[int(host[1]) - 1], memory_bytes=GIB)
            )
        )
    play.hosts["h1"].cut()
    play.until(lambda: "recovery.blocked.no_capacity" in play.why_vm("v1"))
    play.advance(600_000)
    about = [one.code for one in play.notices if one.vm_id == "v1" and one.code != "vm.found"]
    assert about != []


def test_d13_a_host_is_removed_with_a_copy_and_comes_back_in_a_new_boot():
    play = playing()
    play.hosts["h1"].cut()
    play.tick()
    play.inbox.append(HostRemoved(host_id=HostId("h1")))
    play.advance(30_000)
    play.inbox.append(HostConfigured(host=play.configs[0]))
    play.tick()
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.advance(60_000)
    assert stays_told(play, "v1")


def test_d14_a_host_is_removed_while_its_vm_runs():
    play = playing()
    play.inbox.append(HostRemoved(host_id=HostId("h1")))
    play.advance(10_000)
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert stays_told(play, "v1")


def test_d15_a_given_up_vm_that_runs_again_loses_its_protection():
    play = playing()
    for host in play.hosts.values():
        host.start_result = Result.FAILED
    play.hosts["h1"].cut()
    play.until(lambda: "vm.recovery_given_up" in play.told(), within_ms=3_000_000)
    seen(play, "h2", "v1", incarnation=50)
    play.advance(3_700_000)
    for host in play.hosts.values():
        host.start_result = Result.OK
    play.hosts["h2"].cut()
    play.advance(60_000)
    assert play.where("v1") not in ([], ["h2"])


def test_d16_hosts_that_are_read_before_their_vms():
    play = playing()
    play.hosts["h1"].boot_again()
    configs: list[EngineEvent] = []

    def vms_later() -> None:
        configs.extend(one for one in play.inbox if isinstance(one, VmConfigured))
        play.inbox = [one for one in play.inbox if not isinstance(one, VmConfigured)]

    play.before_first_step = vms_later
    play.new_leader()
    play.inbox += configs
    play.advance(60_000)
    assert stays_told(play, "v1")


def test_d17_lost_although_its_only_holder_lives():
    play = playing()
    both_hold(play)
    play.hosts["h1"].beating = False
    play.until(lambda: play.verdict("h1") in (Verdict.SUSPECT, Verdict.ISOLATED))
    play.hosts["h3"].boot_again()
    play._greet(play.hosts["h3"])
    play.tick()
    play.hosts["h1"].beating = True
    play.advance(30_000)
    assert play.vm_record("v1").stage is VmStage.SETTLED


def test_d18_a_power_on_that_fails_is_not_told():
    play = playing(fencing=FencingPolicy(action=FencingAction.REBOOT))
    play.hosts["h1"].hang()

    def on_fails(command: object) -> bool:
        if isinstance(command, OrderPower) and command.action is PowerAction.ON:
            play.inbox.append(
                PowerOrdered(
                    order_id=command.order_id,
                    host_id=command.host_id,
                    device=command.device,
                    result=Result.FAILED,
                    error="power.failed",
                )
            )
            return True
        return False

    play.on_command = on_fails
    play.until(lambda: len(play.sent(OrderPower)) == 2)
    before = len(play.notices)
    play.advance(300_000)
    later = [one.code for one in play.notices[before:] if one.host_id == "h1"]
    assert len(play.sent(OrderPower)) > 2 or later != []


def test_d19_taken_out_of_automatic_action_for_a_moment():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    play.inbox.append(HoldChanged(reason="look first"))
    play.until(lambda: play.vm_record("v1").stage is VmStage.READY)
    play.inbox.append(VmConfigured(vm=msgspec.structs.replace(play.vms[0], ignore=True)))
    play.tick()
    play.inbox += [VmConfigured(vm=play.vms[0]), HoldChanged(reason=None)]
    play.advance(30_000)
    assert stays_told(play, "v1")


# F, G. Loops and raises


def test_g1_power_levels_shrink_while_a_fence_is_at_the_second():
    play = playing(levels=2)
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_refuses = "power.password"
    play.hosts["h1"].bmc_refuses = None
    unanswered_offs(play, 2)
    play.until(lambda: len(play.offs()) == 3)
    fewer = msgspec.structs.replace(play.configs[0], power=play.configs[0].power[:1])
    play.inbox.append(HostConfigured(host=fewer))
    play.advance(60_000)


def test_g2_a_new_leader_repeats_a_start_whose_vm_was_found_elsewhere():
    play = playing()
    start = starting(play)
    seen(play, third(play, "h1", start.host_id), "v1", incarnation=int(start.incarnation))
    play.tick()
    play.new_leader()
    play.advance(1_000)


def test_g3_a_higher_incarnation_while_starting():
    play = playing()
    start = starting(play)
    seen(play, third(play, "h1", start.host_id), "v1", VmState.DOWN, incarnation=9)
    play.tick()
    play.new_leader()
    play.advance(1_000)


def test_g4_a_holder_comes_back_while_the_target_of_the_start_is_lost():
    play = playing(5)
    start = starting(play)
    other = third(play, "h1", start.host_id)
    seen(play, other, "v1", VmState.PAUSED, incarnation=int(start.incarnation))
    play.tick()
    play.lease_ms = 0
    for name in (start.host_id, other):
        play.hosts[name].hang()
    play.until(lambda: play.verdict(other) is play.verdict(start.host_id) is Verdict.DEAD_UNPROVEN)
    play.hosts[other].beating = True
    play.tick()
    play.lease_ms = None
    play.advance(60_000)


def test_g5_the_brake_wakes_without_end():
    play = playing(3)
    play.hosts["h1"].bmc_identity = IdentityMatch.MATCH
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH
        play.test_power(host)
    play.tick()
    play.reference = True
    play.vms.append(vm("v3"))
    play.inbox.append(VmConfigured(vm=play.vms[-1]))
    play.run("v3", "h3")
    for host in play.hosts.values():
        host.cut()
    play.until(lambda: all(play.verdict(name) is Verdict.DEAD_PROVEN for name in play.hosts))
    play.advance(120_000)
    wakes = 0
    for _ in range(20):
        decision = play.engine.step(Millis(play.now), [])
        if decision.wake_at is None:
            break
        assert decision.wake_at > play.now
        if decision.wake_at == play.now + 1:
            wakes += 1
        play.now = decision.wake_at
    assert wakes < 5


def test_g6_three_long_dead_hosts_trip_the_brake_of_every_new_leader():
    play = Play(9)
    for number in (7, 8, 9):
        play.hosts[f"h{number}"].cut()
        play.advance(300_000)
    assert "fence.brake.tripped" not in play.told()
    play.new_leader()
    play.advance(60_000)
    assert "fence.brake.tripped" not in play.told()


def test_g7_a_leader_that_comes_after_the_deadline_of_an_order_that_it_finds():
    play = Play(4)
    play.run("v1", "h4")
    play.hosts["h4"].hang()
    unanswered_offs(play)
    play.until(lambda: play.offs() == ["h4"])
    play.new_leader(away_ms=play.policy.fencing.order_deadline_ms + 1_000)
    play.advance(60_000)
    assert play.hosts["h4"].powered is False
