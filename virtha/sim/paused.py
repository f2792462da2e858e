"""VMs that an I/O error paused: what their agent asks of the storage, and how it lets them go on (S6)."""

from typing import TYPE_CHECKING

from virtha.model.errors import VirthaError
from virtha.model.facts import Result
from virtha.sentinel.io_error_events import DisksProbed, ProbeDisks, ResumeDomain, ResumeEnded
from virtha.sentinel.io_errors import objection_to_resume

if TYPE_CHECKING:
    from virtha.sim.agent import SimAgent

PROBE_MS = 20
PROBE_DEADLINE_MS = 5_000
"""After which a storage that hangs counts as silent."""
RUN_MS = 80


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
        if not host.libvirt_up or domain is None:
            return "libvirt does not answer"
        if host.shutting_down:
            return "this host is shutting down"
        settings = host.disk.settings
        if settings is not None and settings.hold is not None:
            return f"automatic action is on hold: {settings.hold}"
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
