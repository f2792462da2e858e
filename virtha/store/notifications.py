"""Receivers, their sealed secrets and their state; subscriptions."""

import msgspec
from sqlalchemy import and_, delete, func, insert, or_, select, update

from virtha.model.ids import ReceiverId, SubscriptionId, UserId
from virtha.model.notification import (
    AlertmanagerSettings,
    Receiver,
    ReceiverStatus,
    SnmpSettings,
    Subscription,
)
from virtha.model.value import Value
from virtha.store.body import Unreadable, decode, decode_each, encode, put
from virtha.store.schema import receiver, receiver_status, subscription, user_account
from virtha.store.store import Transaction, WriteTransaction


class ReceiverRow(Value, frozen=True, kw_only=True):
    """``sealed``: its secrets as ``control/secret_box.py`` wrote them; None: it has none."""

    receiver: Receiver
    sealed: str | None = None
    status: ReceiverStatus = ReceiverStatus()


_RECEIVERS = select(
    receiver.c.body, receiver.c.sealed, receiver_status.c.body.label("status")
).join(receiver_status, receiver_status.c.receiver_id == receiver.c.id, isouter=True)


def _receiver_row(body: str, sealed: str | None, status: str | None) -> ReceiverRow:
    return ReceiverRow(
        receiver=decode(Receiver, body),
        sealed=sealed,
        status=decode(ReceiverStatus, status) if status is not None else ReceiverStatus(),
    )


async def find_receiver(tx: Transaction, ref: str) -> ReceiverRow | None:
    """By id or name."""
    row = (
        await tx.connection.execute(
            _RECEIVERS.where(or_(receiver.c.id == ref, receiver.c.name == ref))
        )
    ).one_or_none()
    return _receiver_row(*row) if row is not None else None


async def receivers_after(tx: Transaction, name: str, limit: int) -> tuple[ReceiverRow, ...]:
    rows = await tx.connection.execute(
        _RECEIVERS.where(receiver.c.name > name).order_by(receiver.c.name).limit(limit)
    )
    return tuple(_receiver_row(*row) for row in rows)


async def receiver_names(tx: Transaction) -> dict[ReceiverId, str]:
    """Of all."""
    rows = await tx.connection.execute(select(receiver.c.id, receiver.c.name))
    return {ReceiverId(of): name for of, name in rows}


class ReceiverKinds(Value, frozen=True, kw_only=True):
    """``alertmanagers`` keep each problem until they hear of its end; to ``managers`` traps go, of one event each."""

    alertmanagers: frozenset[ReceiverId]
    managers: frozenset[ReceiverId]
    unreadable: tuple[Unreadable, ...]


async def receiver_kinds(tx: Transaction) -> ReceiverKinds:
    """Of all."""
    rows = await tx.connection.execute(select(receiver.c.name, receiver.c.body))
    found, unreadable = decode_each(Receiver, [(name, body) for name, body in rows])

    def of(settings: type[AlertmanagerSettings] | type[SnmpSettings]) -> frozenset[ReceiverId]:
        return frozenset(one.id for one in found if isinstance(one.settings, settings))

    return ReceiverKinds(
        alertmanagers=of(AlertmanagerSettings), managers=of(SnmpSettings), unreadable=unreadable
    )


async def save_receiver(tx: WriteTransaction, value: Receiver, sealed: str | None) -> Receiver:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await put(
        tx,
        receiver,
        {"id": saved.id},
        {
            "name": saved.name,
            "enabled": saved.enabled,
            "body": encode(saved),
            "sealed": sealed,
            "revision": saved.revision,
        },
    )
    return saved


async def drop_receiver(tx: WriteTransaction, receiver_id: ReceiverId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(receiver).where(receiver.c.id == receiver_id))


async def save_receiver_status(
    tx: WriteTransaction, receiver_id: ReceiverId, value: ReceiverStatus
) -> None:
    """Without a revision: nobody is to be woken by how a message fared."""
    await put(tx, receiver_status, {"receiver_id": receiver_id}, {"body": encode(value)})


