"""What goes into the sentinel and what comes out of it.

One step: ``decision = sentinel.step(now, events)``. The caller writes ``intents`` durably first,
then carries out ``commands``, and sends ``notices`` on as facts.
"""

from enum import StrEnum

from virtha.model.domain import DomainEvent, DomainReport
from virtha.model.facts import FactBody, Result
from virtha.model.ids import BootId, Incarnation, VmId
from virtha.model.orders import HeldVm, RebootMode, StopMode
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason, Vm, VmState


class Cause(StrEnum):
    """Why a VM needs a restart."""

    CRASH = "crash"
    PANIC = "panic"
    WATCHDOG_POWEROFF = "watchdog_poweroff"
    WATCHDOG_SHUTDOWN = "watchdog_shutdown"


class VmRecord(Value, frozen=True, kw_only=True):
    """What the sentinel keeps on disk about one VM; times are of ``boot``'s boot-time clock."""

    vm: Vm
    incarnation: Incarnation
    boot: BootId
    """The boot in which this incarnation was started here (G5)."""
    state: VmState
    reasons: tuple[Reason, ...] = ()
    wanted_up: bool = False
    migrating: bool = False
    attempts_ms: tuple[int, ...] = ()
    """Automatic restarts inside the window, oldest first."""
    firings_ms: tuple[int, ...] = ()
    """Watchdog firings inside the reset-loop window."""
    firing_count: int = 0
    last_alive_ms: int = 0
    """When this record was last known true: the lower bound for what happened unseen."""
    guest_agent: bool | None = None


class SentinelRecords(Value, frozen=True, kw_only=True):
    """All that the sentinel has kept, as read at start."""

    vms: tuple[VmRecord, ...] = ()
    policy: Policy = Policy()
    hold: str | None = None


# Events: what the sentinel is told


class DomainsListed(Value, frozen=True, kw_only=True):
    """A full list from libvirt: at start, and after libvirt was lost. The truth about what runs."""

    domains: tuple[DomainReport, ...]
    at_start: bool = False
    """The agent has just begun: what happened before must be reconstructed."""


class LibvirtLost(Value, frozen=True, kw_only=True):
    pass


class HostShuttingDown(Value, frozen=True, kw_only=True):
    pass


class Configured(Value, frozen=True, kw_only=True):
    """New settings from the server; ``vms`` is complete for this host."""

    policy: Policy
    hold: str | None
    vms: tuple[HeldVm, ...]


class StartAccepted(Value, frozen=True, kw_only=True):
    """An ordered start was checked and begins now."""

    vm: Vm
    incarnation: Incarnation
    by: str


class StartEnded(Value, frozen=True, kw_only=True):
    """An ordered start is over; ``OK``: its processors run."""

    vm_id: VmId
    incarnation: Incarnation
    result: Result
    detail: str = ""


class StopAccepted(Value, frozen=True, kw_only=True):
    vm_id: VmId
    mode: StopMode
    by: str


class RebootAccepted(Value, frozen=True, kw_only=True):
    vm_id: VmId
    mode: RebootMode
    by: str


class PauseAccepted(Value, frozen=True, kw_only=True):
    vm_id: VmId
    by: str


class ResumeAccepted(Value, frozen=True, kw_only=True):
    vm_id: VmId
    by: str


class Adopted(Value, frozen=True, kw_only=True):
    vm: Vm
    incarnation: Incarnation
    domain: DomainReport


class Forgotten(Value, frozen=True, kw_only=True):
    """Deleted or given back: no longer ours."""

    vm_id: VmId


class RestartEnded(Value, frozen=True, kw_only=True):
    """How a ``Restart`` command ended."""

    vm_id: VmId
    incarnation: Incarnation
    attempt: int
    result: Result
    detail: str = ""


class BootStatusRead(Value, frozen=True, kw_only=True):
    """The guest's ``/sys/class/watchdog/watchdog0/bootstatus``; None: it could not be read.

    Bit 32 (WDIOF_CARDRESET, Linux uapi watchdog.h) says that the card did the last reset.
    """

    vm_id: VmId
    bootstatus: int | None
    guest_uptime_ms: int | None = None


class GuestAnswered(Value, frozen=True, kw_only=True):
    """The guest agent answered a ping, or did not."""

    vm_id: VmId
    answers: bool


SentinelEvent = (
    DomainEvent
    | DomainsListed
    | LibvirtLost
    | HostShuttingDown
    | Configured
    | StartAccepted
    | StartEnded
    | StopAccepted
    | RebootAccepted
    | PauseAccepted
    | ResumeAccepted
    | Adopted
    | Forgotten
    | RestartEnded
    | BootStatusRead
    | GuestAnswered
)


# Intents: written first


class SaveRecord(Value, frozen=True, kw_only=True):
    record: VmRecord


class DropRecord(Value, frozen=True, kw_only=True):
    vm_id: VmId


Intent = SaveRecord | DropRecord


# Commands: carried out after the intents are durable


class Restart(Value, frozen=True, kw_only=True):
    """Start the domain again, here, at once. Answered by ``RestartEnded``."""

    vm_id: VmId
    incarnation: Incarnation
    attempt: int
    cause: Cause


class GatherEvidence(Value, frozen=True, kw_only=True):
    """Keep what shows the failure (W12); begun after the restart order, never before it."""

    vm_id: VmId
    cause: str


class ReadBootStatus(Value, frozen=True, kw_only=True):
    """Answered by ``BootStatusRead``, once the guest agent answers or a deadline has passed."""

    vm_id: VmId


class PingGuest(Value, frozen=True, kw_only=True):
    """Answered by ``GuestAnswered``."""

    vm_id: VmId


class PauseDomain(Value, frozen=True, kw_only=True):
    """After a watchdog's dump: libvirt lets the guest run on, W6 wants it paused."""

    vm_id: VmId


class ListDomains(Value, frozen=True, kw_only=True):
    """Ask libvirt for all domains again. Answered by ``DomainsListed``."""


Command = Restart | GatherEvidence | ReadBootStatus | PingGuest | PauseDomain | ListDomains


class Decision(Value, frozen=True, kw_only=True):
    intents: tuple[Intent, ...] = ()
    commands: tuple[Command, ...] = ()
    notices: tuple[FactBody, ...] = ()
    wake_at: Millis | None = None
    """Earliest moment at which a step without events could decide differently."""
