"""Hosts, their status, their certificates."""

from collections.abc import Collection

import msgspec
from sqlalchemy import ColumnElement, delete, func, insert, or_, select, update

from virtha.model.host import Host, HostStatus
from virtha.model.ids import ClusterId, HostId
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import decode, encode, in_parts, put
from virtha.store.schema import certificate, host, host_status
from virtha.store.store import Transaction, WriteTransaction


class HostRow(Value, frozen=True, kw_only=True):
    host: Host
    status: HostStatus
    fact_sequence: int
    """The last fact of this host that is recorded."""
    fact_acknowledged: int
    """The last that it may forget; never above ``fact_sequence``."""
    timeline: str
    """The timeline in which it last sent its inventory (M2)."""
    settled_timeline: str
    """The timeline in which it is waited for no longer (M2): it told, and whatever lost records may have known of has come
    up and been told since, or can't any more. The leader's word; where nobody leads, its inventory suffices."""


_JOINED = select(
    host.c.body.label("host_body"),
    host_status.c.body.label("status_body"),
    host_status.c.fact_sequence,
    host_status.c.fact_acknowledged,
    host_status.c.timeline,
    host_status.c.settled_timeline,
).join(host_status, host_status.c.host_id == host.c.id)


async def _rows(
    tx: Transaction, *where: ColumnElement[bool], by_name: bool = False, limit: int | None = None
) -> tuple[HostRow, ...]:
    order = host.c.name if by_name else host.c.number
    rows = await tx.connection.execute(_JOINED.where(*where).order_by(order).limit(limit))
    return tuple(
        HostRow(
            host=decode(Host, row.host_body),
            status=decode(HostStatus, row.status_body),
            fact_sequence=row.fact_sequence,
            fact_acknowledged=row.fact_acknowledged,
            timeline=row.timeline,
            settled_timeline=row.settled_timeline,
        )
        for row in rows
    )


async def find_host(tx: Transaction, ref: str) -> HostRow | None:
    """By id or name."""
    return next(iter(await _rows(tx, or_(host.c.id == ref, host.c.name == ref))), None)


async def find_host_by_libvirt_uuid(tx: Transaction, libvirt_uuid: str) -> HostRow | None:
    return next(iter(await _rows(tx, host.c.libvirt_uuid == libvirt_uuid)), None)


async def all_hosts(tx: Transaction) -> tuple[HostRow, ...]:
    """By number."""
    return await _rows(tx)


async def hosts_of_cluster(tx: Transaction, cluster_id: ClusterId) -> tuple[HostRow, ...]:
    """By number."""
    return await _rows(tx, host.c.cluster_id == cluster_id)


async def hosts_after(tx: Transaction, name: str, limit: int) -> tuple[HostRow, ...]:
    return await _rows(tx, host.c.name > name, by_name=True, limit=limit)


async def host_names(tx: Transaction, ids: Collection[HostId]) -> dict[HostId, str]:
    """Of those that there are."""
    found: dict[HostId, str] = {}
    for some in in_parts(ids):
        rows = await tx.connection.execute(
            select(host.c.id, host.c.name).where(host.c.id.in_(some))
        )
        found |= {HostId(row.id): row.name for row in rows}
    return found


async def hosts_with_ids(tx: Transaction, ids: Collection[HostId]) -> dict[HostId, HostRow]:
    found: dict[HostId, HostRow] = {}
    wanted = sorted(ids)
    for start in range(0, len(wanted), 500):  # both databases bound the number of parameters
        for row in await _rows(tx, host.c.id.in_(wanted[start : start + 500])):
            found[row.host.id] = row
    return found


async def add_host(
    tx: WriteTransaction, value: Host, *, libvirt_uuid: str | None, timeline: str
) -> Host:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        insert(host).values(
            id=saved.id,
            name=saved.name,
            number=saved.number,
            cluster_id=saved.cluster_id,
            libvirt_uuid=libvirt_uuid,
            body=encode(saved),
            revision=saved.revision,
        )
    )
    status = HostStatus(host_id=saved.id, revision=tx.revision)
    await tx.connection.execute(
        insert(host_status).values(
            host_id=saved.id,
            state=status.state.value,
            fact_sequence=0,
            fact_acknowledged=0,
            timeline=timeline,
            settled_timeline=timeline,
            body=encode(status),
            revision=tx.revision,
        )
    )
    return saved


async def save_host_status(tx: WriteTransaction, value: HostStatus) -> HostStatus:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        update(host_status)
        .where(host_status.c.host_id == saved.host_id)
        .values(state=saved.state.value, body=encode(saved), revision=saved.revision)
    )
    return saved


async def save_fact_sequence(tx: WriteTransaction, host_id: HostId, sequence: int) -> None:
    """Moves no revision: nobody is shown this number."""
    await tx.connection.execute(
        update(host_status).where(host_status.c.host_id == host_id).values(fact_sequence=sequence)
    )


async def save_fact_acknowledged(tx: WriteTransaction, host_id: HostId, sequence: int) -> None:
    """Up to there the host may forget them. Never lowered. Moves no revision."""
    await tx.connection.execute(
        update(host_status)
        .where(host_status.c.host_id == host_id, host_status.c.fact_acknowledged < sequence)
        .values(fact_acknowledged=sequence)
    )


async def save_inventory_timeline(tx: WriteTransaction, host_id: HostId, timeline: str) -> None:
    await tx.connection.execute(
        update(host_status).where(host_status.c.host_id == host_id).values(timeline=timeline)
    )


async def save_settled(tx: WriteTransaction, host_id: HostId, timeline: str) -> None:
    """Moves no revision, as the inventory's timeline does not."""
    await tx.connection.execute(
        update(host_status)
        .where(host_status.c.host_id == host_id, host_status.c.settled_timeline != timeline)
        .values(settled_timeline=timeline)
    )


async def drop_host(tx: WriteTransaction, host_id: HostId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(host).where(host.c.id == host_id))


async def add_certificate(
    tx: WriteTransaction, serial: str, host_id: HostId, not_after: UtcMillis
) -> None:
    await put(
        tx,
        certificate,
        {"serial": serial},
        {"host_id": host_id, "not_after": not_after, "revoked": False},
    )


async def revoke_certificates(tx: WriteTransaction, host_id: HostId) -> None:
    await tx.connection.execute(
        update(certificate).where(certificate.c.host_id == host_id).values(revoked=True)
    )


async def certificate_ends(
    tx: Transaction, host_ids: Collection[HostId]
) -> dict[HostId, UtcMillis]:
    """Of each host's certificate that ends last."""
    found: dict[HostId, UtcMillis] = {}
    for part in in_parts(host_ids):
        rows = await tx.connection.execute(
            select(certificate.c.host_id, func.max(certificate.c.not_after))
            .where(certificate.c.host_id.in_(part), certificate.c.revoked.is_(False))
            .group_by(certificate.c.host_id)
        )
        found |= {HostId(row[0]): UtcMillis(row[1]) for row in rows}
    return found


async def certificate_is_valid(tx: Transaction, serial: str, host_id: HostId) -> bool:
    """Known, of that host, and not revoked. Serials compare without case and leading zeros."""
    rows = await tx.connection.execute(
        select(certificate.c.serial, certificate.c.revoked).where(certificate.c.host_id == host_id)
    )
    wanted = serial.lower().lstrip("0")
    return any(row.serial.lower().lstrip("0") == wanted and not row.revoked for row in rows)
