"""A host that has not told and settled since a restore may hold any VM, and nothing of the former timeline counts (M2): not its
silence, whoever leads; no test of its devices; no proof of the boot that the records know; no quiet of disks nobody watched."""

import msgspec
import pytest
from engine_driver import Play, PlayedHost, vm
from engine_review_driver import named, playing, seen
from test_restored_judgements import h2_is_dead, lives_unseen, next_leader, restored

from virtha.engine.configured import EngineHost
from virtha.engine.events import (
    CopyReleased,
    DeathConfirmed,
    HostConfigured,
    HostRemoved,
    Investigate,
    LibvirtAnswered,
    ProofFound,
    SessionChanged,
    Stalled,
    StartCommand,
)
from virtha.engine.machine import Verdict
from virtha.model.evidence import PowerState, ProcessKind
from virtha.model.facts import ReleaseCause
from virtha.model.ids import HostId, Incarnation, VmId
from virtha.model.power import PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.proof import Proof, ProofKind

pytestmark = pytest.mark.req("F2", "F4", "F9")

LONG_MS = 300_000


def runs_v1_unseen(play: Play, host: str) -> PlayedHost:
    """By what the lost records said: out of everybody's reach, while the restored ones say h1."""
    played = play.hosts[host]
    played.hang()
    played.running[VmId("v1")] = Incarnation(2)
    play.hosts["h1"].running.pop(VmId("v1"), None)
    return played


def shuts_down(play: Play, host: str) -> None:
    """It gives v1 back, which is to run on elsewhere, and goes."""
    played = play.hosts[host]
    play.inbox.append(
        CopyReleased(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(1),
            cause=ReleaseCause.HOST_SHUTDOWN,
        )
    )
    played.cut()


# Its silence settles nothing


def test_a_host_that_told_and_fell_silent_is_not_settled_by_time():
    """The lost server's start hung there in create when it told; it comes up within its grant (G2)."""
    play = named(playing(5))
    host = play.hosts["h3"]
    host.bmc_dead = True
    restored(play)
    play.advance(2_000)
    host.hang()
    host.running[VmId("v1")] = Incarnation(2)
    play.hosts["h1"].cut()
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.restored"]
    assert "fence.blocked.not_needed" not in play.why("h3")


def test_a_host_that_told_and_fell_silent_is_fenced_for_those_that_wait():
    play = named(playing(5))
    restored(play)
    play.advance(2_000)
    play.hosts["h3"].hang()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [])
    assert "h3" in play.offs()


def test_it_is_not_settled_while_only_its_guardian_is_heard():
    """Nobody there could tell what came up since."""
    play = named(playing(5))
    restored(play)
    play.advance(2_000)
    play.hosts["h3"].agent_alive = False
    play.hosts["h1"].cut()
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.offs() == ["h1"]
    play.hosts["h3"].agent_alive = True
    waited_ms = play.until(lambda: play.where("v1") != [])
    assert waited_ms >= play.policy.recovery.attempt_ms, "its outbox may still tell"


def test_a_host_that_is_heard_again_has_its_time_to_tell_what_came_up():
    """Its report lies behind its beats."""
    play = named(playing(5))
    restored(play)
    play.advance(2_000)
    host = play.hosts["h3"]
    host.hang()
    host.running[VmId("v1")] = Incarnation(2)
    play.hosts["h1"].running.pop(VmId("v1"))
    play.advance(60_000)
    host.beating = host.answers_neighbours = host.answers_ping = True
    shuts_down(play, "h1")
    play.advance(5_000)
    assert play.sent(StartCommand) == []
    seen(play, "h3", "v1", incarnation=2)
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.where("v1") == ["h3"]


def test_a_host_whose_libvirt_hangs_cannot_tell():
    play = named(playing(5))
    restored(play)
    play.advance(2_000)
    play.inbox.append(LibvirtAnswered(host_id=HostId("h3"), answering=False))
    shuts_down(play, "h1")
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory"]
    play.inbox.append(LibvirtAnswered(host_id=HostId("h3"), answering=True))
    waited_ms = play.until(lambda: play.where("v1") != [])
    assert waited_ms >= play.policy.recovery.attempt_ms


def gives_back(play: Play, host: str) -> None:
    """It gives v1 back and lives on: nothing but the barrier keeps v1 from a start."""
    played = play.hosts[host]
    played.running.pop(VmId("v1"))
    play.inbox.append(
        CopyReleased(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(1),
            cause=ReleaseCause.HOST_SHUTDOWN,
        )
    )


