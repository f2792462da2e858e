"""Storage domains that are not one and the same for all hosts: nothing is started there by itself, and somebody is told.

A VM that is started where another directory of the same name is mounted runs from another disk, or from none. Which of two
hosts has the right one mounted nobody knows here, so none of them is a place for it. VMs that run are left alone.
"""

from virtha.engine.events import StorageCompared
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.targets import refresh_target
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.vm import Reason


def storage_compared(cluster: Cluster, event: StorageCompared) -> None:
    found = {one.domain_id: (one.reader, one.writer) for one in event.not_shared}
    before, cluster.not_shared = cluster.not_shared, found
    if found.keys() == before.keys():
        return
    for domain_id in sorted(found.keys() - before.keys()):
        reader, writer = (_name(cluster, one) for one in found[domain_id])
        cluster.tell("storage.not_shared", domain=domain_id, reader=reader, writer=writer)
    for domain_id in sorted(before.keys() - found.keys()):
        cluster.tell("storage.shared_again", domain=domain_id)
    for node in cluster.hosts.values():
        refresh_target(cluster, node)
    cluster.plan_wanted = True


def split_reasons(cluster: Cluster, node: HostNode) -> tuple[Reason, ...]:
    """Of a host that uses such a domain."""
    survey = node.survey
    if survey is None or not cluster.not_shared:
        return ()
    found = []
    for domain_id in sorted(cluster.not_shared.keys() & survey.storage_domains):
        reader, writer = (_name(cluster, one) for one in cluster.not_shared[domain_id])
        found.append(
            reason("host.storage.not_shared", domain=domain_id, reader=reader, writer=writer)
        )
    return tuple(found)


def split_names(cluster: Cluster) -> dict[StorageDomainId, str]:
    """For people who ask why nothing is started there."""
    return {
        domain_id: f"{domain_id} ({_name(cluster, reader)} does not see there what {_name(cluster, writer)} writes)"
        for domain_id, (reader, writer) in cluster.not_shared.items()
    }


def _name(cluster: Cluster, host_id: HostId) -> str:
    node = cluster.hosts.get(host_id)
    return host_id if node is None else node.config.name
