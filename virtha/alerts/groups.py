"""What a route remembers of its groups: which cause an event belongs to, where a problem is, and how much is kept.

Groups themselves are values; each change replaces one, and ``changed`` tells which have to be written.
"""

from collections.abc import Collection, Iterable, Iterator

from msgspec.structs import replace

from virtha.alerts.group_index import GroupIndex
from virtha.alerts.open_problems import OpenProblems, is_open
from virtha.alerts.subject import incident_of, object_of
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import GroupId, IncidentId, Revision, SubscriptionId
from virtha.model.notification import Subscription
from virtha.model.routing import Group, GroupBy, Member, MemberState

GROUPS_MAX = 500
"""Of one route, beside those that only hold what is parked; what comes beyond is told as a number, in one group."""
MEMBERS_MAX = 200
"""Of one group; what comes beyond is told as a number. As many again may be parked in it."""
PARKED_GROUPS_MAX = 500
"""Of one route, that hold nothing but what is parked: what is silenced takes no room from what is not."""
FURTHER_MAX = 100
"""Such groups beyond those, all of one cause: a number of what is silenced would have to be told at once."""
FORGOTTEN_MS = 86_400_000
"""How long nothing was told of a group that goes where a route has too many."""
NEVER = 1 << 62
OTHERS = "others"
INHIBITED = "notify.why.inhibited"
FIELD_CHARACTERS = 200

Place = tuple[SubscriptionId, str]
"""Route, object."""


