"""Clusters and storage domains."""

import msgspec
from msgspec import UNSET
from sqlalchemy import delete, func, or_, select

from virtha.model.facts import StorageReport
from virtha.model.host import Cluster, StorageDomain
from virtha.model.ids import ClusterId, HostId, StorageDomainId
from virtha.store.body import decode, encode, put
from virtha.store.schema import cluster, disk, host, storage_domain, storage_report, template, vm
from virtha.store.store import Transaction, WriteTransaction


async def find_cluster(tx: Transaction, ref: str) -> Cluster | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(cluster.c.body).where(or_(cluster.c.id == ref, cluster.c.name == ref))
    )
    return decode(Cluster, body) if body is not None else None


async def all_clusters(tx: Transaction) -> tuple[Cluster, ...]:
    rows = await tx.connection.scalars(select(cluster.c.body).order_by(cluster.c.name))
    return tuple(decode(Cluster, body) for body in rows)


async def cluster_names(tx: Transaction) -> dict[ClusterId, str]:
    """Of all. Their policies are not read: that takes ten times as long."""
    rows = await tx.connection.execute(select(cluster.c.id, cluster.c.name))
    return {ClusterId(row.id): row.name for row in rows}


async def clusters_after(tx: Transaction, name: str, limit: int) -> tuple[Cluster, ...]:
    rows = await tx.connection.scalars(
        select(cluster.c.body).where(cluster.c.name > name).order_by(cluster.c.name).limit(limit)
    )
    return tuple(decode(Cluster, body) for body in rows)


async def save_cluster(tx: WriteTransaction, value: Cluster) -> Cluster:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await put(
        tx,
        cluster,
        {"id": saved.id},
        {"name": saved.name, "body": encode(saved), "revision": saved.revision},
    )
    return saved


async def drop_cluster(tx: WriteTransaction, cluster_id: ClusterId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(cluster).where(cluster.c.id == cluster_id))


async def cluster_members(tx: Transaction, cluster_id: ClusterId) -> dict[str, int]:
    """How many hosts, VMs, storage domains and templates it has."""
    counts = {}
    tables = (host, vm, storage_domain, template)
    for name, table in zip(("hosts", "vms", "storage domains", "templates"), tables, strict=True):
        counted = await tx.connection.scalar(
            select(func.count()).select_from(table).where(table.c.cluster_id == cluster_id)
        )
        counts[name] = int(counted or 0)
    return counts


async def find_storage(tx: Transaction, ref: str) -> StorageDomain | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(storage_domain.c.body).where(
            or_(storage_domain.c.id == ref, storage_domain.c.name == ref)
        )
    )
    return decode(StorageDomain, body) if body is not None else None


async def storage_of_cluster(tx: Transaction, cluster_id: ClusterId) -> tuple[StorageDomain, ...]:
    rows = await tx.connection.scalars(
        select(storage_domain.c.body)
        .where(storage_domain.c.cluster_id == cluster_id)
        .order_by(storage_domain.c.name)
    )
    return tuple(decode(StorageDomain, body) for body in rows)


async def storage_after(tx: Transaction, name: str, limit: int) -> tuple[StorageDomain, ...]:
    rows = await tx.connection.scalars(
        select(storage_domain.c.body)
        .where(storage_domain.c.name > name)
        .order_by(storage_domain.c.name)
        .limit(limit)
    )
    return tuple(decode(StorageDomain, body) for body in rows)


async def save_storage(tx: WriteTransaction, value: StorageDomain) -> StorageDomain:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await put(
        tx,
        storage_domain,
        {"id": saved.id},
        {
            "name": saved.name,
            "cluster_id": saved.cluster_id,
            "path": saved.path,
            "body": encode(saved),
            "revision": saved.revision,
        },
    )
    return saved


async def drop_storage(tx: WriteTransaction, storage_domain_id: StorageDomainId) -> None:
    _ = tx.revision
    await tx.connection.execute(
        delete(storage_domain).where(storage_domain.c.id == storage_domain_id)
    )


async def disk_count(tx: Transaction, storage_domain_id: StorageDomainId) -> int:
    counted = await tx.connection.scalar(
        select(func.count()).select_from(disk).where(disk.c.storage_domain_id == storage_domain_id)
    )
    return int(counted or 0)


async def save_report(tx: WriteTransaction, host_id: HostId, report: StorageReport) -> bool:
    """False: the same was known already, and nothing was written. Its mark is kept, not compared (``control/storage_marks.py``)."""
    keys = {"host_id": host_id, "storage_domain_id": report.storage_domain_id}
    body = encode(report)
    rows = await tx.connection.execute(
        select(storage_report.c.body, storage_report.c.mark, storage_report.c.other_than).where(
            storage_report.c.host_id == host_id,
            storage_report.c.storage_domain_id == report.storage_domain_id,
        )
    )
    known = rows.one_or_none()
    if known is not None and known.body == body:
        return False
    mark = None if report.mark is UNSET else report.mark
    if mark is None and known is not None and not report.usable:
        mark = known.mark  # it sees none now
    counts = known is None or known.other_than is None
    await put(
        tx,
        storage_report,
        dict(keys),
        {"usable": report.usable and counts, "body": body, "mark": mark, "revision": tx.revision},
    )
    return True


def other_storage(other_than: str) -> str:
    """``other_than``: a host's name."""
    return f"it is not the storage that {other_than} sees there"


def is_other_storage(report: StorageReport) -> bool:
    """Of one that was read here: its host could use it, but not as what it is taken for."""
    return (
        not report.usable and report.mark is not UNSET
    )  # a host tells a mark only of what it can use


def _as_it_counts(body: str, other_than: str | None) -> StorageReport:
    report = decode(StorageReport, body)
    if other_than is None or not report.usable:
        return report
    return msgspec.structs.replace(report, usable=False, detail=other_storage(other_than))


async def find_report(
    tx: Transaction, host_id: HostId, storage_domain_id: StorageDomainId
) -> StorageReport | None:
    """As it counts."""
    rows = await tx.connection.execute(
        select(storage_report.c.body, storage_report.c.other_than).where(
            storage_report.c.host_id == host_id,
            storage_report.c.storage_domain_id == storage_domain_id,
        )
    )
    row = rows.one_or_none()
    return _as_it_counts(row.body, row.other_than) if row is not None else None


async def reports_of(
    tx: Transaction, storage_domain_ids: tuple[StorageDomainId, ...]
) -> dict[tuple[HostId, StorageDomainId], StorageReport]:
    """As they count."""
    report = storage_report.c
    rows = await tx.connection.execute(
        select(report.host_id, report.storage_domain_id, report.body, report.other_than).where(
            report.storage_domain_id.in_(storage_domain_ids)
        )
    )
    return {
        (HostId(row.host_id), StorageDomainId(row.storage_domain_id)): _as_it_counts(
            row.body, row.other_than
        )
        for row in rows
    }
