"""One leader's attempts at power devices: what is sent, what is not any more, and that each question and order is answered."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_power import command_power
from led_world import ABLE, ADMIN, LedWorld, led_world
from msgspec.structs import replace
from played_power import Machine, PlayedPower

from virtha.control.engine_power import NoWay, PowerWay
from virtha.engine.events import OrderPower, PowerOrdered, PowerRead, ReadPower
from virtha.engine.records import OrderId
from virtha.model.errors import Unavailable
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import HostReport, Result
from virtha.model.ids import HostId, Term
from virtha.model.power import TOO_LATE, PowerAction, PowerDeviceId
from virtha.model.power_settings import MachineIdentity, PowerDriver, PowerSettings
from virtha.model.time import Millis
from virtha.server import power_desk
from virtha.server.leader import ClusterClock
from virtha.server.power_desk import READINGS_AT_ONCE, PowerDesk
from virtha.store.installations import set_term

pytestmark = pytest.mark.req("F4", "F9")
WAIT_S = 60.0
UUID = "4c4c4544-0042-3510-8050-b7c04f4d4d31"
HOUR_MS = 3_600_000


@dataclass
class Bench:
    """A desk of its own, beside the engines'; h1 with a device."""

    world: LedWorld
    power: PlayedPower
    host: HostId
    device: PowerDeviceId
    machine: Machine
    clock: ClusterClock
    desk: PowerDesk
    told: list[PowerRead | PowerOrdered] = field(default_factory=list)
    numbers: int = 0

    async def add(self, name: str) -> tuple[HostId, PowerDeviceId, Machine]:
        """One more host."""
        host = await self.world.join(name)
        machine = self.power.add(f"{name}-bmc")
        view = await self.world.control.power.put_of_host(
            ADMIN, name, "bmc", command_power(f"{name}-bmc"), None
        )
        assert view.power is not None
        device = PowerDeviceId(f"bmc@{view.power.revision}")
        self.desk.configured(host.id, frozenset({device}))
        return host.id, device, machine

    def read(
        self,
        host: HostId | None = None,
        device: PowerDeviceId | None = None,
        deadline_ms: int = 500,
    ) -> OrderId:
        self.numbers += 1
        order_id = OrderId(f"1.q{self.numbers}")
        self.desk.hand_over(
            ReadPower(
                order_id=order_id,
                host_id=host or self.host,
                device=device or self.device,
                deadline_ms=deadline_ms,
            )
        )
        return order_id

    def order(
        self,
        host: HostId | None = None,
        device: PowerDeviceId | None = None,
        *,
        action: PowerAction = PowerAction.OFF,
        deadline_ms: int = 500,
        fresh_ms: int = 5_000,
    ) -> OrderId:
        self.numbers += 1
        order_id = OrderId(f"1.{self.numbers}")
        self.desk.hand_over(
            OrderPower(
                order_id=order_id,
                host_id=host or self.host,
                device=device or self.device,
                action=action,
                deadline_ms=deadline_ms,
                not_after_ms=int(self.clock.now()) + fresh_ms,
            )
        )
        return order_id

    async def answer(self, order_id: OrderId) -> PowerRead | PowerOrdered:
        async with asyncio.timeout(WAIT_S):
            while True:
                for one in self.told:
                    if one.order_id == order_id:
                        return one
                await asyncio.sleep(0.001)

    async def end(self, order_id: OrderId) -> tuple[Result, str | None]:
        answer = await self.answer(order_id)
        assert isinstance(answer, PowerOrdered), answer
        return answer.result, answer.error

    async def state(self, order_id: OrderId) -> tuple[PowerState, str | None]:
        answer = await self.answer(order_id)
        assert isinstance(answer, PowerRead), answer
        return answer.state, answer.error

    async def asked(self, machine: Machine, times: int = 1) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(machine.asked) < times:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def bench(directory: Path) -> AsyncIterator[Bench]:
    power = PlayedPower()
    async with led_world(directory, power) as world:
        clock = ClusterClock(world.clock, written=Millis(0))
        told: list[PowerRead | PowerOrdered] = []
        desk = PowerDesk(
            world.feed.cluster_id,
            lead=world.feed.lead,
            power=world.control.engine_power,
            clock=clock,
            tell=told.append,
        )
        made = Bench(world, power, HostId(""), PowerDeviceId(""), Machine(), clock, desk, told)
        made.host, made.device, made.machine = await made.add("h1")
        try:
            yield made
        finally:
            await desk.close()
            await desk.close()


