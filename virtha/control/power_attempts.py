"""A person's order at all devices of one level: looked at first, ordered, read back. Nothing is kept here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence

from virtha.control.power import Power, Reached
from virtha.control.power_orders import FRESH_MS, GAP_S, LOOK_DEADLINE_MS, bounded, match_of
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.ports.power import MayGoFor, PowerDevice, PowerOutcome, PowerReading

WANTED = {PowerAction.OFF: PowerState.OFF, PowerAction.ON: PowerState.ON}
NEVER_READ = ("power.no_status", "power.sign_in_refused")
"""Asking again says the same, and locks users out."""
_RESULTS = (Result.UNKNOWN, Result.FAILED, Result.REFUSED, Result.OK)
"""Of several devices the first of these is the level's."""


class LevelEnd(Value, frozen=True, kw_only=True):
    """``done``: seen to be so at each device. ``code``: why not. ``words``: device by device."""

    done: bool
    result: Result
    state: PowerState
    words: str
    code: str | None = None


class Ordered(Value, frozen=True, kw_only=True):
    outcomes: tuple[PowerOutcome, ...]
    words: str


class PowerAttempts:
    def __init__(self, power: Power, clock: Clock) -> None:
        self._power = power
        self._clock = clock

    @contextlib.asynccontextmanager
    async def at(self, level: Sequence[Reached]) -> AsyncIterator["Attempt"]:
        devices = [self._power.open(one) for one in level]
        try:
            yield Attempt(level, devices, self._clock)
        finally:
            for device in devices:
                await device.close()


class Attempt:
    def __init__(
        self, level: Sequence[Reached], devices: Sequence[PowerDevice], clock: Clock
    ) -> None:
        self._level = level
        self._devices = devices
        self._clock = clock
        self._began_ms = clock.monotonic_ms()

    async def look(self) -> LevelEnd | None:
        """Why no order goes to this level: swapped addresses strike the wrong host (P1)."""
        readings = await self.read()
        pairs = zip(self._level, readings, strict=True)
        others = [one.name for one, it in pairs if match_of(one, it) is IdentityMatch.MISMATCH]
        if not others:
            return None
        words = f"{', '.join(others)}: names another machine, so nothing was ordered"
        return not_ordered(words, "power.other_machine")

    async def read(self) -> list[PowerReading]:
        looks = (bounded(one.status(deadline_ms=LOOK_DEADLINE_MS)) for one in self._devices)
        return await asyncio.gather(*looks)

    async def order(self, action: PowerAction, *, deadline_ms: int) -> Ordered:
        may_go = MayGoFor(self._fresh_ms)
        orders = (
            bounded(one.order(action, deadline_ms=deadline_ms, may_go=may_go))
            for one in self._devices
        )
        outcomes = tuple(await asyncio.gather(*orders))
        told = (_order_words(one) for one in outcomes)
        return Ordered(outcomes=outcomes, words=_each(self._level, told))

    async def read_back(
        self, action: PowerAction, ordered: Ordered, *, deadline_ms: int
    ) -> LevelEnd:
        until_ms = self._clock.monotonic_ms() + deadline_ms + LOOK_DEADLINE_MS
        pairs = zip(self._devices, ordered.outcomes, strict=True)
        backs = (self._read_back(one, action, outcome, until_ms) for one, outcome in pairs)
        readings = await asyncio.gather(*backs)
        words, state = read_as(self._level, readings)
        wanted = WANTED.get(action)
        accepted = all(one.result in (Result.OK, Result.UNKNOWN) for one in ordered.outcomes)
        if wanted is None:
            done = all(one.result is Result.OK for one in ordered.outcomes)
        else:
            done = accepted and state is wanted
        return LevelEnd(
            done=done,
            result=min((one.result for one in ordered.outcomes), key=_RESULTS.index),
            state=state,
            words=f"{ordered.words}; {words}",
            code=None if done else _code(action, ordered.outcomes, readings),
        )

    def _fresh_ms(self) -> int:
        age_ms = self._clock.monotonic_ms() - self._began_ms
        return LOOK_DEADLINE_MS + FRESH_MS - age_ms

    async def _read_back(
        self, device: PowerDevice, action: PowerAction, outcome: PowerOutcome, until_ms: int
    ) -> PowerReading:
        """Accepted is not off: read until it is so, off twice, or until the deadline."""
        wanted = WANTED.get(action)
        needed = 2 if action is PowerAction.OFF else 1
        seen = 0
        while True:
            reading = await bounded(device.status(deadline_ms=LOOK_DEADLINE_MS))
            seen = seen + 1 if reading.state is wanted else 0
            waits = wanted is not None and outcome.result in (Result.OK, Result.UNKNOWN)
            if seen >= needed or not waits or reading.code in NEVER_READ:
                return reading
            if self._clock.monotonic_ms() >= until_ms:
                return reading
            await asyncio.sleep(GAP_S)


def not_ordered(words: str, code: str) -> LevelEnd:
    return LevelEnd(
        done=False, result=Result.REFUSED, state=PowerState.UNKNOWN, words=words, code=code
    )


def read_as(level: Sequence[Reached], readings: Sequence[PowerReading]) -> tuple[str, PowerState]:
    """In words, and what holds for the host: a state only where all devices say it."""
    states = {one.state for one in readings}
    told = (
        f"now {one.state.value}"
        + (f" ({one.code or one.detail})" if one.code or one.detail else "")
        for one in readings
    )
    return _each(level, told), states.pop() if len(states) == 1 else PowerState.UNKNOWN


def _each(level: Sequence[Reached], words: Iterable[str]) -> str:
    return ", ".join(f"{one.name}: {word}" for one, word in zip(level, words, strict=True))


def _order_words(outcome: PowerOutcome) -> str:
    if outcome.result is Result.OK:
        return "took the order"
    why = " ".join(one for one in (outcome.code, outcome.detail) if one)
    return f"{outcome.result.value} {why}".rstrip()


def _code(
    action: PowerAction, outcomes: Sequence[PowerOutcome], readings: Sequence[PowerReading]
) -> str | None:
    codes = [one.code for one in outcomes]
    codes += [
        "power.still_on"
        for one in readings
        if action is PowerAction.OFF and one.state is PowerState.ON
    ]
    codes += [one.code for one in readings]
    return next((one for one in codes if one), None)
