"""The queue: messages are handed out to be sent, and what became of them is kept. Events become messages in
``control/event_routing.py``.

A message is over in one transaction after the receiver took it: a crash between the two repeats that one, under
the same id.
"""

from collections import Counter

import msgspec
import structlog

from virtha.alerts.match import is_own
from virtha.alerts.schedule import LATER_MAX_MS, later_ms
from virtha.control.due import Due, due_of
from virtha.control.event_routing import EventRouting
from virtha.control.history import record
from virtha.control.known_settings import NOTIFICATION_RETENTION, setting_values
from virtha.control.notifier_bell import NotifierBell
from virtha.control.receivers import Receivers
from virtha.control.unreadable_records import tell_of
from virtha.model.codes import render
from virtha.model.errors import Failed
from virtha.model.event import Event
from virtha.model.ids import DeliveryId, ReceiverId, Revision
from virtha.model.notification import Delivery, DeliveryState, ReceiverStatus
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.ports.receivers import Outcome, Receipt
from virtha.store.body import Unreadable
from virtha.store.deliveries import (
    end_delivery,
    expire_all,
    expired_deliveries,
    is_pending,
    next_expiry,
    next_wait,
    oldest_pending,
    prune_deliveries,
    put_off,
    receivers_with_ready,
    release_waiting,
)
from virtha.store.delivery_counts import delivery_counts
from virtha.store.events import events_at
from virtha.store.notifications import ReceiverRow, find_receiver, save_receiver_status
from virtha.store.routing import prune_fates, prune_silences
from virtha.store.store import Store, Transaction, WriteTransaction

log = structlog.get_logger("virtha.control.deliveries")
EXPIRE_BATCH = 500
STATUS_STEP_MS = 1_000
"""How fresh ``accepted_at`` is kept: not a further write for each message of a burst."""


class Upcoming(Value, frozen=True, kw_only=True):
    """The message that is to go out next, and its receiver as it was when the message was made ready."""

    delivery_id: DeliveryId
    receiver_revision: Revision


class QueueFigures(Value, frozen=True, kw_only=True):
    """``counts`` by state."""

    counts: dict[str, int]
    oldest_pending: UtcMillis | None


class Deliveries:
    def __init__(self, store: Store, receivers: Receivers, bell: NotifierBell) -> None:
        self._store = store
        self._receivers = receivers
        self.bell = bell
        self.routing = EventRouting(store)
        self._present: dict[ReceiverId, UtcMillis] = {}
        """Who is known to be there, and when its status was last looked at."""
        self._bad: frozenset[Unreadable] = frozenset()
        """What messages were made without, of which an event told while this server runs."""

    # from messages to receivers

    async def ready(self) -> frozenset[ReceiverId]:
        """Who has messages that may go now; those whose wait is over are among them."""
        async with self._store.read() as tx:
            wait = await next_wait(tx)
        now = self._store.clock.wall_ms()
        if wait is not None and not now < wait <= now + LATER_MAX_MS:
            async with self._store.write() as wtx:
                await release_waiting(wtx, now, LATER_MAX_MS)
        async with self._store.read() as tx:
            return frozenset(await receivers_with_ready(tx))

    async def next_moment(self) -> UtcMillis | None:
        """When the first wait ends or the first message expires."""
        async with self._store.read() as tx:
            moments = (await next_wait(tx), await next_expiry(tx))
        return min((one for one in moments if one is not None), default=None)

    async def due(self, receiver_id: ReceiverId, limit: int) -> Due | None:
        """The next messages for it, in order; None: it is gone or switched off. Raises Failed where its record can't be read."""
        async with self._store.read() as tx:
            row = await find_receiver(tx, receiver_id)
            if row is None or not row.receiver.enabled:
                return None
            found = await due_of(tx, row, limit, self._receivers.opened)
        news = found.unreadable - self._bad if found is not None else frozenset()
        if news:
            async with self._store.write() as wtx:
                await tell_of(wtx, news)
            self._bad |= news
        return found

    # What became of them. Each answers whether ``upcoming`` may go out: it was not dropped meanwhile, and its
    # receiver is as it was. Asked in the same transaction, for this is just before it is sent.

    async def accepted(
        self, one: Delivery, receipt: Receipt, upcoming: Upcoming | None = None
    ) -> bool:
        now, looked = self._store.clock.wall_ms(), self._present.get(one.receiver_id)
        look = looked is None or abs(now - looked) >= STATUS_STEP_MS
        async with self._store.write() as tx:
            await end_delivery(
                tx,
                one,
                DeliveryState.SENT,
                attempts=one.attempts + 1,
                code=receipt.code,
                detail=receipt.detail,
            )
            if look:
                await took_a_message(tx, one.receiver_id)
            due = await _is_due(tx, upcoming)
        if look:
            self._present[one.receiver_id] = now
        return due

    async def refused(
        self, one: Delivery, event: Event, receipt: Receipt, upcoming: Upcoming | None = None
    ) -> bool:
        """For good. A receiver that refuses one message is there."""
        async with self._store.write() as tx:
            await refuse(tx, one, event, receipt, attempts=one.attempts + 1)
            return await _is_due(tx, upcoming)

    async def later(
        self, one: Delivery, receipt: Receipt, upcoming: Upcoming | None = None
    ) -> bool:
        wait_ms = later_ms(one.attempts + 1)
        async with self._store.write() as tx:
            await put_off(
                tx,
                one,
                wait_until=tx.clock.wall_ms() + wait_ms,
                code=receipt.code,
                detail=receipt.detail,
            )
            return await _is_due(tx, upcoming)

    async def ended(
        self, one: Delivery, state: DeliveryState, code: str, upcoming: Upcoming | None = None
    ) -> bool:
        """Without an attempt. That nobody will ever be told of something is told."""
        async with self._store.write() as tx:
            done = await end_delivery(
                tx, one, state, attempts=one.attempts, code=code, detail=render(code, {})
            )
            if done and state is DeliveryState.EXPIRED:
                await _tell_expired(tx, Counter({one.receiver_id: 1}))
            return await _is_due(tx, upcoming)

    async def away(self, receiver_id: ReceiverId, receipt: Receipt, event_code: str | None) -> None:
        """Its receiver can't be used; no message is the worse for it. Told once, and not for a message
        about messages (``is_own``)."""
        self._present.pop(receiver_id, None)
        async with self._store.read() as tx:
            row = await _receiver(tx, receiver_id)
        if row is None:
            return
        before = row.status
        tell = not before.away_told and (event_code is None or not is_own(event_code))
        known = before.away_since is not None and before.code == receipt.code
        if known and not tell and before.detail == receipt.detail:
            return
        async with self._store.write() as wtx:
            await save_receiver_status(
                wtx,
                receiver_id,
                msgspec.structs.replace(
                    before,
                    away_since=before.away_since or wtx.clock.wall_ms(),
                    away_told=before.away_told or tell,
                    code=receipt.code,
                    detail=receipt.detail,
                ),
            )
            if tell:
                await record(
                    wtx,
                    "notify.receiver_away",
                    receiver=row.receiver.name,
                    receiver_id=receiver_id,
                    reason=render(receipt.code, {}),
                    reason_code=receipt.code,
                    detail=receipt.detail,
                )

    # their end

    async def expire(self) -> int:
        """Give up what nobody wants any more, in bounded steps; one event per receiver, with the last."""
        now = self._store.clock.wall_ms()
        total, untold = 0, Counter[ReceiverId]()
        while count := await self._expire_batch(now, untold):
            total += count
        return total

    async def _expire_batch(self, now: int, untold: Counter[ReceiverId]) -> int:
        async with self._store.read() as tx:
            if not await expired_deliveries(tx, now, 1):
                return 0
        async with self._store.write() as wtx:
            expired = await expired_deliveries(wtx, now, EXPIRE_BATCH)
            events = await events_at(wtx, [one.event_revision for one in expired])
            code = "notify.queue.expired"
            await expire_all(wtx, expired, code=code, detail=render(code, {}))
            untold.update(
                one.receiver_id
                for one in expired
                if (event := events.get(one.event_revision)) is None or not is_own(event.code)
            )
            if not await expired_deliveries(wtx, now, 1):
                await _tell_expired(wtx, untold)
        return len(expired)

    async def prune(self) -> int:
        """Forget what became of messages long ago. The server calls it at intervals."""
        async with self._store.write() as tx:
            keep_ms = (await setting_values(tx)).get(NOTIFICATION_RETENTION)
            older_than_ms = tx.clock.wall_ms() - keep_ms
            await prune_fates(tx, older_than_ms)
            await prune_silences(tx, older_than_ms)
            return await prune_deliveries(tx, older_than_ms)

    async def figures(self) -> QueueFigures:
        counts: dict[str, int] = {state.value: 0 for state in DeliveryState}
        async with self._store.read() as tx:
            for one in await delivery_counts(tx):
                counts[one.state.value] += one.count
            oldest = await oldest_pending(tx)
        return QueueFigures(counts=counts, oldest_pending=min(oldest.values(), default=None))