def tell(directory: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with bench(directory) as made:
            await story(made)

    asyncio.run(main())


def test_questions_and_orders_are_answered_with_their_names(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        answer = await made.answer(made.read())
        assert answer == PowerRead(
            order_id=OrderId("1.q1"), host_id=made.host, device=made.device, state=PowerState.ON
        )
        ended = await made.answer(made.order())
        assert ended == PowerOrdered(
            order_id=OrderId("1.2"), host_id=made.host, device=made.device, result=Result.OK
        )
        assert await made.state(made.read()) == (PowerState.OFF, None)
        assert await made.end(made.order(action=PowerAction.ON)) == (Result.OK, None)
        assert made.machine.on and made.machine.asked == ["status", "off", "status", "on"]
        assert made.power.made == ["h1-bmc"], "one object for all attempts"

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_a_device_that_names_another_machine_is_told_as_that(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        told = replace(ABLE, machine=MachineIdentity(uuid=UUID))
        await made.world.hosts["h1"].tell(HostReport(capabilities=told))
        for uuid, match in (
            ("", IdentityMatch.UNKNOWN),
            (UUID, IdentityMatch.MATCH),
            (UUID.replace("4c", "5c"), IdentityMatch.MISMATCH),
        ):
            made.machine.identity = MachineIdentity(uuid=uuid)
            answer = await made.answer(made.read())
            assert isinstance(answer, PowerRead) and answer.identity is match

    tell(tmp_path, story)


@pytest.mark.req("J7")
def test_nothing_is_sent_once_the_term_is_over(tmp_path: Path) -> None:
    """Between hand-over and sending; and every time it is asked again."""

    async def story(made: Bench) -> None:
        async with made.world.store.write() as tx:
            await set_term(tx, Term(made.world.term + 1))
        assert await made.end(made.order()) == (Result.REFUSED, "power.not_led")
        assert await made.state(made.read()) == (PowerState.UNKNOWN, "power.not_led")
        assert made.machine.asked == [] and made.machine.on

    tell(tmp_path, story)


@pytest.mark.req("J7")
def test_an_order_that_waited_too_long_is_never_sent(tmp_path: Path) -> None:
    """Behind another one of the same device; the time is the cluster's."""

    async def story(made: Bench) -> None:
        made.machine.hangs = True
        first, second = made.order(deadline_ms=200), made.order(fresh_ms=5_000)
        await made.asked(made.machine)
        made.world.clock.now += 5_001
        assert await made.end(first) == (Result.UNKNOWN, "power.no_answer")
        assert await made.end(second) == (Result.REFUSED, TOO_LATE)
        assert made.machine.asked == ["off"] and made.machine.on

    tell(tmp_path, story)


@pytest.mark.req("J7")
def test_the_clock_is_looked_at_right_before_the_device_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the way to the device was looked up, too."""

    async def story(made: Bench) -> None:
        way = made.world.control.engine_power.device

        def late(found: object) -> object:
            made.world.clock.now += 5_001
            return way(found)

        monkeypatch.setattr(made.world.control.engine_power, "device", late)
        assert await made.end(made.order(fresh_ms=5_000)) == (Result.REFUSED, TOO_LATE)
        assert made.machine.asked == []

    tell(tmp_path, story)


def test_devices_that_hang_keep_no_other_hosts_order_waiting(tmp_path: Path) -> None:
    """As many as are read at once, and hang: the order of another host goes out at once, and so does that of one of them,
    whose question is given up for it. One attempt at a time at each."""

    async def story(made: Bench) -> None:
        host, device, other = await made.add("h2")
        made.machine.hangs = True
        questions = [made.read(deadline_ms=60_000)]
        await made.asked(made.machine)
        for _ in range(READINGS_AT_ONCE - 1):
            await made.desk._reading_slots.acquire()
        waits = made.read(host, device, deadline_ms=50)
        assert await made.state(waits) == (PowerState.UNKNOWN, "power.not_asked")
        assert await made.end(made.order(host, device)) == (Result.OK, None)
        assert other.asked == ["off"]
        ordered = made.order(deadline_ms=50)
        assert await made.state(questions[0]) == (PowerState.UNKNOWN, "power.not_asked")
        assert await made.end(ordered) == (Result.UNKNOWN, "power.no_answer")
        assert made.machine.asked == ["status", "off"] and made.machine.most_attempts == 1

    tell(tmp_path, story)


def test_a_device_gets_one_attempt_at_a_time_and_each_is_answered(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        asked = [made.read(), made.read(), made.order(), made.read()]
        for one in asked:
            await made.answer(one)
        assert len(made.told) == 4 and not made.desk.busy
        assert made.machine.most_attempts == 1

    tell(tmp_path, story)


@pytest.mark.bad_input("power script that hangs")
def test_a_driver_that_forgets_its_deadline_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_desk, "OVERTIME_MS", 50)

    async def story(made: Bench) -> None:
        made.machine.stuck = True
        assert await made.state(made.read(deadline_ms=50)) == (
            PowerState.UNKNOWN,
            "power.no_answer",
        )
        assert await made.end(made.order(deadline_ms=50)) == (Result.UNKNOWN, "power.no_answer")
        assert made.machine.attempts == 0, "nothing of it goes on"
        made.machine.stuck = False
        assert await made.state(made.read()) == (PowerState.ON, None)

    tell(tmp_path, story)


def test_a_reading_that_comes_late_is_not_taken_for_now(tmp_path: Path) -> None:
    """P1: it tells how it was then; the server may have slept between the answer and its hearing."""

    async def story(made: Bench) -> None:
        made.machine.on = False
        made.machine.meanwhile = lambda: setattr(
            made.world.clock, "now", made.world.clock.now + 60_000
        )
        assert await made.state(made.read()) == (PowerState.UNKNOWN, "power.no_answer")

    tell(tmp_path, story)


def test_a_driver_that_breaks_is_an_answer_and_tells_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(made: Bench) -> None:
        made.machine.breaks = True
        assert await made.state(made.read()) == (PowerState.UNKNOWN, "power.failed")
        assert await made.end(made.order()) == (Result.UNKNOWN, "power.failed")
        made.machine.breaks = False
        assert await made.state(made.read()) == (PowerState.ON, None)

    tell(tmp_path, story)
    said = "".join(capsys.readouterr())
    assert "RuntimeError" in said and "hunter2" not in said


def test_a_refusal_is_told_with_its_code(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        made.machine.refuses = True
        assert await made.state(made.read()) == (PowerState.UNKNOWN, "power.sign_in_refused")
        assert await made.end(made.order()) == (Result.REFUSED, "power.sign_in_refused")

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_nothing_goes_to_a_device_that_is_another_one_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address was changed, or it was removed: what the engine meant is not there. Its failure is told after the change
    is, so that the change is what the engine goes on from."""

    async def story(made: Bench) -> None:
        other = made.power.add("elsewhere")
        assert await made.state(made.read()) == (PowerState.ON, None)
        put = made.world.control.power
        await put.put_of_host(ADMIN, "h1", "bmc", command_power("elsewhere"), None)
        found: list[PowerWay | NoWay] = []
        way = made.world.control.engine_power.way

        async def counted(*key: Any) -> PowerWay | NoWay:
            found.append(await way(*key))
            return found[-1]

        monkeypatch.setattr(made.world.control.engine_power, "way", counted)
        ordered = made.order()
        async with asyncio.timeout(WAIT_S):
            while not found:
                await asyncio.sleep(0.001)
        # A desk that told of it at once has told of it by now: it waits for nothing else.
        assert not any(one.order_id == ordered for one in made.told)
        made.desk.configured(made.host, frozenset())
        assert await made.end(ordered) == (Result.REFUSED, "power.changed")
        await put.delete_of_host(ADMIN, "h1", "bmc", None)
        assert await made.end(made.order()) == (Result.REFUSED, "power.changed")
        assert made.machine.asked == ["status"] and other.asked == []
        async with asyncio.timeout(WAIT_S):
            while not made.power.closed:
                await asyncio.sleep(0.001)

    tell(tmp_path, story)


def test_a_fence_agent_is_described_once_beside_its_first_reading(tmp_path: Path) -> None:
    """Its own program takes longer for that than a reading may."""

    async def story(made: Bench) -> None:
        given = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_x", address="h1-bmc")
        way = PowerWay(
            host_id=made.host,
            name="bmc",
            term=Term(1),
            settings=given,
            secrets={},
            machine=MachineIdentity(),
        )

        async def found(*_key: object) -> PowerWay:
            return way

        made.world.control.engine_power.way = found
        for _ in range(2):
            assert await made.state(made.read()) == (PowerState.ON, None)
        assert made.power.described == ["fence_x"]

    tell(tmp_path, story)


def test_without_its_database_nothing_goes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it leads is not known then. It is asked again until the order is too old."""

    async def story(made: Bench) -> None:
        power, outages = made.world.control.engine_power, [True, True]
        way = power.way

        async def away(*key: object) -> object:
            if outages:
                outages.pop()
                raise Unavailable("the database does not answer")
            return await way(*key)

        monkeypatch.setattr(power, "way", away)
        assert await made.end(made.order()) == (Result.OK, None)
        outages += [True] * 1_000
        waits, old = made.read(deadline_ms=400), made.order(fresh_ms=400)
        async with asyncio.timeout(WAIT_S):
            while len(outages) == 1_000:
                await asyncio.sleep(0.001)
        made.world.clock.now += 401
        assert await made.end(old) == (Result.REFUSED, TOO_LATE)
        assert await made.state(waits) == (PowerState.UNKNOWN, "power.not_asked")
        assert made.machine.asked == ["off"]

    tell(tmp_path, story)


def test_closed_it_ends_what_is_under_way_and_sends_nothing_more(tmp_path: Path) -> None:
    async def story(made: Bench) -> None:
        made.machine.hangs = True
        made.order(deadline_ms=HOUR_MS, fresh_ms=HOUR_MS)
        made.order(fresh_ms=HOUR_MS)
        await made.asked(made.machine)
        async with asyncio.timeout(WAIT_S):
            await made.desk.close()
        made.order()
        assert not made.desk.busy and made.machine.attempts == 0
        assert made.machine.asked == ["off"] and made.told == []
        assert made.power.closed == ["h1-bmc"]

    tell(tmp_path, story)
