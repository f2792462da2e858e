"""The audit log.

An event whose record can't be read is what its columns say: its code, its time, what it is about. One bad record keeps nobody from
reading, or being told, the others.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import HostId, Revision, VmId
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import Unreadable, decode_each, encode, in_parts
from virtha.store.schema import event
from virtha.store.store import Transaction, WriteTransaction

RANK = {severity: rank for rank, severity in enumerate(Severity)}
"""What the column holds."""
_BY_RANK = {rank: severity for severity, rank in RANK.items()}
COLUMNS = tuple(event.c)
"""Of the rows that ``read_events`` takes."""


class EventFilter(Value, frozen=True, kw_only=True):
    vm_id: VmId | None = None
    host_id: HostId | None = None
    code: str | None = None
    """May end in ``*``."""
    severity: Severity | None = None
    """The least one."""


class ReadEvents(NamedTuple):
    """``unreadable``: those of the events of which only the columns could be read, by number."""

    events: tuple[Event, ...]
    unreadable: tuple[Unreadable, ...]


async def add_event(tx: WriteTransaction, value: Event) -> Event:
    """Gives it its revision and time."""
    saved = msgspec.structs.replace(value, revision=tx.next_revision(), at=tx.clock.wall_ms())
    await tx.connection.execute(
        insert(event).values(
            revision=saved.revision,
            code=saved.code,
            severity=RANK[saved.severity],
            cluster_id=saved.cluster_id,
            host_id=saved.host_id,
            vm_id=saved.vm_id,
            at=saved.at,
            body=encode(saved),
        )
    )
    return saved


def event_conditions(
    wanted: EventFilter, columns: ReadOnlyColumnCollection[str, Any] = event.c
) -> list[ColumnElement[bool]]:
    """``columns``: of the table under another name."""
    where: list[ColumnElement[bool]] = []
    if wanted.vm_id is not None:
        where.append(columns.vm_id == wanted.vm_id)
    if wanted.host_id is not None:
        where.append(columns.host_id == wanted.host_id)
    if wanted.severity is not None:
        where.append(columns.severity >= RANK[wanted.severity])
    if wanted.code is not None and wanted.code.endswith("*"):
        where.append(columns.code.startswith(wanted.code[:-1], autoescape=True))
    elif wanted.code is not None:
        where.append(columns.code == wanted.code)
    return where


def read_events(rows: Iterable[Any]) -> ReadEvents:
    """``rows``: of ``COLUMNS``. In their order."""
    events: list[Event] = []
    unreadable: list[Unreadable] = []
    for row in rows:
        found, bad = decode_each(Event, [(str(row.revision), row.body)])
        events.append(found[0] if found else _of_columns(row))
        unreadable += bad
    return ReadEvents(events=tuple(events), unreadable=tuple(unreadable))


def _of_columns(row: Any) -> Event:
    """Without its fields; of a severity that nobody knows it is an error."""
    return Event(
        revision=Revision(row.revision),
        code=row.code,
        severity=_BY_RANK.get(row.severity, Severity.ERROR),
        message=f"{row.code}: the rest of its record can't be read",
        cluster_id=row.cluster_id,
        host_id=row.host_id,
        vm_id=row.vm_id,
        at=UtcMillis(row.at),
    )


async def read_after(tx: Transaction, wanted: EventFilter, revision: int, limit: int) -> ReadEvents:
    """Oldest first, above ``revision``."""
    rows = await tx.connection.execute(
        select(*COLUMNS)
        .where(event.c.revision > revision, *event_conditions(wanted))
        .order_by(event.c.revision)
        .limit(limit)
    )
    return read_events(rows)


async def events_after(
    tx: Transaction, wanted: EventFilter, revision: int, limit: int
) -> Sequence[Event]:
    """Oldest first, above ``revision``."""
    return (await read_after(tx, wanted, revision, limit)).events


async def events_before(
    tx: Transaction, wanted: EventFilter, revision: int | None, limit: int
) -> Sequence[Event]:
    """Newest first, below ``revision``."""
    where = event_conditions(wanted)
    if revision is not None:
        where.append(event.c.revision < Revision(revision))
    rows = await tx.connection.execute(
        select(*COLUMNS).where(*where).order_by(event.c.revision.desc()).limit(limit)
    )
    return read_events(rows).events


async def codes_before(
    tx: Transaction, wanted: EventFilter, codes: Collection[str], revision: int
) -> frozenset[str]:
    """Which of these codes there are below ``revision``. ``wanted``: of what."""
    where = [*event_conditions(wanted), event.c.code.in_(codes)]
    found = await tx.connection.scalars(
        select(event.c.code).where(*where, event.c.revision < Revision(revision)).distinct()
    )
    return frozenset(found)


async def last_of_hosts(
    tx: Transaction, hosts: Collection[HostId], code: str
) -> dict[HostId, Event]:
    """The last event with that code of each, where there is one."""
    newest: list[int] = []
    for some in in_parts(hosts):
        newest += await tx.connection.scalars(
            select(func.max(event.c.revision))
            .where(event.c.host_id.in_(some), event.c.code == code)
            .group_by(event.c.host_id)
        )
    found: dict[HostId, Event] = {}
    for start in range(0, len(newest), 500):
        for one in (await events_at(tx, newest[start : start + 500])).values():
            if one.host_id is not None:
                found[one.host_id] = one
    return found


async def find_event(tx: Transaction, revision: int) -> Event | None:
    return (await events_at(tx, (revision,))).get(Revision(revision))


async def events_at(tx: Transaction, revisions: Sequence[int]) -> dict[Revision, Event]:
    """Those that are still kept."""
    rows = await tx.connection.execute(
        select(*COLUMNS).where(event.c.revision.in_(tuple(revisions)))
    )
    return {found.revision: found for found in read_events(rows).events}


async def last_event_at(tx: Transaction) -> UtcMillis | None:
    """When the newest was recorded, by the server's clock of then. None: there is none."""
    newest = select(event.c.at).order_by(event.c.revision.desc()).limit(1)
    at = await tx.connection.scalar(newest)
    return None if at is None else UtcMillis(at)