class Groups:
    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups: dict[GroupId, Group] = {}
        self._of_route: dict[SubscriptionId, dict[GroupId, None]] = {}
        self._where: dict[Place, dict[GroupId, None]] = {}
        self._inhibited: dict[GroupId, None] = {}
        self._parked: dict[GroupId, int] = {}
        """How many of a group's members are."""
        self._only_parked: dict[SubscriptionId, set[GroupId]] = {}
        """Groups that hold nothing else."""
        self._found = GroupIndex()
        self._full_until: dict[SubscriptionId, int] = {}
        """Of a route that has too many groups: before then none of them may be forgotten."""
        self.open = OpenProblems()
        self._changed: dict[GroupId, Group | None] = {}
        self._new: set[GroupId] = set()
        for one in sorted(groups, key=_age):
            self.put(one)
        self.open.take_gone()
        self.take_changed()

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def take_changed(self) -> dict[GroupId, Group | None]:
        """Since it was last asked; None: the group is gone."""
        changed, self._changed = self._changed, {}
        self._new.clear()
        return changed

    def get(self, group_id: GroupId) -> Group | None:
        return self._groups.get(group_id)

    def of_route(self, route_id: SubscriptionId) -> list[Group]:
        """The oldest first."""
        return [self._groups[one] for one in self._of_route.get(route_id, ())]

    def of_incident(self, route_id: SubscriptionId, incident: IncidentId) -> list[Group]:
        """The newest first."""
        return [self._groups[one] for one in self._found.by_incident(route_id, incident)]

    def by_route(self, ids: Iterable[GroupId]) -> dict[SubscriptionId, list[Group]]:
        """Of these, those that are there; of each route the oldest first."""
        found: dict[SubscriptionId, list[Group]] = {}
        for one in sorted((self._groups[i] for i in ids if i in self._groups), key=_age):
            found.setdefault(one.subscription_id, []).append(one)
        return found

    def routes(self) -> list[SubscriptionId]:
        return list(self._of_route)

    def put(self, group: Group) -> None:
        before = self._groups.get(group.id)
        if before is None:
            self._new.add(group.id)
        self._groups[group.id] = group
        self._of_route.setdefault(group.subscription_id, {})[group.id] = None
        self._index(before, group)
        if group.subscription_id in self._full_until:
            soonest = min(self._full_until[group.subscription_id], forgotten_at(group))
            self._full_until[group.subscription_id] = soonest
        self._changed[group.id] = group

    def drop(self, group: Group) -> None:
        self._index(self._groups.pop(group.id), None)
        of_route = self._of_route[group.subscription_id]
        del of_route[group.id]
        if not of_route:
            del self._of_route[group.subscription_id]
            self._full_until.pop(group.subscription_id, None)
        if group.id in self._new:
            self._new.discard(group.id)
            del self._changed[group.id]  # nobody ever wrote it
        else:
            self._changed[group.id] = None

    def _index(self, before: Group | None, after: Group | None) -> None:
        """Members are values: what is the same in both stays where it is."""
        self._found.change(before, after)
        if before is not None and after is not None and _same_members(before, after):
            return
        one = before or after
        assert one is not None
        old = before.members if before is not None else ()
        new = after.members if after is not None else ()
        was, there = {id(member) for member in old}, {id(member) for member in new}
        route_id = one.subscription_id
        gone = [member for member in old if id(member) not in there]
        come = [member for member in new if id(member) not in was]
        objects = {object_of(member.subject) for member in new}
        for member in come:
            self._where.setdefault((route_id, object_of(member.subject)), {})[one.id] = None
            if is_open(member):
                held_in = one.id if member.state is MemberState.HELD else None
                self.open.put(route_id, member.event, held_in)
        still = {member.event.revision for member in come if is_open(member)}
        for member in gone:
            if is_open(member) and member.event.revision not in still:
                self.open.drop(route_id, member.event)
            place = (route_id, object_of(member.subject))
            if place[1] not in objects and place in self._where:
                self._where[place].pop(one.id, None)
                if not self._where[place]:
                    del self._where[place]
        parked = [member for member in new if member.state is MemberState.PARKED]
        if any(member.code == INHIBITED for member in parked):
            self._inhibited[one.id] = None
        else:
            self._inhibited.pop(one.id, None)
        self._parked[one.id] = len(parked)
        if after is None:
            del self._parked[one.id]
        only = self._only_parked.setdefault(route_id, set())
        if after is not None and parked and len(parked) == len(new) and not after.counted:
            only.add(one.id)
        else:
            only.discard(one.id)
        if not only:
            del self._only_parked[route_id]

    def having(
        self, route_id: SubscriptionId, code: str, subject: str
    ) -> Iterator[tuple[Group, Member]]:
        """Where that problem is."""
        for group, member in self.of_object(route_id, subject):
            if member.event.code == code and member.subject == subject:
                yield group, member

    def of_object(self, route_id: SubscriptionId, subject: str) -> Iterator[tuple[Group, Member]]:
        """All that is known of it and its parts."""
        whole = object_of(subject)
        found = [self._groups[one] for one in self._where.get((route_id, whole), ())]
        for group in sorted(found, key=_age):
            for member in group.members:
                if object_of(member.subject) == whole:
                    yield group, member

    def take_back(self, undelivered: Collection[tuple[SubscriptionId, Revision]]) -> None:
        """That they were told: their messages reached nobody."""
        for route_id in {route_id for route_id, _ in undelivered}:
            for group in self.of_route(route_id):
                for member in group.members:
                    lost = (route_id, member.event.revision) in undelivered
                    if lost and member.state is MemberState.OPEN and not member.undelivered:
                        group = with_changed(group, member, replace(member, undelivered=True))
                        self.put(group)

    def inhibited(self) -> list[Group]:
        """Those that have members which a rule keeps from being told."""
        return [self._groups[one] for one in self._inhibited]

    @property
    def changed_now(self) -> set[GroupId]:
        """That are there, and changed since it was last asked."""
        return {group_id for group_id, group in self._changed.items() if group is not None}

    def for_event(self, route: Subscription, event: Event, now: int) -> Group:
        """Its group, a new one where there is none yet (not put)."""
        found = self._of_cause(route, event)
        if found is not None:
            return found
        parked = len(self._only_parked.get(route.id, ()))
        busy = len(self._of_route.get(route.id, ())) - parked
        if busy >= GROUPS_MAX and not self._made_room(route, now):
            return self._others(route.id, now)
        caused = route.group_by is GroupBy.CAUSE
        return Group(
            id=GroupId(f"{route.id}:{int(event.revision)}"),
            subscription_id=route.id,
            key=key_of(route.group_by, event),
            host_id=event.host_id if caused and event.vm_id is None else None,
            began=now,
        )

    def _made_room(self, route: Subscription, now: int) -> bool:
        """Whether a group could be forgotten that only waits for ends, and has long done so: those are not told then."""
        if now < self._full_until.get(route.id, 0):
            return False
        there = self.of_route(route.id)
        for one in there:
            if forgotten_at(one) <= now:
                self.drop(one)
                return True
        self._full_until[route.id] = min(forgotten_at(one) for one in there)
        return False

    def _others(self, route_id: SubscriptionId, now: int) -> Group:
        others = GroupId(f"{route_id}:{OTHERS}")
        return self._groups.get(others) or Group(
            id=others, subscription_id=route_id, key=OTHERS, began=now
        )

    def parked_in(self, group: Group) -> int:
        """How many members are, as it was put last."""
        return self._parked.get(group.id, 0)

    def to_park_in(self, group: Group, event: Event, now: int) -> Group | None:
        """That group, or another one where there is room (not put); None: there are too many."""
        only_parked = self._only_parked.get(group.subscription_id, ())
        if group.id not in self._groups and len(only_parked) >= PARKED_GROUPS_MAX:
            group = self._others(group.subscription_id, now)
        return group if self._has_room(group) else self.further(group, event, now)

    def _has_room(self, group: Group) -> bool:
        """For one more that is parked."""
        parked = self._parked.get(group.id, 0)
        return parked < MEMBERS_MAX and len(group.members) < 2 * MEMBERS_MAX

    def further(self, group: Group, event: Event, now: int) -> Group | None:
        """Another of the same cause, with room (not put); None: there are too many."""
        for group_id in self._found.by_key(group.subscription_id, group.key):
            one = self._groups[group_id]
            if one.incident_id == group.incident_id and self._has_room(one):
                return one
        only_parked = self._only_parked.get(group.subscription_id, ())
        if len(only_parked) >= PARKED_GROUPS_MAX + FURTHER_MAX:
            return None
        further = f"{group.subscription_id}:{int(event.revision)}+"
        while GroupId(further) in self._groups:  # the same event began one before
            further += "+"
        return replace(
            group,
            id=GroupId(further),
            members=(),
            counted=0,
            counted_main=None,
            unfollowed=0,
            due_at=None,
            told_at=None,
            worst=Severity.INFO,
            began=now,
        )

    def beside(self, group: Group) -> list[Group]:
        """The others of the same cause, where one had no room for all."""
        found = self._found.by_key(group.subscription_id, group.key)
        return [self._groups[one] for one in found if one != group.id]

    def _of_cause(self, route: Subscription, event: Event) -> Group | None:
        """The newest that it belongs to: by its incident, else by the host that the group is about."""
        if route.group_by is GroupBy.NONE:
            return None
        incident, key = incident_of(event), key_of(route.group_by, event)
        if route.group_by is not GroupBy.CAUSE:
            newest = next(self._found.by_key(route.id, key), None)
            return None if newest is None else self._groups[newest]
        if incident is not None:
            newest = next(self._found.by_incident(route.id, incident), None)
            if newest is not None:
                return self._groups[newest]
        for group_id in self._found.by_host_or_key(route.id, event.host_id, key):
            one = self._groups[group_id]
            same_host = one.host_id is not None and one.host_id == event.host_id
            # Another failure of the same host is another cause; and a VM's event of an incident names the host where it
            # was tried, not the one that failed.
            if incident is not None and (event.vm_id is not None or one.incident_id is not None):
                continue
            if same_host or (one.host_id is None and one.key == key):
                return one
        return None


