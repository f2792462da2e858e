"""Virtual machines and their watchdogs: thin over control."""

from virtha.api.inventory import accepted
from virtha.api.route import Answer, Call, NoBody, NoQuery
from virtha.control.requests import VmChange, VmCreate, VmQuery, VmStart, WatchdogRequest
from virtha.control.views import VmView
from virtha.model.value import Request


class DeleteVmQuery(Request, frozen=True, kw_only=True):
    keep_disks: bool = False


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


async def delete_vm(call: Call[DeleteVmQuery, NoBody]) -> Answer:
    operation = await call.control.vms.delete(
        call.caller, call.ref, keep_disks=call.query.keep_disks, if_match=call.if_match
    )
    return accepted(operation)


async def start_vm(call: Call[NoQuery, VmStart]) -> Answer:
    return accepted(await call.control.vms.start(call.caller, call.ref, call.body))


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


async def get_watchdog(call: Call[NoQuery, NoBody]) -> Answer:
    watchdog = await call.control.vms.watchdog(call.ref)
    view = await call.control.vms.get(call.ref)
    return Answer(body=watchdog, revision=view.vm.revision)


def _watchdog_of(view: VmView) -> Answer:
    return Answer(
        body=view.vm.watchdog,
        revision=view.vm.revision,
        location=f"/v1/vms/{view.vm.id}/watchdog",
    )


async def add_watchdog(call: Call[NoQuery, WatchdogRequest]) -> Answer:
    vms = call.control.vms
    return _watchdog_of(await vms.add_watchdog(call.caller, call.ref, call.body, call.if_match))


async def put_watchdog(call: Call[NoQuery, WatchdogRequest]) -> Answer:
    vms = call.control.vms
    return _watchdog_of(await vms.put_watchdog(call.caller, call.ref, call.body, call.if_match))


async def remove_watchdog(call: Call[NoQuery, NoBody]) -> Answer:
    await call.control.vms.remove_watchdog(call.caller, call.ref, call.if_match)
    return Answer()
