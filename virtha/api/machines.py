"""Virtual machines: thin over control."""

from virtha.api.inventory import accepted
from virtha.api.route import OPERATOR, VIEWER, Answer, Call, NoBody, NoQuery, Route
from virtha.api.watchdogs import watchdog_routes
from virtha.control.requests import (
    DiskCreate,
    DiskResize,
    NicCreate,
    VmChange,
    VmCreate,
    VmMigrate,
    VmQuery,
    VmStart,
)
from virtha.control.views import Page, VmView
from virtha.model.errors import NotFound, Unavailable
from virtha.model.operation import Operation
from virtha.model.value import Request


class DeleteVmQuery(Request, frozen=True, kw_only=True):
    delete_data: bool = False


def _shown(view: VmView) -> Answer:
    return Answer(body=view, revision=view.vm.revision)


async def list_vms(call: Call[VmQuery, NoBody]) -> Answer:
    return Answer(body=await call.control.vms.list(call.query))


async def create_vm(call: Call[NoQuery, VmCreate]) -> Answer:
    return accepted(await call.control.vms.create(call.caller, call.body))


async def get_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return _shown(await call.control.vms.get(call.ref))


async def change_vm(call: Call[NoQuery, VmChange]) -> Answer:
    return _shown(await call.control.vms.change(call.caller, call.ref, call.body, call.if_match))


async def drop_pending(call: Call[NoQuery, NoBody]) -> Answer:
    return _shown(await call.control.vms.drop_pending(call.caller, call.ref, call.if_match))


async def delete_vm(call: Call[DeleteVmQuery, NoBody]) -> Answer:
    operation = await call.control.vms.delete(
        call.caller, call.ref, delete_data=call.query.delete_data, if_match=call.if_match
    )
    return accepted(operation)


async def start_vm(call: Call[NoQuery, VmStart]) -> Answer:
    return accepted(await call.control.vms.start(call.caller, call.ref, call.body))


async def migrate_vm(call: Call[NoQuery, VmMigrate]) -> Answer:
    return accepted(await call.control.moves.migrate(call.caller, call.ref, call.body))


async def cancel_migration(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.moves.cancel(call.caller, call.ref))


async def free_vm(call: Call[NoQuery, NoBody]) -> Answer:
    await call.services.unless_stopping(call.control.freeing.free_vm(call.caller, call.ref))
    return await get_vm(call)


async def shut_down_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.shutdown(call.caller, call.ref))


async def power_off_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.power_off(call.caller, call.ref))


async def reboot_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.reboot(call.caller, call.ref))


async def reset_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.reset(call.caller, call.ref))


async def pause_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.pause(call.caller, call.ref))


async def resume_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.resume(call.caller, call.ref))


async def release_vm(call: Call[NoQuery, NoBody]) -> Answer:
    return accepted(await call.control.vms.release(call.caller, call.ref))


async def add_disk(call: Call[NoQuery, DiskCreate]) -> Answer:
    devices = call.control.vms.devices
    return accepted(await devices.add_disk(call.caller, call.ref, call.body, call.if_match))


async def remove_disk(call: Call[NoQuery, NoBody]) -> Answer:
    devices, disk = call.control.vms.devices, call.path["disk"]
    return accepted(await devices.remove_disk(call.caller, call.ref, disk, call.if_match))


async def resize_disk(call: Call[NoQuery, DiskResize]) -> Answer:
    devices, disk = call.control.vms.devices, call.path["disk"]
    return accepted(
        await devices.resize_disk(call.caller, call.ref, disk, call.body, call.if_match)
    )


async def add_nic(call: Call[NoQuery, NicCreate]) -> Answer:
    devices = call.control.vms.devices
    return accepted(await devices.add_nic(call.caller, call.ref, call.body, call.if_match))


