"""A host gives its last copy back (P5): whether the VM starts elsewhere follows from what the host says of the end."""

import pytest
from engine_driver import Play, vm
from engine_review_driver import playing, seen

from virtha.engine.events import CopyReleased, HoldChanged, StartCommand, VmConfigured
from virtha.engine.records import GivenBack, VmStage
from virtha.engine.targets import LEAVING_MS
from virtha.model.facts import ReleaseCause
from virtha.model.ids import HostId, Incarnation, VmId
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("F4", "X1")

STAYS_DOWN = (ReleaseCause.INTENDED, ReleaseCause.ENDED, ReleaseCause.NEVER_RAN)


def gives_back(
    play: Play, vm_id: str, cause: ReleaseCause | None, *, host: str = "h1", incarnation: int = 1
) -> None:
    played = play.hosts[host]
    played.running.pop(VmId(vm_id), None)
    play.inbox.append(
        CopyReleased(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId(vm_id),
            incarnation=Incarnation(incarnation),
            cause=cause,
        )
    )


def test_a_host_that_is_shut_down_gives_its_vms_to_others_at_once():
    play = playing()
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=1_000)
    assert play.vm_record("v1").home == HostId("h1")
    assert play.vm_record("v1").given_back is None


def test_nothing_is_given_to_the_host_that_goes_down():
    """All the others are full: it waits, and says so, rather than go back there."""
    play = playing(2, vms=[vm("v1"), vm("v2", memory_bytes=8 << 30)])
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1")[0] == "recovery.blocked.no_capacity"
    assert play.engine.explain_vm(VmId("v1"))[1].fields["why"] == "leaving"


def test_a_shutdown_that_was_called_off_is_forgotten():
    play = Play(1, vms=[vm("v1")])
    play.run("v1", "h1")
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.advance(LEAVING_MS - 1_000)
    assert play.sent(StartCommand) == []
    play.until(lambda: play.where("v1") == ["h1"], within_ms=5_000)


def test_a_host_that_comes_up_again_takes_vms_again():
    play = Play(1, vms=[vm("v1")])
    play.run("v1", "h1")
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.tick()
    play.hosts["h1"].cut()
    play.advance(20_000)
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    play.until(lambda: play.where("v1") == ["h1"], within_ms=60_000)


@pytest.mark.parametrize("cause", [*STAYS_DOWN, None])
def test_what_was_meant_stays_down_and_the_engine_itself_says_why(cause: ReleaseCause | None):
    play = playing()
    gives_back(play, "v1", cause)
    play.advance(60_000)
    assert play.where("v1") == []
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]
    play.hosts["h1"].cut()
    play.new_leader()
    play.advance(120_000)
    assert play.where("v1") == []
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]
    assert play.vm_record("v1").given_back == GivenBack(host_id=HostId("h1"), cause=cause)


@pytest.mark.parametrize("cause", STAYS_DOWN)
def test_a_guest_that_shut_down_while_its_host_was_thought_dead_is_not_started_again(
    cause: ReleaseCause,
):
    play = playing(levels=0)
    play.hosts["h1"].hang()
    play.until(lambda: play.vm_record("v1").stage is VmStage.LOST)
    gives_back(play, "v1", cause)
    play.advance(60_000)
    assert play.where("v1") == []
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]


@pytest.mark.parametrize("cause", [ReleaseCause.HOST_SHUTDOWN, ReleaseCause.HOST_BOOTED])
def test_one_that_is_still_wanted_starts_elsewhere_though_its_host_was_thought_dead(
    cause: ReleaseCause,
):
    play = playing(levels=0)
    play.hosts["h1"].hang()
    play.until(lambda: play.vm_record("v1").stage is VmStage.LOST)
    gives_back(play, "v1", cause)
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=5_000)


def test_the_word_about_a_former_copy_starts_nothing():
    play = playing()
    seen(play, "h1", "v1", VmState.RUNNING, incarnation=3)
    play.tick()
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN, incarnation=1)
    play.hosts["h1"].running[VmId("v1")] = Incarnation(3)
    play.advance(10_000)
    assert play.sent(StartCommand) == []


def test_a_copy_elsewhere_keeps_it_from_being_started():
    play = playing()
    seen(play, "h3", "v1", VmState.PAUSED)
    play.tick()
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.advance(60_000)
    assert play.sent(StartCommand) == []


def test_without_ha_it_stays_down():
    play = playing(vms=[vm("v1", ha=False), vm("v2")])
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.advance(30_000)
    assert play.where("v1") == [] and play.sent(StartCommand) == []


def test_on_hold_it_waits_and_then_starts():
    play = playing()
    play.inbox.append(HoldChanged(reason="work"))
    play.tick()
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.advance(30_000)
    assert play.why_vm("v1") == ["recovery.blocked.hold"]
    play.inbox.append(HoldChanged(reason=None))
    play.until(lambda: play.where("v1") not in ([], ["h1"]), within_ms=5_000)


def test_said_again_by_a_restarted_agent_it_changes_nothing():
    """Agents repeat their releases when they start: the host that lives on stays a target."""
    play = playing()
    gives_back(play, "v1", ReleaseCause.INTENDED)
    play.tick()
    gives_back(play, "v1", ReleaseCause.HOST_SHUTDOWN)
    play.advance(10_000)
    assert play.sent(StartCommand) == []
    play.inbox.append(VmConfigured(vm=vm("v1")))
    play.advance(1_000)
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]
