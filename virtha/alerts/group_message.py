"""What one message of a group is about: its head, its kind, why it goes out now."""

from collections.abc import Sequence

from msgspec.structs import replace

from virtha.alerts.match import RANK
from virtha.alerts.subject import INCIDENT_OVER, awaits_end, incident_of, solved_by
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import Revision
from virtha.model.notification import Subscription
from virtha.model.routing import Group, GroupBy, GroupNote, Member, MemberState

WELL = "notify.told.well"
REPEAT = "notify.told.repeat"
LISTED_MAX = 100
"""Events that one message names; more are counted."""


def note_of(
    route: Subscription,
    before: Group,
    after: Group,
    members: list[Member],
    counted: int,
    *,
    main: Event,
    repeat: bool,
    further: Sequence[Group] = (),
) -> GroupNote:
    """``before``, ``after``: the group, telling it. ``main``: what heads the message; perhaps one of those that were only
    counted. ``further``: other groups of the same cause; nobody who reads the message knows of groups."""
    listed = _listed(members, main)
    kind = _kind(members, counted)
    every = (after, *further)
    well = all(is_well(one) for one in every)
    return GroupNote(
        group_id=before.id,
        key=before.key,
        kind=kind,
        reason=_told_why(route, before, after, kind, repeat=repeat, well=well),
        revisions=listed,
        again={
            str(int(one.event.revision)): one.again
            for one in members
            if one.again and one.event.revision in listed
        },
        counted=counted + len(members) - len(listed),
        open=sum(one.state is MemberState.OPEN for group in every for one in group.members),
        unfollowed=sum(group.unfollowed for group in every),
        host_id=before.host_id,
        incident_id=before.incident_id,
    )


def _listed(members: list[Member], main: Event) -> tuple[Revision, ...]:
    """The main event and the gravest others, in the order in which they came."""
    others = [one.event for one in members if one.event.revision != main.revision]
    others.sort(key=lambda one: (-RANK[one.severity], one.revision))
    return tuple(sorted({main.revision, *(one.revision for one in others[: LISTED_MAX - 1])}))


def goes_on(member: Member) -> bool:
    """A problem of which the end is awaited. Others are over with their telling: a host's new boot, a watchdog's firing."""
    return (
        member.state is not MemberState.RECENT
        and awaits_end(member.event)
        and not member.solved
        and not member.ends
    )


def is_well(group: Group) -> bool:
    """No problem of it goes on, and there is none of which that isn't known."""
    if group.incident_open or group.unfollowed:
        return False
    return not any(goes_on(one) for one in group.members)


def calmed(group: Group, note: GroupNote) -> Group:
    """Once it was told that all is well, an error is worse than that again. Warnings wait for their interval all the same: they
    come and go by dozens."""
    if note.reason != WELL or group.counted:
        return group
    return replace(group, worst=min(group.worst, Severity.WARNING, key=lambda one: RANK[one]))


def main_event(members: list[Member], group: Group, counted: int) -> Event:
    """What the message is headed with: the worst problem, of those the cause before what came of it; else the end of the host's
    failure before that of what came with it, else the last end."""
    problems = [one.event for one in members if _is_problem(one)]
    if counted and group.counted_main is not None:
        problems.append(group.counted_main)
    if problems and _kind(members, counted) == "problem":
        return min(problems, key=_weight)
    ends = [one.event for one in members if _is_end(one)]
    return max(
        ends or [one.event for one in members],
        key=lambda one: (one.code == INCIDENT_OVER, one.revision),
    )


def _weight(event: Event) -> tuple[int, bool, bool, int]:
    """The weightiest is the least."""
    of_incident = incident_of(event) is not None
    return -RANK[event.severity], event.vm_id is not None, not of_incident, event.revision


def worst_of(members: list[Member], group: Group, counted: int) -> Severity:
    found = [group.worst, *(one.event.severity for one in members)]
    if counted and group.counted_main is not None:
        found.append(group.counted_main.severity)
    return max(found, key=lambda one: RANK[one])


def _kind(members: list[Member], counted: int) -> str:
    """Ends beside warnings that await no end of their own (the host's new boot) are good news."""
    problems = [one for one in members if _is_problem(one)]
    ends = any(_is_end(one) for one in members)
    grave = any(goes_on(one) or one.event.severity is not Severity.WARNING for one in problems)
    if counted or grave or (problems and not ends):
        return "problem"
    return "solved" if ends else "notice"


def _is_end(member: Member) -> bool:
    return member.ends or bool(solved_by(member.event))


def _told_why(
    route: Subscription, before: Group, after: Group, kind: str, *, repeat: bool, well: bool
) -> str:
    if repeat:
        return REPEAT
    if kind == "solved" and well:
        return WELL
    if route.group_by is GroupBy.NONE:
        return "notify.told.alone"
    if before.told_at is None:
        return "notify.told.first"
    return "notify.told.worse" if RANK[after.worst] > RANK[before.worst] else "notify.told.more"


def _is_problem(member: Member) -> bool:
    return not member.ends and not member.solved and member.event.severity is not Severity.INFO
