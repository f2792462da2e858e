"""The engines of all clusters as the use cases see them: implemented by the server."""

from collections.abc import Mapping
from typing import Protocol

from virtha.engine.configured import EngineVm
from virtha.engine.events import CopyGranted, EngineEvent
from virtha.model.ids import ClusterId, HostId, StorageDomainId, Term, VmId
from virtha.model.vm import Reason

Prospects = Mapping[HostId, Mapping[StorageDomainId, Reason]]
"""Of each host whose guardian is there and each storage that it uses: what would keep its lease from being a proof, did it fall silent
now. ``lease.not_proof.not_poisoned``: nothing else."""


class Leaders(Protocol):
    """Nothing here waits for an engine: what it makes of it, it decides in its next turn."""

    @property
    def lead(self) -> bool:
        """Whether there are engines at all. They say then which facts a host may forget."""
        ...

    def granted(self, cluster_id: ClusterId, vm: EngineVm, granted: CopyGranted) -> None:
        """A person's order makes a copy possible (G1). To be told before the order goes out; it is recorded beside the
        engine's records already (``store/engine.py``). ``vm``: as it is wanted now."""
        ...

    def term_raised(self, term: Term) -> None:
        """To be told before it is committed: this server goes on in that term (M1)."""
        ...

    def offer(self, cluster_id: ClusterId, event: EngineEvent) -> bool:
        """What an operator asks of a cluster's engine. False: nobody leads it now."""
        ...

    def verdict(self, host_id: HostId) -> str | None:
        """The engine's judgement of the host; None: it knows of none."""
        ...

    def explain_host(self, host_id: HostId) -> tuple[Reason, ...]: ...

    def explain_vm(self, vm_id: VmId) -> tuple[Reason, ...]: ...

    def lease_prospects(self, cluster_id: ClusterId) -> Prospects | None:
        """None: nobody leads it, or leases are not in use."""
        ...


class NobodyLeads:
    """Of use cases that run without engines: hosts forget what is recorded."""

    lead = False

    def granted(self, cluster_id: ClusterId, vm: EngineVm, granted: CopyGranted) -> None:
        """The record is enough."""

    def term_raised(self, term: Term) -> None:
        """Nobody has another."""

    def offer(self, cluster_id: ClusterId, event: EngineEvent) -> bool:
        return False

    def verdict(self, host_id: HostId) -> str | None:
        return None

    def explain_host(self, host_id: HostId) -> tuple[Reason, ...]:
        return ()

    def explain_vm(self, vm_id: VmId) -> tuple[Reason, ...]:
        return ()

    def lease_prospects(self, cluster_id: ClusterId) -> Prospects | None:
        return None