async def _receiver(tx: Transaction, receiver_id: ReceiverId) -> ReceiverRow | None:
    """None: it is gone, or its record can't be read, of which routing tells. What became of a message is written all the same."""
    try:
        return await find_receiver(tx, receiver_id)
    except Failed:
        return None


async def _is_due(tx: Transaction, upcoming: Upcoming | None) -> bool:
    return upcoming is not None and await is_pending(
        tx, upcoming.delivery_id, upcoming.receiver_revision
    )


async def took_a_message(tx: WriteTransaction, receiver_id: ReceiverId) -> None:
    """It is there; if its absence was told, its return is."""
    row = await _receiver(tx, receiver_id)
    if row is None:
        return
    now, before = tx.clock.wall_ms(), row.status
    if before.away_since is None and abs(now - (before.accepted_at or 0)) < STATUS_STEP_MS:
        return
    await save_receiver_status(tx, receiver_id, ReceiverStatus(accepted_at=now))
    if row.status.away_told:
        await record(
            tx,
            "notify.receiver_back",
            receiver=row.receiver.name,
            receiver_id=receiver_id,
            away_ms=max(0, now - (row.status.away_since or now)),
        )


async def _tell_expired(tx: WriteTransaction, counts: Counter[ReceiverId]) -> None:
    for receiver_id, count in sorted(counts.items()):
        row = await _receiver(tx, receiver_id)
        name = row.receiver.name if row is not None else receiver_id
        await record(tx, "notify.expired", receiver=name, receiver_id=receiver_id, count=count)


async def refuse(
    tx: WriteTransaction, one: Delivery, event: Event, receipt: Receipt, *, attempts: int
) -> None:
    """Ends it; an event, but for a message about messages."""
    assert receipt.outcome is Outcome.NEVER, receipt
    ended = await end_delivery(
        tx,
        one,
        DeliveryState.REFUSED,
        attempts=attempts,
        code=receipt.code,
        detail=receipt.detail,
    )
    row = await _receiver(tx, one.receiver_id)
    if not ended or row is None or is_own(event.code):
        return
    await record(
        tx,
        "notify.refused",
        receiver=row.receiver.name,
        receiver_id=one.receiver_id,
        delivery=one.id,
        event_code=event.code,
        reason=render(receipt.code, {}),
        reason_code=receipt.code,
        detail=receipt.detail,
    )
