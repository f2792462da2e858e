"""What a start that ended otherwise than it should says of its VM."""

import msgspec

from virtha.control.copies import claimed_by, copies_on, refused_for
from virtha.control.effects import Effects
from virtha.control.engine_nouns import engine_vm
from virtha.control.plan import Launch
from virtha.engine.events import CopyGranted
from virtha.model.facts import Outcome, Result
from virtha.model.ids import HostId, Incarnation
from virtha.model.vm import Vm, VmState, VmStatus
from virtha.store.engine import add_grant
from virtha.store.hosts import find_host
from virtha.store.store import WriteTransaction
from virtha.store.vms import VmRow, find_vm, save_vm_status

_REFUSED_FOR = ("order.refused.running", "order.refused.incarnation")


async def launch_given_up(tx: WriteTransaction, effects: Effects, step: Launch) -> None:
    row = await find_vm(tx, step.vm_id)
    if row is not None and row.status.incarnation == step.incarnation:
        # No holder: it was released, so nothing of it is anywhere.
        unclear = bool(row.status.holders)
        if await _save_changed(tx, row, _start_over(row.status, unclear=unclear)):
            effects.configure(row.vm.cluster_id)


async def launch_failed(
    tx: WriteTransaction,
    effects: Effects,
    step: Launch,
    host_id: HostId,
    outcome: Outcome,
) -> None:
    """A holder goes by its durable release, never by an outcome (G1)."""
    row = await find_vm(tx, step.vm_id)
    if row is None or step.incarnation is None:
        return
    status = row.status
    earlier = any(copy.incarnation != step.incarnation for copy in copies_on(status, host_id))
    runs = outcome.code == "order.refused.running"
    if status.incarnation == step.incarnation:
        unclear = outcome.result is Result.UNKNOWN or runs or earlier
        status = _start_over(status, unclear=unclear)
    current, claimant = outcome.fields.get("current"), outcome.fields.get("holder_host")
    refused = outcome.result is Result.REFUSED
    if refused and outcome.code == "order.refused.incarnation" and isinstance(claimant, str):
        status = await _claimed(tx, effects, row.vm, status, HostId(claimant), outcome)
    elif refused and outcome.code in _REFUSED_FOR and isinstance(current, int):
        status = refused_for(status, host_id, step.incarnation, Incarnation(current))
    if await _save_changed(tx, row, status):
        effects.configure(row.vm.cluster_id)


async def _save_changed(tx: WriteTransaction, row: VmRow, status: VmStatus) -> bool:
    if status == row.status:
        return False
    if status.state is not row.status.state:
        status = msgspec.structs.replace(status, since=tx.clock.wall_ms())
    await save_vm_status(tx, status)
    return True


def _start_over(status: VmStatus, *, unclear: bool) -> VmStatus:
    """Unless a report has said more already."""
    if status.state is not VmState.STARTING:
        return status
    return msgspec.structs.replace(status, state=VmState.UNKNOWN if unclear else VmState.DOWN)


async def _claimed(
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
