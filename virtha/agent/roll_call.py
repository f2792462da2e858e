"""libvirt's word that a QEMU is there, held against the kernel's.

A libvirtd that begins anew lists what its status files name, and looks for those QEMUs meanwhile. One that is gone by then
is shut off a moment later, without an event (9.0.0, seen): nobody would ask again, a VM that is down would be told as
running for good, and a host that has let one go would hold it. So a list that the kernel contradicts is asked for again,
and now and then it is looked whether all that is said to run here does.
"""

import asyncio
from collections.abc import Collection
from typing import Protocol

from virtha.agent.gate import PROOF_VM_ID
from virtha.agent.process_table import QemuWatch
from virtha.model.domain import DomainReport, DomainState
from virtha.model.ids import VmId

AGAIN_S = 0.2
AGAIN_MAX = 10
ROLL_CALL_S = 5.0


class Lister(Protocol):
    async def domains(self) -> tuple[DomainReport, ...]:
        """Raises HypervisorError."""


class RollCall:
    def __init__(self, catalog: Lister, processes: QemuWatch) -> None:
        self._catalog = catalog
        self._processes = processes

    async def domains(self) -> tuple[DomainReport, ...]:
        """libvirt's list, asked for anew while it names a QEMU that does not exist. It also does so of one that is being
        made, so not for long. Raises HypervisorError."""
        domains = await self._catalog.domains()
        for _ in range(AGAIN_MAX):
            if not await self._processes.missing(active_ids(domains)):
                break
            await asyncio.sleep(AGAIN_S)
            domains = await self._catalog.domains()
        return domains


def active_ids(domains: Collection[DomainReport]) -> frozenset[VmId]:
    """The gate's proof has none, and is refused before it could."""
    return frozenset(
        one.vm_id
        for one in domains
        if one.state is not DomainState.SHUTOFF and one.vm_id != PROOF_VM_ID
    )
