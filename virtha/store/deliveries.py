"""The queue of messages, and up to where the events have been looked at for it.

Nothing here takes a revision: how a message fares wakes nobody who follows the installation.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, exists, func, insert, select, update

from virtha.model.ids import DeliveryId, ReceiverId, Revision, SubscriptionId
from virtha.model.notification import Delivery, DeliveryState
from virtha.model.routing import GroupNote
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import decode, encode, in_parts, put
from virtha.store.delivery_counts import forget_empty, moved
from virtha.store.schema import delivery, follower, receiver
from virtha.store.store import Transaction, WriteTransaction

NOTIFIER = "notifier"
READY = 0
"""``wait_until`` of a delivery that may go now."""
PENDING = DeliveryState.PENDING.value


# Made once: they run with every message, and making them costs more than running them.
_END = (
    update(delivery)
    .where(delivery.c.id == bindparam("of_id"))
    .values(
        {
            name: bindparam(f"new_{name}")
            for name in ("state", "attempts", "done_at", "code", "detail", "address")
        }
    )
)
_END_PENDING = _END.where(delivery.c.state == PENDING)
_IS_PENDING = (
    select(receiver.c.revision)
    .join(delivery, delivery.c.receiver_id == receiver.c.id)
    .where(
        delivery.c.id == bindparam("of_id"),
        delivery.c.state == PENDING,
        receiver.c.enabled.is_(True),
    )
)


class DeliveryFilter(Value, frozen=True, kw_only=True):
    receiver_id: ReceiverId | None = None
    subscription_id: SubscriptionId | None = None
    state: DeliveryState | None = None
    event_revision: Revision | None = None


def _delivery(row: Any) -> Delivery:
    return Delivery(
        id=DeliveryId(row.id),
        number=row.number,
        subscription_id=SubscriptionId(row.subscription_id) if row.subscription_id else None,
        receiver_id=ReceiverId(row.receiver_id),
        event_revision=Revision(row.event_revision),
        address=row.address,
        test=row.test,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        created=UtcMillis(row.created),
        next_at=UtcMillis(row.wait_until or row.created),
        expires=UtcMillis(row.expires),
        done_at=UtcMillis(row.done_at) if row.done_at is not None else None,
        code=row.code,
        detail=row.detail,
        about=decode(GroupNote, row.about) if row.about is not None else None,
    )


async def cursor_of(tx: Transaction) -> Revision | None:
    found = await tx.connection.scalar(
        select(follower.c.revision).where(follower.c.name == NOTIFIER)
    )
    return Revision(found) if found is not None else None


async def move_cursor(tx: WriteTransaction, revision: Revision) -> None:
    await put(tx, follower, {"name": NOTIFIER}, {"revision": revision})


async def last_number(tx: Transaction) -> int:
    return int(await tx.connection.scalar(select(func.max(delivery.c.number))) or 0)


async def add_deliveries(
    tx: WriteTransaction, values: Sequence[Delivery], *, wait_until: int = READY
) -> None:
    if not values:
        return
    await tx.connection.execute(
        insert(delivery),
        [
            {
                "id": one.id,
                "number": one.number,
                "subscription_id": one.subscription_id,
                "receiver_id": one.receiver_id,
                "event_revision": one.event_revision,
                "address": one.address,
                "test": one.test,
                "state": one.state.value,
                "wait_until": wait_until,
                "attempts": one.attempts,
                "created": one.created,
                "expires": one.expires,
                "about": encode(one.about) if one.about is not None else None,
            }
            for one in values
        ],
    )
    for (receiver_id, state), count in Counter((v.receiver_id, v.state) for v in values).items():
        await moved(tx, receiver_id, after=state.value, count=count)


async def find_delivery(tx: Transaction, delivery_id: str) -> Delivery | None:
    row = (
        await tx.connection.execute(select(delivery).where(delivery.c.id == delivery_id))
    ).one_or_none()
    return _delivery(row) if row is not None else None


async def delivery_states(
    tx: Transaction, ids: Collection[DeliveryId]
) -> dict[DeliveryId, DeliveryState]:
    """Of those that are still kept."""
    found: dict[DeliveryId, DeliveryState] = {}
    for some in in_parts(ids):
        rows = await tx.connection.execute(
            select(delivery.c.id, delivery.c.state).where(delivery.c.id.in_(some))
        )
        found |= {DeliveryId(of): DeliveryState(state) for of, state in rows}
    return found


async def next_deliveries(
    tx: Transaction, receiver_id: ReceiverId, limit: int
) -> tuple[Delivery, ...]:
    """Those that may go now, in their order."""
    rows = await tx.connection.execute(
        select(delivery)
        .where(
            delivery.c.receiver_id == receiver_id,
            delivery.c.state == PENDING,
            delivery.c.wait_until == READY,
        )
        .order_by(delivery.c.number)
        .limit(limit)
    )
    return tuple(_delivery(row) for row in rows)


async def is_pending(tx: Transaction, delivery_id: DeliveryId, receiver_revision: int) -> bool:
    """Whether it still is to be sent, and its receiver is as it was at that revision."""
    found = await tx.connection.scalar(_IS_PENDING, {"of_id": delivery_id})
    return found == receiver_revision


async def receivers_with_ready(tx: Transaction) -> tuple[ReceiverId, ...]:
    """Looks at one message of each, however many there are."""
    waiting = exists().where(
        delivery.c.receiver_id == receiver.c.id,
        delivery.c.state == PENDING,
        delivery.c.wait_until == READY,
    )
    rows = await tx.connection.scalars(select(receiver.c.id).where(waiting))
    return tuple(ReceiverId(found) for found in rows)


async def release_waiting(tx: WriteTransaction, now: int, wait_max_ms: int) -> int:
    """Those whose wait is over may go. A wait longer than any that is given was written before the clock was
    set back: it is over too."""
    # Two ranges of the index, one statement each: with OR the whole queue would be read.
    over = delivery.c.wait_until.between(READY + 1, now)
    wrong = delivery.c.wait_until > now + wait_max_ms
    released = 0
    for which in (over, wrong):
        done = await tx.connection.execute(
            update(delivery).where(delivery.c.state == PENDING, which).values(wait_until=READY)
        )
        released += int(done.rowcount)
    return released


async def next_wait(tx: Transaction) -> UtcMillis | None:
    """When the first of those that wait may go."""
    found = await tx.connection.scalar(
        select(func.min(delivery.c.wait_until)).where(
            delivery.c.state == PENDING, delivery.c.wait_until > READY
        )
    )
    return UtcMillis(found) if found is not None else None


async def next_expiry(tx: Transaction) -> UtcMillis | None:
    found = await tx.connection.scalar(
        select(func.min(delivery.c.expires)).where(delivery.c.state == PENDING)
    )
    return UtcMillis(found) if found is not None else None


async def put_off(
    tx: WriteTransaction, done: Delivery, *, wait_until: int, code: str, detail: str
) -> None:
    """One attempt more that showed nothing for good."""
    await tx.connection.execute(
        update(delivery)
        .where(delivery.c.id == done.id, delivery.c.state == PENDING)
        .values(attempts=done.attempts + 1, wait_until=wait_until, code=code, detail=detail)
    )


async def end_delivery(
    tx: WriteTransaction,
    done: Delivery,
    state: DeliveryState,
    *,
    attempts: int,
    code: str,
    detail: str,
) -> bool:
    """False: something else ended it meanwhile. What was sent is sent, whatever that was."""
    values = {
        "of_id": done.id,
        "new_state": state.value,
        "new_attempts": attempts,
        "new_done_at": tx.clock.wall_ms(),
        "new_code": code,
        "new_detail": detail,
        "new_address": done.address,
    }
    before: str | None = PENDING
    ended = await tx.connection.execute(_END_PENDING, values)
    if not ended.rowcount:
        before = await _state_of(tx, done.id) if state is DeliveryState.SENT else None
        if before is None:
            return False
        await tx.connection.execute(_END, values)
    await moved(tx, done.receiver_id, before=before, after=state.value)
    return True


async def _state_of(tx: Transaction, delivery_id: DeliveryId) -> str | None:
    found = await tx.connection.scalar(select(delivery.c.state).where(delivery.c.id == delivery_id))
    return None if found is None else str(found)


async def reopen_delivery(tx: WriteTransaction, done: Delivery, expires: int) -> None:
    """To be sent again, or at once. ``done`` as it is now."""
    await tx.connection.execute(
        update(delivery)
        .where(delivery.c.id == done.id)
        .values(state=PENDING, wait_until=READY, expires=expires, done_at=None)
    )
    await moved(tx, done.receiver_id, before=done.state.value, after=PENDING)


async def drop_pending(
    tx: WriteTransaction,
    *,
    code: str,
    receiver_id: ReceiverId | None = None,
    subscription_id: SubscriptionId | None = None,
) -> int:
    """Ends all that waits for a receiver or of a subscription."""
    where: list[ColumnElement[bool]] = [delivery.c.state == PENDING]
    if receiver_id is not None:
        where.append(delivery.c.receiver_id == receiver_id)
    if subscription_id is not None:
        where.append(delivery.c.subscription_id == subscription_id)
    assert len(where) > 1, "never all of them"
    dropped = DeliveryState.DROPPED.value
    rows = await tx.connection.execute(
        select(delivery.c.receiver_id, func.count()).where(*where).group_by(delivery.c.receiver_id)
    )
    for of, count in rows.all():
        await moved(tx, ReceiverId(of), before=PENDING, after=dropped, count=count)
    done = await tx.connection.execute(
        update(delivery).where(*where).values(state=dropped, done_at=tx.clock.wall_ms(), code=code)
    )
    return int(done.rowcount)


async def expired_deliveries(tx: Transaction, now: int, limit: int) -> tuple[Delivery, ...]:
    rows = await tx.connection.execute(
        select(delivery)
        .where(delivery.c.state == PENDING, delivery.c.expires <= now)
        .order_by(delivery.c.expires)
        .limit(limit)
    )
    return tuple(_delivery(row) for row in rows)


async def expire_all(
    tx: WriteTransaction, these: Sequence[Delivery], *, code: str, detail: str
) -> None:
    """``these`` as this transaction found them: pending."""
    expired = DeliveryState.EXPIRED.value
    await tx.connection.execute(
        update(delivery)
        .where(delivery.c.id.in_([one.id for one in these]))
        .values(
            state=expired,
            done_at=tx.clock.wall_ms(),
            code=code,
            detail=func.coalesce(delivery.c.detail, detail),
        )
    )
    for receiver_id, count in Counter(one.receiver_id for one in these).items():
        await moved(tx, receiver_id, before=PENDING, after=expired, count=count)


async def prune_deliveries(tx: WriteTransaction, older_than_ms: int) -> int:
    """Forget those that were over before that moment (UTC)."""
    old = (delivery.c.done_at < older_than_ms, delivery.c.state != PENDING)
    rows = await tx.connection.execute(
        select(delivery.c.receiver_id, delivery.c.state, func.count())
        .where(*old)
        .group_by(delivery.c.receiver_id, delivery.c.state)
    )
    found = rows.all()
    if not found:
        return 0
    await tx.connection.execute(delete(delivery).where(*old))
    for of, state, count in found:
        await moved(tx, ReceiverId(of), before=state, count=count)
    await forget_empty(tx)
    return sum(count for _, _, count in found)


async def deliveries_before(
    tx: Transaction, wanted: DeliveryFilter, number: int | None, limit: int
) -> tuple[Delivery, ...]:
    """Newest first, below ``number``."""
    where: list[ColumnElement[bool]] = []
    if number is not None:
        where.append(delivery.c.number < number)
    if wanted.receiver_id is not None:
        where.append(delivery.c.receiver_id == wanted.receiver_id)
    if wanted.subscription_id is not None:
        where.append(delivery.c.subscription_id == wanted.subscription_id)
    if wanted.state is not None:
        where.append(delivery.c.state == wanted.state.value)
    if wanted.event_revision is not None:
        where.append(delivery.c.event_revision == wanted.event_revision)
    rows = await tx.connection.execute(
        select(delivery).where(*where).order_by(delivery.c.number.desc()).limit(limit)
    )
    return tuple(_delivery(row) for row in rows)


async def oldest_pending(tx: Transaction) -> dict[ReceiverId, UtcMillis]:
    """Of each receiver that has any: one look into the index each, however many wait."""
    oldest = (
        select(func.min(delivery.c.created))
        .where(delivery.c.receiver_id == receiver.c.id, delivery.c.state == PENDING)
        .scalar_subquery()
    )
    rows = await tx.connection.execute(select(receiver.c.id, oldest))
    return {ReceiverId(of): UtcMillis(created) for of, created in rows if created is not None}
