"""What goes into the sentinel and what comes out of it.

One step: ``decision = sentinel.step(now, events)``. The order of effects is fixed:

1. ``decision.history`` (the ``Happened`` among the notices) goes durably into the outbox. First,
   so that no firing is lost: an agent that dies now tells it twice at worst, the second time
   marked as reconstructed.
2. ``decision.intents`` are written durably.
3. ``decision.commands`` are begun, in their order: a restart waits for nothing that need not be first.
4. ``decision.states`` (the other notices) go into the outbox. A ``Released`` before its record
   was written would let an agent that dies in between restart what the server starts elsewhere;
   one that dies before telling it says it at its next start.

All of it before the next step. A grant is taken away before its ``Released`` is told.
"""

from enum import StrEnum

from virtha.model.domain import DomainEvent, DomainReport
from virtha.model.facts import FactBody, Happened, Result
from virtha.model.ids import BootId, Incarnation, OperationId, VmId
from virtha.model.orders import HeldVm, MigrationSide, RebootMode, StopMode
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import PossibleCopy, Reason, Vm, VmState
from virtha.sentinel.io_error_events import IoErrorAnswer, IoErrorCommand, IoPause


class Cause(StrEnum):
    """Why a VM needs a restart."""

    CRASH = "crash"
    PANIC = "panic"
    WATCHDOG_POWEROFF = "watchdog_poweroff"
    WATCHDOG_SHUTDOWN = "watchdog_shutdown"
    GUEST_SHUTDOWN = "guest_shutdown"


class ExitCause(StrEnum):
    """Why a VM's QEMU ended. The first five are those of ``Cause``."""

    CRASH = "crash"
    PANIC = "panic"
    WATCHDOG_POWEROFF = "watchdog_poweroff"
    WATCHDOG_SHUTDOWN = "watchdog_shutdown"
    GUEST_SHUTDOWN = "guest_shutdown"
    ORDERED = "ordered"
    DESTROYED_OUTSIDE = "destroyed_outside"
    HOST_SHUTDOWN = "host_shutdown"
    SIGNAL = "signal"
    """QEMU got a SIGTERM that neither we nor a host shutdown sent: somebody wanted it down."""
    MIGRATED = "migrated"
    SAVED = "saved"
    START_FAILED = "start_failed"
    NEW_BOOT = "new_boot"
    LEASE = "lease"
    """The guardian killed it: the lease on its storage is lost. It may run elsewhere, not here."""
    IO_ERROR = "io_error"
    """An I/O error had paused it, and the engine had it ended, to start it elsewhere."""
    UNKNOWN = "unknown"


class Exit(Value, frozen=True, kw_only=True):
    """How the present incarnation ended. ``seen`` (G5): by this host's sentinel or its libvirt,
    in this boot, with a cause; False: only that it is gone is known."""

    cause: ExitCause
    at_ms: int
    seen: bool
    detail: str = ""


class HintKind(StrEnum):
    """What announced itself before the stop that it explains."""

    WATCHDOG_POWEROFF = "watchdog_poweroff"
    WATCHDOG_SHUTDOWN = "watchdog_shutdown"
    PANIC = "panic"
    GUEST_SHUTDOWN = "guest_shutdown"
    HOST_SIGNAL = "host_signal"
    LEASE = "lease"


class Hint(Value, frozen=True, kw_only=True):
    kind: HintKind
    at_ms: int


class StopMark(Value, frozen=True, kw_only=True):
    """A stop on purpose is under way; durable before its command goes out."""

    mode: StopMode
    by: str
    ends_at_ms: int
    """A guest that ignored the request until then is no longer stopping."""


class RebootMark(Value, frozen=True, kw_only=True):
    by: str
    ends_at_ms: int
    """A reboot that comes later is the guest's own."""


