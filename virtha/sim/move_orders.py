"""The server's part in a live migration: the engine's commands become orders, what the hosts say becomes its events
(``engine/told.py``).

The target is ordered first; the source only when the target's gate lets the copy in. Neither order is kept among those
that are sent again (ADR 10): one that is lost is found out by asking.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from virtha.engine.events import EngineEvent, MigrateCommand, SettleMigration
from virtha.engine.host_orders import (
    migrate_order,
    receive_order,
    recorded_migration,
    settle_order,
)
from virtha.engine.told import UNSENT, move_answer, move_refused
from virtha.model.facts import Outcome, Result
from virtha.model.ids import BootId, OperationId
from virtha.model.orders import OrderBody

if TYPE_CHECKING:
    from virtha.sim.gateway import SimGateway
    from virtha.sim.server import SimServer


class MoveOrders:
    """Of one leader; what it holds is gone with it."""

    def __init__(
        self,
        server: "SimServer",
        gateway: "SimGateway",
        tell: Callable[[EngineEvent], None],
    ) -> None:
        """``tell``: the engine."""
        self._server = server
        self._gateway = gateway
        self._tell = tell
        self._let_in: dict[OperationId, MigrateCommand] = {}
        """Orders to targets; the source of each is ordered when its target has taken it."""
        self._leaving: dict[OperationId, MigrateCommand] = {}
        """Orders to sources."""

    def begin(self, command: MigrateCommand) -> None:
        target = str(command.target)
        grant = self._gateway.make_grant(target, command.vm_id, command.incarnation)
        body = receive_order(command, self._server.vms[command.vm_id].vm, grant)
        sent = self._send(target, command.target_boot, body)
        if sent is None:
            self._tell(move_refused(command, command.target, UNSENT))
        else:
            self._let_in[sent] = command

    def settle(self, command: SettleMigration) -> None:
        migration = recorded_migration(command, self._server.table.vms.get(command.vm_id))
        if migration is None:
            return
        body = settle_order(command, self._server.vms[command.vm_id].vm, migration)
        self._send(str(command.host_id), command.boot, body)

    def ended(self, outcome: Outcome) -> None:
        """A target that refused says so itself, durably."""
        left = self._leaving.pop(outcome.operation_id, None)
        if left is not None:
            self._tell(move_answer(left, left.source, outcome))
        command = self._let_in.pop(outcome.operation_id, None)
        if command is None:
            return
        self._tell(move_answer(command, command.target, outcome))
        if outcome.result is not Result.OK:
            return
        sent = self._send(str(command.source), command.source_boot, migrate_order(command))
        if sent is None:
            self._tell(move_refused(command, command.source, UNSENT))
        else:
            self._leaving[sent] = command

    def _send(self, host: str, boot: BootId, body: OrderBody) -> OperationId | None:
        """Once, over the session that there is."""
        server, gateway = self._server, self._gateway
        if server.boots.get(host) != boot or not gateway.agent_connected(host):
            return None
        order = server.order(host, body)
        del server.pending[order.operation_id]
        gateway.deliver(order)
        return order.operation_id
