"""Disks and network cards of a VM: added and removed, where it runs without a restart."""

from collections.abc import Callable, Mapping
from uuid import uuid4

from virtha.control.device_steps import live_host
from virtha.control.effects import Dispatcher, Effects
from virtha.control.launch import Surroundings, read_surroundings
from virtha.control.names import check_revision, the_vm
from virtha.control.operations import check_nothing_open
from virtha.control.plan import (
    AddDevice,
    Give,
    GrowStep,
    Plan,
    RemoveDevice,
    SetDiskSize,
    Step,
    decode_plan,
)
from virtha.control.requests import DiskCreate, DiskResize, NicCreate
from virtha.control.runner import Runner
from virtha.control.templates import check_is_down
from virtha.control.views import Caller
from virtha.control.vm_checks import NICS_MAX, check_growth, plan_disk, plan_nics
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.host import Host
from virtha.model.ids import OperationId, Revision, VmId
from virtha.model.operation import Operation
from virtha.model.orders import CreateDisk, GrowLiveDisk, UnplugDevice
from virtha.model.size import format_size
from virtha.model.vm import Disk, Nic, Vm
from virtha.store.operations import (
    OperationFilter,
    OperationRow,
    find_operation,
    operations_before,
)
from virtha.store.snapshots import snapshots_of
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import VmRow


def _new_id() -> str:
    return str(uuid4())


ADD = "vm.add"
COLD_BUSES = ("ide", "sata")
"""QEMU takes no disk of these while a guest runs."""


