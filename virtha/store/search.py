"""Finds what a search says: the keys of one page, in their order. Bounded by the database's own steps, so that no search holds
up a reader for long, however fast or busy the machine is."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.exc import OperationalError

from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.search.tree import Query, Sort
from virtha.store.body import decode
from virtha.store.search_fields import EVENTS, SEARCHED
from virtha.store.search_source import Condition, Rows
from virtha.store.search_sql import Translation
from virtha.store.store import Transaction

STEP_OPCODES = 10_000
"""Of SQLite's virtual machine, between two counts. Measured: 0.4 to 1.4 ms, the latter where JSON is read in every row."""
STEPS_MAX = 2_000
"""Of one search: some 2 s of one processor. 20,000 VMs looked through by free text take 48, the messages of 300,000 events 240."""
EVENT_STEPS = 20
"""After so many no further part of the log is looked at for one page: some 25 ms."""
EVENT_WINDOW = 10_000
"""Revisions looked at first."""
SKIPPED_MAX = 100_000
"""Events before the page that is asked for by its number."""


_BY_NAME = Sort(field="name")


class Place(Value, frozen=True, kw_only=True):
    """Where a page ended: its last row's value of what the list is sorted by, and its name."""

    value: str | int | None = None
    name: str


class Found(NamedTuple):
    keys: tuple[str, ...]
    next: Place | None
    """None: that was the last page, or the pages are asked for by number."""


class Wanted(NamedTuple):
    """How a search is meant. ``besides``: what must hold as well, of the same rows."""

    query: Query
    now: UtcMillis
    case_sensitive: bool
    limit: int
    besides: Callable[[Rows], Sequence[Condition]] | None = None


def too_costly() -> InvalidInput:
    return InvalidInput(
        "the search looks at more than one request may",
        code="problem.search.costly",
        field="search",
        fix="narrow it: name a VM, a host, an exact code or a time",
    )


class Budget:
    """Counts in the thread of SQLite; read between queries."""

    def __init__(self, steps_max: int) -> None:
        self.used = 0
        self._steps_max = steps_max
        self._over = False

    @property
    def exceeded(self) -> bool:
        return self.used > self._steps_max

    def tick(self) -> int:
        """Not 0: the query ends."""
        self.used += 1
        return int(self.exceeded and not self._over)

    def end(self) -> None:
        """From now on it stops nothing, also where a cancelled request could not take it from its connection."""
        self._over = True


@asynccontextmanager
async def _bounded(tx: Transaction, steps_max: int) -> AsyncIterator[Budget]:
    """Raises InvalidInput (`problem.search.costly`) when the queries within it take too many steps."""
    budget = Budget(steps_max)
    raw = await tx.connection.get_raw_connection()
    driver = raw.driver_connection
    assert driver is not None
    await driver.set_progress_handler(budget.tick, STEP_OPCODES)
    try:
        yield budget
    except OperationalError as error:
        if budget.exceeded:
            raise too_costly() from error
        raise
    finally:
        budget.end()
        await driver.set_progress_handler(None, 0)


async def find(tx: Transaction, wanted: Wanted, after: Place | None) -> Found:
    """The page behind ``after``, of any noun but events. Lists that aren't sorted by something else are by name."""
    statement, is_numbered = page_statement(wanted, after)
    async with _bounded(tx, STEPS_MAX):
        rows = (await tx.connection.execute(statement)).all()
    shown, more = rows[: wanted.limit], len(rows) > wanted.limit
    last = _place(shown[-1][1], shown[-1][2]) if more and not is_numbered else None
    return Found(keys=tuple(row[0] for row in shown), next=last)


def _place(name: str, value: Any) -> Place:
    # There is no order of true and false in SQL, but of what they are stored as.
    return Place(value=int(value) if isinstance(value, bool) else value, name=name)


