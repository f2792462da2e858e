"""The order to end a VM that an I/O error paused, so that it can be started where its storage works (S6)."""

from virtha.agent import gate_hook
from virtha.agent.answers import OK, Answer, of_error, refused
from virtha.agent.commands import is_gone
from virtha.agent.host_context import HostContext
from virtha.agent.order_power import PowerOrders
from virtha.model.codes import render
from virtha.model.facts import Result
from virtha.model.orders import EndPausedVm
from virtha.model.policy import PermissionGrade
from virtha.model.value import Scalar
from virtha.model.vm import Reason
from virtha.ports.hypervisor import HypervisorError
from virtha.sentinel.io_error_events import EndPausedAccepted
from virtha.sentinel.io_errors import ended_so, objection_to_end
from virtha.sentinel.objections import objection_of_settings

STATE = "io_error.kill.refused.state"
PAGE_CACHE = "io_error.kill.refused.page_cache"
FAILED = "io_error.kill.failed"


class IoErrorOrders:
    def __init__(self, host: HostContext, power: PowerOrders) -> None:
        self._host = host
        self._power = power

    async def end(self, order: EndPausedVm) -> Answer:
        """``OK``: its QEMU has ended. The sentinel has written before why, so its release says it (P5)."""
        async with self._host.locks.of(order.vm_id):
            answer = await self._end(order)
        if answer.result is Result.OK:
            await self._power.until_told(order.vm_id)
        return answer

    async def _end(self, order: EndPausedVm) -> Answer:
        """Under the VM's lock: what its host or a person does to it meanwhile comes before or after all of it."""
        host, vm_id = self._host, order.vm_id
        present = await self._power.present(vm_id)
        record = host.loop.record(vm_id)
        if present is None or record is None:
            return refused("order.refused.not_here", "this host does not have that VM")
        if is_gone(present) and ended_so(record, order):
            return OK  # by an order before this one
        objection = objection_to_end(record, order, present) or self._host_objection()
        if objection is not None:
            return _answer(Result.REFUSED, STATE, detail=objection)
        cached = await self._cached(order)
        if cached is not None:
            return _answer(Result.REFUSED, PAGE_CACHE, detail=cached)
        accepted = EndPausedAccepted(vm_id=vm_id, incarnation=order.incarnation, by=order.by)
        if not await host.loop.told(accepted):
            # Its end would be taken for somebody's wish by an agent after this one, and it would stay down.
            return _answer(Result.FAILED, FAILED, detail="no space left for the agent's records")
        try:
            await host.control.destroy(vm_id)
        except HypervisorError as error:
            return _answer(of_error(error).result, FAILED, detail=error.message)
        if await host.processes.may_run(vm_id):
            return _answer(Result.FAILED, FAILED, detail="the kernel still has its process")
        return OK

    def _host_objection(self) -> str | None:
        host = self._host
        if host.shutting_down:
            return "this host is shutting down"
        told = host.settings
        if told is None:
            return None
        return objection_of_settings(told.hold, told.policy, PermissionGrade.MOVE)

    async def _cached(self, order: EndPausedVm) -> str | None:
        """Whether something of it may land after its end, and why, in words."""
        try:
            records = gate_hook.read_records(str(self._host.gate.records_path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"the gate's records can't be read: {error}"
        # As the kernel may name them, links followed.
        known = frozenset[str]() if records is None else records.paths
        roots = known | {domain.path for domain in self._host.storage_domains()}
        return await self._host.processes.writes_past_cache(order.vm_id, roots)


def _answer(result: Result, code: str, **fields: Scalar) -> Answer:
    why = Reason(code=code, fields=fields)
    return Answer(result=result, code=code, message=render(why.code, why.fields), fields=fields)
