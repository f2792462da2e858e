"""Answers about routes: their weight, silences, inhibitions, and what became of one event."""

from enum import StrEnum

from virtha.model.event import Event
from virtha.model.ids import DeliveryId
from virtha.model.notification import DeliveryState
from virtha.model.routing import FateState, Inhibition, Silence
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class RouteWeight(Value, frozen=True, kw_only=True):
    """What a route would have told of the last events that are kept. ``code``: ``notify.route.…``."""

    events: int
    matched: int
    messages: int
    per_day: int
    code: str
    reason_text: str


class SilenceState(StrEnum):
    PENDING = "pending"
    ACTIVE = "active"
    ENDED = "ended"


class SilenceView(Value, frozen=True, kw_only=True):
    """Names of what its ids stand for; None where nothing is named, or it is gone."""

    silence: Silence
    state: SilenceState
    cluster_name: str | None = None
    host_name: str | None = None
    vm_name: str | None = None


class InhibitionView(Value, frozen=True, kw_only=True):
    inhibition: Inhibition


class RouteFate(Value, frozen=True, kw_only=True):
    """What became of an event at one route. ``state`` None: the route does not want it, or nobody knows any more, and ``code``
    says which. ``by``: the silence, the rule or the other event that is the reason."""

    subscription: str | None
    """None: it was removed since."""
    subscription_id: str
    receiver: str | None
    state: FateState | None
    code: str
    reason_text: str
    help: str = ""
    at: UtcMillis | None = None
    by: str | None = None
    by_text: str | None = None
    group_id: str | None = None
    delivery_id: DeliveryId | None = None
    delivery_state: DeliveryState | None = None


class EventFates(Value, frozen=True, kw_only=True):
    event: Event
    routes: tuple[RouteFate, ...]
