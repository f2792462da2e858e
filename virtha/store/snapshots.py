"""Snapshots of VMs' disks."""

from collections.abc import Collection

from sqlalchemy import delete, or_, select

from virtha.model.ids import SnapshotId, VmId
from virtha.model.snapshot import Snapshot
from virtha.store.body import decode, encode, in_parts, put
from virtha.store.schema import snapshot
from virtha.store.store import Transaction, WriteTransaction


async def snapshots_of(tx: Transaction, vm_id: VmId) -> tuple[Snapshot, ...]:
    """Oldest first."""
    rows = await tx.connection.scalars(select(snapshot.c.body).where(snapshot.c.vm_id == vm_id))
    found = [decode(Snapshot, body) for body in rows]
    return tuple(sorted(found, key=lambda one: (one.created, one.name)))


async def snapshots_of_vms(
    tx: Transaction, ids: Collection[VmId]
) -> dict[VmId, tuple[Snapshot, ...]]:
    """Of each of ``ids``, oldest first."""
    found: dict[VmId, list[Snapshot]] = {vm_id: [] for vm_id in ids}
    for part in in_parts(ids):
        for body in await tx.connection.scalars(
            select(snapshot.c.body).where(snapshot.c.vm_id.in_(part))
        ):
            one = decode(Snapshot, body)
            found[one.vm_id].append(one)
    return {
        vm_id: tuple(sorted(some, key=lambda one: (one.created, one.name)))
        for vm_id, some in found.items()
    }


async def find_snapshot(tx: Transaction, vm_id: VmId, ref: str) -> Snapshot | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(snapshot.c.body).where(
            snapshot.c.vm_id == vm_id, or_(snapshot.c.id == ref, snapshot.c.name == ref)
        )
    )
    return decode(Snapshot, body) if body is not None else None


async def save_snapshot(tx: WriteTransaction, value: Snapshot) -> Snapshot:
    _ = tx.revision
    values = {"vm_id": value.vm_id, "name": value.name, "body": encode(value)}
    await put(tx, snapshot, {"id": value.id}, values)
    return value


async def drop_snapshot(tx: WriteTransaction, snapshot_id: SnapshotId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(snapshot).where(snapshot.c.id == snapshot_id))
