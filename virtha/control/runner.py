"""Runs operations: a state machine over what the store holds, moved by outcomes of orders.

Nothing is remembered between two calls. ``begin`` and ``take_outcome`` each run inside one write
transaction; the orders that they make go out after its commit (``effects``).
"""

from uuid import uuid4

import msgspec

from virtha.control.adopting import adoption_failed, plan_adoptions
from virtha.control.cleanup import (
    ADD,
    CANCELLED,
    called_off,
    check_can_cancel,
    only_created,
    running_copies,
)
from virtha.control.device_steps import add_device, remove_device, set_disk_size
from virtha.control.effects import Effects, still_stands
from virtha.control.history import changes_between, message_of, record
from virtha.control.launch import Launcher
from virtha.control.launch_ends import launch_failed, launch_given_up
from virtha.control.plan import (
    RECOVER,
    AddDevice,
    AdoptFound,
    DropRecord,
    DropTemplate,
    FoundByScan,
    Give,
    GrowStep,
    Launch,
    Plan,
    ReadyTemplate,
    RemoveDevice,
    SetDiskSize,
    SnapshotStep,
    Step,
    decode_plan,
    encode_plan,
)
from virtha.control.snapshot_steps import order_change, settle
from virtha.control.template_steps import carry_out
from virtha.model.errors import Unavailable, VirthaError
from virtha.model.facts import Outcome, Progress, Result
from virtha.model.ids import HostId, OperationId, VmId
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.orders import (
    AdoptVm,
    CancelWork,
    CopyDisk,
    CreateDisk,
    DefineVm,
    ForgetVm,
    Order,
    PrepareStorage,
)
from virtha.ports.hosts import HostLinks
from virtha.store.body import decode, encode
from virtha.store.hosts import find_host
from virtha.store.installations import the_installation
from virtha.store.operations import (
    OperationRow,
    drop_order,
    find_operation,
    find_order,
    save_operation,
    save_order,
    unanswered_orders,
)
from virtha.store.store import WriteTransaction
from virtha.store.templates import end_template_use
from virtha.store.vms import add_definition, drop_vm, find_vm

DETAIL_LENGTH_MAX = 500
VOID = "its host gave the VM up, or began another boot, before it answered"
_RUNNING, _PENDING = OperationState.RUNNING, OperationState.PENDING


class _Run:
    """One operation inside one transaction."""

    def __init__(self, row: OperationRow | None, operation: Operation, plan: Plan) -> None:
        self.operation = operation
        self.plan = plan
        self.foreign = row.foreign if row is not None else None

    def set_step(self, index: int, state: OperationState, now: int, detail: str = "") -> None:
        steps = list(self.operation.steps)
        changes: dict[str, object] = {"state": state, "detail": detail[:DETAIL_LENGTH_MAX]}
        if state is OperationState.RUNNING:
            changes["started"] = now
        else:
            changes["ended"] = now
            if steps[index].started is None:
                changes["started"] = now
        steps[index] = msgspec.structs.replace(steps[index], **changes)
        self.change(steps=tuple(steps))

    def change(self, **changes: object) -> None:
        self.operation = msgspec.structs.replace(self.operation, **changes)

    def set_planned(self, index: int, step: Step) -> None:
        steps = list(self.plan.steps)
        steps[index] = step
        self.plan = msgspec.structs.replace(self.plan, steps=tuple(steps))

    def add_steps(self, steps: tuple[Step, ...]) -> None:
        self.plan = msgspec.structs.replace(self.plan, steps=(*self.plan.steps, *steps))
        self.change(
            steps=(*self.operation.steps, *(OperationStep(name=step.name) for step in steps))
        )

    def next_index(self) -> int | None:
        """The first step that has not begun."""
        pending = (
            index
            for index, step in enumerate(self.operation.steps)
            if step.state is OperationState.PENDING
        )
        return next(pending, None)


