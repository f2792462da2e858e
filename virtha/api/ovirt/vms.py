"""``/vms``: thin over the use cases of VMs."""

from collections.abc import Sequence

from msgspec import UNSET

from virtha.api.ovirt.clusters import cluster_ref
from virtha.api.ovirt.fault import require
from virtha.api.ovirt.listing import in_turns, listed
from virtha.api.ovirt.networks import nics_of
from virtha.api.ovirt.operations import action_reply, status_of_addition, underway, waited
from virtha.api.ovirt.parameters import Parameters
from virtha.api.ovirt.route import (
    Call,
    Reply,
    Route,
    action,
    delete,
    get,
    named,
    post,
    put,
    searched,
)
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.unkept import refuse_others
from virtha.api.ovirt.vm_body import (
    MEMORY_DEFAULT,
    ha_of,
    machine_of,
    on_io_error_of,
    priority_of,
    refuse_other_machine,
    refuse_other_sources,
    refuse_unkept,
    refuse_unkept_start,
    vcpus_of,
    watchdog_of,
)
from virtha.api.ovirt.vm_node import BLANK, BLANK_NAME, vm_node
from virtha.control.requests import (
    VmChange,
    VmCreate,
    VmFromTemplate,
    VmMigrate,
    VmQuery,
    VmStart,
)
from virtha.control.views import VmView
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.ids import VmId
from virtha.model.machine import MachineType
from virtha.model.operation import Operation
from virtha.model.vm import OnIoError, VmState


async def the_vm(call: Call) -> VmView:
    """The VM that the path names: by its id only, as everywhere in oVirt. Raises NotFound."""
    vm_id = call.path["vm"]
    if vm_id not in call.known.vms:
        view = await call.control.vms.get(vm_id)
        if view.vm.id != vm_id:
            raise NotFound(f"there is no VM with the id '{vm_id[:64]}'")
        call.known.add_vms((view,))
    return call.known.vms[vm_id]


async def all_vms(call: Call) -> list[VmView]:
    return await _vms(call, call.parameters)


async def every_vm(call: Call) -> Sequence[VmView]:
    """Whatever the request asks for."""
    if call.known.all_vms is None:
        call.known.all_vms = await _vms(call, Parameters())
    return call.known.all_vms


async def _vms(call: Call, parameters: Parameters) -> list[VmView]:
    def renamed(view: VmView) -> tuple[str, str]:
        return view.vm.id, view.vm.name

    found = await listed(parameters, "Vms", call.control.vms.list, VmQuery(), renamed=renamed)
    call.known.add_vms(found)
    return found


async def list_vms(call: Call) -> Reply:
    found = await all_vms(call)
    open_ones = await underway(call) if found else {}
    await _add_templates(call, [view.vm.id for view in found])
    templates = call.known.templates_of

    def node(view: VmView) -> Node:
        vm_id = view.vm.id
        return vm_node(view, open_ones.get(vm_id, ()), templates.get(vm_id))

    return Reply(shape="vm", body=await in_turns(found, node))


async def _add_templates(call: Call, ids: Sequence[VmId]) -> None:
    found = await call.control.templates.of_vms(ids)
    call.known.templates_of.update({vm_id: found.get(vm_id) for vm_id in ids})


async def get_vm(call: Call) -> Reply:
    view = await the_vm(call)
    return await _shown(call, view)


async def _shown(call: Call, view: VmView, status: int = 200) -> Reply:
    vm_id, known = view.vm.id, call.known
    many = len(known.vms) > 1  # its like will be asked for, too
    open_ones = await underway(call, None if many else vm_id)
    if vm_id not in known.templates_of:
        await _add_templates(call, [vm_id, *known.vms_without({vm_id, *known.templates_of})])
    node = vm_node(view, open_ones.get(vm_id, ()), known.templates_of[vm_id])
    return Reply(shape="vm", body=node, status=status)


# Making and changing


