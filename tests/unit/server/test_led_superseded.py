"""A host that was wrongly proven dead is heard again (G4): through the engine, the leader, its orders and the host's settings."""

import asyncio
from pathlib import Path

import pytest
from led_world import LedWorld, PlayedHost, led_world, two_hosts_and_a_vm

from virtha.engine.events import ProofFound
from virtha.model.facts import ReleaseCause, Released, VmReport
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import StopMode, StopVm
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("G4")


async def proven_dead(world: LedWorld) -> VmId:
    """h1, by an operator's word that is wrong. h2 is ordered to start web1, and has not said yet that it runs."""
    vm_id = await two_hosts_and_a_vm(world)
    h1 = world.hosts["h1"]
    h1.vanish()
    await world.pass_time(8_000, beating=("h2",))
    word = Proof(kind=ProofKind.OPERATOR, host_id=h1.id, boot=h1.boot, at_ms=1 << 60)
    world.feed.offer(ProofFound(proof=word))
    await world.settle()
    return vm_id


def ends(host: PlayedHost) -> list[StopVm]:
    return [order.body for order in host.orders if isinstance(order.body, StopVm)]


async def named(world: LedWorld, host: PlayedHost, vm_id: VmId) -> Incarnation | None:
    """What its settings say of the VM; None: that it is none of its."""
    settings = await world.control.hosts.settings_for_host(host.id)
    return next((one.incarnation for one in settings.vms if one.vm.id == vm_id), None)


def test_its_copy_is_left_alone_and_ended_and_the_vm_is_the_newer_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with led_world(tmp_path) as world:
            vm_id = await proven_dead(world)
            h1, h2 = world.hosts["h1"], world.hosts["h2"]
            await h2.started(h2.starts()[-1])
            await world.settle()
            assert await named(world, h1, vm_id) is None
            await h1.hello()
            await world.settle()
            assert await named(world, h1, vm_id) == 2, "superseded: its sentinel leaves it as it is"
            (end,) = ends(h1)
            assert end.mode is StopMode.POWER_OFF and end.superseded is not None
            assert (end.incarnation, end.superseded.incarnation) == (1, 2)
            assert end.superseded.proof.boot == h1.boot
            view = await world.vm()
            assert set(view.status.holders) == {h1.id, h2.id} and view.status.host_id == h2.id
            assert view.status.incarnation == 2 and view.status.state is VmState.RUNNING
            await h1.tell(
                Released(vm_id=vm_id, incarnation=Incarnation(1), cause=ReleaseCause.SUPERSEDED)
            )
            await world.settle()
            view = await world.vm()
            assert view.status.holders == (h2.id,) and view.status.superseded == ()
            assert view.status.wanted_up and view.status.state is VmState.RUNNING
            assert len(await world.events("vm.superseded_copy_ended")) == 1

    asyncio.run(story())


def test_it_stays_superseded_when_the_newer_copy_is_over_too(tmp_path: Path) -> None:
    """Named as before, its sentinel would restart what must not run on."""

    async def story() -> None:
        async with led_world(tmp_path) as world:
            vm_id = await proven_dead(world)
            h1, h2 = world.hosts["h1"], world.hosts["h2"]
            await h2.started(h2.starts()[-1])
            await world.settle()
            await h1.hello()
            await world.settle()
            await h2.tell(
                Released(vm_id=vm_id, incarnation=Incarnation(2), cause=ReleaseCause.HOST_SHUTDOWN),
                VmReport(vm_id=vm_id, incarnation=Incarnation(2), state=VmState.DOWN),
            )
            await world.settle()
            assert (await world.vm()).status.holders == (h1.id,)
            assert await named(world, h1, vm_id) == 2
            await h1.tell(VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.RUNNING))
            await world.settle()
            status = (await world.vm()).status
            assert (status.state, status.host_id) == (VmState.DOWN, h2.id), "that copy is to end"

    asyncio.run(story())