async def remove_nic(call: Call[NoQuery, NoBody]) -> Answer:
    devices, nic = call.control.vms.devices, call.path["nic"]
    return accepted(await devices.remove_nic(call.caller, call.ref, nic, call.if_match))


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/vms",
        role=VIEWER,
        summary="List VMs",
        handler=list_vms,
        query=VmQuery,
        answer=Page[VmView],
        errors=(NotFound,),
    ),
    Route(
        method="POST",
        path="/v1/vms",
        role=OPERATOR,
        summary="Create a VM; the operation's subject is its id",
        handler=create_vm,
        body=VmCreate,
        answer=Operation,
        status=202,
        errors=(NotFound,),
    ),
    Route(
        method="GET",
        path="/v1/vms/{ref}",
        role=VIEWER,
        summary="Show a VM, why it is as it is and whether it is protected",
        handler=get_vm,
        answer=VmView,
    ),
    Route(
        method="PATCH",
        path="/v1/vms/{ref}",
        role=OPERATOR,
        summary="Change a VM",
        handler=change_vm,
        body=VmChange,
        answer=VmView,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/drop-pending",
        role=OPERATOR,
        summary="Drop the changes that wait for a VM's next start; disks stay",
        handler=drop_pending,
        answer=VmView,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/vms/{ref}",
        role=OPERATOR,
        summary="Delete a stopped VM; its disks stay, unless delete_data is said",
        handler=delete_vm,
        query=DeleteVmQuery,
        answer=Operation,
        status=202,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/start",
        role=OPERATOR,
        summary="Start a VM",
        handler=start_vm,
        body=VmStart,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/migrate",
        role=OPERATOR,
        summary="Move a running VM to another host",
        handler=migrate_vm,
        body=VmMigrate,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/cancel-migration",
        role=OPERATOR,
        summary="Call a move off, unless it is past its switch-over",
        handler=cancel_migration,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/free",
        role=OPERATOR,
        summary="Let a VM be brought back that is kept down: hosts died with it, or no start succeeded",
        handler=free_vm,
        answer=VmView,
        errors=(Unavailable,),
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/shutdown",
        role=OPERATOR,
        summary="Ask the guest to shut down",
        handler=shut_down_vm,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/power-off",
        role=OPERATOR,
        summary="Power a VM off at once",
        handler=power_off_vm,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/reboot",
        role=OPERATOR,
        summary="Ask the guest to reboot",
        handler=reboot_vm,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/reset",
        role=OPERATOR,
        summary="Reset a VM at once",
        handler=reset_vm,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/pause",
        role=OPERATOR,
        summary="Pause a VM",
        handler=pause_vm,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/resume",
        role=OPERATOR,
        summary="Resume a paused VM",
        handler=resume_vm,
        answer=Operation,
        status=202,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/release",
        role=OPERATOR,
        summary="Give an adopted VM back",
        handler=release_vm,
        answer=Operation,
        status=202,
    ),
    *watchdog_routes(
        "vms", "a VM", keeper=lambda control: control.vms, record=lambda view: view.vm
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/disks",
        role=OPERATOR,
        summary="Add a disk, to a running VM without a restart",
        handler=add_disk,
        body=DiskCreate,
        answer=Operation,
        status=202,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/vms/{ref}/disks/{disk}",
        role=OPERATOR,
        summary="Remove a disk; its file stays",
        handler=remove_disk,
        answer=Operation,
        status=202,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/disks/{disk}/resize",
        role=OPERATOR,
        summary="Make a disk larger, of a running VM without a restart",
        handler=resize_disk,
        body=DiskResize,
        answer=Operation,
        status=202,
        conditional=True,
    ),
    Route(
        method="POST",
        path="/v1/vms/{ref}/nics",
        role=OPERATOR,
        summary="Add a network card, to a running VM without a restart",
        handler=add_nic,
        body=NicCreate,
        answer=Operation,
        status=202,
        conditional=True,
    ),
    Route(
        method="DELETE",
        path="/v1/vms/{ref}/nics/{nic}",
        role=OPERATOR,
        summary="Remove a network card",
        handler=remove_nic,
        answer=Operation,
        status=202,
        conditional=True,
    ),
)
