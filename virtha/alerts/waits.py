"""When something of a group is told, as far as its route and its state say."""

from virtha.alerts.groups import INHIBITED
from virtha.alerts.hindrance import presses
from virtha.model.notification import Subscription
from virtha.model.routing import Group, GroupBy, Member, MemberState

RELEASE_WAIT_MS = 60_000
"""How long what was inhibited waits when its cause is over: mostly it is over a moment later itself."""

INCIDENT_PATIENCE_MS = 86_400_000
"""How long a failure of which nothing was told, or nothing more is to be told, is remembered without its end; and that there
are problems that nobody follows."""

TWICE_WAIT_MS = 10_000
"""What says that a VM may run twice waits no longer for what belongs to it, however long its route's groups wait."""


def release_wait_ms(route: Subscription, member: Member) -> int:
    wait_ms = RELEASE_WAIT_MS if member.code == INHIBITED else 0
    return wait_ms if route.group_by is GroupBy.NONE else max(wait_ms, route.group_wait_ms)


def may_go(member: Member, quiet: int | None) -> bool:
    """``quiet``: until when only what presses is told."""
    return member.state is MemberState.HELD and (quiet is None or presses(member.event))


def is_due(route: Subscription, group: Group, now: int, quiet: int | None) -> bool:
    """Also where its time is further away than any wait that is given: the clock was set back, perhaps into quiet hours."""
    assert group.due_at is not None, "something of it waits"
    latest = now + max(route.group_wait_ms, route.group_interval_ms, RELEASE_WAIT_MS)
    if quiet is not None and not any(may_go(one, quiet) for one in group.members):
        latest = max(latest, quiet)
    return group.due_at <= now or group.due_at > latest


def is_over(route: Subscription, group: Group, now: int) -> bool:
    """Nothing waits, nothing goes on, and what comes next needs no distance to the last message."""
    if group.members or group.counted:
        return False
    last = max(group.began, group.told_at or 0)
    awaited = group.incident_open or group.unfollowed
    if awaited and 0 <= now - last < INCIDENT_PATIENCE_MS:
        return False
    if route.group_by is GroupBy.NONE or group.told_at is None:
        return True
    return not 0 <= now - group.told_at < route.group_interval_ms


def earliest(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def repeat_moment(route: Subscription, group: Group) -> int | None:
    if route.repeat_ms is None or group.told_at is None:
        return None
    if not any(one.state is MemberState.OPEN for one in group.members):
        return None
    return group.told_at + route.repeat_ms
