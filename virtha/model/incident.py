"""The record of a host's failure (X4): what was seen, what was done, how long each step took, and what became of its VMs.

Times: ``at`` is the server's wall clock, for display. ``clock_ms`` is cluster time (M4): the leader's monotonic clock,
which goes on across a change of leader; durations are taken from it. What only a host's report tells has no cluster
time, and its durations come from the wall clock of the server that recorded it.
"""

from enum import StrEnum

from virtha.model.ids import BootId, ClusterId, HostId, IncidentId, VmId
from virtha.model.time import UtcMillis
from virtha.model.value import Fields, Value
from virtha.model.vm import Reason


class Sighting(Value, frozen=True, kw_only=True):
    """What one witness said last of the host."""

    by: str
    """The witness: a host, a power device, this server."""
    via: str
    """``management``, ``storage`` (networks), ``disks``, ``slot``, ``power``, ``session``."""
    said: str
    """In the witness's own few words: ``alive``, ``silent``, ``quiet``, ``off`` …"""
    age_ms: int
    """How old that was when it was written down, by cluster time."""


class IncidentEntry(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the timeline: an event of the log, or a reason `incident.*` made of what the engine put on record."""

    code: str
    at: UtcMillis
    clock_ms: int | None = None
    """None: only the wall clock tells when."""
    host_id: HostId | None = None
    """Whom a VM's entry names: where it starts, runs, answers."""
    fields: Fields = {}
    seen: tuple[Sighting, ...] = ()
    """By whom the host was seen, and not seen, when it was judged."""
    reasons: tuple[Reason, ...] = ()
    """What the verdict rested on."""


class IncidentCause(StrEnum):
    """How the engine came to open it."""

    JUDGED = "judged"
    """It was judged dead."""
    REMOVED = "removed"
    """It was removed while VMs might run there."""
    REBOOTED = "rebooted"
    """It came back in a new boot before it was judged, and VMs went down with the old one."""


class HostIncident(Value, frozen=True, kw_only=True):
    """One failure of one boot of a host. ``*_ms`` are cluster time."""

    id: IncidentId
    cluster_id: ClusterId
    host_id: HostId
    host: str
    """Its name then."""
    boot: BootId
    number: int
    """The engine's own, in events' field ``incident``; 0: it counts none of that cause."""
    cause: IncidentCause
    opened: UtcMillis
    opened_ms: int
    silent_since_ms: int
    """The last direct sign of life."""
    fencing: bool = False
    """Power devices were ordered."""
    proven: str | None = None
    """The kind of the first proof that its boot is dead."""
    proven_ms: int | None = None
    confirmed: bool = False
    """By an operator (P6): its return is not waited for."""
    host_end: str | None = None
    """The code with which the engine ended it: the host is back, lives, or is gone."""
    host_end_ms: int | None = None
    closed: UtcMillis | None = None
    closed_ms: int | None = None
    entries: tuple[IncidentEntry, ...] = ()
    left_out: int = 0
    """Entries in the middle that were dropped."""
    vms: int = 0
    """How many have a path here."""
    vms_left_out: int = 0


class PathState(StrEnum):
    """How far a VM is on its way back."""

    WAITING = "waiting"
    """For proof, a place, its turn."""
    STARTING = "starting"
    RUNS = "runs"
    """Started elsewhere; its guest agent has not answered, where it has one."""
    ANSWERS = "answers"
    """Started elsewhere, and its guest agent answers."""
    DOWN = "down"
    """It stays down, and ``code`` says why."""
    UNHARMED = "unharmed"
    """It had never gone."""
    DELETED = "deleted"


class VmPath(Value, frozen=True, kw_only=True):
    """One VM's way through an incident. ``*_ms`` are cluster time."""

    incident_id: IncidentId
    vm_id: VmId
    vm: str
    state: PathState = PathState.WAITING
    open: bool = True
    """The engine is not done with it."""
    host_id: HostId | None = None
    host: str | None = None
    """Where it was started, or runs."""
    attempts: int = 0
    code: str | None = None
    """The last reason why it does not run."""
    lost_ms: int | None = None
    ready_ms: int | None = None
    ordered_ms: int | None = None
    runs_ms: int | None = None
    runs_at: UtcMillis | None = None
    answered_at: UtcMillis | None = None
    """When its guest agent's answer was recorded."""
    entries: tuple[IncidentEntry, ...] = ()
    left_out: int = 0
