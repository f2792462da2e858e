"""What keeps an event from being told for a while: a silence, or a problem that its route tells of (ADR 21).

Nothing ever hinders what says that a VM may run twice, and nothing hinders an error for good: where no end of it will come, it is
told when the hindrance is over. No rule explains what says that the VM stays down.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from virtha.alerts.ended import may_end_for
from virtha.alerts.groups import INHIBITED, Groups
from virtha.alerts.match import RANK, fits_matcher, matches
from virtha.alerts.subject import awaits_end
from virtha.model.codes import MAY_RUN_TWICE, RECOVERY_ENDED, Severity
from virtha.model.event import Event
from virtha.model.ids import ClusterId, GroupId, SubscriptionId
from virtha.model.notification import Subscription
from virtha.model.routing import Inhibition, Silence
from virtha.model.value import Value

SILENCE_SET = "notify.silence.set"


class RoutingConfig(Value, frozen=True, kw_only=True):
    """``routes``: those that are live, in a fixed order. ``off``: switched off, perhaps for a minute: they tell nothing, and what
    they remember is kept until it is over. ``closing``: those whose receiver keeps a problem until it hears of the
    end, so that it hears of each, though the route doesn't remember the problem. ``unreadable``: routes that nobody can read
    now; what they remember is kept. ``seen``: of routes to users who see some clusters only, those."""

    routes: tuple[Subscription, ...] = ()
    off: tuple[Subscription, ...] = ()
    unreadable: frozenset[SubscriptionId] = frozenset()
    closing: frozenset[SubscriptionId] = frozenset()
    seen: Mapping[SubscriptionId, frozenset[ClusterId]] = {}
    silences: tuple[Silence, ...] = ()
    inhibitions: tuple[Inhibition, ...] = ()

    def sees(self, route: Subscription, event: Event) -> bool:
        """Whether whom the route tells may know of it at all. What belongs to no cluster is for who sees all."""
        seen = self.seen.get(route.id)
        return seen is None or event.cluster_id in seen

    def wants(self, route: Subscription, event: Event) -> bool:
        fits = matches(route, event) or self.closes(route, event)
        return fits and self.sees(route, event)

    def closes(self, route: Subscription, event: Event) -> bool:
        return route.solved and route.id in self.closing and may_end_for(route, event)


class Hindrance(NamedTuple):
    """Why an event is not told: its fate where it is told later, its fate where it is not, and the silence's or the rule's id."""

    parked: str
    spared: str
    by: str


def presses(event: Event) -> bool:
    """It is told in quiet hours too, and is never only counted."""
    return event.severity is Severity.ALERT or event.code in MAY_RUN_TWICE


def is_told_later(event: Event) -> bool:
    """What was silenced or inhibited: whether it is told in the end, if it was not over by then."""
    return awaits_end(event) or RANK[event.severity] >= RANK[Severity.ERROR]


def is_silenced(config: RoutingConfig, event: Event, now: int) -> Hindrance | None:
    # That somebody silences is told all the same: else one for all would hide itself.
    if event.code == SILENCE_SET:
        return None
    for silence in config.silences:
        if silence.begins <= now < silence.ends and fits_matcher(silence.matcher, event):
            return Hindrance("notify.why.silenced", "notify.why.silenced_for_good", silence.id)
    return None


def hindrance(
    config: RoutingConfig,
    groups: Groups,
    route: Subscription,
    event: Event,
    *,
    now: int,
    due_at: int,
) -> Hindrance | None:
    """``due_at``: when it goes out otherwise. What only waits to be told explains nothing that would be told before it; nor an
    alert, for by then it may be silenced itself."""
    if event.code in MAY_RUN_TWICE:
        return None
    silenced = is_silenced(config, event, now)
    if silenced is not None:
        return silenced
    if event.code in RECOVERY_ENDED:
        return None
    goes_first = _goes_by(groups, due_at) if event.severity is not Severity.ALERT else _never
    for rule in config.inhibitions:
        if fits_matcher(rule.target, event) and groups.open.inhibit(
            route.id, rule, event, goes_first
        ):
            return Hindrance(INHIBITED, "notify.why.inhibited_for_good", rule.id)
    return None


def _goes_by(groups: Groups, due_at: int) -> Callable[[GroupId], bool]:
    def goes_first(group_id: GroupId) -> bool:
        group = groups.get(group_id)
        return group is not None and group.due_at is not None and group.due_at <= due_at

    return goes_first


def _never(_: GroupId) -> bool:
    return False
