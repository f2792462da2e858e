"""Records of incidents, and of their VMs. Whatever a leader's write changes of them goes in and out in a few statements,
however many hosts fell at once."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, bindparam, delete, func, insert, select, update

from virtha.model.ids import ClusterId, HostId, IncidentId, VmId
from virtha.model.incident import HostIncident, PathState, VmPath
from virtha.model.value import Value
from virtha.store.body import Unreadable, decode, decode_each, encode, in_parts
from virtha.store.schema import incident, incident_vm
from virtha.store.store import Transaction, WriteTransaction


class IncidentRow(Value, frozen=True, kw_only=True):
    incident: HostIncident
    number: int


class IncidentFilter(Value, frozen=True, kw_only=True):
    cluster_id: ClusterId | None = None
    host_id: HostId | None = None
    vm_id: VmId | None = None
    open: bool | None = None


async def find_incident(tx: Transaction, incident_id: str) -> HostIncident | None:
    body = await tx.connection.scalar(select(incident.c.body).where(incident.c.id == incident_id))
    return decode(HostIncident, body) if body is not None else None


async def incidents_before(
    tx: Transaction, wanted: IncidentFilter, number: int | None, limit: int
) -> tuple[IncidentRow, ...]:
    """Newest first, below ``number``."""
    where: list[ColumnElement[bool]] = []
    if number is not None:
        where.append(incident.c.number < number)
    if wanted.cluster_id is not None:
        where.append(incident.c.cluster_id == wanted.cluster_id)
    if wanted.host_id is not None:
        where.append(incident.c.host_id == wanted.host_id)
    if wanted.open is not None:
        where.append(incident.c.open.is_(wanted.open))
    if wanted.vm_id is not None:
        mine = select(incident_vm.c.incident_id).where(incident_vm.c.vm_id == wanted.vm_id)
        where.append(incident.c.id.in_(mine))
    rows = await tx.connection.execute(
        select(incident.c.body, incident.c.number)
        .where(*where)
        .order_by(incident.c.number.desc())
        .limit(limit)
    )
    return tuple(
        IncidentRow(incident=decode(HostIncident, row.body), number=row.number) for row in rows
    )


async def incidents_by_id(
    tx: Transaction, ids: Collection[IncidentId]
) -> dict[IncidentId, HostIncident]:
    bodies = await _bodies(tx, incident, incident.c.id, ids)
    return {found.id: found for found in (decode(HostIncident, body) for body in bodies)}


async def open_incidents_of(
    tx: Transaction, hosts: Collection[HostId]
) -> dict[IncidentId, HostIncident]:
    bodies = await _bodies(tx, incident, incident.c.host_id, hosts, incident.c.open.is_(True))
    return {found.id: found for found in (decode(HostIncident, body) for body in bodies)}


async def paths_of_vms(
    tx: Transaction, vms: Collection[VmId], *, only_open: bool
) -> tuple[VmPath, ...]:
    """``only_open``: with which the engine is not done. Else all of incidents that are not closed: a VM may have been in any
    number before."""
    if only_open:
        where = incident_vm.c.open.is_(True)
    else:
        where = incident_vm.c.incident_id.in_(
            select(incident.c.id).where(incident.c.open.is_(True))
        )
    bodies = await _bodies(tx, incident_vm, incident_vm.c.vm_id, vms, where)
    return tuple(decode(VmPath, body) for body in bodies)


async def recovered_from(tx: Transaction, vm_id: VmId) -> IncidentId | None:
    """The host's failure that the VM is being brought back from; of several that which a leader's events of it name as well."""
    table = incident_vm
    wanted = (table.c.vm_id == vm_id, table.c.open.is_(True))
    found = await tx.connection.scalar(select(func.max(table.c.incident_id)).where(*wanted))
    return IncidentId(found) if found is not None else None


async def _bodies(
    tx: Transaction,
    table: Table,
    column: ColumnElement[str],
    values: Collection[str],
    *where: ColumnElement[bool],
) -> list[str]:
    found = list[str]()
    for some in in_parts(values):
        found += await tx.connection.scalars(select(table.c.body).where(column.in_(some), *where))
    return found


async def newest_path(tx: Transaction, vm_id: VmId) -> VmPath | None:
    """Of the last incident that the VM was in."""
    body = await tx.connection.scalar(
        select(incident_vm.c.body)
        .join(incident, incident.c.id == incident_vm.c.incident_id)
        .where(incident_vm.c.vm_id == vm_id)
        .order_by(incident.c.number.desc())
        .limit(1)
    )
    return decode(VmPath, body) if body is not None else None


async def readable_paths_of(
    tx: Transaction, incident_id: IncidentId
) -> tuple[tuple[VmPath, ...], tuple[Unreadable, ...]]:
    """And those that can't be read, by their VM's id."""
    table = incident_vm
    rows = await tx.connection.execute(
        select(table.c.vm_id, table.c.body).where(table.c.incident_id == incident_id)
    )
    return decode_each(VmPath, [(of, body) for of, body in rows])


async def paths_of(tx: Transaction, incident_id: IncidentId) -> tuple[VmPath, ...]:
    rows = await tx.connection.scalars(
        select(incident_vm.c.body).where(incident_vm.c.incident_id == incident_id)
    )
    return tuple(decode(VmPath, body) for body in rows)


async def count_paths(
    tx: Transaction, ids: Collection[IncidentId]
) -> dict[IncidentId, dict[PathState, int]]:
    """How many VMs of each are how far."""
    table = incident_vm
    found: dict[IncidentId, dict[PathState, int]] = {one: {} for one in ids}
    for some in in_parts(ids):
        rows = await tx.connection.execute(
            select(table.c.incident_id, table.c.state, func.count().label("vms"))
            .where(table.c.incident_id.in_(some))
            .group_by(table.c.incident_id, table.c.state)
        )
        for row in rows:
            found[row.incident_id][PathState(row.state)] = row.vms
    return found


async def with_open_paths(tx: Transaction, ids: Collection[IncidentId]) -> set[IncidentId]:
    table = incident_vm
    found: set[IncidentId] = set()
    for some in in_parts(ids):
        rows = await tx.connection.scalars(
            select(table.c.incident_id)
            .where(table.c.incident_id.in_(some), table.c.open.is_(True))
            .distinct()
        )
        found |= {IncidentId(one) for one in rows}
    return found


async def save_incidents(
    tx: WriteTransaction, values: Iterable[HostIncident], *, new: Collection[IncidentId]
) -> None:
    """``new``: those that have no row yet."""
    added, changed = list[dict[str, Any]](), list[dict[str, Any]]()
    for value in values:
        row = {"open": value.closed is None, "closed": value.closed or 0, "body": encode(value)}
        if value.id in new:
            keys = {"id": value.id, "cluster_id": value.cluster_id, "host_id": value.host_id}
            added.append({**keys, **row, "number": tx.next_revision()})
        else:
            changed.append({"key": value.id, **row})
    if added:
        await tx.connection.execute(insert(incident), added)
    if changed:
        await tx.connection.execute(
            update(incident)
            .where(incident.c.id == bindparam("key"))
            .values(**{name: bindparam(name) for name in ("open", "closed", "body")}),
            changed,
        )


async def save_paths(
    tx: WriteTransaction,
    values: Iterable[VmPath],
    *,
    new: Collection[tuple[IncidentId, VmId]],
) -> None:
    """``new``: those that have no row yet."""
    added, changed = list[dict[str, Any]](), list[dict[str, Any]]()
    for value in values:
        row = {"open": value.open, "state": value.state.value, "body": encode(value)}
        if (value.incident_id, value.vm_id) in new:
            added.append({"incident_id": value.incident_id, "vm_id": value.vm_id, **row})
        else:
            changed.append({"key": value.incident_id, "vm": value.vm_id, **row})
    if added:
        await tx.connection.execute(insert(incident_vm), added)
    if changed:
        table = incident_vm
        await tx.connection.execute(
            update(table)
            .where(table.c.incident_id == bindparam("key"), table.c.vm_id == bindparam("vm"))
            .values(**{name: bindparam(name) for name in ("open", "state", "body")}),
            changed,
        )


async def prune_incidents(tx: WriteTransaction, *, closed_before_ms: int, most: int) -> int:
    """Forget those that were closed before that time, and the oldest closed ones above ``most`` of all. Returns how many."""
    table = incident
    done = await tx.connection.execute(
        delete(table).where(table.c.open.is_(False), table.c.closed < closed_before_ms)
    )
    there = await tx.connection.scalar(select(func.count()).select_from(table)) or 0
    if there <= most:
        return int(done.rowcount)
    oldest: Sequence[int] = list(
        await tx.connection.scalars(
            select(table.c.number)
            .where(table.c.open.is_(False))
            .order_by(table.c.number)
            .limit(there - most)
        )
    )
    if not oldest:
        return int(done.rowcount)
    more = await tx.connection.execute(
        delete(table).where(table.c.open.is_(False), table.c.number <= oldest[-1])
    )
    return int(done.rowcount) + int(more.rowcount)
