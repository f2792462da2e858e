"""How a simulated agent carries out the server's orders: as ``virtha.agent.order_desk`` and ``order_power``."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from msgspec import UNSET
from msgspec.structs import replace

from virtha.model.domain import DomainReport
from virtha.model.errors import VirthaError
from virtha.model.facts import Outcome, Result
from virtha.model.ids import Incarnation, Term, VmId
from virtha.model.orders import (
    AdoptVm,
    EndPausedVm,
    Grant,
    LetInHost,
    MigrateVm,
    Order,
    PauseVm,
    RebootMode,
    RebootVm,
    ReceiveVm,
    ReleaseVm,
    ResumeVm,
    SettleMigration,
    ShutOutHost,
    StartVm,
    StopMode,
    StopVm,
)
from virtha.model.value import Fields
from virtha.model.vm import Reason, VmState
from virtha.ports.hypervisor import DomainMissing, HypervisorUnavailable
from virtha.sentinel.events import (
    Adopted,
    ArrivalCalledOff,
    Forgotten,
    PauseAccepted,
    RebootAccepted,
    ReportAgain,
    ResumeAccepted,
    StartAccepted,
    StartEnded,
    StartRefused,
    StopAccepted,
)
from virtha.sentinel.moves import awaited, leaves, never_came
from virtha.sentinel.stops import end_refusal, is_unfinished
from virtha.sim.ceph import cluster_of
from virtha.sim.move_desk import MoveDesk, MoveOrder

if TYPE_CHECKING:
    from virtha.sim.agent import SimAgent

SHUTDOWN_MS = 1_000
"""How long an obedient guest takes."""
FIRST_LIST_MS = 10_000
"""How long a start waits for libvirt's first list."""
POLL_MS = 50
"""How often what waits for it looks."""
LEASE = "order.refused.lease"


