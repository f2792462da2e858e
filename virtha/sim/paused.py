"""VMs that an I/O error paused: what their agent asks of the storage, and how it lets them go on (S6)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from virtha.model.errors import VirthaError
from virtha.model.facts import Result
from virtha.model.ids import VmId
from virtha.model.orders import EndPausedVm
from virtha.model.policy import PermissionGrade
from virtha.model.vm import Reason
from virtha.sentinel.io_error_events import (
    DisksProbed,
    EndPausedAccepted,
    ProbeDisks,
    ResumeDomain,
    ResumeEnded,
)
from virtha.sentinel.io_errors import ended_so, objection_to_end, objection_to_resume
from virtha.sentinel.objections import objection_of_settings
from virtha.sentinel.state import reason
from virtha.sim.libvirt import Qemu

if TYPE_CHECKING:
    from virtha.sim.agent import SimAgent

PROBE_MS = 20
PROBE_DEADLINE_MS = 5_000
"""After which a storage that hangs counts as silent."""
RUN_MS = 80
FAILED = "io_error.kill.failed"
DESTROY_DEADLINE_MS = 15_000
"""How long libvirt tries to end a QEMU that does not."""
REAP_LOOK_MS = 100


class PausedVms:
    """Of one agent; dies with it."""

    def __init__(self, agent: "SimAgent") -> None:
        self._agent = agent
        self._host = agent.host

    def probe(self, command: ProbeDisks) -> None:
        host = self._host

        def answer() -> None:
            why_not = host.disk_objection(command.vm_id) or host.lease_objection(command.vm_id)
            self._agent.tell(
                DisksProbed(vm_id=command.vm_id, number=command.number, why_not=why_not)
            )

        hangs = host.storage_hangs(command.vm_id)
        self._agent.later(PROBE_DEADLINE_MS if hangs else PROBE_MS, answer)

    def resume(self, command: ResumeDomain) -> None:
        """The caller holds the VM's lock. libvirt takes its time between our look and its own."""
        objection = self._objection(command)
        if objection is not None:
            self._agent.later(0, lambda: self._ended(command, Result.REFUSED, objection))
        else:
            self._agent.later(RUN_MS, lambda: self._run(command))

    def _objection(self, command: ResumeDomain) -> str | None:
        host, record = self._host, self._agent.record(command.vm_id)
        domain = host.libvirt.find(command.vm_id)
        if domain is None:
            return "this host does not have that VM"
        objection = self._host_objection(PermissionGrade.RESTART)
        if objection is not None:
            return objection
        return objection_to_resume(record, command, domain.report()) or host.lease_objection(
            command.vm_id
        )

    def _run(self, command: ResumeDomain) -> None:
        host = self._host
        try:
            if not host.libvirt_up:
                self._ended(command, Result.UNKNOWN, "libvirt does not answer")
                return
            host.on_start(host, command.vm_id)
            host.libvirt.run(command.vm_id)
        except VirthaError as error:
            self._ended(command, Result.FAILED, error.message)
        else:
            self._ended(command, Result.OK, "")

    def end(self, order: EndPausedVm, answered: Callable[[Result, Reason | None], None]) -> None:
        """As ``agent.order_io_error``. The caller holds the VM's lock."""
        host, agent, vm_id = self._host, self._agent, order.vm_id

        def over(result: Result, code: str | None = None, detail: str = "") -> None:
            answered(result, None if code is None else reason(code, detail=detail))
            agent.unlock(vm_id)

        objection = self._objection_to_end(order)
        if objection is not None:
            over(Result.REFUSED, "io_error.kill.refused.state", objection)
            return
        domain, record = host.libvirt.find(vm_id), agent.record(vm_id)
        if domain is None or domain.qemu is None or record is None:
            over(Result.OK)  # by an order before this one
            return
        agent.tell(EndPausedAccepted(vm_id=vm_id, incarnation=order.incarnation, by=order.by))
        if agent.dead:
            return
        if host.outstanding(vm_id):
            host.libvirt.stun(vm_id)
            qemu = domain.qemu
            self._reap_later(vm_id, qemu)

            def late() -> None:
                lives = domain.qemu is qemu
                over(*((Result.FAILED, FAILED, "it does not end") if lives else (Result.OK,)))

            agent.later(DESTROY_DEADLINE_MS, late)
            return
        host.libvirt.destroy(vm_id)
        over(Result.OK)

    def _objection_to_end(self, order: EndPausedVm) -> str | None:
        host, record = self._host, self._agent.record(order.vm_id)
        domain = host.libvirt.find(order.vm_id)
        if domain is None or record is None:
            return "this host does not have that VM"
        if domain.qemu is None:
            return None if ended_so(record, order) else "it does not run"
        by_vm = objection_to_end(record, order, domain.report())
        return by_vm or self._host_objection(PermissionGrade.MOVE)

    def _host_objection(self, needed: PermissionGrade) -> str | None:
        host = self._host
        if not host.libvirt_up:
            return "libvirt does not answer"
        if host.shutting_down:
            return "this host is shutting down"
        told = host.disk.settings
        return None if told is None else objection_of_settings(told.hold, told.policy, needed)

    def _reap_later(self, vm_id: VmId, qemu: Qemu) -> None:
        """Killed, and it ends with its last request, whether its agent lives or not."""
        host = self._host
        boots = host.boots

        def look() -> None:
            domain = host.libvirt.find(vm_id)
            if host.boots != boots or domain is None or domain.qemu is not qemu:
                return
            if host.outstanding(vm_id):
                host.kernel.after(REAP_LOOK_MS, look)
            else:
                host.libvirt.kill_qemu(vm_id)

        look()

    def _ended(self, command: ResumeDomain, result: Result, detail: str) -> None:
        self._agent.unlock(command.vm_id)
        self._agent.tell(
            ResumeEnded(
                vm_id=command.vm_id,
                incarnation=command.incarnation,
                attempt=command.attempt,
                result=result,
                detail=detail,
            )
        )
