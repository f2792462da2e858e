"""The presence loop: what it tells control, when the store is away, and when it slept itself."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from virtha.api.metrics import Metrics
from virtha.control.effects import BEAT_SILENCE_MS
from virtha.model.errors import Unavailable
from virtha.model.host import HostState
from virtha.model.ids import BootId, HostId
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.model.time import Millis, UtcMillis
from virtha.ports.hosts import LastBeat
from virtha.server.presence import HostPresence, PresenceTimes, Sighting
from virtha.server.watch import INTERVAL_MS, PresenceWatch

H1, H2 = HostId("h1"), HostId("h2")
TIMES = PresenceTimes()


@dataclass
class HandClock:
    now: int = 1_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(0)


@dataclass
class Recorder:
    """The part of control.hosts that the loop uses, over a dictionary."""

    states_now: dict[HostId, HostState]
    told: list[tuple[HostId, HostState]] = field(default_factory=list)
    resent: list[HostId] = field(default_factory=list)
    offsets: list[tuple[HostId, int]] = field(default_factory=list)
    away: bool = False

    async def states(self) -> dict[HostId, HostState]:
        return dict(self.states_now)

    async def resend(self, host_id: HostId) -> int:
        if self.away:
            raise Unavailable("locked", code="problem.database.locked")
        self.resent.append(host_id)
        return 0

    async def clock_measured(self, host_id: HostId, offset_ms: int) -> None:
        self.offsets.append((host_id, offset_ms))

    async def presence_changed(self, host_id: HostId, state: HostState) -> None:
        if self.away:
            raise Unavailable("locked", code="problem.database.locked")
        self.states_now[host_id] = state
        self.told.append((host_id, state))


@dataclass
class Sights:
    seen: dict[HostId, Sighting] = field(default_factory=dict)

    beats: dict[HostId, LastBeat] = field(default_factory=dict)
    beating: set[HostId] = field(default_factory=set)
    """Whose beats go on coming."""
    present: dict[HostId, HostPresence] = field(default_factory=dict)

    def sighting(self, host_id: HostId) -> Sighting:
        return self.seen.get(host_id, Sighting(agent_connected=False))

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        return self.beats.get(host_id)

    def presence(self, host_id: HostId) -> HostPresence | None:
        return self.present.get(host_id)


class Story:
    def __init__(self, **states: HostState) -> None:
        self.clock = HandClock()
        self.recorder = Recorder({HostId(name): state for name, state in states.items()})
        self.sights = Sights()
        self.metrics = Metrics()
        control: Any = SimpleNamespace(hosts=self.recorder)
        self.watch = PresenceWatch(control, self.sights, self.clock, self.metrics, TIMES)

    def pass_time(self, duration_ms: int) -> None:
        """In the loop's own steps."""
        for _ in range(duration_ms // INTERVAL_MS):
            self.clock.now += INTERVAL_MS
            for host_id in self.sights.beating:
                beat = self.sights.beats[host_id]
                self.sights.beats[host_id] = msgspec.structs.replace(
                    beat, received_at=Millis(self.clock.now)
                )
            asyncio.run(self.watch.step())

    def hosts_metric(self, state: HostState) -> float:
        value = self.metrics.registry.get_sample_value("virtha_hosts", {"state": state.value})
        assert value is not None
        return value


def test_all_hosts_are_watched_and_each_change_is_told_once() -> None:
    story = Story(h1=HostState.UNREACHABLE, h2=HostState.UP)
    story.sights.seen[H1] = Sighting(agent_connected=True)
    story.pass_time(5_000)
    assert story.recorder.told == [(H1, HostState.UP)]
    story.pass_time(30_000)
    assert story.recorder.told == [(H1, HostState.UP), (H2, HostState.UNREACHABLE)]
    assert story.hosts_metric(HostState.UP) == 1
    assert story.hosts_metric(HostState.UNREACHABLE) == 1


@pytest.mark.req("A8")
def test_a_guardian_that_beats_on_alone_means_agent_down_never_host_down() -> None:
    story = Story(h1=HostState.UP)
    agent_lost = Millis(story.clock.now + 1)
    for _ in range(120):
        story.clock.now += INTERVAL_MS
        story.sights.seen[H1] = Sighting(
            agent_connected=False,
            agent_seen=agent_lost,
            beat_received=Millis(story.clock.now),
        )
        asyncio.run(story.watch.step())
    assert story.recorder.told == [(H1, HostState.AGENT_DOWN)]


def beat_of(boot: str) -> LastBeat:
    return LastBeat(
        boot=BootId(boot), sequence=1, monotonic_ms=1, received_at=Millis(0), agent_alive=True
    )


def presence_of(boot: str, *, connected: bool = True, offset_ms: int | None = None) -> HostPresence:
    return HostPresence(
        host_id=H1,
        agent_connected=connected,
        guardian_connected=True,
        boot=BootId(boot),
        clock_offset_ms=offset_ms,
        facts_waiting=0,
    )


def test_orders_that_quote_a_beat_go_out_once_per_boot_when_its_beat_is_here() -> None:
    """The server restarts; the agent is back before the guardian: its start could quote nothing yet."""
    story = Story(h1=HostState.UP)
    story.sights.seen[H1] = Sighting(agent_connected=True)
    story.sights.present[H1] = presence_of("b1")
    story.pass_time(2_000)
    assert story.recorder.resent == []
    story.sights.beats[H1] = beat_of("b1")
    story.sights.beating.add(H1)
    story.recorder.away = True
    story.pass_time(1_000)
    story.recorder.away = False
    story.pass_time(2_000)
    assert story.recorder.resent == [H1], "once, and again after a store that was away"
    story.sights.present[H1] = presence_of("b2")
    story.pass_time(1_000)
    assert story.recorder.resent == [H1], "a beat of the old boot must not be quoted"
    story.sights.beats[H1] = beat_of("b2")
    story.pass_time(1_000)
    assert story.recorder.resent == [H1, H1]


def test_orders_wait_for_a_guardian_that_fell_silent_and_go_when_it_beats_again() -> None:
    """G2: a grant that quotes an old beat is over, and would end the order for nothing."""
    story = Story(h1=HostState.UP)
    story.sights.seen[H1] = Sighting(agent_connected=True)
    story.sights.present[H1] = presence_of("b1")
    story.sights.beats[H1] = beat_of("b1")
    story.pass_time(2_000)
    assert story.recorder.resent == [], "its last beat is old"
    story.sights.beating.add(H1)
    story.pass_time(1_000)
    assert story.recorder.resent == [H1]
    story.sights.beating.clear()
    story.pass_time(10_000)
    story.sights.beating.add(H1)
    story.pass_time(1_000)
    assert story.recorder.resent == [H1, H1]


def test_a_clock_is_told_when_it_moved() -> None:
    story = Story(h1=HostState.UP)
    story.sights.seen[H1] = Sighting(agent_connected=True)
    for offset_ms in (5, 40, 900, 7_200_000, 7_200_300):
        story.sights.present[H1] = presence_of("b1", offset_ms=offset_ms)
        story.pass_time(1_000)
    assert story.recorder.offsets == [(H1, 5), (H1, 7_200_000)]


def test_a_store_that_is_away_costs_time_but_no_change() -> None:
    story = Story(h1=HostState.UNREACHABLE)
    story.sights.seen[H1] = Sighting(agent_connected=True)
    story.recorder.away = True
    story.pass_time(3_000)
    assert story.recorder.told == []
    assert story.metrics.registry.get_sample_value("virtha_store_failures_total") == 6
    story.recorder.away = False
    story.pass_time(1_000)
    assert story.recorder.told == [(H1, HostState.UP)]


def test_a_loop_that_slept_condemns_nobody() -> None:
    story = Story(h1=HostState.UP)
    story.sights.seen[H1] = Sighting(
        agent_connected=False,
        agent_seen=Millis(story.clock.now),
        beat_received=Millis(story.clock.now),
    )
    story.pass_time(500)
    story.clock.now += 60_000
    story.pass_time(TIMES.reconnect_ms)
    assert story.recorder.told == []
    lag = story.metrics.registry.get_sample_value("virtha_loop_lag_seconds")
    assert lag == 0, "the last step was in time"


def test_the_loop_ends_when_the_server_stops() -> None:
    async def main() -> None:
        stopping = asyncio.Event()
        story = Story(h1=HostState.UP)
        task = asyncio.create_task(story.watch.run(stopping))
        await asyncio.sleep(0)
        stopping.set()
        async with asyncio.timeout(60):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("profile", Profile)
def test_no_session_lives_longer_than_its_last_beat_may_be_quoted(profile: Profile) -> None:
    assert PROFILES[profile].detection.session_silence_ms <= BEAT_SILENCE_MS
