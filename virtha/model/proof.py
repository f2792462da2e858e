"""What proves that the copies of a host's boot are dead (safety.md, section 2). Nothing else does."""

from enum import StrEnum

from msgspec import UNSET, UnsetType

from virtha.model.ceph import CephEpoch
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.value import Value


class ProofKind(StrEnum):
    POWER_OFF = "power_off"
    """P1: ordered off and read off twice, under P1's conditions."""
    LEASE = "lease"
    """P2: the poisoned slot of an armed host expired."""
    STORAGE_FENCE = "storage_fence"
    """P3: cut off from every writable disk."""
    NEW_BOOT = "new_boot"
    """P4: the host reports a later boot."""
    RELEASED = "released"
    """P5: the host's own durable word, about one incarnation."""
    OPERATOR = "operator"
    """P6: confirmed by a person, bound to boot and incident."""


class Proof(Value, frozen=True, kw_only=True):
    """``boot`` is the one whose copies are dead; of a later boot it says nothing.

    ``at_ms``: cluster time at which it was complete. ``detail``: who or what it rests on, for people.
    """

    kind: ProofKind
    host_id: HostId
    boot: BootId
    at_ms: int
    detail: str = ""
    domain_ids: tuple[StorageDomainId, ...] = ()
    """Of a lease, or a storage fence: it says nothing about a VM with a disk in any other domain (P2, P3)."""
    epochs: tuple[CephEpoch, ...] | UnsetType = UNSET
    """Of a storage fence: see ``maps``."""

    @property
    def maps(self) -> tuple[CephEpoch, ...]:
        """Whoever starts a VM by this proof waits for these (P3)."""
        return () if self.epochs is UNSET else self.epochs
