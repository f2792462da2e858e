"""A VM out of a template: what is left out is as in the template (W5), and checked as for any new VM."""

from collections.abc import Callable

import msgspec
from msgspec import UNSET

from virtha.control.launch import Surroundings, read_surroundings
from virtha.control.maker import choose_maker
from virtha.control.names import check_name, check_text, taken, the_storage
from virtha.control.plan import DropRecord, Give, Launch, Plan, Step
from virtha.control.requests import NicCreate, VmFromTemplate, WatchdogRequest
from virtha.control.vm_checks import (
    capabilities_of,
    check_machine,
    check_sizes,
    check_watchdog,
    checked_priority,
    limit_of,
    plan_nics,
)
from virtha.model.errors import InvalidInput
from virtha.model.host import Host, StorageDomain
from virtha.model.ids import DiskId, VmId
from virtha.model.orders import CopyDisk, DefineVm, ForgetVm
from virtha.model.template import Template
from virtha.model.vm import Disk, DiskFormat, Vm, VmStatus
from virtha.model.watchdog import Watchdog
from virtha.ports.hosts import HostLinks
from virtha.store.store import Transaction, WriteTransaction
from virtha.store.templates import use_template
from virtha.store.vms import find_vm, save_vm, save_vm_status

MakeId = Callable[[], str]


async def plan_vm(
    tx: WriteTransaction,
    template: Template,
    request: VmFromTemplate,
    links: HostLinks,
    *,
    make_id: MakeId,
) -> tuple[Vm, Plan]:
    """Records the VM and that its disks need the template; the plan makes them. Raises InvalidInput, Conflict, Refused."""
    surroundings = await read_surroundings(tx, template.cluster_id)
    vm = await _new_vm(tx, template, request, surroundings, make_id)
    # It reads the one and writes the other: it must see both.
    needed = msgspec.structs.replace(vm, disks=(*vm.disks, *template.disks))
    maker = choose_maker(needed, surroundings, links, tx.clock.monotonic_ms())
    await save_vm(tx, vm)
    await save_vm_status(tx, VmStatus(vm_id=vm.id, host_id=maker.id, since=tx.clock.wall_ms()))
    for disk in vm.disks:
        # Also for a full copy: the template must stay until it is made.
        await use_template(tx, template.id, disk)
    return vm, _creation(vm, template, maker, thin=request.thin, start=request.start)


async def _new_vm(
    tx: Transaction,
    template: Template,
    request: VmFromTemplate,
    surroundings: Surroundings,
    make_id: MakeId,
) -> Vm:
    check_name(request.name)
    if await find_vm(tx, request.name) is not None:
        raise taken("VM", request.name)
    description = template.description if request.description is UNSET else request.description
    check_text(description, field="description")
    memory = template.memory_bytes if request.memory_bytes is UNSET else request.memory_bytes
    vcpus = template.vcpus if request.vcpus is UNSET else request.vcpus
    check_machine(template.architecture, template.machine)
    check_sizes(memory, vcpus, capabilities_of(surroundings))
    vm_id = VmId(make_id())
    if request.nics is UNSET:
        wanted = tuple(
            NicCreate(
                bridge=one.bridge, model=one.model, name=None if one.name is UNSET else one.name
            )
            for one in template.nics
        )
    else:
        wanted = request.nics
    return Vm(
        id=vm_id,
        name=request.name,
        cluster_id=template.cluster_id,
        description=description,
        memory_bytes=memory,
        vcpus=vcpus,
        architecture=template.architecture,
        machine=template.machine,
        watchdog=_watchdog(template, request, surroundings),
        ha=template.ha if request.ha is UNSET else request.ha,
        grade=UNSET if request.grade is UNSET else limit_of(request.grade),
        priority=checked_priority(
            template.priority if request.priority is UNSET else request.priority
        ),
        on_io_error=template.on_io_error if request.on_io_error is UNSET else request.on_io_error,
        disks=await _disks(tx, template, request, vm_id, make_id),
        nics=await plan_nics(tx, wanted, make_id=make_id),
    )


def _watchdog(
    template: Template, request: VmFromTemplate, surroundings: Surroundings
) -> Watchdog | None:
    """Checked anew: the hosts may have changed since the template was made."""
    wanted = request.watchdog
    if wanted is UNSET:
        card = template.watchdog
        wanted = None if card is None else WatchdogRequest(model=card.model, action=card.action)
    if wanted is None:
        return None
    able = capabilities_of(surroundings)
    return check_watchdog(wanted, template.architecture, template.machine, able)


async def _disks(
    tx: Transaction, template: Template, request: VmFromTemplate, vm_id: VmId, make_id: MakeId
) -> tuple[Disk, ...]:
    domain: StorageDomain | None = None
    if request.storage_domain is not None:
        domain = await the_storage(tx, request.storage_domain, field="storage_domain")
        _check_storage(domain, template, thin=request.thin)
    return tuple(
        _disk(source, vm_id, domain, make_id, thin=request.thin) for source in template.disks
    )


def _check_storage(domain: StorageDomain, template: Template, *, thin: bool) -> None:
    if domain.cluster_id != template.cluster_id:
        raise InvalidInput(
            f"{domain.name} belongs to another cluster than template {template.name}",
            field="storage_domain",
            fix="name one of the template's cluster, or none",
        )
    if thin and any(disk.storage_domain_id != domain.id for disk in template.disks):
        raise InvalidInput(
            f"a thin disk lies beside the template's, which is not on {domain.name}",
            field="storage_domain",
            fix="leave it out, or make a full copy",
        )


def _disk(
    source: Disk, vm_id: VmId, domain: StorageDomain | None, make_id: MakeId, *, thin: bool
) -> Disk:
    disk_format = DiskFormat.QCOW2 if thin else source.format
    return msgspec.structs.replace(
        source,
        id=DiskId(make_id()),
        storage_domain_id=source.storage_domain_id if domain is None else domain.id,
        path=f"vms/{vm_id}/{source.name}.{disk_format.value}",
        format=disk_format,
    )


def _creation(vm: Vm, template: Template, maker: Host, *, thin: bool, start: bool) -> Plan:
    steps: list[Step] = [
        Give(
            name=f"create {disk.name}",
            host_id=maker.id,
            order=CopyDisk(source=source, target=disk, thin=thin),
        )
        for source, disk in zip(template.disks, vm.disks, strict=True)
    ]
    steps.append(Give(name=f"define on {maker.name}", host_id=maker.id, order=DefineVm(vm=vm)))
    if start:
        steps.append(Launch(name="start", vm_id=vm.id))
    return Plan(
        steps=tuple(steps),
        on_failure=(
            Give(
                name="remove what was made",
                host_id=maker.id,
                order=ForgetVm(vm_id=vm.id, disks=vm.disks),
                optional=True,
            ),
            DropRecord(name="forget it", vm_id=vm.id, code="vm.deleted"),
        ),
    )
