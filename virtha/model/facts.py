"""Facts: what an agent tells the server. Durable on the host until the server has acknowledged them.

Ordered by (host, sequence), never by a host's wall clock. ``monotonic_ms`` counts on the host's
boot-time clock and compares only within one ``boot``.
"""

from enum import StrEnum

from msgspec import UNSET, UnsetType

from virtha.model.ceph import CephSight
from virtha.model.domain import DomainReport
from virtha.model.host import HostCapabilities
from virtha.model.ids import BootId, Incarnation, OperationId, StorageDomainId, VmId
from virtha.model.value import Fields, Value
from virtha.model.vm import Hardware, PossibleCopy, Reason, Vm, VmState


class Happened(Value, frozen=True, kw_only=True, tag="happened"):
    """An event of the registry, about a VM or about the host itself."""

    code: str
    vm_id: VmId | None = None
    incarnation: Incarnation | None = None
    fields: Fields = {}


class Leaving(Value, frozen=True, kw_only=True):
    """The migration by which a copy was to leave its host."""

    migration_id: OperationId
    target: PossibleCopy
    """With its boot. Only that host can say whether it ran there (G6)."""


class VmReport(Value, frozen=True, kw_only=True, tag="vm", omit_defaults=True):
    """The present state of one managed VM on this host, as the sentinel knows it."""

    vm_id: VmId
    incarnation: Incarnation
    state: VmState
    reasons: tuple[Reason, ...] = ()
    guest_agent: bool | None = None
    restart_count: int = 0
    leaves: Leaving | None = None
    """It stands still as the source of that migration until the server says how it goes on. Told for those who have no
    record of it, as ``Awaited`` is (M2). None: it does not, or the order was an earlier version's."""


class ReleaseCause(StrEnum):
    """Why a host gave a copy back. Only the first five leave a VM that is still wanted up."""

    HOST_SHUTDOWN = "host_shutdown"
    """Its host goes down in order and took it along."""
    HOST_BOOTED = "host_booted"
    """Its host came up anew without it."""
    LEASE_LOST = "lease_lost"
    """Its host lost the storage, and killed it in time."""
    SUPERSEDED = "superseded"
    """A newer copy was started elsewhere while it was taken for dead (G4): its end says nothing of the VM."""
    IO_ERROR = "io_error"
    """An I/O error had paused it, and its host ended it as the engine ordered (S6)."""
    INTENDED = "intended"
    """Stopped by an operator, by its guest, or with the host's own tools; moved or saved with those."""
    ENDED = "ended"
    """It crashed or vanished, and its host does not restart it (any more)."""
    NEVER_RAN = "never_ran"
    """Its start was refused or failed, or it never came by the migration that it was awaited by."""
    MOVED = "moved"
    """Handed over to another host by a migration that the server ordered."""


class Released(Value, frozen=True, kw_only=True, tag="released", omit_defaults=True):
    """This host no longer holds that incarnation, and won't start it (G1, P5)."""

    vm_id: VmId
    incarnation: Incarnation
    cause: ReleaseCause | None = None
    """None: an agent of an earlier version does not say."""


class Inventory(Value, frozen=True, kw_only=True, tag="inventory"):
    """All domains of the host, managed or not; sent when ``revision`` (the host's count) moved on."""

    revision: int
    domains: tuple[DomainReport, ...]


class HostReport(Value, frozen=True, kw_only=True, tag="host"):
    capabilities: HostCapabilities


class Image(Value, frozen=True, kw_only=True):
    """A file below a storage domain's ``images/``; ``name`` is without its suffix."""

    name: str
    path: str
    format: str
    size_bytes: int
    virtual_size_bytes: int

    @property
    def file_name(self) -> str:
        """Two images can have one name, as ``web.qcow2`` and ``web.raw``; none shares this."""
        return self.path.rpartition("/")[2]


class StorageReport(Value, frozen=True, kw_only=True, tag="storage"):
    storage_domain_id: StorageDomainId
    usable: bool
    detail: str = ""
    size_bytes: int = 0
    free_bytes: int = 0
    images: tuple[Image, ...] = ()
    ceph: CephSight | UnsetType = UNSET
    """Of a domain on Ceph, as it was last known in the present boot: an outage changes none of it."""
    mark: str | UnsetType = UNSET
    """What stands there to tell one storage from another; of one that can be used. Agents of an earlier version look at none."""
    low_space: str | UnsetType = UNSET
    """In words, where it is nearly full; in ``detail`` too, unless something worse stands there."""


class Result(StrEnum):
    """``REFUSED``: nothing was done, by rule. ``UNKNOWN``: it may or may not have happened."""

    OK = "ok"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"


class ForeignDomain(Value, frozen=True, kw_only=True):
    """A libvirt domain that virtha does not manage, as far as it could be read."""

    vm: Vm | None
    """None when it can't be adopted; ``obstacles`` says why."""
    name: str
    state: str
    obstacles: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    """What adopting would change in its XML, in words."""


class Outcome(Value, frozen=True, kw_only=True, tag="outcome"):
    """How one order ended. Sent once per order and again if the order comes again."""

    operation_id: OperationId
    step: int
    result: Result
    code: str | None = None
    message: str = ""
    fields: Fields = {}
    changes: tuple[str, ...] = ()
    foreign: tuple[ForeignDomain, ...] = ()


class MigrationReport(Value, frozen=True, kw_only=True, tag="migration"):
    """How a migration stands, as this side of it knows for certain. Said again when it is asked for.

    - from the source: ``OK``: handed over. ``FAILED``, ``REFUSED``: not handed over, and it never will be by this
      order; the VM goes on there. ``UNKNOWN``: all of it was sent, nobody confirmed; the VM stands still there (G6).
    - from the target: ``OK``: it runs there. ``FAILED``, ``REFUSED``: it never ran there, nor can it by this order,
      and no copy is left. ``UNKNOWN``: it stands still there, complete.
    """

    migration_id: OperationId
    vm_id: VmId
    incarnation: Incarnation
    """Of the copy of the side that speaks."""
    result: Result
    code: str | None = None


class Awaited(Value, frozen=True, kw_only=True, tag="awaited", omit_defaults=True):
    """A copy is to come to this host by a live migration, or comes, and has not run here. Not how the VM is: that its
    source says. Told for those who have no record of the migration, whose database was restored from before it (M2)."""

    migration_id: OperationId
    vm_id: VmId
    incarnation: Incarnation
    """Of that copy."""
    source: PossibleCopy | None = None
    """Where it comes from, as the order said; None: the order was an earlier version's."""


class RunsWith(Value, frozen=True, kw_only=True, tag="runs_with", omit_defaults=True):
    """What this host's copy of a VM has at present: a change of the VM that is not in it waits for a start."""

    vm_id: VmId
    incarnation: Incarnation
    hardware: Hardware


class Progress(Value, frozen=True, kw_only=True, tag="progress"):
    """How far a long order (a disk copy) is; a later one makes an earlier one void."""

    operation_id: OperationId
    step: int
    percent: int


FactBody = (
    Happened
    | VmReport
    | Released
    | Inventory
    | HostReport
    | StorageReport
    | Outcome
    | Progress
    | MigrationReport
    | Awaited
    | RunsWith
)


class Fact(Value, frozen=True, kw_only=True):
    """``sequence`` counts up by 1 per host for ever, over boots and agents."""

    sequence: int
    boot: BootId
    monotonic_ms: int
    wall_ms: int
    body: FactBody
