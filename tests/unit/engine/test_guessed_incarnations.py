"""A survey names VMs and no incarnations: what it finds is a copy of a guessed one, until its host tells which (M2, G1). The
guess goes with what is told, in whatever boot and under whatever leader; and who holds a VM that is down is told (X1)."""

import pytest
from engine_driver import Play, vm
from engine_review_driver import playing, released, seen

from virtha.engine.events import CopyGranted, CopyReleased, StartCommand, VmSeen
from virtha.engine.records import OrderId, VmStage
from virtha.model.facts import ReleaseCause
from virtha.model.ids import Incarnation, VmId
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("F4", "X1")


def surveyed(*, known: int = 3) -> Play:
    """h4 lists v1, of which the records know incarnation ``known``, as released by h1."""
    play = playing(vms=[vm("v1"), vm("v2")])
    seen(play, "h1", "v1", incarnation=known)
    released(play, "h1", "v1", 1)
    released(play, "h1", "v1", known)
    play.hosts["h4"].running[VmId("v1")] = Incarnation(known)
    play.survey(play.hosts["h4"])
    play.tick()
    assert copies(play) == {("h4", known)}
    return play


def copies(play: Play) -> set[tuple[str, int]]:
    return {(one.host_id, one.incarnation) for one in play.vm_record("v1").copies}


def given_back(play: Play, incarnation: int) -> None:
    play.hosts["h4"].running.clear()
    play.inbox.append(
        CopyReleased(
            host_id=play.hosts["h4"].id,
            boot=play.hosts["h4"].boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(incarnation),
            cause=ReleaseCause.HOST_SHUTDOWN,
        )
    )


@pytest.mark.parametrize("told", [2, 3, 5])
def test_the_guess_gives_way_to_what_the_host_tells(told: int):
    play = surveyed()
    seen(play, "h4", "v1", incarnation=told)
    play.tick()
    assert copies(play) == {("h4", told)}
    assert play.vm_record("v1").incarnation == max(told, 3)
    assert play.why_vm("v1") == []
    given_back(play, told)
    play.until(lambda: play.where("v1") not in ([], ["h4"]))


def test_also_under_a_later_leader():
    play = surveyed()
    seen(play, "h4", "v1", incarnation=5)
    play.inbox.clear()
    play.new_leader()
    assert copies(play) == {("h4", 5)}


def test_also_where_it_is_down_by_then_and_may_be_restarted_there():
    play = surveyed()
    seen(play, "h4", "v1", VmState.DOWN, incarnation=5)
    play.tick()
    assert copies(play) == {("h4", 5)}
    assert play.why_vm("v1") == ["recovery.waiting.holder"]
    assert play.sent(StartCommand) == []
    given_back(play, 5)
    play.until(lambda: play.where("v1") not in ([], ["h4"]))


def test_also_where_it_awaits_a_copy():
    play = surveyed()
    play.inbox.append(
        VmSeen(
            host_id=play.hosts["h4"].id,
            boot=play.hosts["h4"].boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(2),
            state=VmState.STARTING,
            awaited_by=OrderId("1.77"),
        )
    )
    play.tick()
    assert copies(play) == {("h4", 2)}


def test_a_release_of_another_incarnation_leaves_a_holder_and_a_reason():
    """Which one its survey saw is not known; nothing is started beside it, and somebody is told."""
    play = surveyed()
    given_back(play, 2)
    play.advance(30_000)
    assert copies(play) == {("h4", 3)}
    assert play.vm_record("v1").stage is VmStage.SETTLED
    assert play.sent(StartCommand) == []
    assert play.why_vm("v1") == ["recovery.waiting.holder"]
    assert play.engine.explain_vm(VmId("v1"))[0].fields == {"hosts": "h4"}


def test_what_was_granted_is_no_guess():
    play = surveyed()
    play.inbox.append(
        CopyGranted(
            host_id=play.hosts["h4"].id,
            boot=play.hosts["h4"].boot,
            vm_id=VmId("v1"),
            incarnation=Incarnation(3),
        )
    )
    seen(play, "h4", "v1", incarnation=2)
    play.tick()
    assert copies(play) == {("h4", 2), ("h4", 3)}


def test_what_another_host_tells_ends_no_guess():
    play = surveyed()
    seen(play, "h3", "v1", VmState.STARTING, incarnation=4)
    play.hosts["h3"].running.clear()
    play.tick()
    assert copies(play) == {("h3", 4), ("h4", 3)}