class _Refused(Exception):
    """What the answer says; nothing was done."""

    def __init__(self, code: str, fields: Fields | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.fields = fields or {}


class OrderDesk:
    """Of one agent process: orders in hand die with it and are sent again by the server."""

    def __init__(self, agent: "SimAgent", *, term_seen: Term) -> None:
        self.agent = agent
        self.term_seen = term_seen
        self._in_hand: set[str] = set()
        self._waiting: list[Order] = []
        self.moves = MoveDesk(agent)

    def accept(self, order: Order) -> None:
        """The answer is an ``Outcome`` fact."""
        agent = self.agent
        if agent.dead or order.operation_id in self._in_hand:
            return  # it came again while it is carried out: one answer is enough
        known = agent.host.disk.outcomes.get(order.operation_id)
        if known is not None:
            on_its_way = any(
                fact.body == known and fact.sequence > agent.host.disk.acknowledged
                for fact in agent.host.disk.facts
            )
            if not on_its_way:
                agent.emit([known])
            return
        self._in_hand.add(order.operation_id)
        objection = self._objection(order)
        if objection is not None:
            if objection.code == "order.refused.boot" and isinstance(order.body, StartVm):
                # The boot that it was for is over, and so is whatever it might have started.
                self._decline(order.body, "for another boot")
            self._end(order, Result.REFUSED, refusal=objection)
        elif agent.sentinel.ready:
            self._begin(order)
        else:
            self._drop_older_words(order)
            self._waiting.append(order)
            if isinstance(order.body, StartVm):
                left_ms = order.body.grant.ends_at_ms - agent.host.clock()
                delay_ms = max(0, min(FIRST_LIST_MS, left_ms))
                agent.later(delay_ms, partial(self._without_libvirt, order, order.body))

    def _drop_older_words(self, order: Order) -> None:
        """What the server said of a migration before is not what it wants now."""
        if isinstance(order.body, SettleMigration):
            self._waiting = [
                other
                for other in self._waiting
                if not isinstance(other.body, SettleMigration)
                or other.body.migration_id != order.body.migration_id
            ]

    def look_again(self) -> None:
        """What waited for libvirt's list: carried out before it, it would cover up what happened."""
        if self._waiting and self.agent.sentinel.ready:
            waiting, self._waiting = self._waiting, []
            for order in waiting:
                self.agent.later(POLL_MS, partial(self._begin, order))

    def _objection(self, order: Order) -> _Refused | None:
        if order.term < self.term_seen:
            fields = {"term": order.term, "current": self.term_seen}
            return _Refused("order.refused.term", {**fields})
        self.term_seen = order.term
        if order.host_boot != self.agent.host.boot:
            return _Refused("order.refused.boot")
        return None

    def _end(
        self,
        order: Order,
        result: Result,
        message: str = "",
        *,
        refusal: _Refused | None = None,
        fields: Fields | None = None,
    ) -> None:
        agent = self.agent
        if agent.dead:
            return
        outcome = Outcome(
            operation_id=order.operation_id,
            step=order.step,
            result=result,
            message=message,
            code=refusal.code if refusal else None,
            fields=refusal.fields if refusal else fields or {},
        )
        agent.host.disk.outcomes[order.operation_id] = outcome
        agent.emit([outcome])
        self._in_hand.discard(order.operation_id)
        if isinstance(order.body, StartVm) and outcome.code == "order.refused.running":
            # After the answer: the server drops a report of what it holds for superseded, and learns
            # by the answer that this one is not.
            agent.tell(ReportAgain(vm_id=order.body.vm.id))

    def _begin(self, order: Order) -> None:
        match order.body:
            case StartVm() as start:
                self.agent.locked(start.vm.id, partial(self._start, order, start))
            case AdoptVm(vm=vm):
                self.agent.locked(vm.id, partial(self._at_once, order, vm.id))
            case StopVm() | RebootVm() | PauseVm() | ResumeVm() | ReleaseVm() as body:
                self.agent.locked(body.vm_id, partial(self._at_once, order, body.vm_id))
            case EndPausedVm() as body:
                self.agent.locked(body.vm_id, partial(self._end_paused, order, body))
            case ShutOutHost() | LetInHost() as body:
                self._on_ceph(order, body)
            case ReceiveVm() | SettleMigration() as body:
                self.agent.locked(body.vm.id, partial(self._move, order, body))
            case MigrateVm() as body:
                self.agent.locked(body.vm_id, partial(self._move, order, body))
            case _:
                raise AssertionError(f"the simulator has no order {order.body}")

    def _move(self, order: Order, body: MoveOrder) -> None:
        """Begun, or settled: what comes of it is told by itself."""
        vm_id = body.vm_id if isinstance(body, MigrateVm) else body.vm.id
        refusal = self.moves.carry_out(body, self._arrival_objection)
        if refusal is None:
            self._end(order, Result.OK)
        else:
            self._end(order, Result.REFUSED, refusal=_Refused(refusal.code, refusal.fields))
        self.agent.unlock(vm_id)

    def _end_paused(self, order: Order, body: EndPausedVm) -> None:
        def answered(result: Result, why: Reason | None) -> None:
            refusal = None if why is None else _Refused(why.code, why.fields)
            self._end(order, result, refusal=refusal)

        self.agent.paused.end(body, answered)

    def _on_ceph(self, order: Order, body: ShutOutHost | LetInHost) -> None:
        def ended(fields: Fields | None, why: str) -> None:
            result = Result.FAILED if fields is None else Result.OK
            self._end(order, result, why, fields=fields)

        try:
            cluster_of(self.agent.host).carry_out(self.agent, body, ended)
        except VirthaError as error:
            self._end(order, Result.REFUSED, error.message)

    def _arrival_objection(self, order: ReceiveVm) -> Reason | None:
        objection = self._grant_objection(order.grant)
        return None if objection is None else Reason(code=objection.code, fields=objection.fields)

    # Start

    def _start(self, order: Order, start: StartVm) -> None:
        """The VM's lock is held. Nothing is made before ``_make``."""
        refusal = self.agent.sentinel.start_refusal(start.vm.id, start.grant.incarnation)
        if refusal is not None:
            self._refused_by_sentinel(order, start, refusal)
            return
        objection = self._grant_objection(start.grant) or self._running_unseen(start)
        if objection is not None:
            if objection.code != "order.refused.running":
                self._decline(start, objection.code)
            self._unlocked(start, lambda: self._end(order, Result.REFUSED, refusal=objection))
            return
        self._make(order, start)

    def _refused_by_sentinel(self, order: Order, start: StartVm, refusal: Reason) -> None:
        agent = self.agent
        record = agent.record(start.vm.id)
        same = record is not None and record.incarnation == start.grant.incarnation
        if record is not None and same and refusal.code == "order.refused.running":
            if record.state is VmState.RUNNING:  # the order came twice
                self._unlocked(start, lambda: self._end(order, Result.OK))
                return
            if record.state is VmState.PAUSED and is_unfinished(record):
                self._carry_on(order, start)
                return
        agent.unlock(start.vm.id)
        if refusal.code == "host.unfit.libvirt":
            self._waiting.append(order)
            self._without_libvirt(order, start)
            return
        self._end(order, Result.REFUSED, refusal=_Refused(refusal.code, refusal.fields))

    def _without_libvirt(self, order: Order, start: StartVm) -> None:
        """Nothing is released before libvirt is back: a start that it never answered may run."""
        if order not in self._waiting:
            return
        self._waiting.remove(order)
        record = self.agent.record(start.vm.id)
        if record is not None and (record.state is not VmState.DOWN or record.attempt is not None):
            refusal = _Refused("order.refused.running", {"current": record.incarnation})
            self._end(order, Result.REFUSED, refusal=refusal)
            return
        self._decline(start, "libvirt does not answer")
        objection = self._grant_objection(start.grant) or _Refused("host.unfit.libvirt")
        self._end(order, Result.REFUSED, refusal=objection)

    def _carry_on(self, order: Order, start: StartVm) -> None:
        """An agent before us made its QEMU and died before its processors ran."""
        agent, grant = self.agent, start.grant
        objection = self._grant_objection(grant) or self._lease_objection(grant.vm_id)
        if objection is not None:
            # It never ran, and may not any more.
            agent.host.libvirt.destroy(grant.vm_id)
            agent.host.revoke(grant.vm_id)
            self._unlocked(start, lambda: self._end(order, Result.REFUSED, refusal=objection))
            return
        agent.tell(ResumeAccepted(vm_id=grant.vm_id, by=start.by))
        if agent.dead:
            return
        agent.host.hold(grant.vm_id, grant.incarnation)
        agent.host.on_start(agent.host, grant.vm_id)
        agent.host.libvirt.run(grant.vm_id)
        self._unlocked(start, lambda: self._end(order, Result.OK))

    def _grant_objection(self, grant: Grant) -> _Refused | None:
        host = self.agent.host
        if host.shutting_down:
            return _Refused("restart.blocked.host_shutting_down")
        if grant.boot != host.boot:
            return _Refused("order.refused.boot")
        late_ms = host.clock() - grant.ends_at_ms
        if late_ms >= 0:
            return _Refused("order.refused.grant_expired", {"late_ms": late_ms})
        return None

    def _lease_objection(self, vm_id: VmId) -> _Refused | None:
        """Whoever lets processors run asks the guardian's lease first."""
        code = self.agent.host.lease_objection(vm_id)
        return None if code is None else _Refused(code)

    def _running_unseen(self, start: StartVm) -> _Refused | None:
        domain = self.agent.host.libvirt.find(start.vm.id)
        if domain is None or domain.qemu is None:
            return None
        record = self.agent.record(start.vm.id)
        fields: Fields = {} if record is None else {"current": record.incarnation}
        return _Refused("order.refused.running", fields)

    def _make(self, order: Order, start: StartVm) -> None:
        agent, grant = self.agent, start.grant
        agent.tell(StartAccepted(vm=start.vm, incarnation=grant.incarnation, by=start.by))
        if agent.dead:
            return

        def ended(result: Result, detail: str) -> None:
            agent.tell(
                StartEnded(
                    vm_id=grant.vm_id, incarnation=grant.incarnation, result=result, detail=detail
                )
            )
            refusal = None
            if result is Result.REFUSED:
                refusal = _Refused(detail if detail == LEASE else "order.refused.grant_expired")
            self._unlocked(start, lambda: self._end(order, result, detail, refusal=refusal))

        if start.ceph_epochs is not UNSET:
            for epoch in start.ceph_epochs.values():
                cluster_of(agent.host).wait_for(epoch)
        agent.starter.start(
            grant.vm_id,
            grant.incarnation,
            until_ms=grant.ends_at_ms,
            still_allowed=lambda: self._changed_mind(grant),
            ended=ended,
        )

    def _changed_mind(self, grant: Grant) -> str | None:
        objection = self._grant_objection(grant)
        record = self.agent.record(grant.vm_id)
        if objection is not None:
            return objection.code
        if record is None or record.incarnation != grant.incarnation or record.released:
            return "it was given back meanwhile"
        if record.stop is not None:
            return "it was stopped on purpose meanwhile"
        return None

    def _decline(self, start: StartVm, why: str) -> None:
        """Nothing of this incarnation was made here: the server may try elsewhere (P5). The sentinel
        records it before it says so, and says nothing where a copy may run."""
        incarnation: Incarnation = start.grant.incarnation
        self.agent.tell(StartRefused(vm=start.vm, incarnation=incarnation, detail=why))

    def _unlocked(self, start: StartVm, action: Callable[[], None]) -> None:
        action()
        self.agent.unlock(start.vm.id)

    # All others end at once

    def _at_once(self, order: Order, vm_id: VmId) -> None:
        try:
            self._carry_out(order)
        except _Refused as refused:
            self._end(order, Result.REFUSED, refusal=refused)
        except VirthaError as error:
            self._end(order, Result.FAILED, error.message)
        else:
            self._end(order, Result.OK)
        finally:
            self.agent.unlock(vm_id)

    def _carry_out(self, order: Order) -> None:
        agent = self.agent
        if not agent.host.libvirt_up and not isinstance(order.body, StopVm):
            raise HypervisorUnavailable("libvirt does not answer")
        match order.body:
            case StopVm(incarnation=incarnation) as stop:
                self._check_superseded(stop.vm_id, incarnation)
                refusal = end_refusal(agent.host.boot, stop)
                if refusal is not None:
                    raise _Refused(refusal.code, refusal.fields)
                self._stop(stop)
            case RebootVm(vm_id=vm_id, incarnation=incarnation, mode=mode, by=by):
                self._check_running(vm_id, incarnation)
                agent.tell(RebootAccepted(vm_id=vm_id, mode=mode, by=by))
                libvirt = agent.host.libvirt
                act = libvirt.reset if mode is RebootMode.RESET else libvirt.guest_reboot
                self._if_alive(lambda: act(vm_id))
            case PauseVm(vm_id=vm_id, incarnation=incarnation, by=by):
                self._check_running(vm_id, incarnation)
                agent.tell(PauseAccepted(vm_id=vm_id, by=by))
                self._if_alive(lambda: agent.host.libvirt.pause(vm_id))
            case ResumeVm(vm_id=vm_id, incarnation=incarnation, by=by):
                self._check_running(vm_id, incarnation)
                self._check_stays(vm_id)
                lost = self._lease_objection(vm_id)
                if lost is not None:
                    raise lost
                agent.tell(ResumeAccepted(vm_id=vm_id, by=by))
                self._if_alive(lambda: agent.host.libvirt.run(vm_id))
            case AdoptVm() as adopt:
                self._adopt(adopt)
            case ReleaseVm(vm_id=vm_id):
                agent.tell(Forgotten(vm_id=vm_id))
                self._if_alive(lambda: agent.given_back(vm_id))

    def _if_alive(self, action: Callable[[], None]) -> None:
        if not self.agent.dead:
            action()

    def _check_superseded(self, vm_id: VmId, incarnation: Incarnation) -> None:
        record = self.agent.record(vm_id)
        if record is not None and record.incarnation > incarnation:
            fields = {"incarnation": incarnation, "current": record.incarnation}
            raise _Refused("order.refused.incarnation", {**fields})

    def _check_running(self, vm_id: VmId, incarnation: Incarnation) -> None:
        self._check_superseded(vm_id, incarnation)
        domain = self.agent.host.libvirt.find(vm_id)
        if domain is None:
            raise DomainMissing("this host does not have that VM")
        if domain.qemu is None:
            raise _Refused("problem.vm.state")

    def _check_stays(self, vm_id: VmId) -> None:
        """Of a move the other side may run: only the server's word on it lets this one run (G6)."""
        record = self.agent.record(vm_id)
        if record is not None and (leaves(record) or never_came(record)):
            raise _Refused("problem.vm.state")

    def _stop(self, stop: StopVm) -> None:
        agent, vm_id = self.agent, stop.vm_id
        record, off = agent.record(vm_id), stop.mode is StopMode.POWER_OFF
        comes = record is not None and awaited(record)
        if comes and off:
            agent.host.revoke(vm_id)
        accepted = StopAccepted(
            vm_id=vm_id,
            mode=stop.mode,
            by=stop.by,
            deadline_ms=stop.deadline_ms,
            superseded_by=stop.superseded.incarnation if stop.superseded else None,
        )
        agent.tell(accepted)
        if agent.dead:
            return
        if not agent.host.libvirt_up:
            raise HypervisorUnavailable("libvirt does not answer")
        libvirt = agent.host.libvirt
        domain = libvirt.find(vm_id)
        if domain is None or domain.qemu is None:
            if not comes:
                agent.host.revoke(vm_id)
            elif off:
                agent.tell(ArrivalCalledOff(vm_id=vm_id))
        elif off:
            libvirt.destroy(vm_id)
        elif not comes and not agent.host.stubborn(vm_id):
            libvirt.shutdown(vm_id)
            agent.host.kernel.after(SHUTDOWN_MS, lambda: self._guest_obeys(vm_id))

    def _guest_obeys(self, vm_id: VmId) -> None:
        domain = self.agent.host.libvirt.find(vm_id)
        if domain is not None and domain.qemu is not None and domain.qemu.running:
            self.agent.host.libvirt.guest_shutdown(vm_id)

    def _adopt(self, adopt: AdoptVm) -> None:
        agent = self.agent
        report: DomainReport = agent.host.libvirt.domain(adopt.vm.id).report()
        # The grant comes first: from now on the guardian takes it for managed.
        agent.host.hold(adopt.vm.id, adopt.incarnation)
        vm = replace(adopt.vm, adopted=True)
        agent.tell(Adopted(vm=vm, incarnation=adopt.incarnation, domain=report))
