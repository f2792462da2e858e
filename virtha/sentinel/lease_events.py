"""What goes into the guardian's lease core and what comes out of it.

One step: ``decision = leases.step(now, events)``. ``now`` is the boot-time clock (it counts while the host is
suspended), read *after* the events were collected. Commands are carried out in their order, before the next
step's; each may be stuck or late for any time without harm: all deadlines count from the step that ordered
it. What the caller owes is said at each event and command; the argument is docs/adr/0008-storage-lease.md.
"""

from virtha.model.ids import HostId, InstallationId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import MailboxReading, Slot, SlotReading
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.sentinel.guardian import Kill, LinkLost, QemuProcess, Report, Welcomed


class HostNature(Value, frozen=True, kw_only=True):
    """What a watchdog on this host is worth. ``None``: could not be found out."""

    is_virtual: bool | None
    watchdog_is_real_because: str = ""
    """The operator's word how the watchdog of a host that is itself a VM resets it for sure (for example a
    hypervisor that never pauses or migrates it); empty: it does not."""
    suspend_blocked: bool | None = None
    """Suspending is masked: a suspended host's watchdog may stand still while its VMs are yet to write."""


class LeaseOwner(Value, frozen=True, kw_only=True):
    installation_id: InstallationId
    host_id: HostId


class LeasedQemu(Value, frozen=True, kw_only=True):
    """One managed QEMU. ``domain_ids``: where its disks lie, also those being plugged in: a disk counts from
    before libvirt is asked to attach it. ``None``: unknown, so it may be any."""

    process: QemuProcess
    domain_ids: frozenset[StorageDomainId] | None

    def may_write_to(self, domain_id: StorageDomainId) -> bool:
        return self.domain_ids is None or domain_id in self.domain_ids


# Events


class PolicySet(Value, frozen=True, kw_only=True):
    policy: LeasePolicy


class DomainAttached(Value, frozen=True, kw_only=True):
    """The domain is to be leased. In the first step one for each domain, with ``own`` unread: a guardian that
    restarts must not feed on what it knows of one domain while it knows nothing of another. Then again
    with this host's own slot, as often as it takes to read it."""

    domain_id: StorageDomainId
    index: int
    own: SlotReading
    direct_io: bool


class RenewDone(Value, frozen=True, kw_only=True):
    """How ``RenewSlot`` ended. ``mailbox`` was read after the write had been acknowledged; ``written`` False:
    an error or unknown, so the block may yet land."""

    domain_id: StorageDomainId
    number: int
    written: bool
    mailbox: MailboxReading


class QemusSeen(Value, frozen=True, kw_only=True):
    """All managed QEMUs of the host, in one look that began at ``began_ms`` and missed none. A look that
    failed is not sent: not to be seen is not to be dead."""

    began_ms: int
    qemus: tuple[LeasedQemu, ...]


class QemuEnded(Value, frozen=True, kw_only=True):
    """It was reaped *and* no write of it is outstanding: its disks were opened past the page cache, whose
    requests a process waits for before it is reaped, or were written back since. Not sent otherwise."""

    process: QemuProcess


class WaiverGiven(Value, frozen=True, kw_only=True):
    """By the leader over a live session; its intent was durable before (safety.md, section 3), so no engine
    takes this lease for a proof until ``WaiverOver`` has been recorded. Given again in each new session."""

    domain_id: StorageDomainId


class WaiverEnded(Value, frozen=True, kw_only=True):
    """The leader wants the lease back; it counts again from ``WaiverOver`` on."""

    domain_id: StorageDomainId


class WatchdogArmed(Value, frozen=True, kw_only=True):
    """``timeout_ms``: what the driver says that it is now, rounded as it rounds."""

    timeout_ms: int
    no_way_out: bool


class WatchdogFailed(Value, frozen=True, kw_only=True):
    """It can't be armed, or a feeding failed."""

    detail: str


class WatchdogFed(Value, frozen=True, kw_only=True):
    """The one feeding under way was done."""


class WatchdogDisarmed(Value, frozen=True, kw_only=True):
    pass


LeaseEvent = (
    PolicySet
    | DomainAttached
    | RenewDone
    | QemusSeen
    | QemuEnded
    | WaiverGiven
    | WaiverEnded
    | WatchdogArmed
    | WatchdogFailed
    | WatchdogFed
    | WatchdogDisarmed
    | Welcomed
    | LinkLost
)


# Commands


class RenewSlot(Value, frozen=True, kw_only=True):
    """For the domain's one worker: write the slot, wait for the acknowledgement, then read the mailbox.

    In this order a poison that landed before this write is read after it (each renewal that lands after
    the poison knows of it). Answered by one ``RenewDone``, however late; no second one is ordered before.
    """

    domain_id: StorageDomainId
    number: int
    slot: Slot


class AllowStarts(Value, frozen=True, kw_only=True):
    """Whoever starts or resumes a VM with a disk there asks, once its QEMU exists and before its processors
    run: only before ``until_ms`` of the boot-time clock. ``None``: not at all."""

    domain_id: StorageDomainId
    renewed_ms: Millis
    """From when that counts: the decision of the good renewal, or of the step that withdraws it."""
    until_ms: Millis | None


class ResetHost(Value, frozen=True, kw_only=True):
    """At once and past everything that could wait (sysrq b); said again until the host is gone."""

    domain_id: StorageDomainId


class ArmWatchdog(Value, frozen=True, kw_only=True):
    timeout_ms: int


class FeedWatchdog(Value, frozen=True, kw_only=True):
    """Answered by ``WatchdogFed`` or ``WatchdogFailed``; no second one is ordered before."""


class DisarmWatchdog(Value, frozen=True, kw_only=True):
    pass


class WaiverOver(Value, frozen=True, kw_only=True):
    """Tell the leader: from here on the lease is kept again."""

    domain_id: StorageDomainId


LeaseCommand = (
    Kill
    | ResetHost
    | AllowStarts
    | FeedWatchdog
    | ArmWatchdog
    | DisarmWatchdog
    | RenewSlot
    | WaiverOver
    | Report
)


class LeaseDecision(Value, frozen=True, kw_only=True):
    commands: tuple[LeaseCommand, ...] = ()
    wake_at: Millis | None = None
