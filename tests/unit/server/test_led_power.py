"""The leader's way to power devices: a host that dies silently is read, ordered off, read off, and its VM starts elsewhere,
once; whatever its device does, its leader forgets nothing and waits for nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, led_world, two_hosts_and_a_vm
from played_power import Machine, PlayedPower

from virtha.control.power_views import PowerPut
from virtha.model.ids import VmId
from virtha.model.power_settings import PowerDriver, PowerSettings

pytestmark = pytest.mark.req("F4", "F9")
Story = Callable[[LedWorld, PlayedPower], Awaitable[None]]
WAIT_S = 20.0


def tell(directory: Path, story: Story) -> None:
    async def main() -> None:
        power = PlayedPower()
        async with led_world(directory, power) as world:
            await story(world, power)

    asyncio.run(main())


async def answered(world: LedWorld) -> None:
    """Nothing is under way at any device."""
    desk = world.feed.power_desk
    assert desk is not None
    async with asyncio.timeout(WAIT_S):
        while desk.busy:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def pass_time(world: LedWorld, duration_ms: int, *beating: str) -> None:
    for _ in range(duration_ms // 500):
        await world.pass_time(500, beating=beating)
        await answered(world)


def settings(address: str, **more: object) -> PowerPut:
    given = PowerSettings(
        driver=PowerDriver.COMMAND,
        executable="/bin/false",
        syntax="$IPMI_EXEC $IPMI_ACTION $IPMI_HOST",
        stop="stop",
        start="start",
        status="status",
        address=address,
        **more,  # type: ignore[arg-type]  # names and values of fields
    )
    return PowerPut(settings=given)


async def powered(world: LedWorld, power: PlayedPower) -> tuple[VmId, Machine]:
    """h1 runs web1, h2 could; both have a device that passed its test."""
    vm_id = await two_hosts_and_a_vm(world)
    for name in ("h1", "h2"):
        power.add(f"{name}-bmc")
        await world.control.power.put_of_host(ADMIN, name, "bmc", settings(f"{name}-bmc"), None)
    await world.settle()
    await pass_time(world, 1_000, "h1", "h2")
    for name in ("h1", "h2"):
        assert (await world.control.power_orders.test(ADMIN, name, None)).test.passed
    await world.settle()
    machine = power.machines["h1-bmc"]
    machine.asked.clear()
    return vm_id, machine


def test_a_host_that_dies_silently_is_switched_off_and_its_vm_starts_once(tmp_path: Path) -> None:
    async def story(world: LedWorld, power: PlayedPower) -> None:
        vm_id, machine = await powered(world, power)
        await pass_time(world, 2_000, "h2")
        world.hosts["h1"].vanish()
        await pass_time(world, 15_000, "h2")
        print(machine.asked, world.engines.explain_host(world.hosts["h1"].id))
        print(world.engines.explain_vm(vm_id))
        for code in ("fence.began", "host.proven_dead", "host.judged_dead", "fence.level_failed"):
            print(code, [one.message for one in await world.events(code)])
        print(world.hosts["h2"].starts())
        assert 0

    tell(tmp_path, story)
