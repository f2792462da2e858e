"""Affinity groups: VMs that belong on one host, or on different ones.

A hard rule is never broken, not even to let a VM start; a soft one yields to capacity. Either steers starts
only: a running VM is never moved for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NewType

from virtha.model.errors import InvalidInput
from virtha.model.ids import HostId, VmId
from virtha.model.value import Value

AffinityGroupId = NewType("AffinityGroupId", str)


class AffinityKind(StrEnum):
    TOGETHER = "together"
    APART = "apart"


class AffinityGroup(Value, frozen=True, kw_only=True):
    """One rule. Its members name it; it doesn't list them, so that a VM can come and go alone."""

    id: AffinityGroupId
    name: str
    kind: AffinityKind
    hard: bool

    @property
    def hard_together(self) -> bool:
        return self.hard and self.kind is AffinityKind.TOGETHER

    @property
    def hard_apart(self) -> bool:
        return self.hard and self.kind is AffinityKind.APART


Members = Mapping[HostId, int]
"""Of one group: how many members each host runs or is starting. Hosts without any are absent."""


def check_affinity(groups: Mapping[VmId, Sequence[AffinityGroup]]) -> None:
    """Refuse hard rules that contradict each other: two VMs that must be both together and apart.

    Together passes on: with a and b in one group and b and c in another, a and c share a host too.
    ``groups``: of each VM. Raises InvalidInput that names the VMs and both kinds of group.
    """
    bundle = bundles(groups)
    first_of: dict[tuple[AffinityGroupId, VmId], VmId] = {}
    for vm_id in sorted(groups):
        for group in groups[vm_id]:
            if not group.hard_apart:
                continue
            other = first_of.setdefault((group.id, bundle[vm_id]), vm_id)
            if other != vm_id:
                raise InvalidInput(
                    f"{other} and {vm_id} must be apart by '{group.name}', "
                    f"but hard 'together' groups bind them to one host",
                    field="affinity_groups",
                    fix="make one of the rules soft, or take one of the VMs out of its group",
                )


def bundles(groups: Mapping[VmId, Iterable[AffinityGroup]]) -> dict[VmId, VmId]:
    """For each VM the least id among those that hard rules bind to one host with it; itself if none do."""
    leader = {vm_id: vm_id for vm_id in groups}

    def find(vm_id: VmId) -> VmId:
        while leader[vm_id] != vm_id:
            leader[vm_id] = leader[leader[vm_id]]
            vm_id = leader[vm_id]
        return vm_id

    seen: dict[AffinityGroupId, VmId] = {}
    for vm_id in sorted(groups):
        for group in groups[vm_id]:
            if group.hard_together:
                one, other = sorted((find(seen.setdefault(group.id, vm_id)), find(vm_id)))
                leader[other] = one
    return {vm_id: find(vm_id) for vm_id in groups}
