"""One attempt at a time at each power device of this server's, whoever asks: the engine or a person, by this server or by a
neighbour, by its settings of now or of a moment ago. Orders go before questions, and end one that is under way."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import HostId
from virtha.model.power import TOO_LATE, PowerAction
from virtha.ports.power import MayGo, PowerDevice, PowerOutcome, PowerReading

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
    orders: int = 0
    """That wait."""


class DeviceTurns:
    def __init__(self) -> None:
        self._turns: dict[tuple[HostId, str], _Turn] = {}

    def taking(self, host_id: HostId, name: str, device: PowerDevice) -> PowerDevice:
        """``device``, when it is its turn. ``name``: of the device, without its revision."""
        return _InTurn(self._turns.setdefault((host_id, name), _Turn()), device)


class _InTurn:
    """Implements ``PowerDevice``."""

    def __init__(self, turn: _Turn, device: PowerDevice) -> None:
        self._turn = turn
        self._device = device

    async def status(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(self._device.status, deadline_ms)

    async def test(self, *, deadline_ms: int) -> PowerReading:
        return await self._look(self._device.test, deadline_ms)

    async def _look(
        self, ask: Callable[..., Awaitable[PowerReading]], deadline_ms: int
    ) -> PowerReading:
        turn = self._turn
        if not await self._taken(deadline_ms):
            return _unread()
        try:
            if turn.orders:
                return _unread()
            turn.look = asyncio.ensure_future(ask(deadline_ms=deadline_ms))
            try:
                await asyncio.wait({turn.look})
                return _unread() if turn.look.cancelled() else turn.look.result()
            finally:
                # Cancelled ourselves: it ends with us.
                if not turn.look.done():
                    turn.look.cancel()
                    await asyncio.wait({turn.look})
                turn.look = None
        finally:
            turn.lock.release()

    async def order(self, action: PowerAction, *, deadline_ms: int, may_go: MayGo) -> PowerOutcome:
        turn = self._turn
        if turn.look is not None:
            turn.look.cancel()
        turn.orders += 1
        try:
            taken = await self._taken(deadline_ms)
        finally:
            turn.orders -= 1
        if not taken:
            return PowerOutcome(result=Result.REFUSED, code=TOO_LATE)
        try:
            return await self._device.order(action, deadline_ms=deadline_ms, may_go=may_go)
        finally:
            turn.lock.release()

    async def close(self) -> None:
        await self._device.close()

    async def _taken(self, deadline_ms: int) -> bool:
        try:
            async with asyncio.timeout(deadline_ms / 1_000):
                return await self._turn.lock.acquire()
        except TimeoutError:
            return False


def _unread() -> PowerReading:
    return PowerReading(state=PowerState.UNKNOWN, code=NOT_ASKED)
