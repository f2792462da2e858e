"""How many messages each receiver has in each state: kept in the transaction that changes them.

Only ``store/deliveries.py`` changes a message's state, and each of its functions that does calls ``moved``.
"""

from sqlalchemy import case, delete, insert, select, update

from virtha.model.ids import ReceiverId
from virtha.model.notification import DeliveryState
from virtha.model.value import Value
from virtha.store.schema import delivery_count
from virtha.store.store import Transaction, WriteTransaction


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
    change = {state: -count if state == before else count for state in states}
    table = delivery_count.c
    done = await tx.connection.execute(
        update(delivery_count)
        .where(table.receiver_id == receiver_id, table.state.in_(states))
        .values(count=table.count + case(change, value=table.state, else_=0))
    )
    if done.rowcount == len(states):
        return
    there = set(
        await tx.connection.scalars(
            select(table.state).where(table.receiver_id == receiver_id, table.state.in_(states))
        )
    )
    for state in states:
        if state not in there:
            await tx.connection.execute(
                insert(delivery_count).values(
                    receiver_id=receiver_id, state=state, count=change[state]
                )
            )


async def forget_empty(tx: WriteTransaction) -> None:
    """Receivers come and go: their zeros need not stay."""
    await tx.connection.execute(delete(delivery_count).where(delivery_count.c.count == 0))


async def delivery_counts(tx: Transaction) -> tuple[DeliveryCount, ...]:
    """Those above zero."""
    table = delivery_count.c
    rows = await tx.connection.execute(
        select(table.receiver_id, table.state, table.count)
        .where(table.count > 0)
        .order_by(table.receiver_id, table.state)
    )
    return tuple(
        DeliveryCount(receiver_id=ReceiverId(of), state=DeliveryState(state), count=count)
        for of, state, count in rows
    )