class Move(Value, frozen=True, kw_only=True):
    """The migration that this copy last took part in; see ``moves``."""

    migration_id: OperationId
    side: MigrationSide
    incarnation: Incarnation
    """Of the target's copy."""
    ends_ms: int
    """On the boot-time clock: the source ends the attempt then."""
    by: str
    stood: bool = False
    """Source: it stands still, for all of it was sent."""
    ending: bool = False
    """Source: what was left of it is ended on the server's word."""
    arrived: bool = False
    """Target: it ran here."""
    told: Result | None = None
    """What the server was told last."""
    code: str | None = None
    other: PossibleCopy | None = None
    """The other side's, for a server that was restored from before the order (M2)."""


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
    local_starts: int = 0
    """Restarts by this sentinel within this incarnation. A local restart keeps the incarnation
    that the server gave: only this host may hold it in this boot, so no other copy can bear it."""
    pid: int | None = None
    """QEMU's, as last listed; None: not known since the last start."""
    stop: StopMark | None = None
    pause_by: str | None = None
    """An ordered pause whose event has not come yet."""
    pause: Reason | None = None
    """Why it is paused, when it is."""
    io_pause: IoPause | None = None
    io_kill: str | None = None
    """Who has it ended for that pause; durable before it is done, until it runs or has ended."""
    resumes_ms: tuple[int, ...] = ()
    """Automatic resumes after I/O errors inside the policy's window, oldest first."""
    reboot: RebootMark | None = None
    """An ordered reboot whose event has not come yet."""
    up: Reason | None = None
    """Why it runs, when it does."""
    hints: tuple[Hint, ...] = ()
    exit: Exit | None = None
    pending: Cause | None = None
    """It is down and shall be restarted here, now or when what blocks it is over."""
    down_ms: int = 0
    """Since when: the base of the next attempt's delay."""
    attempt: int | None = None
    """A ``Restart`` was ordered and has not been answered."""
    attempt_ms: int = 0
    start_open: bool = False
    """An ordered start was accepted and has not been answered: whatever is seen to end meanwhile, it may still make a
    copy (G2)."""
    exhausted: bool = False
    loop_told: bool = False
    blocked: Reason | None = None
    """Why it is not restarted, when it is not."""
    released: bool = False
    """``Released`` was told: never started here again without a higher incarnation. The agent
    refuses an order of this incarnation that comes again (`order.refused.incarnation`)."""
    outside: bool = False
    """The copy that runs was not started by virtha."""
    superseded_by: Incarnation | None = None
    dump_pending: bool = False
    pause_attempts: int = 0
    started_ms: int = 0
    """When the guest last began to boot, as far as it was seen."""
    guest_up: bool = False
    """Its agent connected since ``started_ms``."""
    gap_from_ms: int | None = None
    """Nobody watched from then on, and what the guest did is not cleared up yet."""
    move: Move | None = None
    moves_to: Incarnation = Incarnation(0)
    """The highest target's copy of a migration that this host was asked about: none begins that is not above it."""


class Watched(Value, frozen=True, kw_only=True):
    """Until when this host's libvirt events were seen: the lower bound of a gap, for all VMs."""

    boot: BootId
    until_ms: int


class Told(Value, frozen=True, kw_only=True):
    """An event that was in the outbox when the agent began; ``at_ms``: its fact's monotonic time."""

    at_ms: int
    happened: Happened


class SentinelRecords(Value, frozen=True, kw_only=True):
    """All that the sentinel has kept, as read at start."""

    vms: tuple[VmRecord, ...] = ()
    policy: Policy = Policy()
    hold: str | None = None
    watched: Watched | None = None
    told: tuple[Told, ...] = ()
    """What of this boot the outbox still holds, oldest first. An agent that died between telling a
    firing and writing the record finds it here and does not tell it again as reconstructed."""


# Events: what the sentinel is told


class DomainsListed(Value, frozen=True, kw_only=True):
    """A full list from libvirt: at start, and after libvirt was lost. The truth about what runs."""

    domains: tuple[DomainReport, ...]
    at_start: bool = False
    """The agent has just begun: what happened before must be reconstructed."""


class LibvirtLost(Value, frozen=True, kw_only=True):
    """Nothing is decided until ``DomainsListed``. The sentinel tells `host.libvirt.lost` and
    `host.libvirt.back` itself."""


class HostShuttingDown(Value, frozen=True, kw_only=True):
    pass


class HostStaysUp(Value, frozen=True, kw_only=True):
    """The host's shutdown was called off: exits from here on are judged as ever."""


class ReportAgain(Value, frozen=True, kw_only=True):
    """Every VM is reported in this step though nothing changed, or ``vm_id`` alone.

    All of them for a server whose memory is new; one when the server ordered what only a wrong idea
    of that VM explains. Then libvirt is asked too, for it may be our idea that is wrong.
    """

    vm_id: VmId | None = None


class Configured(Value, frozen=True, kw_only=True):
    """New settings from the server; ``vms`` is complete for this host."""

    policy: Policy
    hold: str | None
    vms: tuple[HeldVm, ...]


class StartAccepted(Value, frozen=True, kw_only=True):
    """An ordered start was checked and begins now. Its incarnation is above the record's, or
    equal to it when the order came again and the record is neither running nor released."""

    vm: Vm
    incarnation: Incarnation
    by: str


class StartRefused(Value, frozen=True, kw_only=True):
    """An ordered start will not be done here, and nothing of it was made.

    Where that is certain the incarnation is recorded as released before ``Released`` is told, so that
    the same order, sent again, is refused too. Where a copy runs or may run nothing is released.
    """

    vm: Vm
    incarnation: Incarnation
    detail: str = ""


class StartEnded(Value, frozen=True, kw_only=True):
    """An ordered start is over. ``OK``: its processors run. ``FAILED``, ``REFUSED``: nothing of it
    is left; ``UNKNOWN`` if that is not sure."""

    vm_id: VmId
    incarnation: Incarnation
    result: Result
    detail: str = ""


class StopAccepted(Value, frozen=True, kw_only=True):
    """Stepped, and its intents written, before libvirt is asked."""

    vm_id: VmId
    mode: StopMode
    by: str
    deadline_ms: int = 60_000
    superseded_by: Incarnation | None = None
    """It ends because that one was started elsewhere (G4)."""


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


class KilledForLease(Value, frozen=True, kw_only=True):
    """The guardian is about to kill it, because the lease on its storage is lost. Comes before libvirt says that
    it ended; where it does not come, an exit without a seen cause is not answered by a restart either (G5)."""

    vm_id: VmId


