"""Sequences of events that a review of the engine found to break safety.md: starts, proofs and fencing.

Ranked. ``Play`` itself fails a start while another host runs the VM.

1. Two writers with every machine honest: a1, a2, a16 (a start replaces a copy that was found meanwhile), a8, a9 (what a
   host tells is not counted as a copy), a15 (a proof from before the incident), a14 (a report of a boot not yet greeted).
2. Two writers where a device lies or is miswired, which P1 is there for: a3, a4, a5, a6, a7.
3. The operator's word taken against P6: a12, a13.
4. A living host is switched off: c1, c2, c3, c4, c5 (J1, J2); against hold, lease and cap: c8, c9; on against J7: c6, c7.
5. Two writers only after something else went wrong as well: a10 (M2), a11 (P4).
"""

import msgspec
import pytest
from engine_driver import Play
from engine_review_driver import ended, playing, seen, starting, third, unanswered_offs

from virtha.engine.events import (
    BeatSeen,
    DeathConfirmed,
    HoldChanged,
    HostConfigured,
    HostRemoved,
    HostSurveyed,
    MaintenanceChanged,
    OrderPower,
    PowerRead,
    ProofFound,
    QuarantineLifted,
    ReadPower,
    Stalled,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.policy import FencingAction, FencingPolicy
from virtha.model.power import PowerAction, PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import VmState

# A. Two writers


def test_a1_a_failed_start_while_another_host_runs_the_vm():
    play = playing()
    start = starting(play)
    other = third(play, "h1", start.host_id)
    seen(play, other, "v1", incarnation=int(start.incarnation))
    play.tick()
    for host in play.hosts.values():
        host.start_result = Result.OK
    ended(play, start, Result.FAILED)
    play.tick()
    play.tick()
    assert play.where("v1") == [other]


@pytest.mark.parametrize("road", ["given up", "quarantined"])
def test_a2_a_freed_vm_that_an_operator_had_started_by_hand(road: str):
    play = playing()
    if road == "given up":
        for host in play.hosts.values():
            host.start_result = Result.FAILED
        play.hosts["h1"].cut()
        play.until(lambda: "vm.recovery_given_up" in play.told(), within_ms=3_000_000)
    else:
        play.hosts["h1"].cut()
        play.until(lambda: play.where("v1") != [])
        play.hosts[play.where("v1")[0]].cut()
        play.until(lambda: "vm.quarantined" in play.told())
    for host in play.hosts.values():
        host.start_result = Result.OK
    place = next(host.id for host in play.hosts.values() if host.alive)
    seen(play, place, "v1", incarnation=50)
    play.tick()
    play.inbox.append(QuarantineLifted(vm_id=VmId("v1"), by="admin"))
    play.advance(1_000)
    assert play.where("v1") == [place]


def test_a3_a_neighbours_authenticated_answer_after_the_reading_off():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h1"].answers_neighbours = True
    play.advance(30_000)
    assert play.sent(StartCommand) == []


def test_a4_a_new_leader_that_has_not_watched_the_disks_after_off():
    play = playing()
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH
        play.test_power(host)
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h1"].disks_change = True
    play.until(lambda: "proof.blocked.disks_change" in play.why("h1"))
    play.new_leader()
    play.advance(10_000)
    assert play.sent(StartCommand) == []


def test_a5_a_feed_added_in_mid_fence_that_was_never_ordered_off():
    play = playing(levels=2)
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_does_nothing = True
    feeds = tuple(PowerFeed(device=PowerDeviceId(f"h1-power{level}")) for level in (1, 2))

    def first_off(command: object) -> bool:
        """power1 is off, power2 still feeds the host."""
        if not isinstance(command, ReadPower) or command.device != "h1-power1" or not play.offs():
            return False
        play.inbox.append(
            PowerRead(
                order_id=command.order_id,
                host_id=command.host_id,
                device=command.device,
                state=PowerState.OFF,
            )
        )
        return True

    play.on_command = first_off
    play.until(lambda: play.offs() == ["h1"])
    both = msgspec.structs.replace(play.configs[0], power=(PowerLevel(feeds=feeds),))
    play.inbox.append(HostConfigured(host=both))
    play.advance(15_000)
    assert play.sent(StartCommand) == []


def test_a6_a_power_test_of_an_earlier_boot():
    """While h1 was down its outlet was given to a spare that is off."""
    play = Play(4)
    play.hosts["h1"].bmc_does_nothing = True
    play.hosts["h1"].bmc_state = PowerState.OFF
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.tick()
    play.run("v1", "h1")
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.sent(StartCommand) == []


def test_a7_a_removed_host_was_the_one_that_our_order_struck():
    play = playing(5)
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_strikes = play.hosts["h3"]
    play.until(lambda: not play.hosts["h3"].powered)
    play.until(lambda: play.verdict("h3") is Verdict.DEAD_UNPROVEN)
    play.inbox.append(HostRemoved(host_id=HostId("h3")))
    play.advance(120_000)
    assert play.sent(StartCommand) == []


def test_a8_a_survey_that_names_the_vm_as_active():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h4"].running[VmId("v1")] = Incarnation(1)
    play.survey(play.hosts["h4"])
    play.advance(30_000)
    assert play.where("v1") == ["h4"]


def test_a9_a_copy_that_is_being_made_on_a_host_that_is_no_holder():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    seen(play, "h4", "v1", VmState.STARTING)
    play.advance(30_000)
    assert play.where("v1") == ["h4"]


def test_a10_a_new_leader_repeats_a_start_before_any_host_has_told():
    play = playing()
    starting(play)
    sent = len(play.sent(StartCommand))

    def nobody_has_told() -> None:
        play.inbox = [one for one in play.inbox if not isinstance(one, HostSurveyed)]

    play.before_first_step = nobody_has_told
    play.new_leader()
    assert len(play.sent(StartCommand)) == sent


def test_a11_a_beat_of_the_ninth_boot_before_is_no_new_boot():
    play = playing()
    old = play.hosts["h1"].boot
    for _ in range(9):
        play.hosts["h1"].boot_again()
        play._greet(play.hosts["h1"])
        play.tick()
    now = play.hosts["h1"].boot
    play.inbox.append(BeatSeen(host_id=HostId("h1"), boot=old, agent_alive=True))
    play.tick()
    assert now not in play.host_record("h1").dead_boots


def confirm(play: Play) -> None:
    incident = play.host_record("h1").incident
    assert incident is not None
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h1"), boot=incident.boot, incident=incident.number, by="admin"
        )
    )


