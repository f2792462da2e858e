"""A policy that asks for beats more often: what its hosts did before says nothing against them, nor is it forgotten."""

import pytest
from engine_driver import Play
from engine_review_driver import playing
from msgspec.structs import replace
from test_disks_watched_anew import Readers

from virtha.engine.events import PolicyChanged
from virtha.engine.machine import Verdict
from virtha.model.policy import Policy

SELDOM = Policy()
OFTEN = replace(SELDOM, detection=replace(SELDOM.detection, beat_interval_ms=500))


def silent_since(ms: int) -> Play:
    play = playing()
    play.hosts["h1"].hang()
    play.advance(ms)
    return play


@pytest.mark.req("F9")
def test_the_silence_of_before_does_not_count_and_that_of_since_does() -> None:
    times = OFTEN.detection
    play = silent_since(times.suspect_after_ms - 200)
    play.inbox.append(PolicyChanged(policy=OFTEN))
    play.advance(times.suspect_after_ms - 200)
    assert play.verdict("h1") is Verdict.AGENT_DOWN, "its sessions have ended; that is all"
    play.advance(400)
    assert play.verdict("h1") is Verdict.SUSPECT
    play.until(lambda: play.offs() == ["h1"])


@pytest.mark.req("F9")
def test_beats_that_may_come_more_seldom_change_no_count() -> None:
    play = silent_since(SELDOM.detection.suspect_after_ms - 200)
    slower = replace(SELDOM, detection=replace(SELDOM.detection, beat_interval_ms=1_200))
    play.inbox.append(PolicyChanged(policy=slower))
    play.advance(400)
    assert play.verdict("h1") is Verdict.SUSPECT


@pytest.mark.req("F2")
def test_a_write_before_the_change_still_counts() -> None:
    """It came after the last sign: who wrote was alive, and no reader has seen quiet since."""
    play = playing()
    readers = Readers(play)
    readers.changed = True
    play.hosts["h1"].hang()
    play.until(lambda: "host.suspect.disks_change" in play.why("h1"))
    readers.silent = True
    play.inbox.append(PolicyChanged(policy=OFTEN))
    play.advance(600_000)
    assert play.why("h1") == ["host.suspect.disks_change"]
    assert play.offs() == []
