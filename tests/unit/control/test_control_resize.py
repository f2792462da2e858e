"""Disks grow: by the copy that has them open, or by a host that holds the VM meanwhile. Never shrink."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.control.requests import DiskResize, SnapshotCreate, VmStart
from virtha.control.views import Caller
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused, Stale, VirthaError
from virtha.model.facts import Released, Result, RunsWith
from virtha.model.ids import Incarnation, Revision
from virtha.model.operation import OperationState
from virtha.model.orders import GrowDisk, GrowLiveDisk
from virtha.model.user import Role
from virtha.model.vm import Hardware

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
MIB = 1 << 20
LARGER = DiskResize(size_bytes=128 * MIB)
Tell = Callable[[Any], None]


async def _installed(world: Any, *, runs: bool) -> Any:
    host = await world.join("h1")
    await world.add_storage()
    await world.add_vm()
    if runs:
        await world.run_vm()
    return host


async def _size(world: Any) -> int:
    return int((await world.control.vms.get("web1")).vm.disks[0].size_bytes)


async def _state(world: Any, operation: Any) -> OperationState:
    return OperationState((await world.control.operations.get(operation.id)).state)


@pytest.mark.req("G1", "G4")
def test_a_running_vms_disk_grows_in_its_own_copy_and_then_on_record(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world, runs=True)
        devices = world.control.vms.devices
        operation = await devices.resize_disk(ADMIN, "web1", "disk0", LARGER)
        order = host.orders[-1].body
        assert isinstance(order, GrowLiveDisk)
        assert (order.incarnation, order.size_bytes) == (1, 128 * MIB)
        assert await _size(world) == 64 * MIB, "nothing is promised that the disk has not"
        with pytest.raises(Conflict):
            await world.control.snapshots.create(ADMIN, "web1", SnapshotCreate(name="s"))
        await host.answer()
        assert await _size(world) == 128 * MIB
        assert await _state(world, operation) is OperationState.DONE
        assert (await world.events("disk.resized"))[0].fields["size"] == "128MiB"
        view = await world.control.vms.get("web1")
        small = view.vm.disks[0]
        hardware = Hardware(
            memory_bytes=view.vm.memory_bytes,
            vcpus=view.vm.vcpus,
            machine=view.vm.machine,
            disks=(small.__class__(**{**_fields(small), "size_bytes": 64 * MIB}),),
        )
        await host.tell(RunsWith(vm_id=view.vm.id, incarnation=Incarnation(1), hardware=hardware))
        assert (await world.control.vms.get("web1")).pending == (), "its size waits for nothing"

    tell(story)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


@pytest.mark.req("G1", "G2", "G4")
def test_a_vm_that_is_down_is_held_while_its_disk_grows(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world, runs=False)
        devices = world.control.vms.devices
        operation = await devices.resize_disk(ADMIN, "web1", "disk0", LARGER)
        order = host.orders[-1].body
        assert isinstance(order, GrowDisk) and order.grant.incarnation == 1
        assert (await world.control.vms.get("web1")).status.holders == (host.id,)
        with pytest.raises(Conflict):
            await world.control.vms.start(ADMIN, "web1", VmStart())
        await host.answer()
        await host.tell(Released(vm_id=order.vm.id, incarnation=Incarnation(1)))
        assert await _state(world, operation) is OperationState.DONE
        assert await _size(world) == 128 * MIB
        assert (await world.control.vms.get("web1")).status.holders == ()

    tell(story)


@pytest.mark.req("G1")
@pytest.mark.bad_input("disk that is to shrink")
@pytest.mark.parametrize("runs", [True, False])
def test_it_goes_on_after_the_servers_end(tell: Tell, runs: bool) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world, runs=runs)
        operation = await world.control.vms.devices.resize_disk(ADMIN, "web1", "disk0", LARGER)
        asked = host.orders[-1].body
        await world.reopen()
        await host.hello()  # its beats come after it, and no grant without one
        answer = await host.hello()
        orders = [order.body for order in answer.orders]
        assert [type(body) for body in orders] == [type(asked)]
        order = next(order for order in answer.orders)
        await host.answer(order)
        assert await _state(world, operation) is OperationState.DONE
        assert await _size(world) == 128 * MIB

    tell(story)


@pytest.mark.bad_input("disk that is to shrink")
def test_what_failed_leaves_the_record_and_can_be_asked_again(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world, runs=True)
        devices = world.control.vms.devices
        operation = await devices.resize_disk(ADMIN, "web1", "disk0", LARGER)
        await host.answer(result=Result.UNKNOWN, code="problem.failed", message="no answer")
        assert await _state(world, operation) is OperationState.FAILED
        assert await _size(world) == 64 * MIB
        again = await devices.resize_disk(ADMIN, "web1", "disk0", LARGER)
        await host.answer()
        assert await _state(world, again) is OperationState.DONE

    tell(story)


@pytest.mark.bad_input("disk that is to shrink")
def test_bad_wishes_are_refused_before_anything_is_ordered(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world, runs=False)
        devices = world.control.vms.devices
        before, since = await _size(world), len(host.orders)
        for size_bytes, code in ((32 * MIB, "problem.disk.shrink"), (1 << 60, "problem.invalid"),
                                 (128 * MIB + 1, "problem.invalid"), (0, "problem.disk.shrink"),
                                 (-5, "problem.disk.shrink")):  # fmt: skip
            with pytest.raises(InvalidInput) as caught:
                await devices.resize_disk(ADMIN, "web1", "disk0", DiskResize(size_bytes=size_bytes))
            assert (caught.value.code, caught.value.field) == (code, "size_bytes")
        with pytest.raises(NotFound, match="it has disk0"):
            await devices.resize_disk(ADMIN, "web1", "disk9", LARGER)
        with pytest.raises(Stale):
            await devices.resize_disk(ADMIN, "web1", "disk0", LARGER, Revision(1))
        await world.control.snapshots.create(ADMIN, "web1", SnapshotCreate(name="before"))
        order = host.orders[-1]
        await host.answer(order)
        grant = order.body.grant
        await host.tell(Released(vm_id=grant.vm_id, incarnation=grant.incarnation))
        with pytest.raises(VirthaError) as refused:
            await devices.resize_disk(ADMIN, "web1", "disk0", LARGER)
        assert isinstance(refused.value, Refused)
        assert refused.value.code == "problem.snapshot.state"
        assert "snapshot delete web1 before" in refused.value.fix
        assert len(host.orders) == since + 1
        assert await _size(world) == before

    tell(story)
