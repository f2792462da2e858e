"""The engine's commands to hosts: orders, each made in a transaction that looks at the holders and the lead again.

A start is an operation like one that a person orders (`vm.recover`), shown, sent again after a hello, and ended by the
host's answer. Orders of migrations and the taking back of a start are sent once: the engine asks again (ADR 10).
"""

from uuid import NAMESPACE_URL, uuid5

import msgspec
from msgspec.structs import replace

from virtha.control.copies import granted_until, unknown_hosts
from virtha.control.effects import Dispatcher, Effects, quoting, still_stands
from virtha.control.operations import check_nothing_open
from virtha.control.plan import RECOVER, Launch, Plan, encode_plan
from virtha.control.runner import VOID, Runner
from virtha.control.torn import check_not_torn
from virtha.control.vm_moves import BANDWIDTH, open_move
from virtha.engine.cutting import StorageFence, StorageLetIn
from virtha.engine.ending import EndCopy, EndPaused
from virtha.engine.events import CancelStart, MigrateCommand, SettleMigration, StartCommand
from virtha.engine.host_orders import (
    BY,
    ceph_epochs,
    end_order,
    let_in_order,
    migrate_order,
    receive_order,
    recorded_migration,
    settle_order,
    shut_out_order,
    spent_grant,
)
from virtha.engine.recovery import UNWANTED
from virtha.engine.told import UNSENT
from virtha.model.errors import Conflict, Refused
from virtha.model.ids import BootId, ClusterId, HostId, OperationId
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.orders import (
    DiskCheck,
    EndPausedVm,
    Grant,
    MoveDestination,
    Order,
    OrderBody,
    StartVm,
)
from virtha.model.value import Fields, Value
from virtha.ports.hosts import HostLinks
from virtha.store.engine import find_vm_record
from virtha.store.hosts import HostRow, find_host
from virtha.store.installations import Lead, the_installation
from virtha.store.operations import (
    OperationRow,
    all_unanswered_orders,
    find_operation,
    find_order,
    save_operation,
    save_order,
)
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import VmRow, add_definition, find_vm, save_vm_status

STEP = 0
"""Each of the engine's orders has one."""


def operation_of(cluster_id: ClusterId, order_id: str) -> OperationId:
    """The same for the same order, whoever sends it: orders are numbered per cluster and term."""
    return OperationId(str(uuid5(NAMESPACE_URL, f"virtha:{cluster_id}/{order_id}")))


def receiving(cluster_id: ClusterId, command: MigrateCommand) -> OperationId:
    """Of the order to its target."""
    return operation_of(cluster_id, f"{command.order_id}.receive")


def leaving(cluster_id: ClusterId, command: MigrateCommand) -> OperationId:
    """Of the order to its source."""
    return operation_of(cluster_id, f"{command.order_id}.migrate")


def ending(cluster_id: ClusterId, lead: Lead, command: EndPaused, attempt: int) -> OperationId:
    """Of an order to end a paused VM. ``attempt``: of this term; each is an order of its own."""
    return operation_of(cluster_id, f"{command.order_id}.end.{lead.term}.{attempt}")


class NotOrdered(Value, frozen=True, kw_only=True):
    """A start, or a move's first or second order, that did not go out. ``code``: why it never can, where nothing of it went
    out before; None: the engine takes it back in its time."""

    why: str
    code: str | None = None


