"""What goes into the engine and what comes out of it.

One step: ``decision = engine.step(now, events)``. ``now`` is cluster time (M4): whole milliseconds that never
run back and go on across a change of leader, so records may keep them. The order of effects is fixed:

1. ``decision.intents`` are written in one transaction that holds only while our term does.
2. ``decision.commands`` are sent, in their order; power before all else. Each may be sent twice.
3. ``decision.notices`` are told; they were written with the intents, and are never read back.

A step without intents has nothing to persist and may send at once.
"""

from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.cutting import StorageFence as StorageFence
from virtha.engine.cutting import StorageFenced, StorageLetIn, StorageOpened
from virtha.engine.ending import EndCopy, EndPaused
from virtha.engine.move_answer import MoveAnswered
from virtha.engine.records import ClusterRecord, HostRecord, OrderId, VmRecord
from virtha.model.ceph import CephSight
from virtha.model.evidence import Answer, IdentityMatch, PowerState, ProcessKind
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, VmId
from virtha.model.orders import MigrationWord as MigrationWord
from virtha.model.policy import Policy
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.proof import Proof
from virtha.model.time import Millis
from virtha.model.value import Fields, Value
from virtha.model.vm import PossibleCopy, VmState

# What the operator configured


class HostConfigured(Value, frozen=True, kw_only=True, tag="host_configured"):
    host: EngineHost


class HostRemoved(Value, frozen=True, kw_only=True, tag="host_removed"):
    host_id: HostId


class VmConfigured(Value, frozen=True, kw_only=True, tag="vm_configured"):
    vm: EngineVm


class VmRemoved(Value, frozen=True, kw_only=True, tag="vm_removed"):
    vm_id: VmId


class PolicyChanged(Value, frozen=True, kw_only=True, tag="policy"):
    policy: Policy


class HoldChanged(Value, frozen=True, kw_only=True, tag="hold"):
    """`virtha hold`: the operator's reason; None lifts it."""

    reason: str | None


# What the hosts say


class BeatSeen(Value, frozen=True, kw_only=True, tag="beat"):
    """A guardian's beat, at the moment of its receipt by whichever gateway."""

    host_id: HostId
    boot: BootId
    agent_alive: bool


class SessionChanged(Value, frozen=True, kw_only=True, tag="session"):
    """``broken``: the connection was seen to break (reset, closed), rather than to fall silent.

    One host's sessions and beats are told in the order in which they were, whichever gateway has them; and none of a boot
    after a fact or grant of a later one, unless that names its carrier. So a leader is given what it finds recorded before
    any session (P4)."""

    host_id: HostId
    process: ProcessKind
    boot: BootId
    up: bool
    broken: bool = False


class HostSurveyed(Value, frozen=True, kw_only=True, tag="surveyed"):
    """A host's full report in its present boot: M2's inventory barrier, and its fitness as a target."""

    host_id: HostId
    boot: BootId
    carried_by: BootId | None = None
    """As in ``VmSeen``."""
    gate_in_force: bool
    libvirt_connected: bool
    storage_domains: frozenset[StorageDomainId] = frozenset()
    """Usable from there right now."""
    active: frozenset[VmId] = frozenset()
    """Managed VMs that have a QEMU there, in whatever state; none where only the rest is said again."""
    ceph: dict[StorageDomainId, CephSight] = {}


class LibvirtAnswered(Value, frozen=True, kw_only=True, tag="libvirt"):
    """Whether a host's libvirt still answers; a host where it hangs is no target, and is not fenced for it."""

    host_id: HostId
    answering: bool


class VmSeen(Value, frozen=True, kw_only=True, tag="vm_seen"):
    """The present state of a VM as its host's sentinel reports it. A fact: it may have lain in an outbox for long, over
    boots of which nobody heard, so it is no sign of life and begins no boot."""

    host_id: HostId
    boot: BootId
    carried_by: BootId | None = None
    """The boot whose session brought it: of another boot than that, it tells of one that is over (P4). None: not known, as
    of those that a leader finds recorded."""
    vm_id: VmId
    incarnation: Incarnation
    state: VmState
    guest_agent: bool | None = None
    io_error: bool = False
    """Paused on an I/O error, with I/O in flight: never migrated (S6). Its end may be wanted (``io_kill``)."""
    no_room: bool = False
    """That error is a full storage domain."""
    awaited_by: OrderId | None = None
    """Not how the VM is: its copy is to come there by that migration, or comes, and has not run there."""
    leaves_by: OrderId | None = None
    """It stands still there as that migration's source until it is told how it goes on."""
    other: PossibleCopy | None = None
    """The other side's copy of either, as its order named it. None: an agent of an earlier version."""


