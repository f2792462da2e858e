"""What the engine keeps across restarts and changes of leader. All times are cluster time (M4).

A record is written before any command that follows from it, so whoever reads the records finds every order
that may be under way, and finishes it.
"""

from enum import StrEnum
from typing import NewType

from msgspec.structs import replace

from virtha.model.facts import ReleaseCause
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, Term, VmId
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.proof import Proof
from virtha.model.value import Value
from virtha.model.vm import PossibleCopy

OrderId = NewType("OrderId", str)
"""``<term>.<number>``: never used twice, for the number is kept with the record that names it."""


class FenceStep(StrEnum):
    """How far the present level of power devices is."""

    OFF_ORDERED = "off_ordered"
    READING = "reading"
    """Accepted; two readings *off*, a second apart, are the proof (P1)."""
    ON_DUE = "on_due"
    """Proven; an *on* was too late to be carried out and is to be ordered again."""
    ON_ORDERED = "on_ordered"
    """Proven; the reboot's second half, an intent of its own."""
    ON_TAKEN = "on_taken"
    """A device took the *on*; the host has until ``next_ms`` to come back."""
    ON_FAILED = "on_failed"
    """It stays off, and somebody was told."""
    NOT_BACK = "not_back"
    """Switched on, it gave no sign in its time, and somebody was told."""
    RETRYING = "retrying"
    """Every level failed; the first is tried again at ``next_ms``."""


class FeedProgress(Value, frozen=True, kw_only=True):
    """One device of the level."""

    device: PowerDeviceId
    accepted: bool = False
    """It took the *off*; readings from before do not count."""
    off_since_ms: int | None = None
    """The first reading *off* after that, with no other reading since."""
    confirmed: bool = False
    """A second one, long enough after the first."""
    too_late: bool = False
    """Its order was too old when it would have gone out: never carried out."""
    said_on: bool = False
    """When it was last read, after it took the *off*."""
    unread: str = ""
    """Code of what kept its last reading from saying a state; empty: it said one, or none was made."""


class Fence(Value, frozen=True, kw_only=True):
    """A fencing under way: durable before its first order."""

    action: PowerAction
    level: int
    attempt: int
    """Of this level, from 1."""
    step: FenceStep
    order_id: OrderId
    ordered_ms: int
    began_ms: int
    feeds: tuple[FeedProgress, ...]
    on_after: bool = False
    """Reboot: switched on again once the proof is written."""
    known_off: bool = False
    """Read as off before the order: the cap does not count it (J6)."""
    next_ms: int = 0
    rounds: int = 0
    """How often all levels have failed."""
    off_until_ms: int = 0
    """Until then an *off* that was ordered before this one may still strike."""
    failed: str = ""
    """The code of the last failure of a level; empty: none has failed."""
    unread: str = ""
    """Where that is ``power.unread``: the code of why the device could not be read; empty: not known."""


class Orders(Value, frozen=True, kw_only=True):
    """*Off*s that followed each other so quickly that what they may have done can't be told apart."""

    first_ms: int
    last_ms: int


class Struck(Value, frozen=True, kw_only=True):
    """A host that fell silent around an *off* that was meant for another, and came back in a new boot (P1)."""

    host_id: HostId
    until_ms: int | None = None
    """Nobody saw when it fell silent: taken for struck till then. None: it was around the order."""
    told: bool = False


class Start(Value, frozen=True, kw_only=True):
    """An ordered start. Durable before the command."""

    order_id: OrderId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation
    ordered_ms: int


class EndedCopy(Value, frozen=True, kw_only=True):
    """A copy that its host's ``proof`` ended. ``given_out``: the VM's highest incarnation at that time, or when it was superseded,
    or that never ran since: a higher one was ordered since, elsewhere."""

    vm_id: VmId
    copy: PossibleCopy
    given_out: Incarnation
    proof: Proof
    start: Start | None = None
    """Its own, where that host had not yet said what came of it: it may never have heard of it."""
    end: OrderId | None = None
    """The order to end it, where its host lives and is shut out of its storage (``stale``)."""


