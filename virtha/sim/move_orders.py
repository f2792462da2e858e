"""The server's part in a live migration: the engine's commands become orders, what the hosts say becomes its events.

The target is ordered first; the source only when the target's gate lets the copy in. Neither order is kept among those
that are sent again (ADR 10): one that is lost is found out by asking.
"""

from typing import TYPE_CHECKING

from msgspec.structs import replace

from virtha.engine.events import MigrateCommand, MigrationEnded, SettleMigration
from virtha.engine.records import Migration, OrderId
from virtha.model.facts import MigrationReport, Outcome, Result
from virtha.model.ids import BootId, HostId, OperationId
from virtha.model.orders import Grant, MigrateVm, MigrationSide, OrderBody, ReceiveVm
from virtha.model.orders import SettleMigration as SettleOrder
from virtha.model.vm import PossibleCopy

if TYPE_CHECKING:
    from virtha.sim.gateway import SimGateway
    from virtha.sim.server import SimServer

BY = "engine"


class MoveOrders:
    """Of one leader; what it holds is gone with it."""

    def __init__(self, server: "SimServer", gateway: "SimGateway") -> None:
        self._server = server
        self._gateway = gateway
        self._let_in: dict[OperationId, MigrateCommand] = {}
        """Orders to targets; the source of each is ordered when its target has taken it."""

    def begin(self, command: MigrateCommand) -> None:
        target = str(command.target)
        grant = self._gateway.make_grant(target, command.vm_id, command.incarnation)
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
        body = ReceiveVm(
            vm=self._server.vms[command.vm_id].vm,
            migration_id=OperationId(command.order_id),
            grant=grant,
            by=BY,
            source=PossibleCopy(
                host_id=command.source,
                incarnation=command.source_incarnation,
                boot=command.source_boot,
            ),
        )
        sent = self._send(target, command.target_boot, body)
        if sent is not None:
            self._let_in[sent] = command

    def settle(self, command: SettleMigration) -> None:
        migration = self._recorded(command)
        if migration is None:
            return
        is_target = command.host_id == migration.target
        body = SettleOrder(
            vm=self._server.vms[command.vm_id].vm,
            migration_id=OperationId(command.order_id),
            side=MigrationSide.TARGET if is_target else MigrationSide.SOURCE,
            incarnation=command.incarnation,
            target_incarnation=migration.incarnation,
            word=command.word,
            proofs=command.proofs,
        )
        self._send(str(command.host_id), command.boot, body)

    def ended(self, outcome: Outcome) -> None:
        """A target that refused says so itself, durably."""
        command = self._let_in.pop(outcome.operation_id, None)
        if command is None or outcome.result is not Result.OK:
            return
        body = MigrateVm(
            vm_id=command.vm_id,
            migration_id=OperationId(command.order_id),
            incarnation=command.source_incarnation,
            target=command.target,
            target_incarnation=command.incarnation,
            deadline_ms=command.deadline_ms,
            by=BY,
            target_boot=command.target_boot,
        )
        self._send(str(command.source), command.source_boot, body)

    def told(self, host_id: HostId, report: MigrationReport) -> MigrationEnded:
        return MigrationEnded(
            order_id=OrderId(report.migration_id),
            host_id=host_id,
            vm_id=report.vm_id,
            result=report.result,
            code=report.code,
        )

    def _recorded(self, command: SettleMigration) -> Migration | None:
        record = self._server.table.vms.get(command.vm_id)
        migration = record.migration if record is not None else None
        same = migration is not None and migration.order_id == command.order_id
        return migration if same else None

    def _send(self, host: str, boot: BootId, body: OrderBody) -> OperationId | None:
        """Once, over the session that there is."""
        server, gateway = self._server, self._gateway
        if server.boots.get(host) != boot or not gateway.agent_connected(host):
            return None
        order = server.order(host, body)
        del server.pending[order.operation_id]
        gateway.deliver(order)
        return order.operation_id