def comes_up_untold(play: Play, host: str) -> None:
    """The lost server's start of v1, within its grant; nobody has read a report of it yet."""
    play.hosts[host].running[VmId("v1")] = Incarnation(2)


def test_what_we_slept_through_was_not_heard():
    """J1: after a sleep, or a write that took as long, beats are read at once, and reports when they are on record."""
    play = named(playing(5))
    restored(play)
    play.advance(1_000)
    gives_back(play, "h1")
    play.advance(1_000)
    comes_up_untold(play, "h4")
    play.now += 30_000
    play.inbox.append(Stalled())
    play.advance(play.policy.recovery.attempt_ms - 2_000)
    assert play.sent(StartCommand) == []
    seen(play, "h4", "v1", incarnation=2)
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.where("v1") == ["h4"]


def agent_session(play: Play, host: str, *, up: bool) -> None:
    played = play.hosts[host]
    play.inbox.append(
        SessionChanged(host_id=played.id, process=ProcessKind.AGENT, boot=played.boot, up=up)
    )


def test_it_is_not_settled_while_its_agent_cannot_reach_us():
    """Its guardian beats and says that the agent is well: it counts as alive, and can't tell."""
    play = named(playing(5))
    restored(play)
    play.advance(1_000)
    gives_back(play, "h1")
    agent_session(play, "h4", up=False)
    comes_up_untold(play, "h4")
    play.advance(60_000)
    assert play.verdict("h4") is Verdict.ALIVE and play.sent(StartCommand) == []
    agent_session(play, "h4", up=True)
    play.advance(play.policy.recovery.attempt_ms - 2_000)
    assert play.sent(StartCommand) == [], "its outbox may still tell"
    seen(play, "h4", "v1", incarnation=2)
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.where("v1") == ["h4"]


def test_a_session_that_replaces_the_one_that_hung_may_bring_what_that_one_did_not():
    """Nobody saw the former one end."""
    play = named(playing(5))
    restored(play)
    play.advance(1_000)
    gives_back(play, "h1")
    play.advance(play.policy.recovery.attempt_ms - 3_000)
    comes_up_untold(play, "h4")
    agent_session(play, "h4", up=True)
    play.advance(5_000)
    assert play.sent(StartCommand) == []
    seen(play, "h4", "v1", incarnation=2)
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.where("v1") == ["h4"]


def test_the_next_leader_has_to_hear_itself_whether_libvirt_answers():
    """It hung under the leader before, and the host has surveyed nothing since."""
    play = named(playing(5))
    restored(play)
    play.advance(2_000)
    play.inbox.append(LibvirtAnswered(host_id=HostId("h4"), answering=False))
    play.tick()
    comes_up_untold(play, "h4")
    hangs = play.hosts["h4"]
    surveys, says = play.survey, play._say
    play.survey = lambda host: None if host is hangs else surveys(host)
    play._say = lambda host, vm_id, **more: None if host is hangs else says(host, vm_id, **more)
    next_leader(play)
    gives_back(play, "h1")
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory"]


# Whoever leads


def test_the_next_leader_waits_for_lost_grants_from_when_the_hosts_told():
    play = named(playing(5))
    restored(play)
    restored_ms = play.now
    play.advance(1_000)
    next_leader(play)
    shuts_down(play, "h1")
    play.until(lambda: play.sent(StartCommand) != [])
    waited_ms = play.now - restored_ms
    attempt_ms = play.policy.recovery.attempt_ms
    assert attempt_ms <= waited_ms


def test_what_no_leader_wrote_down_was_not_told():
    play = named(playing(5))
    runs_v1_unseen(play, "h2").bmc_dead = True
    play.hosts["h2"].running[VmId("v1")] = Incarnation(2)
    play.configs = [
        msgspec.structs.replace(one, untold=False, timeline="restored") for one in play.configs
    ]
    play.new_leader()
    play.hosts["h1"].cut()
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == []
    assert "recovery.waiting.restored" in play.why_vm("v1")


def test_a_restored_proof_is_not_believed_of_a_host_that_no_leader_heard_tell():
    play = h2_is_dead(named(playing(5)))
    play.forget_commands()
    play.hosts["h2"].boot_again()
    runs_v1_unseen(play, "h2").bmc_dead = True
    play.configs = [
        msgspec.structs.replace(one, untold=False, timeline="restored") for one in play.configs
    ]
    play.new_leader()
    play.hosts["h1"].cut()
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == [] and play.verdict("h2") is Verdict.DEAD_UNPROVEN