class CopyGranted(Value, frozen=True, kw_only=True, tag="granted"):
    """A person's order gave this host a grant, or made it adopt the VM: it may hold it from now on (G1). Told before the
    order goes out; what runs there then is no find."""

    host_id: HostId
    boot: BootId
    vm_id: VmId
    incarnation: Incarnation


class CopyReleased(Value, frozen=True, kw_only=True, tag="released"):
    """Durable word of a host: it holds that incarnation no longer and will not start it (G1, P5). Of whatever boot:
    what that one held."""

    host_id: HostId
    boot: BootId
    vm_id: VmId
    incarnation: Incarnation
    cause: ReleaseCause | None = None
    """None: not said, by an agent of an earlier version; then it is taken for meant."""


# What witnesses say


class NeighbourAnswered(Value, frozen=True, kw_only=True, tag="neighbour"):
    """``boot`` comes with an authenticated answer only."""

    witness: HostId
    subject: HostId
    network: str
    answer: Answer
    boot: BootId | None = None


class DisksWatched(Value, frozen=True, kw_only=True, tag="disks"):
    """One reader's comparison of two reads of the disks of a host's VMs (J3). None: could not be told."""

    witness: HostId
    subject: HostId
    changed: bool | None
    disks: int = 0
    """How many were compared."""


class SlotChanged(Value, frozen=True, kw_only=True, tag="slot"):
    """A reader saw the subject's heartbeat slot move on between two valid rounds: alive (J2).

    When, is known within bounds only: ``old_ms`` ago or earlier the host was at work on that renewal, and it landed within the
    last ``within_ms``. Who asks whether it lived *after* something takes the first, who asks whether it still did, the second.
    """

    witness: HostId
    subject: HostId
    storage_domain_id: StorageDomainId
    boot: BootId
    old_ms: int = 0
    within_ms: int = 0


class SplitDomain(Value, frozen=True, kw_only=True):
    """``reader`` does not read on that domain what ``writer`` wrote there."""

    domain_id: StorageDomainId
    reader: HostId
    writer: HostId


class StorageCompared(Value, frozen=True, kw_only=True, tag="storage_compared"):
    """Which storage domains are found not to be one and the same for all hosts: all of them, one pair of hosts for each.
    What is left out is shared, for all that is known by now."""

    not_shared: tuple[SplitDomain, ...] = ()


class ReferenceAnswered(Value, frozen=True, kw_only=True, tag="reference"):
    """Whether this server reaches its reference address (J4)."""

    reached: bool


class PowerRead(Value, frozen=True, kw_only=True, tag="power_read"):
    """A device was asked for its state. ``order_id``: of the question."""

    order_id: OrderId
    host_id: HostId
    device: PowerDeviceId
    state: PowerState
    identity: IdentityMatch = IdentityMatch.UNKNOWN
    error: str | None = None
    """Code of why the state is unknown."""


class PowerOrdered(Value, frozen=True, kw_only=True, tag="power_ordered"):
    """How an order to a device ended. ``OK``: accepted, which is not *off*. ``REFUSED`` with ``power.too_late``: it
    was too old and never went to its device."""

    order_id: OrderId
    host_id: HostId
    device: PowerDeviceId
    result: Result
    error: str | None = None


class PowerTested(Value, frozen=True, kw_only=True, tag="power_tested"):
    """The scheduled or ordered test of a device, made while ``boot`` was beating (P1)."""

    host_id: HostId
    boot: BootId
    device: PowerDeviceId
    passed: bool
    identity: IdentityMatch = IdentityMatch.UNKNOWN


class ProofFound(Value, frozen=True, kw_only=True, tag="proof"):
    """A proof of another judge: the storage lease (P2) or the storage-side fence (P3)."""

    proof: Proof


class WaiverOver(Value, frozen=True, kw_only=True, tag="waiver_over"):
    """That boot keeps its lease again, after a waiver that was to end."""

    waiver_id: OrderId
    host_id: HostId
    boot: BootId
    domain_id: StorageDomainId


# How commands ended


class StartEnded(Value, frozen=True, kw_only=True, tag="start_ended"):
    """``REFUSED`` and ``FAILED``: no copy of this order can come to be any more (G2)."""

    order_id: OrderId
    host_id: HostId
    vm_id: VmId
    incarnation: Incarnation
    result: Result
    code: str | None = None


class KillEnded(Value, frozen=True, kw_only=True, tag="kill_ended"):
    """How an order to end a paused VM was answered. ``OK``: it has ended, which its release says, too. ``REFUSED``: nothing
    was done to it. ``FAILED``, ``UNKNOWN``: its QEMU may live."""

    order_id: OrderId
    host_id: HostId
    vm_id: VmId
    result: Result
    code: str | None = None


