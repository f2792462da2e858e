"""What hosts told of the marks on storage domains, and who therefore does not count as able to use one."""

from sqlalchemy import select, update

from virtha.model.facts import StorageReport
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.value import Value
from virtha.store.body import decode
from virtha.store.schema import host, storage_domain, storage_report
from virtha.store.store import Transaction, WriteTransaction


class ToldMark(Value, frozen=True, kw_only=True):
    """``mark``: the last one, also of a host that can't use the domain now, or is down. ``other_than``: see the schema."""

    host_id: HostId
    host_name: str
    mark: str | None
    other_than: str | None


async def told_marks(
    tx: Transaction, storage_domain_id: StorageDomainId
) -> tuple[str | None, tuple[ToldMark, ...]]:
    """The mark that counts, and what each host told that ever told any, by their numbers."""
    counts = await tx.connection.scalar(
        select(storage_domain.c.mark).where(storage_domain.c.id == storage_domain_id)
    )
    rows = await tx.connection.execute(
        select(storage_report.c.host_id, host.c.name, storage_report.c.mark)
        .add_columns(storage_report.c.other_than)
        .join(host, host.c.id == storage_report.c.host_id)
        .where(storage_report.c.storage_domain_id == storage_domain_id)
        .where(storage_report.c.mark.is_not(None) | storage_report.c.other_than.is_not(None))
        .order_by(host.c.number)
    )
    return counts, tuple(
        ToldMark(
            host_id=HostId(row.host_id),
            host_name=row.name,
            mark=row.mark,
            other_than=row.other_than,
        )
        for row in rows
    )


async def save_mark(tx: WriteTransaction, storage_domain_id: StorageDomainId, mark: str) -> None:
    """It is the one that counts from now on."""
    await tx.connection.execute(
        update(storage_domain).where(storage_domain.c.id == storage_domain_id).values(mark=mark)
    )


async def save_other_than(
    tx: WriteTransaction,
    host_id: HostId,
    storage_domain_id: StorageDomainId,
    other_than: str | None,
) -> None:
    where = (
        storage_report.c.host_id == host_id,
        storage_report.c.storage_domain_id == storage_domain_id,
    )
    body = await tx.connection.scalar(select(storage_report.c.body).where(*where))
    usable = other_than is None and body is not None and decode(StorageReport, body).usable
    await tx.connection.execute(
        update(storage_report)
        .where(*where)
        .values(other_than=other_than, usable=usable, revision=tx.revision)
    )
