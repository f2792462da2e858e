"""The steps that change a VM's devices: into its record, and what its running copy is then told."""

import msgspec

from virtha.control.effects import Effects
from virtha.control.history import changes_between, record
from virtha.control.names import the_storage
from virtha.control.plan import AddDevice, Give, RemoveDevice, SetDiskSize, Step
from virtha.control.vm_checks import check_disk_free, check_mac_free
from virtha.model.errors import Refused, Unavailable, VirthaError
from virtha.model.ids import HostId, OperationId, VmId
from virtha.model.orders import DefineVm, PlugDevice
from virtha.model.size import format_size
from virtha.model.vm import Disk, Vm, VmState
from virtha.store.store import WriteTransaction
from virtha.store.vms import VmRow, find_vm, save_vm


def live_host(row: VmRow) -> HostId | None:
    """The one host of its one running copy; None: there is no copy at all. Raises Refused where that is not certain:
    no device of a VM is touched whose holders are not exactly known (G1)."""
    status = row.status
    if not status.holders and not status.copies:
        return None
    runs = row.shown in (VmState.RUNNING, VmState.PAUSED)
    known = all(
        copy.host_id == status.host_id and copy.incarnation == status.incarnation
        for copy in status.copies
    )
    if runs and known and status.holders == (status.host_id,):
        return status.host_id
    raise Refused(
        f"{row.vm.name} is {row.shown.value}, and it is not certain on which one host it is, or that it is on none",
        code="problem.vm.state",
        fix="wait until it runs, or is down and held by no host: 'virtha vm show' says what it waits for",
    )


async def add_device(
    tx: WriteTransaction, effects: Effects, step: AddDevice, by: str
) -> tuple[Step, ...]:
    """What is to follow. Raises what is in the way by now."""
    try:
        row = await _row(tx, step.vm_id)
        host_id = live_host(row)
        vm = await _with_device(tx, row.vm, step)
    except VirthaError as error:
        if step.disk is not None and step.plug:
            # Nobody's now, and it may be deleted by hand only: whoever deletes by path deletes another's one day.
            error.fix = "; ".join(filter(None, (error.fix, left_behind(step.disk))))
        raise
    saved = await _save(tx, effects, vm, by)
    if host_id is None or not step.plug:
        return ()
    plug = PlugDevice(vm=saved, incarnation=row.status.incarnation, disk=step.disk, nic=step.nic)
    # The definition after it: a restart by the sentinel must not open a disk that was never claimed.
    return (
        Give(name="plug it in", host_id=host_id, order=plug),
        Give(name="define the changed domain", host_id=host_id, order=DefineVm(vm=saved)),
    )


async def _with_device(tx: WriteTransaction, vm: Vm, step: AddDevice) -> Vm:
    if step.disk is not None:
        domain = await the_storage(tx, step.disk.storage_domain_id)
        await check_disk_free(tx, domain, step.disk.path, field="path")
        return msgspec.structs.replace(vm, disks=(*vm.disks, step.disk))
    assert step.nic is not None
    await check_mac_free(tx, step.nic, vm)
    return msgspec.structs.replace(vm, nics=(*vm.nics, step.nic))


def left_behind(disk: Disk) -> str:
    """What to do with a disk that was made for a VM which did not get it."""
    return (
        f"its file {disk.path} ({disk.format.value}) was made and stays, so that name is taken: "
        "add it by that path, or remove the file"
    )


async def remove_device(
    tx: WriteTransaction, effects: Effects, step: RemoveDevice, by: str
) -> tuple[Step, ...]:
    """Raises Refused: a later start has it again."""
    row = await _row(tx, step.vm_id)
    if step.incarnation is not None and step.incarnation != row.status.incarnation:
        # Free on record, its file could become another VM's while this one writes to it.
        raise Refused(
            f"{row.vm.name} was started or moved since, and may have it again",
            code="problem.vm.state",
            fix="ask again",
        )
    vm = msgspec.structs.replace(
        row.vm,
        disks=tuple(disk for disk in row.vm.disks if disk.id != step.device_id),
        nics=tuple(nic for nic in row.vm.nics if nic.id != step.device_id),
    )
    saved = await _save(tx, effects, vm, by)
    return tuple(
        Give(name="define the changed domain", host_id=host_id, order=DefineVm(vm=saved))
        for host_id in row.status.holders
    )


async def set_disk_size(
    tx: WriteTransaction, effects: Effects, step: SetDiskSize, operation_id: OperationId, by: str
) -> None:
    """After the disk has it: a record that is behind is put right by asking again, one that promises more than the
    disk has would not."""
    row = await _row(tx, step.vm_id)
    disks = []
    for disk in row.vm.disks:
        if disk.id != step.disk_id:
            disks.append(disk)
            continue
        resized = msgspec.structs.replace(disk, size_bytes=step.size_bytes)
        disks.append(resized)
        await record(
            tx,
            "disk.resized",
            vm=row.vm,
            operation_id=operation_id,
            by=by,
            disk=disk.name,
            size=format_size(step.size_bytes),
            **changes_between(disk, resized),
        )
    changed = msgspec.structs.replace(row.vm, disks=tuple(disks))
    if changed != row.vm:
        await save_vm(tx, changed)
        effects.configure(row.vm.cluster_id)


async def _row(tx: WriteTransaction, vm_id: VmId) -> VmRow:
    row = await find_vm(tx, vm_id)
    if row is None:
        raise Unavailable("the VM was deleted in the meantime")
    return row


async def _save(tx: WriteTransaction, effects: Effects, vm: Vm, by: str) -> Vm:
    present = await _row(tx, vm.id)
    saved = await save_vm(tx, vm)
    told = changes_between(present.vm, saved)
    await record(tx, "vm.changed", vm=saved, by=by, **told)
    effects.configure(saved.cluster_id)
    return saved
