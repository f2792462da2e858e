"""What the engine keeps across restarts and changes of leader. All times are cluster time (M4).

A record is written before any command that follows from it, so whoever reads the records finds every order
that may be under way, and finishes it.
"""

from enum import StrEnum
from typing import NewType

from virtha.model.ids import BootId, HostId, Incarnation, Term, VmId
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
    ON_ORDERED = "on_ordered"
    """Proven; the reboot's second half, an intent of its own."""
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
    blinked: bool = False
    disqualified: bool = False
    """A sign of that boot came after an order of ours: power readings of this incident prove nothing any more."""

    @property
    def proof(self) -> Proof | None:
        return self.proofs[0] if self.proofs else None


class HostRecord(Value, frozen=True, kw_only=True):
    host_id: HostId
    boot: BootId | None = None
    """The boot last seen: the one whose death would have to be proven."""
    incident: Incident | None = None
    maintenance: str | None = None
    """Who put it there."""
    tested_devices: tuple[PowerDeviceId, ...] = ()
    """Devices that passed a power test while a boot of this host was beating (P1)."""
    identified_devices: tuple[PowerDeviceId, ...] = ()
    """Devices whose own identity matched the host's."""
    dead_boots: tuple[BootId, ...] = ()
    """The last boots that ended or were proven dead, newest last: a sign of one is an alarm, never a return."""


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


class Start(Value, frozen=True, kw_only=True):
    """An ordered start. Durable before the command."""

    order_id: OrderId
    host_id: HostId
    boot: BootId
    incarnation: Incarnation
    ordered_ms: int


class Death(Value, frozen=True, kw_only=True):
    """A host died with the VM on it."""

    host_id: HostId
    at_ms: int


class VmRecord(Value, frozen=True, kw_only=True):
    vm_id: VmId
    incarnation: Incarnation = Incarnation(0)
    copies: tuple[PossibleCopy, ...] = ()
    """Every incarnation that some host may hold (G1), the present one included."""
    stage: VmStage = VmStage.SETTLED
    start: Start | None = None
    proofs: tuple[Proof, ...] = ()
    """What removed copies in this recovery: cited by the start, and by what ends a returning copy (G4)."""
    attempts: int = 0
    tried: tuple[HostId, ...] = ()
    """Targets that failed in this recovery."""
    next_ms: int = 0
    """No further attempt before that."""
    lost_ms: int | None = None
    ready_ms: int | None = None
    """Since when nobody can hold it: from then on it may wait for those that it depends on."""
    deaths: tuple[Death, ...] = ()


class FenceCount(Value, frozen=True, kw_only=True):
    """One order to a host that was not known to be off (J6)."""

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
    brake_lifted_ms: int = 0
    """Hosts that had fallen by then trip it no more."""


class EngineRecords(Value, frozen=True, kw_only=True):
    """All that a new leader reads before its first step."""

    cluster: ClusterRecord
    hosts: tuple[HostRecord, ...] = ()
    vms: tuple[VmRecord, ...] = ()
