"""VMs, their status, holders, disks and NICs."""

from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, delete, insert, or_, select, update
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from virtha.model.ids import ClusterId, HostId, StorageDomainId, VmId
from virtha.model.value import Value
from virtha.model.vm import Vm, VmState, VmStatus
from virtha.store.body import decode, encode, in_parts, put
from virtha.store.reach import reach_now
from virtha.store.schema import disk, nic, vm, vm_definition, vm_holder, vm_status
from virtha.store.store import Transaction, WriteTransaction

Columns = ReadOnlyColumnCollection[str, Any]


class Held(NamedTuple):
    """What a host's free memory takes of a VM that it may hold."""

    name: str
    memory_bytes: int


HeldByHost = dict[HostId, dict[VmId, Held]]
"""By name. Hosts that may hold none are left out."""


class VmRow(Value, frozen=True, kw_only=True):
    """``status.state`` is the last that its host reported; ``shown`` what may be claimed now."""

    vm: Vm
    status: VmStatus
    shown: VmState


_JOINED = select(
    vm.c.body.label("vm_body"),
    vm_status.c.body.label("status_body"),
    vm_status.c.state.label("shown"),
).join(vm_status, vm_status.c.vm_id == vm.c.id)


async def _rows(
    tx: Transaction, *where: ColumnElement[bool], limit: int | None = None
) -> tuple[VmRow, ...]:
    rows = await tx.connection.execute(_JOINED.where(*where).order_by(vm.c.name).limit(limit))
    return tuple(
        VmRow(
            vm=decode(Vm, row.vm_body),
            status=decode(VmStatus, row.status_body),
            shown=VmState(row.shown),
        )
        for row in rows
    )


async def find_vm(tx: Transaction, ref: str) -> VmRow | None:
    """By id or name."""
    return next(iter(await _rows(tx, or_(vm.c.id == ref, vm.c.name == ref))), None)


async def all_vms(tx: Transaction) -> tuple[VmRow, ...]:
    return await _rows(tx)


async def vms_of_cluster(tx: Transaction, cluster_id: ClusterId) -> tuple[VmRow, ...]:
    return await _rows(tx, vm.c.cluster_id == cluster_id)


async def held_in_cluster(tx: Transaction, cluster_id: ClusterId) -> HeldByHost:
    return await _held(tx, vm.c.cluster_id == cluster_id)


async def held_on(tx: Transaction, host_ids: Collection[HostId]) -> HeldByHost:
    found: HeldByHost = {}
    for some in in_parts(host_ids):
        found |= await _held(tx, vm_holder.c.host_id.in_(some))
    return found


async def _held(tx: Transaction, where: ColumnElement[bool]) -> HeldByHost:
    rows = await tx.connection.execute(
        select(vm_holder.c.host_id, vm_holder.c.vm_id, vm.c.name, vm.c.memory_bytes)
        .join(vm, vm.c.id == vm_holder.c.vm_id)
        .where(where)
        .order_by(vm.c.name)
    )
    found: HeldByHost = {}
    for host_id, vm_id, name, memory_bytes in rows:
        found.setdefault(HostId(host_id), {})[VmId(vm_id)] = Held(name, memory_bytes)
    return found


async def vms_held_by(tx: Transaction, host_id: HostId) -> tuple[VmRow, ...]:
    held = select(vm_holder.c.vm_id).where(vm_holder.c.host_id == host_id)
    return await _rows(tx, vm.c.id.in_(held))


async def vms_with_ids(tx: Transaction, ids: tuple[VmId, ...]) -> tuple[VmRow, ...]:
    found: list[VmRow] = []
    for start in range(0, len(ids), 500):  # both databases bound the number of parameters
        found += await _rows(tx, vm.c.id.in_(ids[start : start + 500]))
    return tuple(found)


async def vm_names(tx: Transaction, ids: Collection[VmId]) -> dict[VmId, str]:
    """Of those that there are."""
    found: dict[VmId, str] = {}
    for some in in_parts(ids):
        rows = await tx.connection.execute(select(vm.c.id, vm.c.name).where(vm.c.id.in_(some)))
        found |= {VmId(row.id): row.name for row in rows}
    return found


class VmFilter(Value, frozen=True, kw_only=True):
    cluster_id: ClusterId | None = None
    host_id: HostId | None = None
    """May be held by, or ran last on it."""
    state: VmState | None = None
    ha: bool | None = None


def vm_conditions(
    wanted: VmFilter, vms: Columns = vm.c, statuses: Columns = vm_status.c
) -> list[ColumnElement[bool]]:
    """``vms``, ``statuses``: of the tables under other names."""
    where: list[ColumnElement[bool]] = []
    if wanted.cluster_id is not None:
        where.append(vms.cluster_id == wanted.cluster_id)
    if wanted.host_id is not None:
        held = select(vm_holder.c.vm_id).where(vm_holder.c.host_id == wanted.host_id)
        where.append(or_(statuses.host_id == wanted.host_id, vms.id.in_(held)))
    if wanted.state is not None:
        where.append(statuses.state == wanted.state.value)
    if wanted.ha is not None:
        where.append(vms.ha == wanted.ha)
    return where


async def vms_after(tx: Transaction, wanted: VmFilter, name: str, limit: int) -> tuple[VmRow, ...]:
    reach = reach_now()
    if reach is not None and len(reach) == 1 and wanted.cluster_id is None:
        # Seen is nothing else anyway. Said here, a page isn't looked for among all VMs (of 20,000 that took 30 ms).
        wanted = msgspec.structs.replace(wanted, cluster_id=next(iter(reach)))
    return await _rows(tx, vm.c.name > name, *vm_conditions(wanted), limit=limit)