class MigrationEnded(Value, frozen=True, kw_only=True, tag="migration_ended"):
    """One side's word about how a live migration stands; durable on that host until it is acknowledged.

    - from the source: ``OK``: handed over. ``FAILED``, ``REFUSED``: not handed over, and it never will be by this
      order; the VM goes on there. ``UNKNOWN``: all of it was sent, nobody confirmed; the VM stands still there (G6).
    - from the target: ``OK``: it runs there. ``FAILED``, ``REFUSED``: it never ran there, nor can it by this order, and
      no copy is left. ``UNKNOWN``: it stands still there, complete.
    """

    order_id: OrderId
    host_id: HostId
    """Who speaks."""
    vm_id: VmId
    result: Result
    code: str | None = None


# What an operator orders about hosts


class DeathConfirmed(Value, frozen=True, kw_only=True, tag="confirmed"):
    """The operator's word (P6): bound to boot and incident; ``force_reason`` overrides the refusals. Also about a host that
    was removed: the incident is then the one that ``host.removed_unproven`` named."""

    host_id: HostId
    boot: BootId
    incident: int
    by: str
    force_reason: str | None = None


class MaintenanceChanged(Value, frozen=True, kw_only=True, tag="maintenance"):
    """No new starts there. ``drain``: its VMs leave it by live migration, and until they have, it is fenced like any
    other when it dies. Without: they stay, and the host is never fenced (somebody is at work on it)."""

    host_id: HostId
    on: bool
    by: str
    drain: bool = True


class MoveAsked(Value, frozen=True, kw_only=True, tag="move_asked"):
    """An operator wants a running VM elsewhere; ``target`` None: wherever it is placed best. Done at once or refused."""

    vm_id: VmId
    target: HostId | None
    by: str


class MoveCancelled(Value, frozen=True, kw_only=True, tag="move_cancelled"):
    """An operator calls a migration off; past the point of no return it goes on."""

    vm_id: VmId
    by: str


class QuarantineLifted(Value, frozen=True, kw_only=True, tag="unquarantine"):
    """An operator frees a VM that was quarantined or given up."""

    vm_id: VmId
    by: str


class BrakeLifted(Value, frozen=True, kw_only=True, tag="brake_lifted"):
    by: str


# What the leader says of itself


class LeaseRenewed(Value, frozen=True, kw_only=True, tag="lease"):
    """The leader's own lease lasts until ``until_ms`` of cluster time (J7)."""

    until_ms: int


class GatewayLost(Value, frozen=True, kw_only=True, tag="gateway_lost"):
    """These hosts' sessions ended with their gateway, not by themselves (J1)."""

    hosts: frozenset[HostId]


class Stalled(Value, frozen=True, kw_only=True, tag="stalled"):
    """This server itself was asleep: beats may lie unread, so it observes anew."""


EngineEvent = (
    HostConfigured
    | HostRemoved
    | VmConfigured
    | VmRemoved
    | PolicyChanged
    | HoldChanged
    | BeatSeen
    | SessionChanged
    | HostSurveyed
    | LibvirtAnswered
    | VmSeen
    | CopyGranted
    | CopyReleased
    | NeighbourAnswered
    | DisksWatched
    | SlotChanged
    | StorageCompared
    | ReferenceAnswered
    | PowerRead
    | PowerOrdered
    | PowerTested
    | ProofFound
    | StorageFenced
    | StorageOpened
    | WaiverOver
    | StartEnded
    | KillEnded
    | MigrationEnded
    | MoveAnswered
    | DeathConfirmed
    | MaintenanceChanged
    | MoveAsked
    | MoveCancelled
    | QuarantineLifted
    | BrakeLifted
    | LeaseRenewed
    | GatewayLost
    | Stalled
)


# What comes out: intents


class SaveHost(Value, frozen=True, kw_only=True, tag="save_host"):
    record: HostRecord


class SaveVm(Value, frozen=True, kw_only=True, tag="save_vm"):
    record: VmRecord


class SaveCluster(Value, frozen=True, kw_only=True, tag="save_cluster"):
    record: ClusterRecord


class DropHost(Value, frozen=True, kw_only=True, tag="drop_host"):
    host_id: HostId


class DropVm(Value, frozen=True, kw_only=True, tag="drop_vm"):
    vm_id: VmId


Intent = SaveHost | SaveVm | SaveCluster | DropHost | DropVm


# What comes out: commands


class Investigate(Value, frozen=True, kw_only=True, tag="investigate"):
    """Ask these witnesses about ``subject`` now: authenticated probes over every network, and one
    more comparison of its VMs' disks by ``disk_reader``. Answers come back as events."""

    subject: HostId
    boot: BootId | None
    witnesses: tuple[HostId, ...]
    disk_reader: HostId | None
    vms: tuple[VmId, ...]
    round: int


