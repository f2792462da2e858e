"""The grants of this host's VMs: written before a QEMU may be there, taken back when it is gone (G2)."""

import asyncio

import structlog

from virtha.agent.commands import is_gone
from virtha.agent.gate import GrantState
from virtha.agent.host_context import HostContext
from virtha.model.domain import DomainReport
from virtha.model.ids import VmId
from virtha.model.orders import HostSettings
from virtha.model.vm import VmState
from virtha.ports.hypervisor import HypervisorError
from virtha.sentinel.moves import awaited

GRANT_SETTLE_S = 2.0
"""A stopped VM's grant goes a little later: a restart must not wait behind the question whether it
may. Until then it starts nothing, for it is held."""

_log = structlog.get_logger(__name__)


class GrantKeeper:
    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._settling: set[VmId] = set()

    def stopped(self, vm_id: VmId) -> None:
        """libvirt says that its QEMU has ended."""
        if vm_id not in self._settling:
            self._settling.add(vm_id)
            self._host.spawn(f"grant of {vm_id}", self._settle(vm_id))

    async def _settle(self, vm_id: VmId) -> None:
        """Take back the grant of a VM that has stopped, unless it runs again by then."""
        host = self._host
        try:
            await asyncio.sleep(GRANT_SETTLE_S)
            async with host.locks.of(vm_id):
                try:
                    gone = is_gone(await host.catalog.domain(vm_id))
                except HypervisorError:
                    return  # unknown: the next list settles it
                record = host.loop.record(vm_id)
                comes_back = record is not None and awaited(record)
                if gone and not host.locks.is_starting(vm_id) and not comes_back:
                    host.gate.revoke(vm_id)
        finally:
            self._settling.discard(vm_id)

    def listed(self, domains: tuple[DomainReport, ...], counts: dict[VmId, int]) -> None:
        """Grants without a QEMU go. A list that is older than a start says nothing about it."""
        host = self._host
        alive = {domain.vm_id for domain in domains if not is_gone(domain)}
        if not host.gate.complete:
            self._restore(alive)
        for vm_id, grant in host.gate.grants().items():
            untouched = host.locks.count(vm_id) == counts.get(vm_id, 0)
            idle = vm_id not in alive and untouched and not host.locks.is_starting(vm_id)
            open_still = grant.state is not GrantState.HELD and (
                host.clock.monotonic_ms() < grant.until_ms
            )
            # A grant that has not run out may belong to a QEMU that libvirt is still making.
            if idle and not open_still:
                host.gate.revoke(vm_id)

    def _restore(self, alive: set[VmId]) -> None:
        """The directory is new: at boot, or somebody emptied /run. What this host may hold gets its
        grant before the guardian counts a missing one; a released copy gets none.
        """
        host = self._host
        present = host.gate.grants()
        held = {
            record.vm.id: record.incarnation
            for record in host.loop.records()
            if record.boot == host.boot and record.state is not VmState.DOWN and not record.released
        }
        adopted = () if host.settings is None else (h for h in host.settings.vms if h.vm.adopted)
        for each in adopted:
            if host.loop.record(each.vm.id) is None and each.vm.id in alive:
                held[each.vm.id] = each.incarnation
        try:
            for vm_id, incarnation in held.items():
                if vm_id not in present:
                    host.gate.hold(vm_id, incarnation)
            host.gate.restored()
        except OSError as error:
            _log.error("grants can't be written", error=str(error))

    def grant_adopted(self, settings: HostSettings) -> None:
        """An adopted VM gets its grant before the records call it managed.

        Without asking whether it runs: libvirt may not answer, and a grant that is held starts
        nothing. One without a QEMU goes with the next list.
        """
        host = self._host
        grants = host.gate.grants()
        fresh = [
            held
            for held in settings.vms
            if held.vm.adopted and held.vm.id not in grants and host.loop.record(held.vm.id) is None
        ]
        for held in fresh:
            host.gate.hold(held.vm.id, held.incarnation)
