"""From events to messages: the pure router (``alerts/router.py``) between the database's tables (ADR 21).

The cursor moves in the transaction that writes what the router decided, so a crash neither loses nor doubles anything. The
router in memory is a copy of the groups in the database: a decision that could not be written goes, and it with it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from uuid import uuid4
from zoneinfo import ZoneInfo

import structlog
from msgspec.structs import replace

from virtha.alerts.decision import Decision, Tell
from virtha.alerts.group_message import LISTED_MAX, REPEAT
from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.plain import STUCK_MS, given_up, plainly
from virtha.alerts.router import Router
from virtha.control.known_settings import NOTIFICATION_EXPIRY, setting_values
from virtha.control.routing_config import as_it_is_live, routing_config
from virtha.control.unreadable_records import tell_of
from virtha.model.event import Event
from virtha.model.ids import ClusterId, DeliveryId, GroupId, ReceiverId, Revision, SubscriptionId
from virtha.model.notification import Delivery, Subscription
from virtha.model.routing import Fate, FateState, GroupBy, GroupNote
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import Unreadable
from virtha.store.deliveries import add_deliveries, cursor_of, last_number, move_cursor
from virtha.store.events import EventFilter, read_after
from virtha.store.notifications import ReceiverKinds, receiver_kinds
from virtha.store.routing import (
    all_groups,
    counted_in,
    save_fates,
    save_groups,
    settle_counted,
    undelivered,
    untold_of,
)
from virtha.store.store import Store, Transaction, WriteTransaction

log = structlog.get_logger("virtha.control.event_routing")
ROUTE_BATCH = 200
"""Events of one step, at most."""
PAIRS_MAX = 2_000
"""Events times routes of one step: the server does nothing else meanwhile, beats are judged in between."""
CURSOR_STEP = 1_000
"""Revisions without a match after which the cursor is written all the same: what a crash has to look at
anew."""


_Routes = tuple[tuple[Subscription, ...], Mapping[SubscriptionId, frozenset[ClusterId]]]
"""Who is told, and of which clusters."""
_IN_VAIN = ("notify.refused", "notify.expired")


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
        self._routes: _Routes | None = None
        """As the cursor was last moved by them; None: it was not."""
        self._unreadable: tuple[GroupId, ...] = ()
        self._bad: frozenset[Unreadable] = frozenset()
        """Records to route by that can't be read, of which an event told: once while this server runs, or until they can be read
        again."""
        self._singly_until = Revision(0)
        """Events up to this one are routed one by one: with one of them the router failed."""

    async def route(self) -> Routed:
        """One batch of events, and what is due."""
        async with self._store.read() as tx:
            found = await self._look(tx)
        if not found.needed and found.up_to - found.stored < CURSOR_STEP:
            self._cursor, self._bad, self._routes = found.up_to, found.bad, _routes(found.config)
            return Routed(up_to=found.up_to, more=found.more, wake_at=self._wake_at)
        # Without a router until the commit: what it holds by then is true only if that succeeds.
        router: Router | None
        router, self._router = self._router, None
        assert router is not None, "made by the look"
        async with self._store.write() as wtx:
            # Asked anew: somebody may have unsubscribed meanwhile. A silence of this moment counts from the next look on. Of
            # events nothing can have come before these.
            now = wtx.clock.wall_ms()
            config = await as_it_is_live(wtx, found.config)
            lost = {*self._unreadable}
            try:
                decision = router.step(now, config, found.events, found.undelivered)
            except Exception:  # a fault of the router's must not keep anybody from being told
                if len(found.events) > 1:
                    log.exception("routing failed; events are routed one by one")
                    self._singly_until = found.events[-1].revision
                    return Routed(up_to=found.stored, more=True)
                log.exception("routing failed; events are told one by one")
                decision, router = await _plainly(wtx, now, config, found.events), None
                lost |= await _stuck(wtx, now, config)
            to = await _write(wtx, decision, found.events)
            if lost:
                to |= await _give_up(wtx, now, config, lost)
            # Of an event once: the cursor moves beyond it with that.
            await tell_of(wtx, (found.bad - self._bad) | found.damaged)
            await move_cursor(wtx, found.up_to)
        self._bad, self._routes = found.bad, _routes(found.config)
        self._router, self._cursor, self._wake_at = router, found.up_to, decision.wake_at
        self._unreadable = ()
        return Routed(up_to=found.up_to, to=to, more=found.more, wake_at=decision.wake_at)

    async def _look(self, tx: Transaction) -> "_Found":
        now = self._store.clock.wall_ms()
        read = await routing_config(tx, now)
        config, bad = read.config, read.unreadable
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
        # Once they change the cursor is written: a server that begins anew would hold what was looked at against the new ones.
        changed = self._routes not in (None, _routes(config)) and stored < revision
        needed = needed or changed or not bad <= self._bad
        every = (*config.routes, *config.off)
        if not every:
            return _Found(config=config, bad=bad, stored=stored, up_to=revision, needed=needed)
        after = max(self._cursor, stored, min(one.since for one in every))
        batch = 1 if after < self._singly_until else batch_for(len(every))
        events, damaged = await read_after(tx, EventFilter(), after, batch)
        more = len(events) == batch
        # Only what was told inhibits, and an event says when a message reached nobody.
        in_vain = config.inhibitions and any(one.code in _IN_VAIN for one in events)
        lost = await undelivered(tx, router.told) if in_vain else frozenset()
        return _Found(
            config=config,
            bad=bad,
            stored=stored,
            up_to=events[-1].revision if more else max(revision, after),
            more=more,
            events=events,
            damaged=frozenset(damaged),
            undelivered=lost,
            needed=needed or bool(damaged or lost) or _concerned(router, config, events),
        )

    def forget(self) -> None:
        """As a server that begins anew: nothing is known but what was written."""
        self._router = None

    async def beyond(self, revision: Revision) -> None:
        """Waits until there may be something to route."""
        await self._store.changes.beyond(revision)


class _Found(Value, frozen=True, kw_only=True):
    """What one look at the events found; ``stored``: the cursor in the database; ``needed``: something is to be decided;
    ``bad``: records to route by that can't be read; ``damaged``: of ``events`` those of which only the columns can be."""

    config: RoutingConfig
    bad: frozenset[Unreadable]
    damaged: frozenset[Unreadable] = frozenset()
    undelivered: frozenset[tuple[SubscriptionId, Revision]] = frozenset()
    stored: Revision
    up_to: Revision
    more: bool = False
    events: tuple[Event, ...] = ()
    needed: bool = False


