"""Live migrations, as this host takes part in them: it lets a copy in, sends one away, settles what is left of one.

What the server's words come to is decided by the sentinel (``sentinel.moves``); libvirt is asked what there is, and does
it. ADR 10 says who may run what, ADR 14 what libvirt does of it.
"""

import asyncio
from typing import TYPE_CHECKING

import structlog

from virtha.agent.answers import OK, Answer, of_error, refused
from virtha.agent.ceph_images import take_along
from virtha.agent.commands import is_gone
from virtha.agent.gate import GrantState, read_grant
from virtha.agent.host_context import HostContext
from virtha.agent.storage import ClaimRefused
from virtha.model.codes import render
from virtha.model.domain import DomainState
from virtha.model.errors import VirthaError
from virtha.model.facts import Progress, Result
from virtha.model.ids import Incarnation, OperationId, VmId
from virtha.model.orders import (
    MigrateVm,
    MigrationSide,
    MigrationWord,
    MoveDestination,
    ReceiveVm,
    SettleMigration,
)
from virtha.model.value import Scalar
from virtha.model.vm import PossibleCopy, Reason
from virtha.ports.hypervisor import (
    DomainMissing,
    HypervisorError,
    HypervisorTimeout,
    MoveEnd,
)
from virtha.sentinel.events import (
    ArrivalAccepted,
    ArrivalCalledOff,
    ArrivalRefused,
    MoveAccepted,
    MoveEnded,
    MoveEnding,
    MoveGivenUp,
    MoveRefused,
    MoveToldAgain,
    VmRecord,
)
from virtha.sentinel.moves import CopySeen, SettleAction, leaves

if TYPE_CHECKING:
    from virtha.agent.order_power import PowerOrders

WATCH_S = 0.2
PROGRESS_S = 1.0
EVENTS_S = 0.2
"""Longer than libvirt's events take: what they say of the end comes first."""
ENDS_S = 10.0
"""An attempt that was aborted ends within moments, unless its leader waits for a target that does not answer."""
LEFT_S = 10.0
"""libvirt ends an attempt whose leader is gone within moments."""
CLAIM_RETRY_S = 1.0
CANCELLED = "migration.ended.cancelled"
SETUP = "order.refused.migration_setup"

_log = structlog.get_logger(__name__)


