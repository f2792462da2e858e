"""What is told when the router itself fails: each event that a route wants, by itself, at once. Better too much than nothing.

The ends of problems are told as well, and end them in what the routes remember: else those would be repeated for ever, and inhibit.
"""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from virtha.alerts.decision import Decision, Tell
from virtha.alerts.ended import may_end_for
from virtha.alerts.hindrance import RoutingConfig
from virtha.alerts.match import matches
from virtha.alerts.subject import INCIDENT_OVER, ended_with, ends_at, incident_of, object_of
from virtha.model.event import Event
from virtha.model.ids import GroupId, Revision, SubscriptionId
from virtha.model.notification import Subscription
from virtha.model.routing import Fate, FateState, Group, Member, MemberState
from virtha.model.time import UtcMillis

SOLVED = "notify.why.solved_untold"
RETRY_MS = 60_000
"""When the router is asked again though nothing happens: groups may wait."""
STUCK_MS = 600_000
"""How long after its time a group is given up, where the router failed again and again meanwhile: it may be why."""


def plainly(
    now: int, config: RoutingConfig, events: Sequence[Event], groups: Iterable[Group] = ()
) -> Decision:
    """No silence, no rule and no quiet hours are heeded. Of ``groups`` (as they were written) only those change of which
    something is over."""
    known = {one.id: one for one in groups}
    before = dict(known)
    tells: list[Tell] = []
    fates: list[Fate] = []
    for event in events:
        concerned: set[SubscriptionId] = set()
        for group in known.values():
            after, ended = _ended(group, event)
            if not ended and after.incident_open == group.incident_open:
                continue
            known[group.id] = after
            concerned.add(group.subscription_id)
            fates += [
                _fate(now, group.subscription_id, one.event.revision, FateState.SPARED, SOLVED)
                for one in ended
                if one.state is MemberState.PARKED
            ]
        tells += [
            _tell(now, route, event.revision)
            for route in config.routes
            if config.sees(route, event)
            and (
                matches(route, event)
                or (route.solved and (route.id in concerned or may_end_for(route, event)))
            )
        ]
    return Decision(
        tells=tuple(tells),
        fates=tuple(fates),
        groups={one.id: one for one in known.values() if one is not before[one.id]},
        wake_at=now + RETRY_MS,
    )


def _ended(group: Group, event: Event) -> tuple[Group, list[Member]]:
    """The group after it, and what is over. What is still to be told stays, to be told with its end behind it."""
    ended = [one for one in group.members if _is_end_of(event, one)]
    over = {one.event.revision for one in ended}
    members = tuple(
        replace(one, solved=True) if one.event.revision in over else one
        for one in group.members
        if one.event.revision not in over or one.state is MemberState.HELD
    )
    closed = event.code == INCIDENT_OVER and incident_of(event) == group.incident_id
    still = group.incident_open and not closed
    return replace(group, members=members, incident_open=still), ended


def _is_end_of(event: Event, member: Member) -> bool:
    whole = ended_with(event)
    if whole is not None and whole == object_of(member.subject):
        return True
    return ends_at(event, member.event.code, member.subject)


def given_up(
    now: int, config: RoutingConfig, groups: Iterable[GroupId], untold: Sequence[Fate]
) -> Decision:
    """Groups that nobody can read, or that were stuck, go; what waits in them (``untold``) is told one by one."""
    routes = {one.id: one for one in config.routes}
    return Decision(
        tells=tuple(
            _tell(now, routes[one.subscription_id], one.event_revision)
            for one in untold
            if one.subscription_id in routes
        ),
        fates=tuple(
            replace(one, state=FateState.SPARED, code="notify.why.dropped", at=UtcMillis(now))
            for one in untold
            if one.subscription_id not in routes
        ),
        groups=dict.fromkeys(groups),
    )


def _tell(now: int, route: Subscription, revision: Revision) -> Tell:
    fate = _fate(now, route.id, revision, FateState.TOLD, "notify.why.told_plainly")
    return Tell(route=route, event_revision=revision, note=None, fates=(fate,))


def _fate(
    now: int, route_id: SubscriptionId, revision: Revision, state: FateState, code: str
) -> Fate:
    return Fate(
        event_revision=revision, subscription_id=route_id, state=state, code=code, at=UtcMillis(now)
    )
