"""The audit log: lists, and a stream that wakes at each commit."""

from collections.abc import AsyncIterator, Sequence

from virtha.control.known_settings import EVENT_RETENTION, setting_values
from virtha.control.names import check_limit, the_host, the_vm
from virtha.control.requests import EventQuery
from virtha.control.searching import read_search
from virtha.control.views import Page
from virtha.model.errors import Gone, InvalidInput, NotFound
from virtha.model.event import Event
from virtha.model.ids import HostId, Revision, VmId
from virtha.store.events import EventFilter, event_conditions, events_after, events_before
from virtha.store.installations import prune_events, the_installation
from virtha.store.reach import Reach, reach_now, seeing
from virtha.store.search import Log, Wanted, find_events
from virtha.store.search_fields import EVENTS
from virtha.store.store import Store, Transaction

FOLLOW_BATCH = 200
_UUID_LENGTH = 36


class Events:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def current_revision(self) -> Revision:
        async with self._store.read() as tx:
            return await tx.revision_now()

    async def list(self, query: EventQuery) -> Page[Event]:
        limit = check_limit(query.limit)
        _check_after(query.after)
        async with self._store.read() as tx:
            wanted = await _filter(tx, query)
            if query.search is not None:
                return await self._search(tx, query.search, query, wanted)
            if query.order == "asc":
                found = await events_after(tx, wanted, query.after or 0, limit + 1)
            else:
                found = await events_before(tx, wanted, query.after, limit + 1)
            return Page(
                items=tuple(found[:limit]),
                revision=await tx.revision_now(),
                next=str(found[limit - 1].revision) if len(found) > limit else None,
            )

    async def _search(
        self, tx: Transaction, text: str, query: EventQuery, wanted: EventFilter
    ) -> Page[Event]:
        searched = read_search(text, EVENTS, after=query.after)
        descending = (
            searched.sort.descending if searched.sort is not None else query.order == "desc"
        )
        row = await the_installation(tx)
        log = Log(row.events_pruned_to, row.revision, descending)
        if query.after is not None:
            log = log.behind(query.after)
        found = await find_events(
            tx,
            Wanted(
                searched,
                self._store.clock.wall_ms(),
                query.case_sensitive,
                query.limit,
                lambda rows: event_conditions(wanted, rows["event"]),
            ),
            log,
        )
        return Page(
            items=tuple(found.events),
            revision=row.revision,
            next=str(found.next) if found.next is not None else None,
        )

    def follow(self, query: EventQuery) -> AsyncIterator[Event]:
        """All events after ``query.after`` (None: from now on), oldest first, for ever.

        A slow reader is slow by itself: nothing is queued for it. Raises Gone when what it would have
        to read next was pruned. What is seen is what may be seen now, not where it is read from later.
        """
        return self._follow(query, reach_now())

    async def _follow(self, query: EventQuery, reach: Reach | None) -> AsyncIterator[Event]:
        _check_after(query.after)
        with seeing(reach):
            wanted, after = await self._begin(query)
        while True:
            with seeing(reach):
                batch, now = await self._batch(wanted, after)
            for event in batch:
                after = event.revision
                yield event
            if len(batch) < FOLLOW_BATCH:
                # Of the snapshot that was read: a commit since then ends the wait at once.
                after = max(after, now)
                await self._store.changes.beyond(Revision(after))

    async def _begin(self, query: EventQuery) -> tuple[EventFilter, int]:
        async with self._store.read() as tx:
            wanted = await _filter(tx, query)
            return wanted, query.after if query.after is not None else await tx.revision_now()

    async def _batch(self, wanted: EventFilter, after: int) -> tuple[Sequence[Event], Revision]:
        async with self._store.read() as tx:
            await _check_kept(tx, after)
            return await events_after(tx, wanted, after, FOLLOW_BATCH), await tx.revision_now()

    async def prune(self) -> int:
        """Forget what is older than the setting says. The server calls it at intervals."""
        async with self._store.write() as tx:
            keep_ms = (await setting_values(tx)).get(EVENT_RETENTION)
            return await prune_events(tx, older_than_ms=tx.clock.wall_ms() - keep_ms)


def _check_after(after: int | None) -> None:
    if after is not None and not 0 <= after < 1 << 62:
        raise InvalidInput(f"{after} is no revision", field="after", fix="use a revision")


async def _check_kept(tx: Transaction, after: int) -> None:
    row = await the_installation(tx)
    if after < row.events_pruned_to:
        raise Gone(
            f"events up to revision {row.events_pruned_to} are no longer kept",
            field="after",
            fix="load the list again, and follow from its revision",
        )
    if after > row.revision:
        # A client that has seen more than there is: the database was restored.
        raise Gone(
            f"revision {after} is not reached yet; the installation is at {row.revision}",
            field="after",
            fix="load the list again, and follow from its revision",
        )


async def _filter(tx: Transaction, query: EventQuery) -> EventFilter:
    return EventFilter(
        vm_id=await past_vm_id(tx, query.vm) if query.vm is not None else None,
        host_id=await past_host_id(tx, query.host) if query.host is not None else None,
        code=query.code,
        severity=query.severity,
    )


async def past_vm_id(tx: Transaction, ref: str) -> VmId:
    """The history of a deleted VM can still be asked for, by its id."""
    try:
        return (await the_vm(tx, ref, field="vm")).vm.id
    except NotFound:
        if len(ref) == _UUID_LENGTH:
            return VmId(ref)
        raise


async def past_host_id(tx: Transaction, ref: str) -> HostId:
    try:
        return (await the_host(tx, ref, field="host")).host.id
    except NotFound:
        if len(ref) == _UUID_LENGTH:
            return HostId(ref)
        raise
