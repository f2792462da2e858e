"""One attempt at a time at each power device of this server's, whoever asks: the engine or a person, by this server or by a
neighbour, by its settings of now or of a moment ago. Orders go before questions, and end one that is under way; the engine's
questions go before people's, which are put off for them: a fence waits for nobody's look."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import HostId
from virtha.model.power import TOO_LATE, PowerAction
from virtha.ports.attempts import cancel_once, give_up
from virtha.ports.power import MayGo, PowerDevice, PowerOutcome, PowerReading

Ask = Callable[..., Coroutine[Any, Any, PowerReading]]
NOT_ASKED = "power.not_asked"
UNASKED = frozenset(
    (
        NOT_ASKED,
        *(f"power.{word}" for word in ("no_neighbour", "neighbour_lost", "busy", "own_host")),
    )
)
"""What came of a device that was not reached at all: no word of its own, for or against it."""


@dataclass
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    look: "asyncio.Task[PowerReading] | None" = None
    """Under way; given up for an order."""
    look_yields: bool = False
    """That one is a person's: given up for the engine's, too, and begun anew after it."""
    orders: int = 0
    """That wait."""
    engine_looks: int = 0
    """That wait."""


class DeviceTurns:
    def __init__(self) -> None:
        self._turns: dict[tuple[HostId, str], _Turn] = {}

    def taking(
        self, host_id: HostId, name: str, device: PowerDevice, *, for_engine: bool = False
    ) -> PowerDevice:
        """``device``, when it is its turn. ``name``: of the device, without its revision."""
        turn = self._turns.setdefault((host_id, name), _Turn())
        return _InTurn(turn, device, for_engine=for_engine)


class _InTurn:
    """Implements ``PowerDevice``."""

    def __init__(self, turn: _Turn, device: PowerDevice, *, for_engine: bool) -> None:
        self._turn = turn
        self._device = device
        self._for_engine = for_engine

    async def status(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(self._device.status, deadline_ms)

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(self._device.test, deadline_ms)

    async def _look(self, ask: Ask, deadline_ms: int) -> PowerReading:
        """A person's, put off for the engine's, is begun anew as long as its time lasts."""
        until_s = time.monotonic() + deadline_ms / 1_000
        while True:
            reading = await self._look_once(ask, until_s)
            if reading is not None:
                return reading

    async def _look_once(self, ask: Ask, until_s: float) -> PowerReading | None:
        """None: it was put off."""
        turn = self._turn
        if self._for_engine and turn.look is not None and turn.look_yields:
            cancel_once(turn.look)
        turn.engine_looks += self._for_engine
        try:
            taken = await self._taken(_left_ms(until_s))
        finally:
            turn.engine_looks -= self._for_engine
        if not taken:
            return _unread()
        try:
            if turn.orders:
                return _unread()
            if turn.engine_looks and not self._for_engine:
                return None  # it waits for this very turn
            return await self._ask(ask, _left_ms(until_s))
        finally:
            turn.lock.release()

    async def _ask(self, ask: Ask, left_ms: int) -> PowerReading | None:
        turn = self._turn
        turn.look = asyncio.create_task(ask(deadline_ms=max(1, left_ms)))
        turn.look_yields = not self._for_engine
        try:
            await asyncio.wait({turn.look})
            if not turn.look.cancelled():
                return turn.look.result()
            return _unread() if turn.orders or self._for_engine else None
        finally:
            await give_up(turn.look)  # cancelled ourselves: it ends with us
            turn.look = None

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        turn = self._turn
        if turn.look is not None:
            cancel_once(turn.look)
        turn.orders += 1
        try:
            taken = await self._taken(deadline_ms)
        finally:
            turn.orders -= 1
        if not taken:
            return PowerOutcome(result=Result.REFUSED, code=TOO_LATE)
        order = asyncio.create_task(
            self._device.order(action, deadline_ms=deadline_ms, may_go=may_go)
        )
        try:
            await asyncio.wait({order})
            return order.result()
        finally:
            await give_up(order)
            turn.lock.release()

    async def close(self) -> None:
        await self._device.close()

    async def _taken(self, deadline_ms: int) -> bool:
        try:
            async with asyncio.timeout(deadline_ms / 1_000):
                return await self._turn.lock.acquire()
        except TimeoutError:
            return False


def _left_ms(until_s: float) -> int:
    return max(0, int((until_s - time.monotonic()) * 1_000))


def _unread() -> PowerReading:
    return PowerReading(state=PowerState.UNKNOWN, code=NOT_ASKED)