async def save_vm(tx: WriteTransaction, value: Vm) -> Vm:
    """With its disks and NICs; those that are gone from ``value`` are dropped."""
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await put(
        tx,
        vm,
        {"id": saved.id},
        {
            "name": saved.name,
            "cluster_id": saved.cluster_id,
            "ha": saved.ha,
            "description": saved.description,
            "memory_bytes": saved.memory_bytes,
            "vcpus": saved.vcpus,
            "watchdog": saved.watchdog.model.value if saved.watchdog else None,
            "watchdog_action": saved.watchdog.action.value if saved.watchdog else None,
            "priority": saved.start_priority,
            "body": encode(saved),
            "revision": saved.revision,
        },
    )
    await tx.connection.execute(delete(disk).where(disk.c.vm_id == saved.id))
    await tx.connection.execute(delete(nic).where(nic.c.vm_id == saved.id))
    if saved.disks:
        await tx.connection.execute(
            insert(disk),
            [
                {
                    "id": one.id,
                    "vm_id": saved.id,
                    "storage_domain_id": one.storage_domain_id,
                    "path": one.path,
                }
                for one in saved.disks
            ],
        )
    if saved.nics:
        await tx.connection.execute(
            insert(nic),
            [{"id": one.id, "vm_id": saved.id, "mac": one.mac} for one in saved.nics],
        )
    return saved


async def save_vm_status(
    tx: WriteTransaction, value: VmStatus, *, shown: VmState | None = None
) -> VmStatus:
    """The one place that writes holders, in both of their forms. ``shown``: what may be claimed of it now; None: that it
    is as it says."""
    holders = tuple(sorted(set(value.holders)))
    saved = msgspec.structs.replace(value, holders=holders, revision=tx.revision)
    await put(
        tx,
        vm_status,
        {"vm_id": saved.vm_id},
        {
            "state": (saved.state if shown is None else shown).value,
            "host_id": saved.host_id,
            "last_watchdog": saved.last_watchdog,
            "watchdog_count": saved.watchdog_count,
            "body": encode(saved),
            "revision": saved.revision,
        },
    )
    known = set(
        await tx.connection.scalars(
            select(vm_holder.c.host_id).where(vm_holder.c.vm_id == saved.vm_id)
        )
    )
    if known - set(holders):
        await tx.connection.execute(
            delete(vm_holder).where(
                vm_holder.c.vm_id == saved.vm_id, vm_holder.c.host_id.in_(known - set(holders))
            )
        )
    for host_id in holders:
        if host_id not in known:
            await tx.connection.execute(
                insert(vm_holder).values(vm_id=saved.vm_id, host_id=host_id)
            )
    return saved


async def show_states_of(tx: WriteTransaction, host_id: HostId, *, unknown: bool) -> int:
    """Of the VMs that a host holds: show UNKNOWN while it does not answer, then what it said last.

    What was reported stays: a host that was merely cut off has nothing new to say when it is back. A VM of which another
    host spoke last is as that one says: this one only may hold it, as the target of a migration does.
    """
    changed = 0
    for row in await vms_held_by(tx, host_id):
        if row.status.host_id not in (None, host_id):
            continue
        shown = VmState.UNKNOWN if unknown else row.status.state
        if row.shown is shown:
            continue
        saved = await save_vm_status(tx, row.status)
        await tx.connection.execute(
            update(vm_status).where(vm_status.c.vm_id == saved.vm_id).values(state=shown.value)
        )
        changed += 1
    return changed


async def drop_vm(tx: WriteTransaction, vm_id: VmId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(vm).where(vm.c.id == vm_id))


async def disk_owner(tx: Transaction, storage_domain_id: StorageDomainId, path: str) -> str | None:
    """Name of the VM that has that disk."""
    return await tx.connection.scalar(
        select(vm.c.name)
        .join(disk, disk.c.vm_id == vm.c.id)
        .where(disk.c.storage_domain_id == storage_domain_id, disk.c.path == path)
    )


async def vm_of_disk(tx: Transaction, disk_id: str) -> VmId | None:
    found = await tx.connection.scalar(select(disk.c.vm_id).where(disk.c.id == disk_id))
    return VmId(found) if found is not None else None


async def mac_owner(tx: Transaction, mac: str) -> str | None:
    """Name of the VM that has that address."""
    return await tx.connection.scalar(
        select(vm.c.name).join(nic, nic.c.vm_id == vm.c.id).where(nic.c.mac == mac)
    )


async def add_definition(tx: WriteTransaction, vm_id: VmId, host_id: HostId) -> None:
    known = await tx.connection.scalar(
        select(vm_definition.c.vm_id).where(
            vm_definition.c.vm_id == vm_id, vm_definition.c.host_id == host_id
        )
    )
    if known is None:
        await tx.connection.execute(insert(vm_definition).values(vm_id=vm_id, host_id=host_id))


async def definitions(tx: Transaction, vm_id: VmId) -> tuple[HostId, ...]:
    """Hosts that were told this VM's domain, sorted."""
    rows = await tx.connection.scalars(
        select(vm_definition.c.host_id)
        .where(vm_definition.c.vm_id == vm_id)
        .order_by(vm_definition.c.host_id)
    )
    return tuple(HostId(host_id) for host_id in rows)
