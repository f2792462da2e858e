"""What routes remember, what became of events at them; silences and inhibitions.

Groups and fates take no revision: how a message fares wakes nobody who follows the installation.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from sqlalchemy import and_, bindparam, delete, insert, or_, select, update

from virtha.model.ids import DeliveryId, GroupId, InhibitionId, Revision, SubscriptionId
from virtha.model.notification import DeliveryState
from virtha.model.routing import Fate, FateState, Group, Inhibition, Silence
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.store.body import Unreadable, decode, decode_each, encode, in_parts, put
from virtha.store.schema import delivery, event_fate, inhibition, route_group, silence
from virtha.store.store import Transaction, WriteTransaction

COUNTED = "notify.why.counted"
_OVER = (FateState.TOLD.value, FateState.SPARED.value)
_NOT_OVER = (FateState.WAITS.value, FateState.PARKED.value)
_KEYS = ("event_revision", "subscription_id")
_VALUES = ("state", "code", "at", "by", "group_id", "delivery_id")
# Made once: they run with every batch of events.
_CHANGE_FATE = (
    update(event_fate)
    .where(*(event_fate.c[name] == bindparam(f"of_{name}") for name in _KEYS))
    .values({name: bindparam(f"new_{name}") for name in _VALUES})
)
_DROP_GROUP = delete(route_group).where(route_group.c.id == bindparam("of_id"))


class StoredGroups(Value, frozen=True, kw_only=True):
    """``unreadable``: those that hold a word of another version, or were damaged."""

    groups: tuple[Group, ...]
    unreadable: tuple[GroupId, ...] = ()


async def all_groups(tx: Transaction) -> StoredGroups:
    """Bounded by the routes (``alerts/groups.py``)."""
    rows = await tx.connection.execute(select(route_group.c.id, route_group.c.body))
    groups, unreadable = decode_each(Group, [(of, body) for of, body in rows])
    return StoredGroups(groups=groups, unreadable=tuple(GroupId(one.name) for one in unreadable))


async def save_groups(tx: WriteTransaction, changed: Mapping[GroupId, Group | None]) -> None:
    """None: it is gone. Two statements, however many there are."""
    if not changed:
        return
    await tx.connection.execute(_DROP_GROUP, [{"of_id": one} for one in changed])
    rows = [
        {"id": one.id, "subscription_id": one.subscription_id, "body": encode(one)}
        for one in changed.values()
        if one is not None
    ]
    if rows:
        await tx.connection.execute(insert(route_group), rows)


async def save_fates(
    tx: WriteTransaction, fates: Iterable[Fate], *, new: Collection[Revision]
) -> None:
    """``new``: the events of which no fate can be there yet."""
    fresh: list[Fate] = []
    later: list[Fate] = []
    for one in fates:
        (fresh if one.event_revision in new else later).append(one)
    if fresh:
        rows = [{name: getattr(one, name) for name in (*_KEYS, *_VALUES)} for one in fresh]
        await tx.connection.execute(insert(event_fate), rows)
    if later:
        changes = [
            {f"of_{name}": getattr(one, name) for name in _KEYS}
            | {f"new_{name}": getattr(one, name) for name in _VALUES}
            for one in later
        ]
        await tx.connection.execute(_CHANGE_FATE, changes)


async def settle_counted(
    tx: WriteTransaction,
    group_id: GroupId,
    state: FateState,
    code: str,
    delivery_id: DeliveryId | None = None,
) -> None:
    """What became of those that the group only counted."""
    await tx.connection.execute(
        update(event_fate)
        .where(
            event_fate.c.group_id == group_id,
            event_fate.c.code == COUNTED,
            event_fate.c.state == FateState.WAITS.value,
        )
        .values(state=state.value, code=code, delivery_id=delivery_id, at=tx.clock.wall_ms())
    )


async def counted_in(tx: Transaction, group_id: GroupId) -> tuple[Fate, ...]:
    """What waits there to be told as one of a number."""
    rows = await tx.connection.execute(
        select(event_fate).where(
            event_fate.c.group_id == group_id,
            event_fate.c.code == COUNTED,
            event_fate.c.state == FateState.WAITS.value,
        )
    )
    return tuple(_fate(row) for row in rows)


async def undelivered(
    tx: Transaction, told: Collection[tuple[SubscriptionId, Revision]]
) -> frozenset[tuple[SubscriptionId, Revision]]:
    """Of what routes count as told that which was in messages that were refused or expired."""
    ended = (DeliveryState.REFUSED.value, DeliveryState.EXPIRED.value)
    found: set[tuple[SubscriptionId, Revision]] = set()
    for some in in_parts({revision for _, revision in told}):
        rows = await tx.connection.execute(
            select(event_fate.c.subscription_id, event_fate.c.event_revision)
            .join(delivery, delivery.c.id == event_fate.c.delivery_id)
            .where(event_fate.c.event_revision.in_(some), delivery.c.state.in_(ended))
        )
        found |= {(SubscriptionId(of), Revision(revision)) for of, revision in rows}
    return frozenset(found & {*told})


async def fates_of(tx: Transaction, revision: int) -> tuple[Fate, ...]:
    rows = await tx.connection.execute(
        select(event_fate).where(event_fate.c.event_revision == revision)
    )
    return tuple(_fate(row) for row in rows)


async def untold_of(tx: Transaction, group_ids: Iterable[GroupId]) -> tuple[Fate, ...]:
    """What waits in these groups or is parked there, by event."""
    found: list[Fate] = []
    for some in in_parts({*group_ids}):
        rows = await tx.connection.execute(
            select(event_fate)
            .where(event_fate.c.group_id.in_(some), event_fate.c.state.in_(_NOT_OVER))
            .order_by(event_fate.c.event_revision)
        )
        found += [_fate(row) for row in rows]
    return tuple(found)


async def awaited_events(tx: Transaction, up_to: int) -> frozenset[Revision]:
    """Those up to there that routes may yet tell, once or again, or that are on their way in a message."""
    found = {
        member.event.revision
        for group in (await all_groups(tx)).groups
        for member in group.members
        if member.event.revision <= up_to
    }
    wanted = select(event_fate.c.event_revision).where(event_fate.c.event_revision <= up_to)
    waiting = await tx.connection.scalars(wanted.where(event_fate.c.state.in_(_NOT_OVER)))
    found |= {Revision(one) for one in waiting}
    pending = select(delivery.c.id).where(delivery.c.state == DeliveryState.PENDING.value)
    for some in in_parts([*await tx.connection.scalars(pending)]):
        told = await tx.connection.scalars(wanted.where(event_fate.c.delivery_id.in_(some)))
        found |= {Revision(one) for one in told}
    return frozenset(found)


async def prune_fates(tx: WriteTransaction, older_than_ms: int) -> int:
    """Forget what was settled before that moment (UTC)."""
    done = await tx.connection.execute(
        delete(event_fate).where(event_fate.c.state.in_(_OVER), event_fate.c.at < older_than_ms)
    )
    return int(done.rowcount)


def _fate(row: Any) -> Fate:
    return Fate(
        event_revision=Revision(row.event_revision),
        subscription_id=SubscriptionId(row.subscription_id),
        state=FateState(row.state),
        code=row.code,
        at=UtcMillis(row.at),
        by=row.by,
        group_id=GroupId(row.group_id) if row.group_id else None,
        delivery_id=DeliveryId(row.delivery_id) if row.delivery_id else None,
    )


async def find_silence(tx: Transaction, silence_id: str) -> Silence | None:
    body = await tx.connection.scalar(select(silence.c.body).where(silence.c.id == silence_id))
    return decode(Silence, body) if body is not None else None


async def silences_after(
    tx: Transaction, now: int
) -> tuple[tuple[Silence, ...], tuple[Unreadable, ...]]:
    """Those that have not ended then; the next to end first. And those that can't be read, by id."""
    rows = await tx.connection.execute(
        select(silence.c.id, silence.c.body)
        .where(silence.c.ends > now)
        .order_by(silence.c.ends, silence.c.id)
    )
    return decode_each(Silence, [(of, body) for of, body in rows])