class MigrationMarked(Value, frozen=True, kw_only=True):
    """A migration is about to begin (stepped, and its intents written, before it does), or is over."""

    vm_id: VmId
    migrating: bool


class MoveAccepted(Value, frozen=True, kw_only=True):
    """Source: a migration was checked (``Sentinel.move_refusal``) and begins when this step's intents are durable."""

    vm_id: VmId
    migration_id: OperationId
    incarnation: Incarnation
    target_incarnation: Incarnation
    deadline_ms: int
    by: str
    target: PossibleCopy | None = None
    """None: an earlier version's order, without the target's boot."""


class MoveRefused(Value, frozen=True, kw_only=True):
    """Source: that migration is not known here, or refused. Nothing begins by it any more."""

    vm: Vm
    migration_id: OperationId
    incarnation: Incarnation
    target_incarnation: Incarnation
    code: str | None = None


class MoveEnded(Value, frozen=True, kw_only=True):
    """Source: libvirt's word on the attempt. ``UNKNOWN``: it has none, or it can't be had."""

    vm_id: VmId
    migration_id: OperationId
    result: Result
    code: str | None = None


class MoveToldAgain(Value, frozen=True, kw_only=True):
    """The server asked, and nothing has changed since it was told; ``unclear``: it stands still here."""

    vm_id: VmId
    migration_id: OperationId
    target_incarnation: Incarnation
    unclear: bool = False


class MoveEnding(Value, frozen=True, kw_only=True):
    """Source: what is left of it is about to be ended on the server's word, for it was handed over."""

    vm_id: VmId


class MoveGivenUp(Value, frozen=True, kw_only=True):
    """Source: nothing is left here of a copy that was on its way, and the server asked."""

    vm_id: VmId


class ArrivalAccepted(Value, frozen=True, kw_only=True):
    """Target: a copy may come in. Its grant is put down after this step's intents are durable."""

    vm: Vm
    migration_id: OperationId
    incarnation: Incarnation
    ends_ms: int
    by: str
    source: PossibleCopy | None = None
    """None: an earlier version's order."""


class ArrivalRefused(Value, frozen=True, kw_only=True):
    """Target: that migration is not known here, or refused, and no copy of it is or will be here."""

    vm: Vm
    migration_id: OperationId
    incarnation: Incarnation
    code: str | None = None


class ArrivalCalledOff(Value, frozen=True, kw_only=True):
    """Target: its grant is gone, and libvirt shows no copy."""

    vm_id: VmId


MoveEvent = (
    MoveAccepted
    | MoveRefused
    | MoveEnded
    | MoveToldAgain
    | MoveEnding
    | MoveGivenUp
    | ArrivalAccepted
    | ArrivalRefused
    | ArrivalCalledOff
)


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
    | HostStaysUp
    | ReportAgain
    | Configured
    | StartAccepted
    | StartRefused
    | StartEnded
    | StopAccepted
    | RebootAccepted
    | PauseAccepted
    | ResumeAccepted
    | KilledForLease
    | MigrationMarked
    | Adopted
    | Forgotten
    | RestartEnded
    | BootStatusRead
    | GuestAnswered
    | IoErrorAnswer
    | MoveEvent
)


# Intents: written first


class SaveWatched(Value, frozen=True, kw_only=True):
    """Every few seconds; ``SentinelRecords.watched`` at the next start. One small file."""

    watched: Watched


class SaveRecord(Value, frozen=True, kw_only=True):
    record: VmRecord


class DropRecord(Value, frozen=True, kw_only=True):
    vm_id: VmId


Intent = SaveRecord | DropRecord | SaveWatched


# Commands: carried out after the intents are durable


class Restart(Value, frozen=True, kw_only=True):
    """Start the domain again, here, at once (a fresh grant, created paused, then run).

    Answered by ``RestartEnded``. Safe to send twice: one that runs is done, one that a former
    attempt left paused is let run.
    """

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


class AbortMove(Value, frozen=True, kw_only=True):
    """End a migration away from here that is past its time, if libvirt still can. Answered by ``MoveEnded``."""

    vm_id: VmId
    code: str


class ListDomains(Value, frozen=True, kw_only=True):
    """Ask libvirt for all domains again. Answered by ``DomainsListed``."""


Command = (
    Restart
    | GatherEvidence
    | ReadBootStatus
    | PingGuest
    | PauseDomain
    | IoErrorCommand
    | AbortMove
    | ListDomains
)


class Decision(Value, frozen=True, kw_only=True):
    intents: tuple[Intent, ...] = ()
    commands: tuple[Command, ...] = ()
    notices: tuple[FactBody, ...] = ()
    wake_at: Millis | None = None
    """Earliest moment at which a step without events could decide differently."""

    @property
    def history(self) -> tuple[Happened, ...]:
        """Durable before the intents."""
        return tuple(notice for notice in self.notices if isinstance(notice, Happened))

    @property
    def states(self) -> tuple[FactBody, ...]:
        """Durable after the intents."""
        return tuple(notice for notice in self.notices if not isinstance(notice, Happened))
