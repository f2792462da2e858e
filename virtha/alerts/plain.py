"""What is told when the router itself fails: each event that a route wants, by itself, at once. Better too much than nothing."""

from collections.abc import Sequence

from virtha.alerts.match import matches
from virtha.alerts.router import Decision, RoutingConfig, Tell
from virtha.model.event import Event
from virtha.model.routing import Fate, FateState
from virtha.model.time import UtcMillis


def plainly(now: int, config: RoutingConfig, events: Sequence[Event]) -> Decision:
    """Groups are left as they are; no silence, no rule and no quiet hours are heeded."""
    return Decision(
        tells=tuple(
            Tell(
                route=route,
                event_revision=event.revision,
                note=None,
                fates=(
                    Fate(
                        event_revision=event.revision,
                        subscription_id=route.id,
                        state=FateState.TOLD,
                        code="notify.why.told_plainly",
                        at=UtcMillis(now),
                    ),
                ),
            )
            for event in events
            for route in config.routes
            if matches(route, event)
        ),
        wake_at=now + RETRY_MS,
    )


RETRY_MS = 60_000
"""When the router is asked again though nothing happens: groups may wait."""
