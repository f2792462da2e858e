"""Where a route's groups are found without looking at each: a power cut is thousands of events, and hundreds of groups a route."""

from collections.abc import Iterator

from virtha.model.ids import GroupId, IncidentId, SubscriptionId
from virtha.model.routing import Group

Place = tuple[SubscriptionId, str, str]
"""Route, what it is found by, its value."""


class GroupIndex:
    """By key, by the host that a group is about, and by incident; of each the newest first, as they came."""

    def __init__(self) -> None:
        self._order: dict[GroupId, int] = {}
        self._last = 0
        self._ids: dict[Place, dict[GroupId, None]] = {}

    def change(self, before: Group | None, after: Group | None) -> None:
        """A group came (no ``before``), changed or went."""
        if before is None and after is not None:
            self._last += 1
            self._order[after.id] = self._last
        old = _places(before) if before is not None else ()
        new = _places(after) if after is not None else ()
        if before is not None and old != new:
            self._leave(before.id, old)
        if after is not None and old != new:
            self._enter(after.id, new)
        if before is not None and after is None:
            del self._order[before.id]

    def by_key(self, route_id: SubscriptionId, key: str) -> Iterator[GroupId]:
        return reversed(self._ids.get((route_id, "key", key), {}))

    def by_incident(self, route_id: SubscriptionId, incident: IncidentId) -> Iterator[GroupId]:
        return reversed(self._ids.get((route_id, "incident", incident), {}))

    def by_host_or_key(
        self, route_id: SubscriptionId, host_id: str | None, key: str
    ) -> Iterator[GroupId]:
        """What is in both comes once."""
        if host_id is None:
            yield from self.by_key(route_id, key)
            return
        of_host = self._ids.get((route_id, "host", host_id), {})
        of_key = self._ids.get((route_id, "key", key), {})
        hosts, keys = reversed(of_host), reversed(of_key)
        host, called = next(hosts, None), next(keys, None)
        while host is not None or called is not None:
            if called is None or (host is not None and self._order[host] >= self._order[called]):
                assert host is not None, "one of the two is there"
                yield host
                called = next(keys, None) if host == called else called
                host = next(hosts, None)
            else:
                yield called
                called = next(keys, None)

    def _enter(self, group_id: GroupId, places: tuple[Place, ...]) -> None:
        order = self._order[group_id]
        for place in places:
            ids = self._ids.setdefault(place, {})
            is_newest = not ids or self._order[next(reversed(ids))] < order
            ids[group_id] = None
            if not is_newest:  # an older group learnt of the failure that it is about
                self._ids[place] = dict.fromkeys(sorted(ids, key=lambda one: self._order[one]))

    def _leave(self, group_id: GroupId, places: tuple[Place, ...]) -> None:
        for place in places:
            del self._ids[place][group_id]
            if not self._ids[place]:
                del self._ids[place]


def _places(group: Group) -> tuple[Place, ...]:
    route_id = group.subscription_id
    places = [(route_id, "key", group.key)]
    if group.host_id is not None:
        places.append((route_id, "host", group.host_id))
    if group.incident_id is not None:
        places.append((route_id, "incident", group.incident_id))
    return tuple(places)
