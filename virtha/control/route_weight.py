"""What a route would have told of the last events: the router itself is asked, with them."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import groupby

from msgspec.structs import replace

from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.match import matches
from virtha.alerts.router import Router
from virtha.control.event_routing import zone_offset_ms
from virtha.control.routing_views import RouteWeight
from virtha.model.codes import Severity, render
from virtha.model.event import Event
from virtha.model.ids import Revision
from virtha.model.notification import Subscription
from virtha.model.value import Fields
from virtha.store.events import EventFilter, events_before
from virtha.store.store import Store

LOOKED_AT = 1_000
STEP_MS = 60_000
"""Events of one minute are taken together."""
MESSAGES_MAX = 2_000
LOOKS_MAX = 500
"""Between events, for repeats and waits. Where either is reached, what was counted by then is taken for the whole time:
problems that are repeated each minute for weeks need not be counted to their end."""
_DAY_MS = 86_400_000
_SPAN_MS_MIN = 3_600_000


async def weight_of(store: Store, route: Subscription) -> RouteWeight:
    """Of at most ``LOOKED_AT`` events; nothing is told for it. In a thread: it may take a moment, and the server has
    other things to do."""
    async with store.read() as tx:
        events = tuple(await events_before(tx, EventFilter(), None, LOOKED_AT))[::-1]
    return await asyncio.to_thread(weighed, route, events)


def weighed(route: Subscription, events: Sequence[Event]) -> RouteWeight:
    """``events``: oldest first."""
    route = replace(route, since=Revision(0), enabled=True)
    matched = sum(matches(route, one) for one in events)
    messages = _messages(route, events)
    span_ms = max(_SPAN_MS_MIN, events[-1].at - events[0].at) if events else _SPAN_MS_MIN
    per_day = round(messages * _DAY_MS / span_ms)
    code = "notify.route.weight"
    if _matches_everything(route):
        code = "notify.route.matches_everything"
    elif events and not matched:
        code = "notify.route.matches_nothing"
    fields: Fields = {
        "events": len(events),
        "matched": matched,
        "messages": messages,
        "per_day": per_day,
    }
    return RouteWeight(
        events=len(events),
        matched=matched,
        messages=messages,
        per_day=per_day,
        code=code,
        reason_text=render(code, fields),
    )


def _matches_everything(route: Subscription) -> bool:
    subjects = (route.cluster_id, route.host_id, route.vm_id)
    return (
        route.severity is Severity.INFO
        and (not route.codes or "*" in route.codes)
        and not route.labels
        and subjects == (None, None, None)
    )


def _messages(route: Subscription, events: Sequence[Event]) -> int:
    router, config = Router((), zone_offset_ms), RoutingConfig(routes=(route,))
    count, wake_at, looks = 0, None, 0
    for now, some in _minutes(events):
        while wake_at is not None and wake_at < now:
            looks += 1
            decision = router.step(wake_at, config, ())
            count += len(decision.tells)
            if count >= MESSAGES_MAX or looks >= LOOKS_MAX:
                return _as_if_all(count, events, wake_at)
            # At least a minute on: what is due at once was told.
            wake_at = max(decision.wake_at, wake_at + STEP_MS) if decision.wake_at else None
        decision = router.step(now, config, some)
        count += len(decision.tells)
        if count >= MESSAGES_MAX:
            return _as_if_all(count, events, now)
        wake_at = decision.wake_at
    return count + router.waiting


def _as_if_all(count: int, events: Sequence[Event], until: int) -> int:
    """What was counted until then, for the whole time."""
    passed_ms, all_ms = max(1, until - events[0].at), events[-1].at - events[0].at
    return max(count, round(count * all_ms / passed_ms))


def _minutes(events: Sequence[Event]) -> Iterator[tuple[int, tuple[Event, ...]]]:
    for _, some in groupby(events, key=lambda one: one.at // STEP_MS):
        found = tuple(some)
        yield found[-1].at, found
