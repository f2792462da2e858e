"""Snapshots of VMs' disks (ADR 0013)."""

from collections.abc import Collection, Mapping
from uuid import uuid4

import msgspec

from virtha.control.device_steps import live_host
from virtha.control.effects import Dispatcher, Effects
from virtha.control.launch import read_surroundings
from virtha.control.maker import choose_maker
from virtha.control.names import check_name, check_text, taken, the_host, the_vm
from virtha.control.operations import check_nothing_open
from virtha.control.plan import Plan, SnapshotStep
from virtha.control.requests import SnapshotCreate
from virtha.control.runner import Runner
from virtha.control.templates import check_is_down
from virtha.control.torn import check_not_torn
from virtha.control.views import Caller, Page
from virtha.model.errors import Conflict, InvalidInput, NotFound, Refused
from virtha.model.ids import HostId, SnapshotId, VmId
from virtha.model.operation import Operation
from virtha.model.orders import SnapshotAction
from virtha.model.snapshot import Snapshot, SnapshotState
from virtha.model.vm import Disk, DiskFormat, Vm, VmState
from virtha.ports.hosts import HostLinks
from virtha.store.snapshots import find_snapshot, save_snapshot, snapshots_of, snapshots_of_vms
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import VmRow

SNAPSHOTS_MAX = 32
"""Of one VM: each makes the disk's metadata larger and its writes slower."""


class Snapshots:
    def __init__(
        self, store: Store, links: HostLinks, runner: Runner, dispatcher: Dispatcher
    ) -> None:
        self._store = store
        self._links = links
        self._runner = runner
        self._dispatcher = dispatcher

    async def list(self, ref: str) -> Page[Snapshot]:
        """All of them, oldest first."""
        async with self._store.read() as tx:
            found = await snapshots_of(tx, (await the_vm(tx, ref)).vm.id)
            return Page(items=found, revision=await tx.revision_now())

    async def of_vms(self, ids: Collection[VmId]) -> Mapping[VmId, tuple[Snapshot, ...]]:
        """Of each, oldest first."""
        async with self._store.read() as tx:
            return await snapshots_of_vms(tx, ids)

    async def create(
        self,
        caller: Caller,
        ref: str,
        request: SnapshotCreate,
        *,
        only: Collection[str] | None = None,
    ) -> Operation:
        """Of all disks of a VM, as one moment. One that runs is frozen for it, unless that was waived.

        ``only``: ids of the disks that the caller means; it is refused where they are not all.
        Raises Refused: `problem.vm.state`, `order.refused.guest_silent`.
        """
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._the_vm(tx, ref, "a snapshot")
            await check_not_torn(tx, row.vm)
            host_id = _runs_on(row)
            freeze = host_id is not None and not request.crash_consistent
            if freeze and row.status.guest_agent is False:
                raise Refused(
                    f"{row.vm.name} runs, and its guest agent does not answer: it can't be frozen for a snapshot",
                    code="order.refused.guest_silent",
                    field="crash_consistent",
                    fix="start qemu-guest-agent in the guest, or shut the VM down; or take its disks as they would be "
                    "after a power failure: '--crash-consistent'",
                )
            check_name(request.name)
            check_text(request.description, field="description")
            present = await snapshots_of(tx, row.vm.id)
            if any(one.name == request.name for one in present):
                raise taken("snapshot", request.name)
            if len(present) >= SNAPSHOTS_MAX:
                raise Refused(
                    f"{row.vm.name} has {len(present)} snapshots",
                    field="name",
                    allowed=(f"at most {SNAPSHOTS_MAX}",),
                    fix="delete one first",
                )
            disks = _disks_of(row.vm)
            _check_all(row.vm, disks, only)
            made = Snapshot(
                id=SnapshotId(str(uuid4())),
                vm_id=row.vm.id,
                name=request.name,
                description=request.description,
                disks=tuple(disk.name for disk in disks),
                created=tx.clock.wall_ms(),
            )
            operation = await self._begin(
                tx, effects, caller, row, made, SnapshotAction.CREATE, freeze=freeze
            )
        await self._dispatcher.carry_out(effects)
        return operation

    async def revert(
        self, caller: Caller, ref: str, name: str, *, only: Collection[str] | None = None
    ) -> Operation:
        """What was written since is lost, on all disks. The snapshot stays. Of a VM that is down only.

        ``name``: or its id. ``only``: ids of the disks that the caller means; it is refused where they are not all.
        """
        return await self._change(caller, ref, name, SnapshotAction.REVERT, only)

    async def delete(self, caller: Caller, ref: str, name: str) -> Operation:
        """``name``: or its id."""
        return await self._change(caller, ref, name, SnapshotAction.DELETE)

    async def _change(
        self,
        caller: Caller,
        ref: str,
        name: str,
        action: SnapshotAction,
        only: Collection[str] | None = None,
    ) -> Operation:
        effects = Effects()
        async with self._store.write() as tx:
            row = await self._the_vm(tx, ref, f"{action.value} of a snapshot")
            found = await find_snapshot(tx, row.vm.id, name)
            if found is None:
                names = tuple(one.name for one in await snapshots_of(tx, row.vm.id))
                raise NotFound(
                    f"{row.vm.name} has no snapshot '{name[:64]}'",
                    fix=f"it has {', '.join(names)}" if names else "it has none",
                )
            if action is SnapshotAction.REVERT:
                check_is_down(row)
                await _check_revert(tx, row.vm, found)
                _check_all(row.vm, _disks_of(row.vm), only)
            else:
                # With its record the word would go that the disks are of different times.
                await check_not_torn(tx, row.vm)
            operation = await self._begin(tx, effects, caller, row, found, action)
        await self._dispatcher.carry_out(effects)
        return operation

    async def _the_vm(self, tx: Transaction, ref: str, what: str) -> VmRow:
        row = await the_vm(tx, ref)
        await check_nothing_open(tx, row.vm.id, what, starts=True)
        if _runs_on(row) is None:
            check_is_down(row)
        return row

    async def _begin(
        self,
        tx: WriteTransaction,
        effects: Effects,
        caller: Caller,
        row: VmRow,
        snapshot: Snapshot,
        action: SnapshotAction,
        *,
        freeze: bool = False,
    ) -> Operation:
        live_on = _runs_on(row)
        if live_on is not None:
            maker = (await the_host(tx, live_on)).host
        else:
            surroundings = await read_surroundings(tx, row.vm.cluster_id)
            maker = choose_maker(row.vm, surroundings, self._links, tx.clock.monotonic_ms())
        # Before the order goes out: whatever becomes of it, the record says what may have been done.
        await save_snapshot(tx, msgspec.structs.replace(snapshot, state=_MEANWHILE[action]))
        step = SnapshotStep(
            name=f"{action.value} snapshot {snapshot.name} on {maker.name}",
            vm_id=row.vm.id,
            host_id=maker.id,
            snapshot_id=snapshot.id,
            action=action,
            live=live_on is not None,
            freeze=freeze,
            torn=snapshot.state is SnapshotState.REVERTING,
        )
        return await self._runner.begin(
            tx,
            effects,
            kind="vm.snapshot",
            subject=row.vm.id,
            by=caller.name,
            plan=Plan(steps=(step,)),
        )


