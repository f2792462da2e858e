"""Copies in a boot that was proven dead and lives, of VMs that were ordered to start elsewhere since (G4).

Such a copy is a holder like any other, so nothing starts or moves its VM. It is ordered to end, citing the proof that the newer one
was ordered by, until its host releases it or boots anew. What becomes of the newer one makes no difference: it may have
written, so the older one's memory is out of date. Until the order is carried out the host's settings name the newer
incarnation, and its sentinel leaves the copy as it is (frozen).
"""

from virtha.engine.ending import END_EVERY_MS, EndCopy
from virtha.engine.events import CopyReleased
from virtha.engine.records import SupersededCopy, VmRecord
from virtha.engine.state import Cluster, VmNode, reason
from virtha.model.evidence import ProcessKind
from virtha.model.ids import HostId
from virtha.model.vm import PossibleCopy, Reason


def is_superseded(node: VmNode, copy: PossibleCopy) -> bool:
    return any(one.copy == copy for one in node.record.superseded)


def end_superseded(cluster: Cluster, node: VmNode) -> tuple[Reason, ...]:
    """Why the VM is not left to its newer copy alone."""
    return tuple(_end(cluster, node, due) for due in node.record.superseded)


def _end(cluster: Cluster, node: VmNode, due: SupersededCopy) -> Reason:
    copy = due.copy
    name = cluster.host_name(copy.host_id)
    if cluster.hold is not None or node.config.ignore:
        return reason("superseded.held", host=name, incarnation=copy.incarnation)
    cluster.wake_vm(node, cluster.now + END_EVERY_MS)
    host = cluster.hosts.get(copy.host_id)
    if host is None or host.sessions.get(ProcessKind.AGENT) != copy.boot:
        return reason("superseded.unreachable", host=name, incarnation=copy.incarnation)
    assert copy.boot is not None
    cluster.order(
        EndCopy(
            order_id=due.order_id,
            vm_id=node.id,
            host_id=copy.host_id,
            boot=copy.boot,
            incarnation=copy.incarnation,
            newer=due.newer,
            proof=due.proof,
        )
    )
    return reason("superseded.ending", host=name, incarnation=copy.incarnation)


def frozen_holders(record: VmRecord) -> tuple[HostId, ...]:
    """Hosts whose copy is older than another host's, sorted: nothing restarts or resumes it, also where nothing proves that it
    may be ended (G4). Not while it moves: then the source's is the older one, and goes on."""
    due = {one.copy.host_id for one in record.superseded}
    if record.migration is None:
        newest = max((copy.incarnation for copy in record.copies), default=0)
        newest_on = {copy.host_id for copy in record.copies if copy.incarnation == newest}
        due |= {copy.host_id for copy in record.copies if copy.host_id not in newest_on}
    return tuple(sorted(due))


def note_superseded_over(cluster: Cluster, node: VmNode, event: CopyReleased) -> bool:
    """Whether what its host says to be over was such a copy."""
    gone = (event.host_id, event.boot, event.incarnation)
    for due in node.record.superseded:
        copy = due.copy
        if (copy.host_id, copy.boot, copy.incarnation) == gone:
            cluster.tell(
                "vm.superseded_copy_ended",
                vm=node,
                host=cluster.hosts.get(copy.host_id),
                incarnation=copy.incarnation,
            )
            return True
    return False
