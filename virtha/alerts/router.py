"""From events to messages: the pure core of routes (ADR 21).

``step`` takes what happened, and answers what is to be told, what became of each event, which groups changed and when to
look again. What it holds is a copy of the groups in the database; where its decision can't be written it is thrown away.

Each matched event is told, waits, or has a coded reason why not: `_take` gives it its first fate, `_look` any later one.
"""

from collections.abc import Collection, Iterable, Sequence

from msgspec.structs import replace

from virtha.alerts.decision import Decision, Tell
from virtha.alerts.group_message import calmed, goes_on, is_well, main_event, note_of, worst_of
from virtha.alerts.groups import (
    INHIBITED,
    OTHERS,
    Groups,
    is_full,
    slim,
    with_changed,
    with_room,
    without,
)
from virtha.alerts.hindrance import (
    SILENCE_SET,
    Hindrance,
    RoutingConfig,
    hindrance,
    is_silenced,
    is_told_later,
    presses,
)
from virtha.alerts.match import RANK, matches
from virtha.alerts.open_problems import place_of
from virtha.alerts.quiet import Offset, quiet_until
from virtha.alerts.subject import (
    INCIDENT_OVER,
    awaits_end,
    ended_with,
    ends_at,
    incident_of,
    subject_of,
)
from virtha.alerts.waits import (
    INCIDENT_PATIENCE_MS,
    TWICE_WAIT_MS,
    earliest,
    is_due,
    is_over,
    may_go,
    release_wait_ms,
    repeat_moment,
)
from virtha.model.codes import MAY_RUN_TWICE, REPLACES, SOLVES
from virtha.model.event import Event
from virtha.model.ids import GroupId, InhibitionId, Revision, SubscriptionId
from virtha.model.notification import Subscription
from virtha.model.routing import Fate, FateState, Group, GroupBy, Member, MemberState
from virtha.model.time import UtcMillis

Lost = Collection[tuple[SubscriptionId, Revision]]
PARKED_LOOKS_MAX = 2_000
"""Of what is parked, at once; what is beyond is looked at by the next step."""
HELD, PARKED, OPEN, RECENT = (
    MemberState.HELD,
    MemberState.PARKED,
    MemberState.OPEN,
    MemberState.RECENT,
)


