"""How a host answers: a table of sightings, and the stories behind the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.model.host import HostState
from virtha.model.time import Millis
from virtha.server.presence import Observer, PresenceTimes, Sighting, judge, observe

TIMES = PresenceTimes(agent_grace_ms=2_000, silence_ms=5_000, reconnect_ms=10_000, stall_ms=1_500)
UP, DOWN = HostState.UP, HostState.AGENT_DOWN
GONE, NEVER = HostState.UNREACHABLE, HostState.NEVER_SEEN
LONG_AGO = Observer(began=Millis(0), stepped=Millis(99_500))
NOW = Millis(100_000)


def sighting(agent: int | None, beat: int | None, *, connected: bool = False) -> Sighting:
    """Ages in milliseconds before NOW."""
    return Sighting(
        agent_connected=connected,
        agent_seen=None if agent is None else Millis(NOW - agent),
        beat_received=None if beat is None else Millis(NOW - beat),
    )


@pytest.mark.parametrize(
    ("before", "seen", "after"),
    [
        # an agent session is all that it takes
        (NEVER, sighting(0, None, connected=True), UP),
        (GONE, sighting(0, 60_000, connected=True), UP),
        (DOWN, sighting(0, 100, connected=True), UP),
        # the guardian beats, the agent does not: down, but only after its grace
        (UP, sighting(1_999, 100), UP),
        (UP, sighting(2_000, 100), DOWN),
        (UP, sighting(60_000, 4_999), DOWN),
        (GONE, sighting(60_000, 100), DOWN),
        (GONE, sighting(None, 100), DOWN),
        (NEVER, sighting(None, 100), DOWN),
        # neither: unreachable, but only after the silence
        (UP, sighting(4_999, 60_000), UP),
        (UP, sighting(5_000, 5_000), GONE),
        (DOWN, sighting(60_000, 5_000), GONE),
        (UP, sighting(4_999, None), UP),
        (UP, sighting(5_000, None), GONE),
        (GONE, sighting(60_000, 60_000), GONE),
        # nothing in this term, and the term is old: an earlier term's word counts no more
        (UP, sighting(None, None), GONE),
        (DOWN, sighting(None, None), GONE),
        # a host that joined and never came is not called lost
        (NEVER, sighting(None, None), NEVER),
    ],
)
def test_table(before: HostState, seen: Sighting, after: HostState) -> None:
    assert judge(before, seen, LONG_AGO, NOW, TIMES) is after


def test_a_server_just_started_condemns_nobody_before_hosts_could_reconnect() -> None:
    """The server restarts; its hosts back off up to 10 s. Judged at once all would be 'unreachable'."""
    observer = Observer(began=Millis(0), stepped=Millis(0))
    nothing = Sighting(agent_connected=False)
    bound = TIMES.reconnect_ms + TIMES.silence_ms
    assert judge(UP, nothing, observer, Millis(bound - 1), TIMES) is UP
    assert judge(UP, nothing, observer, Millis(bound), TIMES) is GONE
    # A guardian that is back first does not make the agent down: it may still be in its back-off.
    beating = Sighting(agent_connected=False, beat_received=Millis(11_000))
    assert judge(UP, beating, observer, Millis(11_500), TIMES) is UP
    assert judge(UP, beating, observer, Millis(12_000), TIMES) is DOWN


def test_an_observer_that_slept_observes_anew() -> None:
    """The server's own loop hangs for 30 s on a full disk: its hosts are not to blame."""
    observer = Observer(began=Millis(0), stepped=Millis(50_000))
    woken = observe(observer, Millis(80_500), TIMES, interval_ms=500)
    assert woken == Observer(began=Millis(80_500), stepped=Millis(80_500))
    stale = Sighting(agent_connected=False, agent_seen=Millis(50_000), beat_received=Millis(50_000))
    assert judge(UP, stale, woken, Millis(80_500), TIMES) is UP
    assert judge(UP, stale, woken, Millis(80_500 + 14_999), TIMES) is UP
    assert judge(UP, stale, woken, Millis(80_500 + 15_000), TIMES) is GONE


@pytest.mark.parametrize(("late_ms", "began"), [(0, 0), (1_499, 0), (1_500, 102_000)])
def test_what_counts_as_a_stall(late_ms: int, began: int) -> None:
    observer = Observer(began=Millis(0), stepped=Millis(100_000))
    now = Millis(100_000 + 500 + late_ms)
    after = observe(observer, now, TIMES, interval_ms=500)
    assert after == Observer(began=Millis(began), stepped=now)


@given(
    agent=st.none() | st.integers(0, 200_000),
    beat=st.none() | st.integers(0, 200_000),
    before=st.sampled_from(HostState),
    began=st.integers(0, 200_000),
    now=st.integers(0, 200_000),
)
def test_unreachable_only_after_a_full_watch(
    agent: int | None, beat: int | None, before: HostState, began: int, now: int
) -> None:
    """Whatever was seen: a verdict of 'unreachable' needs silence_ms of our own awake watching."""
    seen = Sighting(
        agent_connected=False,
        agent_seen=None if agent is None else Millis(agent),
        beat_received=None if beat is None else Millis(beat),
    )
    observer = Observer(began=Millis(began), stepped=Millis(now))
    after = judge(before, seen, observer, Millis(now), TIMES)
    if after is GONE and before is not GONE:
        assert now - began >= TIMES.silence_ms
        assert all(now - at >= TIMES.silence_ms for at in (agent, beat) if at is not None)


def test_times_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(AssertionError):
        PresenceTimes(agent_grace_ms=5_000, silence_ms=5_000)
    with pytest.raises(AssertionError):
        PresenceTimes(stall_ms=5_000, silence_ms=5_000)
