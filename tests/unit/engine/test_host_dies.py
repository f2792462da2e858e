"""From silence to a VM that runs elsewhere, and every way in which that must not happen. Rules of safety.md."""

import msgspec
import pytest
from engine_driver import Play, vm
from engine_review_driver import playing

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.dependencies import Dependency, StartCondition
from virtha.engine.events import (
    BeatSeen,
    BrakeLifted,
    CopyReleased,
    HoldChanged,
    HostSurveyed,
    Investigate,
    MaintenanceChanged,
    OrderPower,
    ProofFound,
    QuarantineLifted,
    ReferenceAnswered,
    SessionChanged,
    SlotChanged,
    Stalled,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.evidence import IdentityMatch, ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, VmId
from virtha.model.policy import FencingAction, FencingPolicy, Policy
from virtha.model.power import PowerAction
from virtha.model.proof import Proof, ProofKind

# The roads to proof


@pytest.mark.req("F9")
def test_a_power_cut_whose_bmc_says_off_takes_the_quick_road():
    play = playing()
    play.hosts["h1"].cut()
    took_ms = play.until(lambda: play.where("v1") != [])
    assert play.where("v1") != ["h1"]
    assert took_ms < play.policy.detection.dead_after_ms
    # Off was ordered all the same, and read twice after that (P1).
    assert play.offs() == ["h1"]
    proof = play.host_record("h1").incident.proof
    assert proof is not None and proof.kind is ProofKind.POWER_OFF


def test_a_connection_that_broke_is_suspected_at_once():
    play = playing()
    play.hosts["h1"].cut()
    for process in ProcessKind:
        play.inbox.append(
            SessionChanged(
                host_id=HostId("h1"), process=process, boot=BootId("h1b1"), up=False, broken=True
            )
        )
    play.tick()
    assert play.verdict("h1") is Verdict.SUSPECT
    broken_ms = play.until(lambda: play.where("v1") != [])
    other = playing()
    other.hosts["h1"].cut()
    assert broken_ms < other.until(lambda: other.where("v1") != [])


def test_a_hung_host_is_switched_off_then_its_vms_start_elsewhere():
    play = playing()
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    assert play.hosts["h1"].powered is False
    assert play.sent(StartCommand) == [], "a start before the power was read back"
    play.until(lambda: "vm.recovered" in play.told())
    assert play.where("v1") not in ([], ["h1"])
    start = play.sent(StartCommand)[0]
    assert [proof.kind for proof in start.proofs] == [ProofKind.POWER_OFF]
    assert play.told().index("host.proven_dead") < play.told().index("vm.recovered")


@pytest.mark.parametrize("kind", [ProofKind.LEASE, ProofKind.STORAGE_FENCE])
def test_another_judges_proof_is_as_good(kind: ProofKind):
    play = playing()
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.inbox.append(
        ProofFound(
            proof=Proof(kind=kind, host_id=HostId("h1"), boot=BootId("h1b1"), at_ms=play.now)
        )
    )
    play.until(lambda: play.where("v1") != [], within_ms=1_000)


@pytest.mark.parametrize("kind", [ProofKind.LEASE, ProofKind.STORAGE_FENCE])
def test_a_proof_by_storage_says_nothing_of_a_vm_with_a_disk_in_another_domain(kind: ProofKind):
    """Shut out of one cluster, its QEMU writes on to the other (P2, P3)."""
    both = frozenset(Feature(FeatureKind.STORAGE, one) for one in ("ds1", "ds2"))
    one = frozenset({Feature(FeatureKind.STORAGE, "ds1")})
    play = Play(4, vms=[vm("v1", features=one), vm("v2", features=both)])
    play.run("v1", "h1")
    play.run("v2", "h1")
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)

    def proof(*domains: str) -> ProofFound:
        return ProofFound(
            proof=Proof(
                kind=kind,
                host_id=HostId("h1"),
                boot=BootId("h1b1"),
                at_ms=play.now,
                domain_ids=tuple(StorageDomainId(name) for name in domains),
            )
        )

    play.inbox.append(proof("ds1"))
    play.advance(5_000)
    assert play.sent(StartCommand) == [] and play.verdict("h1") is Verdict.DEAD_UNPROVEN
    play.inbox.append(proof("ds1", "ds2"))
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_PROVEN)