async def silences_page(
    tx: Transaction, now: int, after: tuple[int, str], limit: int
) -> tuple[Silence, ...]:
    """Those that have not ended then, beyond one by its end and its id; the next to end first."""
    ends, silence_id = after
    beyond = or_(silence.c.ends > ends, and_(silence.c.ends == ends, silence.c.id > silence_id))
    rows = await tx.connection.scalars(
        select(silence.c.body)
        .where(silence.c.ends > now, beyond)
        .order_by(silence.c.ends, silence.c.id)
        .limit(limit)
    )
    return tuple(decode(Silence, body) for body in rows)


async def save_silence(tx: WriteTransaction, value: Silence) -> Silence:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    values = {"ends": saved.ends, "body": encode(saved), "revision": saved.revision}
    await put(tx, silence, {"id": saved.id}, values)
    return saved


async def prune_silences(tx: WriteTransaction, older_than_ms: int) -> int:
    done = await tx.connection.execute(delete(silence).where(silence.c.ends < older_than_ms))
    return int(done.rowcount)


async def all_inhibitions(
    tx: Transaction,
) -> tuple[tuple[Inhibition, ...], tuple[Unreadable, ...]]:
    """In the order of their names. And those that can't be read."""
    rows = await tx.connection.execute(
        select(inhibition.c.name, inhibition.c.body).order_by(inhibition.c.name)
    )
    return decode_each(Inhibition, [(name, body) for name, body in rows])


async def inhibition_called(tx: Transaction, ref: str) -> tuple[InhibitionId, str] | None:
    """Id and name of the rule of that id or name, readable or not."""
    row = (
        await tx.connection.execute(
            select(inhibition.c.id, inhibition.c.name).where(
                or_(inhibition.c.id == ref, inhibition.c.name == ref)
            )
        )
    ).one_or_none()
    return None if row is None else (InhibitionId(row.id), str(row.name))


async def find_inhibition(tx: Transaction, ref: str) -> Inhibition | None:
    """By id or name."""
    body = await tx.connection.scalar(
        select(inhibition.c.body).where(or_(inhibition.c.id == ref, inhibition.c.name == ref))
    )
    return decode(Inhibition, body) if body is not None else None


async def save_inhibition(tx: WriteTransaction, value: Inhibition) -> Inhibition:
    saved = msgspec.structs.replace(value, revision=tx.revision)
    values = {"name": saved.name, "body": encode(saved), "revision": saved.revision}
    await put(tx, inhibition, {"id": saved.id}, values)
    return saved


async def drop_inhibition(tx: WriteTransaction, inhibition_id: InhibitionId) -> None:
    _ = tx.revision
    await tx.connection.execute(delete(inhibition).where(inhibition.c.id == inhibition_id))


async def names_of_reasons(tx: Transaction, ids: Collection[str]) -> dict[str, str]:
    """Of silences (why) and of rules (how they are called), by id: those that are still there."""
    found: dict[str, str] = {}
    for some in in_parts(ids):
        quiet = await tx.connection.scalars(select(silence.c.body).where(silence.c.id.in_(some)))
        for one in (decode(Silence, body) for body in quiet):
            found[one.id] = f"{one.by}: {one.reason}"
        rules = await tx.connection.execute(
            select(inhibition.c.id, inhibition.c.name).where(inhibition.c.id.in_(some))
        )
        found |= {str(of): str(name) for of, name in rules}
    return found
