"""What must hold after every step, in production too: an engine that breaks it stops, and another goes on
from the records. No VM is touched by that."""

from collections.abc import Sequence

from virtha.engine.cutting import StorageLetIn
from virtha.engine.ending import EndCopy, EndPaused
from virtha.engine.events import (
    Command,
    Intent,
    MigrateCommand,
    MigrationWord,
    OrderPower,
    SaveHost,
    SaveVm,
    SettleMigration,
    StartCommand,
    StorageFence,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import HostRecord, MovePurpose, MoveStep, VmStage
from virtha.engine.stale import is_stale_end
from virtha.engine.state import Cluster
from virtha.model.ids import HostId
from virtha.model.power import PowerAction
from virtha.model.proof import ProofKind


def check(cluster: Cluster, intents: Sequence[Intent], commands: Sequence[Command]) -> None:
    """Costs what the step did, not what there is."""
    starts = [command for command in commands if isinstance(command, StartCommand)]
    assert len({start.vm_id for start in starts}) == len(starts), "two starts of one VM"
    for start in starts:
        _check_start(cluster, start)
    moves = [command for command in commands if isinstance(command, MigrateCommand)]
    moved = {start.vm_id for start in starts} | {move.vm_id for move in moves}
    assert len(moved) == len(starts) + len(moves), "two moves of one VM, or a start and a move"
    for move in moves:
        _check_move(cluster, move)
    for command in commands:
        if isinstance(command, OrderPower):
            _check_power(cluster, command)
        elif isinstance(command, SettleMigration):
            _check_word(cluster, command)
        elif isinstance(command, EndCopy):
            _check_superseded(cluster, command)
        elif isinstance(command, EndPaused):
            _check_end(cluster, command)
        elif isinstance(command, StorageLetIn):
            _check_let_in(cluster, command)
        elif isinstance(command, StorageFence):
            cuts = [cut for one in _hosts_saved(cluster, command.host_id) for cut in one.cuts]
            asked = {one.order_id for cut in cuts for one in cut.asked}
            assert command.order_id in asked, f"{command.host_id}: a stray storage fence"
    for intent in intents:
        if isinstance(intent, SaveVm):
            _check_vm(cluster, intent)
        elif isinstance(intent, SaveHost) and intent.record.incident is not None:
            incident = intent.record.incident
            assert all(proof.boot == incident.boot for proof in incident.proofs), "foreign proof"


def _hosts_saved(cluster: Cluster, host_id: HostId) -> list[HostRecord]:
    """As it is durable, also of a host that was removed."""
    node = cluster.hosts.get(host_id)
    saved = node.saved if node is not None else cluster.kept_hosts.get(host_id)
    return [] if saved is None else [saved]


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


def _check_move(cluster: Cluster, move: MigrateCommand) -> None:
    """Exactly the source holds it, both live in the boots that the order names, and nothing else is going on."""
    node = cluster.vms[move.vm_id]
    name = node.config.name
    record = node.saved
    assert record is not None and record == node.record, f"{name}: a move that is not durable"
    migration = record.migration
    assert migration is not None and migration.order_id == move.order_id, f"{name}: stray move"
    assert record.stage is VmStage.MIGRATING, f"{name}: moved while {record.stage}"
    assert migration.step is MoveStep.ORDERED, f"{name}: moved again"
    # G1: the target is among the holders before the command goes out; nobody but the source was.
    held = {(copy.host_id, copy.boot, copy.incarnation) for copy in record.copies}
    assert held == {
        (move.source, move.source_boot, move.source_incarnation),
        (move.target, move.target_boot, move.incarnation),
    }, f"{name}: moved while {sorted(copy.host_id for copy in record.copies)} may hold it"
    assert move.source != move.target, f"{name}: moved to where it is"
    assert move.incarnation == record.incarnation > move.source_incarnation, f"{name}: incarnation"
    for host_id, boot in ((move.source, move.source_boot), (move.target, move.target_boot)):
        host = cluster.hosts[host_id]
        assert host.verdict is Verdict.ALIVE and host.record.incident is None, f"{name}: {host_id}"
        assert host.record.boot == boot, f"{name}: {host_id} is in another boot"
    if migration.purpose is MovePurpose.FAILBACK:
        assert record.home == move.target, f"{name}: sent where it never was"
    elif migration.purpose is MovePurpose.MAINTENANCE:
        assert cluster.hosts[move.source].record.drain is not None, f"{name}: moved unasked"
    assert cluster.hold is None, f"{name}: moved while held"
    asked = migration.purpose is MovePurpose.OPERATOR
    assert asked or not node.config.ignore, f"{name}: moved though out of automatic action"


def _check_end(cluster: Cluster, command: EndPaused) -> None:
    """Its host alone holds it, in the boot that the order names, and nothing else is going on (S6)."""
    node = cluster.vms[command.vm_id]
    name = node.config.name
    record = node.saved
    assert record is not None and record == node.record, f"{name}: an end that is not durable"
    kill = record.kill
    assert kill is not None and kill.order_id == command.order_id, f"{name}: stray end"
    assert record.stage is VmStage.SETTLED, f"{name}: ended while {record.stage}"
    assert record.migration is None, f"{name}: ended while it moves"
    held = {(copy.host_id, copy.incarnation) for copy in record.copies}
    assert held == {(command.host_id, command.incarnation)}, f"{name}: ended, and {held} hold it"
    host = cluster.hosts[command.host_id]
    assert host.verdict is Verdict.ALIVE and host.record.boot == command.boot, f"{name}: host"
    assert cluster.hold is None, f"{name}: ended while held"
    assert node.config.wanted_up, f"{name}: ended, and nothing would start it"


def _check_word(cluster: Cluster, command: SettleMigration) -> None:
    """A side may be let run, or what was handed over be ended, only when the other side is out of the question (G6)."""
    node = cluster.vms[command.vm_id]
    name = node.config.name
    record = node.saved
    assert record is not None and record == node.record, f"{name}: a word that is not durable"
    migration = record.migration
    assert migration is not None and migration.order_id == command.order_id, f"{name}: stray word"
    holders = {copy.host_id for copy in record.copies}
    assert command.host_id in holders, f"{name}: a word to {command.host_id}, which holds nothing"
    if command.word is MigrationWord.RUN:
        assert holders == {command.host_id}, f"{name}: let run while {sorted(holders)} may hold it"
        assert cluster.hold is None, f"{name}: let run while held"
        target = command.host_id == migration.target
        assert target or migration.never_ran, f"{name}: its disks may be newer than its memory"
        kinds = {proof.kind for proof in command.proofs if proof.host_id == migration.source}
        fenced = target and kinds == {ProofKind.STORAGE_FENCE}
        assert not fenced, (
            f"{name}: let run, and nobody waits for the map that shuts its source out"
        )
    elif command.word is MigrationWord.END:
        assert command.host_id == migration.source, f"{name}: the target's copy is the newest"
        others = holders - {command.host_id}
        assert not others or migration.step is MoveStep.SWITCHED, f"{name}: ended in doubt"


def _check_superseded(cluster: Cluster, end: EndCopy) -> None:
    """G4: a strictly higher incarnation was ordered elsewhere, by a proof about that very boot."""
    node = cluster.vms[end.vm_id]
    name = node.config.name
    record = node.saved
    assert record is not None and record == node.record, f"{name}: an end that is not durable"
    due = next((one for one in record.superseded if one.order_id == end.order_id), None)
    told = (end.host_id, end.boot, end.incarnation)
    if due is None:
        host = cluster.hosts[end.host_id]
        assert host.saved == host.record, f"{name}: an end that is not durable"
        assert is_stale_end(host.record.incident, end), f"{name}: a stray end"
    else:
        assert due.copy in record.copies, f"{name}: a stray end"
        copy = (due.copy.host_id, due.copy.boot, due.copy.incarnation)
        assert told == copy, f"{name}: another copy"
    assert record.incarnation >= end.newer > end.incarnation, f"{name}: nothing supersedes it"
    assert (end.proof.host_id, end.proof.boot) == (end.host_id, end.boot), f"{name}: foreign proof"
    assert cluster.hold is None and not node.config.ignore, f"{name}: ended while held"


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
    assert command.not_after_ms >= cluster.now, f"{name}: an order that is too late already"
    if command.action is PowerAction.OFF:
        assert incident.proof is None, f"{name}: ordered off after the proof"
    if command.action is PowerAction.ON:
        assert incident.proof is not None, f"{name}: switched on before the proof was written"


def _check_let_in(cluster: Cluster, command: StorageLetIn) -> None:
    """P3: only for another boot, while none of its boots is being shut out of that cluster."""
    node = cluster.hosts[command.host_id]
    name = node.config.name
    assert node.saved == node.record, f"{name}: a lift that is not durable"
    assert node.record.incident is None, f"{name}: let in while it is judged dead"
    assert command.boot != command.runs == node.record.boot, f"{name}: let in for the same boot"
    mine = [cut for cut in node.record.cuts if cut.fsid == command.fsid]
    assert all(cut.boot != command.runs for cut in mine), f"{name}: its present boot is shut out"
    asked = {one.order_id for cut in mine for one in cut.lifting}
    assert command.order_id in asked, f"{name}: a stray lift"


def _check_vm(cluster: Cluster, intent: SaveVm) -> None:
    record = intent.record
    if record.stage is not VmStage.LOST:  # lost together with the target of its start, or not
        started = record.stage in (VmStage.STARTING, VmStage.CANCELLING)
        assert (record.start is not None) == started, f"{record.vm_id}: {record.stage}, its start"
    if record.stage is VmStage.READY:
        assert not record.copies, f"{record.vm_id}: ready while somebody may hold it"
    if record.stage is not VmStage.LOST:  # lost with the last side of its migration, or not
        moving = record.stage is VmStage.MIGRATING
        assert (record.migration is not None) == moving, f"{record.vm_id}: {record.stage}, its move"
