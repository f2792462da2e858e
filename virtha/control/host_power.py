"""A person's order to a host's power, as an operation: off, on, reboot, blink. The engine's own orders don't come this way.

Each attempt is written down before it goes out, so that whatever server comes after knows what may have gone out. It
gives no order a second time: it reads, and says how it found the devices.
"""

import asyncio
from uuid import uuid4

import structlog
from msgspec.structs import replace

from virtha.control.device_turns import UNASKED
from virtha.control.history import record
from virtha.control.plan import Plan, encode_plan
from virtha.control.power import Power, Reached
from virtha.control.power_attempts import LevelEnd, PowerAttempts, not_ordered, read_as
from virtha.control.power_orders import LOOK_DEADLINE_MS
from virtha.control.power_views import HostPowerAction, HostPowerOrder
from virtha.control.views import Caller
from virtha.model.codes import render
from virtha.model.errors import Conflict, NotFound, Refused, VirthaError
from virtha.model.host import Cluster, Host
from virtha.model.ids import OperationId
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.power import PowerAction
from virtha.model.time import UtcMillis
from virtha.ports.clock import Clock
from virtha.store.clusters import find_cluster
from virtha.store.hosts import find_host
from virtha.store.operations import (
    OperationFilter,
    find_operation,
    open_operations_of,
    operations_before,
    save_operation,
)
from virtha.store.store import Store, WriteTransaction
from virtha.store.vms import vms_held_by

log = structlog.get_logger("virtha.power")
POWER = "host.power"
CANCELLED = "order.failed.cancelled"
INTERRUPTED = "power.interrupted"
VMS_MAY_RUN = "power.vms_may_run"
_CUTS = (HostPowerAction.OFF, HostPowerAction.REBOOT)
_OPEN_MAX = 1_000


class _Run:
    """One operation while this process carries it out."""

    def __init__(
        self,
        operation: Operation,
        host: Host,
        levels: tuple[tuple[Reached, ...], ...],
        *,
        force: bool,
    ) -> None:
        self.id = operation.id
        self.action = HostPowerAction(str(operation.fields["action"]))
        self.by = operation.asked_by
        self.host = host
        self.levels = levels
        self.force = force


