"""How a simulated agent carries out the server's orders: checked, marked in the record, then done."""

from msgspec.structs import replace

from virtha.model.domain import DomainReport
from virtha.model.errors import VirthaError
from virtha.model.facts import Outcome, Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import (
    AdoptVm,
    PauseVm,
    RebootMode,
    RebootVm,
    ReleaseVm,
    ResumeVm,
    StartVm,
    StopMode,
    StopVm,
)
from virtha.model.vm import Reason, VmState
from virtha.ports.hypervisor import HypervisorUnavailable
from virtha.sentinel.events import (
    Adopted,
    Forgotten,
    PauseAccepted,
    RebootAccepted,
    ResumeAccepted,
    StartAccepted,
    StartEnded,
    StopAccepted,
)
from virtha.sim.host import SimAgent
from virtha.sim.server import PendingOrder

SHUTDOWN_MS = 1_000
"""How long an obedient guest takes."""


class OrderDesk:
    """Of one agent process: orders in hand die with it and are sent again by the server."""

    def __init__(self, agent: SimAgent, *, ignores_shutdown: frozenset[VmId]) -> None:
        self.agent = agent
        self.in_hand: set[str] = set()
        self.ignores_shutdown = ignores_shutdown

    def take(self, order: PendingOrder) -> None:
        agent = self.agent
        if agent.dead or not agent.sentinel.ready or order.operation_id in self.in_hand:
            return
        known = agent.host.disk.outcomes.get(order.operation_id)
        if known is not None:
            agent.fact(known)
            return
        self.in_hand.add(order.operation_id)
        try:
            self._carry_out(order)
        except VirthaError as error:
            self._end(order, Result.FAILED, error.message)

    def _end(
        self,
        order: PendingOrder,
        result: Result,
        message: str = "",
        *,
        refusal: Reason | None = None,
    ) -> None:
        outcome = Outcome(
            operation_id=order.operation_id,
            step=0,
            result=result,
            message=message,
            code=refusal.code if refusal else None,
            fields=refusal.fields if refusal else {},
        )
        self.agent.host.disk.outcomes[order.operation_id] = outcome
        self.agent.fact(outcome)

    def _carry_out(self, order: PendingOrder) -> None:
        agent, libvirt = self.agent, self.agent.host.libvirt
        if not agent.host.libvirt_up and not isinstance(order.body, StartVm | StopVm):
            raise HypervisorUnavailable("libvirt does not answer")
        match order.body:
            case StartVm() as start:
                self._start(order, start)
            case StopVm(vm_id=vm_id, mode=mode, by=by, deadline_ms=deadline_ms):
                agent.tell(StopAccepted(vm_id=vm_id, mode=mode, by=by, deadline_ms=deadline_ms))
                if not agent.dead:
                    self._stop(order, vm_id, mode)
            case RebootVm(vm_id=vm_id, mode=mode, by=by):
                agent.tell(RebootAccepted(vm_id=vm_id, mode=mode, by=by))
                libvirt.reset(vm_id) if mode is RebootMode.RESET else libvirt.guest_reboot(vm_id)
                self._end(order, Result.OK)
            case PauseVm(vm_id=vm_id, by=by):
                agent.tell(PauseAccepted(vm_id=vm_id, by=by))
                libvirt.pause(vm_id)
                self._end(order, Result.OK)
            case ResumeVm(vm_id=vm_id, by=by):
                agent.tell(ResumeAccepted(vm_id=vm_id, by=by))
                libvirt.run(vm_id)
                self._end(order, Result.OK)
            case AdoptVm() as adopt:
                self._adopt(order, adopt)
            case ReleaseVm(vm_id=vm_id):
                agent.tell(Forgotten(vm_id=vm_id))
                self._end(order, Result.OK)
            case _:
                raise AssertionError(f"the simulator has no order {order.body}")

    def _start(self, order: PendingOrder, start: StartVm) -> None:
        agent, vm_id = self.agent, start.vm.id
        incarnation = start.grant.incarnation
        refusal = agent.sentinel.start_refusal(vm_id, incarnation)
        if start.grant.boot != agent.host.boot:
            refusal = Reason(code="order.refused.boot")
        if refusal is not None and refusal.code == "host.unfit.libvirt":
            # Not now; the server sends it again.
            self.in_hand.discard(order.operation_id)
            return
        if refusal is not None:
            done = refusal.code == "order.refused.running" and self._runs(vm_id, incarnation)
            self._end(order, Result.OK if done else Result.REFUSED, refusal=refusal)
            return
        agent.host.grants[vm_id] = incarnation
        agent.tell(StartAccepted(vm=start.vm, incarnation=incarnation, by=start.by))

        def ended(result: Result, detail: str) -> None:
            agent.tell(
                StartEnded(vm_id=vm_id, incarnation=incarnation, result=result, detail=detail)
            )
            if not agent.dead:
                self._end(order, result, detail)

        agent.make_and_run(vm_id, ended)

    def _runs(self, vm_id: VmId, incarnation: Incarnation) -> bool:
        return any(
            record.vm.id == vm_id
            and record.incarnation == incarnation
            and record.state is VmState.RUNNING
            for record in self.agent.sentinel.view()
        )

    def _stop(self, order: PendingOrder, vm_id: VmId, mode: StopMode) -> None:
        libvirt = self.agent.host.libvirt
        if not self.agent.host.libvirt_up:
            raise HypervisorUnavailable("libvirt does not answer")
        if mode is StopMode.POWER_OFF:
            libvirt.destroy(vm_id)
        elif vm_id not in self.ignores_shutdown:
            libvirt.shutdown(vm_id)
            self.agent.host.kernel.after(SHUTDOWN_MS, lambda: self._guest_obeys(vm_id))
        self._end(order, Result.OK)

    def _guest_obeys(self, vm_id: VmId) -> None:
        domain = self.agent.host.libvirt.find(vm_id)
        if domain is not None and domain.qemu is not None and domain.qemu.running:
            self.agent.host.libvirt.guest_shutdown(vm_id)

    def _adopt(self, order: PendingOrder, adopt: AdoptVm) -> None:
        agent = self.agent
        report: DomainReport = agent.host.libvirt.domain(adopt.vm.id).report()
        # The grant comes first: from now on the guardian takes it for managed.
        agent.host.grants[adopt.vm.id] = adopt.incarnation
        vm = replace(adopt.vm, adopted=True)
        agent.tell(Adopted(vm=vm, incarnation=adopt.incarnation, domain=report))
        self._end(order, Result.OK)
