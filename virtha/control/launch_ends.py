"""What a start that ended otherwise than it should says of its VM."""

import msgspec

from virtha.control.copies import claimed_by
from virtha.control.effects import Effects
from virtha.control.engine_nouns import engine_vm
from virtha.engine.events import CopyGranted
from virtha.model.facts import Outcome
from virtha.model.ids import HostId, Incarnation
from virtha.model.vm import Vm, VmState, VmStatus
from virtha.store.engine import add_grant
from virtha.store.hosts import find_host
from virtha.store.store import WriteTransaction


def start_over(status: VmStatus, *, unclear: bool) -> VmStatus:
    """Unless a report has said more already."""
    if status.state is not VmState.STARTING:
        return status
    return msgspec.structs.replace(status, state=VmState.UNKNOWN if unclear else VmState.DOWN)


async def claimed(
    tx: WriteTransaction,
    effects: Effects,
    vm: Vm,
    status: VmStatus,
    claimant: HostId,
    outcome: Outcome,
) -> VmStatus:
    """The storage knows of a later start than we do. Never counted past: that copy may run (G4)."""
    present = outcome.fields.get("incarnation")
    if not isinstance(present, int):
        return status
    host = await find_host(tx, claimant)
    known = host is not None and host.host.id == claimant
    later = claimed_by(status, claimant, Incarnation(present), known=known)
    if not known:
        return later
    if host is not None and host.status.boot is not None:
        # In which boot it was started nobody says: taken for the present one, whose end is still to come.
        granted = CopyGranted(
            host_id=claimant,
            boot=host.status.boot,
            vm_id=status.vm_id,
            incarnation=Incarnation(present),
        )
        await add_grant(tx, granted)
        effects.grant(vm.cluster_id, engine_vm(vm, status), granted)
    return msgspec.structs.replace(later, host_id=claimant, state=VmState.UNKNOWN)
