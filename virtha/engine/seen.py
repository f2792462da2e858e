"""What hosts say of the VMs that they run or ran, folded into the records."""

from virtha.engine.early import is_kept, replaced, tells_of_now
from virtha.engine.events import VmSeen
from virtha.engine.halves import half_seen, state_seen
from virtha.engine.holders import found, incarnation_told, may_run
from virtha.engine.migration import side_seen
from virtha.engine.records import VmStage
from virtha.engine.recovery import runs
from virtha.engine.stale import stale_seen
from virtha.engine.state import Cluster, VmNode
from virtha.engine.superseded import is_superseded
from virtha.model.vm import PossibleCopy, VmState

_RUNS = frozenset({VmState.RUNNING})


def vm_seen(cluster: Cluster, event: VmSeen) -> None:
    """What a host's sentinel reports of a VM that it runs or ran."""
    node = cluster.vms.get(event.vm_id)
    host = cluster.hosts.get(event.host_id)
    if node is None or host is None:
        return
    if not tells_of_now(cluster, host, event):
        if is_kept(host, event) and event.awaited_by is not None:
            half_seen(cluster, node, host, event)
        elif is_kept(host, event) and event.state is not VmState.DOWN:
            may_run(cluster, node, host, event)
        elif event.state is not VmState.DOWN:
            stale_seen(cluster, host, event)
        return
    replaced(host, event)
    if event.awaited_by is not None:
        half_seen(cluster, node, host, event)
        return
    told = PossibleCopy(host_id=host.id, incarnation=event.incarnation, boot=event.boot)
    if is_superseded(node, told):
        return  # how that copy is says nothing of the VM
    state_seen(cluster, node, event)
    incarnation_told(cluster, node, told)
    known = {copy.incarnation for copy in node.record.copies if copy.host_id == event.host_id}
    if event.state is not VmState.DOWN and event.incarnation not in known:
        found(cluster, node, host, event.incarnation, event.boot)
        known.add(event.incarnation)
    elif event.incarnation > node.record.incarnation:
        # A restored database is behind its hosts (M2): what they say counts.
        cluster.set_vm(node, incarnation=event.incarnation)
    if node.record.migration is not None:
        side_seen(cluster, node, event)
        return
    # A move that failed leaves the running copy below the record's incarnation.
    if event.incarnation < node.record.incarnation and event.incarnation not in known:
        return
    node.seen[event.host_id] = (event.incarnation, event.state)
    before = (node.state, node.guest_agent, node.io_error, node.no_room)
    if not _runs_newer_elsewhere(node, event):
        node.state, node.state_host = event.state, event.host_id
        node.guest_agent, node.io_error = event.guest_agent, event.io_error
        node.no_room = event.no_room
    if before != (node.state, node.guest_agent, node.io_error, node.no_room):
        cluster.plan_wanted = True  # somebody may depend on it
        cluster.touch_vm(node)
    if event.state in _RUNS and _is_the_one(node, event) and host.record.incident is None:
        runs(cluster, node)


def _runs_newer_elsewhere(node: VmNode, event: VmSeen) -> bool:
    """What the source of a migration that no record knows tells after its target did is not how the VM is (M2)."""
    for copy in node.record.copies:
        incarnation, state = node.seen.get(copy.host_id, (event.incarnation, VmState.UNKNOWN))
        if copy.host_id != event.host_id and incarnation > event.incarnation and state in _RUNS:
            return True
    return False


def _is_the_one(node: VmNode, event: VmSeen) -> bool:
    """The start that was ordered; or, of several that may hold it, the one that runs it."""
    start = node.record.start
    if start is not None:
        return start.host_id == event.host_id and start.incarnation == event.incarnation
    return node.record.stage is VmStage.LOST and len(node.record.copies) == 1
