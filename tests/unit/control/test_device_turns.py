"""One attempt at a time at each device, whoever asks; orders go before questions."""

import asyncio
from collections.abc import Callable

import pytest
from played_power import Machine, PlayedPower

from virtha.control.device_turns import DeviceTurns
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.ids import HostId
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.power_settings import PowerSettings
from virtha.ports.power import PowerDevice

pytestmark = pytest.mark.req("F4", "F5")
H1 = HostId("h1")


class Bench:
    def __init__(self) -> None:
        self._power = PlayedPower()
        self.machine: Machine = self._power.add("bmc")
        self._turns = DeviceTurns()

    def device(self, name: str = "bmc") -> PowerDevice:
        made = self._power.device(PowerSettings(address="bmc"), {})
        return self._turns.taking(H1, name, made)

    async def stuck_reading(self) -> asyncio.Task[object]:
        self.machine.stuck = True
        task: asyncio.Task[object] = asyncio.create_task(self.device().status(deadline_ms=60_000))
        await until(lambda: self.machine.attempts == 1)
        self.machine.stuck = False
        return task


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if check():
                return
            await asyncio.sleep(0.001)


def test_an_order_ends_the_reading_that_is_under_way() -> None:
    async def story() -> None:
        bench = Bench()
        reading = await bench.stuck_reading()
        outcome = await bench.device().order(
            PowerAction.OFF, deadline_ms=60_000, may_go=lambda: True
        )
        assert outcome.result is Result.OK
        assert getattr(await reading, "code", None) == "power.not_asked"
        assert (await bench.device().status(deadline_ms=60_000)).state is PowerState.OFF
        assert bench.machine.most_attempts == 1

    asyncio.run(story())


def test_what_waits_longer_than_its_deadline_is_not_asked_and_others_go_on() -> None:
    async def story() -> None:
        bench = Bench()
        bench.machine.stuck = True
        first = asyncio.create_task(
            bench.device().order(PowerAction.OFF, deadline_ms=60_000, may_go=lambda: True)
        )
        await until(lambda: bench.machine.attempts == 1)
        bench.machine.stuck = False
        late = await bench.device().order(PowerAction.OFF, deadline_ms=1, may_go=lambda: True)
        assert (late.result, late.code) == (Result.REFUSED, TOO_LATE)
        assert (await bench.device().status(deadline_ms=1)).code == "power.not_asked"
        assert (await bench.device("strip").status(deadline_ms=60_000)).state is PowerState.ON
        first.cancel()
        await asyncio.wait({first})
        assert (await bench.device().status(deadline_ms=60_000)).state is PowerState.ON

    asyncio.run(story())


def test_one_that_is_given_up_or_breaks_leaves_the_turn_to_others() -> None:
    async def story() -> None:
        bench = Bench()
        reading = await bench.stuck_reading()
        reading.cancel()
        await asyncio.wait({reading})
        bench.machine.breaks = True
        with pytest.raises(RuntimeError):
            await bench.device().status(deadline_ms=60_000)
        bench.machine.breaks = False
        assert (await bench.device().test(deadline_ms=60_000)).state is PowerState.ON

    asyncio.run(story())