class MoveOrders:
    def __init__(self, host: HostContext, power: "PowerOrders") -> None:
        self._host = host
        self._power = power
        self._watched: set[VmId] = set()
        self._arrived: set[tuple[VmId, Incarnation]] = set()
        self._ending: set[VmId] = set()
        self._codes: dict[VmId, str] = {}
        """Why this agent asked libvirt to end an attempt, or why its leader says that it ended."""

    # Target

    async def receive(self, order: ReceiveVm) -> Answer:
        """Done when the gate knows it. Its fields say where it is let in (``MoveDestination``)."""
        async with self._host.locks.of(order.vm.id):
            try:
                objection = await self._arrival_objection(order)
            except (VirthaError, OSError) as error:
                objection = of_error(error)
            if objection is not None:
                return await self._refuse_arrival(order, objection)
            return await self._let_in(order)

    async def _arrival_objection(self, order: ReceiveVm) -> Answer | None:
        """Nothing is let in before it is None; raises what keeps it from being looked at."""
        host, vm, grant = self._host, order.vm, order.grant
        refusal = await self._power.refusal(grant)
        refusal = refusal or host.loop.arrival_refusal(vm.id, grant.incarnation)
        if refusal is not None:
            return _refusal(refusal)
        if host.destination is None:
            return refused(
                SETUP,
                "this host is not set up for live migration: run 'virtha agent setup-migration'",
            )
        present = await self._power.present(vm.id)
        if present is not None and not is_gone(present):
            return refused("order.refused.running", f"{vm.name} is {present.state} here already")
        for disk in vm.disks:
            host.storage_domain(disk.storage_domain_id)
        objection = await self._power.await_lease(vm, grant)
        if objection is not None:
            return objection
        # What is defined here is what a later restart on this host starts.
        await self._power.define(vm)
        # Nobody is asked once its QEMU exists: libvirt lets a copy run that has come in whole (P2).
        return self._power.grant_objection(grant) or self._power.lease_objection(vm.id, coming=vm)

    async def _refuse_arrival(self, order: ReceiveVm, answer: Answer) -> Answer:
        """Nothing of it can come to be here: the gate was told nothing. Whatever it was, the word of it is certain."""
        code = answer.code or "problem.failed"
        await self._host.loop.told(
            ArrivalRefused(
                vm=order.vm,
                migration_id=order.migration_id,
                incarnation=order.grant.incarnation,
                code=code,
            )
        )
        result = Result.REFUSED if answer.result is Result.REFUSED else Result.FAILED
        return Answer(result=result, code=code, message=answer.message, fields=answer.fields)

    async def _let_in(self, order: ReceiveVm) -> Answer:
        host, grant = self._host, order.grant
        accepted = ArrivalAccepted(
            vm=order.vm,
            migration_id=order.migration_id,
            incarnation=grant.incarnation,
            ends_ms=grant.ends_at_ms,
            by=order.by,
            source=order.source,
        )
        durable, refusal = await host.loop.told_start(accepted)
        if refusal is not None:
            return await self._refuse_arrival(order, _refusal(refusal))
        trouble = None if durable else "no space left for the agent's records"
        if trouble is None:
            try:
                host.gate.expect(order.vm.id, grant.incarnation, until_ms=grant.ends_at_ms)
            except OSError as error:
                trouble = f"the grant can't be written: {error.strerror}"
        if trouble is not None:
            host.gate.revoke(order.vm.id)
            await host.loop.told(ArrivalCalledOff(vm_id=order.vm.id))
            return Answer(result=Result.FAILED, code="problem.disk.full", message=trouble)
        assert host.destination is not None
        return Answer(result=Result.OK, fields=_fields(host.destination))

    def looked_at(self, vm_id: VmId) -> None:
        """libvirt was asked for a list: the copy that was awaited may run here since. Once for each that came, by each agent:
        the one before may have died before its storage knew."""
        record = self._host.loop.record(vm_id)
        if record is None or not _arrived(record) or record.released:
            return
        came = (vm_id, record.incarnation)
        if record.boot == self._host.boot and came not in self._arrived:
            self._arrived.add(came)
            self._host.spawn(f"arrival of {vm_id}", self._settle_in(record))

    async def _settle_in(self, record: VmRecord) -> None:
        """The guardian leaves it alone whatever the time, and its storage learns whose it is (G4)."""
        host, vm = self._host, record.vm
        try:
            async with host.locks.of(vm.id):
                if not _same(host.loop.record(vm.id), record):
                    return
                grant = read_grant(host.paths.grant(vm.id))
                if grant is not None and grant.state is GrantState.ARRIVING:
                    host.gate.hold(vm.id, record.incarnation)
            while _same(host.loop.record(vm.id), record):
                try:
                    await self._power.claim(vm, record.incarnation)
                    await take_along(host, vm, None)
                    return
                except ClaimRefused as error:
                    _log.error(
                        "a copy came in that is not the newest", vm=vm.name, error=str(error)
                    )
                    return
                except (VirthaError, OSError) as error:
                    _log.warning("a moved VM can't be claimed yet", vm=vm.name, error=str(error))
                await asyncio.sleep(CLAIM_RETRY_S)
        except OSError as error:
            _log.error("a grant can't be kept", vm=vm.name, error=str(error))
            self._arrived.discard((vm.id, record.incarnation))

    # Source

    async def migrate(self, order: MigrateVm) -> Answer:
        """Done when it is begun; how it ends is told as ``MigrationReport``."""
        host, vm_id = self._host, order.vm_id
        async with host.locks.of(vm_id):
            if order.destination is None:
                return await self._refuse_move(
                    order, refused("order.refused.unsupported", "it says no destination")
                )
            if host.freezer.holds(vm_id):
                return await self._refuse_move(
                    order, refused("order.refused.state", "its guest is frozen", state="frozen")
                )
            accepted = MoveAccepted(
                vm_id=vm_id,
                migration_id=order.migration_id,
                incarnation=order.incarnation,
                target_incarnation=order.target_incarnation,
                deadline_ms=order.deadline_ms,
                by=order.by,
                target=_target(order),
            )
            durable, refusal = await host.loop.told_start(accepted)
            if refusal is not None:
                return await self._refuse_move(order, _refusal(refusal))
            if not durable:
                # A mark that is not on disk is none: the next agent would restart what may be elsewhere (G5).
                await self._tell_end(vm_id, order.migration_id, Result.FAILED, "problem.disk.full")
                return Answer(result=Result.FAILED, code="problem.disk.full")
            self._codes.pop(vm_id, None)
            self._watched.add(vm_id)
            host.spawn(f"move {vm_id}", self._lead(order, order.destination))
        return OK

    async def _refuse_move(self, order: MigrateVm, answer: Answer) -> Answer:
        record = self._host.loop.record(order.vm_id)
        if record is not None:
            await self._host.loop.told(
                MoveRefused(
                    vm=record.vm,
                    migration_id=order.migration_id,
                    incarnation=order.incarnation,
                    target_incarnation=order.target_incarnation,
                    code=answer.code,
                )
            )
        return answer

    async def _lead(self, order: MigrateVm, destination: MoveDestination) -> None:
        telling = self._host.spawn(f"progress of {order.vm_id}", self._tell_progress(order))
        try:
            end = await self._host.moves.move(order.vm_id, destination)
        except (VirthaError, OSError) as error:
            end = MoveEnd(result=Result.UNKNOWN, detail=str(error))
        finally:
            telling.cancel()
        if end.code is not None:
            # The server may ask before what libvirt shows is settled: its target was quicker to say that nothing came.
            self._codes.setdefault(order.vm_id, end.code)
        await self._see_to_end(order.vm_id, end)

    async def _tell_progress(self, order: MigrateVm) -> None:
        """Until it is cancelled."""
        told = 0
        while order.progress_of is not None:
            await asyncio.sleep(PROGRESS_S)
            try:
                found = await self._host.moves.move_progress(order.vm_id)
            except HypervisorError:
                continue
            if found is None or not found.bytes_total:
                continue
            # A guest that writes makes it fall again; and it is not done before its target runs.
            percent = min(99, 100 * (found.bytes_total - found.bytes_left) // found.bytes_total)
            if percent > told:
                told = percent
                await self._host.facts.emit(
                    [Progress(operation_id=order.progress_of, step=0, percent=percent)]
                )

    def watch_open(self) -> None:
        """What a former agent of this boot began."""
        for record in self._host.loop.records():
            if leaves(record) and record.boot == self._host.boot:
                self._watch(record.vm.id)

    def _watch(self, vm_id: VmId) -> None:
        if vm_id not in self._watched:
            self._watched.add(vm_id)
            self._host.spawn(f"watch the move of {vm_id}", self._see_to_end(vm_id, None))

    async def _see_to_end(self, vm_id: VmId, end: MoveEnd | None) -> None:
        """``end``: as its leader says; None: it was another's. What libvirt shows counts more, and its events most."""
        try:
            copy = await self._when_over(vm_id)
            record = self._host.loop.record(vm_id)
            if copy is None or record is None or record.move is None or not leaves(record):
                return
            code = self._codes.pop(vm_id, None)
            if copy.active and not copy.stands:
                result, code = Result.FAILED, code or "migration.failed"
            elif copy.active or end is None:
                result = Result.UNKNOWN
            else:
                result = end.result
            await self._tell_end(vm_id, record.move.migration_id, result, code)
        finally:
            self._watched.discard(vm_id)

    async def _when_over(self, vm_id: VmId) -> CopySeen | None:
        """None: nobody needs to know any more."""
        while True:
            await asyncio.sleep(WATCH_S)
            record = self._host.loop.record(vm_id)
            if record is None or not leaves(record):
                return None
            try:
                copy = await self._seen(vm_id)
            except HypervisorError:
                continue
            if not copy.under_way:
                await asyncio.sleep(EVENTS_S)
                return copy

    async def _tell_end(
        self, vm_id: VmId, migration_id: OperationId, result: Result, code: str | None
    ) -> None:
        await self._host.loop.told(
            MoveEnded(vm_id=vm_id, migration_id=migration_id, result=result, code=code)
        )

    def abort_soon(self, vm_id: VmId, code: str) -> None:
        """The sentinel's command: it takes too long."""
        self._host.spawn(f"end the move of {vm_id}", self._abort(vm_id, code))

    async def _abort(self, vm_id: VmId, code: str) -> None:
        self._codes[vm_id] = code
        try:
            await self._host.moves.abort_move(vm_id)
        except DomainMissing:
            pass  # it is over
        except HypervisorError as error:
            _log.warning("a move can't be ended now", vm=vm_id, error=str(error))
        self._watch(vm_id)
        if vm_id not in self._ending:
            self._ending.add(vm_id)
            self._host.spawn(f"see the end of the move of {vm_id}", self._leave_if_it_hangs(vm_id))

    async def _leave_if_it_hangs(self, vm_id: VmId) -> None:
        """A target whose host was cut off answers nothing, for ever: not that it is prepared (libvirt has no job yet that
        could be aborted), and not that it has ended its part. Without a leader libvirt ends what it has here.
        """
        move_id = self._move_id(vm_id)
        try:
            await asyncio.sleep(ENDS_S)
            if move_id is None or self._move_id(vm_id) != move_id:
                return
            copy = await self._seen(vm_id)
            # One that stands still waits for its target's word, and whoever is told to end it or to let it run sees to its
            # leader first.
            if copy.under_way and not copy.stands:
                _log.warning("whoever leads a move hangs", vm=vm_id)
                await self._host.moves.leave_move(vm_id)
        except HypervisorError as error:
            _log.warning("a move hangs", vm=vm_id, error=str(error))
        finally:
            self._ending.discard(vm_id)

    def _move_id(self, vm_id: VmId) -> OperationId | None:
        """Of the one whose end is open here."""
        record = self._host.loop.record(vm_id)
        if record is None or record.move is None or not leaves(record):
            return None
        return record.move.migration_id

    # Asked how it stands, or told how it goes on

    async def settle(self, order: SettleMigration) -> Answer:
        """Raises VirthaError: libvirt can't be asked; the server says its word again."""
        async with self._host.locks.of(order.vm.id):
            copy = await self._seen(order.vm.id)
            action = self._host.loop.settle_action(order, copy)
            if order.side is MigrationSide.SOURCE and action in (
                SettleAction.END,
                SettleAction.RUN,
            ):
                # Whoever leads it still may be about to change what was seen.
                copy = await self._left_alone(order.vm.id)
                action = self._host.loop.settle_action(order, copy)
            _log.info("told of a move", vm=order.vm.name, word=order.word, action=action)
            return await self._do(order, action)

    async def _left_alone(self, vm_id: VmId) -> CopySeen:
        """Raises HypervisorTimeout."""
        await self._host.moves.leave_move(vm_id)
        deadline = asyncio.get_running_loop().time() + LEFT_S
        while True:
            copy = await self._seen(vm_id)
            if not copy.under_way:
                return copy
            if asyncio.get_running_loop().time() > deadline:
                raise HypervisorTimeout("libvirt works at its migration still")
            await asyncio.sleep(WATCH_S)

    async def _do(self, order: SettleMigration, action: SettleAction) -> Answer:
        vm_id, loop = order.vm.id, self._host.loop
        match action:
            case SettleAction.NOTHING:
                pass
            case SettleAction.AGAIN | SettleAction.UNCLEAR:
                await loop.told(
                    MoveToldAgain(
                        vm_id=vm_id,
                        migration_id=order.migration_id,
                        target_incarnation=order.target_incarnation,
                        unclear=action is SettleAction.UNCLEAR,
                    )
                )
            case SettleAction.STAYS:
                code = self._codes.get(vm_id)
                await self._tell_end(vm_id, order.migration_id, Result.FAILED, code)
            case SettleAction.REFUSE:
                await self._refuse_for_good(order)
            case SettleAction.ABORT:
                await self._abort(vm_id, CANCELLED)
            case SettleAction.END:
                return await self._end(order)
            case SettleAction.RUN:
                return await self._run(order)
            case SettleAction.GIVE_UP:
                await loop.told(MoveGivenUp(vm_id=vm_id))
        return OK

    async def _refuse_for_good(self, order: SettleMigration) -> None:
        code = "order.refused.migration"
        if order.side is MigrationSide.TARGET:
            await self._host.loop.told(
                ArrivalRefused(
                    vm=order.vm,
                    migration_id=order.migration_id,
                    incarnation=order.target_incarnation,
                    code=code,
                )
            )
            return
        await self._host.loop.told(
            MoveRefused(
                vm=order.vm,
                migration_id=order.migration_id,
                incarnation=order.incarnation,
                target_incarnation=order.target_incarnation,
                code=code,
            )
        )

    async def _end(self, order: SettleMigration) -> Answer:
        host, vm_id = self._host, order.vm.id
        if order.side is MigrationSide.SOURCE:
            if not await host.loop.told(MoveEnding(vm_id=vm_id)):
                return Answer(result=Result.FAILED, code="problem.disk.full")
        else:
            # First the right to come in, then what came: nothing may come in between.
            host.gate.revoke(vm_id)
        present = await self._power.present(vm_id)
        if present is not None and not is_gone(present):
            await host.control.destroy(vm_id)
        elif order.side is MigrationSide.TARGET:
            await host.loop.told(ArrivalCalledOff(vm_id=vm_id))
        return OK

    async def _run(self, order: SettleMigration) -> Answer:
        """The server had the end of the other side before it gave this word (G6)."""
        assert order.word is MigrationWord.RUN
        host, vm_id = self._host, order.vm.id
        objection = self._power.lease_objection(vm_id)
        if objection is not None:
            return objection  # the server gives its word again
        host.gate.hold(vm_id, order.incarnation)
        await host.control.run(vm_id)
        if order.side is MigrationSide.SOURCE:
            self._watch(vm_id)
        return OK

    async def _seen(self, vm_id: VmId) -> CopySeen:
        """``whole`` is never known of a target: see ADR 14. Raises HypervisorError."""
        host = self._host
        try:
            report = await host.catalog.domain(vm_id)
            under_way = await host.moves.under_way(vm_id)
        except DomainMissing:
            return CopySeen()
        stands = report.state is DomainState.PAUSED and report.reason == "migration"
        return CopySeen(active=not is_gone(report), stands=stands, under_way=under_way)


def _refusal(reason: Reason) -> Answer:
    return refused(reason.code, render(reason.code, reason.fields), **reason.fields)


def _target(order: MigrateVm) -> PossibleCopy | None:
    if order.target_boot is None:
        return None
    return PossibleCopy(
        host_id=order.target, incarnation=order.target_incarnation, boot=order.target_boot
    )


def _arrived(record: VmRecord) -> bool:
    move = record.move
    return move is not None and move.side is MigrationSide.TARGET and move.arrived


def _same(record: VmRecord | None, before: VmRecord) -> bool:
    return (
        record is not None
        and record.incarnation == before.incarnation
        and record.boot == before.boot
        and not record.released
    )


def _fields(destination: MoveDestination) -> dict[str, Scalar]:
    """As an ``Outcome`` carries it: what is not the default."""
    return {
        name: value
        for name in destination.__struct_fields__
        if (value := getattr(destination, name)) != getattr(MoveDestination(), name)
    }
