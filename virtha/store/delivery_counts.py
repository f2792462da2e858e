"""How many messages each receiver has in each state: kept in the transaction that changes them.

Only ``store/deliveries.py`` changes a message's state, and each of its functions that does calls ``moved``.
"""

from sqlalchemy import bindparam, case, delete, insert, or_, select, update

from virtha.model.ids import ReceiverId
from virtha.model.notification import DeliveryState
from virtha.model.value import Value
from virtha.store.schema import delivery_count
from virtha.store.store import Transaction, WriteTransaction

_OF = delivery_count.c
# Made once: it runs with every message, and making it costs more than running it.
_MOVE = (
    update(delivery_count)
    .where(
        _OF.receiver_id == bindparam("of_receiver"),
        or_(_OF.state == bindparam("left"), _OF.state == bindparam("reached")),
    )
    .values(
        count=_OF.count
        + case((_OF.state == bindparam("left"), -bindparam("by")), else_=bindparam("by"))
    )
)


class DeliveryCount(Value, frozen=True, kw_only=True):
    receiver_id: ReceiverId
    state: DeliveryState
    count: int


async def moved(
    tx: WriteTransaction,
    receiver_id: ReceiverId,
    *,
    before: str | None = None,
    after: str | None = None,
    count: int = 1,
) -> None:
    """So many of its messages went from one state to another; None: they are new, or forgotten now."""
    if before == after or count == 0:
        return
    states = tuple(state for state in (before, after) if state is not None)
    done = await tx.connection.execute(
        _MOVE, {"of_receiver": receiver_id, "left": before, "reached": after, "by": count}
    )
    if done.rowcount == len(states):
        return
    there = set(
        await tx.connection.scalars(
            select(_OF.state).where(_OF.receiver_id == receiver_id, _OF.state.in_(states))
        )
    )
    for state in states:
        if state not in there:
            change = -count if state == before else count
            await tx.connection.execute(
                insert(delivery_count).values(receiver_id=receiver_id, state=state, count=change)
            )


async def forget_empty(tx: WriteTransaction) -> None:
    """Receivers come and go: their zeros need not stay."""
    await tx.connection.execute(delete(delivery_count).where(delivery_count.c.count == 0))


async def delivery_counts(tx: Transaction) -> tuple[DeliveryCount, ...]:
    """Those above zero."""
    rows = await tx.connection.execute(
        select(_OF.receiver_id, _OF.state, _OF.count)
        .where(_OF.count > 0)
        .order_by(_OF.receiver_id, _OF.state)
    )
    return tuple(
        DeliveryCount(receiver_id=ReceiverId(of), state=DeliveryState(state), count=count)
        for of, state, count in rows
    )