class ReadPower(Value, frozen=True, kw_only=True, tag="read_power"):
    order_id: OrderId
    host_id: HostId
    device: PowerDeviceId
    deadline_ms: int


class OrderPower(Value, frozen=True, kw_only=True, tag="order_power"):
    """Whoever carries it out looks at the cluster clock right before the device is asked: later than ``not_after_ms``
    it is not carried out, and comes back as ``PowerOrdered(REFUSED, "power.too_late")``. So what was decided before
    a freeze, or waited for the database, strikes no host that has come back since.

    What is left: an actor that stops between that look and the packet (a machine that is frozen as a whole). Its order
    may strike a host that lives again and end what runs there. It makes no second writer: proof needs readings of *off*
    after an order that the leader knows of, and a new boot is judged anew.
    """

    order_id: OrderId
    host_id: HostId
    device: PowerDeviceId
    action: PowerAction
    deadline_ms: int
    """From its sending until its end must be known."""
    not_after_ms: int = 0
    """Cluster time (M4); 0, in journals from before there was one: never."""


class Poison(Value, frozen=True, kw_only=True, tag="poison"):
    """Poison the host's slots (P2); the lease's judge goes on from there. Comes again with more domains when a copy with
    a disk elsewhere came to light."""

    host_id: HostId
    boot: BootId
    incident: int
    domain_ids: frozenset[StorageDomainId] = frozenset()
    """All domains in which copies that the host may hold have disks: the lease has to expire on each."""


class GiveWaiver(Value, frozen=True, kw_only=True, tag="give_waiver"):
    """To the host's guardian: keep your VMs though you can't renew there. Its record says so already. May be sent
    again."""

    waiver_id: OrderId
    host_id: HostId
    boot: BootId
    domain_id: StorageDomainId


class EndWaiver(Value, frozen=True, kw_only=True, tag="end_waiver"):
    """To the host's guardian: keep the lease again, and say when you do (``WaiverOver``). May be sent again."""

    waiver_id: OrderId
    host_id: HostId
    boot: BootId
    domain_id: StorageDomainId


class StartCommand(Value, frozen=True, kw_only=True, tag="start"):
    """Start a VM: its record names ``host_id`` among the copies already. ``proofs``: one for each host
    that held it in this recovery; never empty unless every former copy was released."""

    order_id: OrderId
    vm_id: VmId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation
    grant_ms: int
    proofs: tuple[Proof, ...]


class CancelStart(Value, frozen=True, kw_only=True, tag="cancel_start"):
    """Take the grant back; the host confirms with a release (G2)."""

    order_id: OrderId
    vm_id: VmId
    host_id: HostId
    incarnation: Incarnation


class MigrateCommand(Value, frozen=True, kw_only=True, tag="migrate"):
    """Move a running VM: its record names source and target among the copies already. To the target, whose gate lets that
    copy in, then to the source. Sent once and never again; who doesn't know how it stands asks by ``SettleMigration``.
    Pre-copy only (G6). Past the deadline the source ends the attempt, and the VM runs on where it was. Outcome:
    ``MigrationEnded``, and a release by the side that lost it."""

    order_id: OrderId
    vm_id: VmId
    source: HostId
    target: HostId
    source_boot: BootId
    target_boot: BootId
    source_incarnation: Incarnation
    incarnation: Incarnation
    """Of the target's copy; it counts on the storage from the moment it runs there."""
    deadline_ms: int


class SettleMigration(Value, frozen=True, kw_only=True, tag="settle_migration"):
    """To one side of a migration. May be sent again. ``proofs``: about the other side's copy, where it didn't say so
    itself."""

    order_id: OrderId
    vm_id: VmId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation
    word: MigrationWord
    proofs: tuple[Proof, ...] = ()


Command = (
    Investigate
    | ReadPower
    | OrderPower
    | StorageFence
    | StorageLetIn
    | Poison
    | GiveWaiver
    | EndWaiver
    | StartCommand
    | CancelStart
    | EndCopy
    | EndPaused
    | MigrateCommand
    | SettleMigration
)


class Notice(Value, frozen=True, kw_only=True):
    """An event of the registry for audit log, stream and alerts."""

    code: str
    host_id: HostId | None = None
    vm_id: VmId | None = None
    incident: int | None = None
    fields: Fields = {}


class Decision(Value, frozen=True, kw_only=True):
    intents: tuple[Intent, ...] = ()
    commands: tuple[Command, ...] = ()
    notices: tuple[Notice, ...] = ()
    wake_at: Millis | None = None
    """Earliest cluster time at which a step without input could decide differently."""