def forgotten_at(group: Group) -> int:
    """When it may go where its route has too many: if it only waits for ends, a day after it told of them; else ``NEVER``."""
    waits = any(one.state in (MemberState.HELD, MemberState.PARKED) for one in group.members)
    if waits or group.counted or group.incident_open or group.told_at is None:
        return NEVER
    return group.told_at + FORGOTTEN_MS


def _same_members(before: Group, after: Group) -> bool:
    """As where an event was only counted."""
    return before.members is after.members and bool(before.counted) == bool(after.counted)


def _age(group: Group) -> tuple[int, int, str]:
    """The oldest is the least; of one moment, as their first events came: ids end in their numbers."""
    return group.began, len(group.id), group.id


def key_of(group_by: GroupBy, event: Event) -> str:
    """What a new group of this event is called."""
    if group_by is GroupBy.NONE:
        return f"event:{int(event.revision)}"
    incident = incident_of(event)
    if group_by is GroupBy.CAUSE and incident is not None:
        return f"incident:{incident}"
    if group_by is not GroupBy.CLUSTER:
        if event.host_id is not None:
            return f"host:{event.host_id}"
        if group_by is GroupBy.CAUSE and event.vm_id is not None:
            return f"vm:{event.vm_id}"
    return f"cluster:{event.cluster_id}" if event.cluster_id is not None else "installation"


def slim(event: Event) -> Event:
    """What is kept of it: all that a matcher may ask for."""
    fields = {
        name: value[:FIELD_CHARACTERS] if isinstance(value, str) else value
        for name, value in event.fields.items()
    }
    return replace(event, message="", fields=fields)


def beside_parked(group: Group) -> int:
    """How many members it has that are not."""
    states = [one.state for one in group.members]
    return len(states) - states.count(MemberState.PARKED)


def is_full(group: Group) -> bool:
    """Whether it names no more."""
    return len(group.members) >= MEMBERS_MAX and beside_parked(group) >= MEMBERS_MAX


def with_room(group: Group) -> Group:
    """Where it is full, what was told longest ago is forgotten: the end of that is not paired with it any more."""
    if not is_full(group):
        return group
    told = [one for one in group.members if one.state in (MemberState.RECENT, MemberState.OPEN)]
    if not told:
        return group
    # What was told a short while ago before what goes on; of each the oldest.
    first = min(
        told, key=lambda one: (one.state is MemberState.OPEN, one.since, one.event.revision)
    )
    return replace(
        group,
        members=tuple(one for one in group.members if one is not first),
        unfollowed=group.unfollowed + (first.state is MemberState.OPEN),
    )


def without(group: Group, member: Member) -> Group:
    revision = member.event.revision
    return replace(
        group, members=tuple(one for one in group.members if one.event.revision != revision)
    )


def with_changed(group: Group, member: Member, after: Member) -> Group:
    revision = member.event.revision
    return replace(
        group,
        members=tuple(after if one.event.revision == revision else one for one in group.members),
    )