class EngineOrders:
    def __init__(
        self, store: Store, links: HostLinks, runner: Runner, dispatcher: Dispatcher
    ) -> None:
        self._store = store
        self._links = links
        self._runner = runner
        self._dispatcher = dispatcher

    async def start(
        self, cluster_id: ClusterId, lead: Lead, command: StartCommand
    ) -> NotOrdered | None:
        """Send the start. None: it is on its way, or goes with the host's next beat. Raises Unavailable."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await find_vm(tx, command.vm_id)
            host = await find_host(tx, command.host_id)
            if row is None or host is None:
                return NotOrdered(why="the VM or its host was removed")
            await self._void_starts(tx, effects, row)
            why_not = await self._objection(tx, lead, command, row, host)
            if why_not is not None:
                return NotOrdered(why=why_not)
            operation_id = operation_of(cluster_id, command.order_id)
            known = await find_operation(tx, operation_id)
            never = await self._why_never(tx, row, operation_id)
            if never is not None:
                # What was sent once may have been carried out, whatever is on record by now (G2).
                return never if known is None else NotOrdered(why=never.why)
            order, goes_out = self._order(lead, operation_id, command, row, host)
            if known is None:
                await _begin(tx, operation_id, command, row, host)
                await add_definition(tx, row.vm.id, host.host.id)
                await save_order(tx, host.host.id, order)
            if goes_out:
                await _note_grant(tx, row, order)
                effects.deliver(host.host.id, order)
        await self._dispatcher.carry_out(effects)
        return None

    async def _void_starts(self, tx: WriteTransaction, effects: Effects, row: VmRow) -> None:
        """A person's start whose host has begun another boot died with the former one: it keeps nobody from bringing the VM
        back."""
        for waiting in await all_unanswered_orders(tx):
            order = waiting.order
            if not isinstance(order.body, StartVm) or order.body.vm.id != row.vm.id:
                continue
            host = await find_host(tx, waiting.host_id)
            if host is not None and not await still_stands(tx, host, order):
                await self._runner.give_up(tx, effects, order.operation_id, order.step, VOID)

    async def _objection(
        self, tx: Transaction, lead: Lead, command: StartCommand, row: VmRow, host: HostRow
    ) -> str | None:
        """A person may have ordered something while the engine's decision was written, of which its next turn is told."""
        if (await the_installation(tx)).lead != lead:
            return "its lead is over"
        status = row.status
        others = [one for one in status.holders if one != command.host_id]
        others += [copy.host_id for copy in unknown_hosts(status)]
        if others:
            return f"{', '.join(sorted(set(others)))} may hold it (G1)"
        if command.host_id not in status.holders or status.incarnation != command.incarnation:
            return "its host is not on record for that incarnation any more"
        if host.status.boot != command.boot:
            return "its host has begun another boot"
        return None

    async def _why_never(self, tx: Transaction, row: VmRow, mine: OperationId) -> NotOrdered | None:
        """With a code where the order is over, if it never went out; without one where it has only to wait."""
        if not row.status.wanted_up:
            return NotOrdered(why="it was switched off meanwhile", code=UNWANTED)
        try:
            await check_nothing_open(tx, row.vm.id, "a recovery", starts=True, but=mine)
            await check_not_torn(tx, row.vm)
        except Conflict as error:
            return NotOrdered(why=str(error))
        except Refused as error:
            return NotOrdered(why=str(error), code=error.code)
        return None

    def _order(
        self,
        lead: Lead,
        operation_id: OperationId,
        command: StartCommand,
        row: VmRow,
        host: HostRow,
    ) -> tuple[Order, bool]:
        """The order, and whether it can go out now. Without a beat of that boot to quote it waits for one (G2)."""
        wanted = Grant(
            vm_id=command.vm_id,
            incarnation=command.incarnation,
            boot=command.boot,
            beat_monotonic_ms=0,
            duration_ms=command.grant_ms,
        )
        grant = quoting(self._links, host, wanted, self._store.clock.monotonic_ms())
        if grant is not None and grant.boot != command.boot:
            grant = None
        # Every former copy is proven dead, or was released: there is nothing to watch the disks for.
        body = StartVm(
            vm=row.vm,
            grant=grant or wanted,
            by=BY,
            disk_check=DiskCheck.SKIP_PROVEN,
            ceph_epochs=ceph_epochs(command.proofs),
        )
        order = Order(
            operation_id=operation_id, step=STEP, term=lead.term, host_boot=command.boot, body=body
        )
        return order, grant is not None

    async def cancel(
        self, cluster_id: ClusterId, lead: Lead, command: CancelStart, *, attempt: int
    ) -> None:
        """Take a start back: the same start with a grant that is spent. Whoever has not begun releases it, and whoever has
        made it says so. ``attempt``: of this term; each is an order of its own."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await find_vm(tx, command.vm_id)
            host = await find_host(tx, command.host_id)
            present = (await the_installation(tx)).lead == lead
            if row is None or host is None or host.status.boot is None or not present:
                return
            operation_id = operation_of(cluster_id, command.order_id)
            if await find_order(tx, operation_id, STEP) is not None:
                message = "it took too long, and was taken back"
                await self._runner.give_up(tx, effects, operation_id, STEP, message)
            cancelling = f"{command.order_id}.cancel.{lead.term}.{attempt}"
            body = StartVm(vm=row.vm, grant=spent_grant(command), by=BY)
            effects.deliver(
                host.host.id,
                Order(
                    operation_id=operation_of(cluster_id, cancelling),
                    step=STEP,
                    term=lead.term,
                    host_boot=host.status.boot,
                    body=body,
                ),
            )
        await self._dispatcher.carry_out(effects)

    async def end_superseded(
        self, cluster_id: ClusterId, lead: Lead, command: EndCopy, *, attempt: int
    ) -> None:
        """Its host's release answers. ``attempt``: of this term; each is an order of its own."""
        async with self._store.read() as tx:
            host = await find_host(tx, command.host_id)
            if host is None:
                return
            ending = f"{command.order_id}.end.{lead.term}.{attempt}"
            operation_id = operation_of(cluster_id, ending)
            await self._send(tx, lead, host, command.boot, operation_id, end_order(command))

    async def end_paused(self, lead: Lead, command: EndPaused, operation_id: OperationId) -> None:
        """Sent once, over the session that there is: the engine orders it again (S6). Not while somebody else holds the VM,
        or another start of it is on record, of which the engine's next turn is told. Raises Unavailable."""
        async with self._store.read() as tx:
            row = await find_vm(tx, command.vm_id)
            host = await find_host(tx, command.host_id)
            if row is None or host is None or row.status.holders != (command.host_id,):
                return
            if {copy.incarnation for copy in row.status.copies} != {command.incarnation}:
                return
            body = EndPausedVm(vm_id=command.vm_id, incarnation=command.incarnation, by=BY)
            await self._send(tx, lead, host, command.boot, operation_id, body)

    async def ask_helper(
        self, cluster_id: ClusterId, lead: Lead, command: StorageFence | StorageLetIn
    ) -> None:
        """Sent once, over the session that there is: the engine asks again, or another one (P3). Raises Unavailable."""
        body: OrderBody
        if isinstance(command, StorageFence):
            body = shut_out_order(command)
        else:
            body = let_in_order(command)
        async with self._store.read() as tx:
            helper = await find_host(tx, command.helper)
            if helper is not None:
                operation_id = operation_of(cluster_id, command.order_id)
                await self._send(tx, lead, helper, command.helper_boot, operation_id, body)

    # Live migration

    async def receive(
        self, cluster_id: ClusterId, lead: Lead, command: MigrateCommand
    ) -> NotOrdered | None:
        """To the target, whose answer names ``receiving``. Sent once (ADR 10). None: it went out, or may have."""
        async with self._store.write() as tx:
            row = await find_vm(tx, command.vm_id)
            host = await find_host(tx, command.target)
            sides = {command.source, command.target}
            if row is None or host is None or set(row.status.holders) != sides:
                return NotOrdered(why="its copies are not those of that move", code=UNSENT)
            if not self._links.agent_connected(command.target):
                return NotOrdered(why="its target has no session", code=UNSENT)
            wanted = Grant(
                vm_id=command.vm_id,
                incarnation=command.incarnation,
                boot=command.target_boot,
                beat_monotonic_ms=0,
                duration_ms=command.deadline_ms,
            )
            grant = quoting(self._links, host, wanted, self._store.clock.monotonic_ms())
            body = receive_order(command, row.vm, grant)
            operation_id = receiving(cluster_id, command)
            order = await _order_now(tx, lead, host, command.target_boot, operation_id, body)
            if order is None:
                return NotOrdered(why="its target has begun another boot", code=UNSENT)
            # First what it will have, then the order: whoever deletes the VM has it forgotten there as well.
            await add_definition(tx, command.vm_id, command.target)
        return self._once(command.target, order, "its target's session has ended")

    def _once(self, host_id: HostId, order: Order, why_not: str) -> NotOrdered | None:
        """A session that breaks on the way may have carried it: the engine asks that host as soon as it has another."""
        if not self._links.deliver(host_id, order):
            return NotOrdered(why=why_not, code=UNSENT)
        return None

    async def migrate(
        self, cluster_id: ClusterId, lead: Lead, command: MigrateCommand, let_in: Fields
    ) -> NotOrdered | None:
        """To the source, once the target has said that it lets the copy in, and where: ``let_in``. Its answer names
        ``leaving``. None: it went out, or may have. Raises Unavailable."""
        async with self._store.read() as tx:
            host = await find_host(tx, command.source)
            if host is None or not self._links.agent_connected(command.source):
                return NotOrdered(why="its source has no session", code=UNSENT)
            asked = await open_move(tx, command.vm_id)
            body = replace(
                migrate_order(command),
                destination=_destination(let_in, asked),
                progress_of=asked.operation.id if asked is not None else None,
            )
            operation_id = leaving(cluster_id, command)
            order = await _order_now(tx, lead, host, command.source_boot, operation_id, body)
            if order is None:
                return NotOrdered(why="its source has begun another boot", code=UNSENT)
        return self._once(command.source, order, "its source's session has ended")

    async def settle(
        self, cluster_id: ClusterId, lead: Lead, command: SettleMigration, *, attempt: int
    ) -> None:
        async with self._store.read() as tx:
            row = await find_vm(tx, command.vm_id)
            host = await find_host(tx, command.host_id)
            migration = recorded_migration(command, await find_vm_record(tx, command.vm_id))
            if row is None or host is None or migration is None:
                return
            body = settle_order(command, row.vm, migration)
            asking = f"{command.order_id}.settle.{lead.term}.{attempt}"
            operation_id = operation_of(cluster_id, asking)
            await self._send(tx, lead, host, command.boot, operation_id, body)

    async def _send(
        self,
        tx: Transaction,
        lead: Lead,
        host: HostRow,
        boot: BootId,
        operation_id: OperationId,
        body: OrderBody,
    ) -> bool:
        """Once, over the session that there is, to that boot."""
        order = await _order_now(tx, lead, host, boot, operation_id, body)
        return order is not None and self._links.deliver(HostId(host.host.id), order)


