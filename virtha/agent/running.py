"""Tells the server what each running copy has, so that it can show which changes wait for a start."""

import asyncio

import structlog

from virtha.agent.commands import is_gone
from virtha.agent.host_context import HostContext
from virtha.domainxml.running import read_hardware
from virtha.model.errors import VirthaError
from virtha.model.facts import RunsWith
from virtha.model.ids import VmId
from virtha.model.vm import VmState

_log = structlog.get_logger(__name__)


class RunningTeller:
    """Looks when a VM has started or was plugged, and at every list of libvirt's; tells what is new."""

    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._told: dict[VmId, RunsWith] = {}
        self._waiting: set[VmId] = set()
        self._dirty = asyncio.Event()

    def changed(self, vm_id: VmId) -> None:
        self._waiting.add(vm_id)
        self._dirty.set()

    def all_changed(self) -> None:
        for record in self._host.loop.records():
            self.changed(record.vm.id)

    def tell_again(self) -> None:
        """To a server whose memory is new."""
        self._told.clear()
        self.all_changed()

    async def run(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            waiting, self._waiting = sorted(self._waiting), set()
            for vm_id in waiting:
                try:
                    await self._look(vm_id)
                except VirthaError as error:
                    # libvirt's next list brings the next look.
                    _log.info("what a VM runs with is not known", vm=vm_id, error=str(error))

    async def _look(self, vm_id: VmId) -> None:
        host = self._host
        record = host.loop.record(vm_id)
        if record is None or record.state is VmState.DOWN:
            self._told.pop(vm_id, None)
            return
        if is_gone(await host.catalog.domain(vm_id)):
            return  # its live XML would be its definition
        xml = await host.catalog.xml(vm_id, inactive=False)
        hardware = read_hardware(xml, record.vm, host.host_defaults())
        if hardware is None:
            return
        fact = RunsWith(vm_id=vm_id, incarnation=record.incarnation, hardware=hardware)
        if self._told.get(vm_id) != fact:
            self._told[vm_id] = fact
            await host.facts.emit([fact])
