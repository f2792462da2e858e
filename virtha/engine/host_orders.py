"""The engine's commands as what hosts are ordered. Pure, and the same for the server and the simulated world."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from virtha.engine.cutting import StorageFence, StorageLetIn
from virtha.engine.ending import EndCopy
from virtha.engine.events import CancelStart, MigrateCommand, SettleMigration, StartCommand
from virtha.engine.records import Migration, VmRecord
from virtha.model.ids import BootId, OperationId
from virtha.model.orders import (
    Grant,
    LetInHost,
    MigrateVm,
    MigrationSide,
    ReceiveVm,
    ShutOutHost,
    StopMode,
    StopVm,
    Superseded,
)
from virtha.model.orders import SettleMigration as SettleOrder
from virtha.model.proof import Proof
from virtha.model.vm import PossibleCopy, Vm

BY = "engine"


def spent_grant(command: StartCommand | CancelStart) -> Grant:
    """Never valid: whatever the clock of a boot says, it is over."""
    boot = command.boot if isinstance(command, StartCommand) else BootId("")
    return Grant(
        vm_id=command.vm_id,
        incarnation=command.incarnation,
        boot=boot,
        beat_monotonic_ms=0,
        duration_ms=0,
    )


def receive_order(command: MigrateCommand, vm: Vm, grant: Grant | None) -> ReceiveVm:
    """To the target. ``grant``: what a beat of its present boot allows; None: there is none to quote."""
    if grant is None or grant.boot != command.target_boot:
        # Nothing to quote: it is refused there, for good, and the engine hears that.
        grant = Grant(
            vm_id=command.vm_id,
            incarnation=command.incarnation,
            boot=command.target_boot,
            beat_monotonic_ms=0,
            duration_ms=0,
        )
    else:
        grant = replace(grant, duration_ms=command.deadline_ms)
    return ReceiveVm(
        vm=vm,
        migration_id=OperationId(command.order_id),
        grant=grant,
        by=BY,
        source=PossibleCopy(
            host_id=command.source,
            incarnation=command.source_incarnation,
            boot=command.source_boot,
        ),
    )


def migrate_order(command: MigrateCommand) -> MigrateVm:
    """To the source, once the target has taken its order."""
    return MigrateVm(
        vm_id=command.vm_id,
        migration_id=OperationId(command.order_id),
        incarnation=command.source_incarnation,
        target=command.target,
        target_incarnation=command.incarnation,
        deadline_ms=command.deadline_ms,
        by=BY,
        target_boot=command.target_boot,
    )


def end_order(command: EndCopy) -> StopVm:
    """Of a copy that a newer one has superseded (G4)."""
    return StopVm(
        vm_id=command.vm_id,
        incarnation=command.incarnation,
        mode=StopMode.POWER_OFF,
        by=BY,
        superseded=Superseded(incarnation=command.newer, proof=command.proof),
    )


def shut_out_order(command: StorageFence) -> ShutOutHost:
    """To the helper (P3)."""
    return ShutOutHost(
        host_id=command.host_id,
        boot=command.boot,
        domain_id=command.domain_id,
        fsid=command.fsid,
        addresses=command.addresses,
        by=BY,
    )


def let_in_order(command: StorageLetIn) -> LetInHost:
    return LetInHost(
        host_id=command.host_id,
        boot=command.boot,
        runs=command.runs,
        domain_id=command.domain_id,
        fsid=command.fsid,
        addresses=command.addresses,
        until_s=command.until_s,
        by=BY,
    )


def ceph_epochs(proofs: Sequence[Proof]) -> dict[str, int] | UnsetType:
    """What a start by these proofs has to wait for (P3); UNSET: nothing."""
    epochs: dict[str, int] = {}
    for proof in proofs:
        for one in proof.maps:
            epochs[one.fsid] = max(one.epoch, epochs.get(one.fsid, 0))
    return epochs or UNSET


def recorded_migration(command: SettleMigration, record: VmRecord | None) -> Migration | None:
    """The migration that the command is about, if it is still the one on record."""
    migration = record.migration if record is not None else None
    same = migration is not None and migration.order_id == command.order_id
    return migration if same else None


def settle_order(command: SettleMigration, vm: Vm, migration: Migration) -> SettleOrder:
    is_target = command.host_id == migration.target
    return SettleOrder(
        vm=vm,
        migration_id=OperationId(command.order_id),
        side=MigrationSide.TARGET if is_target else MigrationSide.SOURCE,
        incarnation=command.incarnation,
        target_incarnation=migration.incarnation,
        word=command.word,
        proofs=command.proofs,
    )
