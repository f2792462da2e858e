"""What an operation's steps are to do; kept with it, so that a restarted server goes on from there.

``Plan.steps`` runs beside ``Operation.steps``: same length, same order.
"""

import msgspec

from virtha.model.facts import ForeignDomain
from virtha.model.ids import DiskId, HostId, Incarnation, NicId, SnapshotId, TemplateId, VmId
from virtha.model.orders import (
    AdoptVm,
    CancelWork,
    CopyDisk,
    CreateDisk,
    DefineVm,
    DeleteTemplate,
    ForgetVm,
    GrowLiveDisk,
    PauseVm,
    PlugDevice,
    PrepareStorage,
    RebootVm,
    ReleaseVm,
    ResumeVm,
    ScanForeign,
    SnapshotAction,
    StopVm,
    UnplugDevice,
)
from virtha.model.value import Value
from virtha.model.vm import Disk, Nic

RECOVER = "vm.recover"
"""The kind of an operation that is a start by the engine."""
FixedOrder = (
    StopVm
    | RebootVm
    | PauseVm
    | ResumeVm
    | DefineVm
    | ForgetVm
    | PrepareStorage
    | CreateDisk
    | CopyDisk
    | DeleteTemplate
    | ScanForeign
    | AdoptVm
    | ReleaseVm
    | PlugDevice
    | UnplugDevice
    | GrowLiveDisk
    | CancelWork
)
"""Every order but a start, whose grant can't be made ahead."""


class Give(Value, frozen=True, kw_only=True, tag="give"):
    """Give ``order`` to ``host_id``. ``optional``: its failure does not end the operation.
    ``parallel``: the next step does not wait for its outcome; the operation's end does."""

    name: str
    host_id: HostId
    order: FixedOrder
    optional: bool = False
    parallel: bool = False


class Launch(Value, frozen=True, kw_only=True, tag="launch"):
    """Choose a host, take the next incarnation, start. ``host_id``: only there."""

    name: str
    vm_id: VmId
    host_id: HostId | None = None
    incarnation: Incarnation | None = None
    """Set when it was launched."""


class DropRecord(Value, frozen=True, kw_only=True, tag="drop"):
    """Forget the VM's record. ``code``: the event for it."""

    name: str
    vm_id: VmId
    code: str
    host_id: HostId | None = None


class AdoptFound(Value, frozen=True, kw_only=True, tag="adopt_found"):
    """Make steps of what the scan before it found. ``names`` empty: all."""

    name: str
    host_id: HostId
    names: tuple[str, ...] = ()
    ha: bool = False
    dry_run: bool = False


class ReadyTemplate(Value, frozen=True, kw_only=True, tag="ready_template"):
    """All of its disks are whole: VMs may be made from it."""

    name: str
    template_id: TemplateId


class DropTemplate(Value, frozen=True, kw_only=True, tag="drop_template"):
    """Forget a template whose files are gone. ``code``: the event for it; None: nobody ever saw it ready."""

    name: str
    template_id: TemplateId
    code: str | None = None


class SnapshotStep(Value, frozen=True, kw_only=True, tag="snapshot"):
    """Take the next incarnation and let ``host_id`` change the snapshots in the VM's disks under it. ``live``: the
    copy that runs there does it, under its own."""

    name: str
    vm_id: VmId
    host_id: HostId
    snapshot_id: SnapshotId
    action: SnapshotAction
    incarnation: Incarnation | None = None
    """Set when the order went out."""
    live: bool = False
    freeze: bool = False
    torn: bool = False
    """An earlier try may have put back some of the disks."""


class GrowStep(Value, frozen=True, kw_only=True, tag="grow"):
    """Take the next incarnation and let ``host_id`` make a disk of a VM that is down larger under it."""

    name: str
    vm_id: VmId
    host_id: HostId
    disk_id: DiskId
    size_bytes: int
    incarnation: Incarnation | None = None
    """Set when the order went out."""


class SetDiskSize(Value, frozen=True, kw_only=True, tag="set_disk_size"):
    """Write a disk's size, which it has by now, into its VM's record."""

    name: str
    vm_id: VmId
    disk_id: DiskId
    size_bytes: int


class AddDevice(Value, frozen=True, kw_only=True, tag="add_device"):
    """Put a disk or network card into the VM's record; ``plug``: and into its running copy, if it has one."""

    name: str
    vm_id: VmId
    disk: Disk | None = None
    nic: Nic | None = None
    plug: bool = True


class RemoveDevice(Value, frozen=True, kw_only=True, tag="remove_device"):
    """Take a disk or network card out of the VM's record; no copy has it any more."""

    name: str
    vm_id: VmId
    device_id: DiskId | NicId
    incarnation: Incarnation | None = None
    """Whose copy gave it up; None: there was none."""


Step = (
    SnapshotStep
    | GrowStep
    | SetDiskSize
    | Give
    | Launch
    | DropRecord
    | AdoptFound
    | ReadyTemplate
    | DropTemplate
    | AddDevice
    | RemoveDevice
)


class Plan(Value, frozen=True, kw_only=True):
    """``on_failure`` steps take the place of those that were left when one fails."""

    steps: tuple[Step, ...]
    on_failure: tuple[Step, ...] = ()
    failed: bool = False
    """The steps that run now clean up; the operation ends as failed."""
    cancelled_by: str | None = None
    """Somebody took it back: no further step begins, and it ends as cancelled."""
    by: str = ""
    changes: tuple[str, ...] = ()
    """What adopting changed, in words."""


class FoundByScan(Value, frozen=True, kw_only=True):
    """What a scan found: kept with its operation, beside the plan (column ``foreign_domains``)."""

    items: tuple[ForeignDomain, ...] = ()


def encode_plan(plan: Plan) -> str:
    return msgspec.json.encode(plan).decode()


def decode_plan(text: str) -> Plan:
    return msgspec.json.decode(text, type=Plan)
