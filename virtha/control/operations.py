"""Operations: looking at them, waiting for them, giving up what no host can be asked any more."""

import asyncio

from virtha.control.effects import Dispatcher, Effects, still_stands
from virtha.control.host_power import POWER, take_back
from virtha.control.known_settings import ORDER_DEADLINE, setting_values
from virtha.control.names import check_limit, page_of
from virtha.control.plan import RECOVER, FoundByScan, decode_plan
from virtha.control.requests import OperationQuery
from virtha.control.runner import Runner
from virtha.control.views import Caller, ForeignDomains, Page
from virtha.model.errors import Conflict, InvalidInput, NotFound
from virtha.model.ids import ClusterId, HostId, OperationId
from virtha.model.operation import Operation
from virtha.model.time import format_duration_ms
from virtha.ports.hosts import HostLinks
from virtha.store.body import decode
from virtha.store.hosts import find_host
from virtha.store.operations import (
    OperationFilter,
    OperationRow,
    all_unanswered_orders,
    cluster_of_operation,
    find_operation,
    open_operations_of,
    operations_before,
)
from virtha.store.store import Store, Transaction

VOID_AFTER_MS = 60_000
"""A release and the outcome after it are told within moments of each other: the outcome says more."""
_BLOCK_ALL = (
    "vm.create",
    "vm.delete",
    "vm.release",
    "host.adopt",
    "template.create",
    "vm.snapshot",
    "vm.add",
    "vm.remove",
    "vm.resize",
)
_BLOCK_START = ("vm.start", RECOVER, "vm.shutdown", "vm.power_off")


async def check_nothing_open(
    tx: Transaction,
    subject: str,
    what: str,
    *,
    starts: bool = False,
    but: OperationId | None = None,
) -> None:
    """Raises Conflict. Ordered stops may overtake each other and a start that hangs, nothing else may."""
    for row in await open_operations_of(tx, subject):
        kind = row.operation.kind
        if row.operation.id == but:
            continue
        if kind in _BLOCK_ALL or (starts and kind in _BLOCK_START):
            raise Conflict(
                f"{what} must wait: {kind} is under way",
                code="problem.operation.open",
                fix=f"wait for it: 'virtha operation wait {row.operation.id}'",
            )


class Operations:
    def __init__(
        self, store: Store, links: HostLinks, runner: Runner, dispatcher: Dispatcher
    ) -> None:
        self._store = store
        self._links = links
        self._runner = runner
        self._dispatcher = dispatcher

    async def list(self, query: OperationQuery) -> Page[Operation]:
        """Newest first."""
        limit = check_limit(query.limit)
        wanted = OperationFilter(subject=query.subject, kind=query.kind, open=query.open)
        async with self._store.read() as tx:
            found = await operations_before(tx, wanted, _number(query.after), limit + 1)
            rows, more = page_of(found, limit)
            return Page(
                items=tuple(row.operation for row in rows),
                revision=await tx.revision_now(),
                next=str(rows[-1].number) if more else None,
            )

    async def get(self, operation_id: str) -> Operation:
        async with self._store.read() as tx:
            return (await _the_operation(tx, operation_id)).operation

    async def wait(self, operation_id: str, timeout_ms: int) -> Operation:
        """As soon as it is over, or as it is after ``timeout_ms``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1_000
        while True:
            seen = self._store.changes.revision
            operation = await self.get(operation_id)
            left_s = deadline - loop.time()
            if operation.is_over or left_s <= 0:
                return operation
            try:
                async with asyncio.timeout(left_s):
                    await self._store.changes.beyond(seen)
            except TimeoutError:
                return await self.get(operation_id)

    async def cancel(self, caller: Caller, operation_id: str) -> Operation:
        """Raises Refused (`problem.operation.cancel`), which says what can be done instead. It is over when its host
        has answered; what was made is removed then."""
        effects = Effects()
        async with self._store.write() as tx:
            row = await _the_operation(tx, operation_id)
            if row.operation.kind == POWER:
                return await take_back(tx, row.operation, caller.name)
            operation = await self._runner.cancel(tx, effects, row, caller.name)
        await self._dispatcher.carry_out(effects)
        return operation

    async def foreign(self, operation_id: str) -> ForeignDomains:
        async with self._store.read() as tx:
            row = await _the_operation(tx, operation_id)
        if row.operation.kind not in ("host.scan", "host.adopt"):
            raise NotFound(
                f"{row.operation.kind} lists no foreign domains",
                fix="begin one by POST /v1/hosts/{ref}/scan",
            )
        found = decode(FoundByScan, row.foreign) if row.foreign else FoundByScan()
        return ForeignDomains(items=found.items, changes=decode_plan(row.plan).changes)

    async def expire(self) -> int:
        """Give up orders whose host was not there for ``order.deadline``. The server calls it at intervals.

        A VM's start that was given up keeps its holder: the host may have got the order after all.
        """
        now = self._store.clock.wall_ms()
        async with self._store.read() as tx:
            deadline_ms = (await setting_values(tx)).get(ORDER_DEADLINE)
            late = [
                row
                for row in await all_unanswered_orders(tx)
                if row.created + deadline_ms < now and not self._links.agent_connected(row.host_id)
            ]
            void = await _void(tx, now)
        if not late and not void:
            return 0
        effects = Effects()
        message = f"its host could not be asked for {format_duration_ms(deadline_ms)}"
        async with self._store.write() as wtx:
            for row in late:
                order = row.order
                await self._runner.give_up(wtx, effects, order.operation_id, order.step, message)
            for host_id in sorted(void):
                await self._runner.void_starts(wtx, effects, host_id)
        await self._dispatcher.carry_out(effects)
        return len(late) + len(void)


async def _void(tx: Transaction, now: int) -> set[HostId]:
    """Hosts with orders that may not be sent again."""
    found: set[HostId] = set()
    for row in await all_unanswered_orders(tx):
        if row.created + VOID_AFTER_MS >= now:
            continue
        host = await find_host(tx, row.host_id)
        if host is not None and not await still_stands(tx, host, row.order):
            found.add(row.host_id)
    return found


async def the_operation_cluster(tx: Transaction, operation_id: str) -> ClusterId | None:
    """Where its subject is or was; None: nobody knows any more. Raises NotFound."""
    row = await _the_operation(tx, operation_id)
    return await cluster_of_operation(tx, row.operation.id)


async def _the_operation(tx: Transaction, operation_id: str) -> OperationRow:
    row = await find_operation(tx, operation_id)
    if row is None:
        raise NotFound(f"there is no operation {operation_id[:64]}")
    return row


def _number(after: str | None) -> int | None:
    if after is None:
        return None
    if not after.isdecimal() or len(after) > 18:
        raise InvalidInput(
            f"'{after[:64]}' is no cursor", field="after", fix="use 'next' of a list"
        )
    return int(after)