class Incident(Value, frozen=True, kw_only=True):
    """One host's failure, from judgement to return. Bound to one boot."""

    number: int
    boot: BootId
    silent_since_ms: int
    began_ms: int
    fence: Fence | None = None
    proofs: tuple[Proof, ...] = ()
    """More than one may come; the first is enough."""
    poisoned: bool = False
    storage_fenced: bool = False
    """It is to be shut out of its storage: how far that is, is in ``HostRecord.cuts``."""
    blinked: bool = False
    disqualified: bool = False
    """A sign of that boot came after an order of ours: power readings of this incident prove nothing any more."""
    late_orders: int = 0
    """Power orders that were too late to be carried out."""
    next_order_ms: int = 0
    """None before that, because of those: what is always too late is not repeated at once without end (F9)."""
    told_late: bool = False
    """That as many as a device has attempts were too late was told."""
    levels_told: int = 0
    """Of so many levels it was told that they were begun with."""
    disks_written: bool = False
    """Its disks changed after an order of ours: readings prove nothing until readers found them quiet, whoever leads (J3)."""
    told_written: bool = False
    """Of the present state of its fence: that disks are written was told, once an order had to wait for it."""
    told_refusals: tuple[str, ...] = ()
    """Events that say why it is not ordered off, and reasons in ``fence.withheld``, that were told (F4, F7, X1)."""
    by_removal: bool = False
    """Nobody judged it dead: it was removed while VMs might run there."""
    told_removed: bool = False
    """That it was removed without proof was told."""
    timeline: str = ""
    """Of the database in which it was judged: what was found in another says nothing after a restore (M2)."""
    once_proven: bool = False
    """By a proof of another timeline: that boot's signs are an alarm all the same."""
    ended: tuple[EndedCopy, ...] = ()
    """What its proofs ended: if that boot lives after all, these may (G4)."""
    settled: bool = False
    """Its proof stood for what the host had not told since a restore (M2)."""

    orders: tuple[Orders, ...] = ()
    """When it was ordered off, oldest first."""
    struck: tuple[Struck, ...] = ()
    """Hosts that those orders may have struck instead."""

    @property
    def proof(self) -> Proof | None:
        return self.proofs[0] if self.proofs else None


class Told(Value, frozen=True, kw_only=True):
    """What a host has said of itself in one timeline of the database (M2). The engine's own word for it: what the server
    has noted of a host's survey may be more than any leader knows of it."""

    timeline: str
    since_ms: int | None = None
    """When its first survey in the present boot came, or its agent or libvirt was there again. None: no survey has, in this timeline."""
    settled: bool = False
    """No start that lost records knew of can begin there any more, or have begun untold: it was heard throughout the longest
    grant (G2), is proven dead, or joined in that timeline."""
    missing: bool = False
    """That the records never heard of it, and that it does not come, was told."""


class Drain(StrEnum):
    """How far a host in maintenance is that its VMs are to leave."""

    DRAINING = "draining"
    DRAINED = "drained"
    """Nothing is left that it could hold."""


class Waiver(Value, frozen=True, kw_only=True):
    """That boot need not kill its VMs though it can't renew there; while it stands, its lease proves nothing (P2).
    Durable before it is given."""

    waiver_id: OrderId
    """The host's word that it is over is about this one, not about one before."""
    domain_id: StorageDomainId
    boot: BootId
    ending: bool = False
    """The host is asked to keep the lease again, and has not said that it does."""


class SeenByCeph(Value, frozen=True, kw_only=True):
    """How a cluster saw this host in ``boot``, by way of that domain: all that was told in that boot, for what was opened from a
    former address is open yet."""

    boot: BootId
    domain_id: StorageDomainId
    fsid: str
    addresses: tuple[str, ...]
    obstacle: str = ""
    lacks: str = ""
    """Why it could not shut another host out, as it told last."""


class AskedHelper(Value, frozen=True, kw_only=True):
    """Who may still carry out an order: until that very worker has answered a later one, or its boot is over."""

    order_id: OrderId
    host_id: HostId
    boot: BootId
    domain_id: StorageDomainId


