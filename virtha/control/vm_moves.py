"""A person moves a running VM: asked of its cluster's engine, shown as an operation that follows what the engine makes of it.

Who may move what is decided by the engine alone (G1, G6); what is plain to see beforehand is refused here, with its fix.
"""

from collections.abc import Iterable, Mapping
from uuid import uuid4

import msgspec

from virtha.control.history import message_of
from virtha.control.launch import candidate_of, read_surroundings
from virtha.control.names import the_host, the_vm
from virtha.control.operations import check_nothing_open
from virtha.control.placement import Placement, Unfit, no_host_fits, reasons_against
from virtha.control.plan import Plan, encode_plan
from virtha.control.requests import VmMigrate
from virtha.control.views import Caller
from virtha.engine.events import MoveAsked, MoveCancelled, Notice
from virtha.engine.records import VmRecord
from virtha.model.codes import REGISTRY, render
from virtha.model.errors import Conflict, InvalidInput, Refused, Unavailable
from virtha.model.ids import HostId, OperationId, VmId
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.vm import VmState
from virtha.ports.hosts import HostLinks
from virtha.ports.leaders import Leaders
from virtha.store.engine import find_vm_record
from virtha.store.hosts import HostRow
from virtha.store.operations import OperationRow, open_operations_of, save_operation
from virtha.store.store import Store, Transaction, WriteTransaction
from virtha.store.vms import VmRow

MIGRATE = "vm.migrate"
BANDWIDTH = "bandwidth_mib_s"
BANDWIDTH_MIB_S_MAX = 1_000_000
CANCELLED = "migration.ended.cancelled"
CALLED_OFF = "called_off"


class VmMoves:
    def __init__(self, store: Store, links: HostLinks, leaders: Leaders) -> None:
        self._store = store
        self._links = links
        self._leaders = leaders

    async def migrate(self, caller: Caller, ref: str, request: VmMigrate) -> Operation:
        """Raises InvalidInput (host, bandwidth), Refused (state, the host can't take it), Conflict (moves already,
        or something else is under way), Unavailable (no engine leads its cluster now)."""
        _check_bandwidth(request.bandwidth_mib_s)
        async with self._store.write() as tx:
            row = await the_vm(tx, ref)
            source = await self._check(tx, row)
            target = None
            if request.host is not None:
                target = await the_host(tx, request.host, field="host")
                await self._check_target(tx, row, source, target)
            operation = await _begin(tx, row, target, caller, request.bandwidth_mib_s)
        asked = MoveAsked(
            vm_id=row.vm.id,
            target=target.host.id if target is not None else None,
            by=caller.name,
        )
        if not self._leaders.offer(row.vm.cluster_id, asked):
            async with self._store.write() as tx:
                await end_move(tx, row.vm.id, OperationState.FAILED, "problem.unavailable", _NOBODY)
            raise Unavailable(_NOBODY, fix="ask again in a few seconds")
        return operation

    async def cancel(self, caller: Caller, ref: str) -> Operation:
        """Past the point of no return it goes on. Raises Refused: it is not being moved."""
        async with self._store.read() as tx:
            row = await the_vm(tx, ref)
            opened = await open_move(tx, row.vm.id)
            record = await find_vm_record(tx, row.vm.id)
        if opened is None or record is None or record.migration is None:
            raise Refused(
                f"{row.vm.name} is not being moved by an operation",
                code="problem.vm.state",
                fix="see 'virtha operation list'",
            )
        if not self._leaders.offer(
            row.vm.cluster_id, MoveCancelled(vm_id=row.vm.id, by=caller.name)
        ):
            raise Unavailable(_NOBODY, fix="ask again in a few seconds")
        return opened.operation

    async def _check(self, tx: Transaction, row: VmRow) -> HostId:
        record = await find_vm_record(tx, row.vm.id)
        opened = await open_move(tx, row.vm.id)
        if opened is not None or (record is not None and record.migration is not None):
            raise Conflict(
                f"{row.vm.name} is being moved already",
                code="problem.operation.open",
                fix="wait for it, or call it off: 'virtha vm cancel-migration'",
            )
        status = row.status
        if status.state is not VmState.RUNNING or len(status.holders) != 1:
            raise Refused(
                f"{row.vm.name} is {row.shown.value}; only a VM that runs can be moved",
                code="problem.vm.state",
                allowed=(VmState.RUNNING.value,),
                fix="start it where it shall run: 'virtha vm start --host'",
            )
        await check_nothing_open(tx, row.vm.id, f"moving {row.vm.name}", starts=True)
        return status.holders[0]

    async def _check_target(
        self, tx: WriteTransaction, row: VmRow, source: HostId, target: HostRow
    ) -> None:
        host = target.host
        if host.id == source:
            raise InvalidInput(f"{row.vm.name} runs on {host.name} already", field="host")
        if host.cluster_id != row.vm.cluster_id:
            raise InvalidInput(f"{host.name} is in another cluster", field="host")
        surroundings = await read_surroundings(tx, row.vm.cluster_id)
        now = tx.clock.monotonic_ms()
        candidate = candidate_of(target, surroundings, self._links, row.vm, now)
        against = reasons_against(row.vm, candidate, surroundings.storage_names)
        if against:
            unfit = Placement(chosen=None, unfit=(Unfit(host=host, reasons=against),))
            raise no_host_fits(row.vm, unfit)


_NOBODY = "no engine leads its cluster at the moment"


