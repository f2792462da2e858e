"""The engine's records, and the copies that people's orders made possible beside them (G1).

A copy is entered by the transaction that makes its order, and goes with the write of the turn that was told of it. So it
is known before the order goes out, without waiting for a turn: a leader that dies or sleeps in between leaves it to
the next, which is told of it before it decides anything.
"""

from collections.abc import Collection
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Table, delete, select, update

from virtha.engine.events import (
    CopyGranted,
    DropHost,
    DropVm,
    Intent,
    SaveCluster,
    SaveHost,
    SaveVm,
)
from virtha.engine.records import ClusterRecord, HostRecord, VmRecord
from virtha.model.errors import Failed
from virtha.model.ids import BootId, ClusterId, HostId, Incarnation, VmId
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.store.body import decode, encode, in_parts, put
from virtha.store.hosts import save_settled
from virtha.store.schema import engine_cluster, engine_grant, engine_host, engine_vm, vm
from virtha.store.store import Transaction, WriteTransaction

T = TypeVar("T")


class RecordRows(Value, frozen=True, kw_only=True):
    """All of one cluster, sorted by id. ``cluster`` None: nobody has led it yet."""

    cluster: ClusterRecord | None
    clock: Millis
    """Cluster time of the last write; 0: there was none."""
    hosts: tuple[HostRecord, ...]
    vms: tuple[VmRecord, ...]
    granted: tuple[CopyGranted, ...]
    """In their order."""


def _decoded(wanted: type[T], text: str, what: str) -> T:
    """Raises Failed: nobody may lead with half of what was decided before."""
    try:
        return decode(wanted, text)
    except (Failed, AssertionError) as error:
        why = error.__cause__ or error.__context__ or error
        raise Failed(
            f"the engine's record of {what} can't be read: {why}",
            fix="run the version that wrote it, or a newer one; or restore a backup",
        ) from None


async def engine_records(tx: Transaction, cluster_id: ClusterId) -> RecordRows:
    """Raises Failed, naming the record that can't be read."""
    row = (
        await tx.connection.execute(
            select(engine_cluster.c.body, engine_cluster.c.clock).where(
                engine_cluster.c.cluster_id == cluster_id
            )
        )
    ).one_or_none()
    cluster = _decoded(ClusterRecord, row.body, f"cluster {cluster_id}") if row else None
    hosts = await tx.connection.execute(
        select(engine_host)
        .where(engine_host.c.cluster_id == cluster_id)
        .order_by(engine_host.c.host_id)
    )
    vms = await tx.connection.execute(
        select(engine_vm).where(engine_vm.c.cluster_id == cluster_id).order_by(engine_vm.c.vm_id)
    )
    return RecordRows(
        cluster=cluster,
        clock=Millis(row.clock if row is not None else 0),
        hosts=tuple(_decoded(HostRecord, one.body, f"host {one.host_id}") for one in hosts),
        vms=tuple(_decoded(VmRecord, one.body, f"VM {one.vm_id}") for one in vms),
        granted=await _grants(tx, vm.c.cluster_id == cluster_id),
    )


async def find_cluster_record(tx: Transaction, cluster_id: ClusterId) -> ClusterRecord | None:
    """None: nobody has led it yet."""
    table = engine_cluster
    body = await tx.connection.scalar(select(table.c.body).where(table.c.cluster_id == cluster_id))
    return None if body is None else _decoded(ClusterRecord, body, f"cluster {cluster_id}")


class LedRecord(Value, frozen=True, kw_only=True):
    cluster_id: ClusterId
    record: HostRecord


async def find_host_record(tx: Transaction, host_id: HostId) -> LedRecord | None:
    """Also of a host that was removed. None: no leader has written one."""
    row = (
        await tx.connection.execute(select(engine_host).where(engine_host.c.host_id == host_id))
    ).one_or_none()
    if row is None:
        return None
    record = _decoded(HostRecord, row.body, f"host {host_id}")
    return LedRecord(cluster_id=ClusterId(row.cluster_id), record=record)


async def find_host_records(tx: Transaction, hosts: Collection[HostId]) -> dict[HostId, HostRecord]:
    """Those that there are."""
    table, found = engine_host, dict[HostId, HostRecord]()
    for some in in_parts(hosts):
        rows = await tx.connection.execute(select(table).where(table.c.host_id.in_(some)))
        for row in rows:
            found[row.host_id] = _decoded(HostRecord, row.body, f"host {row.host_id}")
    return found


