"""Routes beyond plain subscriptions: what matches, how events are grouped, when they are not told; and what a route
remembers (ADR 21). Times are the server's wall clock, in UTC milliseconds: waits outlive the process.
"""

from enum import StrEnum

from virtha.model.codes.entry import Severity
from virtha.model.event import Event
from virtha.model.ids import (
    ClusterId,
    DeliveryId,
    GroupId,
    HostId,
    IncidentId,
    InhibitionId,
    Revision,
    SilenceId,
    SubscriptionId,
    VmId,
)
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class Matcher(Value, frozen=True, kw_only=True):
    """Events that fit *all* of it. An empty ``codes`` means every code; one may end in ``*``. ``severity``: the least
    one. ``labels``: fields of the event by name; a value may end in ``*``."""

    codes: tuple[str, ...] = ()
    severity: Severity = Severity.INFO
    cluster_id: ClusterId | None = None
    host_id: HostId | None = None
    vm_id: VmId | None = None
    labels: dict[str, str] = {}


class GroupBy(StrEnum):
    NONE = "none"
    """Each event is a message, at once."""
    CAUSE = "cause"
    """The failure of a host with all that belongs to it; else the host, else the VM, else the cluster."""
    HOST = "host"
    CLUSTER = "cluster"


class Weekday(StrEnum):
    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


class QuietHours(Value, frozen=True, kw_only=True):
    """``begins``, ``ends``: ``HH:MM`` in ``zone`` (a name of the IANA database). Where the end is not after the
    beginning, it is on the next day; ``days`` are those on which it begins."""

    begins: str
    ends: str
    days: tuple[Weekday, ...] = tuple(Weekday)
    zone: str = "UTC"


class Silence(Value, frozen=True, kw_only=True):
    """Until ``ends`` nothing that matches is told, by no route."""

    id: SilenceId
    matcher: Matcher
    reason: str
    by: str
    begins: UtcMillis
    ends: UtcMillis
    revision: Revision = Revision(0)


class Same(StrEnum):
    """What problem and event must have in common for the one to inhibit the other."""

    HOST = "host"
    VM = "vm"
    CLUSTER = "cluster"
    INCIDENT = "incident"
    ANYTHING = "anything"


class Inhibition(Value, frozen=True, kw_only=True):
    """While a problem that ``source`` matches is open, events that ``target`` matches are not told."""

    id: InhibitionId
    name: str
    source: Matcher
    target: Matcher
    same: Same = Same.HOST
    revision: Revision = Revision(0)


class MemberState(StrEnum):
    HELD = "held"
    """To be told with the group's next message."""
    PARKED = "parked"
    """Silenced or inhibited, and told once that ends if it still goes on."""
    OPEN = "open"
    """A problem that was told and is not over."""
    RECENT = "recent"
    """Told a short while ago; kept to know it again."""


class Member(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One event of a group; ``event`` without its text, its fields cut."""

    event: Event
    subject: str
    state: MemberState
    since: int
    """When it came into that state."""
    ends: bool = False
    """It tells the end of what this route told, or was about to tell."""
    solved: bool = False
    """Held, and over by now: its end is held, too."""
    again: int = 0
    """How often the same came since."""
    undelivered: bool = False
    """Open, but its message was refused or expired: nobody was told, so it explains nothing."""
    code: str | None = None
    """Parked: why."""
    by: str | None = None
    """Parked: the silence's or the rule's id."""
    due_at: int | None = None
    """Parked: when it would have been told. What inhibits it and was not told itself by then does so no more."""


class Group(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What one route remembers of one cause."""

    id: GroupId
    subscription_id: SubscriptionId
    key: str
    host_id: HostId | None = None
    incident_id: IncidentId | None = None
    incident_open: bool = False
    members: tuple[Member, ...] = ()
    counted: int = 0
    """Events that wait to be told as a number."""
    counted_main: Event | None = None
    """The worst of those."""
    unfollowed: int = 0
    """Problems that were counted, or forgotten for want of room: of no end of them it is known that it is theirs."""
    due_at: int | None = None
    told_at: int | None = None
    worst: Severity = Severity.INFO
    """Of what was told."""
    began: int = 0


class FateState(StrEnum):
    WAITS = "waits"
    PARKED = "parked"
    TOLD = "told"
    SPARED = "spared"
    """It is not told."""


class Fate(Value, frozen=True, kw_only=True):
    """What became of one event at one route that wants it. ``code``: ``notify.why.…``; ``by``: the silence, the rule, or the
    event's number that is the reason."""

    event_revision: Revision
    subscription_id: SubscriptionId
    state: FateState
    code: str
    at: UtcMillis
    by: str | None = None
    group_id: GroupId | None = None
    delivery_id: DeliveryId | None = None


class GroupNote(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What a message of several events is about. ``kind``: ``problem``, ``solved`` or ``notice``; ``reason``:
    ``notify.told.…``; ``revisions``: those that it lists; ``counted``: how many more it tells of."""

    group_id: GroupId
    key: str
    kind: str
    reason: str
    revisions: tuple[Revision, ...]
    again: dict[str, int] = {}
    """By revision, how often the same came since."""
    counted: int = 0
    open: int = 0
    """Problems of the group that go on."""
    unfollowed: int = 0
    """Further ones, of which nobody knows whether they do."""
    host_id: HostId | None = None
    incident_id: IncidentId | None = None