class Devices:
    """Each is one operation: the record says what is so, whichever step fails."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        dispatcher: Dispatcher,
        maker: Callable[[Vm, Surroundings], Host],
    ) -> None:
        """``maker``: chooses the host that makes a disk of a VM that is down."""
        self._store = store
        self._runner = runner
        self._dispatcher = dispatcher
        self._maker = maker

    async def add_disk(
        self, caller: Caller, ref: str, request: DiskCreate, if_match: Revision | None = None
    ) -> Operation:
        """A new one is plugged into the running VM; one that is there already waits for its next start, which
        looks first whether anybody writes to it (A5)."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._changeable(tx, ref, if_match)
            planned = await plan_disk(tx, request, row.vm, make_id=_new_id)
            steps: list[Step] = []
            if planned.create:
                host_id = live_host(row)
                if host_id is not None and planned.disk.bus in COLD_BUSES:
                    raise InvalidInput(
                        f"a disk on {planned.disk.bus} can't be plugged into {row.vm.name} while it runs",
                        field="bus",
                        allowed=("virtio", "scsi"),
                        fix="choose another bus, or add the disk while the VM is down",
                    )
                if host_id is None:
                    host_id = self._maker(row.vm, await read_surroundings(tx, row.vm.cluster_id)).id
                order = CreateDisk(disk=planned.disk, image=planned.image)
                name = f"create {planned.disk.name}"
                steps.append(Give(name=name, host_id=host_id, order=order))
            steps.append(
                AddDevice(
                    name=f"add {planned.disk.name}",
                    vm_id=row.vm.id,
                    disk=planned.disk,
                    plug=planned.create,
                )
            )
            operation = await self._begin(tx, effects, caller, row, ADD, steps)
        await self._dispatcher.carry_out(effects)
        return operation

    async def add_nic(
        self, caller: Caller, ref: str, request: NicCreate, if_match: Revision | None = None
    ) -> Operation:
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._changeable(tx, ref, if_match)
            if len(row.vm.nics) >= NICS_MAX:
                raise InvalidInput(
                    f"{row.vm.name} has {len(row.vm.nics)} already",
                    field="nics",
                    allowed=(f"{NICS_MAX}",),
                )
            (nic,) = await plan_nics(tx, (request,), make_id=_new_id, beside=row.vm.nics)
            step = AddDevice(name=f"add {nic.mac}", vm_id=row.vm.id, nic=nic)
            operation = await self._begin(tx, effects, caller, row, ADD, [step])
        await self._dispatcher.carry_out(effects)
        return operation

    async def being_added(self) -> Mapping[VmId, tuple[Disk | Nic, ...]]:
        """By VM, what operations that are not over are to give it: not yet of it, or so by now."""
        found: dict[VmId, tuple[Disk | Nic, ...]] = {}
        wanted = OperationFilter(kind=ADD, open=True)
        async with self._store.read() as tx:
            for row in await operations_before(tx, wanted, None, None):
                vm_id = VmId(row.operation.subject)
                found[vm_id] = (*found.get(vm_id, ()), _added_by(row))
        return found

    async def added_by(self, operation_id: OperationId) -> Disk | Nic:
        """What ``add_disk`` or ``add_nic`` is to give, or has given, under the id that it then has."""
        async with self._store.read() as tx:
            row = await find_operation(tx, operation_id)
        assert row is not None and row.operation.kind == ADD, "one of these two began it"
        return _added_by(row)

    async def remove_disk(
        self, caller: Caller, ref: str, disk_ref: str, if_match: Revision | None = None
    ) -> Operation:
        """By name or id. Its file stays where it is."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._changeable(tx, ref, if_match)
            for disk in row.vm.disks:
                if disk_ref in (disk.name, disk.id):
                    operation = await self._remove(tx, effects, caller, row, disk)
                    break
            else:
                raise _no_device(row.vm, "disk", disk_ref, [disk.name for disk in row.vm.disks])
        await self._dispatcher.carry_out(effects)
        return operation

    async def resize_disk(
        self,
        caller: Caller,
        ref: str,
        disk_ref: str,
        request: DiskResize,
        if_match: Revision | None = None,
    ) -> Operation:
        """By name or id. The disk first, then its record: whatever ends in between, asking again finishes it.

        Raises InvalidInput (`problem.disk.shrink`), Refused: it has snapshots, or nobody knows who writes to it.
        """
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._changeable(tx, ref, if_match)
            disk = next((one for one in row.vm.disks if disk_ref in (one.name, one.id)), None)
            if disk is None:
                raise _no_device(row.vm, "disk", disk_ref, [one.name for one in row.vm.disks])
            check_growth(disk, request.size_bytes)
            await _check_no_snapshots(tx, row.vm)
            name = f"make {disk.name} {format_size(request.size_bytes)} large"
            grown = SetDiskSize(
                name=f"note the size of {disk.name}",
                vm_id=row.vm.id,
                disk_id=disk.id,
                size_bytes=request.size_bytes,
            )
            step = await self._growth(tx, row, disk, request.size_bytes, name)
            operation = await self._begin(tx, effects, caller, row, "vm.resize", [step, grown])
        await self._dispatcher.carry_out(effects)
        return operation

    async def _growth(
        self, tx: WriteTransaction, row: VmRow, disk: Disk, size_bytes: int, name: str
    ) -> Step:
        """By the copy that has it open, else by a host that holds the VM meanwhile (G1)."""
        host_id = live_host(row)
        if host_id is not None:
            order = GrowLiveDisk(
                vm=row.vm,
                incarnation=row.status.incarnation,
                disk_id=disk.id,
                size_bytes=size_bytes,
            )
            return Give(name=name, host_id=host_id, order=order)
        check_is_down(row)
        maker = self._maker(row.vm, await read_surroundings(tx, row.vm.cluster_id))
        return GrowStep(
            name=name,
            vm_id=row.vm.id,
            host_id=maker.id,
            disk_id=disk.id,
            size_bytes=size_bytes,
        )

    async def remove_nic(
        self, caller: Caller, ref: str, nic_ref: str, if_match: Revision | None = None
    ) -> Operation:
        """By address or id."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._changeable(tx, ref, if_match)
            for nic in row.vm.nics:
                if nic_ref.lower() in (nic.mac, nic.id):
                    operation = await self._remove(tx, effects, caller, row, nic)
                    break
            else:
                raise _no_device(row.vm, "network card", nic_ref, [nic.mac for nic in row.vm.nics])
        await self._dispatcher.carry_out(effects)
        return operation

    async def _remove(
        self, tx: WriteTransaction, effects: Effects, caller: Caller, row: VmRow, device: Disk | Nic
    ) -> Operation:
        name = device.name if isinstance(device, Disk) else device.mac
        host_id = live_host(row)
        steps: list[Step] = []
        if host_id is not None:
            order = UnplugDevice(
                vm_id=row.vm.id,
                incarnation=row.status.incarnation,
                disk=device if isinstance(device, Disk) else None,
                nic=device if isinstance(device, Nic) else None,
            )
            steps.append(Give(name=f"unplug {name}", host_id=host_id, order=order))
        steps.append(
            RemoveDevice(
                name=f"remove {name}",
                vm_id=row.vm.id,
                device_id=device.id,
                incarnation=row.status.incarnation if host_id is not None else None,
            )
        )
        return await self._begin(tx, effects, caller, row, "vm.remove", steps)

    async def _changeable(self, tx: WriteTransaction, ref: str, if_match: Revision | None) -> VmRow:
        row = await the_vm(tx, ref)
        check_revision(if_match, row.vm.revision)
        await check_nothing_open(tx, row.vm.id, "a change", starts=True)
        if row.vm.adopted:
            raise Refused(
                f"{row.vm.name} was adopted: its devices are as its own XML has them",
                code="problem.vm.state",
                fix="change them with 'virsh edit', while it is down",
            )
        live_host(row)  # raises Refused
        return row

    async def _begin(
        self,
        tx: WriteTransaction,
        effects: Effects,
        caller: Caller,
        row: VmRow,
        kind: str,
        steps: list[Step],
    ) -> Operation:
        return await self._runner.begin(
            tx, effects, kind=kind, subject=row.vm.id, by=caller.name, plan=Plan(steps=tuple(steps))
        )


async def _check_no_snapshots(tx: Transaction, vm: Vm) -> None:
    """Going back to one would make the disk as small as it was then, whatever its record says."""
    names = [one.name for one in await snapshots_of(tx, vm.id)]
    if names:
        raise Refused(
            f"{vm.name} has the snapshots {', '.join(names)}, of which each is of the size that the disk has now",
            code="problem.snapshot.state",
            field="disk",
            fix=f"delete them first: 'virtha vm snapshot delete {vm.name} {names[0]}'",
        )


def _added_by(row: OperationRow) -> Disk | Nic:
    (step,) = (step for step in decode_plan(row.plan).steps if isinstance(step, AddDevice))
    device = step.disk or step.nic
    assert device is not None, "a step adds one or the other"
    return device


def _no_device(vm: Vm, what: str, ref: str, there: list[str]) -> NotFound:
    return NotFound(
        f"{vm.name} has no {what} '{ref[:64]}'",
        fix=f"it has {', '.join(there)}" if there else "it has none",
    )
