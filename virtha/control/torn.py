"""Disks that no start may use: those of a VM which is half way back to a snapshot (ADR 0013)."""

from virtha.model.errors import Refused
from virtha.model.snapshot import SnapshotState
from virtha.model.vm import Vm
from virtha.store.snapshots import snapshots_of
from virtha.store.store import Transaction


async def check_not_torn(tx: Transaction, vm: Vm) -> None:
    """Asked by every start, a person's or the engine's, and by whatever would keep what is on its disks. Raises Refused while a
    revert has not succeeded: the disks may be of different times."""
    for one in await snapshots_of(tx, vm.id):
        if one.state is SnapshotState.REVERTING:
            raise Refused(
                f"{vm.name} is half way back to snapshot {one.name}: its disks may be of different times",
                code="problem.snapshot.state",
                fix=f"finish it: 'virtha vm snapshot revert {vm.name} {one.name}'",
            )
