"""Attempts at power devices that neighbours' agents make for this server (F5, ADR 18).

One attempt goes to one agent, once. What it says is a witness's word of a reading; that it says nothing any more leaves
the outcome unknown, and until such an attempt must be over no other one begins at that device. Readings and orders of a
device go to different agents in turn, those whose last try at it failed last.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

import structlog

from virtha.model.errors import VirthaError
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import HostId, Term
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings
from virtha.model.time import Millis
from virtha.ports.clock import Clock
from virtha.ports.hosts import LastBeat
from virtha.ports.power import MayGo, MayGoFor, PowerDevice, PowerOutcome, PowerReading
from virtha.wire.power_messages import (
    AttemptPower,
    EndPowerAttempt,
    PowerAsk,
    PowerAttempted,
    PowerWord,
)

log = structlog.get_logger("virtha.server.power")
OVERTIME_MS = 1_000
"""An agent keeps the deadline itself; its answer has a way to go."""
UNTIMED_MS = 1_000
"""An order that does not say for how long it may go may begin for so long yet."""
DRIFT_PERCENT = 2
"""By so much the clocks of two hosts may run apart (safety.md, P2)."""
NO_NEIGHBOUR = "power.no_neighbour"
LOST = "power.neighbour_lost"
NO_ANSWER = "power.no_answer"
NOT_ASKED = "power.not_asked"

Key = tuple[HostId, str]


class PowerLines(Protocol):
    """Sessions of agents, as far as this needs them: the gateway's part."""

    @property
    def term(self) -> Term: ...

    def power_beat(self, host_id: HostId, driver: PowerDriver) -> LastBeat | None:
        """Of a host whose agent makes attempts with that driver; None: it does not, or is not there, or is silent."""
        ...

    def tell_power(self, host_id: HostId, word: PowerWord) -> int | None:
        """The number of the session that it went into; None: there is none."""
        ...


@dataclass
class _Attempt:
    """One that an agent was given. ``until``: it has ended by then, whatever is heard of it."""

    host_id: HostId
    session: int
    until: Millis
    answer: "asyncio.Future[PowerAttempted | None]"
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Its agent said so."""


class NeighbourPowerDesk:
    """Of one gateway. Implements ``ports.power.NeighbourPower``."""

    def __init__(self, lines: PowerLines, clock: Clock) -> None:
        self._lines = lines
        self._clock = clock
        self._attempts: dict[str, _Attempt] = {}
        self._last: dict[Key, _Attempt] = {}
        """Of each device; over or not."""
        self._tried: dict[Key, dict[HostId, tuple[bool, int]]] = {}
        """By whom, whether that failed, and when, in a count of its own."""
        self._count = 0

    def device(
        self,
        subject: HostId,
        name: str,
        settings: PowerSettings,
        secrets: Mapping[str, str],
        *,
        among: Callable[[], Awaitable[tuple[HostId, ...]]],
        term: Term | None,
    ) -> PowerDevice:
        return _NeighbourDevice(self, (subject, name), settings, dict(secrets), among, term)

    def able(self, among: Iterable[HostId], driver: PowerDriver) -> tuple[HostId, ...]:
        return tuple(one for one in among if self._lines.power_beat(one, driver) is not None)

    # What the gateway hears

    def heard(self, session: int, answer: PowerAttempted) -> None:
        """Of another session than the one that was asked, it says nothing."""
        attempt = self._attempts.get(answer.attempt)
        if attempt is None or attempt.session != session:
            return
        del self._attempts[answer.attempt]
        attempt.over.set()
        if not attempt.answer.done():
            attempt.answer.set_result(answer)

    def session_ended(self, session: int) -> None:
        for attempt in self._attempts.values():
            if attempt.session == session and not attempt.answer.done():
                attempt.answer.set_result(None)

    # One attempt

    async def attempt(
        self, device: "_NeighbourDevice", ask: PowerAsk, *, deadline_ms: int, may_go: MayGo
    ) -> PowerAttempted:
        """``code`` says what became of it where that is not the agent's word."""
        now = self._clock.monotonic_ms()
        for name in [name for name, one in self._attempts.items() if one.until < now]:
            del self._attempts[name]
        if not await self._is_free(device.key, deadline_ms):
            return _refused(TOO_LATE if ask.is_order else NOT_ASKED)
        try:
            among = await device.among()
        except VirthaError as error:
            log.warning("nobody knows who could ask a power device", error=str(error))
            return _refused(NOT_ASKED)
        for host_id in self._by_turns(device.key, self.able(among, device.driver)):
            # Before what is left is asked: a freeze in between must not make that longer.
            now = self._clock.monotonic_ms()
            left_ms = may_go.left_ms() if isinstance(may_go, MayGoFor) else UNTIMED_MS
            if left_ms < 0 or not may_go():
                return _refused(TOO_LATE)
            beat = self._lines.power_beat(host_id, device.driver)
            if beat is None or host_id == device.key[0]:
                continue
            valid_ms = _valid_ms(beat, now=now, left_ms=left_ms)
            word = self._word(device, ask, beat, valid_ms=valid_ms, deadline_ms=deadline_ms)
            session = self._lines.tell_power(host_id, word)
            if session is not None:
                until = self._clock.monotonic_ms() + left_ms + deadline_ms + OVERTIME_MS
                return await self._answer(device.key, word, host_id, session, Millis(until))
        return _refused(NO_NEIGHBOUR)

    def _word(
        self,
        device: "_NeighbourDevice",
        ask: PowerAsk,
        beat: LastBeat,
        *,
        valid_ms: int,
        deadline_ms: int,
    ) -> AttemptPower:
        return AttemptPower(
            attempt=uuid4().hex,
            term=device.term if device.term is not None else self._lines.term,
            boot=beat.boot,
            beat_ms=beat.monotonic_ms,
            valid_ms=valid_ms,
            deadline_ms=deadline_ms,
            subject=device.key[0],
            device=device.key[1],
            ask=ask,
            settings=device.settings,
            secrets=device.secrets,
        )

    async def _answer(
        self, key: Key, word: AttemptPower, host_id: HostId, session: int, until: Millis
    ) -> PowerAttempted:
        attempt = _Attempt(host_id, session, until, asyncio.get_running_loop().create_future())
        self._attempts[word.attempt] = self._last[key] = attempt
        answer: PowerAttempted | None = None
        code = LOST
        try:
            async with asyncio.timeout(max(0, until - self._clock.monotonic_ms()) / 1_000):
                answer = await attempt.answer
        except TimeoutError:
            code = NO_ANSWER
        finally:
            self._note(key, host_id, failed=_is_failure(word.ask, answer))
            if not attempt.over.is_set():
                self._lines.tell_power(host_id, EndPowerAttempt(attempt=word.attempt))
        log.debug(
            "a neighbour tried a power device",
            host=key[0],
            device=key[1],
            neighbour=host_id,
            ask=word.ask.value,
            code=answer.code if answer is not None else code,
        )
        if answer is not None:
            return answer
        return PowerAttempted(attempt=word.attempt, result=Result.UNKNOWN, code=code)

    async def _is_free(self, key: Key, deadline_ms: int) -> bool:
        """False: an attempt that nothing was heard of may still be under way."""
        last = self._last.get(key)
        if last is None or last.over.is_set():
            return True
        left_ms = last.until - self._clock.monotonic_ms()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, min(left_ms, deadline_ms)) / 1_000):
                await last.over.wait()
        return last.over.is_set() or self._clock.monotonic_ms() >= last.until

    def _by_turns(self, key: Key, able: Iterable[HostId]) -> list[HostId]:
        tried = self._tried.get(key, {})
        return sorted(able, key=lambda one: (*tried.get(one, (False, 0)), one))

    def _note(self, key: Key, host_id: HostId, *, failed: bool) -> None:
        self._count += 1
        self._tried.setdefault(key, {})[host_id] = (failed, self._count)


