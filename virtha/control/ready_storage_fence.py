"""Whether a host could be shut out of its Ceph clusters today, where the policy counts on that (X5, P3). Pure."""

from collections.abc import Collection, Mapping

from virtha.engine.records import HostRecord
from virtha.model.host import Host
from virtha.model.ids import BootId, StorageDomainId
from virtha.model.policy import Policy, Unreachable
from virtha.model.vm import Reason


def storage_fence_lacks(
    host: Host,
    boot: BootId | None,
    record: HostRecord,
    *,
    policy: Policy,
    usable: Mapping[StorageDomainId, str],
    on_ceph: Collection[StorageDomainId],
) -> list[Reason]:
    """``boot``: the present one. ``usable``: domains that it can use, with their names. ``on_ceph``: pools of Ceph
    clusters."""
    if Unreachable.STORAGE_FENCE not in policy.fencing.unreachable or boot is None:
        return []
    told = {one.domain_id: one for one in record.ceph if one.boot == boot}
    found = []
    for domain_id in sorted(set(usable).intersection(on_ceph), key=lambda one: usable[one]):
        seen = told.get(domain_id)
        fields = {"host": host.name, "storage": usable[domain_id]}
        if seen is None:
            found.append(Reason(code="ready.storage_fence.unknown", fields={**fields}))
        elif seen.obstacle:
            fields["why"] = seen.obstacle
            found.append(Reason(code="ready.storage_fence.obstacle", fields={**fields}))
        if seen is not None and seen.lacks:
            fields["why"] = seen.lacks
            found.append(Reason(code="ready.storage_fence.permission", fields={**fields}))
    if found or set(usable).intersection(on_ceph):
        return found
    return [Reason(code="ready.storage_fence.none", fields={"host": host.name})] if usable else []
