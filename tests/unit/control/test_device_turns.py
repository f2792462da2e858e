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

    def device(self, name: str = "bmc", *, for_engine: bool = False) -> PowerDevice:
        made = self._power.device(PowerSettings(address="bmc"), {})
        return self._turns.taking(H1, name, made, for_engine=for_engine)

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


@pytest.mark.req("J7")
@pytest.mark.parametrize("what", ["reading", "order"])
def test_whoever_is_given_up_twice_keeps_the_turn_until_its_attempt_has_ended(what: str) -> None:
    """A deadline and an order may want a reading ended at once; the second one must not cut the end short."""

    async def story() -> None:
        bench = Bench()
        bench.machine.stuck = True
        bench.machine.ending = asyncio.Event()
        first: asyncio.Task[object]
        if what == "reading":
            first = asyncio.create_task(bench.device().status(deadline_ms=60_000))
        else:
            first = asyncio.create_task(
                bench.device().order(PowerAction.OFF, deadline_ms=60_000, may_go=lambda: True)
            )
        await until(lambda: bench.machine.attempts == 1)
        bench.machine.stuck = False
        first.cancel()
        await asyncio.sleep(0)
        first.cancel()
        order = asyncio.create_task(
            bench.device().order(PowerAction.OFF, deadline_ms=60_000, may_go=lambda: True)
        )
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.machine.attempts == 1 and not first.done() and bench.machine.cut_short == 0
        bench.machine.ending.set()
        assert (await order).result is Result.OK
        assert first.cancelled() and bench.machine.most_attempts == 1

    asyncio.run(story())


@pytest.mark.req("F9")
def test_the_engine_waits_for_no_persons_look_and_the_person_is_answered_after_it() -> None:
    async def story() -> None:
        bench = Bench()
        looks = await bench.stuck_reading()
        waits = asyncio.create_task(bench.device().status(deadline_ms=60_000))
        await asyncio.sleep(0)
        bench.machine.on = False
        reading = await bench.device(for_engine=True).status(deadline_ms=60_000)
        assert reading.state is PowerState.OFF and not looks.done() and not waits.done()
        for look in (looks, waits):
            assert getattr(await look, "state", None) is PowerState.OFF
        assert bench.machine.most_attempts == 1 and len(bench.machine.asked) == 4

    asyncio.run(story())


@pytest.mark.req("F9")
def test_no_person_puts_off_what_the_engine_asks() -> None:
    async def story() -> None:
        bench = Bench()
        bench.machine.stuck = True
        engines = asyncio.create_task(bench.device(for_engine=True).status(deadline_ms=60_000))
        await until(lambda: bench.machine.attempts == 1)
        bench.machine.stuck = False
        assert (await bench.device().status(deadline_ms=1)).code == "power.not_asked"
        assert not engines.done()
        await bench.device().order(PowerAction.OFF, deadline_ms=60_000, may_go=lambda: True)
        assert (await engines).code == "power.not_asked"

    asyncio.run(story())