async def sealed_count(tx: Transaction) -> int:
    """How many receivers have secrets."""
    counted = await tx.connection.scalar(
        select(func.count()).select_from(receiver).where(receiver.c.sealed.is_not(None))
    )
    return int(counted or 0)


async def find_subscription(tx: Transaction, ref: str) -> Subscription | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(subscription.c.body).where(or_(subscription.c.id == ref, subscription.c.name == ref))
    )
    return decode(Subscription, body) if body is not None else None


class LiveSubscriptions(Value, frozen=True, kw_only=True):
    """``off``: switched off, or their receiver or user is. ``unreadable``: by id, how each is called and why it can't be read.
    Whether those are switched on themselves isn't known."""

    readable: tuple[Subscription, ...]
    off: tuple[Subscription, ...] = ()
    unreadable: dict[SubscriptionId, Unreadable] = {}


async def live_subscriptions(tx: Transaction) -> LiveSubscriptions:
    """In the order of their names."""
    is_on = and_(
        receiver.c.enabled.is_(True),
        or_(subscription.c.user_id.is_(None), user_account.c.enabled.is_(True)),
    )
    rows = await tx.connection.execute(
        select(subscription.c.id, subscription.c.name, subscription.c.body, is_on.label("is_on"))
        .join(receiver, receiver.c.id == subscription.c.receiver_id)
        .join(user_account, user_account.c.id == subscription.c.user_id, isouter=True)
        .order_by(subscription.c.name)
    )
    readable: list[Subscription] = []
    off: list[Subscription] = []
    unreadable: dict[SubscriptionId, Unreadable] = {}
    for row in rows:
        found, bad = decode_each(Subscription, [(row.name, row.body)])
        for one in found:
            (readable if row.is_on and one.enabled else off).append(one)
        unreadable |= {SubscriptionId(row.id): one for one in bad}
    return LiveSubscriptions(readable=tuple(readable), off=tuple(off), unreadable=unreadable)


async def subscriptions_after(tx: Transaction, name: str, limit: int) -> tuple[Subscription, ...]:
    rows = await tx.connection.scalars(
        select(subscription.c.body)
        .where(subscription.c.name > name)
        .order_by(subscription.c.name)
        .limit(limit)
    )
    return tuple(decode(Subscription, body) for body in rows)


async def subscriptions_to(tx: Transaction, receiver_id: ReceiverId) -> tuple[Subscription, ...]:
    rows = await tx.connection.scalars(
        select(subscription.c.body)
        .where(subscription.c.receiver_id == receiver_id)
        .order_by(subscription.c.name)
    )
    return tuple(decode(Subscription, body) for body in rows)


async def subscriptions_of(tx: Transaction, user_id: UserId) -> tuple[Subscription, ...]:
    rows = await tx.connection.scalars(
        select(subscription.c.body)
        .where(subscription.c.user_id == user_id)
        .order_by(subscription.c.name)
    )
    return tuple(decode(Subscription, body) for body in rows)


async def add_subscription(tx: WriteTransaction, value: Subscription) -> Subscription:
    """It gets the present revision, which it begins above."""
    saved = msgspec.structs.replace(value, revision=tx.revision, since=tx.revision)
    await tx.connection.execute(
        insert(subscription).values(
            id=saved.id,
            name=saved.name,
            receiver_id=saved.receiver_id,
            user_id=saved.user_id,
            body=encode(saved),
            revision=saved.revision,
        )
    )
    return saved


async def save_subscription(tx: WriteTransaction, value: Subscription) -> Subscription:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    await tx.connection.execute(
        update(subscription)
        .where(subscription.c.id == saved.id)
        .values(
            name=saved.name,
            receiver_id=saved.receiver_id,
            user_id=saved.user_id,
            body=encode(saved),
            revision=saved.revision,
        )
    )
    return saved


async def drop_subscription(tx: WriteTransaction, subscription_id: SubscriptionId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(subscription).where(subscription.c.id == subscription_id))
