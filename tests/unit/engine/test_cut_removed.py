"""The storage fence beside the operator's word about a host that is configured no more: repeated until it was read back (P6, ADR 20)."""

from ceph_plays import C1, fences, lifts, playing
from engine_driver import Play

from virtha.engine.engine import Engine
from virtha.engine.events import DeathConfirmed, HoldChanged, HostRemoved
from virtha.engine.storage_fence import HELPER_MS
from virtha.model.facts import Result
from virtha.model.ids import HostId
from virtha.model.policy import FencingPolicy, Policy

H1 = HostId("h1")


def removed(*, answers: Result | None) -> Play:
    """h1 is cut off with its VM, removed, and the operator says that it is dead. ``answers``: of helpers."""
    play = playing(policy=Policy(fencing=FencingPolicy()))
    play.hosts["h1"].cut()
    for host in play.hosts.values():
        host.fences = answers
    play.inbox.append(HostRemoved(host_id=H1))
    play.configs = [one for one in play.configs if one.host_id != H1]
    play.advance(2_000)
    incident = play.host_record("h1").incident
    assert incident is not None and fences(play) == []
    play.inbox.append(
        DeathConfirmed(
            host_id=H1,
            boot=incident.boot,
            incident=incident.number,
            by="admin",
            force_reason="I pulled its plug",
        )
    )
    play.tick()
    return play


def works_again(play: Play) -> None:
    for host in play.hosts.values():
        host.fences = Result.OK


def is_shut_out(play: Play) -> bool:
    return (C1, "10.0.0.1") in play.shut_out and bool(play.host_record("h1").cuts[0].epoch)


def test_a_helper_that_fails_is_followed_by_others_until_it_was_read_back():
    play = removed(answers=Result.FAILED)
    assert len(fences(play)) == 1
    play.advance(3 * HELPER_MS)
    asked = [one.helper for one in fences(play)]
    assert len(asked) >= 4 and set(asked) == {"h2", "h3", "h4"}
    assert play.told().count("fence.storage.failed") == 1
    works_again(play)
    play.until(lambda: is_shut_out(play))
    left = [one for one in play.notices if one.code == "fence.storage.left"]
    assert [one.fields["addresses"] for one in left] == ["10.0.0.1"]
    play.forget_commands()
    play.advance(3 * HELPER_MS)
    assert fences(play) == [] and lifts(play) == []


def test_one_that_does_not_answer_is_followed_by_another_after_its_time():
    play = removed(answers=None)
    play.advance(HELPER_MS - 1_000)
    assert len(fences(play)) == 1
    works_again(play)
    play.until(lambda: is_shut_out(play), within_ms=10_000)
    first, second = fences(play)
    assert first.helper != second.helper and first.order_id != second.order_id


def test_a_next_leader_goes_on_with_it_and_one_after_that_leaves_it():
    play = removed(answers=None)
    works_again(play)
    play.new_leader()
    play.until(lambda: is_shut_out(play), within_ms=60_000)
    play.forget_commands()
    play.new_leader()
    play.advance(3 * HELPER_MS)
    assert fences(play) == []


def test_one_that_is_added_again_is_looked_at_like_any_other():
    """By its own session, or its next boot: that it lives ends what the word began, as far as that can be ended."""
    play = removed(answers=None)
    play.configs.append(play._config(play.hosts["h1"]))
    play._configure()
    play.hosts["h1"].boot_again()
    play._greet(play.hosts["h1"])
    works_again(play)
    play.until(lambda: lifts(play) != [])
    play.until(lambda: play.host_record("h1").cuts == ())
    assert play.shut_out == set()


def test_a_replay_goes_on_with_it():
    play = removed(answers=None)
    snapshot = play.engine.snapshot()
    assert set(snapshot.cut_removed) == {H1}
    play.engine = Engine.resumed(snapshot)
    works_again(play)
    play.until(lambda: is_shut_out(play), within_ms=60_000)
    assert len(fences(play)) == 2


def test_a_hold_is_no_objection_to_what_the_operator_ordered():
    play = removed(answers=None)
    play.inbox.append(HoldChanged(reason="work"))
    works_again(play)
    play.until(lambda: is_shut_out(play), within_ms=60_000)
