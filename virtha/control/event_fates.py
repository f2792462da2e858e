"""What became of one event at every route, each with its reason (X1)."""

from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.match import why_not
from virtha.control.routing_views import EventFates, RouteFate
from virtha.control.subscriber_reach import reaches_of
from virtha.model.codes import REGISTRY, render
from virtha.model.errors import NotFound
from virtha.model.event import Event
from virtha.model.ids import DeliveryId, ReceiverId
from virtha.model.notification import DeliveryState, Subscription
from virtha.model.routing import Fate
from virtha.store.deliveries import cursor_of, delivery_states
from virtha.store.events import find_event
from virtha.store.notifications import live_subscriptions, receiver_names, subscriptions_after
from virtha.store.routing import fates_of, names_of_reasons
from virtha.store.store import Store

ROUTES_MAX = 10_000


async def fates_of_event(store: Store, revision: int) -> EventFates:
    """First what its routes did, then those that don't want it. Routes are asked as they are now: one that was changed since may
    answer otherwise than it did then."""
    async with store.read() as tx:
        event = await find_event(tx, revision) if 0 < revision < 1 << 62 else None
        if event is None:
            raise NotFound(
                f"there is no event {revision}, or it is no longer kept",
                fix="'virtha event list' shows them with their numbers (column REVISION)",
            )
        fates = await fates_of(tx, revision)
        reasons = await names_of_reasons(tx, {one.by for one in fates if one.by is not None})
        states = await delivery_states(tx, {one.delivery_id for one in fates if one.delivery_id})
        routes = await subscriptions_after(tx, "", ROUTES_MAX)
        receivers = await receiver_names(tx)
        by_id = {one.id: one for one in routes}
        told = [
            _told(one, by_id.get(one.subscription_id), receivers, reasons, states) for one in fates
        ]
        live = {one.id for one in (await live_subscriptions(tx)).readable}
        seen = RoutingConfig(seen=await reaches_of(tx, routes))
        looked_at = (await cursor_of(tx) or 0) >= revision
        known = {one.subscription_id for one in fates}
        others = [
            _not_told(
                one,
                event,
                receivers[one.receiver_id],
                live=one.id in live,
                seen=seen.sees(one, event),
                looked_at=looked_at,
            )
            for one in routes
            if one.id not in known
        ]
        return EventFates(event=event, routes=(*told, *others))


def _told(
    fate: Fate,
    route: Subscription | None,
    receivers: dict[ReceiverId, str],
    reasons: dict[str, str],
    states: dict[DeliveryId, DeliveryState],
) -> RouteFate:
    """``route`` None: it was removed."""
    return RouteFate(
        subscription=route.name if route is not None else None,
        subscription_id=fate.subscription_id,
        receiver=receivers.get(route.receiver_id) if route is not None else None,
        state=fate.state,
        code=fate.code,
        reason_text=render(fate.code, {}),
        help=REGISTRY[fate.code].help if fate.code in REGISTRY else "",
        at=fate.at,
        by=fate.by,
        by_text=reasons.get(fate.by) if fate.by is not None else None,
        group_id=fate.group_id,
        delivery_id=fate.delivery_id,
        delivery_state=states.get(fate.delivery_id) if fate.delivery_id is not None else None,
    )


def _not_told(
    route: Subscription, event: Event, receiver: str, *, live: bool, seen: bool, looked_at: bool
) -> RouteFate:
    code = why_not(route, event)
    if code is None and not live:
        code = "notify.why.switched_off"
    if code is None and not seen:
        code = "notify.why.unseen"
    if code is None:
        # The cursor is written now and then only, so an event beyond it may have been looked at: then it has a fate.
        code = "notify.why.forgotten" if looked_at else "notify.why.not_looked_at"
    return RouteFate(
        subscription=route.name,
        subscription_id=route.id,
        receiver=receiver,
        state=None,
        code=code,
        reason_text=render(code, {}),
        help=REGISTRY[code].help,
    )
