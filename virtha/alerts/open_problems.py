"""Which problems a route tells of, found by what they may have in common with an event: a rule of inhibition asks for each
event, and a rack that fails is thousands of events and of open problems.
"""

from collections.abc import Iterator

from virtha.alerts.inhibition import inhibits, shared
from virtha.alerts.match import names_code
from virtha.model.event import Event
from virtha.model.ids import Revision, SubscriptionId
from virtha.model.routing import Inhibition, Member, MemberState, Same

Place = tuple[SubscriptionId, Same, str]
"""Route, and what problem and event would have in common."""


def is_open(member: Member) -> bool:
    """Whether its route tells of it, or is about to."""
    held = member.state is MemberState.HELD and not member.solved
    return held or member.state is MemberState.OPEN


class OpenProblems:
    def __init__(self) -> None:
        self._events: dict[Place, dict[str, dict[Revision, Event]]] = {}
        """By place, code and number."""
        self._gone: set[Place] = set()

    def put(self, route_id: SubscriptionId, event: Event) -> None:
        for place in _places(route_id, event):
            self._events.setdefault(place, {}).setdefault(event.code, {})[event.revision] = event

    def drop(self, route_id: SubscriptionId, event: Event) -> None:
        for place in _places(route_id, event):
            self._gone.add(place)
            by_code = self._events[place]
            del by_code[event.code][event.revision]
            if not by_code[event.code]:
                del by_code[event.code]
            if not by_code:
                del self._events[place]

    def inhibit(self, route_id: SubscriptionId, rule: Inhibition, target: Event) -> bool:
        """Whether any of this route's does."""
        common = shared(rule.same, target)
        if common is None:
            return False
        by_code = self._events.get((route_id, rule.same, common), {})
        return any(
            inhibits(rule, source, target)
            for code, sources in by_code.items()
            if names_code(rule.source, code)
            for source in sources.values()
        )

    def take_gone(self) -> set[Place]:
        """Where one ended since it was last asked: what it inhibited is to be looked at."""
        gone, self._gone = self._gone, set()
        return gone


def place_of(route_id: SubscriptionId, rule: Inhibition, target: Event) -> Place | None:
    """Where the rule looks for what inhibits that event."""
    common = shared(rule.same, target)
    return None if common is None else (route_id, rule.same, common)


def _places(route_id: SubscriptionId, event: Event) -> Iterator[Place]:
    for same in Same:
        common = shared(same, event)
        if common is not None:
            yield route_id, same, common
