"""How many messages there are: kept with each change, and never other than what the queue holds."""

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import select
from test_store_notifications import scripts_up_to

from virtha.model.ids import DeliveryId, ReceiverId, Revision, SubscriptionId
from virtha.model.notification import Delivery, DeliveryState
from virtha.model.time import Millis, UtcMillis
from virtha.store import Store, open_store
from virtha.store.deliveries import (
    add_deliveries,
    drop_pending,
    end_delivery,
    expire_all,
    expired_deliveries,
    find_delivery,
    prune_deliveries,
    put_off,
    reopen_delivery,
)
from virtha.store.delivery_counts import delivery_counts
from virtha.store.migrate import migrate
from virtha.store.schema import delivery
from virtha.store.store import Transaction, WriteTransaction


class StepClock:
    def __init__(self) -> None:
        self.now = 1_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now)


def made(number: int, random: Random, now: int) -> Delivery:
    receiver = random.choice("ab")
    return Delivery(
        id=DeliveryId(f"d{number}"),
        number=number,
        receiver_id=ReceiverId(receiver),
        subscription_id=SubscriptionId(receiver + random.choice("12")),
        event_revision=Revision(1),
        created=UtcMillis(now),
        next_at=UtcMillis(now),
        expires=UtcMillis(now + random.randrange(1, 30)),
    )


async def some_change(
    tx: WriteTransaction, random: Random, step: int, now: int, read: dict[str, Delivery]
) -> None:
    """One of all that a queue goes through. ``read``: messages as senders have read them, some time ago."""
    ids = list(await tx.connection.scalars(select(delivery.c.id)))
    what = random.randrange(9)
    if what <= 2 or not ids:
        count = random.randrange(5)
        await add_deliveries(tx, [made(step * 10 + n, random, now) for n in range(count)])
        return
    one = await find_delivery(tx, random.choice(ids))
    assert one is not None
    if what <= 4:
        state = random.choice([DeliveryState.SENT, DeliveryState.REFUSED])
        await end_delivery(
            tx, read.setdefault(one.id, one), state, attempts=1, code="notify.accepted", detail=""
        )
    elif what == 5 and one.state is not DeliveryState.SENT:
        await reopen_delivery(tx, one, now + 9)
    elif what == 6:
        if random.random() < 0.5:
            await drop_pending(tx, code="x", subscription_id=one.subscription_id)
        else:
            await put_off(tx, one, wait_until=now + 5, code="x", detail="")
    elif what == 7:
        await expire_all(tx, await expired_deliveries(tx, now, 3), code="x", detail="")
    else:
        await prune_deliveries(tx, now - 10)


async def counted(tx: Transaction) -> Counter[tuple[str, str]]:
    rows = await tx.connection.execute(select(delivery.c.receiver_id, delivery.c.state))
    return Counter((str(of), str(state)) for of, state in rows)


async def kept(tx: Transaction) -> dict[tuple[str, str], int]:
    return {(one.receiver_id, one.state.value): one.count for one in await delivery_counts(tx)}


@pytest.mark.req("W7")
def test_what_is_kept_is_what_counting_would_give(tmp_path: Path) -> None:
    async def story() -> None:
        clock, random, read = StepClock(), Random(7), dict[str, Delivery]()
        store: Store = await open_store(f"sqlite:///{tmp_path}/virtha.db", clock=clock)
        seen: set[str] = set()
        try:
            for step in range(1, 600):
                clock.now += random.randrange(3)
                async with store.write() as tx:
                    await some_change(tx, random, step, clock.now, read)
                async with store.read() as reading:
                    found = await kept(reading)
                    assert found == await counted(reading), step
                    seen |= {state for _, state in found}
        finally:
            await store.close()
        assert seen == {state.value for state in DeliveryState}, "the walk met every state"

    asyncio.run(story())


def test_an_installation_of_before_the_counts_gets_them_counted(tmp_path: Path) -> None:
    database = tmp_path / "virtha.db"
    migrate(database, migrations=scripts_up_to(tmp_path, "0002"))
    with closing(sqlite3.connect(database)) as old, old:
        for number, (receiver, state) in enumerate(
            [("r1", "sent"), ("r1", "sent"), ("r1", "pending"), ("r2", "refused")]
        ):
            old.execute(
                "INSERT INTO delivery (id, number, receiver_id, event_revision, test, state, wait_until,"
                " attempts, created, expires) VALUES (?, ?, ?, 1, 0, ?, 0, 0, 5, 9)",
                (f"d{number}", number, receiver, state),
            )
    migrate(database)
    with closing(sqlite3.connect(database)) as new:
        assert new.execute("SELECT * FROM delivery_count ORDER BY 1, 2").fetchall() == [
            ("r1", "pending", 1),
            ("r1", "sent", 2),
            ("r2", "refused", 1),
        ]