def test_a_proof_of_another_boot_proves_nothing():
    play = playing()
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    stale = Proof(kind=ProofKind.LEASE, host_id=HostId("h1"), boot=BootId("h1b0"), at_ms=play.now)
    play.inbox.append(ProofFound(proof=stale))
    play.advance(5_000)
    assert play.sent(StartCommand) == []
    assert play.vm_record("v1").stage is VmStage.LOST


@pytest.mark.req("F4")
def test_reboot_is_off_proof_then_on():
    play = playing(fencing=FencingPolicy(action=FencingAction.REBOOT))
    play.hosts["h1"].hang()
    play.until(lambda: "host.returned" in play.told())
    actions = [order.action for order in play.sent(OrderPower)]
    assert actions == [PowerAction.OFF, PowerAction.ON]
    assert play.told().index("host.proven_dead") < play.told().index("host.returned")
    assert play.where("v1") not in ([], ["h1"])


def test_a_new_boot_proves_the_old_one_dead():
    play = playing()
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: play.where("v1") != [])
    assert "host.returned" in play.told()
    assert play.host_record("h1").incident is None


def test_the_first_beat_of_a_new_boot_is_the_proof():
    """P4 by itself: the sessions that follow would end the old copies, too (`early`)."""
    play = playing()
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_UNPROVEN)
    assert play.where("v1") == []
    beat = BeatSeen(host_id=HostId("h1"), boot=BootId("h1b2"), agent_alive=False)
    play.inbox.append(beat)
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert "host.returned" in play.told() and "host.proven_dead" not in play.told()


def test_a_reboot_faster_than_any_suspicion_loses_no_vm():
    play = playing()
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: play.where("v1") != [])
    assert play.offs() == []


def test_a_host_that_rebooted_unnoticed_is_no_target_before_it_tells():
    """What runs there by itself since (a VM with autostart) only its survey says."""
    needs = frozenset({Feature(FeatureKind.STORAGE, "ds1")})
    play = playing(2, vms=[vm("v1", features=needs)])
    play.hosts["h2"].storage = False
    play.survey(play.hosts["h2"])
    play.hosts["h1"].boot_again()
    for process in ProcessKind:
        play.inbox.append(
            SessionChanged(host_id=HostId("h1"), process=process, boot=BootId("h1b2"), up=True)
        )
    play.advance(3_000)
    assert play.sent(StartCommand) == []
    assert "'returning'" in str(play.engine.explain_vm(VmId("v1")))
    play.survey(play.hosts["h1"])
    play.until(lambda: play.where("v1") == ["h1"])


# What is no proof, and what keeps a host from being shot


def test_silence_alone_starts_nothing():
    play = playing(fencing=FencingPolicy(action=FencingAction.NOTHING))
    play.hosts["h1"].cut()
    play.hosts["h1"].bmc_dead = True
    play.advance(120_000)
    assert play.sent(StartCommand) == [] and play.sent(OrderPower) == []
    assert "fence.blocked.action_nothing" in play.why("h1")
    assert play.why_vm("v1") == ["recovery.waiting.proof"]


@pytest.mark.req("F4")
def test_blink_lights_the_led_once_and_proves_nothing():
    play = playing(fencing=FencingPolicy(action=FencingAction.BLINK))
    play.hosts["h1"].cut()
    play.advance(120_000)
    orders = play.sent(OrderPower)
    assert [order.action for order in orders] == [PowerAction.BLINK]
    assert play.sent(StartCommand) == []
    assert "fence.blocked.action_blink" in play.why("h1")


@pytest.mark.req("F1")
def test_a_neighbour_that_sees_it_alive_keeps_it_from_being_shot():
    play = playing()
    play.hosts["h1"].beating = False
    play.advance(120_000)
    assert play.verdict("h1") is Verdict.ISOLATED
    assert play.offs() == [] and play.sent(StartCommand) == []
    assert play.sent(Investigate), "it is watched on"


@pytest.mark.req("F2")
def test_changing_disks_mean_alive():
    play = playing()
    play.hosts["h1"].hang()
    play.hosts["h1"].disks_change = True
    play.advance(120_000)
    assert play.offs() == []
    assert play.why("h1") == ["host.suspect.disks_change"]
    play.hosts["h1"].disks_change = False
    play.until(lambda: play.offs() == ["h1"])


def test_a_moving_slot_means_alive():
    play = playing()
    play.hosts["h1"].hang()
    for _ in range(60):
        play.inbox.append(
            SlotChanged(
                witness=HostId("h2"),
                subject=HostId("h1"),
                storage_domain_id=StorageDomainId("ds1"),
                boot=BootId("h1b1"),
            )
        )
        play.advance(1_000)
    assert play.offs() == [] and play.verdict("h1") is Verdict.ISOLATED


