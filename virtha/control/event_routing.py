"""From events to messages: the pure router (``alerts/router.py``) between the database's tables (ADR 21).

The cursor moves in the transaction that writes what the router decided, so a crash neither loses nor doubles anything. The
router in memory is a copy of the groups in the database: a decision that could not be written goes, and it with it.
"""

from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from uuid import uuid4
from zoneinfo import ZoneInfo

import structlog
from msgspec.structs import replace

from virtha.alerts.decision import Decision, Tell
from virtha.alerts.group_message import LISTED_MAX
from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.plain import STUCK_MS, given_up, plainly
from virtha.alerts.router import Router
from virtha.control.known_settings import NOTIFICATION_EXPIRY, setting_values
from virtha.model.event import Event
from virtha.model.ids import DeliveryId, GroupId, ReceiverId, Revision
from virtha.model.notification import AlertmanagerSettings, Delivery
from virtha.model.routing import Fate, FateState, GroupNote
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.deliveries import add_deliveries, cursor_of, last_number, move_cursor
from virtha.store.events import EventFilter, events_after
from virtha.store.notifications import find_receiver, live_subscriptions
from virtha.store.routing import (
    all_groups,
    all_inhibitions,
    counted_in,
    save_fates,
    save_groups,
    settle_counted,
    silences_after,
    untold_of,
)
from virtha.store.store import Store, Transaction, WriteTransaction

log = structlog.get_logger("virtha.control.event_routing")
ROUTE_BATCH = 200
CURSOR_STEP = 1_000
"""Revisions without a match after which the cursor is written all the same: what a crash has to look at
anew."""


class Routed(Value, frozen=True, kw_only=True):
    """``to``: who has something new. ``more``: there are further events already. ``wake_at``: when something waits to be told."""

    up_to: Revision
    to: frozenset[ReceiverId] = frozenset()
    more: bool = False
    wake_at: int | None = None