class _NeighbourDevice:
    """Implements ``PowerDevice``."""

    def __init__(
        self,
        desk: NeighbourPowerDesk,
        key: Key,
        settings: PowerSettings,
        secrets: dict[str, str],
        among: Callable[[], Awaitable[tuple[HostId, ...]]],
        term: Term | None,
    ) -> None:
        assert settings.driver is not None, "only whole settings"
        self._desk = desk
        self.key = key
        self.settings = settings
        self.driver = settings.driver
        self.secrets = secrets
        self.among = among
        self.term = term

    async def status(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(PowerAsk.STATUS, deadline_ms)

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(PowerAsk.TEST, deadline_ms)

    async def _look(self, ask: PowerAsk, deadline_ms: int) -> PowerReading:
        answer = await self._desk.attempt(
            self, ask, deadline_ms=deadline_ms, may_go=MayGoFor(lambda: deadline_ms)
        )
        return PowerReading(
            state=answer.state, identity=answer.identity, code=answer.code, detail=answer.detail
        )

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        answer = await self._desk.attempt(
            self, PowerAsk(action.value), deadline_ms=deadline_ms, may_go=may_go
        )
        return PowerOutcome(result=answer.result, code=answer.code, detail=answer.detail)

    async def close(self) -> None:
        """Nothing is kept."""


def _valid_ms(beat: LastBeat, *, now: Millis, left_ms: int) -> int:
    """An order may begin for ``left_ms`` from ``now``: counted from a beat that was sent before it came in, so no way that the
    message takes can make that longer (J7). Negative, which the agent refuses: the beat came in when that was over."""
    return (now + left_ms - beat.received_at) * (100 - DRIFT_PERCENT) // 100


def _is_failure(ask: PowerAsk, answer: PowerAttempted | None) -> bool:
    """Another neighbour may do better."""
    if answer is None:
        return True
    if ask.is_order:
        return answer.result is not Result.OK
    return answer.state is PowerState.UNKNOWN


def _refused(code: str) -> PowerAttempted:
    """Surely nothing was done."""
    return PowerAttempted(attempt="", result=Result.REFUSED, code=code)
