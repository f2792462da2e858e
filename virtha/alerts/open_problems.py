"""Which problems a route tells of, found by what they may have in common with an event: a rule of inhibition asks for each
event, and a rack that fails is thousands of events and of open problems.
"""

from collections.abc import Callable, Iterator

from virtha.alerts.inhibition import inhibits, shared
from virtha.alerts.match import names_code
from virtha.alerts.subject import awaits_end
from virtha.model.event import Event
from virtha.model.ids import GroupId, Revision, SubscriptionId
from virtha.model.routing import Inhibition, Member, MemberState, Same

Place = tuple[SubscriptionId, Same, str]
"""Route, and what problem and event would have in common."""


def is_open(member: Member) -> bool:
    """Whether its route tells of it, or is about to. Only a problem with an end goes on."""
    if not awaits_end(member.event):
        return False
    held = member.state is MemberState.HELD and not member.solved
    return held or (member.state is MemberState.OPEN and not member.undelivered)


class OpenProblems:
    def __init__(self) -> None:
        self._events: dict[Place, dict[str, dict[Revision, tuple[Event, GroupId | None]]]] = {}
        """By place, code and number; with the group where it is held, if it was not told yet."""
        self._gone: set[Place] = set()

    def put(self, route_id: SubscriptionId, event: Event, held_in: GroupId | None) -> None:
        """Again when it was told: None from then on."""
        for place in _places(route_id, event):
            by_code = self._events.setdefault(place, {})
            by_code.setdefault(event.code, {})[event.revision] = event, held_in

    def drop(self, route_id: SubscriptionId, event: Event) -> None:
        for place in _places(route_id, event):
            self._gone.add(place)
            by_code = self._events[place]
            del by_code[event.code][event.revision]
            if not by_code[event.code]:
                del by_code[event.code]
            if not by_code:
                del self._events[place]

    def inhibit(
        self,
        route_id: SubscriptionId,
        rule: Inhibition,
        target: Event,
        goes_first: Callable[[GroupId], bool],
    ) -> bool:
        """Whether any of this route's does. ``goes_first``: whether what is held in that group goes out before ``target``
        would, or with it."""
        common = shared(rule.same, target)
        if common is None:
            return False
        by_code = self._events.get((route_id, rule.same, common), {})
        return any(
            (held_in is None or goes_first(held_in)) and inhibits(rule, source, target)
            for code, sources in by_code.items()
            if names_code(rule.source, code)
            for source, held_in in sources.values()
        )

    def told(self) -> frozenset[tuple[SubscriptionId, Revision]]:
        """All that inhibit, but for what is only held."""
        return frozenset(
            (route_id, revision)
            for (route_id, same, _), by_code in self._events.items()
            if same is Same.ANYTHING
            for events in by_code.values()
            for revision, (_, held_in) in events.items()
            if held_in is None
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