def test_a_cut_off_server_shoots_nobody():
    play = playing()
    for host in play.hosts.values():
        host.beating = False
        host.answers_neighbours = False
    play.advance(120_000)
    assert play.offs() == []
    assert "fence.blocked.observer" in play.why("h1")


def test_its_reference_address_tells_it_that_it_is_not_cut_off():
    play = playing(hosts=2)
    play.reference = True
    for host in play.hosts.values():
        host.hang()
    play.until(lambda: sorted(play.offs()) == ["h1", "h2"])


def test_a_reference_address_that_answered_long_ago_says_nothing():
    play = playing(hosts=2)
    play.inbox.append(ReferenceAnswered(reached=True))
    for host in play.hosts.values():
        host.hang()
    play.advance(60_000)
    assert play.offs() == []
    assert "fence.blocked.observer" in play.why("h1")


def test_a_server_that_slept_observes_anew():
    play = playing()
    play.now += 60_000
    play.inbox.append(Stalled())
    play.hosts["h1"].beating = False  # its beats of that time lie unread in a buffer
    play.advance(play.policy.detection.reconnect_ms)
    assert play.verdict("h1") is Verdict.UNKNOWN
    assert play.offs() == []


@pytest.mark.req("F7")
def test_the_cap_stops_the_fourth_power_down():
    policy = Policy(fencing=FencingPolicy(cap_window_ms=300_000))
    play = Play(12, policy=policy, vms=[vm(f"v{number}") for number in range(1, 5)])
    for number in range(1, 5):
        play.run(f"v{number}", f"h{number}")
    for number in range(1, 4):
        play.hosts[f"h{number}"].hang()
        play.until(lambda number=number: play.where(f"v{number}") not in ([], [f"h{number}"]))
        play.inbox.append(BrakeLifted(by="test"))
    play.hosts["h4"].hang()
    play.until(lambda: "fence.blocked.cap" in play.why("h4"))
    play.new_leader(away_ms=1_000)
    play.until(lambda: "fence.blocked.cap" in play.why("h4"))
    assert play.offs() == ["h1", "h2", "h3"]
    play.until(lambda: "h4" in play.offs(), within_ms=400_000)


def test_the_cap_counts_no_host_that_was_off_already():
    play = Play(12, vms=[vm(f"v{number}") for number in range(1, 6)])
    for number in range(1, 6):
        play.run(f"v{number}", f"h{number}")
    for number in range(1, 6):
        play.hosts[f"h{number}"].cut()
        play.until(lambda number=number: play.where(f"v{number}") != [])
        play.advance(play.policy.fencing.brake_window_ms)
    assert len(play.offs()) == 5


def test_the_brake_holds_orders_when_many_fall_at_once_and_lifts_when_storage_is_seen():
    play = Play(9, vms=[vm(f"v{number}") for number in range(1, 4)])
    for number in range(1, 4):
        play.run(f"v{number}", f"h{number}")
    for host in play.hosts.values():
        host.storage = False
        play.survey(host)
    for number in range(1, 4):
        play.hosts[f"h{number}"].hang()
    play.until(lambda: "fence.brake.tripped" in play.told())
    play.advance(180_000)
    assert play.offs() == []
    assert "fence.blocked.brake" in play.why("h1")
    for host in play.hosts.values():
        host.storage = True
        if host.alive:
            play.survey(host)
    took_ms = play.until(lambda: "fence.brake.lifted" in play.told())
    assert took_ms >= play.policy.fencing.brake_lift_ms - 1_000
    play.until(lambda: all(play.where(f"v{number}") != [] for number in range(1, 4)))


def test_the_brake_does_not_hold_what_is_proven():
    play = Play(9, vms=[vm(f"v{number}") for number in range(1, 4)])
    for number in range(1, 4):
        play.run(f"v{number}", f"h{number}")
        # Devices that name their hosts: else those that fell together keep each other from being proven.
        play.hosts[f"h{number}"].bmc_identity = IdentityMatch.MATCH
        play.test_power(play.hosts[f"h{number}"])
    play.tick()
    for number in range(1, 4):
        play.hosts[f"h{number}"].cut()
    play.until(lambda: all(play.where(f"v{number}") != [] for number in range(1, 4)))


