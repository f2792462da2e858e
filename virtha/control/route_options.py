"""How a route tells what it matches: grouping, repeats, quiet hours; checked beyond their types."""

from typing import Any

from msgspec import UNSET

from virtha.alerts.match import check_labels
from virtha.alerts.quiet import check_quiet
from virtha.control.event_routing import is_zone
from virtha.control.requests import SubscriptionChange, SubscriptionCreate
from virtha.model.errors import InvalidInput
from virtha.model.notification import Subscription
from virtha.model.routing import GroupBy
from virtha.model.time import format_duration_ms

_PLAIN = ("labels", "group_by", "repeat_ms", "same_again_ms", "quiet")
_WAITS = ("group_wait_ms", "group_interval_ms")
_DAY_MS = 86_400_000
_LIMITS_MS = {
    "group_wait_ms": (0, 3_600_000),
    "group_interval_ms": (10_000, _DAY_MS),
    "repeat_ms": (60_000, 30 * _DAY_MS),
    "same_again_ms": (0, _DAY_MS),
}


def how_asked(request: SubscriptionCreate) -> dict[str, Any]:
    """A new route's options by the record's names. Raises InvalidInput for waits of groups that it has not."""
    grouped = request.group_by is not GroupBy.NONE
    asked: dict[str, Any] = {name: getattr(request, name) for name in _PLAIN}
    for name in _WAITS:
        value = getattr(request, name)
        if value is None:
            continue
        if not grouped:
            raise InvalidInput(
                "is for events that are grouped",
                field=name,
                fix="give group_by, for example cause (--group cause)",
            )
        asked[name] = value
    asked["solved"] = grouped if request.solved is None else request.solved
    return asked


def how_changed(request: SubscriptionChange) -> dict[str, Any]:
    found = {name: getattr(request, name) for name in (*_PLAIN, *_WAITS, "solved")}
    return {name: value for name, value in found.items() if value is not UNSET}


def checked_route(route: Subscription) -> Subscription:
    """Raises InvalidInput naming the field."""
    check_labels(route.labels, route.codes, field="labels")
    for name, (least, most) in _LIMITS_MS.items():
        value = getattr(route, name)
        if value is not None and not least <= value <= most:
            raise InvalidInput(
                f"{value} ms is out of range",
                field=name,
                allowed=(f"{format_duration_ms(least)} to {format_duration_ms(most)}",),
            )
    check_quiet(route.quiet, is_zone)
    return route
