"""Scheduled tests of power devices: when, by whom, beside what, and what is made of them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from command_power import command_power
from led_world import ADMIN, LedWorld, led_world
from msgspec.structs import replace
from played_power import Machine, PlayedPower

from virtha.control.device_turns import UNASKED
from virtha.control.known_settings import POWER_TEST_INTERVAL
from virtha.control.power_schedule import (
    AGAIN_MS,
    FIRST_WITHIN_MS,
    GRACE_MS,
    due_at,
    spread,
)
from virtha.control.requests import SettingPut
from virtha.engine.events import OrderPower, ReadPower, SaveHost
from virtha.engine.records import HostRecord, OrderId
from virtha.model.errors import InvalidInput, Unavailable
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.facts import HostReport
from virtha.model.ids import HostId, Revision
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.power_settings import MachineIdentity, PowerTest
from virtha.model.time import UtcMillis
from virtha.model.user import SettingScope
from virtha.ports.power import PowerDevice
from virtha.server import power_desk
from virtha.server.power_desk import DeviceAnswer
from virtha.server.power_tester import PowerTester
from virtha.store.engine import find_host_record, save_intent

pytestmark = pytest.mark.req("F9")
WAIT_S = 60.0
HOUR_MS = 3_600_000
SIX_HOURS_MS = 6 * HOUR_MS
EVENTS = ("passed", "failed", "broke", "mended")
OURS, THEIRS = ("4c4c4544004235108050b7c04f4d4d3" + one for one in "12")


class Bench:
    def __init__(self, world: LedWorld, power: PlayedPower) -> None:
        self.world = world
        self.power = power
        self.machine = power.machines["h1-bmc"]
        self.tester = PowerTester(world.control.power_schedule, world.engines, world.clock)

    async def pass_time(self, duration_ms: int) -> int:
        """On the wall clock, by which tests are due; then what is due is tested."""
        self.world.clock.wall_offset += duration_ms
        await self.world.settle()
        return await self.tester.round()

    async def idle(self) -> None:
        desk = self.world.feed.power_desk
        assert desk is not None
        async with asyncio.timeout(WAIT_S):
            while desk.busy:
                await asyncio.sleep(0.001)

    async def test(self, name: str = "bmc") -> PowerTest | None:
        return (await self.world.control.power.get("h1", name)).test

    async def told(self) -> list[str]:
        """Events of tests, in their order."""
        found = [event for one in EVENTS for event in await self.world.events(f"power.test.{one}")]
        return [event.code for event in sorted(found, key=lambda event: event.revision)]

    async def record(self) -> HostRecord:
        await self.world.settle()
        async with self.world.store.read() as tx:
            found = await find_host_record(tx, self.world.hosts["h1"].id)
        assert found is not None
        return found.record


def tell(directory: Path, story: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        power = PlayedPower()
        power.add("h1-bmc")
        async with led_world(directory, power) as world:
            await world.join("h1")
            await world.control.power.put_of_host(ADMIN, "h1", "bmc", command_power("h1-bmc"), None)
            await world.settle()
            bench = Bench(world, power)
            assert await bench.pass_time(0) == 0, "hosts come first"
            await bench.idle()
            bench.machine.asked.clear()  # by the engine, which knew nothing of it
            await story(bench)

    asyncio.run(main())


def test_what_worked_and_fails_is_told_once_and_so_is_what_works_again(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        assert await bench.pass_time(HOUR_MS) == 1
        first = await bench.test()
        assert first is not None and first.passed and first.scheduled
        assert first.passed_at == first.at and first.code == "power.no_identity"
        assert await bench.pass_time(0) == 0, "once each interval"
        assert await bench.told() == ["power.test.passed"]
        bench.machine.refuses = True
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        failed = await bench.test()
        assert failed is not None and not failed.passed and failed.passed_at == first.at
        assert failed.code == "power.sign_in_refused"
        assert await bench.pass_time(HOUR_MS) == 0, "a wrong password would lock its user out"
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        assert bench.machine.asked == ["status"] * 3
        bench.machine.refuses = False
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        codes = ["power.test.passed", "power.test.broke", "power.test.mended"]
        assert await bench.told() == codes
        (broke,) = await bench.world.events("power.test.broke")
        assert broke.host_id == bench.world.hosts["h1"].id and broke.user is None
        assert "password" in str(broke.fields["why"]) and broke.fields["device"] == "bmc"

    tell(tmp_path, story)


def test_one_answer_that_is_lost_is_no_failure_and_a_failure_is_looked_at_again_soon(
    tmp_path: Path,
) -> None:
    async def story(bench: Bench) -> None:
        machine = bench.machine

        machine.meanwhile = lambda: _lose_the_first(machine)
        assert await bench.pass_time(HOUR_MS) == 1
        test = await bench.test()
        assert test is not None and test.passed and machine.asked == ["status"] * 2
        machine.breaks, machine.meanwhile = True, lambda: None
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        test = await bench.test()
        assert test is not None and (test.passed, test.code) == (False, "power.failed")
        machine.breaks = False
        assert await bench.pass_time(AGAIN_MS) == 1
        assert (await bench.told())[-1] == "power.test.mended"

    tell(tmp_path, story)


def _lose_the_first(machine: Machine) -> None:
    if len(machine.asked) == 1:
        raise ConnectionError


@pytest.mark.req("P1")
def test_the_engine_learns_what_a_device_says_and_forgets_nothing_for_want_of_an_answer(
    tmp_path: Path,
) -> None:
    async def story(bench: Bench) -> None:
        (device,) = (await bench.pass_time(HOUR_MS), (await bench.record()).tested_devices)[1]
        assert device.startswith("bmc@")
        bench.machine.refuses = True
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        assert (await bench.record()).tested_devices == (device,), "whose it is is known"
        bench.machine.refuses, bench.machine.on = False, False
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        assert (await bench.record()).tested_devices == (), "the host is up: it is not its device"
        assert (await bench.told())[-1] == "power.test.failed"
        assert "off" in str((await bench.world.events("power.test.failed"))[0].fields["why"])

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_a_device_that_names_another_machine_is_told_to_all(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        able = (await bench.world.control.hosts.get("h1")).status.capabilities
        able = replace(able, machine=MachineIdentity(uuid=OURS))
        await bench.world.hosts["h1"].tell(HostReport(capabilities=able))
        bench.machine.identity = MachineIdentity(uuid=OURS)
        assert await bench.pass_time(HOUR_MS) == 1
        test = await bench.test()
        assert test is not None and test.identity is IdentityMatch.MATCH and test.code is None
        bench.machine.identity = MachineIdentity(uuid=THEIRS)
        assert await bench.pass_time(SIX_HOURS_MS) == 1
        record = await bench.record()
        assert record.tested_devices == () and len(record.foreign_devices) == 1
        assert await bench.told() == ["power.test.passed", "power.test.broke"]

    tell(tmp_path, story)


def test_who_is_not_up_or_can_not_be_asked_is_left_alone(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        bench.power.add("h1-strip")
        mute = command_power("h1-strip", status="", level=2)
        await world.control.power.put_of_host(ADMIN, "h1", "strip", mute, None)
        world.hosts["h1"].vanish()
        world.clock.wall_offset += HOUR_MS
        await world.pass_time(20_000, beating=())
        await bench.idle()
        bench.machine.asked.clear()  # the engine's own looks
        assert world.engines.verdict(world.hosts["h1"].id) != "alive"
        assert await bench.tester.round() == 0 and bench.machine.asked == []

    tell(tmp_path, story)


@pytest.mark.req("F4")
def test_the_engines_questions_and_orders_end_a_test(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        world, machine, desk = bench.world, bench.machine, bench.world.feed.power_desk
        assert desk is not None
        view = await world.control.power.get("h1", "bmc")
        assert view.power is not None
        host_id, device = world.hosts["h1"].id, PowerDeviceId(f"bmc@{view.power.revision}")
        read = ReadPower(
            order_id=OrderId("9.q1"), host_id=host_id, device=device, deadline_ms=1_000
        )
        off = OrderPower(
            order_id=OrderId("9.2"),
            host_id=host_id,
            device=device,
            action=PowerAction.OFF,
            deadline_ms=1_000,
            not_after_ms=int(world.leader.clock.now()) + 1_000,
        )
        commands: tuple[ReadPower | OrderPower, ...] = (read, off)
        for command in commands:
            machine.stuck = True
            test = asyncio.create_task(
                desk.test(host_id, device, deadline_ms=60_000, waits_ms=1_000)
            )
            async with asyncio.timeout(WAIT_S):
                while not machine.attempts:
                    await asyncio.sleep(0.001)
                machine.stuck = False
                desk.hand_over(command)
                assert await test is None
                await bench.idle()
        assert machine.asked == ["status", "status", "status", "off"] and not machine.on
        assert machine.most_attempts == 1
        await desk.close()
        assert await desk.test(host_id, device, deadline_ms=1_000, waits_ms=1_000) is None

    tell(tmp_path, story)


def test_a_test_that_waits_ends_with_the_lead(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        desk, host_id = bench.world.feed.power_desk, bench.world.hosts["h1"].id
        assert desk is not None
        view = await bench.world.control.power.get("h1", "bmc")
        assert view.power is not None
        device = PowerDeviceId(f"bmc@{view.power.revision}")
        bench.machine.stuck = True
        tests = [
            asyncio.create_task(desk.test(host_id, device, deadline_ms=60_000, waits_ms=1_000))
            for _ in range(2)
        ]
        async with asyncio.timeout(WAIT_S):
            while not bench.machine.asked:
                await asyncio.sleep(0.001)
            await desk.close()
            assert await asyncio.gather(*tests) == [None, None]

    tell(tmp_path, story)


def test_a_test_that_was_just_asked_for_ends_with_the_lead(tmp_path: Path) -> None:
    """Else whoever tests waits for it for ever, and tests nothing more."""

    async def story(bench: Bench) -> None:
        desk, host_id = bench.world.feed.power_desk, bench.world.hosts["h1"].id
        assert desk is not None
        device = PowerDeviceId("bmc@1")
        test = asyncio.create_task(desk.test(host_id, device, deadline_ms=60_000, waits_ms=1_000))
        await asyncio.sleep(0)  # asked; the task that serves that device has not begun
        await desk.close()
        async with asyncio.timeout(WAIT_S):
            assert await test is None
        assert not desk.busy

    tell(tmp_path, story)


def test_few_devices_are_tested_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        under_way, most, full = 0, 0, asyncio.Event()
        for number in range(2, 9):
            name = f"h{number}"
            await world.join(name)
            bench.power.add(f"{name}-bmc")
            given = command_power(f"{name}-bmc")
            await world.control.power.put_of_host(ADMIN, name, "bmc", given, None)
        real = power_desk.PowerDesk._timed

        async def counted(
            desk: power_desk.PowerDesk, device: PowerDevice, deadline_ms: int
        ) -> DeviceAnswer:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            if under_way == power_desk.TESTS_AT_ONCE:
                full.set()
            async with asyncio.timeout(WAIT_S):
                await full.wait()
            under_way -= 1
            return await real(desk, device, deadline_ms)

        monkeypatch.setattr(power_desk.PowerDesk, "_timed", counted)
        await world.settle()
        assert await bench.pass_time(HOUR_MS) == 8
        assert most == power_desk.TESTS_AT_ONCE

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_a_test_that_was_kept_and_not_told_is_told_by_who_leads_next(tmp_path: Path) -> None:
    """The server is killed between the two."""

    async def story(bench: Bench) -> None:
        world = bench.world
        view = await world.control.power_orders.test(ADMIN, "h1", "bmc")
        assert view.test.passed
        await world.restart()  # no turn in between
        assert (await bench.record()).tested_devices == ()
        await world.hosts["h1"].hello()
        await world.hosts["h1"].tell_all()
        assert len((await bench.record()).tested_devices) == 1
        # Once more: it is on record, and a new boot has passed no test.
        await world.restart()
        assert world.feed._untold == {}

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_of_another_boot_or_other_settings_nothing_is_told(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        assert (await world.control.power_orders.test(ADMIN, "h1", "bmc")).test.passed
        await world.restart()
        await world.hosts["h1"].hello("h1-boot2")
        await world.hosts["h1"].tell_all()
        assert (await bench.record()).tested_devices == ()
        assert (await world.control.power_orders.test(ADMIN, "h1", "bmc")).test.passed
        put = command_power("h1-bmc", user="another")
        await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
        await world.restart()
        assert world.feed._untold == {}

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_no_old_test_clears_a_device_that_has_named_another_machine_since(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        able = (await world.control.hosts.get("h1")).status.capabilities
        able = replace(able, machine=MachineIdentity(uuid=OURS))
        await world.hosts["h1"].tell(HostReport(capabilities=able))
        assert (await world.control.power_orders.test(ADMIN, "h1", "bmc")).test.passed
        (device,) = (await bench.record()).tested_devices
        bench.machine.identity = MachineIdentity(uuid=THEIRS)
        desk = world.feed.power_desk
        assert desk is not None
        desk.hand_over(
            ReadPower(
                order_id=OrderId("9.q1"),
                host_id=world.hosts["h1"].id,
                device=device,
                deadline_ms=1_000,
            )
        )
        await bench.idle()
        assert (await bench.record()).foreign_devices == (device,)
        await world.restart()
        await world.hosts["h1"].hello()
        await world.hosts["h1"].tell_all()
        assert (await bench.record()).foreign_devices == (device,)

    tell(tmp_path, story)


@pytest.mark.bad_input
def test_the_interval_can_be_set_per_cluster_or_to_never(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        put = bench.world.control.settings.put
        key = POWER_TEST_INTERVAL.key
        for bad in ("9m", "31d", "-1h", "often", "6"):
            with pytest.raises(InvalidInput, match="value"):
                await put(ADMIN, key, SettingPut(value=bad))
        with pytest.raises(InvalidInput, match="scope"):
            await put(ADMIN, key, SettingPut(value="1h"), scope=SettingScope.HOST, subject="h1")
        cluster = SettingScope.CLUSTER
        view = await put(ADMIN, key, SettingPut(value="0"), scope=cluster, subject="default")
        assert view.value == "0ms" and "never" in view.allowed
        assert await bench.pass_time(40 * 24 * HOUR_MS) == 0
        await put(ADMIN, key, SettingPut(value="10m"), scope=cluster, subject="default")
        assert await bench.pass_time(0) == 1 and await bench.pass_time(600_000) == 1

    tell(tmp_path, story)


def test_many_devices_are_never_due_at_once() -> None:
    began, tested = UtcMillis(10 * SIX_HOURS_MS), UtcMillis(9 * SIX_HOURS_MS)
    shares = [spread(HostId(f"host{number}"), "bmc") for number in range(1_000)]

    def due(test: PowerTest | None) -> list[int]:
        return sorted(
            due_at(test, Revision(3), began=began, interval_ms=SIX_HOURS_MS, share=share)
            for share in shares
        )

    test = PowerTest(
        at=tested,
        boot=None,
        passed=True,
        state=PowerState.ON,
        identity=IdentityMatch.UNKNOWN,
        settings_revision=Revision(3),
    )
    for one in (None, test, replace(test, settings_revision=Revision(2))):
        times = due(one)
        assert began + GRACE_MS <= times[0] and times[-1] <= began + GRACE_MS + FIRST_WITHIN_MS
        minutes = [int(at - began) // 60_000 for at in times]
        assert max(minutes.count(minute) for minute in set(minutes)) <= 100
    later = due(replace(test, at=began))
    assert later[0] >= began + SIX_HOURS_MS * 9 // 10 and later[-1] <= began + SIX_HOURS_MS


@pytest.mark.req("P1")
def test_no_old_test_clears_a_device_that_was_caught_in_a_lie_since(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        assert (await world.control.power_orders.test(ADMIN, "h1", "bmc")).test.passed
        before = await bench.record()
        (device,) = before.tested_devices
        caught = replace(
            before, tested_devices=(), identified_devices=(), disproved_devices=(device,)
        )
        cluster_id = (await world.control.hosts.get("h1")).host.cluster_id
        async with world.store.write() as tx:
            await save_intent(tx, cluster_id, SaveHost(record=caught))
        await world.restart()
        await world.hosts["h1"].hello()
        await world.hosts["h1"].tell_all()
        assert (await bench.record()).tested_devices == ()
        assert (await world.control.power_orders.test(ADMIN, "h1", "bmc")).test.passed
        after = await bench.record()
        assert (after.tested_devices, after.disproved_devices) == ((device,), ())

    tell(tmp_path, story)


@pytest.mark.req("P1")
def test_a_device_that_nobody_could_ask_has_failed_no_test(tmp_path: Path) -> None:
    async def story(bench: Bench) -> None:
        world = bench.world
        assert (await world.control.power_orders.test(ADMIN, "h1", "bmc")).test.passed
        before = await bench.record()
        bench.machine.refuses = True
        for bench.machine.why in sorted(UNASKED):
            with pytest.raises(Unavailable, match="was not asked"):
                await world.control.power_orders.test(ADMIN, "h1", "bmc")
        test = await bench.test()
        assert test is not None and test.passed
        assert await bench.record() == before

    tell(tmp_path, story)
