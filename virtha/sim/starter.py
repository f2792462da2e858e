"""The agent's starts: QEMU is created paused, then let run (G2); a crash in between leaves it paused."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from virtha.model.errors import VirthaError
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.policy import PermissionGrade
from virtha.ports.hypervisor import GateRefused
from virtha.sentinel.events import Restart, RestartEnded
from virtha.sentinel.objections import late_objection, objection_of_settings

if TYPE_CHECKING:
    from virtha.sim.agent import SimAgent

CREATE_MS = 120
CREATE_DEADLINE_MS = 60_000
RUN_MS = 80
RESTART_GRANT_MS = 60_000

Ended = Callable[[Result, str], None]
"""How it ended, and what there is to say of it."""


class Starter:
    """Of one agent; dies with it."""

    def __init__(self, agent: "SimAgent") -> None:
        self._agent = agent
        self._host = agent.host

    def restart(self, command: Restart) -> None:
        until_ms = self._host.clock() + RESTART_GRANT_MS

        def ended(result: Result, detail: str) -> None:
            self._agent.unlock(command.vm_id)
            self._agent.tell(
                RestartEnded(
                    vm_id=command.vm_id,
                    incarnation=command.incarnation,
                    attempt=command.attempt,
                    result=result,
                    detail=detail,
                )
            )

        objection = self._objection(command, until_ms)
        if objection is not None:
            self._agent.later(0, lambda: ended(Result.REFUSED, objection))
            return
        self.start(
            command.vm_id,
            command.incarnation,
            until_ms=until_ms,
            still_allowed=lambda: self._objection(command, until_ms),
            ended=ended,
        )

    def _objection(self, command: Restart, until_ms: int) -> str | None:
        """A stop, a hold, the host's shutdown may have come between the decision and now."""
        record, settings = self._agent.record(command.vm_id), self._host.disk.settings
        objection = late_objection(record, command.incarnation)
        if objection is not None:
            return objection
        if self._host.shutting_down:
            return "this host is shutting down"
        if settings is not None:
            needed = PermissionGrade.RESTART
            objection = objection_of_settings(settings.hold, settings.policy, needed)
        if objection is not None:
            return objection
        return (
            "creating its QEMU took longer than the grant"
            if self._host.clock() >= until_ms
            else None
        )

    def start(
        self,
        vm_id: VmId,
        incarnation: Incarnation,
        *,
        until_ms: int,
        still_allowed: Callable[[], str | None],
        ended: Ended,
    ) -> None:
        """The caller holds the VM's lock. ``still_allowed`` is asked once more when QEMU exists."""
        host = self._host
        host.grant(vm_id, incarnation, until_ms=until_ms)
        slow_ms, host.slow_start_ms = host.slow_start_ms, 0
        if slow_ms > CREATE_DEADLINE_MS:
            self._hang(vm_id, slow_ms, ended)
            return

        def create() -> None:
            self._attempt(vm_id, lambda: self._create(vm_id), ended, then=run)

        def run() -> None:
            self._agent.later(RUN_MS, let_run)

        def let_run() -> None:
            objection = still_allowed() or host.lease_objection(vm_id)
            if objection is not None:
                self._take_back(vm_id, objection, ended)
                return
            # Before, not after: from the first instruction on no gap may tempt the guardian.
            host.hold(vm_id, incarnation)
            self._attempt(vm_id, lambda: self._run(vm_id), ended, then=lambda: ended(Result.OK, ""))

        self._agent.later(CREATE_MS + slow_ms, create)

    def _hang(self, vm_id: VmId, slow_ms: int, ended: Ended) -> None:
        """libvirt thaws and makes it long after everybody has given up, whether the agent lives or not."""
        host, boots = self._host, self._host.boots

        def thaw() -> None:
            if host.boots != boots or not host.powered:
                return
            try:
                host.libvirt.start_paused(vm_id)
                host.trace(f"libvirt of {host.name} thaws and makes {vm_id}")
            except VirthaError as error:
                host.trace(f"libvirt of {host.name} thaws: {error.message}")

        host.kernel.after(slow_ms, thaw)
        self._agent.later(
            CREATE_DEADLINE_MS, lambda: ended(Result.UNKNOWN, "libvirt does not answer")
        )

    def _create(self, vm_id: VmId) -> None:
        domain = self._host.libvirt.find(vm_id)
        if domain is None or domain.qemu is None:
            self._host.libvirt.start_paused(vm_id)

    def _run(self, vm_id: VmId) -> None:
        self._host.on_start(self._host, vm_id)
        self._host.libvirt.run(vm_id)

    def _take_back(self, vm_id: VmId, why: str, ended: Ended) -> None:
        if not self._host.libvirt_up:
            ended(Result.UNKNOWN, f"{why}; and its QEMU could not be ended")
            return
        self._host.libvirt.destroy(vm_id)
        self._host.revoke(vm_id)
        ended(Result.REFUSED, why)

    def _attempt(
        self, vm_id: VmId, action: Callable[[], None], ended: Ended, *, then: Callable[[], None]
    ) -> None:
        if not self._host.libvirt_up:
            ended(Result.UNKNOWN, "libvirt does not answer")
            return
        try:
            action()
        except (GateRefused, VirthaError) as error:
            self._host.revoke(vm_id)
            ended(Result.FAILED, error.message)
            return
        if self._host.blind_starts:
            self._host.blind_starts -= 1
            ended(Result.UNKNOWN, "no answer within the deadline")
            return
        then()