class StorageCut(Value, frozen=True, kw_only=True):
    """One boot of this host is shut out of one Ceph cluster, or may be (P3). Durable before the order; it outlives the incident,
    until the host was let in again in another boot."""

    fsid: str
    boot: BootId
    addresses: tuple[str, ...]
    """To be shut out, all of them."""
    epoch: int = 0
    """Of the map in which all were read back; 0: they were not, yet."""
    until_s: int = 0
    """UTC seconds: the earliest end that was read back."""
    asked: tuple[AskedHelper, ...] = ()
    """To shut it out."""
    lifting: tuple[AskedHelper, ...] = ()
    """To let it in: while one of these may come about, nothing is proven by a fence of this host (P3)."""
    lifted: bool = False
    touched: bool = False
    """Something of it was done, or may have been: not every order was refused."""
    error: str = ""
    """What a helper said last of why not."""

    @property
    def may_stand(self) -> bool:
        return not self.lifted and (self.touched or bool(self.asked))


class HostRecord(Value, frozen=True, kw_only=True):
    host_id: HostId
    boot: BootId | None = None
    """The boot last seen: the one whose death would have to be proven."""
    boot_seen_ms: int = 0
    """When that boot was first heard of; 0: before this was kept."""
    incident: Incident | None = None
    maintenance: str | None = None
    """Who put it there."""
    drain: Drain | None = None
    """None: its VMs stay where they are."""
    tested_devices: tuple[PowerDeviceId, ...] = ()
    """Devices that passed a power test while a boot of this host was beating (P1)."""
    identified_devices: tuple[PowerDeviceId, ...] = ()
    """Devices whose own identity matched the host's."""
    on_devices: tuple[PowerDeviceId, ...] = ()
    """Devices that said *on* while the present boot was beating (P1)."""
    foreign_devices: tuple[PowerDeviceId, ...] = ()
    """Devices that named another machine: they get no orders until a test clears them."""
    disproved_devices: tuple[PowerDeviceId, ...] = ()
    """Devices that said *off* of a boot that then gave a sign: only a test that was made since makes them prove again (P1)."""
    struck_ms: int = 0
    """When the last order went to its power devices in the incident that its return ended; 0: never, or so long ago
    that it can't strike any more (J7)."""
    dead_boots: tuple[BootId, ...] = ()
    """The last boots that ended or were proven dead, newest last: a sign of one is an alarm, never a return."""
    next_boots: tuple[BootId, ...] = ()
    """Boots whose own session brought facts before it was told: a session of another boot, which may be the late one, ends
    none of them, whoever leads (P4). Until one begins."""
    waived: tuple[Waiver, ...] = ()
    ceph: tuple[SeenByCeph, ...] = ()
    """As it told of the last boot that told any."""
    cuts: tuple[StorageCut, ...] = ()
    told: Told | None = None
    """None: in a database whose timeline is not known, or before this was kept."""
    name: str | None = None
    """What it was called, once it is not configured any more; None: it is."""


class VmStage(StrEnum):
    SETTLED = "settled"
    """Nothing to recover: it runs, or is down on purpose."""
    LOST = "lost"
    """A host that may hold it failed; proof is awaited."""
    READY = "ready"
    """Nobody can hold it any more; to be started as soon as a host fits."""
    STARTING = "starting"
    CANCELLING = "cancelling"
    """Its start took too long; the host is asked for the grant back (G2)."""
    QUARANTINED = "quarantined"
    """Two hosts died within the hour with it on them (M5)."""
    GIVEN_UP = "given_up"
    """As many attempts as the policy allows; somebody was told."""
    MIGRATING = "migrating"
    """On its way to another host while it runs; source and target may hold it until both have told."""


class MovePurpose(StrEnum):
    MAINTENANCE = "maintenance"
    FAILBACK = "failback"
    OPERATOR = "operator"


class MoveStep(StrEnum):
    """What the two sides have said so far."""

    ORDERED = "ordered"
    """Under way, or not begun: nobody has said anything."""
    DOUBTFUL = "doubtful"
    """How it ended is not known."""
    STAYED = "stayed"
    """The source said that it goes on there; the target's copy is to be given back."""
    SWITCHED = "switched"
    """The target runs it, or the source handed it over; the source's copy is to be given back."""
    CONTRADICTED = "contradicted"
    """Both say that it runs there. Nothing is done to either; somebody was told."""


class Migration(Value, frozen=True, kw_only=True):
    """An ordered live migration. Durable, with its target among the copies, before the command (G1)."""

    order_id: OrderId
    purpose: MovePurpose
    source: HostId
    source_boot: BootId
    source_incarnation: Incarnation
    target: HostId
    target_boot: BootId
    incarnation: Incarnation
    """Of the copy on the target; the source's keeps the one that it has."""
    ordered_ms: int
    step: MoveStep = MoveStep.ORDERED
    never_ran: bool = False
    """The target said that its copy never ran: only then is what the source still has in memory not out of date."""
    code: str | None = None
    """Why it failed."""