def test_an_order_needs_more_of_our_leadership_than_its_deadline():
    play = playing()
    play.hosts["h1"].hang()
    play.lease_ms = play.policy.fencing.order_deadline_ms
    play.advance(60_000)
    assert play.offs() == [] and "fence.blocked.own_lease" in play.why("h1")
    play.lease_ms = None
    play.until(lambda: play.offs() == ["h1"])


def test_hold_stops_all_of_it_and_lifting_it_goes_on():
    play = playing()
    play.inbox.append(HoldChanged(reason="rewiring"))
    play.hosts["h1"].cut()
    play.advance(120_000)
    assert play.offs() == [] and "fence.blocked.hold" in play.why("h1")
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: play.where("v1") != [])


def test_a_host_in_maintenance_is_not_shot():
    play = playing()
    work = MaintenanceChanged(host_id=HostId("h1"), on=True, by="admin", drain=False)
    play.inbox.append(work)
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.offs() == [] and "fence.blocked.maintenance" in play.why("h1")


def test_a_host_without_anything_to_protect_is_left_alone():
    play = Play(4, vms=[vm("v1", ha=False), vm("v2")])
    play.run("v1", "h1")
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.offs() == [] and "fence.blocked.not_needed" in play.why("h1")


# The targets, and what the record is for


def test_a_start_that_fails_is_tried_elsewhere_and_given_up_in_the_end():
    play = playing()
    for host in play.hosts.values():
        host.start_result = Result.FAILED
    play.hosts["h1"].cut()
    play.until(lambda: "vm.recovery_given_up" in play.told(), within_ms=3_000_000)
    tried = [start.host_id for start in play.sent(StartCommand)]
    assert len(tried) == play.policy.recovery.attempts_max
    assert set(tried[:3]) == {"h2", "h3", "h4"}, "another host first"
    assert play.why_vm("v1") == ["recovery.blocked.attempts"]


def test_a_start_that_nobody_answers_is_taken_back_before_the_next():
    play = playing()
    for host in play.hosts.values():
        host.start_result = None
    play.hosts["h1"].cut()
    play.until(lambda: len(play.sent(StartCommand)) == 1)
    for host in play.hosts.values():
        host.confirms_cancel = False
        host.start_result = Result.OK
    play.advance(120_000)
    assert len(play.sent(StartCommand)) == 1, "a second start while the first may still come"
    assert play.why_vm("v1") == ["recovery.waiting.cancel"]
    for host in play.hosts.values():
        host.confirms_cancel = True
    play.until(lambda: len(play.sent(StartCommand)) == 2)


def test_a_target_that_dies_while_starting_is_proven_dead_first():
    play = playing()
    for host in play.hosts.values():
        host.start_result = None
    play.hosts["h1"].cut()
    play.until(lambda: len(play.sent(StartCommand)) == 1)
    target = play.sent(StartCommand)[0].host_id
    play.hosts[target].hang()
    for host in play.hosts.values():
        host.start_result = Result.OK
    play.until(lambda: "vm.quarantined" in play.told())  # two hosts died with it (M5)
    assert play.hosts[target].powered is False
    play.inbox.append(QuarantineLifted(vm_id=VmId("v1"), by="admin"))
    play.until(lambda: play.where("v1") != [])
    assert len(play.sent(StartCommand)) == 2


def test_a_target_that_was_judged_dead_in_mid_start_and_lives_gives_it_back():
    """The order never arrived: nothing of it runs there, and nobody else would ever say so."""
    play = playing()
    for host in play.hosts.values():
        host.start_result = None
    play.hosts["h1"].cut()
    play.until(lambda: len(play.sent(StartCommand)) == 1)
    target = play.hosts[play.sent(StartCommand)[0].host_id]
    target.hang()
    target.bmc_dead = True
    play.until(lambda: play.vm_record("v1").stage is VmStage.LOST)
    for host in play.hosts.values():
        host.start_result = Result.OK
    target.beating = target.answers_neighbours = True
    play.until(lambda: play.where("v1") != [])
    assert len(play.sent(StartCommand)) == 2


