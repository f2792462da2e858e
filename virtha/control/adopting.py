"""Taking over domains that a scan has found: which, with what record, and what is left of one that failed."""

import msgspec

from virtha.control.effects import Effects
from virtha.control.engine_nouns import engine_vm
from virtha.control.names import check_name
from virtha.control.plan import AdoptFound, Give, Step
from virtha.engine.events import CopyGranted
from virtha.model.errors import NotFound, Refused, VirthaError
from virtha.model.facts import ForeignDomain, Result
from virtha.model.ids import BootId, ClusterId, HostId, Incarnation
from virtha.model.orders import AdoptVm
from virtha.model.vm import Vm, VmState, VmStatus
from virtha.store.clusters import storage_of_cluster
from virtha.store.engine import add_grant
from virtha.store.hosts import find_host
from virtha.store.store import WriteTransaction
from virtha.store.vms import (
    add_definition,
    disk_owner,
    drop_vm,
    find_vm,
    mac_owner,
    save_vm,
    save_vm_status,
)

_RUNNING = ("running", "paused", "shutting_down", "pmsuspended", "crashed", "nostate")
FIRST = Incarnation(1)


async def plan_adoptions(
    tx: WriteTransaction, effects: Effects, step: AdoptFound, found: tuple[ForeignDomain, ...]
) -> tuple[Step, ...]:
    """One step per domain, its record made before its order goes out (G1).

    Raises NotFound (a name that the host does not have) and Refused (named, but can't be adopted);
    with no names given, what can't be adopted is left alone.
    """
    host = await find_host(tx, step.host_id)
    if host is None:
        raise NotFound("its host was removed in the meantime")
    wanted = _chosen(found, step.names)
    steps: list[Step] = []
    for domain in wanted:
        try:
            vm = await _adoptable(tx, domain, host.host.cluster_id, ha=step.ha)
        except VirthaError:
            if step.names:
                raise
            continue
        if not step.dry_run:
            status = await _record_adopted(tx, vm, step.host_id, domain)
            granted = CopyGranted(
                host_id=step.host_id,
                boot=host.status.boot or BootId(""),
                vm_id=vm.id,
                incarnation=FIRST,
            )
            await add_grant(tx, granted)
            effects.grant(vm.cluster_id, engine_vm(vm, status), granted)
            effects.configure(vm.cluster_id)
        order = AdoptVm(vm=vm, incarnation=FIRST, dry_run=step.dry_run)
        # Optional: one domain that libvirt won't patch must not keep the others out.
        steps.append(
            Give(name=f"adopt {vm.name}", host_id=step.host_id, order=order, optional=True)
        )
    return tuple(steps)


def _chosen(found: tuple[ForeignDomain, ...], names: tuple[str, ...]) -> tuple[ForeignDomain, ...]:
    if not names:
        return tuple(domain for domain in found if domain.vm is not None)
    by_name = {domain.name: domain for domain in found}
    absent = [name for name in names if name not in by_name]
    if absent:
        raise NotFound(
            f"the host has no unmanaged domain {', '.join(absent)}",
            field="names",
            allowed=tuple(sorted(by_name)[:20]),
        )
    return tuple(by_name[name] for name in dict.fromkeys(names))


async def _adoptable(
    tx: WriteTransaction, domain: ForeignDomain, cluster_id: ClusterId, *, ha: bool
) -> Vm:
    if domain.vm is None:
        raise Refused(
            f"{domain.name} can't be adopted: {'; '.join(domain.obstacles) or 'not supported'}"
        )
    vm = msgspec.structs.replace(domain.vm, cluster_id=cluster_id, ha=ha, adopted=True)
    check_name(vm.name)
    other = await find_vm(tx, vm.id) or await find_vm(tx, vm.name)
    if other is not None:
        raise Refused(
            f"{vm.name} can't be adopted: there is a VM {other.vm.name} with this name or id",
            fix="rename one of them",
        )
    macs = [nic.mac for nic in vm.nics]
    paths = [(disk.storage_domain_id, disk.path) for disk in vm.disks]
    if len(set(macs)) < len(macs) or len(set(paths)) < len(paths):
        raise Refused(f"{vm.name} can't be adopted: it has the same disk or MAC address twice")
    known = {domain.id for domain in await storage_of_cluster(tx, cluster_id)}
    for disk in vm.disks:
        if disk.storage_domain_id not in known:
            raise Refused(f"{vm.name} can't be adopted: disk {disk.path} is on no storage domain")
        owner = await disk_owner(tx, disk.storage_domain_id, disk.path)
        if owner is not None:
            raise Refused(f"{vm.name} can't be adopted: disk {disk.path} belongs to {owner}")
    for nic in vm.nics:
        owner = await mac_owner(tx, nic.mac)
        if owner is not None:
            raise Refused(f"{vm.name} can't be adopted: MAC {nic.mac} belongs to {owner}")
    return vm


async def _record_adopted(
    tx: WriteTransaction, vm: Vm, host_id: HostId, domain: ForeignDomain
) -> VmStatus:
    runs = domain.state in _RUNNING
    await save_vm(tx, vm)
    status = await save_vm_status(
        tx,
        VmStatus(
            vm_id=vm.id,
            state=VmState.RUNNING if runs else VmState.DOWN,
            host_id=host_id,
            # Also of one that was shut off when it was scanned: it may have been started since, and a
            # host that is not told to hold it kills it. Its agent releases what does not run.
            holders=(host_id,),
            incarnation=FIRST,
            wanted_up=runs,
            since=tx.clock.wall_ms(),
        ),
    )
    await add_definition(tx, vm.id, host_id)
    return status


async def adoption_failed(
    tx: WriteTransaction, effects: Effects, order: AdoptVm, result: Result
) -> None:
    """The record was made before the order went out (G1). Refused, the domain is as it was. Else it
    may be patched, its autostart off and its QEMU known to the gate: `vm release` undoes that, and
    needs the record."""
    if result is Result.REFUSED:
        await drop_vm(tx, order.vm.id)
    else:
        row = await find_vm(tx, order.vm.id)
        if row is not None and row.status.state is not VmState.UNKNOWN:
            since = tx.clock.wall_ms()
            changed = msgspec.structs.replace(row.status, state=VmState.UNKNOWN, since=since)
            await save_vm_status(tx, changed)
    effects.configure(order.vm.cluster_id)