def _routes(config: RoutingConfig) -> "_Routes":
    return config.routes, config.seen


def batch_for(routes: int) -> int:
    """Events of one step."""
    return max(1, min(ROUTE_BATCH, PAIRS_MAX // routes))


def _concerned(router: Router, config: RoutingConfig, events: tuple[Event, ...]) -> bool:
    try:
        return any(router.concerned(config, one) for one in events)
    except Exception:  # then the step fails too, and tells what it may
        log.exception("it is not known whether events concern a route")
        return True


async def _write(
    tx: WriteTransaction, decision: Decision, events: tuple[Event, ...]
) -> frozenset[ReceiverId]:
    new = {event.revision for event in events}
    # Before the messages are made: those name what was counted in this very step, too.
    await save_fates(tx, decision.fates, new=new)
    sent = await _make(tx, decision.tells)
    written = {_key(fate) for fate in decision.fates}
    told = [replace(fate, delivery_id=one.id) for one, part in sent for fate in part.fates]
    await save_fates(tx, [one for one in told if _key(one) not in written], new=new)
    await save_fates(tx, [one for one in told if _key(one) in written], new=())
    for delivery, part in sent:
        if part.counted_of is not None:
            state = FateState.TOLD
            await settle_counted(tx, part.counted_of, state, "notify.why.told", delivery.id)
    for group_id in decision.uncounted:
        await settle_counted(tx, group_id, FateState.SPARED, "notify.why.dropped")
    await save_groups(tx, decision.groups)
    return frozenset(tell.route.receiver_id for tell in decision.tells)


def _key(fate: Fate) -> tuple[Revision, SubscriptionId]:
    return fate.event_revision, fate.subscription_id


async def _plainly(
    tx: WriteTransaction, now: int, config: RoutingConfig, events: tuple[Event, ...]
) -> Decision:
    groups = (await all_groups(tx)).groups
    try:
        return plainly(now, config, events, groups)
    except Exception:  # what failed the router may fail this as well
        log.exception("it is not known what is over with an event")
        return plainly(now, config, events)


async def _stuck(tx: Transaction, now: int, config: RoutingConfig) -> set[GroupId]:
    """Should have been told long ago, and the router fails. Those of a route that is off, or that nobody can read, wait for that."""
    live = {route.id for route in config.routes}
    groups = [one for one in (await all_groups(tx)).groups if one.subscription_id in live]
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
    kinds = await receiver_kinds(tx)
    parts = [part for tell in tells for part in await _parts(tx, tell, now, kinds)]
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


async def _parts(tx: Transaction, tell: Tell, now: UtcMillis, kinds: ReceiverKinds) -> list[Tell]:
    """A trap tells of one event, so where nothing is grouped each gets its own. A number says nothing to an Alertmanager, which has an alert per problem: it gets as many messages as it takes to name
    all, in the order in which they came. An end before its problem would leave that open."""
    note = tell.note
    receiver_id = tell.route.receiver_id
    singly = receiver_id in kinds.managers and tell.route.group_by is GroupBy.NONE
    if note is None or not (singly or (note.counted and receiver_id in kinds.alertmanagers)):
        return [tell]
    counted = await counted_in(tx, tell.counted_of) if tell.counted_of is not None else ()
    fates = {one.event_revision: one for one in tell.fates}
    for one in counted:
        told = replace(one, state=FateState.TOLD, code="notify.why.told", at=now)
        fates[one.event_revision] = told
    every = sorted({*tell.every, *(one.event_revision for one in counted)})
    step = 1 if singly else LISTED_MAX
    # By itself it is told as if it were alone: of an end the note says that it is a problem, if there is one beside it.
    about = None if singly and note.reason != REPEAT else note
    return [
        _part(tell, about, tuple(every[start : start + step]), fates)
        for start in range(0, len(every), step)
    ]


def _part(
    tell: Tell, note: GroupNote | None, some: tuple[Revision, ...], fates: dict[Revision, Fate]
) -> Tell:
    head = tell.event_revision if tell.event_revision in some else some[0]
    return replace(
        tell,
        event_revision=head,
        note=note and replace(note, revisions=some, counted=0),
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