def test_a12_the_operators_word_after_a_witness_that_fell_silent_again():
    play = playing(fencing=FencingPolicy(action=FencingAction.NOTHING))
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.advance(90_000)
    play.hosts["h1"].answers_neighbours = True
    play.until(lambda: play.verdict("h1") is Verdict.ISOLATED)
    play.hosts["h1"].answers_neighbours = False
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.advance(10_000)
    confirm(play)
    play.advance(5_000)
    assert play.sent(StartCommand) == []


def test_a13_the_operators_word_to_a_leader_that_has_just_begun():
    play = playing(fencing=FencingPolicy(action=FencingAction.NOTHING))
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.new_leader()
    confirm(play)
    play.advance(1_000)
    assert play.sent(StartCommand) == []


def test_a14_a_report_of_a_boot_that_has_not_greeted_yet():
    """Its facts overtake its guardian's first beat."""
    play = playing()
    play.hosts["h1"].boot_again()
    seen(play, "h1", "v1")
    play.tick()
    play._greet(play.hosts["h1"])
    play.advance(5_000)
    assert play.sent(StartCommand) == []


def test_a15_a_proof_from_before_the_incident():
    """The judge of an incident that is over; h1 lived on in the same boot, and took v3 since."""
    play = playing()
    stale = Proof(
        kind=ProofKind.LEASE, host_id=HostId("h1"), boot=BootId("h1b1"), at_ms=play.now - 60_000
    )
    play.hosts["h1"].hang()
    play.until(lambda: play.host_record("h1").incident is not None)
    play.inbox.append(ProofFound(proof=stale))
    play.advance(1_000)
    assert play.sent(StartCommand) == []


def test_a16_a_refused_start_on_a_host_that_tells_of_a_higher_incarnation():
    play = playing()
    start = starting(play)
    seen(play, start.host_id, "v1", VmState.PAUSED, incarnation=int(start.incarnation) + 2)
    play.tick()
    for host in play.hosts.values():
        host.start_result = Result.OK
    ended(play, start, Result.REFUSED)
    play.advance(1_000)
    assert play.where("v1") == [start.host_id]


# C. Fencing


