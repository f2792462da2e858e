"""Deleting a VM: its data stays unless its end is asked for; half done, it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from virtha.control.requests import TemplateCreate
from virtha.control.views import Caller
from virtha.model.errors import NotFound, Refused
from virtha.model.facts import Result
from virtha.model.ids import DiskId, HostId, Incarnation
from virtha.model.operation import OperationState
from virtha.model.orders import ForgetVm
from virtha.model.user import Role
from virtha.model.vm import Disk, PossibleCopy
from virtha.store.vms import save_vm, save_vm_status

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]


async def _installed(world: Any) -> Any:
    host = await world.join("h1")
    await world.add_storage()
    await world.add_vm()
    return host


async def _with_disk(world: Any, **more: Any) -> Disk:
    vm = (await world.control.vms.get("web1")).vm
    further = msgspec.structs.replace(vm.disks[0], id=DiskId("further"), name="further", **more)
    async with world.store.write() as tx:
        await save_vm(tx, msgspec.structs.replace(vm, disks=(*vm.disks, further)))
    return further


def test_the_data_stays_unless_its_end_is_asked_for(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world)
        await world.play((await world.control.vms.delete(ADMIN, "web1")).id)
        body = host.orders[-1].body
        assert isinstance(body, ForgetVm) and body.disks == ()
        assert await world.events("disk.deleted") == []

    tell(story)


def test_a_read_only_disk_is_not_the_vms_to_delete(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world)
        await _with_disk(world, path="isos/debian.iso", readonly=True)
        operation = await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        body = host.orders[-1].body
        assert isinstance(body, ForgetVm)
        assert [disk.name for disk in body.disks] == ["disk0"]
        await world.play(operation.id)

    tell(story)


@pytest.mark.req("W5")
@pytest.mark.bad_input("deletion of a VM that may run")
def test_what_others_need_is_not_deleted(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world)
        made = await world.control.templates.create(ADMIN, TemplateCreate(name="gold", vm="web1"))
        await world.play(made.id)
        base = (await world.control.templates.get("gold")).template.disks[0]
        since = len(host.orders)
        # As an adopted domain may have it: its XML names the template's own file.
        await _with_disk(world, path=base.path)
        with pytest.raises(Refused) as refused:
            await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        assert refused.value.code == "problem.disk.outside"
        assert base.path in str(refused.value)
        assert len(host.orders) == since

    tell(story)


@pytest.mark.req("M2", "G1", "G4")
@pytest.mark.bad_input("deletion of a VM that may run")
def test_no_data_goes_while_somebody_may_write_to_it(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world)
        vm_id, _ = await world.run_vm()
        stopping = await world.control.vms.power_off(ADMIN, "web1")
        await host.stopped(vm_id, 1)
        await host.answer()
        assert (await world.control.operations.get(stopping.id)).is_over
        status = (await world.control.vms.get("web1")).status
        stranger = PossibleCopy(host_id=HostId("gone"), incarnation=Incarnation(7))
        async with world.store.write() as tx:
            await save_vm_status(tx, msgspec.structs.replace(status, copies=(stranger,)))
        with pytest.raises(Refused) as refused:
            await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        assert refused.value.code == "problem.vm.state"
        async with world.store.write() as tx:
            await save_vm_status(tx, status)
        await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        body = host.orders[-1].body
        # Its storage may know of a later start than a restored database: then the agent refuses.
        assert isinstance(body, ForgetVm) and body.incarnation == 1

    tell(story)


@pytest.mark.bad_input("deletion of a VM that may run")
def test_half_a_deletion_goes_on_and_a_failed_one_is_asked_for_again(
    tell: Tell, tmp_path: Path
) -> None:
    async def story(world: Any) -> None:
        host = await _installed(world)
        operation = await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        await world.reopen()
        answer = await host.hello("h1-boot2")
        (order,) = answer.orders
        assert isinstance(order.body, ForgetVm) and len(order.body.disks) == 1
        await host.answer(order, result=Result.FAILED, code="problem.failed", message="EIO")
        ended = await world.control.operations.get(operation.id)
        assert ended.state is OperationState.FAILED
        assert (await world.control.vms.get("web1")).vm.name == "web1", "what is left is known"
        again = await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        await host.answer()
        assert (await world.control.operations.get(again.id)).state is OperationState.DONE
        with pytest.raises(NotFound):
            await world.control.vms.get("web1")

    tell(story)


def test_a_storage_domain_that_is_removed_is_called_as_its_troubles_call_it(tell: Tell) -> None:
    """By its id: so routes know that those are over."""

    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        domain = (await world.control.storage.get("ds1")).domain
        await world.control.storage.delete(ADMIN, "ds1")
        (removed,) = await world.events("storage.removed")
        assert removed.fields["domain"] == domain.id

    tell(story)
