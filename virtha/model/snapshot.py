"""A snapshot of all disks of a VM, kept inside their qcow2 files under its id (ADR 0013)."""

from enum import StrEnum

from virtha.model.ids import SnapshotId, VmId
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class SnapshotState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    REVERTING = "reverting"
    """Some disks may be as they were then, others not: the VM can't be started before a revert has succeeded."""
    DELETING = "deleting"


class Snapshot(Value, frozen=True, kw_only=True):
    id: SnapshotId
    vm_id: VmId
    name: str
    description: str = ""
    state: SnapshotState = SnapshotState.CREATING
    frozen: bool | None = None
    """Whether its guest was frozen for it; None: the VM was down."""
    disks: tuple[str, ...] = ()
    """Names of the disks that it is of."""
    created: UtcMillis