def _check_bandwidth(mib_s: int | None) -> None:
    if mib_s is not None and not 1 <= mib_s <= BANDWIDTH_MIB_S_MAX:
        raise InvalidInput(
            f"{mib_s} is out of range",
            field="bandwidth_mib_s",
            allowed=(f"1 to {BANDWIDTH_MIB_S_MAX} MiB/s",),
            fix="leave it out for no limit",
        )


async def _begin(
    tx: WriteTransaction, row: VmRow, target: HostRow | None, caller: Caller, mib_s: int | None
) -> Operation:
    now = tx.clock.wall_ms()
    where = f" to {target.host.name}" if target is not None else ""
    step = OperationStep(
        name=f"move {row.vm.name}{where}", state=OperationState.RUNNING, started=now
    )
    operation = Operation(
        id=OperationId(str(uuid4())),
        kind=MIGRATE,
        subject=row.vm.id,
        state=OperationState.RUNNING,
        steps=(step,),
        fields={} if mib_s is None else {BANDWIDTH: mib_s},
        asked_by=caller.name,
        created=now,
    )
    return await save_operation(tx, operation, encode_plan(Plan(steps=(), by=caller.name)))


# What the engine makes of it: written with its records


async def open_move(tx: Transaction, vm_id: VmId) -> OperationRow | None:
    rows = await open_operations_of(tx, vm_id)
    return next((row for row in rows if row.operation.kind == MIGRATE), None)


async def end_move(
    tx: WriteTransaction, vm_id: VmId, state: OperationState, code: str | None, message: str
) -> None:
    row = await open_move(tx, vm_id)
    if row is not None:
        await _change(tx, row, state, code, message)


async def _change(
    tx: WriteTransaction,
    row: OperationRow,
    state: OperationState,
    code: str | None,
    message: str,
) -> None:
    now = tx.clock.wall_ms()
    is_over = state is not OperationState.RUNNING
    step = msgspec.structs.replace(
        row.operation.steps[0], state=state, detail=message, ended=now if is_over else None
    )
    changed = msgspec.structs.replace(row.operation, state=state, steps=(step,))
    if is_over:
        done = state is OperationState.DONE
        progress = 100 if done else changed.progress
        said = "" if done else message
        changed = msgspec.structs.replace(
            changed, code=code, message=said, ended=now, progress=progress
        )
    await save_operation(tx, changed, row.plan, row.foreign)


async def follow_moves(
    tx: WriteTransaction,
    notices: Iterable[Notice],
    saved: Mapping[VmId, tuple[VmRecord | None, VmRecord]],
) -> None:
    """``saved``: of each VM whose record is written now, the one before and the new one."""
    whys: dict[VmId, str] = {}
    for notice in notices:
        if notice.vm_id is None:
            continue
        match notice.code:
            case "vm.move_refused":
                code = str(notice.fields.get("why", ""))
                message = message_of(notice.code, dict(notice.fields))
                text = _text(code) or message
                await end_move(tx, notice.vm_id, OperationState.FAILED, code, text)
            case "vm.migration_began" | "vm.migration_doubtful" | "vm.migration_cancelled":
                row = await open_move(tx, notice.vm_id)
                if row is not None:
                    message = message_of(notice.code, dict(notice.fields))
                    if notice.code == "vm.migration_cancelled":
                        fields = {**row.operation.fields, CALLED_OFF: True}
                        operation = msgspec.structs.replace(row.operation, fields=fields)
                        row = msgspec.structs.replace(row, operation=operation)
                    await _change(tx, row, OperationState.RUNNING, None, message)
            case "vm.migration_failed":
                whys[notice.vm_id] = str(notice.fields.get("why", ""))
    for vm_id, (before, after) in saved.items():
        if before is not None and before.migration is not None and after.migration is None:
            await _ended(tx, before, after, whys.get(vm_id))


async def _ended(tx: WriteTransaction, before: VmRecord, after: VmRecord, why: str | None) -> None:
    migration = before.migration
    assert migration is not None
    held = {(copy.host_id, copy.incarnation) for copy in after.copies}
    if held == {(migration.target, migration.incarnation)}:
        await end_move(tx, after.vm_id, OperationState.DONE, None, "")
        return
    code = why or migration.code or "migration.failed"
    row = await open_move(tx, after.vm_id)
    if row is not None and CALLED_OFF in row.operation.fields:
        code = CANCELLED  # whichever side was quicker to end it
    if held == {(migration.source, migration.source_incarnation)}:
        cancelled = code == CANCELLED
        state = OperationState.CANCELLED if cancelled else OperationState.FAILED
        text = _text(code) or code
        await end_move(tx, after.vm_id, state, code, f"{text}; it runs on where it was")
        return
    text = "it was lost on its way, or given up; it is not running where it was"
    await end_move(tx, after.vm_id, OperationState.FAILED, code, text)


async def end_forgotten(tx: WriteTransaction, records: Mapping[VmId, VmRecord]) -> None:
    """A leader begins: what was asked of the one before it, and never ordered, is over."""
    for vm_id, record in records.items():
        if record.migration is None:
            text = "the server began anew before it was ordered; ask again"
            await end_move(tx, vm_id, OperationState.FAILED, "problem.unavailable", text)


def _text(code: str) -> str:
    """Where the code's text needs no fields."""
    entry = REGISTRY.get(code)
    return render(code, {}) if entry is not None and not entry.fields else ""
