"""Whether an event may be the end of what a route told and doesn't remember."""

from msgspec.structs import replace

from virtha.alerts.match import matches
from virtha.alerts.subject import ended_codes
from virtha.model.codes import REGISTRY, REPLACES
from virtha.model.event import Event
from virtha.model.notification import Subscription


def may_end_for(route: Subscription, event: Event) -> bool:
    """Whether the route wants a problem that is over with it, as far as the end shows that: of a VM that ran elsewhere, or of a
    label that only its problem has, more is taken for wanted than was."""
    if event.code in REPLACES:
        return False
    likely = replace(
        route,
        host_id=route.host_id if event.vm_id is None else None,
        labels={name: value for name, value in route.labels.items() if name in event.fields},
    )
    return any(
        matches(likely, replace(event, code=code, severity=REGISTRY[code].severity))
        for code in ended_codes(event)
    )
