"""Which clusters the users see whom subscriptions tell: nobody is told by mail what they may not look at."""

from collections.abc import Collection

from virtha.model.ids import SubscriptionId
from virtha.model.notification import Subscription
from virtha.store.access import reaches_of_users
from virtha.store.reach import Reach
from virtha.store.store import Transaction


async def reaches_of(
    tx: Transaction, subscriptions: Collection[Subscription]
) -> dict[SubscriptionId, Reach]:
    """Of those that go to a user who sees a part, now; who is gone sees nothing."""
    users = {one.user_id for one in subscriptions if one.user_id is not None}
    reaches = await reaches_of_users(tx, users) if users else {}
    found = {}
    for one in subscriptions:
        if one.user_id is not None:
            reach = reaches.get(one.user_id, frozenset())
            if reach is not None:
                found[one.id] = reach
    return found
