"""What must hold after every step, in production too: an engine that breaks it stops, and another goes on
from the records. No VM is touched by that."""

from collections.abc import Sequence

from virtha.engine.events import Command, Intent, OrderPower, SaveHost, SaveVm, StartCommand
from virtha.engine.records import VmStage
from virtha.engine.state import Cluster
from virtha.model.power import PowerAction


def check(cluster: Cluster, intents: Sequence[Intent], commands: Sequence[Command]) -> None:
    """Costs what the step did, not what there is."""
    starts = [command for command in commands if isinstance(command, StartCommand)]
    assert len({start.vm_id for start in starts}) == len(starts), "two starts of one VM"
    for start in starts:
        _check_start(cluster, start)
    for command in commands:
        if isinstance(command, OrderPower):
            _check_power(cluster, command)
    for intent in intents:
        if isinstance(intent, SaveVm):
            _check_vm(cluster, intent)
        elif isinstance(intent, SaveHost) and intent.record.incident is not None:
            incident = intent.record.incident
            assert all(proof.boot == incident.boot for proof in incident.proofs), "foreign proof"


def _check_start(cluster: Cluster, start: StartCommand) -> None:
    node = cluster.vms[start.vm_id]
    name = node.config.name
    record = node.saved
    assert record is not None and record == node.record, f"{name}: a start that is not durable"
    assert record.stage is VmStage.STARTING, f"{name}: started while {record.stage}"
    assert record.incarnation == start.incarnation, f"{name}: a start of another incarnation"
    # G1: nobody else may hold it, and the target is among the holders before the command goes out.
    holders = {copy.host_id for copy in record.copies}
    assert holders == {start.host_id}, f"{name}: started while {sorted(holders)} may hold it"
    assert all(copy.boot == start.boot for copy in record.copies), f"{name}: copies of two boots"
    assert cluster.hold is None, f"{name}: started while held"
    assert node.protected, f"{name}: started unasked"


def _check_power(cluster: Cluster, command: OrderPower) -> None:
    node = cluster.hosts[command.host_id]
    name = node.config.name
    incident = node.record.incident
    assert incident is not None, f"{name}: a power order without an incident"
    if command.action is PowerAction.BLINK:
        return
    fence = incident.fence
    assert fence is not None and node.saved == node.record, f"{name}: an order that is not durable"
    assert fence.order_id == command.order_id and fence.action is command.action, f"{name}: stray"
    if command.action is PowerAction.ON:
        assert incident.proof is not None, f"{name}: switched on before the proof was written"


def _check_vm(cluster: Cluster, intent: SaveVm) -> None:
    record = intent.record
    if record.stage is not VmStage.LOST:  # lost together with the target of its start, or not
        started = record.stage in (VmStage.STARTING, VmStage.CANCELLING)
        assert (record.start is not None) == started, f"{record.vm_id}: {record.stage}, its start"
    if record.stage is VmStage.READY:
        assert not record.copies, f"{record.vm_id}: ready while somebody may hold it"