def test_a_vm_waits_for_what_it_depends_on_over_hosts_and_a_slow_proof():
    database = vm("v1")
    client = vm(
        "v3",
        priority=5,
        depends_on=(Dependency(vm_id=VmId("v1"), name="v1", condition=StartCondition.GUEST_AGENT),),
    )
    play = Play(4, vms=[database, vm("v2"), client])
    play.run("v1", "h1")
    play.run("v3", "h1")
    play.hosts["h1"].hang()
    play.hosts["h1"].bmc_dead = True
    play.advance(play.policy.recovery.dependency_wait_ms + 60_000)
    play.hosts["h1"].bmc_dead = False
    play.until(lambda: play.where("v3") not in ([], ["h1"]), within_ms=1_200_000)
    assert [start.vm_id for start in play.sent(StartCommand)] == ["v1", "v3"]


def test_two_hosts_that_died_with_it_quarantine_a_vm():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [])
    second = play.where("v1")[0]
    play.hosts[second].cut()
    play.until(lambda: "vm.quarantined" in play.told())
    play.advance(60_000)
    assert play.where("v1") == []
    assert play.why_vm("v1") == ["recovery.blocked.quarantine"]


def test_nothing_starts_before_every_host_told_what_it_runs():
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.verdict("h1") is Verdict.DEAD_PROVEN or play.offs() == ["h1"])

    def nobody_has_told() -> None:
        play.inbox = [one for one in play.inbox if not isinstance(one, HostSurveyed)]

    play.before_first_step = nobody_has_told
    play.new_leader()
    play.advance(30_000)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory"]
    for host in play.hosts.values():
        if host.alive:
            play.survey(host)
    play.until(lambda: play.where("v1") != [])


def test_a_start_on_record_that_was_never_sent_goes_out_as_soon_as_every_host_has_told():
    """Its leader died between writing and sending it. Waiting until it is overdue would cost a second attempt, and the grant's time."""
    play = playing()
    play.on_command = lambda command: isinstance(command, StartCommand)
    play.hosts["h1"].cut()
    play.until(lambda: play.sent(StartCommand) != [])
    (unsent,) = play.sent(StartCommand)
    play.on_command = None

    def nobody_has_told() -> None:
        play.inbox = [one for one in play.inbox if not isinstance(one, HostSurveyed)]

    play.before_first_step = nobody_has_told
    play.new_leader()
    play.advance(2_000)
    assert play.sent(StartCommand) == [unsent]
    assert play.why_vm("v1") == ["recovery.waiting.inventory"]
    for host in play.hosts.values():
        if host.alive:
            play.survey(host)
    play.tick()
    assert play.sent(StartCommand) == [unsent, unsent]
    play.until(lambda: play.where("v1") == [unsent.host_id], within_ms=1_000)
    assert "vm.start_overdue" not in play.told()


@pytest.mark.parametrize("step", range(12))
def test_a_leader_that_dies_at_any_step_is_followed_by_one_that_finishes(step: int):
    play = playing()
    play.hosts["h1"].hang()
    play.until(lambda: play.offs() == ["h1"])
    play.advance(step * 200)
    play.new_leader(away_ms=3_000)
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert len(play.where("v1")) == 1


def test_a_released_copy_needs_no_proof():
    play = playing()
    play.inbox.append(
        CopyReleased(
            host_id=HostId("h1"),
            boot=BootId("h1b1"),
            vm_id=VmId("v1"),
            incarnation=Incarnation(1),
        )
    )
    play.tick()
    assert play.vm_record("v1").copies == ()
    play.hosts["h1"].running.clear()
    play.hosts["h1"].hang()
    play.advance(60_000)
    assert play.offs() == [], "shot for a VM that it no longer holds"


def test_a_new_leader_calls_nobody_dead_before_they_could_connect():
    play = playing()
    play.hosts["h1"].beating = False
    play.new_leader()
    play.advance(play.policy.detection.reconnect_ms - 1_000)
    assert play.verdict("h1") is Verdict.UNKNOWN


def test_the_records_alone_give_the_same_answers():
    play = playing()
    play.hosts["h1"].hang()
    play.answers = False
    play.until(lambda: play.offs() == ["h1"])
    before = play.host_record("h1")
    play.new_leader()
    assert play.host_record("h1") == before
    assert play.offs() == ["h1"], "the host may be about to connect to the new leader"
    # An order that may never have been sent is sent again, once it is clear that the host is silent here too.
    play.until(lambda: play.offs() == ["h1", "h1"], within_ms=15_000)
    first, second = play.sent(OrderPower)
    assert isinstance(first, OrderPower) and isinstance(second, OrderPower)
    assert second.not_after_ms > first.not_after_ms
    assert msgspec.structs.replace(second, not_after_ms=first.not_after_ms) == first
