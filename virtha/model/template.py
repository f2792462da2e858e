"""A template: the configuration of a VM and a sealed copy of its disks, which new VMs are made from."""

from enum import StrEnum

from msgspec import UNSET, UnsetType

from virtha.model.ids import ClusterId, Revision, TemplateId
from virtha.model.machine import MachineType
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.model.vm import Disk, OnIoError
from virtha.model.watchdog import Watchdog

DIRECTORY = "templates"
"""Of a storage domain: below it, one directory per template. No VM writes there."""


class TemplateState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"
    """Some of its disks may be gone: nothing is made from it any more, and it can only be deleted."""


class TemplateNic(Value, frozen=True, kw_only=True):
    """A card without an address: each VM gets its own. ``name``: see ``Nic``."""

    bridge: str
    model: str = "virtio"
    name: str | UnsetType = UNSET


class Template(Value, frozen=True, kw_only=True):
    """Sizes in bytes. ``disks``: the sealed files, by their own ids and paths."""

    id: TemplateId
    name: str
    cluster_id: ClusterId
    description: str = ""
    source_vm: str
    """Name of the VM that it was made from, then."""
    state: TemplateState = TemplateState.CREATING
    memory_bytes: int
    vcpus: int
    architecture: str
    machine: MachineType
    watchdog: Watchdog | None = None
    """None: VMs made from it have no card of their own either (W5, W10)."""
    ha: bool = False
    priority: int = 0
    on_io_error: OnIoError = OnIoError.AUTO_RESUME
    disks: tuple[Disk, ...] = ()
    nics: tuple[TemplateNic, ...] = ()
    created: UtcMillis
    revision: Revision = Revision(0)
