"""h1 runs web1 and has a power device that passed its test; h2 could run it. From there to the VM on h2, step by step."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from led_world import ABLE, ADMIN, LedWorld, led_world, two_hosts_and_a_vm
from msgspec.structs import replace

from virtha.control.power_views import PowerPut
from virtha.control.requests import OperationQuery
from virtha.model.facts import HostReport
from virtha.model.operation import Operation
from virtha.model.power_settings import MachineIdentity
from virtha.ports.power import PowerDevices

WAIT_S = 60.0
STEPS_MAX = 400


def tell(
    directory: Path, power: PowerDevices, story: Callable[[LedWorld], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with led_world(directory, power) as world:
            await story(world)

    asyncio.run(main())


async def step(world: LedWorld, *beating: str) -> None:
    """Half a second, and all that was asked of power devices in it."""
    await world.pass_time(500, beating=beating)
    desk = world.feed.power_desk
    assert desk is not None
    async with asyncio.timeout(WAIT_S):
        while desk.busy:
            await asyncio.sleep(0.001)
    await world.leader.turn()
    await world.leader.send_all()


async def steps_until(world: LedWorld, happened: Callable[[], bool], *beating: str) -> None:
    for _ in range(STEPS_MAX):
        if happened():
            return
        await step(world, *beating)
    raise AssertionError(world.engines.explain_host(world.hosts["h1"].id))


async def powered(
    world: LedWorld, put: PowerPut, *more: str, machine: MachineIdentity = MachineIdentity()
) -> None:
    """h1 runs web1, h2 could. h1's device passed its test while it beat. ``more``: who beats as well. ``machine``: what h1
    says it is."""
    await two_hosts_and_a_vm(world)
    if machine != MachineIdentity():
        await world.hosts["h1"].tell(HostReport(capabilities=replace(ABLE, machine=machine)))
    await world.control.power.put_of_host(ADMIN, "h1", "bmc", put, None)
    await world.settle()
    await step(world, "h1", "h2", *more)
    view = await world.control.power_orders.test(ADMIN, "h1", None)
    assert view.test.passed, view
    await step(world, "h1", "h2", *more)


async def fencing(world: LedWorld) -> Operation:
    """The one that there is."""
    query = OperationQuery(kind="host.fence", subject=world.hosts["h1"].id)
    (found,) = (await world.control.operations.list(query)).items
    return found


async def silent(world: LedWorld, *beating: str, who: str = "h1") -> None:
    """No connection breaks; they are given up."""
    for _ in range(4):
        await step(world, *(beating or ("h2",)))
    world.hosts[who].vanish()


def started(world: LedWorld) -> Callable[[], bool]:
    return lambda: bool(world.hosts["h2"].starts())


async def web1_runs_once_on_h2(world: LedWorld) -> None:
    (order,) = world.hosts["h2"].starts()
    await world.hosts["h2"].started(order)
    for _ in range(4):
        await step(world, "h2")
    assert (await world.vm()).status.holders == (world.hosts["h2"].id,)
    assert [host_id for host_id, _ in world.all_starts()][-1] == world.hosts["h2"].id
    assert len(world.hosts["h2"].starts()) == 1
    (proven,) = await world.events("host.proven_dead")
    assert proven.host_id == world.hosts["h1"].id and proven.fields["proof"] == "power_off"
