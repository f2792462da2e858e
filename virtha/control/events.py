"""The audit log: lists, and a stream that wakes at each commit."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from virtha.control.event_fates import fates_of_event
from virtha.control.known_settings import EVENT_RETENTION, setting_values
from virtha.control.names import check_limit, the_host, the_vm
from virtha.control.requests import EventQuery
from virtha.control.routing_views import EventFates
from virtha.control.searching import read_search
from virtha.control.views import Page
from virtha.model.errors import Gone, InvalidInput, NotFound
from virtha.model.event import Event
from virtha.model.ids import HostId, Revision, VmId
from virtha.store.events import EventFilter, event_conditions, events_after, events_before
from virtha.store.installations import newest_before, prune_events, the_installation
from virtha.store.routing import awaited_events
from virtha.store.search import Log, Wanted, find_events
from virtha.store.search_fields import EVENTS
from virtha.store.store import Store, Transaction

FOLLOW_BATCH = 200
TIMELINE_LENGTH = 8
"""Of its UUID: enough to tell a restored database from what it was before."""
_UUID_LENGTH = 36


@dataclass
class StreamPlace:
    """Up to which revision the reader of a stream has all that it asked for, and in which life of the database: after a restore
    the same numbers mean other events."""

    revision: int
    timeline: str


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

    async def follow(self, query: EventQuery, place: StreamPlace) -> AsyncIterator[Event]:
        """All events of ``query`` after ``place``, which moves with them; oldest first, for ever.

        A slow reader is slow by itself: nothing is queued for it. Raises Gone when what it would have
        to read next was pruned.
        """
        async with self._store.read() as tx:
            wanted = await _filter(tx, query)
        while True:
            async with self._store.read() as tx:
                await _check_kept(tx, place)
                now = await tx.revision_now()
                batch = await events_after(tx, wanted, place.revision, FOLLOW_BATCH)
            for event in batch:
                place.revision = event.revision
                yield event
            if len(batch) < FOLLOW_BATCH:
                # Of the snapshot that was read: a commit since then ends the wait at once.
                place.revision = max(place.revision, now)
                await self._store.changes.beyond(Revision(place.revision))

    async def place(self, after: int | None, timeline: str | None = None) -> StreamPlace:
        """Where a stream goes on: behind revision ``after`` (None: from now on), of the database's ``timeline`` where its reader
        knows that. Raises InvalidInput (`problem.revision.future`), Gone."""
        _check_after(after)
        async with self._store.read() as tx:
            row = await the_installation(tx)
            present = row.timeline[:TIMELINE_LENGTH]
            place = StreamPlace(row.revision if after is None else after, present)
            if timeline is not None and timeline != present:
                raise Gone(
                    "the database was restored since then, and counts anew",
                    field="after",
                    fix="load what you show anew, and follow from its revision",
                )
            if place.revision > row.revision:
                raise InvalidInput(
                    f"revision {after} is not reached yet, the installation is at {row.revision}",
                    code="problem.revision.future",
                    field="after",
                    allowed=(f"{row.events_pruned_to} to {row.revision}",),
                    fix="load what you show anew, and follow from its revision",
                )
            await _check_kept(tx, place)
            return place

    async def fates(self, revision: int) -> EventFates:
        """What became of it at each route."""
        return await fates_of_event(self._store, revision)

    async def prune(self) -> int:
        """Forget what is older than the setting says, but for what is yet to be told: silenced for weeks, or repeated. The
        server calls it at intervals."""
        async with self._store.write() as tx:
            keep_ms = (await setting_values(tx)).get(EVENT_RETENTION)
            up_to = await newest_before(tx, tx.clock.wall_ms() - keep_ms)
            if up_to is None:
                return 0
            return await prune_events(tx, up_to, spared=await awaited_events(tx, up_to))


def _check_after(after: int | None) -> None:
    if after is not None and not 0 <= after < 1 << 62:
        raise InvalidInput(f"{after} is no revision", field="after", fix="use a revision")


async def _check_kept(tx: Transaction, place: StreamPlace) -> None:
    kept_from = (await the_installation(tx)).events_pruned_to
    if place.revision < kept_from:
        raise Gone(
            f"events up to revision {kept_from} are no longer kept, so nobody can go on after {place.revision}",
            field="after",
            fix=f"load what you show anew, and follow from its revision; the oldest is {kept_from}",
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
