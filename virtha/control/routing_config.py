"""What routing goes by, read from the database. One record that can't be read keeps nobody from being told (ADR 21)."""

from msgspec.structs import replace

from virtha.alerts.hindrance import RoutingConfig
from virtha.control.subscriber_reach import reaches_of
from virtha.model.value import Value
from virtha.store.body import Unreadable
from virtha.store.notifications import live_subscriptions, receiver_kinds
from virtha.store.routing import all_inhibitions, silences_after
from virtha.store.store import Transaction


class ReadConfig(Value, frozen=True, kw_only=True):
    config: RoutingConfig
    unreadable: frozenset[Unreadable]


async def routing_config(tx: Transaction, now: int) -> ReadConfig:
    """``now``: silences that ended before it are not read."""
    silences, bad_silences = await silences_after(tx, now)
    inhibitions, bad_rules = await all_inhibitions(tx)
    live = await _live(tx, RoutingConfig(silences=silences, inhibitions=inhibitions))
    return replace(live, unreadable=live.unreadable | {*bad_silences, *bad_rules})


async def as_it_is_live(tx: Transaction, config: RoutingConfig) -> RoutingConfig:
    """The same silences and rules, and the routes of this moment."""
    return (await _live(tx, config)).config


async def _live(tx: Transaction, config: RoutingConfig) -> ReadConfig:
    live = await live_subscriptions(tx)
    kinds = await receiver_kinds(tx)
    config = replace(
        config,
        routes=live.readable,
        off=live.off,
        unreadable=frozenset(live.unreadable),
        closing=frozenset(
            one.id for one in live.readable if one.receiver_id in kinds.alertmanagers
        ),
        seen=await reaches_of(tx, (*live.readable, *live.off)),
    )
    return ReadConfig(
        config=config, unreadable=frozenset((*live.unreadable.values(), *kinds.unreadable))
    )