async def add_vm(call: Call) -> Reply:
    body = call.body
    require("vm", body, "name", "cluster.id|name", "template.id|name")
    refuse_other_sources(body)
    refuse_unkept(body)
    if named(body["template"]) in (BLANK, BLANK_NAME):
        operation = await call.control.vms.create(call.caller, await _from_nothing(call))
    else:
        operation = await _from_template(call)
    status = status_of_addition(await waited(call, operation))
    return await _shown(call, await call.control.vms.get(operation.subject), status)


async def _from_nothing(call: Call) -> VmCreate:
    body = call.body
    cluster_id = await cluster_ref(call, body["cluster"])
    vcpus, watchdog = vcpus_of(body), watchdog_of(body)
    nics = await nics_of(call, cluster_id, body)
    ha, machine, on_io_error = ha_of(body), machine_of(body), on_io_error_of(body)
    priority = priority_of(body)
    architecture = (body.get("cpu") or {}).get("architecture") or "x86_64"
    usual = MachineType.S390_CCW if architecture == "s390x" else MachineType.Q35
    return VmCreate(
        name=body["name"],
        cluster=cluster_id,
        memory_bytes=body.get("memory", MEMORY_DEFAULT),
        vcpus=1 if vcpus is UNSET else vcpus,
        architecture=architecture,
        machine=usual if machine is UNSET else machine,
        watchdog=None if watchdog is UNSET else watchdog,
        ha=False if ha is UNSET else ha,
        priority=0 if priority is UNSET else priority,
        on_io_error=OnIoError.AUTO_RESUME if on_io_error is UNSET else on_io_error,
        nics=() if nics is UNSET else nics,
        description=body.get("description", ""),
    )


async def _from_template(call: Call) -> Operation:
    """Thin, as oVirt does it for a server unless ``clone`` is said."""
    body = call.body
    template = await call.control.templates.get(str(named(body["template"])))
    if await cluster_ref(call, body["cluster"]) != template.template.cluster_id:
        raise InvalidInput(
            f"template {template.template.name} belongs to {template.cluster_name}",
            field="cluster",
            allowed=(template.cluster_name,),
        )
    refuse_other_machine(
        body,
        template.template,
        owner=f"template {template.template.name}",
        fix="leave it out, or change it once the VM is there",
    )
    request = VmFromTemplate(
        name=body["name"],
        thin=not call.parameters.flag("clone", default=False),
        storage_domain=_storage_of(body),
        memory_bytes=body.get("memory", UNSET),
        vcpus=vcpus_of(body, template.template.vcpus),
        watchdog=watchdog_of(body),
        ha=ha_of(body),
        priority=priority_of(body),
        on_io_error=on_io_error_of(body),
        nics=await nics_of(call, template.template.cluster_id, body),
        description=body.get("description", UNSET),
    )
    return await call.control.templates.create_vm(call.caller, template.template.id, request)


def _storage_of(body: Node) -> str | None:
    """Of the disks: ``storage_domain`` of the VM, or that of its first disk which names one."""
    said = [body.get("storage_domain")]
    for attachment in body.get("disk_attachments", ()):
        said += (attachment.get("disk") or {}).get("storage_domains", ())
    return next((named(one) for one in said if named(one)), None)


async def change_vm(call: Call) -> Reply:
    body, view = call.body, await the_vm(call)
    refuse_unkept(body)
    other = named(body.get("cluster"))
    if other is not None and other not in (view.vm.cluster_id, view.cluster_name):
        raise InvalidInput(
            f"{view.vm.name} stays in its cluster", field="cluster", allowed=(view.cluster_name,)
        )
    change = VmChange(
        name=body.get("name", UNSET),
        description=body.get("description", UNSET),
        memory_bytes=body.get("memory", UNSET),
        vcpus=vcpus_of(body, view.vm.vcpus),
        machine=machine_of(body),
        watchdog=watchdog_of(body),
        ha=ha_of(body),
        priority=priority_of(body),
        on_io_error=on_io_error_of(body),
    )
    return await _shown(call, await call.control.vms.change(call.caller, view.vm.id, change))