async def _order_now(
    tx: Transaction,
    lead: Lead,
    host: HostRow,
    boot: BootId,
    operation_id: OperationId,
    body: OrderBody,
) -> Order | None:
    """None: the lead is over, or the host has begun another boot."""
    present = (await the_installation(tx)).lead == lead
    if not present or host.status.boot != boot:
        return None
    return Order(operation_id=operation_id, step=STEP, term=lead.term, host_boot=boot, body=body)


def _destination(let_in: Fields, asked: OperationRow | None) -> MoveDestination | None:
    """None: an agent that says no place, or one that can't be understood. Its source refuses that."""
    try:
        destination = msgspec.convert(let_in, MoveDestination)
    except msgspec.ValidationError:
        return None
    limit = asked.operation.fields.get(BANDWIDTH) if asked is not None else None
    if not destination.data_uri:
        return None
    return replace(destination, bandwidth_mib_s=limit if isinstance(limit, int) else 0)


async def _begin(
    tx: WriteTransaction,
    operation_id: OperationId,
    command: StartCommand,
    row: VmRow,
    host: HostRow,
) -> None:
    """As the runner begins a person's start: its answer moves it on."""
    now = tx.clock.wall_ms()
    name = f"start {row.vm.name} on {host.host.name}"
    step = Launch(name=name, vm_id=row.vm.id, host_id=host.host.id, incarnation=command.incarnation)
    operation = Operation(
        id=operation_id,
        kind=RECOVER,
        subject=row.vm.id,
        state=OperationState.RUNNING,
        steps=(OperationStep(name=name, state=OperationState.RUNNING, started=now),),
        asked_by=BY,
        created=now,
    )
    await save_operation(tx, operation, encode_plan(Plan(steps=(step,), by=BY)))


async def _note_grant(tx: WriteTransaction, row: VmRow, order: Order) -> None:
    """From its end on the host's own list says whether that copy ever came to be."""
    assert isinstance(order.body, StartVm)
    grant = order.body.grant
    holder = row.status.holders[0]
    changed = granted_until(row.status, holder, grant.incarnation, grant.ends_at_ms)
    if changed != row.status:
        await save_vm_status(tx, changed, shown=row.shown)