def _runs_on(row: VmRow) -> HostId | None:
    """The host of its one running copy, which then changes its disks itself. Raises Refused where that is not certain."""
    runs = row.shown in (VmState.RUNNING, VmState.PAUSED) and not row.vm.adopted
    return live_host(row) if runs else None


_MEANWHILE = {
    SnapshotAction.CREATE: SnapshotState.CREATING,
    SnapshotAction.REVERT: SnapshotState.REVERTING,
    SnapshotAction.DELETE: SnapshotState.DELETING,
}


def _disks_of(vm: Vm) -> tuple[Disk, ...]:
    disks = tuple(disk for disk in vm.disks if not disk.readonly)
    raw = [disk.name for disk in disks if disk.format is not DiskFormat.QCOW2]
    if raw or not disks:
        raise InvalidInput(
            f"{vm.name} has {'the raw disks ' + ', '.join(raw) if raw else 'no disks'}: "
            "a snapshot lies inside a qcow2 file",
            field="disks",
            allowed=("qcow2",),
            fix="copy them to qcow2 disks first",
        )
    return disks


def _check_all(vm: Vm, disks: tuple[Disk, ...], only: Collection[str] | None) -> None:
    """Raises Refused: to take the others along would lose what was written to them."""
    if only is None or sorted(only) == sorted(disk.id for disk in disks):
        return
    raise Refused(
        f"a snapshot of {vm.name} is of all its disks, and so is going back to one: not of some",
        field="disks",
        allowed=tuple(disk.id for disk in disks),
        fix="leave them out, or name them all",
    )


async def _check_revert(tx: Transaction, vm: Vm, snapshot: Snapshot) -> None:
    if snapshot.state not in (SnapshotState.READY, SnapshotState.REVERTING):
        raise Conflict(
            f"snapshot {snapshot.name} is {snapshot.state.value}",
            code="problem.snapshot.state",
            fix="choose another one",
        )
    added = [disk.name for disk in _disks_of(vm) if disk.name not in snapshot.disks]
    if added:
        raise Refused(
            f"{vm.name} has got {', '.join(added)} since: going back with some disks only is no state it ever was in",
            code="problem.snapshot.state",
            fix="choose a later snapshot",
        )