def page_statement(wanted: Wanted, after: Place | None) -> tuple[Select[Any], bool]:
    """The rows are key, name and what they are sorted by; and whether a page was asked for by its number."""
    query = wanted.query
    searched = SEARCHED[query.noun]
    rows = searched.rows()
    key, name = searched.key_of(rows), searched.name_of(rows)
    order, descending = name, False
    if query.sort is not None and query.sort != _BY_NAME:
        order, descending = (
            searched.field(query.sort.field).source(rows).order,
            query.sort.descending,
        )
    where = _conditions(wanted, rows)
    if after is not None:
        where.append(_behind(after, order, name, descending=descending))
    # As oVirt: no value comes first, and last where the order is turned round. Equal ones by name.
    by = order.desc().nulls_last() if descending else order.asc().nulls_first()
    ordered = (name,) if order is name and not descending else (by, name)
    statement = select(key, name, order).select_from(rows.joined).where(*where).order_by(*ordered)
    skipped = (query.page - 1) * wanted.limit if query.page is not None else 0
    return statement.limit(wanted.limit + 1).offset(skipped), query.page is not None


def _conditions(wanted: Wanted, rows: Rows) -> list[Condition]:
    found = list(wanted.besides(rows)) if wanted.besides is not None else []
    if wanted.query.where is not None:
        translation = Translation(
            SEARCHED[wanted.query.noun], now=wanted.now, case_sensitive=wanted.case_sensitive
        )
        found.append(translation.condition(wanted.query.where, rows))
    return found


def _behind(
    place: Place, order: ColumnElement[Any], name: ColumnElement[Any], *, descending: bool
) -> Condition:
    if place.value is None:
        same = and_(order.is_(None), name > place.name)
        return same if descending else or_(same, order.is_not(None))
    same = and_(order == place.value, name > place.name)
    if descending:
        return or_(order < place.value, order.is_(None), same)
    return or_(order > place.value, same)


class FoundEvents(NamedTuple):
    """May be fewer than were asked for, and still not the last: so much of the log was looked at."""

    events: Sequence[Event]
    next: int | None
    """A revision, exclusive. None: that was the last page, or the pages are asked for by number."""


class Log(NamedTuple):
    """What of the log is to be looked at: revisions above ``low`` up to ``high``."""

    low: int
    high: int
    descending: bool

    def behind(self, revision: int) -> "Log":
        """What is left of it, behind the page that ended with ``revision``, exclusive."""
        if self.descending:
            return self._replace(high=min(self.high, revision - 1))
        return self._replace(low=max(self.low, revision))


async def find_events(tx: Transaction, wanted: Wanted, log: Log) -> FoundEvents:
    """By parts of the log, each larger than the one before as long as they cost little: what is rare is found in few looks, and
    no look takes long."""
    query = wanted.query
    skipped = (query.page - 1) * wanted.limit if query.page is not None else 0
    if skipped > SKIPPED_MAX:
        raise too_costly()
    needed = skipped + wanted.limit + 1
    found: list[tuple[int, str]] = []
    low, high, size = log.low, log.high, EVENT_WINDOW
    async with _bounded(tx, STEPS_MAX) as budget:
        while low < high and len(found) < needed:
            before = budget.used
            part = (
                log._replace(low=max(low, high - size), high=high)
                if log.descending
                else log._replace(low=low, high=min(high, low + size))
            )
            statement = events_statement(wanted, part).limit(needed - len(found))
            found += [(row[0], row[1]) for row in await tx.connection.execute(statement)]
            low, high = (low, part.low) if log.descending else (part.high, high)
            if budget.used > EVENT_STEPS and query.page is None:
                break
            if (budget.used - before) * 8 < EVENT_STEPS:
                size *= 4
    shown = found[skipped : needed - 1]
    events = tuple(decode(Event, body) for _, body in shown)
    if query.page is not None:
        return FoundEvents(events, None)
    if len(found) == needed:
        return FoundEvents(events, shown[-1][0])
    if low < high:
        return FoundEvents(events, high + 1 if log.descending else low)
    return FoundEvents(events, None)


def events_statement(wanted: Wanted, log: Log) -> Select[Any]:
    """The rows are revision and body."""
    rows = SEARCHED[EVENTS].rows()
    event = rows["event"]
    inside = (event.revision > log.low, event.revision <= log.high)
    order = event.revision.desc() if log.descending else event.revision.asc()
    statement = select(event.revision, event.body).where(*inside, *_conditions(wanted, rows))
    return statement.order_by(order)