class EventRouting:
    """For one task: whoever calls ``route`` while it runs would see half of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._router: Router | None = None
        self._cursor = Revision(0)
        self._wake_at: int | None = None
        self._looked_at = 0
        self._unreadable: tuple[GroupId, ...] = ()
        self._singly_until = Revision(0)
        """Events up to this one are routed one by one: with one of them the router failed."""

    async def route(self) -> Routed:
        """One batch of events, and what is due."""
        async with self._store.read() as tx:
            found = await self._look(tx)
        if not found.needed and found.up_to - found.stored < CURSOR_STEP:
            self._cursor = found.up_to
            return Routed(up_to=found.up_to, more=found.more, wake_at=self._wake_at)
        # Without a router until the commit: what it holds by then is true only if that succeeds.
        router: Router | None
        router, self._router = self._router, None
        assert router is not None, "made by the look"
        async with self._store.write() as wtx:
            # Asked anew: somebody may have unsubscribed meanwhile. A silence of this moment counts from the next look on. Of
            # events nothing can have come before these.
            now = wtx.clock.wall_ms()
            config = replace(found.config, routes=await live_subscriptions(wtx))
            lost = {*self._unreadable}
            try:
                decision = router.step(now, config, found.events)
            except Exception:  # a fault of the router's must not keep anybody from being told
                if len(found.events) > 1:
                    log.exception("routing failed; events are routed one by one")
                    self._singly_until = found.events[-1].revision
                    return Routed(up_to=found.stored, more=True)
                log.exception("routing failed; events are told one by one")
                decision, router = await _plainly(wtx, now, config, found.events), None
                lost |= await _stuck(wtx, now)
            to = await _write(wtx, decision, found.events)
            if lost:
                to |= await _give_up(wtx, now, config, lost)
            await move_cursor(wtx, found.up_to)
        self._router, self._cursor, self._wake_at = router, found.up_to, decision.wake_at
        self._unreadable = ()
        return Routed(up_to=found.up_to, to=to, more=found.more, wake_at=decision.wake_at)

    async def _look(self, tx: Transaction) -> "_Found":
        now = self._store.clock.wall_ms()
        config = await routing_config(tx, now)
        if self._router is None:
            known = await all_groups(tx)
            self._router, self._unreadable = Router(known.groups, zone_offset_ms), known.unreadable
            self._cursor = Revision(0)
        router = self._router
        stored = await cursor_of(tx) or Revision(0)
        revision = await tx.revision_now()
        due = self._wake_at is not None and self._wake_at <= now
        # A clock that was set back: what waits by it may be told too late else.
        back, self._looked_at = now < self._looked_at and router.size > 0, now
        needed = due or back or router.unsettled(config) or bool(self._unreadable)
        if not config.routes:
            return _Found(config=config, stored=stored, up_to=revision, needed=needed)
        after = max(self._cursor, stored, min(one.since for one in config.routes))
        batch = 1 if after < self._singly_until else ROUTE_BATCH
        events = tuple(await events_after(tx, EventFilter(), after, batch))
        more = len(events) == batch
        return _Found(
            config=config,
            stored=stored,
            up_to=events[-1].revision if more else max(revision, after),
            more=more,
            events=events,
            needed=needed or _concerned(router, config, events),
        )

    def forget(self) -> None:
        """As a server that begins anew: nothing is known but what was written."""
        self._router = None

    async def beyond(self, revision: Revision) -> None:
        """Waits until there may be something to route."""
        await self._store.changes.beyond(revision)


class _Found(Value, frozen=True, kw_only=True):
    """What one look at the events found; ``stored``: the cursor in the database; ``needed``: something is to be decided."""

    config: RoutingConfig
    stored: Revision
    up_to: Revision
    more: bool = False
    events: tuple[Event, ...] = ()
    needed: bool = False


def _concerned(router: Router, config: RoutingConfig, events: tuple[Event, ...]) -> bool:
    try:
        return any(router.concerned(config, one) for one in events)
    except Exception:  # then the step fails too, and tells what it may
        log.exception("it is not known whether events concern a route")
        return True


async def routing_config(tx: Transaction, now: int) -> RoutingConfig:
    return RoutingConfig(
        routes=await live_subscriptions(tx),
        silences=await silences_after(tx, now),
        inhibitions=await all_inhibitions(tx),
    )


async def _write(
    tx: WriteTransaction, decision: Decision, events: tuple[Event, ...]
) -> frozenset[ReceiverId]:
    sent = await _make(tx, decision.tells)
    fates = [*decision.fates]
    for delivery, part in sent:
        fates += [replace(fate, delivery_id=delivery.id) for fate in part.fates]
    await save_fates(tx, fates, new={event.revision for event in events})
    for delivery, part in sent:
        if part.counted_of is not None:
            told = FateState.TOLD
            await settle_counted(tx, part.counted_of, told, "notify.why.told", delivery.id)
    for group_id in decision.uncounted:
        await settle_counted(tx, group_id, FateState.SPARED, "notify.why.dropped")
    await save_groups(tx, decision.groups)
    return frozenset(tell.route.receiver_id for tell in decision.tells)


async def _plainly(
    tx: WriteTransaction, now: int, config: RoutingConfig, events: tuple[Event, ...]
) -> Decision:
    groups = (await all_groups(tx)).groups
    try:
        return plainly(now, config, events, groups)
    except Exception:  # what failed the router may fail this as well
        log.exception("it is not known what is over with an event")
        return plainly(now, config, events)


async def _stuck(tx: Transaction, now: int) -> set[GroupId]:
    """Should have been told long ago, and the router fails."""
    groups = (await all_groups(tx)).groups
    return {one.id for one in groups if one.due_at is not None and one.due_at < now - STUCK_MS}


async def _give_up(
    tx: WriteTransaction, now: int, config: RoutingConfig, lost: set[GroupId]
) -> frozenset[ReceiverId]:
    log.error("groups of messages are given up; what waits in them is told", groups=sorted(lost))
    return await _write(tx, given_up(now, config, lost, await untold_of(tx, lost)), ())


async def _make(tx: WriteTransaction, tells: tuple[Tell, ...]) -> list[tuple[Delivery, Tell]]:
    """The messages, put into the queue."""
    if not tells:
        return []
    now = tx.clock.wall_ms()
    expires = UtcMillis(now + (await setting_values(tx)).get(NOTIFICATION_EXPIRY))
    first = await last_number(tx) + 1
    parts = [part for tell in tells for part in await _parts(tx, tell, now)]
    made = [
        (
            Delivery(
                id=DeliveryId(str(uuid4())),
                number=number,
                subscription_id=part.route.id,
                receiver_id=part.route.receiver_id,
                event_revision=part.event_revision,
                about=part.note,
                address=part.route.address,
                created=now,
                next_at=now,
                expires=expires,
            ),
            part,
        )
        for number, part in enumerate(parts, first)
    ]
    await add_deliveries(tx, [one for one, _ in made])
    return made


async def _parts(tx: Transaction, tell: Tell, now: UtcMillis) -> list[Tell]:
    """A number says nothing to an Alertmanager, which has an alert per problem: it gets as many messages as it takes to name
    all, in the order in which they came. An end before its problem would leave that open."""
    note = tell.note
    if note is None or not note.counted:
        return [tell]
    row = await find_receiver(tx, tell.route.receiver_id)
    if row is None or not isinstance(row.receiver.settings, AlertmanagerSettings):
        return [tell]
    counted = await counted_in(tx, tell.counted_of) if tell.counted_of is not None else ()
    fates = {one.event_revision: one for one in tell.fates}
    for one in counted:
        told = replace(one, state=FateState.TOLD, code="notify.why.told", at=now)
        fates[one.event_revision] = told
    every = sorted({*tell.every, *(one.event_revision for one in counted)})
    return [
        _part(tell, note, tuple(every[start : start + LISTED_MAX]), fates)
        for start in range(0, len(every), LISTED_MAX)
    ]


def _part(
    tell: Tell, note: GroupNote, some: tuple[Revision, ...], fates: dict[Revision, Fate]
) -> Tell:
    head = tell.event_revision if tell.event_revision in some else some[0]
    return replace(
        tell,
        event_revision=head,
        note=replace(note, revisions=some, counted=0),
        fates=tuple(fates[one] for one in some if one in fates),
    )


def zone_offset_ms(zone: str, at: int) -> int:
    """How far a zone's clocks are ahead of UTC then; 0 where this machine no longer knows the zone, or no calendar has that
    moment: quiet hours at the wrong time are better than no messages at all."""
    try:
        offset = datetime.fromtimestamp(at / 1_000, tz=UTC).astimezone(_zone(zone)).utcoffset()
    except (OSError, ValueError, OverflowError):
        return 0
    return int(offset.total_seconds() * 1_000) if offset is not None else 0


def is_zone(name: str) -> bool:
    try:
        _zone(name)
    except (OSError, ValueError):
        return False
    return True


@lru_cache(maxsize=100)
def _zone(name: str) -> tzinfo:
    """Of the system's database, else of the package tzdata; UTC is known without them.
    Raises OSError, ValueError (no such zone, or a name that is a path)."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except KeyError as error:
        raise ValueError(name) from error
