"""After a restore the records may be older than the hosts (M2): nobody starts anything before each has told, or is
proven dead; whose writes those of a VM with two holders are (J3); when a host that was struck is a target again (J7)."""

import msgspec
import pytest
from engine_driver import TICK_MS, Play, vm
from engine_review_driver import named, playing, released, seen

from virtha.engine.events import DeathConfirmed, HostRemoved, Investigate, SaveHost, StartCommand
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.engine.struck import strikes_until_ms
from virtha.engine.targets import struck_until_ms
from virtha.model.ids import HostId
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("F4", "F9")


def restored(play: Play, *away: str) -> None:
    """Another leader begins on a restored database; ``away`` are silent by then."""
    for name in away:
        play.hosts[name].hang()
    play.configs = [msgspec.structs.replace(one, untold=True) for one in play.configs]
    play.new_leader()
    play.configs = [msgspec.structs.replace(one, untold=False) for one in play.configs]


def test_a_silent_host_holds_every_start_after_a_restore():
    """h2 may run v1 by what the lost records said."""
    play = named(playing(5, levels=1))
    play.hosts["h2"].bmc_dead = True
    restored(play, "h2")
    play.hosts["h1"].cut()
    play.advance(300_000)
    assert play.verdict("h2") is Verdict.DEAD_UNPROVEN
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.inventory", "recovery.waiting.restored"]
    assert play.engine.explain_vm(play.vms[0].vm_id)[0].fields["hosts"] == "h2"


def test_without_a_restore_a_silent_host_is_waited_for_vm_by_vm():
    play = named(playing(5))
    play.hosts["h2"].bmc_dead = True
    play.hosts["h2"].hang()
    play.new_leader()
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") not in ([], ["h1"]))


def test_its_proof_ends_the_wait():
    play = named(playing(5))
    restored(play, "h2")
    play.hosts["h1"].cut()
    play.until(lambda: play.where("v1") not in ([], ["h1"]))
    assert "h2" in play.offs()


def test_the_operators_word_ends_the_wait():
    play = named(playing(5))
    play.hosts["h2"].bmc_dead = True
    restored(play, "h2")
    play.hosts["h1"].cut()
    play.advance(120_000)
    play.hosts["h2"].cut()  # so the operator is right
    incident = play.host_record("h2").incident
    assert incident is not None and play.sent(StartCommand) == []
    word = DeathConfirmed(
        host_id=HostId("h2"), boot=incident.boot, incident=incident.number, by="admin"
    )
    play.inbox.append(word)
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=5_000)


def test_removing_it_ends_the_wait():
    play = named(playing(5, vms=[vm("v1")]))
    play.hosts["h2"].bmc_dead = True
    restored(play, "h2")
    play.hosts["h1"].cut()
    play.advance(120_000)
    play.inbox.append(HostRemoved(host_id=HostId("h2")))
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=5_000)


def test_a_start_that_nobody_knows_of_is_waited_for_until_its_grant_is_over():
    """The list that h2 tells may be from before it began what the lost server ordered."""
    play = playing(4)
    restored(play)
    began_ms = play.now
    play.hosts["h1"].cut()
    play.until(lambda: play.sent(StartCommand) != [])
    assert play.now - began_ms >= play.policy.recovery.attempt_ms
    play.advance(10_000)


def test_what_it_reports_in_that_time_counts():
    play = playing(4)
    restored(play)
    play.hosts["h1"].cut()
    play.advance(8_000)
    seen(play, "h3", "v1", VmState.STARTING, incarnation=5)
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h3"}
    released(play, "h3", "v1", 5)
    play.tick()
    assert play.vm_record("v1").stage is not VmStage.STARTING


# Whose writes are they? (J3)


def watched(play: Play, host: str) -> set[str]:
    last = [one for one in play.sent(Investigate) if one.subject == host][-1]
    assert isinstance(last, Investigate)
    return set(last.vms)


def test_disks_that_another_host_writes_are_no_sign_of_a_dead_one():
    play = playing(4, vms=[vm("v1"), vm("v2"), vm("v3")])
    play.run("v3", "h1")
    seen(play, "h3", "v1", incarnation=2)
    play.tick()
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h1", "h3"}
    play.hosts["h1"].cut()
    play.until(lambda: play.host_record("h1").incident is not None)
    assert watched(play, "h1") == {"v3"}


@pytest.mark.parametrize("state", [VmState.PAUSED, VmState.UNKNOWN, VmState.STARTING])
def test_a_copy_elsewhere_that_may_not_write_explains_no_change(state: VmState):
    play = playing(4)
    seen(play, "h3", "v1", state, incarnation=2)
    play.tick()
    play.hosts["h1"].cut()
    play.until(lambda: play.host_record("h1").incident is not None)
    assert watched(play, "h1") == {"v1"}


def test_what_a_host_that_is_silent_too_said_explains_no_change():
    play = playing(4)
    seen(play, "h3", "v1", incarnation=2)
    play.tick()
    play.hosts["h3"].hang()
    play.hosts["h1"].cut()
    play.until(lambda: play.host_record("h1").incident is not None)
    play.advance(2_000)
    assert "v1" in watched(play, "h1")


# When a host that was struck is a target again (J7)


@pytest.mark.parametrize("other_leader", [False, True])
def test_a_host_that_was_struck_takes_no_vm_while_the_order_may_still_be_under_way(
    other_leader: bool,
):
    play = playing(2, vms=[vm("v1"), vm("v2", memory_bytes=8 << 30)])
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    ordered_ms = play.now
    play.until(lambda: "host.proven_dead" in play.told())
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.tick()
    if other_leader:
        play.new_leader()
    policy = play.policy
    may_take_ms = policy.detection.evidence_max_age_ms + policy.fencing.order_deadline_ms
    play.until(lambda: play.sent(StartCommand) != [], within_ms=60_000)
    assert play.now - ordered_ms >= may_take_ms
    cluster = play.engine._cluster
    assert struck_until_ms(cluster, cluster.hosts[HostId("h1")]) <= play.now


def test_an_order_that_can_strike_no_more_is_forgotten_and_not_before():
    """Else each look at a host that was fenced once would be a close one, for ever."""
    play = playing()
    play.hosts["h1"].cut()
    play.until(lambda: play.offs() == ["h1"])
    ordered_ms = play.now
    play.until(lambda: "host.proven_dead" in play.told())
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.tick()
    cluster = play.engine._cluster
    until_ms = struck_until_ms(cluster, cluster.hosts[HostId("h1")])
    assert until_ms >= strikes_until_ms(cluster, ordered_ms)
    while play.now < until_ms - TICK_MS:
        play.tick()
        assert play.host_record("h1").struck_ms, "it may still strike"
    play.advance(1_000)
    assert play.host_record("h1").struck_ms == 0
    saved = play.saved["host h1"]
    assert isinstance(saved, SaveHost) and saved.record.struck_ms == 0