class HostPower:
    def __init__(self, store: Store, power: Power, clock: Clock) -> None:
        self._store = store
        self._power = power
        self._attempts = PowerAttempts(power, clock)
        self._clock = clock
        self._began_ms = clock.monotonic_ms()
        self._ours: set[OperationId] = set()
        """Begun here, and not ended; known before anybody can see them."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, caller: Caller, ref: str, order: HostPowerOrder) -> Operation:
        """Raises NotFound, InvalidInput (a device that can't be used), Conflict (another one is under way), Refused: VMs
        may run there and ``force`` was not given."""
        levels = await self._power.levels(ref, order.device)
        host = levels[0][0].row.host
        operation_id = OperationId(str(uuid4()))
        self._ours.add(operation_id)
        try:
            async with self._store.write() as tx:
                await _check_nothing_open(tx, host)
                if order.action in _CUTS and not order.force:
                    await _check_empty(tx, host)
                operation = Operation(
                    id=operation_id,
                    kind=POWER,
                    subject=host.id,
                    fields={"action": order.action.value, "device": order.device},
                    asked_by=caller.name,
                    created=tx.clock.wall_ms(),
                )
                operation = await _save(tx, operation)
        except BaseException:
            self._ours.discard(operation_id)
            raise
        run = _Run(operation, host, levels, force=order.force)
        task = asyncio.create_task(self._run(run), name=f"{order.action} of {host.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._ours.discard(operation_id))
        return operation

    async def close(self) -> None:
        """What is under way ends now; the next start of a server says how its devices were found."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> int:
        """Ends what nobody carries out any more: its server was stopped or killed. Returns how many; those whose devices
        nobody could ask yet are for the next time."""
        async with self._store.read() as tx:
            wanted = OperationFilter(kind=POWER, open=True)
            rows = await operations_before(tx, wanted, None, _OPEN_MAX)
        left = [row.operation for row in rows if row.operation.id not in self._ours]
        return sum([await self._settle(operation) for operation in left])

    # One operation

    async def _run(self, run: _Run) -> None:
        """Whatever breaks, the operation is ended: by ``settle``, if not here."""
        try:
            await self._carry_out(run)
        except VirthaError as error:
            log.warning("an order to a host's power broke off", operation=run.id, error=str(error))
        except Exception as error:
            # Without its words: nobody knows what a driver that breaks puts into them.
            log.error(
                "an order to a host's power broke", operation=run.id, broke=type(error).__name__
            )

    async def _carry_out(self, run: _Run) -> None:
        reboots = run.action is HostPowerAction.REBOOT
        first = PowerAction.OFF if reboots else PowerAction(run.action.value)
        end: LevelEnd | None = None
        for level in run.levels:
            end = await self._at_level(run, level, first)
            if end is None:
                return  # taken back
            if end.done or end.code == VMS_MAY_RUN:
                break
        assert end is not None
        if reboots and end.done:
            # Off was read back: on is an order of its own (P1).
            end = await self._at_level(run, level, PowerAction.ON)
        if end is not None:
            await self._end(run, end)

    async def _at_level(
        self, run: _Run, level: tuple[Reached, ...], action: PowerAction
    ) -> LevelEnd | None:
        """None: it was taken back before its order went out."""
        cluster = await self._cluster_of(run.host)
        deadline_ms = cluster.policy.fencing.order_deadline_ms
        async with self._attempts.at(level) as attempt:
            name = f"{action.value} at level {level[0].level}"
            step = OperationStep(name=name, state=OperationState.RUNNING)
            refusal = await attempt.look()
            if refusal is None:
                try:
                    if not await self._add_step(run, step, goes_out=action):
                        return None
                except Refused as error:
                    refusal = not_ordered(error.message, VMS_MAY_RUN)
            if refusal is not None:
                step = replace(step, state=OperationState.FAILED, detail=refusal.words)
                return refusal if await self._add_step(run, step) else None
            accepted = await attempt.order(action, deadline_ms=deadline_ms)
            await self._step_says(run, accepted.words)
            end = await attempt.read_back(action, accepted, deadline_ms=deadline_ms)
        await self._step_ends(run, level, action, end)
        return end

    async def _add_step(
        self, run: _Run, step: OperationStep, *, goes_out: PowerAction | None = None
    ) -> bool:
        """``goes_out``: written before that order is given; from here on it can't be taken back. False: it was. Raises Refused:
        by now VMs may run there, at whatever level this is, and it was not forced."""
        async with self._store.write() as tx:
            operation = await _found(tx, run.id)
            if operation.is_over:
                return False
            if goes_out is PowerAction.OFF and not run.force:
                await _check_empty(tx, run.host)
            now = tx.clock.wall_ms()
            ended = None if step.state is OperationState.RUNNING else now
            steps = (*operation.steps, replace(step, started=now, ended=ended))
            state = OperationState.RUNNING if goes_out is not None else operation.state
            progress = min(90, operation.progress + 10)
            await _save(tx, replace(operation, steps=steps, state=state, progress=progress))
            return True

    async def _step_says(self, run: _Run, words: str) -> None:
        async with self._store.write() as tx:
            operation = await _found(tx, run.id)
            last = replace(operation.steps[-1], detail=words)
            steps = (*operation.steps[:-1], last)
            progress = min(90, operation.progress + 20)
            await _save(tx, replace(operation, steps=steps, progress=progress))

    async def _step_ends(
        self, run: _Run, level: tuple[Reached, ...], action: PowerAction, end: LevelEnd
    ) -> None:
        devices = ", ".join(one.name for one in level)
        async with self._store.write() as tx:
            operation = await _found(tx, run.id)
            state = OperationState.DONE if end.done else OperationState.FAILED
            last = replace(
                operation.steps[-1], state=state, ended=tx.clock.wall_ms(), detail=end.words
            )
            await _save(tx, replace(operation, steps=(*operation.steps[:-1], last)))
            await record(
                tx,
                "power.ordered",
                host=run.host,
                operation_id=run.id,
                by=run.by,
                action=action.value,
                device=devices,
                result=f"{end.result.value}, now {end.state.value}",
            )

    async def _end(self, run: _Run, end: LevelEnd) -> None:
        async with self._store.write() as tx:
            operation = await _found(tx, run.id)
            if operation.is_over:
                return
            code = None if end.done else (end.code or "power.failed")
            message = f"now {end.state.value}" if code is None else render(code, {})
            await _save(
                tx, _ended(operation, tx.clock.wall_ms(), code, message, state=end.state.value)
            )

    # Left behind

    async def _settle(self, operation: Operation) -> bool:
        """False: not yet."""
        went_out = operation.state is OperationState.RUNNING
        words, state, reached = "no order had gone out", "unknown", False
        if went_out:
            found = await self._found_as(operation)
            if found is None:
                return False
            words, state, reached = found
        message = f"the server ended meanwhile; {words}"
        async with self._store.write() as tx:
            present = await _found(tx, operation.id)
            if present.is_over:
                return False
            code = None if reached else INTERRUPTED
            await _save(tx, _ended(present, tx.clock.wall_ms(), code, message, state=state))
            row = await find_host(tx, present.subject)
            if went_out and row is not None:
                await record(
                    tx,
                    "power.ordered",
                    host=row.host,
                    operation_id=present.id,
                    by=present.asked_by,
                    action=str(present.fields["action"]),
                    device=str(present.fields["device"] or "all"),
                    result=message,
                )
        return True

    async def _found_as(self, operation: Operation) -> tuple[str, str, bool] | None:
        """How its devices are now: in words, as a state, and whether that is what was wanted. None: nobody could ask them yet."""
        step = operation.steps[-1]
        action = HostPowerAction(str(operation.fields["action"]))
        device = operation.fields["device"]
        try:
            levels = await self._power.levels(
                operation.subject, device if isinstance(device, str) else None
            )
            level = next((it for it in levels if step.name.endswith(f" {it[0].level}")), levels[0])
            async with self._attempts.at(level) as attempt:
                readings = await attempt.read()
            unasked = any(one.code in UNASKED for one in readings)
            if unasked and await self._may_wait(level[0].row.host):
                return None
        except Exception as error:
            # Whatever it is, the operation has to end. Without a driver's own words: nobody knows what is in them.
            why = str(error) if isinstance(error, VirthaError) else type(error).__name__
            return f"its order may have gone out, and its devices can't be read: {why}", "", False
        words, state = read_as(level, readings)
        wanted = {HostPowerAction.REBOOT: "on"}.get(action, action.value)
        told = f"its order may have gone out, and it was not given again; {words}"
        if action is HostPowerAction.REBOOT and not step.name.startswith("on "):
            return f"{told}; it was not switched on again", state.value, False
        return told, state.value, state.value == wanted

    async def _may_wait(self, host: Host) -> bool:
        """Those who ask for us connect anew when a server begins, and an order that is out takes its own time (ADR 18)."""
        policy = (await self._cluster_of(host)).policy
        wait_ms = policy.detection.reconnect_ms + policy.fencing.order_deadline_ms
        return self._clock.monotonic_ms() - self._began_ms < wait_ms + LOOK_DEADLINE_MS

    async def _cluster_of(self, host: Host) -> Cluster:
        async with self._store.read() as tx:
            cluster = await find_cluster(tx, host.cluster_id)
        assert isinstance(cluster, Cluster)
        return cluster


async def _found(tx: WriteTransaction, operation_id: OperationId) -> Operation:
    row = await find_operation(tx, operation_id)
    if row is None:
        raise NotFound(f"there is no operation {operation_id}")
    return row.operation


async def _save(tx: WriteTransaction, operation: Operation) -> Operation:
    return await save_operation(tx, operation, encode_plan(Plan(steps=(), by=operation.asked_by)))


async def _check_nothing_open(tx: WriteTransaction, host: Host) -> None:
    for row in await open_operations_of(tx, host.id):
        if row.operation.kind == POWER:
            raise Conflict(
                f"somebody switches {host.name} already",
                code="problem.operation.open",
                fix=f"wait for it: 'virtha operation wait {row.operation.id}'",
            )


async def _check_empty(tx: WriteTransaction, host: Host) -> None:
    held = await vms_held_by(tx, host.id)
    if held:
        names = ", ".join(sorted(one.vm.name for one in held)[:10])
        raise Refused(
            f"{len(held)} VMs may run on {host.name}: {names}",
            field="force",
            fix="move them first; or force it, and they are cut off with the host",
        )


async def take_back(tx: WriteTransaction, operation: Operation, by: str) -> Operation:
    """Before its order went out. Raises Refused (`problem.operation.cancel`)."""
    if operation.state is not OperationState.PENDING:
        why = f"is {operation.state.value} already" if operation.is_over else "may have gone out"
        raise Refused(
            f"{operation.kind} {why}",
            code="problem.operation.cancel",
            fix="look with 'virtha host power status'",
        )
    message = f"it was taken back by {by}; no order had gone out"
    ended = _ended(operation, tx.clock.wall_ms(), CANCELLED, message, state="unknown")
    return await _save(tx, replace(ended, state=OperationState.CANCELLED))


def _ended(
    operation: Operation, now: UtcMillis, code: str | None, message: str, *, state: str
) -> Operation:
    done = code is None
    end = OperationState.DONE if done else OperationState.FAILED
    steps = tuple(
        replace(step, state=end, ended=now) if step.state is OperationState.RUNNING else step
        for step in operation.steps
    )
    return replace(
        operation,
        state=end,
        steps=steps,
        ended=now,
        code=code,
        message=message,
        progress=100 if done else operation.progress,
        fields={**operation.fields, "state": state},
    )