class MoveRetry(Value, frozen=True, kw_only=True):
    """Moves that failed since it last moved."""

    failures: int = 0
    tried: tuple[HostId, ...] = ()
    """Targets; forgotten when none other is left."""
    next_ms: int = 0
    """No further attempt before that."""


class Death(Value, frozen=True, kw_only=True):
    """A host died with the VM on it, or its storage failed the VM there so that it had to be ended."""

    host_id: HostId
    at_ms: int


class SupersededCopy(Value, frozen=True, kw_only=True):
    """A copy that ``proof`` had ended, in a boot that lives after all, of a VM that was ordered to start elsewhere since. It
    is a holder like any other (G1), and ends whatever becomes of the newer one, which may have written: it goes on nowhere."""

    copy: PossibleCopy
    proof: Proof
    newer: Incarnation
    order_id: OrderId
    """Of the order that ends it."""


class GivenBack(Value, frozen=True, kw_only=True):
    """The release after which nobody held the VM any more."""

    host_id: HostId
    cause: ReleaseCause | None


class Kill(Value, frozen=True, kw_only=True):
    """An order to end a copy that an I/O error paused. Durable before the command."""

    order_id: OrderId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation


class VmRecord(Value, frozen=True, kw_only=True):
    vm_id: VmId
    incarnation: Incarnation = Incarnation(0)
    copies: tuple[PossibleCopy, ...] = ()
    """Every incarnation that some host may hold (G1), the present one included."""
    guessed: tuple[PossibleCopy, ...] = ()
    """Those of them whose incarnation is a guess: a survey named the VM, and which start that was the host is yet to tell."""
    superseded: tuple[SupersededCopy, ...] = ()
    """Those of them that are to end (G4)."""
    stage: VmStage = VmStage.SETTLED
    start: Start | None = None
    proofs: tuple[Proof, ...] = ()
    """What removed copies in this recovery: cited by the start."""
    attempts: int = 0
    tried: tuple[HostId, ...] = ()
    """Targets that failed in this recovery."""
    next_ms: int = 0
    """No further attempt before that."""
    lost_ms: int | None = None
    ready_ms: int | None = None
    """Since when nobody can hold it: from then on it may wait for those that it depends on."""
    deaths: tuple[Death, ...] = ()
    migration: Migration | None = None
    retry: MoveRetry | None = None
    """None: no move of it has failed."""
    home: HostId | None = None
    """Where it ran before the engine itself moved it, or started it elsewhere."""
    given_back: GivenBack | None = None
    """None: somebody may hold it, or its last copy went by a proof."""
    kill: Kill | None = None
    """Until its host gives that copy back, or refuses, or it goes on."""


class FenceCount(Value, frozen=True, kw_only=True):
    """A host and a moment: an order to one that was not known to be off (J6), or a removal."""

    host_id: HostId
    at_ms: int


class Brake(Value, frozen=True, kw_only=True):
    """J5: many hosts fell silent at once; power orders wait."""

    tripped_ms: int
    hosts: int


class ClusterRecord(Value, frozen=True, kw_only=True):
    term: Term
    orders: int = 0
    incidents: int = 0
    fence_counts: tuple[FenceCount, ...] = ()
    """Within the cap's window, oldest first (F7): kept over restarts and changes of leader."""
    brake: Brake | None = None
    removed: tuple[FenceCount, ...] = ()
    """Hosts that were removed while nobody could say that they live, and when: one of them may be what an
    order of ours struck (P1)."""
    brake_lifted_ms: int = 0
    """Hosts that had fallen by then trip it no more."""
    hold: str | None = None
    """The operator's reason: it holds the next leader too, before that has read the settings."""

    def led_in(self, term: Term) -> "ClusterRecord":
        """As the leader of that term takes it over: all of it stands, and its orders are counted in its own term."""
        return replace(self, term=term, orders=0)


class EngineRecords(Value, frozen=True, kw_only=True):
    """All that a new leader reads before its first step."""

    cluster: ClusterRecord
    hosts: tuple[HostRecord, ...] = ()
    vms: tuple[VmRecord, ...] = ()