def test_c1_a_device_that_named_another_machine_is_ordered_off():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_identity = IdentityMatch.MISMATCH
    play.advance(60_000)
    assert "fence.device_of_another" in play.told()
    assert play.offs() == []


@pytest.mark.parametrize("sign", ["its own beats", "a neighbour"])
def test_c2_a_second_order_to_a_host_that_lives(sign: str):
    play = playing()
    play.hosts["h1"].hang()
    unanswered_offs(play)
    play.until(lambda: play.offs() == ["h1"])
    play.advance(3_000)
    if sign == "a neighbour":
        play.hosts["h1"].answers_neighbours = True
    else:
        play.hosts["h1"].beating = True
    play.advance(60_000)
    assert play.offs() == ["h1"] and play.hosts["h1"].powered


def test_c3_a_new_leader_orders_off_before_the_host_could_connect():
    play = Play(4)
    play.run("v1", "h4")
    play.lease_ms = 0
    play.hosts["h4"].hang()
    play.until(lambda: "fence.blocked.own_lease" in play.why("h4"))
    play.lease_ms = None
    play.new_leader()
    play.advance(play.policy.detection.reconnect_ms - 1_000)
    assert play.offs() == []
    # Whether its disks are quiet is only asked after that: this is what people have to know.
    assert "fence.blocked.observing" in play.why("h4")


def test_c4_a_new_leader_repeats_an_off_to_a_host_that_beats():
    play = playing()
    play.hosts["h1"].hang()
    unanswered_offs(play)
    play.until(lambda: play.offs() == ["h1"])
    play.hosts["h1"].beating = True
    play.new_leader(away_ms=3_000)
    play.advance(5_000)
    assert play.hosts["h1"].powered


def test_c5_a_leader_that_slept_orders_off_before_it_observed_anew():
    play = playing()
    play.lease_ms = 0
    play.hosts["h1"].hang()
    play.until(lambda: "fence.blocked.own_lease" in play.why("h1"))
    play.now += 30_000
    play.inbox.append(Stalled())
    play.lease_ms = None
    play.advance(5_000)
    assert play.offs() == []


@pytest.mark.parametrize("event", ["hold", "maintenance"])
def test_c6_power_on_while_people_work_on_it(event: str):
    play = playing(fencing=FencingPolicy(action=FencingAction.REBOOT))
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    if event == "hold":
        play.inbox.append(HoldChanged(reason="hands inside"))
    else:
        play.inbox.append(MaintenanceChanged(host_id=HostId("h1"), on=True, by="admin"))
    play.advance(30_000)
    assert PowerAction.ON not in [order.action for order in play.sent(OrderPower)]


def test_c7_a_new_leader_repeats_on_at_once():
    play = playing(fencing=FencingPolicy(action=FencingAction.REBOOT))
    play.hosts["h1"].hang()
    play.on_command = lambda command: (
        isinstance(command, OrderPower) and command.action is PowerAction.ON
    )
    play.until(lambda: len(play.sent(OrderPower)) == 2)
    play.new_leader()
    play.advance(play.policy.fencing.order_deadline_ms - 1_000)
    assert len(play.sent(OrderPower)) == 2


def test_c8_a_second_level_that_reads_off_lets_the_first_pass_cap_and_brake():
    play = playing(levels=2)
    play.inbox.append(HoldChanged(reason="x"))
    play.hosts["h1"].hang()

    def spare_is_off(command: object) -> bool:
        if isinstance(command, ReadPower) and command.device.endswith("power2"):
            play.inbox.append(
                PowerRead(
                    order_id=command.order_id,
                    host_id=command.host_id,
                    device=command.device,
                    state=PowerState.OFF,
                )
            )
            return True
        return False

    play.on_command = spare_is_off
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: play.offs() == ["h1"])
    assert len(play.engine.records().cluster.fence_counts) == 1


@pytest.mark.parametrize("why", ["hold", "lease"])
def test_c9_a_new_leader_repeats_an_off_that_it_may_not_order(why: str):
    play = playing()
    play.hosts["h1"].hang()
    unanswered_offs(play, 2)
    play.until(lambda: play.offs() == ["h1"])

    def forbidden() -> None:
        if why == "hold":
            play.inbox.append(HoldChanged(reason="hands inside"))

    play.before_first_step = forbidden
    play.lease_ms = 0 if why == "lease" else None
    play.new_leader()
    play.advance(10_000)
    assert play.offs() == ["h1"]
