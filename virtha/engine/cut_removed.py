"""The storage fence of hosts that are configured no more: asked for beside the operator's word (P6), and again until it was read back.

Nobody looks at such a host, so who is asked, and when again, is remembered apart from it. Nobody lets it in.
"""

from virtha.engine.cutting import Asking, CutRemoved
from virtha.engine.records import HostRecord
from virtha.engine.removal import keep, node_of
from virtha.engine.state import Cluster
from virtha.engine.storage_fence import plan_storage_fence
from virtha.model.ids import HostId
from virtha.model.proof import ProofKind
from virtha.model.time import Millis


def cut_removed(cluster: Cluster, host_id: HostId) -> None:
    """To be looked at in this step: the word was given, or a helper has answered."""
    before = cluster.cut_removed.get(host_id)
    asking = Asking() if before is None else before.asking
    cluster.cut_removed[host_id] = CutRemoved(asking=asking, due_ms=cluster.now)


def removed_cuts_found(cluster: Cluster) -> None:
    """Of a former leader's, once this one has learned what is configured."""
    if cluster.fresh:
        return
    for record in cluster.kept_hosts.values():
        if (
            record.name is not None
            and record.host_id not in cluster.cut_removed
            and _is_due(record)
        ):
            cut_removed(cluster, record.host_id)


def _is_due(record: HostRecord) -> bool:
    incident = record.incident
    if incident is None or not incident.storage_fenced:
        return False
    return any(proof.kind is ProofKind.OPERATOR for proof in incident.proofs)


def plan_removed_cuts(cluster: Cluster) -> None:
    """One look at each that is due. Forgotten when there is nothing to wait for, or nothing that would change by itself."""
    for host_id, found in list(cluster.cut_removed.items()):
        if found.due_ms > cluster.now:
            continue
        record = cluster.kept_hosts.get(host_id)
        if record is None or not _is_due(record):
            del cluster.cut_removed[
                host_id
            ]  # it was added again, or another boot of it is what may live
            continue
        node = node_of(cluster, host_id)
        node.cutting = found.asking
        waiting = plan_storage_fence(cluster, node)
        if node.record != record:
            keep(cluster, node)
        if waiting is None or node.due_ms is None:
            del cluster.cut_removed[host_id]
        else:
            cluster.cut_removed[host_id] = CutRemoved(asking=node.cutting, due_ms=node.due_ms)


def removed_cuts_look_at(cluster: Cluster) -> Millis | None:
    """When the next of them is due."""
    due = [found.due_ms for found in cluster.cut_removed.values()]
    return min(due) if due else None