def test_who_settled_in_this_timeline_is_settled_for_every_leader_in_it():
    play = named(playing(5))
    restored(play)
    play.until(lambda: all(_told(play, name) for name in play.hosts))
    next_leader(play, *play.hosts)
    play.hosts["h5"].bmc_dead = True
    play.hosts["h5"].hang()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [], within_ms=60_000)


def _told(play: Play, host: str) -> bool:
    told = play.host_record(host).told
    return told is not None and told.settled


def test_a_host_that_joins_in_this_timeline_has_nothing_to_tell():
    play = named(playing(5))
    restored(play)
    play.until(lambda: all(_told(play, name) for name in play.hosts))
    newcomer = _another(play, untold=False)
    play.inbox.append(HostConfigured(host=newcomer))
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [], within_ms=60_000)
    assert _told(play, "h6")


def _another(play: Play, *, untold: bool) -> EngineHost:
    """Configured, without a power device, and silent from the beginning."""
    host = PlayedHost(6)
    host.cut()
    host.hang()
    play.hosts["h6"] = host
    config = msgspec.structs.replace(
        play.configs[-1], host_id=HostId("h6"), name="h6", number=6, power=(), untold=untold
    )
    play.configs.append(config)
    return config


# Nothing of the former timeline counts


@pytest.mark.parametrize("written", [False, True])
def test_a_device_that_said_on_before_the_restore_is_read_anew(written: bool):
    """It does not name its host, and was rewired since to a machine that is none; the host booted since, and nobody knows."""
    play = playing(5)
    play.advance(2_000)
    assert play.host_record("h5").on_devices != ()
    play.hosts["h5"].boot_again()
    host = runs_v1_unseen(play, "h5")
    host.bmc_strikes, host.disks_change = PlayedHost(9), written
    restored(play)
    play.advance(60_000)
    shuts_down(play, "h1")
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == [] and play.verdict("h5") is not Verdict.DEAD_PROVEN


def test_what_a_device_said_in_this_timeline_counts_for_its_next_leader():
    play = playing(5)
    play.advance(2_000)
    restored(play)
    play.advance(5_000)
    on = play.host_record("h5").on_devices
    assert on != (), "it was read again, for the host beats"
    next_leader(play)
    assert play.host_record("h5").on_devices == on


def test_a_storage_fence_of_one_boot_does_not_answer_for_the_host():
    """P3: it is about that boot's addresses and nonces, and the host may be in another."""
    play = h2_is_dead(named(playing(5)))
    play.forget_commands()
    lives_unseen(play)
    runs_v1_unseen(play, "h2")
    restored(play)
    play.hosts["h1"].cut()
    play.advance(60_000)
    incident = play.host_record("h2").incident
    assert incident is not None
    proof = Proof(
        kind=ProofKind.STORAGE_FENCE, host_id=HostId("h2"), boot=incident.boot, at_ms=play.now
    )
    play.inbox.append(ProofFound(proof=proof))
    play.advance(60_000)
    assert play.sent(StartCommand) == [] and play.verdict("h2") is Verdict.DEAD_UNPROVEN


# Its disks are all disks


@pytest.mark.parametrize("on_record", [False, True])
def test_the_disks_of_all_vms_speak_for_it(on_record: bool):
    """Its device says *off* and lies; v1, of which the records know nothing there, is written on."""
    play = named(playing(5, vms=[vm("v1"), vm("v2"), vm("v3")]))
    if on_record:
        play.run("v3", "h5")
    play.hosts["h5"].boot_again()
    host = runs_v1_unseen(play, "h5")
    host.disks_change = host.bmc_does_nothing = True
    host.bmc_state = PowerState.OFF
    play.forget_commands()
    restored(play)
    play.hosts["h1"].cut()
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == [] and "h5" not in play.offs()
    assert play.why("h5") == ["host.dead.unproven", "fence.blocked.disks_change"]
    asked = [one for one in play.sent(Investigate) if isinstance(one, Investigate)]
    assert "v1" in {vm_id for one in asked if one.subject == "h5" for vm_id in one.vms}


