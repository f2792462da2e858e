"""The one step of an operation that changes snapshots or a disk's size: its order, and what its end means (ADR 0013)."""

from typing import Any

import msgspec

from virtha.control.copies import ordered
from virtha.control.device_steps import live_host
from virtha.control.effects import Effects, grant_duration_ms, quoting
from virtha.control.engine_nouns import engine_vm
from virtha.control.history import changes_between, record
from virtha.control.known_settings import setting_values
from virtha.control.launch import check_inventories, read_surroundings
from virtha.control.plan import GrowStep, SnapshotStep
from virtha.engine.events import CopyGranted
from virtha.model.errors import Refused, Unavailable
from virtha.model.facts import Result
from virtha.model.ids import BootId, Incarnation, OperationId
from virtha.model.orders import (
    ChangeLiveSnapshots,
    ChangeSnapshots,
    Grant,
    GrowDisk,
    Order,
    SnapshotAction,
)
from virtha.model.snapshot import SnapshotState
from virtha.ports.hosts import HostLinks
from virtha.store.engine import add_grant, find_vm_record
from virtha.store.hosts import find_host
from virtha.store.installations import the_installation
from virtha.store.snapshots import drop_snapshot, find_snapshot, save_snapshot, snapshots_of
from virtha.store.store import WriteTransaction
from virtha.store.vms import VmRow, find_vm, save_vm_status

_EVENTS = {
    SnapshotAction.CREATE: "snapshot.created",
    SnapshotAction.REVERT: "snapshot.reverted",
    SnapshotAction.DELETE: "snapshot.deleted",
}


async def order_change(
    tx: WriteTransaction,
    effects: Effects,
    links: HostLinks,
    step: SnapshotStep | GrowStep,
    *,
    operation_id: OperationId,
    index: int,
    by: str,
) -> tuple[SnapshotStep | GrowStep, Order]:
    """The host is a holder from here on, with an incarnation of its own (G1, G4). Raises Refused, Unavailable."""
    row = await find_vm(tx, step.vm_id)
    host = await find_host(tx, step.host_id)
    if row is None or host is None or host.status.boot is None:
        raise Unavailable("its VM or host was removed in the meantime")
    if isinstance(step, SnapshotStep) and step.live:
        return await _order_live(tx, row, host.status.boot, step, operation_id, index)
    await check_inventories(tx, await read_surroundings(tx, row.vm.cluster_id))
    if row.status.holders or row.status.copies or row.status.wanted_up:
        raise Refused(f"{row.vm.name} was started in the meantime", code="problem.vm.state")
    recorded = await find_vm_record(tx, row.vm.id)
    newest = max(row.status.incarnation, recorded.incarnation if recorded is not None else 0)
    incarnation = Incarnation(newest + 1)
    blank = Grant(
        vm_id=row.vm.id,
        incarnation=incarnation,
        boot=host.status.boot,
        beat_monotonic_ms=0,
        duration_ms=grant_duration_ms(host, await setting_values(tx)),
    )
    grant = quoting(links, host, blank, tx.clock.monotonic_ms())
    if grant is None:
        raise Unavailable(
            f"{host.host.name}'s guardian does not beat: without that nothing is granted there",
            code="host.unfit.guardian",
            fix="start it: 'systemctl start virtha-guardian'",
        )
    status = await save_vm_status(
        tx,
        msgspec.structs.replace(
            ordered(row.status, host.host.id, grant), host_id=host.host.id, incarnation=incarnation
        ),
    )
    granted = CopyGranted(
        host_id=host.host.id, boot=grant.boot, vm_id=row.vm.id, incarnation=incarnation
    )
    await add_grant(tx, granted)
    effects.grant(row.vm.cluster_id, engine_vm(row.vm, status), granted)
    effects.configure(row.vm.cluster_id)
    order = Order(
        operation_id=operation_id,
        step=index,
        term=(await the_installation(tx)).term,
        host_boot=host.status.boot,
        body=ChangeSnapshots(
            vm=row.vm, grant=grant, snapshot_id=step.snapshot_id, action=step.action, by=by
        )
        if isinstance(step, SnapshotStep)
        else GrowDisk(
            vm=row.vm, grant=grant, disk_id=step.disk_id, size_bytes=step.size_bytes, by=by
        ),
    )
    return msgspec.structs.replace(step, incarnation=incarnation), order


async def _order_live(
    tx: WriteTransaction,
    row: VmRow,
    boot: BootId,
    step: SnapshotStep,
    operation_id: OperationId,
    index: int,
) -> tuple[SnapshotStep, Order]:
    """Nobody becomes a holder: the copy that has the disks open changes them itself (G1)."""
    if live_host(row) != step.host_id:
        raise Refused(f"{row.vm.name} does not run there any more", code="problem.vm.state")
    incarnation = row.status.incarnation
    order = Order(
        operation_id=operation_id,
        step=index,
        term=(await the_installation(tx)).term,
        host_boot=boot,
        body=ChangeLiveSnapshots(
            vm=row.vm,
            incarnation=incarnation,
            snapshot_id=step.snapshot_id,
            action=step.action,
            freeze=step.freeze,
        ),
    )
    return msgspec.structs.replace(step, incarnation=incarnation), order


async def settle(
    tx: WriteTransaction,
    step: SnapshotStep,
    result: Result,
    *,
    operation_id: OperationId,
    by: str,
    frozen: bool | None = None,
) -> None:
    """``result`` UNKNOWN also where the order was given up. The holder goes by its release, not here. ``frozen``:
    whether its guest was; None: it did not run."""
    snapshot = await find_snapshot(tx, step.vm_id, step.snapshot_id)
    row = await find_vm(tx, step.vm_id)
    if snapshot is None or row is None:
        return
    done = result is Result.OK
    told: dict[str, Any] = {}
    ready = msgspec.structs.replace(snapshot, state=SnapshotState.READY)
    match step.action:
        case SnapshotAction.CREATE if done:
            taken = msgspec.structs.replace(ready, frozen=frozen)
            await save_snapshot(tx, taken)
            told = changes_between(None, taken)
        case SnapshotAction.CREATE if result is Result.UNKNOWN:
            # It may be there: a later order deletes it.
            await save_snapshot(tx, msgspec.structs.replace(ready, state=SnapshotState.DELETING))
        case SnapshotAction.CREATE:
            await drop_snapshot(tx, snapshot.id)
        case SnapshotAction.REVERT if done:
            for one in await snapshots_of(tx, row.vm.id):
                if one.state is SnapshotState.REVERTING:
                    await save_snapshot(tx, msgspec.structs.replace(one, state=SnapshotState.READY))
        case SnapshotAction.REVERT if result is Result.REFUSED and not step.torn:
            await save_snapshot(tx, ready)
        case SnapshotAction.DELETE if done:
            await drop_snapshot(tx, snapshot.id)
            told = changes_between(snapshot, None)
    if done:
        await record(
            tx,
            _EVENTS[step.action],
            vm=row.vm,
            operation_id=operation_id,
            by=by,
            name=snapshot.name,
            **told,
        )