class Router:
    def __init__(self, groups: Iterable[Group], offset: Offset) -> None:
        self._groups = Groups(groups)
        self._offset = offset
        self._now = 0
        self._config = RoutingConfig()
        self._begun = False
        """Whether all groups were looked at."""
        self._moments: dict[GroupId, int] = {}
        self._postponed: set[GroupId] = set()
        """Those that the last step had no time for."""
        self._tells: list[Tell] = []
        self._fates: dict[tuple[Revision, SubscriptionId], Fate] = {}
        self._uncounted: list[GroupId] = []

    @property
    def size(self) -> int:
        """How many groups there are."""
        return len(self._groups)

    @property
    def waiting(self) -> int:
        """How many of them have something that is to be told."""
        return sum(one.due_at is not None for one in self._groups)

    @property
    def told(self) -> frozenset[tuple[SubscriptionId, Revision]]:
        """Problems that go on, by route."""
        return self._groups.open.told()

    def concerned(self, config: RoutingConfig, event: Event) -> bool:
        """Whether a step with this event may do anything."""
        if any(config.wants(route, event) for route in config.routes):
            return True
        return any(any(self._ended_by(one, event)) for one in (*config.routes, *config.off))

    def unsettled(self, config: RoutingConfig) -> bool:
        """Whether a step without events may do something because something was configured."""
        return self._is_new(config) and len(self._groups) > 0

    def _is_new(self, config: RoutingConfig) -> bool:
        return not self._begun or config != self._config

    def step(
        self, now: int, config: RoutingConfig, events: Sequence[Event], undelivered: Lost = ()
    ) -> Decision:
        """``now``: the server's wall clock. Events in their order, none twice. ``undelivered``: told in vain."""
        every = self._is_new(config) or now < self._now
        self._now, self._config, self._begun = now, config, True
        self._tells, self._fates, self._uncounted = [], {}, []
        there = {route.id for route in (*config.routes, *config.off)}
        for route_id in self._groups.routes():
            if route_id not in there and route_id not in config.unreadable:
                self._forget_route(route_id)
        self._groups.take_back(undelivered)
        for event in events:
            for route in config.routes:
                self._take(route, event)
            for route in config.off:
                self._end(route, event, list(self._ended_by(route, event)))
        self._look_at(every=every)
        changed = self._groups.take_changed()
        return Decision(
            # Whatever way they go, in the order of events.
            tells=tuple(sorted(self._tells, key=lambda one: one.event_revision)),
            fates=tuple(self._fates.values()),
            groups=changed,
            uncounted=tuple(self._uncounted),
            wake_at=min(self._moments.values(), default=None),
        )

    def _forget_route(self, route_id: SubscriptionId) -> None:
        for group in self._groups.of_route(route_id):
            for member in group.members:
                if member.state in (HELD, PARKED):
                    self._fate(group, member.event, FateState.SPARED, "notify.why.dropped")
            if group.counted:
                self._uncounted.append(group.id)
            self._groups.drop(group)
            self._moments.pop(group.id, None)

    # An event comes

    def _take(self, route: Subscription, event: Event) -> None:
        ended = list(self._ended_by(route, event))
        mine = self._end(route, event, ended)
        ends = mine is not None or self._config.closes(route, event)
        if not (ends or matches(route, event)) or not self._config.sees(route, event):
            return
        group = mine or self._groups.for_event(route, event, self._now)
        group = self._joined(route, group, event)
        member = Member(
            event=slim(event),
            subject=subject_of(event),
            state=HELD,
            since=self._now,
            ends=ends and event.code not in REPLACES,
        )
        if self._same_again(route, member):
            return
        due_at = earliest(group.due_at, self._due(route, group, member))
        hindered = self._hindrance(route, event, due_at)
        if hindered is not None:
            self._hinder(group, replace(member, due_at=due_at), hindered)
        else:
            self._hold(route, group, member)

    def _ended_by(self, route: Subscription, event: Event) -> Iterable[tuple[Group, Member | None]]:
        """What this route knows of that is over with this event; no member: the group's incident."""
        if event.code in SOLVES or event.code in REPLACES:
            for group, member in self._groups.of_object(route.id, subject_of(event)):
                if ends_at(event, member.event.code, member.subject):
                    yield group, member
        whole = ended_with(event)
        if whole is not None:
            for group, member in self._groups.of_object(route.id, whole):
                if member.state is not RECENT:
                    yield group, member
        incident = incident_of(event) if event.code == INCIDENT_OVER else None
        if incident is not None:
            for group in self._groups.of_incident(route.id, incident):
                if group.incident_open:
                    yield group, None

    def _end(
        self, route: Subscription, event: Event, ended: list[tuple[Group, Member | None]]
    ) -> Group | None:
        """Ends them. Returns the group in which it is told, where it is told because of what it ends."""
        told: Group | None = None
        for found, member in ended:
            group = self._groups.get(found.id)
            assert group is not None, "no group goes while an event is taken"
            if member is None:
                group = replace(group, incident_open=False)
                worth = group.told_at is not None or any(one.state is HELD for one in group.members)
            elif member.state is PARKED or member.code == INHIBITED:
                # What was parked as the end of something told is told by what is over with it, too.
                group, worth = without(group, member), member.ends
                by = str(int(event.revision))
                self._fate(group, member.event, FateState.SPARED, "notify.why.solved_untold", by)
            elif member.state is OPEN:
                group, worth = without(group, member), True
            elif member.state is HELD:
                group, worth = with_changed(group, member, replace(member, solved=True)), True
            else:
                group, worth = without(group, member), False
            self._groups.put(group)
            if worth and route.solved:
                told = group
        return told and self._groups.get(told.id)

    def _joined(self, route: Subscription, group: Group, event: Event) -> Group:
        """The group, which learns of the failure that it is about."""
        incident = incident_of(event)
        if incident is None or group.incident_id is not None or group.key == OTHERS:
            return group
        if route.group_by is not GroupBy.CAUSE:
            return group
        return replace(
            group,
            key=f"incident:{incident}",
            incident_id=incident,
            incident_open=event.code != INCIDENT_OVER,
            host_id=event.host_id if event.vm_id is None else group.host_id,
        )

    def _same_again(self, route: Subscription, member: Member) -> bool:
        """Told, or about to be, so short a while ago that it is not told again. What has no end is the same only if it says the
        same: a second silence is another."""
        event = member.event
        if not route.same_again_ms or member.ends or event.code == SILENCE_SET:
            return False
        for group, known in self._groups.having(route.id, event.code, member.subject):
            fresh = 0 <= self._now - known.since < route.same_again_ms
            if known.solved or known.state is PARKED or not (fresh or known.state is HELD):
                continue
            if not awaits_end(event) and event.fields != known.event.fields:
                continue
            self._groups.put(with_changed(group, known, replace(known, again=known.again + 1)))
            by = str(int(known.event.revision))
            self._fate(group, event, FateState.SPARED, "notify.why.same_again", by)
            return True
        return False

    def _hindrance(self, route: Subscription, event: Event, due_at: int) -> Hindrance | None:
        return hindrance(self._config, self._groups, route, event, now=self._now, due_at=due_at)

    def _hinder(self, group: Group, member: Member, why: Hindrance) -> None:
        """Parked where it has an end to wait for, is one, or is grave; else it is over."""
        event = member.event
        if not (is_told_later(event) or member.ends):
            self._groups.put(group)
            self._fate(group, event, FateState.SPARED, why.spared, why.by)
            return
        if group.members or self._groups.get(group.id) is not None:
            self._groups.put(group)
        room = self._groups.to_park_in(group, event, self._now)
        if room is None:
            self._count(group, member)  # better told than forgotten
            return
        parked = replace(member, state=PARKED, since=self._now, code=why.parked, by=why.by)
        self._groups.put(replace(room, members=(*room.members, parked)))
        self._fate(room, event, FateState.PARKED, why.parked, why.by)

    def _hold(self, route: Subscription, group: Group, member: Member) -> None:
        if route.group_by is GroupBy.NONE and group.key == OTHERS and not self._quiet(route):
            self._tell_alone(route, group, member.event)
            return
        group = with_room(group)
        # Alerts are let in all the same: even in quiet hours they go out with this very step.
        if is_full(group) and not presses(member.event):
            self._count(group, member)
            return
        group = replace(group, members=(*group.members, member))
        self._fate(group, member.event, FateState.WAITS, "notify.why.waits")
        due = self._due(route, group, member)
        self._groups.put(replace(group, due_at=earliest(group.due_at, due)))

    def _tell_alone(self, route: Subscription, group: Group, event: Event) -> None:
        """At once, though there is no room to remember it: its end is not paired with it."""
        fate = self._made(group, event, FateState.TOLD, "notify.why.told")
        self._tells.append(
            Tell(route=route, event_revision=event.revision, note=None, fates=(fate,))
        )

    def _count(self, group: Group, member: Member) -> None:
        """Told as one of a number, as soon as anything may be told."""
        main = group.counted_main
        if main is None or RANK[member.event.severity] > RANK[main.severity]:
            main = member.event
        due = earliest(group.due_at, self._now)
        unfollowed = group.unfollowed + goes_on(member)
        group = replace(group, counted=group.counted + 1, counted_main=main, unfollowed=unfollowed)
        self._groups.put(replace(group, due_at=due))
        self._fate(group, member.event, FateState.WAITS, "notify.why.counted")

    def _due(self, route: Subscription, group: Group, member: Member) -> int:
        """When the group's next message goes, as far as this event has a say in it."""
        if route.group_by is GroupBy.NONE or is_full(group):
            return self._now
        if member.event.code in MAY_RUN_TWICE:
            return self._now + min(route.group_wait_ms, TWICE_WAIT_MS)
        soon = self._now + route.group_wait_ms
        worse = RANK[member.event.severity] > RANK[group.worst]
        if group.told_at is None or worse or presses(member.event):
            return soon
        if member.ends and is_well(group):
            return soon
        return max(soon, min(group.told_at, self._now) + route.group_interval_ms)

    # Time passes

    def _look_at(self, *, every: bool) -> None:
        """Groups that changed, whose time has come, or of which something is let go; or all."""
        some = {one for one, moment in self._moments.items() if moment <= self._now}
        some |= self._groups.changed_now | self._let_go()
        chosen = None if every else self._groups.by_route(some)
        for one in [*self._moments] if every else some:
            self._moments.pop(one, None)
        looks = [
            (route, group)
            for route in self._config.routes
            for group in (
                self._groups.of_route(route.id) if chosen is None else chosen.get(route.id, ())
            )
        ]
        looks.sort(key=lambda one: one[1].id not in self._postponed)  # those first
        self._postponed, left = set(), PARKED_LOOKS_MAX
        for route, group in looks:
            parked = self._groups.parked_in(group)
            moment: int | None = self._now
            # The end of a silence of thousands of VMs: the server has other things to do in between.
            if parked and left < 0:
                self._postponed.add(group.id)
            else:
                # As it is by now: what another could not hold may have come into it.
                moment = self._look(route, self._groups.get(group.id) or group)
            left -= parked
            if moment is not None:
                self._moments[group.id] = moment
        # A look may let go what was looked at before it.
        self._moments.update(dict.fromkeys(self._let_go(), self._now))

    def _let_go(self) -> set[GroupId]:
        """Groups with a member that is inhibited, where a problem that may have been why is over."""
        gone = self._groups.open.take_gone()
        if not gone:
            return set()
        rules = {rule.id: rule for rule in self._config.inhibitions}
        return {
            group.id
            for group in self._groups.inhibited()
            for one in group.members
            if one.state is PARKED
            and (rule := rules.get(InhibitionId(one.by or ""))) is not None
            and place_of(group.subscription_id, rule, one.event) in gone
        }

    def _look(self, route: Subscription, group: Group) -> int | None:
        """Tells what is due. Returns when it is to be looked at again."""
        group = self._unpark(route, group)
        if group.due_at is not None:
            quiet = self._quiet(route)
            if is_due(route, group, self._now, quiet):
                group = self._tell_due(route, group, quiet)
        group = self._repeat(route, group)
        group = self._tidied(route, group)
        if is_over(route, group, self._now):
            self._groups.drop(group)
            return None
        return self._next_moment(route, group)

    def _unpark(self, route: Subscription, group: Group) -> Group:
        """What is no longer hindered is told: at once where its silence ended, else after a while."""
        if not self._groups.parked_in(group):
            return group
        due_at = group.due_at
        members: list[Member] = []
        for member in group.members:
            after = member if member.state is not PARKED else self._let_go_or_not(route, member)
            members.append(after)
            if after is member:
                continue
            state = FateState.WAITS if after.state is HELD else FateState.PARKED
            code = after.code or "" if after.state is PARKED else "notify.why.waits"
            self._fate(group, after.event, state, code, after.by)
            if after.state is HELD:
                due_at = earliest(due_at, self._now + release_wait_ms(route, member))
        if any(one is not other for one, other in zip(members, group.members, strict=True)):
            group = replace(group, members=tuple(members), due_at=due_at)
            self._groups.put(group)
        return group

    def _let_go_or_not(self, route: Subscription, member: Member) -> Member:
        """Of one that is parked. The same where nothing changed."""
        due_at = member.due_at
        if due_at is None:
            due_at = self._now + release_wait_ms(route, member)
        hindered = self._hindrance(route, member.event, due_at)
        if hindered is None:
            # Why it waited is kept where it may be over in a moment: then it is not told.
            code = INHIBITED if member.code == INHIBITED else None
            return replace(member, state=HELD, since=self._now, code=code, by=None, due_at=None)
        if hindered.by != member.by:  # the one ended, and there is another
            return replace(member, code=hindered.parked, by=hindered.by)
        return member

    def _tell_due(self, route: Subscription, group: Group, quiet: int | None) -> Group:
        group = replace(group, due_at=self._now)  # what of it explains the rest goes now, too
        going = [one for one in group.members if may_go(one, quiet)]
        for member in going:
            hindered = self._hindrance(route, member.event, self._now)
            if hindered is not None:
                group = without(group, member)
                self._hinder(group, replace(member, due_at=self._now), hindered)
                group = self._groups.get(group.id) or group
        group = replace(group, due_at=None)
        held = [one for one in group.members if one.state is HELD]
        now = [one for one in held if may_go(one, quiet)]
        counted = group.counted if quiet is None else 0
        if len(now) < len(held) or counted < group.counted:
            group = replace(group, due_at=quiet)
            for member in held:
                if member not in now:
                    self._fate(group, member.event, FateState.WAITS, "notify.why.quiet_hours")
        self._groups.put(group)
        if now or counted:
            group = self._tell(route, group, now, counted)
        return group

    def _repeat(self, route: Subscription, group: Group) -> Group:
        if not self._repeat_at(route, group, self._now):
            return group
        going_on = [one for one in group.members if one.state is OPEN]
        quiet = self._quiet(route)
        told = [
            one
            for one in going_on
            if (quiet is None or presses(one.event))
            and is_silenced(self._config, one.event, self._now) is None
            and self._hindrance(route, one.event, self._now) is None
        ]
        if told:
            return self._tell(route, group, told, 0, repeat=True)
        # Nothing of it may be told now: it is its turn again when the quiet hours are over, or after another while.
        assert route.repeat_ms is not None
        later = self._now if quiet is None else quiet - route.repeat_ms
        group = replace(group, told_at=later)
        self._groups.put(group)
        return group

    def _quiet(self, route: Subscription) -> int | None:
        """When the quiet hours end that it has now."""
        return quiet_until(route.quiet, self._now, self._offset)

    def _repeat_at(self, route: Subscription, group: Group, now: int) -> bool:
        """Whether it is time."""
        moment = repeat_moment(route, group)
        return moment is not None and (moment <= now or moment > now + 2 * (route.repeat_ms or 0))

    def _tell(
        self,
        route: Subscription,
        group: Group,
        members: list[Member],
        counted: int,
        *,
        repeat: bool = False,
    ) -> Group:
        """``members`` go out in one message; they are open, or known for a while, from then on."""
        told = {one.event.revision for one in members}
        keep = self._keeps(route)
        after = replace(
            group,
            members=tuple(
                changed
                for one in group.members
                if (
                    changed := self._after_telling(route, one, keep=keep)
                    if one.event.revision in told
                    else one
                )
            ),
            counted=group.counted - counted,
            told_at=self._now,
            counted_main=None if counted else group.counted_main,
            worst=worst_of(members, group, counted),
        )
        main, further = main_event(members, group, counted), self._groups.beside(group)
        note = note_of(
            route, group, after, members, counted, main=main, repeat=repeat, further=further
        )
        after = calmed(after, note)
        self._groups.put(after)
        alone = route.group_by is GroupBy.NONE and not repeat and len(members) == 1 and not counted
        # With what was told the fate that it had in this step goes.
        for one in members:
            self._fates.pop((one.event.revision, route.id), None)
        fates = (
            []
            if repeat
            else [self._made(after, m.event, FateState.TOLD, "notify.why.told") for m in members]
        )
        self._tells.append(
            Tell(
                route=route,
                event_revision=main.revision,
                note=None if alone else note,
                every=() if alone else tuple(one.event.revision for one in members),
                fates=tuple(fates),
                counted_of=group.id if counted else None,
            )
        )
        return after

    def _after_telling(self, route: Subscription, member: Member, *, keep: bool) -> Member | None:
        if keep and awaits_end(member.event) and not member.solved:
            return replace(member, state=OPEN, since=self._now, code=None, undelivered=False)
        if route.same_again_ms and not member.ends and not member.solved:
            return replace(member, state=RECENT, since=self._now, code=None)
        return None

    def _keeps(self, route: Subscription) -> bool:
        """Whether it matters to this route which problems go on."""
        return (
            route.solved
            or route.repeat_ms is not None
            or route.group_by is not GroupBy.NONE
            or bool(self._config.inhibitions)
        )

    def _tidied(self, route: Subscription, group: Group) -> Group:
        """What was kept to know it again, and is too old for that."""
        stale = [
            one
            for one in group.members
            if one.state is RECENT and not 0 <= self._now - one.since < route.same_again_ms
        ]
        if not stale:
            return group
        group = replace(group, members=tuple(one for one in group.members if one not in stale))
        self._groups.put(group)
        return group

    def _next_moment(self, route: Subscription, group: Group) -> int | None:
        moments = [] if group.due_at is None else [group.due_at]
        ends: dict[str, int] = {one.id: one.ends for one in self._config.silences}
        for member in group.members:
            if member.state is PARKED and member.by in ends:
                moments.append(ends[member.by])
            elif member.state is PARKED and (member.due_at or 0) > self._now:
                moments.append(
                    member.due_at or 0
                )  # by then what inhibits it was told, or it is not
            elif member.state is RECENT:
                moments.append(UtcMillis(member.since + route.same_again_ms))
        repeat = repeat_moment(route, group)
        if repeat is not None:
            moments.append(repeat)
        if group.members or group.counted:
            pass  # it is not forgotten
        elif group.incident_open or group.unfollowed:
            moments.append(max(group.began, group.told_at or 0) + INCIDENT_PATIENCE_MS)
        elif group.told_at is not None:
            moments.append(group.told_at + route.group_interval_ms)
        return min(moments, default=None)

    # Fates

    def _fate(
        self, group: Group, event: Event, state: FateState, code: str, by: str | None = None
    ) -> None:
        made = self._made(group, event, state, code, by)
        self._fates[event.revision, group.subscription_id] = made

    def _made(
        self, group: Group, event: Event, state: FateState, code: str, by: str | None = None
    ) -> Fate:
        return Fate(
            event_revision=event.revision,
            subscription_id=group.subscription_id,
            state=state,
            code=code,
            at=UtcMillis(self._now),
            by=by,
            group_id=group.id,
        )
