"""A session whose times change while it stands: both ends, old peers, and times that make no sense."""

import pytest
from session_pair import Pair, make_hello, make_host, make_welcome

from virtha.model.time import Millis
from virtha.wire.codec import encode_message
from virtha.wire.messages import PACE_FEATURE, Pace, PeerRole

QUICK = Pace(beat_interval_ms=500, silence_ms=3_000)


def paced_pair(role: PeerRole) -> Pair:
    pair = Pair(role, hello=make_hello(role, features=(PACE_FEATURE,)))
    pair.at_host.clear()
    return pair


@pytest.mark.req("X3", "L7")
@pytest.mark.parametrize("role", PeerRole)
def test_both_ends_go_by_the_new_times_and_only_a_guardian_is_told_of_its_beats(
    role: PeerRole,
) -> None:
    pair = paced_pair(role)
    pair.now = Millis(100)
    timings = pair.host.timing, pair.server.timing
    pair.server.pace(QUICK)
    pair.move()
    assert pair.at_host == ([QUICK] if role is PeerRole.GUARDIAN else [])
    assert (pair.host.timing, pair.server.timing) == (timings[0] + 1, timings[1] + 1)
    assert pair.host.next_timer() == 100 + 1_000
    assert pair.server.next_timer() == 100 + 1_200
    for session in (pair.host, pair.server):
        due = Millis(0)
        while due < 60_000 and (timer := session.next_timer()) is not None:
            due = timer
            session.handle_timer(due)
        assert due == 100 + 3_000, "three seconds of silence end it now"


@pytest.mark.req("L7")
@pytest.mark.parametrize("heard_ms_ago", range(0, 1_667, 119))
def test_a_host_that_was_to_ask_more_seldom_is_not_given_up(heard_ms_ago: int) -> None:
    """1,666 ms after our last word, which a silence of 1 s would not live to see."""
    pair = paced_pair(PeerRole.GUARDIAN)
    pair.now = Millis(heard_ms_ago)
    pair.server.pace(Pace(beat_interval_ms=200, silence_ms=1_000))
    pair.server.handle_timer(pair.now)
    pair.move()
    for _ in range(100):
        due = min(timer for s in (pair.host, pair.server) if (timer := s.next_timer()) is not None)
        pair.now = max(pair.now, due)
        for session in (pair.host, pair.server):
            session.handle_timer(pair.now)
        pair.move()
    assert pair.host.closed is pair.server.closed is None
    assert pair.now > 30_000


def test_what_was_told_is_not_told_again() -> None:
    welcome = make_welcome(beat_interval_ms=500, silence_ms=3_000)
    pair = Pair(
        PeerRole.GUARDIAN,
        hello=make_hello(PeerRole.GUARDIAN, features=(PACE_FEATURE,)),
        welcome=welcome,
    )
    pair.server.pace(QUICK)
    assert pair.server.data_to_send() == b""
    pair.server.pace(Pace(beat_interval_ms=1_000, silence_ms=5_000))
    pair.server.pace(Pace(beat_interval_ms=1_000, silence_ms=5_000))
    pair.move()
    assert pair.at_host[1:] == [Pace(beat_interval_ms=1_000, silence_ms=5_000)]


def test_a_host_that_would_refuse_the_message_never_gets_it() -> None:
    pair = Pair(PeerRole.GUARDIAN)
    pair.server.pace(QUICK)
    assert pair.server.data_to_send() == b""


def test_before_the_welcome_and_after_the_end_nothing_is_sent() -> None:
    pair = paced_pair(PeerRole.GUARDIAN)
    pair.server.close()
    pair.server.data_to_send()
    pair.server.pace(QUICK)
    assert pair.server.data_to_send() == b""


@pytest.mark.parametrize(
    ("beat_interval_ms", "silence_ms"), [(0, 3_000), (-1, 3_000), (4_000, 3_000), (500, 3_600_001)]
)
def test_times_that_make_no_sense_end_the_session(beat_interval_ms: int, silence_ms: int) -> None:
    for established in (True, False):
        session = paced_pair(PeerRole.GUARDIAN).host if established else make_host()
        told = {"beat_interval_ms": beat_interval_ms, "silence_ms": silence_ms}
        message = Pace(**told) if established else make_welcome(**told)
        assert session.receive_data(encode_message(message), Millis(0)) == ()
        assert session.closed is not None and session.closed.code == "wire.refused.malformed"
        assert "make no sense" in session.closed.message