def test_where_they_keep_vms_down_somebody_is_told_and_may_give_the_word():
    """h4 is cut off and runs v2, h5 is dead: whose writes they are nobody can say, and v1 waits for both."""
    play = named(playing(6))
    h4, h5 = play.hosts["h4"], play.hosts["h5"]
    h4.hang()
    h4.running[VmId("v2")] = play.hosts["h2"].running.pop(VmId("v2"))
    h5.cut()
    h4.disks_change = h5.disks_change = True
    restored(play)
    play.advance(60_000)
    assert play.verdict("h5") is Verdict.SUSPECT, "nobody waits for it"
    gives_back(play, "h1")
    play.advance(LONG_MS)
    assert play.offs() == [] and play.sent(StartCommand) == []
    assert play.told().count("fence.held_by_disks") == 2
    waits = ["recovery.waiting.inventory", "recovery.waiting.restored", "recovery.waiting.restored"]
    assert play.why_vm("v1") == waits
    incident = play.host_record("h5").incident
    assert incident is not None
    word = DeathConfirmed(
        host_id=h5.id,
        boot=incident.boot,
        incident=incident.number,
        by="admin",
        force_reason="its power supply burnt",
    )
    play.inbox.append(word)
    h4.beating = h4.answers_neighbours = True
    play._greet(h4)
    seen(play, "h4", "v2", incarnation=1)
    play.until(lambda: play.where("v1") != [], within_ms=60_000)
    assert play.where("v2") == ["h4"] and play.offs() == []


def test_disks_that_a_living_host_writes_are_no_sign_of_it():
    play = named(playing(5))
    restored(play)
    play.advance(2_000)
    play.hosts["h5"].hang()
    play.advance(10_000)
    asked = [one for one in play.sent(Investigate) if isinstance(one, Investigate)]
    last = [one for one in asked if one.subject == "h5"][-1]
    assert last.vms == (), "h1 and h2 run v1 and v2"


# One that the records never heard of


def test_a_host_that_the_records_never_heard_of_is_named_with_its_way_out():
    play = named(playing(5))
    _another(play, untold=True)
    play.notices.clear()
    restored(play)
    play.hosts["h1"].cut()
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.missing"]
    assert play.told().count("host.missing_since_restore") == 1
    next_leader(play, "h6")
    play.advance(60_000)
    assert play.told().count("host.missing_since_restore") == 1, "once in a timeline"
    play.inbox.append(HostRemoved(host_id=HostId("h6")))
    play.until(lambda: play.where("v1") != [], within_ms=5_000)


def test_its_device_may_be_the_one_that_reads_off():
    """P1: the outlets of h5 and h6 were swapped since the backup, which knows no boot of h6. Neither names its host."""
    play = playing(5)
    _another(play, untold=True)
    level = PowerLevel(feeds=(PowerFeed(device=PowerDeviceId("h6-power1")),))
    play.configs[-1] = msgspec.structs.replace(play.configs[-1], power=(level,))
    h5, h6 = play.hosts["h5"], play.hosts["h6"]
    h6.powered = True
    h5.bmc_strikes, h6.bmc_strikes = h6, h5
    restored(play)
    play.advance(5_000)
    assert play.host_record("h5").on_devices != (), "h6 is on, and h5 beats"
    gives_back(play, "h1")
    runs_v1_unseen(play, "h5")
    play.advance(60_000)
    assert play.offs() != [] and set(play.offs()) == {"h5"} and not h6.powered
    assert play.verdict("h5") is Verdict.DEAD_UNPROVEN
    h6.boot_again()
    play._greet(h6)
    play.advance(LONG_MS)
    assert play.sent(StartCommand) == [] and "fence.failed" in play.told()
    assert "recovery.waiting.restored" in play.why_vm("v1")


def test_a_word_about_a_removed_host_counts_when_it_is_added_again():
    """It was given in this timeline, in which the host never told."""
    play = named(playing(5))
    play.hosts["h2"].bmc_dead = True
    play.hosts["h2"].hang()
    restored(play)
    play.inbox.append(HostRemoved(host_id=HostId("h2")))
    play.tick()
    play.hosts["h2"].cut()  # so the operator is right
    incident = play.host_record("h2").incident
    assert incident is not None
    play.inbox.append(
        DeathConfirmed(
            host_id=HostId("h2"),
            boot=incident.boot,
            incident=incident.number,
            by="admin",
            force_reason="it is in pieces",
        )
    )
    play.until(lambda: play.where("v2") != [], within_ms=60_000)
    play.inbox.append(HostConfigured(host=play.configs[1]))
    play.tick()
    assert play.verdict("h2") is Verdict.DEAD_PROVEN and "host.judged_anew" not in play.told()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") != [], within_ms=60_000)