async def remove_vm(call: Call) -> Reply:
    """With its disks, as oVirt does it, unless ``detach_only`` is said."""
    view = await the_vm(call)
    operation = await call.control.vms.delete(
        call.caller,
        view.vm.id,
        delete_data=not call.parameters.flag("detach_only", default=False),
    )
    await waited(call, operation)
    return Reply()


# Power


async def start_vm(call: Call) -> Reply:
    """A paused VM is let go on: oVirt has no other word for that."""
    view = await the_vm(call)
    once = call.body.get("vm") or {}
    refuse_unkept_start(once)
    refuse_others(call.body, {}, "volatile")
    if view.status.state is VmState.PAUSED:
        return await action_reply(call, await call.control.vms.resume(call.caller, view.vm.id))
    for name in ("pause", "use_cloud_init", "use_sysprep"):
        if call.body.get(name):
            raise Refused(f"a start with {name} is not offered", field=name, fix="leave it out")
    hosts = (once.get("placement_policy") or {}).get("hosts", ())
    if len(hosts) > 1:
        raise InvalidInput(
            "one host, or none, can be named", field="vm.placement_policy.hosts", fix="name one"
        )
    host = _host_of(hosts[0], "vm.placement_policy.hosts") if hosts else None
    request = VmStart(host=host)
    return await action_reply(call, await call.control.vms.start(call.caller, view.vm.id, request))


def _host_of(said: Node, field: str) -> str:
    """Raises InvalidInput: nowhere in particular is said by no host at all."""
    host = named(said)
    if not host:
        raise InvalidInput("says no host", field=field, fix="give its id or name, or leave it out")
    return host


async def stop_vm(call: Call) -> Reply:
    view = await the_vm(call)
    return await action_reply(call, await call.control.vms.power_off(call.caller, view.vm.id))


async def shut_down_vm(call: Call) -> Reply:
    view = await the_vm(call)
    return await action_reply(call, await call.control.vms.shutdown(call.caller, view.vm.id))


async def reboot_vm(call: Call) -> Reply:
    """``force``: a reset, which asks nobody."""
    view = await the_vm(call)
    vms = call.control.vms
    reboot = vms.reset if call.body.get("force") else vms.reboot
    return await action_reply(call, await reboot(call.caller, view.vm.id))


async def reset_vm(call: Call) -> Reply:
    view = await the_vm(call)
    return await action_reply(call, await call.control.vms.reset(call.caller, view.vm.id))


async def suspend_vm(call: Call) -> Reply:
    """A saved memory image beside a disk that others may go on with would be a second writer later (G3)."""
    view = await the_vm(call)
    raise Refused(
        f"{view.vm.name} can't be suspended: no memory image is kept, which could be resumed over a changed disk",
        fix="pause it ('virtha vm pause'), or shut it down",
    )


async def migrate_vm(call: Call) -> Reply:
    view = await the_vm(call)
    said = call.body.get("host")
    request = VmMigrate(host=None if said is None else _host_of(said, "host"))
    operation = await call.control.moves.migrate(call.caller, view.vm.id, request)
    return await action_reply(call, operation)


async def cancel_migration(call: Call) -> Reply:
    view = await the_vm(call)
    return await action_reply(call, await call.control.moves.cancel(call.caller, view.vm.id))


VM = "/vms/{vm}"
ROUTES: tuple[Route, ...] = (
    searched("/vms", list_vms),
    post("/vms", add_vm, "vm"),
    get(VM, get_vm),
    put(VM, change_vm, "vm"),
    delete(VM, remove_vm),
    action(f"{VM}/start", start_vm),
    action(f"{VM}/stop", stop_vm),
    action(f"{VM}/shutdown", shut_down_vm),
    action(f"{VM}/reboot", reboot_vm),
    action(f"{VM}/reset", reset_vm),
    action(f"{VM}/suspend", suspend_vm),
    action(f"{VM}/migrate", migrate_vm),
    action(f"{VM}/cancelmigration", cancel_migration),
)
