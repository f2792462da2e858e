"""The presence loop: looks at sessions and beats, tells control when a host's state has changed."""

import asyncio
from typing import Protocol

import structlog

from virtha.api.metrics import Metrics
from virtha.control import Control
from virtha.control.effects import BEAT_SILENCE_MS
from virtha.model.errors import VirthaError
from virtha.model.host import HostState
from virtha.model.ids import BootId, HostId
from virtha.model.time import Millis
from virtha.ports.clock import Clock
from virtha.ports.hosts import LastBeat
from virtha.server.presence import HostPresence, Observer, PresenceTimes, Sighting, judge, observe

log = structlog.get_logger("virtha.server.watch")
INTERVAL_MS = 500
RELOAD_MS = 2_000
"""How often the list of hosts and their recorded states is read anew: hosts join and leave, and a
session shorter than one interval leaves a recorded state that this loop has not seen."""


CLOCK_MOVED_MS = 1_000
"""A host's clock offset is told when it moved by more: it wanders by milliseconds, and each telling is
a transaction."""


class Sightings(Protocol):
    """What the gateway has of each host."""

    def sighting(self, host_id: HostId) -> Sighting: ...

    def last_beat(self, host_id: HostId) -> LastBeat | None: ...

    def presence(self, host_id: HostId) -> HostPresence | None: ...


class PresenceWatch:
    """Interprets ``presence.judge`` for all hosts of this installation."""

    def __init__(
        self,
        control: Control,
        sightings: Sightings,
        clock: Clock,
        metrics: Metrics,
        times: PresenceTimes | None = None,
    ) -> None:
        self._control = control
        self._sightings = sightings
        self._clock = clock
        self._metrics = metrics
        self._times = times or PresenceTimes()
        now = clock.monotonic_ms()
        self._observer = Observer(began=now, stepped=now)
        self._recorded: dict[HostId, HostState] = {}
        self._reload_at = now
        self._resent: dict[HostId, BootId] = {}
        self._offsets: dict[HostId, int] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await self.step()
            try:
                async with asyncio.timeout(INTERVAL_MS / 1_000):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def step(self) -> None:
        """One look. A store that can't be written costs this step, not the loop: the next one tries
        again, for what is recorded still differs from what is judged."""
        now = self._clock.monotonic_ms()
        late_ms = now - self._observer.stepped - INTERVAL_MS
        self._metrics.loop_lag.set(max(0, late_ms) / 1_000)
        fresh = observe(self._observer, now, self._times, interval_ms=INTERVAL_MS)
        if fresh.began != self._observer.began:
            log.warning("this server was asleep and observes its hosts anew", late_ms=late_ms)
        self._observer = fresh
        try:
            if now >= self._reload_at:
                self._recorded = await self._control.hosts.states()
                self._reload_at = Millis(now + RELOAD_MS)
                for gone in (self._resent.keys() | self._offsets.keys()) - self._recorded.keys():
                    self._resent.pop(gone, None)
                    self._offsets.pop(gone, None)
            for host_id in sorted(self._recorded):
                await self._look_at(host_id, now)
                await self._send_what_waited(host_id)
                await self._tell_clock(host_id)
        except VirthaError as error:
            self._metrics.store_failures.inc()
            log.warning("host states can't be recorded now", code=error.code, detail=str(error))
        self._show()

    async def _look_at(self, host_id: HostId, now: Millis) -> None:
        seen = self._sightings.sighting(host_id)
        before = self._recorded[host_id]
        after = judge(before, seen, self._observer, now, self._times)
        if after is not before:
            await self._control.hosts.presence_changed(host_id, after)
            self._recorded[host_id] = after
            log.info("host state", host_id=host_id, before=before, after=after)

    async def _send_what_waited(self, host_id: HostId) -> None:
        """Orders that quote a beat (a start's grant, G2) can't go out with the agent's hello when the
        guardian has not come yet: they go when the first beat of that boot is here."""
        boot = self._boot_to_quote(host_id)
        if boot is None:
            self._resent.pop(host_id, None)
        elif self._resent.get(host_id) != boot:
            await self._control.hosts.resend(host_id)
            self._resent[host_id] = boot

    def _boot_to_quote(self, host_id: HostId) -> BootId | None:
        presence, beat = self._sightings.presence(host_id), self._sightings.last_beat(host_id)
        if presence is None or beat is None or not presence.agent_connected:
            return None
        if self._clock.monotonic_ms() - beat.received_at >= BEAT_SILENCE_MS:
            return None  # no grant quotes it; when its guardian beats again, what waited goes out
        return beat.boot if beat.boot == presence.boot else None

    async def _tell_clock(self, host_id: HostId) -> None:
        presence = self._sightings.presence(host_id)
        if presence is None or presence.clock_offset_ms is None:
            return
        offset_ms, told_ms = presence.clock_offset_ms, self._offsets.get(host_id)
        if told_ms is None or abs(offset_ms - told_ms) > CLOCK_MOVED_MS:
            await self._control.hosts.clock_measured(host_id, offset_ms)
            self._offsets[host_id] = offset_ms

    def _show(self) -> None:
        for state in HostState:
            count = sum(1 for one in self._recorded.values() if one is state)
            self._metrics.hosts.labels(state.value).set(count)
