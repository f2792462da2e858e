"""What hosts and VMs have changed since a revision: for those who keep a picture of them in memory."""

from collections import defaultdict
from collections.abc import Collection

from msgspec import UNSET
from sqlalchemy import func, or_, select

from virtha.model.ceph import CephSight
from virtha.model.facts import StorageReport
from virtha.model.host import StorageDomain
from virtha.model.ids import HostId, Revision, StorageDomainId, VmId
from virtha.store.body import decode, in_parts
from virtha.store.hosts import HostRow, hosts_with_ids
from virtha.store.schema import (
    host,
    host_status,
    storage_domain,
    storage_report,
    vm,
    vm_definition,
    vm_status,
)
from virtha.store.store import Transaction
from virtha.store.vms import VmRow, vms_with_ids

_ADOPTED = '"adopted":true'


async def vms_changed(tx: Transaction, since: Revision) -> tuple[VmRow, ...]:
    """They or their status, by whatever transaction after that revision."""
    ids = await tx.connection.scalars(
        select(vm.c.id)
        .join(vm_status, vm_status.c.vm_id == vm.c.id)
        .where(or_(vm.c.revision > since, vm_status.c.revision > since))
    )
    return await vms_with_ids(tx, tuple(sorted(VmId(one) for one in ids)))


async def hosts_changed(
    tx: Transaction, since: Revision, also: Collection[VmId] = ()
) -> tuple[HostRow, ...]:
    """They, their status, or what they said of storage; and where the VMs ``also`` are defined. By number."""
    ids = set(
        await tx.connection.scalars(
            select(host.c.id)
            .join(host_status, host_status.c.host_id == host.c.id)
            .where(or_(host.c.revision > since, host_status.c.revision > since))
        )
    )
    ids |= set(
        await tx.connection.scalars(
            select(storage_report.c.host_id).where(storage_report.c.revision > since)
        )
    )
    for wanted in in_parts(also):
        ids |= set(
            await tx.connection.scalars(
                select(vm_definition.c.host_id).where(vm_definition.c.vm_id.in_(wanted))
            )
        )
    rows = await hosts_with_ids(tx, {HostId(one) for one in ids})
    return tuple(sorted(rows.values(), key=lambda row: row.host.number))


async def usable_storage(
    tx: Transaction, host_ids: Collection[HostId]
) -> dict[HostId, frozenset[StorageDomainId]]:
    """By host: the domains that it says it can use."""
    found: dict[HostId, set[StorageDomainId]] = defaultdict(set)
    for wanted in in_parts(host_ids):
        rows = await tx.connection.execute(
            select(storage_report.c.host_id, storage_report.c.storage_domain_id).where(
                storage_report.c.host_id.in_(wanted), storage_report.c.usable.is_(True)
            )
        )
        for row in rows:
            found[HostId(row.host_id)].add(StorageDomainId(row.storage_domain_id))
    return {host_id: frozenset(domains) for host_id, domains in found.items()}


async def ceph_sights(
    tx: Transaction, host_ids: Collection[HostId]
) -> dict[HostId, dict[StorageDomainId, CephSight]]:
    """By host and domain: how its cluster sees it, by its agent's word. Costs one question where nothing is on Ceph."""
    bodies = await tx.connection.scalars(select(storage_domain.c.body))
    domains = [decode(StorageDomain, body) for body in bodies]
    on_ceph = tuple(domain.id for domain in domains if domain.ceph is not UNSET)
    found: dict[HostId, dict[StorageDomainId, CephSight]] = defaultdict(dict)
    for wanted in in_parts(host_ids) if on_ceph else ():
        rows = await tx.connection.execute(
            select(
                storage_report.c.host_id,
                storage_report.c.storage_domain_id,
                storage_report.c.body,
            ).where(
                storage_report.c.host_id.in_(wanted),
                storage_report.c.storage_domain_id.in_(on_ceph),
            )
        )
        for row in rows:
            report = decode(StorageReport, row.body)
            if report.ceph is not UNSET:
                found[HostId(row.host_id)][StorageDomainId(row.storage_domain_id)] = report.ceph
    return dict(found)


async def adopted_on(
    tx: Transaction, host_ids: Collection[HostId]
) -> dict[HostId, frozenset[VmId]]:
    """By host: the adopted VMs whose domain it has."""
    found: dict[HostId, set[VmId]] = defaultdict(set)
    for wanted in in_parts(host_ids):
        rows = await tx.connection.execute(
            select(vm_definition.c.host_id, vm_definition.c.vm_id)
            .join(vm, vm.c.id == vm_definition.c.vm_id)
            .where(
                vm_definition.c.host_id.in_(wanted),
                vm.c.body.contains(_ADOPTED, autoescape=True),
            )
        )
        for row in rows:
            found[HostId(row.host_id)].add(VmId(row.vm_id))
    return {host_id: frozenset(vms) for host_id, vms in found.items()}


async def counts(tx: Transaction) -> tuple[int, int]:
    """(hosts, VMs): who misses one asks for all ids."""
    hosts = await tx.connection.scalar(select(func.count()).select_from(host))
    vms = await tx.connection.scalar(select(func.count()).select_from(vm))
    return int(hosts or 0), int(vms or 0)


async def all_host_ids(tx: Transaction) -> frozenset[HostId]:
    return frozenset(HostId(one) for one in await tx.connection.scalars(select(host.c.id)))


async def all_vm_ids(tx: Transaction) -> frozenset[VmId]:
    return frozenset(VmId(one) for one in await tx.connection.scalars(select(vm.c.id)))
