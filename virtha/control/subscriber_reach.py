"""Which clusters the users see whom subscriptions tell: nobody is told by mail what they may not look at."""

from collections.abc import Iterable

from virtha.control.callers import caller_of
from virtha.model.ids import SubscriptionId, UserId
from virtha.model.notification import Subscription
from virtha.store.reach import Reach
from virtha.store.store import Transaction
from virtha.store.users import find_user


async def reach_of_user(tx: Transaction, user_id: UserId) -> Reach | None:
    """By role and grants, now; None: all clusters, and what belongs to none. Of a user who is gone: nothing."""
    row = await find_user(tx, user_id)
    if row is None:
        return frozenset()
    return (await caller_of(tx, row.user)).rights.reach


async def reaches_of(
    tx: Transaction, subscriptions: Iterable[Subscription]
) -> dict[SubscriptionId, Reach]:
    """Of those that go to a user who sees a part. Each user is looked up once."""
    users: dict[UserId, Reach | None] = {}
    found: dict[SubscriptionId, Reach] = {}
    for one in subscriptions:
        if one.user_id is None:
            continue
        if one.user_id not in users:
            users[one.user_id] = await reach_of_user(tx, one.user_id)
        reach = users[one.user_id]
        if reach is not None:
            found[one.id] = reach
    return found