async def find_vm_records(tx: Transaction, vms: Collection[VmId]) -> dict[VmId, VmRecord]:
    """Those that there are."""
    table, found = engine_vm, dict[VmId, VmRecord]()
    for some in in_parts(vms):
        rows = await tx.connection.execute(select(table).where(table.c.vm_id.in_(some)))
        for row in rows:
            found[row.vm_id] = _decoded(VmRecord, row.body, f"VM {row.vm_id}")
    return found


async def hosts_in_maintenance(tx: Transaction, cluster_id: ClusterId) -> frozenset[HostId]:
    rows = await tx.connection.execute(
        select(engine_host).where(
            engine_host.c.cluster_id == cluster_id,
            engine_host.c.body.contains('"maintenance":"', autoescape=True),
        )
    )
    records = (_decoded(HostRecord, row.body, f"host {row.host_id}") for row in rows)
    return frozenset(record.host_id for record in records if record.maintenance is not None)


async def find_vm_record(tx: Transaction, vm_id: VmId) -> VmRecord | None:
    """None: no leader has written one."""
    body = await tx.connection.scalar(select(engine_vm.c.body).where(engine_vm.c.vm_id == vm_id))
    return None if body is None else _decoded(VmRecord, body, f"VM {vm_id}")


async def save_intent(tx: WriteTransaction, cluster_id: ClusterId, intent: Intent) -> None:
    """Moves no revision: what follows for hosts and VMs is shown by their own rows."""
    match intent:
        case SaveCluster():
            raise AssertionError("with the clock: save_cluster_record")
        case SaveHost(record=record):
            values = {"cluster_id": cluster_id, "body": encode(record)}
            await put(tx, engine_host, {"host_id": record.host_id}, values)
            if record.told is not None and record.told.settled:
                await save_settled(tx, record.host_id, record.told.timeline)
        case SaveVm(record=record):
            values = {"cluster_id": cluster_id, "body": encode(record)}
            await put(tx, engine_vm, {"vm_id": record.vm_id}, values)
        case DropHost(host_id=host_id):
            await _drop(tx, engine_host, "host_id", host_id)
        case DropVm(vm_id=vm_id):
            await _drop(tx, engine_vm, "vm_id", vm_id)


async def _drop(tx: WriteTransaction, table: Table, key: str, value: str) -> None:
    await tx.connection.execute(delete(table).where(table.c[key] == value))


async def save_cluster_record(
    tx: WriteTransaction, cluster_id: ClusterId, record: ClusterRecord | None, clock: Millis
) -> None:
    """``record`` None: as it was, only the clock has gone on. A cluster that nobody has led has no row yet, and gets none
    by that."""
    values: dict[str, Any] = {"clock": int(clock)}
    if record is not None:
        await put(
            tx, engine_cluster, {"cluster_id": cluster_id}, {**values, "body": encode(record)}
        )
        return
    await tx.connection.execute(
        update(engine_cluster).where(engine_cluster.c.cluster_id == cluster_id).values(**values)
    )


# Copies that no write of the engine knows of yet


async def add_grant(tx: WriteTransaction, granted: CopyGranted) -> None:
    """Twice is once."""
    await put(tx, engine_grant, _key(granted), {"number": tx.next_revision()})


async def grants_of(tx: Transaction, vm_id: VmId) -> tuple[CopyGranted, ...]:
    """In the order in which they were given."""
    return await _grants(tx, engine_grant.c.vm_id == vm_id)


async def _grants(tx: Transaction, where: ColumnElement[bool]) -> tuple[CopyGranted, ...]:
    rows = await tx.connection.execute(
        select(engine_grant)
        .join(vm, vm.c.id == engine_grant.c.vm_id)
        .where(where)
        .order_by(engine_grant.c.number)
    )
    return tuple(
        CopyGranted(
            host_id=HostId(row.host_id),
            boot=BootId(row.boot),
            vm_id=VmId(row.vm_id),
            incarnation=Incarnation(row.incarnation),
        )
        for row in rows
    )


async def drop_grant(tx: WriteTransaction, granted: CopyGranted) -> None:
    table = engine_grant
    await tx.connection.execute(
        delete(table).where(*(table.c[name] == value for name, value in _key(granted).items()))
    )


def _key(granted: CopyGranted) -> dict[str, Any]:
    return {
        "vm_id": granted.vm_id,
        "host_id": granted.host_id,
        "boot": granted.boot,
        "incarnation": int(granted.incarnation),
    }
