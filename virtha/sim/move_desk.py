"""How a simulated agent takes part in live migrations: it lets a copy in, begins one, and settles what is left of one.

What the server's words come to is decided by the sentinel; libvirt is asked what there is, and does it.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from virtha.model.errors import VirthaError
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import MigrateVm, MigrationSide, ReceiveVm, SettleMigration
from virtha.model.vm import PossibleCopy, Reason
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
)
from virtha.sentinel.moves import SettleAction, leaves
from virtha.sentinel.state import reason

if TYPE_CHECKING:
    from virtha.sim.agent import SimAgent

WATCH_MS = 200
"""How often an agent looks how a migration of its host is doing."""
EVENTS_MS = 2
"""Longer than libvirt's events take: what they say of the end comes first."""
CANCELLED = "migration.ended.cancelled"

MoveOrder = ReceiveVm | MigrateVm | SettleMigration


class MoveDesk:
    def __init__(self, agent: "SimAgent") -> None:
        self._agent = agent
        self._watched: set[VmId] = set()

    def carry_out(
        self, body: MoveOrder, objection: Callable[[ReceiveVm], Reason | None]
    ) -> Reason | None:
        """None: done, or begun. ``objection``: to the grant of a copy that is to come in."""
        match body:
            case ReceiveVm():
                return self._receive(body, objection(body))
            case MigrateVm():
                return self._migrate(body)
            case SettleMigration():
                self._settle(body)
                return None

    # Target

    def _receive(self, order: ReceiveVm, objection: Reason | None) -> Reason | None:
        agent, grant = self._agent, order.grant
        refusal = agent.sentinel.arrival_refusal(order.vm.id, grant.incarnation) or objection
        domain = agent.host.libvirt.find(order.vm.id)
        if refusal is None and domain is not None and domain.qemu is not None:
            refusal = reason("order.refused.running")
        if refusal is not None:
            agent.tell(
                ArrivalRefused(
                    vm=order.vm,
                    migration_id=order.migration_id,
                    incarnation=grant.incarnation,
                    code=refusal.code,
                )
            )
            return refusal
        agent.tell(
            ArrivalAccepted(
                vm=order.vm,
                migration_id=order.migration_id,
                incarnation=grant.incarnation,
                ends_ms=grant.ends_at_ms,
                by=order.by,
                source=order.source,
            )
        )
        if not agent.dead:
            agent.host.expect(order.vm.id, grant.incarnation, until_ms=grant.ends_at_ms)
        return None

    # Source

    def _migrate(self, order: MigrateVm) -> Reason | None:
        agent, vm_id = self._agent, order.vm_id
        refusal = agent.sentinel.move_refusal(vm_id, order.incarnation, order.target_incarnation)
        if refusal is not None:
            record = agent.record(vm_id)
            if record is not None:
                agent.tell(
                    MoveRefused(
                        vm=record.vm,
                        migration_id=order.migration_id,
                        incarnation=order.incarnation,
                        target_incarnation=order.target_incarnation,
                        code=refusal.code,
                    )
                )
            return refusal
        agent.tell(
            MoveAccepted(
                vm_id=vm_id,
                migration_id=order.migration_id,
                incarnation=order.incarnation,
                target_incarnation=order.target_incarnation,
                deadline_ms=order.deadline_ms,
                by=order.by,
                target=_target(order),
            )
        )
        if not agent.dead:
            self._begin(vm_id, order.target)
        return None

    def _begin(self, vm_id: VmId, target: str) -> None:
        host = self._agent.host
        try:
            if host.libvirt_up:
                host.migrations.begin(host, vm_id, target)
        except VirthaError as error:
            host.trace(f"{host.name} can't begin: {error.message}")
        self._watch(vm_id)

    def abort(self, vm_id: VmId, code: str) -> None:
        host = self._agent.host
        if host.libvirt_up:
            host.migrations.abort(host, vm_id, code)
        self._watch(vm_id)

    def watch_open(self) -> None:
        """What a former agent of this boot began."""
        for record in self._agent.sentinel.view():
            if leaves(record) and record.boot == self._agent.host.boot:
                self._watch(record.vm.id, seen_whole=False)

    def _watch(self, vm_id: VmId, *, seen_whole: bool = True) -> None:
        if vm_id not in self._watched:
            self._watched.add(vm_id)
            self._agent.later(WATCH_MS, partial(self._look, vm_id, seen_whole))

    def _look(self, vm_id: VmId, seen_whole: bool) -> None:
        """``seen_whole``: libvirt was there all the time, so its word on the end is the end."""
        agent, host = self._agent, self._agent.host
        record = agent.record(vm_id)
        if record is None or not leaves(record):
            self._watched.discard(vm_id)
            return
        seen_whole = seen_whole and host.libvirt_up
        if not host.libvirt_up or host.migrations.under_way(host, vm_id):
            agent.later(WATCH_MS, partial(self._look, vm_id, seen_whole))
            return
        self._watched.discard(vm_id)
        copy = host.migrations.seen(host, vm_id)
        result, code = host.migrations.result(host, vm_id)
        if copy.active and not copy.stands:
            result = Result.FAILED
        elif copy.active or not seen_whole:
            result = Result.UNKNOWN
        agent.later(EVENTS_MS, partial(self._tell_end, vm_id, result, code))

    def _tell_end(self, vm_id: VmId, result: Result, code: str | None) -> None:
        record = self._agent.record(vm_id)
        if record is not None and record.move is not None:
            self._agent.tell(
                MoveEnded(
                    vm_id=vm_id, migration_id=record.move.migration_id, result=result, code=code
                )
            )

    # Asked how it stands, or told how it goes on

    def _settle(self, order: SettleMigration) -> None:
        agent, vm_id = self._agent, order.vm.id
        copy = agent.host.migrations.seen(agent.host, vm_id)
        action = agent.sentinel.settle_action(order, copy)
        agent.host.trace(f"{agent.host.name} told {order.word} of {order.migration_id}: {action}")
        match action:
            case SettleAction.NOTHING:
                pass
            case SettleAction.AGAIN | SettleAction.UNCLEAR:
                agent.tell(
                    MoveToldAgain(
                        vm_id=vm_id,
                        migration_id=order.migration_id,
                        target_incarnation=order.target_incarnation,
                        unclear=action is SettleAction.UNCLEAR,
                    )
                )
            case SettleAction.STAYS:
                _, code = agent.host.migrations.result(agent.host, vm_id)
                self._tell_end(vm_id, Result.FAILED, code)
            case SettleAction.REFUSE:
                self._refuse(order)
            case SettleAction.ABORT:
                self.abort(vm_id, CANCELLED)
            case SettleAction.END:
                self._end(order)
            case SettleAction.RUN:
                self._run(order)
            case SettleAction.GIVE_UP:
                agent.tell(MoveGivenUp(vm_id=vm_id))

    def _refuse(self, order: SettleMigration) -> None:
        if order.side is MigrationSide.TARGET:
            self._agent.tell(
                ArrivalRefused(
                    vm=order.vm,
                    migration_id=order.migration_id,
                    incarnation=order.target_incarnation,
                    code="order.refused.migration",
                )
            )
            return
        self._agent.tell(
            MoveRefused(
                vm=order.vm,
                migration_id=order.migration_id,
                incarnation=order.incarnation,
                target_incarnation=order.target_incarnation,
                code="order.refused.migration",
            )
        )

    def _end(self, order: SettleMigration) -> None:
        agent, host, vm_id = self._agent, self._agent.host, order.vm.id
        if not host.libvirt_up:
            return
        if order.side is MigrationSide.SOURCE:
            agent.tell(MoveEnding(vm_id=vm_id))
        else:
            # First the right to come in, then what came: nothing may come in between.
            host.revoke(vm_id)
        if agent.dead:
            return
        domain = host.libvirt.find(vm_id)
        if domain is not None and domain.qemu is not None:
            host.libvirt.destroy(vm_id)
        elif order.side is MigrationSide.TARGET:
            agent.tell(ArrivalCalledOff(vm_id=vm_id))

    def _run(self, order: SettleMigration) -> None:
        """Everything that the order was about was looked at just now; whoever slept in between finds no other
        side that could run it: the server had the end of that before it gave the word."""
        host, vm_id = self._agent.host, order.vm.id
        objection = host.lease_objection(vm_id)
        if not host.libvirt_up or objection is not None:
            return
        incarnation: Incarnation = order.incarnation
        host.hold(vm_id, incarnation)
        host.on_start(host, vm_id)
        host.libvirt.run(vm_id)
        if order.side is MigrationSide.SOURCE:
            self._watch(vm_id)


def _target(order: MigrateVm) -> PossibleCopy | None:
    if order.target_boot is None:
        return None
    return PossibleCopy(
        host_id=order.target, incarnation=order.target_incarnation, boot=order.target_boot
    )
