"""What a person orders is known to the engine before it goes out (G1): nothing else starts, and nobody is told of a find."""

import pytest
from engine_driver import Play
from engine_review_driver import playing, released, seen, starting

from virtha.engine.events import CopyGranted, HoldChanged, StartCommand
from virtha.model.ids import BootId, Incarnation, VmId
from virtha.model.vm import PossibleCopy

pytestmark = pytest.mark.req("F4", "X1")


def granted(play: Play, host: str, vm_id: str, incarnation: int, *, boot: str = "") -> None:
    play.inbox.append(
        CopyGranted(
            host_id=play.hosts[host].id,
            boot=BootId(boot) or play.hosts[host].boot,
            vm_id=VmId(vm_id),
            incarnation=Incarnation(incarnation),
        )
    )


def test_a_start_by_hand_is_held_before_it_runs_and_is_no_find():
    play = Play(3)
    granted(play, "h2", "v1", 1)
    play.tick()
    copy = PossibleCopy(
        host_id=play.hosts["h2"].id, incarnation=Incarnation(1), boot=play.hosts["h2"].boot
    )
    assert play.vm_record("v1").copies == (copy,)
    play.run("v1", "h2")
    assert "vm.found" not in play.told()


def test_what_nobody_ordered_is_a_find():
    play = Play(3)
    granted(play, "h2", "v1", 1)
    seen(play, "h3", "v1", incarnation=1)
    play.tick()
    assert play.told().count("vm.found") == 1


def test_a_vm_that_waits_for_its_start_is_left_to_the_person_who_starts_it():
    play = playing()
    play.inbox.append(HoldChanged(reason="work"))
    play.tick()
    play.hosts["h1"].cut()
    released(play, "h1", "v1", 1)
    play.tick()
    granted(play, "h2", "v1", 2)
    play.inbox.append(HoldChanged(reason=None))
    play.advance(60_000)
    assert play.sent(StartCommand) == []
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {"h2"}


def test_a_start_that_is_under_way_is_taken_back():
    play = playing()
    start = starting(play)
    other = next(name for name in sorted(play.hosts) if name not in ("h1", start.host_id))
    granted(play, other, "v1", int(start.incarnation) + 1)
    play.advance(60_000)
    assert len(play.sent(StartCommand)) == 1
    assert {copy.host_id for copy in play.vm_record("v1").copies} == {other}


def test_its_host_dies_and_it_is_lost_like_any_other():
    play = Play(4)
    granted(play, "h2", "v1", 1)
    play.tick()
    play.hosts["h2"].cut()
    play.until(lambda: play.where("v1") not in ([], ["h2"]))


def test_a_grant_of_a_boot_that_is_over_holds_nothing():
    play = Play(3)
    former = play.hosts["h2"].boot
    play.hosts["h2"].boot_again()
    play._greet(play.hosts["h2"])
    play.tick()
    granted(play, "h2", "v1", 1, boot=former)
    play.tick()
    assert play.vm_record("v1").copies == ()


def test_one_that_never_ran_is_told_of():
    play = Play(3)
    granted(play, "h2", "v1", 1)
    play.tick()
    released(play, "h2", "v1", 1)
    play.tick()
    assert play.why_vm("v1") == ["recovery.not_due.given_back"]
