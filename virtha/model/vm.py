"""A virtual machine: what the operator wants (``Vm``) and what is known of it (``VmStatus``)."""

from enum import StrEnum

from msgspec import UNSET, UnsetType

from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    HostId,
    Incarnation,
    NicId,
    Revision,
    StorageDomainId,
    VmId,
)
from virtha.model.machine import MachineType
from virtha.model.policy.permission import PermissionGrade
from virtha.model.time import UtcMillis
from virtha.model.value import Fields, Value
from virtha.model.watchdog import Watchdog


class DiskFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


class Disk(Value, frozen=True, kw_only=True):
    """A disk on a storage domain. ``path`` is relative to the domain's directory, '/' between parts."""

    id: DiskId
    name: str
    storage_domain_id: StorageDomainId
    path: str
    format: DiskFormat = DiskFormat.QCOW2
    size_bytes: int
    bus: str = "virtio"
    """``virtio``, ``scsi``, ``sata`` or ``ide``."""
    readonly: bool = False


class Nic(Value, frozen=True, kw_only=True):
    """A network card on a bridge of the host."""

    id: NicId
    bridge: str
    mac: str
    model: str = "virtio"
    name: str | UnsetType = UNSET
    """What its maker calls it; left out where he gave none, for hosts have no use for it."""

    @property
    def called(self) -> str:
        """Unlike its place among the others, the same for as long as it is there."""
        return f"nic-{self.mac.replace(':', '')}" if self.name is UNSET else self.name


class OnIoError(StrEnum):
    """What becomes of a VM that QEMU paused because a disk answered with an error (S6)."""

    AUTO_RESUME = "auto_resume"
    """Its host lets it go on once the storage of all its disks answers again."""
    LEAVE_PAUSED = "leave_paused"
    """It waits for a person."""
    KILL = "kill"
    """As ``AUTO_RESUME``; one that stays paused for ``io_error.kill_after`` is ended, and started on a host whose
    storage works."""


NO_ROOM_PAUSE = "vm.paused.no_room"
IO_PAUSES = frozenset({"vm.paused.io_error", NO_ROOM_PAUSE})
"""Codes of such a pause. Requests of its guest are in flight then: never migrated."""


PRIORITY_MAX = 100
"""As oVirt's."""


class Vm(Value, frozen=True, kw_only=True):
    """The configuration of one VM, as the operator wants it. Sizes in bytes."""

    id: VmId
    name: str
    cluster_id: ClusterId
    description: str = ""
    memory_bytes: int
    vcpus: int = 1
    architecture: str = "x86_64"
    machine: MachineType = MachineType.Q35
    watchdog: Watchdog | None = None
    """None: the host-wide default of ``agent.properties`` applies (W10)."""
    ha: bool = False
    """Restarted after a failure; without it failures are recorded only."""
    priority: int | UnsetType = UNSET
    """See ``start_priority``; left out where it is 0, for hosts have no use for it."""
    grade: PermissionGrade | UnsetType = UNSET
    """See ``grade_max``; left out where only its cluster's counts."""
    on_io_error: OnIoError = OnIoError.AUTO_RESUME
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    adopted: bool = False
    """Its domain XML came with it and is patched element by element, never made anew."""
    revision: Revision = Revision(0)

    @property
    def start_priority(self) -> int:
        """0 to 100: of VMs that come back after a failure, the higher is started first."""
        return 0 if self.priority is UNSET else self.priority

    @property
    def grade_max(self) -> PermissionGrade | None:
        """How far automatic action may go with it at most, whatever its cluster's policy allows; None: as far as that."""
        return None if self.grade is UNSET else self.grade


class Hardware(Value, frozen=True, kw_only=True):
    """What a copy's QEMU has, read from libvirt's live XML: what it was started with, and what was plugged since."""

    memory_bytes: int
    vcpus: int
    machine: MachineType
    watchdog: Watchdog | None = None
    default_watchdog: Watchdog | None = None
    """What its host gives to a VM without a card of its own (W10)."""
    disks: tuple[Disk, ...] = ()
    """Their ``id``, ``name`` and ``size_bytes`` are not to be relied on: XML doesn't have them."""
    nics: tuple[Nic, ...] = ()
    """``id`` as little."""


class Running(Value, frozen=True, kw_only=True):
    incarnation: Incarnation
    hardware: Hardware


class VmState(StrEnum):
    """What runs. ``UNKNOWN``: the host that holds it can't be asked."""

    UNKNOWN = "unknown"
    DOWN = "down"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    CRASHED = "crashed"
    """The guest panicked and its remains are kept."""


class Reason(Value, frozen=True, kw_only=True):
    """Why something is as it is: a code of the registry with its fields."""

    code: str
    fields: Fields = {}
    since: UtcMillis | None = None


class PossibleCopy(Value, frozen=True, kw_only=True):
    """An incarnation whose start was ordered, and of which its host has not said that it is over."""

    host_id: HostId
    incarnation: Incarnation
    boot: BootId | None = None
    """None: not known."""
    grant_ends_at_ms: int = 0
    """On the host's boot-time clock; from then on its gate lets nothing of it begin."""


class VmStatus(Value, frozen=True, kw_only=True):
    """What the server knows of a VM, from facts of its host."""

    vm_id: VmId
    state: VmState = VmState.DOWN
    reasons: tuple[Reason, ...] = ()
    host_id: HostId | None = None
    """Where it runs, or last ran."""
    holders: tuple[HostId, ...] = ()
    """Hosts that *may* hold a copy (G1); sorted. Added before a start goes out, removed only by a release or a proof."""
    copies: tuple[PossibleCopy, ...] = ()
    """What each holder may hold, start by start: the release of one says nothing of another (G1). One of
    a host that is no holder is of a host that this installation does not know."""
    superseded: tuple[HostId, ...] = ()
    """Holders whose copies are left as they are, or to end: another host has, or was ordered to have, a newer one (G4)."""
    incarnation: Incarnation = Incarnation(0)
    wanted_up: bool = False
    """What the operator last asked for."""
    guest_agent: bool | None = None
    """Whether the guest agent answers; None: not known."""
    since: UtcMillis | None = None
    last_watchdog: UtcMillis | None = None
    watchdog_count: int = 0
    running: Running | None = None
    """What the copy of that incarnation has; its host tells it after each start."""
    restart_count: int = 0
    """Automatic restarts inside the policy's present window (M5: travels with the VM)."""
    revision: Revision = Revision(0)
