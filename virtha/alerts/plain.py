"""What is told when the router itself fails: each event that a route wants, by itself, at once. Better too much than nothing."""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.match import matches
from virtha.alerts.router import Decision, Tell
from virtha.model.event import Event
from virtha.model.ids import GroupId, Revision
from virtha.model.notification import Subscription
from virtha.model.routing import Fate, FateState
from virtha.model.time import UtcMillis

RETRY_MS = 60_000
"""When the router is asked again though nothing happens: groups may wait."""
STUCK_MS = 600_000
"""How long after its time a group is given up, where the router failed again and again meanwhile: it may be why."""


def plainly(now: int, config: RoutingConfig, events: Sequence[Event]) -> Decision:
    """Groups are left as they are; no silence, no rule and no quiet hours are heeded."""
    return Decision(
        tells=tuple(
            _tell(now, route, event.revision)
            for event in events
            for route in config.routes
            if matches(route, event)
        ),
        wake_at=now + RETRY_MS,
    )


def given_up(
    now: int, config: RoutingConfig, groups: Iterable[GroupId], untold: Sequence[Fate]
) -> Decision:
    """Groups that nobody can read, or that were stuck, go; what waits in them (``untold``) is told one by one."""
    routes = {one.id: one for one in config.routes}
    return Decision(
        tells=tuple(
            _tell(now, routes[one.subscription_id], one.event_revision)
            for one in untold
            if one.subscription_id in routes
        ),
        fates=tuple(
            replace(one, state=FateState.SPARED, code="notify.why.dropped", at=UtcMillis(now))
            for one in untold
            if one.subscription_id not in routes
        ),
        groups=dict.fromkeys(groups),
    )


def _tell(now: int, route: Subscription, revision: Revision) -> Tell:
    fate = Fate(
        event_revision=revision,
        subscription_id=route.id,
        state=FateState.TOLD,
        code="notify.why.told_plainly",
        at=UtcMillis(now),
    )
    return Tell(route=route, event_revision=revision, note=None, fates=(fate,))
