"""Whether libvirt answers: asked every second over a connection of its own, so that nothing that is asked of it stands in the way."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from virtha.agent.host_context import HostContext
from virtha.model.policy import DetectionPolicy
from virtha.ports.hypervisor import HostFacts, HypervisorError, HypervisorTimeout

PULSE_S = 1.0
_log = structlog.get_logger(__name__)


class LibvirtPulse:
    """A host whose libvirt hangs is no place for VMs, long before libvirt's keepalive gives its connections up."""

    def __init__(
        self,
        host: HostContext,
        hypervisor: HostFacts,
        changed: Callable[[bool], Awaitable[None]],
    ) -> None:
        """``changed``: it hangs, or answers again."""
        self._host = host
        self._hypervisor = hypervisor
        self._changed = changed
        self._hangs = False

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PULSE_S)
            hangs = await self._look()
            if hangs is not None and hangs is not self._hangs:
                self._hangs = hangs
                _log.warning("libvirt hangs" if hangs else "libvirt answers again")
                await self._changed(hangs)

    async def _look(self) -> bool | None:
        """None: it can't be asked now: not connected, or the question before is not answered yet."""
        settings = self._host.settings
        detection = DetectionPolicy() if settings is None else settings.policy.detection
        try:
            await self._hypervisor.answers(deadline_ms=detection.libvirt_hang_ms)
        except HypervisorTimeout:
            return True
        except HypervisorError:
            return None
        return False