class Runner:
    def __init__(self, launcher: Launcher, links: HostLinks) -> None:
        self._launcher = launcher
        self._links = links

    async def begin(
        self,
        tx: WriteTransaction,
        effects: Effects,
        *,
        kind: str,
        subject: str,
        by: str,
        plan: Plan,
    ) -> Operation:
        """Record the operation and run it until it waits for a host.

        What refuses its first step (no host fits, a host is away) is raised: nothing has begun then.
        """
        operation = Operation(
            id=OperationId(str(uuid4())),
            kind=kind,
            subject=subject,
            state=OperationState.RUNNING,
            steps=tuple(OperationStep(name=step.name) for step in plan.steps),
            asked_by=by,
            created=tx.clock.wall_ms(),
        )
        plan = msgspec.structs.replace(plan, by=by)
        # Before its orders: they refer to it.
        await save_operation(tx, operation, encode_plan(plan))
        run = _Run(None, operation, plan)
        await self._advance(tx, effects, run, refuse=True)
        return run.operation

    async def take_progress(self, tx: WriteTransaction, progress: Progress) -> None:
        row = await find_operation(tx, progress.operation_id)
        if row is None or row.operation.is_over or progress.step >= len(row.operation.steps):
            return
        count = len(row.operation.steps)
        percent = min(max(progress.percent, 0), 100)
        total = (100 * progress.step + percent) // count
        if total <= row.operation.progress:
            return
        operation = msgspec.structs.replace(row.operation, progress=total)
        await save_operation(tx, operation, row.plan, row.foreign)

    async def take_outcome(
        self, tx: WriteTransaction, effects: Effects, host_id: HostId, outcome: Outcome
    ) -> None:
        """An answer to an order; one that was answered or given up before changes nothing."""
        waiting = await find_order(tx, outcome.operation_id, outcome.step)
        if waiting is None or waiting.host_id != host_id:
            return
        await drop_order(tx, outcome.operation_id, outcome.step)
        row = await find_operation(tx, outcome.operation_id)
        assert row is not None, "orders go with their operation"
        if row.operation.is_over:
            return
        run = _Run(row, row.operation, decode_plan(row.plan))
        if outcome.result is Result.OK:
            await self._step_done(tx, effects, run, outcome)
            self._clean_cancelled(run)
        else:
            await self._step_failed(tx, effects, run, host_id, outcome)
        await self._advance(tx, effects, run, refuse=False)

    async def give_up(
        self, tx: WriteTransaction, effects: Effects, operation_id: str, step: int, message: str
    ) -> None:
        """The host can't be asked: this order is void, whatever it answers later."""
        row = await find_operation(tx, operation_id)
        await drop_order(tx, OperationId(operation_id), step)
        if row is None or row.operation.is_over:
            return
        run = _Run(row, row.operation, decode_plan(row.plan))
        planned = run.plan.steps[step]
        if isinstance(planned, Launch):
            # It may have been taken all the same: only its host knows.
            await launch_given_up(tx, effects, planned)
        if isinstance(planned, SnapshotStep):
            operation_id, by = run.operation.id, run.plan.by
            await settle(tx, planned, Result.UNKNOWN, operation_id=operation_id, by=by)
        error = Unavailable(message)
        self._fail(run, step, tx.clock.wall_ms(), error.code, message)
        await self._advance(tx, effects, run, refuse=False)

    async def cancel(
        self, tx: WriteTransaction, effects: Effects, row: OperationRow, by: str
    ) -> Operation:
        """Take back what only makes or copies disks so far. Raises Refused (`problem.operation.cancel`).

        It is over when its host has said that it stopped; what was made is removed then.
        """
        run = _Run(row, row.operation, decode_plan(row.plan))
        stopping = check_can_cancel(run.operation, run.plan)
        run.plan = msgspec.structs.replace(run.plan, cancelled_by=by)
        now = tx.clock.wall_ms()
        for index, step in enumerate(run.operation.steps):
            if step.state is _PENDING:
                run.set_step(index, OperationState.CANCELLED, now)
        run.change(code=CANCELLED, message=f"it was taken back by {by}")
        for index in stopping:
            planned = run.plan.steps[index]
            assert isinstance(planned, Give), "check_can_cancel names no other"
            stop = Give(
                name=f"stop: {planned.name}",
                host_id=planned.host_id,
                order=CancelWork(operation_id=run.operation.id, step=index),
                optional=True,
                parallel=True,
            )
            run.add_steps((stop,))
        await self._advance(tx, effects, run, refuse=False)
        return run.operation

    async def void_starts(self, tx: WriteTransaction, effects: Effects, host_id: HostId) -> None:
        """End this host's starts that may not be sent again and that it did not answer: it released them, or the boot is
        over that they were for."""
        host = await find_host(tx, host_id)
        for waiting in await unanswered_orders(tx, host_id):
            order = waiting.order
            if host is not None and not await still_stands(tx, host, order):
                message = VOID
                await self.give_up(tx, effects, order.operation_id, order.step, message)

    # one step's end

    async def _step_done(
        self, tx: WriteTransaction, effects: Effects, run: _Run, outcome: Outcome
    ) -> None:
        now = tx.clock.wall_ms()
        run.set_step(outcome.step, OperationState.DONE, now, outcome.message)
        if outcome.foreign:
            run.foreign = encode(FoundByScan(items=outcome.foreign))
        step = run.plan.steps[outcome.step]
        if isinstance(step, SnapshotStep):
            frozen = outcome.fields.get("frozen")
            await settle(
                tx,
                step,
                Result.OK,
                operation_id=run.operation.id,
                by=run.plan.by,
                frozen=frozen if isinstance(frozen, bool) else None,
            )
        if not isinstance(step, Give):
            return
        host = await find_host(tx, step.host_id)
        operation_id = run.operation.id
        match step.order:
            case CreateDisk(disk=disk) | CopyDisk(target=disk):
                if isinstance(step.order, CopyDisk) and not step.order.thin:
                    await end_template_use(tx, disk)  # it is whole by itself from now on
                await record(
                    tx,
                    "disk.created",
                    host=host.host if host else None,
                    operation_id=operation_id,
                    by=run.plan.by,
                    path=disk.path,
                    **changes_between(None, disk),
                )
            case ForgetVm(disks=disks):
                for disk in disks:
                    await end_template_use(tx, disk)
                    await record(
                        tx,
                        "disk.deleted",
                        host=host.host if host else None,
                        operation_id=operation_id,
                        by=run.plan.by,
                        path=disk.path,
                        **changes_between(disk, None),
                    )
            case AdoptVm(vm=vm, dry_run=dry_run):
                changes = tuple(f"{vm.name}: {change}" for change in outcome.changes)
                run.plan = msgspec.structs.replace(run.plan, changes=(*run.plan.changes, *changes))
                if not dry_run and host is not None:
                    await record(
                        tx,
                        "vm.adopted",
                        vm=vm,
                        host=host.host,
                        operation_id=operation_id,
                        by=run.plan.by,
                        changes="; ".join(outcome.changes) or "nothing had to change",
                        **changes_between(None, vm),
                    )

    async def _step_failed(
        self,
        tx: WriteTransaction,
        effects: Effects,
        run: _Run,
        host_id: HostId,
        outcome: Outcome,
    ) -> None:
        now = tx.clock.wall_ms()
        step = run.plan.steps[outcome.step]
        code = outcome.code or "problem.failed"
        message = outcome.message or message_of(code, outcome.fields)
        if isinstance(step, SnapshotStep):
            operation_id, by = run.operation.id, run.plan.by
            await settle(tx, step, outcome.result, operation_id=operation_id, by=by)
        if isinstance(step, Launch):
            await launch_failed(tx, effects, step, host_id, outcome)
        if isinstance(step, Give) and isinstance(step.order, AdoptVm) and not step.order.dry_run:
            await adoption_failed(tx, effects, step.order, outcome.result)
        if isinstance(step, Give) and isinstance(step.order, PrepareStorage):
            await self._storage_refused(tx, step, step.order, code, outcome)
        if isinstance(step, Give) and step.optional:
            run.set_step(outcome.step, OperationState.FAILED, now, message)
            if run.operation.code is None:
                run.change(code=code, message=message, fields=outcome.fields)
            return
        self._fail(run, outcome.step, now, code, message)
        run.change(fields=outcome.fields)

    def _clean_cancelled(self, run: _Run) -> None:
        """It was done before its host heard that it was taken back: the disk goes again, or what was to follow does."""
        if run.plan.cancelled_by is None or running_copies(run.operation, run.plan):
            return
        if run.operation.kind != ADD or run.plan.failed:
            self._clean_up(run)
            return
        run.plan = msgspec.structs.replace(run.plan, cancelled_by=None)
        run.change(code=None, message="")
        run.add_steps(called_off(run.operation, run.plan))

    async def _storage_refused(
        self, tx: WriteTransaction, step: Give, order: PrepareStorage, code: str, outcome: Outcome
    ) -> None:
        host = await find_host(tx, step.host_id)
        if code == "order.refused.storage_foreign" and host is not None:
            owner = outcome.fields.get("owner", "unknown")
            await record(tx, "storage.foreign", host=host.host, name=order.domain.name, owner=owner)

    def _fail(self, run: _Run, index: int, now: int, code: str, message: str) -> None:
        """The rest is cancelled; what cleans up takes its place."""
        run.set_step(index, OperationState.FAILED, now, message)
        for later, step in enumerate(run.operation.steps):
            if step.state is OperationState.PENDING:
                run.set_step(later, OperationState.CANCELLED, now)
        if run.operation.code is None:
            run.change(code=code, message=message)
        # What was made before a start that fails is whole, and stays.
        if not isinstance(run.plan.steps[index], Launch):
            self._clean_up(run)
        run.plan = msgspec.structs.replace(run.plan, failed=True)

    def _clean_up(self, run: _Run) -> None:
        """Once."""
        if run.plan.failed:
            return
        cleanup = only_created(run.plan, run.operation.steps, run.plan.on_failure)
        run.plan = msgspec.structs.replace(run.plan, failed=True)
        run.add_steps(cleanup)

    # the next steps

    async def _advance(
        self, tx: WriteTransaction, effects: Effects, run: _Run, *, refuse: bool
    ) -> None:
        """Run steps until one waits for a host or none is left; then save."""
        while (index := run.next_index()) is not None:
            try:
                waits = await self._start_step(tx, effects, run, index)
            except VirthaError as error:
                if refuse:
                    raise
                self._fail(run, index, tx.clock.wall_ms(), error.code, str(error))
                continue
            if waits:
                break
        if not any(
            step.state is _RUNNING or step.state is _PENDING for step in run.operation.steps
        ):
            await self._end(tx, run)
        await save_operation(tx, run.operation, encode_plan(run.plan), run.foreign)

    async def _end(self, tx: WriteTransaction, run: _Run) -> None:
        failed = run.operation.code is not None
        cancelled_by = run.plan.cancelled_by
        ended = OperationState.CANCELLED if cancelled_by else OperationState.FAILED
        run.change(
            state=ended if failed else OperationState.DONE,
            progress=run.operation.progress if failed else 100,
            ended=tx.clock.wall_ms(),
        )
        if failed:
            row = await find_vm(tx, run.operation.subject)
            vm, kind = row.vm if row is not None else None, run.operation.kind
            operation_id = run.operation.id
            if kind == RECOVER:
                # Its engine tells of it, with the host's failure that it belongs to, and tries again.
                return
            if cancelled_by:
                code, by = "operation.cancelled", cancelled_by
                await record(tx, code, vm=vm, operation_id=operation_id, by=by, kind=kind)
                return
            await record(
                tx,
                "operation.failed",
                vm=vm,
                operation_id=operation_id,
                by=run.plan.by,
                kind=kind,
                detail=run.operation.message[:DETAIL_LENGTH_MAX],
            )

    async def _start_step(
        self, tx: WriteTransaction, effects: Effects, run: _Run, index: int
    ) -> bool:
        """Whether it now waits for a host."""
        step = run.plan.steps[index]
        now = tx.clock.wall_ms()
        match step:
            case Give():
                await self._give(tx, effects, run, index, step)
                run.set_step(index, OperationState.RUNNING, now)
                return not step.parallel
            case Launch():
                launched, host_id, order = await self._launcher.launch(
                    tx, effects, step, operation_id=run.operation.id, index=index, by=run.plan.by
                )
                run.set_planned(index, launched)
                await self._put_order(tx, effects, host_id, order)
                run.set_step(index, OperationState.RUNNING, now)
                return True
            case SnapshotStep() | GrowStep():
                changing, order = await order_change(
                    tx,
                    effects,
                    self._links,
                    step,
                    operation_id=run.operation.id,
                    index=index,
                    by=run.plan.by,
                )
                run.set_planned(index, changing)
                await self._put_order(tx, effects, step.host_id, order)
                run.set_step(index, OperationState.RUNNING, now)
                return True
            case SetDiskSize():
                operation_id, by = run.operation.id, run.plan.by
                await set_disk_size(tx, effects, step, operation_id, by)
                run.set_step(index, OperationState.DONE, now)
                return False
            case DropRecord():
                await self._drop(tx, effects, run, step)
                run.set_step(index, OperationState.DONE, now)
                return False
            case ReadyTemplate() | DropTemplate():
                await carry_out(tx, step, operation_id=run.operation.id, by=run.plan.by)
                run.set_step(index, OperationState.DONE, now)
                return False
            case AddDevice() | RemoveDevice():
                following = (
                    await add_device(tx, effects, step, run.plan.by)
                    if isinstance(step, AddDevice)
                    else await remove_device(tx, effects, step, run.plan.by)
                )
                run.set_step(index, OperationState.DONE, now)
                run.add_steps(following)
                return False
            case AdoptFound():
                found = decode(FoundByScan, run.foreign) if run.foreign else FoundByScan()
                steps = await plan_adoptions(tx, effects, step, found.items)
                run.set_step(index, OperationState.DONE, now, f"{len(steps)} to adopt")
                run.add_steps(steps)
                return False

    async def _give(
        self, tx: WriteTransaction, effects: Effects, run: _Run, index: int, step: Give
    ) -> None:
        host = await find_host(tx, step.host_id)
        if host is None:
            raise Unavailable("its host was removed in the meantime")
        if host.status.boot is None:
            raise Unavailable(
                f"{host.host.name} has never connected", fix="start its agent: 'virtha agent'"
            )
        if isinstance(step.order, DefineVm):
            await add_definition(tx, step.order.vm.id, step.host_id)
        row = await the_installation(tx)
        order = Order(
            operation_id=run.operation.id,
            step=index,
            term=row.term,
            host_boot=host.status.boot,
            body=step.order,
        )
        await self._put_order(tx, effects, step.host_id, order)

    async def _put_order(
        self, tx: WriteTransaction, effects: Effects, host_id: HostId, order: Order
    ) -> None:
        await save_order(tx, host_id, order)
        effects.deliver(host_id, order)

    async def _drop(
        self, tx: WriteTransaction, effects: Effects, run: _Run, step: DropRecord
    ) -> None:
        row = await find_vm(tx, VmId(step.vm_id))
        if row is None:
            return
        host = await find_host(tx, step.host_id) if step.host_id else None
        if run.operation.kind == "vm.create":
            for disk in row.vm.disks:
                await end_template_use(tx, disk)  # none of its disks was ever started from
        await drop_vm(tx, step.vm_id)
        effects.configure(row.vm.cluster_id)
        await record(
            tx,
            step.code,
            vm=row.vm,
            host=host.host if host else None,
            operation_id=run.operation.id,
            by=run.plan.by,
            **changes_between(row.vm, None),
        )
