"""What a step of the router answers: what is told, and what became of each event (ADR 21)."""

from virtha.model.ids import GroupId, Revision
from virtha.model.notification import Subscription
from virtha.model.routing import Fate, Group, GroupNote
from virtha.model.value import Value


class Tell(Value, frozen=True, kw_only=True):
    """One message. ``note`` None: of a single event that nothing goes with. ``fates`` are of the events in it."""

    route: Subscription
    event_revision: Revision
    note: GroupNote | None
    fates: tuple[Fate, ...]
    every: tuple[Revision, ...] = ()
    """Of a group: also those that ``note`` only counts."""
    counted_of: GroupId | None = None
    """The events of this group that were only counted go out with it."""


class Decision(Value, frozen=True, kw_only=True):
    """``fates``: of those that are not in a message of this step. ``groups``: None where one is gone. ``uncounted``: groups
    whose counted events are dropped. ``wake_at``: when a step without events may decide something; None: never."""

    tells: tuple[Tell, ...] = ()
    fates: tuple[Fate, ...] = ()
    groups: dict[GroupId, Group | None] = {}
    uncounted: tuple[GroupId, ...] = ()
    wake_at: int | None = None
