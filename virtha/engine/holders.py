"""Hosts that come to be holders otherwise than by the engine's own orders: by a person's, or found there (G1, M2)."""

from virtha.engine.events import CopyGranted, VmSeen
from virtha.engine.incident import lose
from virtha.engine.machine import VmTrigger
from virtha.engine.removal import hold_fast, node_of
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.model.ids import BootId, Incarnation
from virtha.model.vm import PossibleCopy


def copy_granted(cluster: Cluster, event: CopyGranted) -> None:
    """By a person's order: as good as found there, but nothing to wonder at."""
    node = cluster.vms.get(event.vm_id)
    host = cluster.hosts.get(event.host_id) or node_of(cluster, event.host_id)
    if node is None or event.boot in host.record.dead_boots:
        return  # that boot is over, and with it the grant
    copy = PossibleCopy(host_id=host.id, incarnation=event.incarnation, boot=event.boot)
    if all(
        (one.host_id, one.incarnation) != (copy.host_id, copy.incarnation)
        or one.boot not in (None, copy.boot)
        for one in node.record.copies
    ):
        _holds(cluster, node, host, copy)
        if host.id not in cluster.hosts:
            hold_fast(cluster, host)  # it was removed when that order had gone out


def may_run(cluster: Cluster, node: VmNode, host: HostNode, event: VmSeen) -> None:
    """In a boot that has not begun as far as we know: nothing starts elsewhere before that one is proven dead (G1)."""
    copy = PossibleCopy(host_id=host.id, incarnation=event.incarnation, boot=event.boot)
    if copy not in node.record.copies:
        found(cluster, node, host, event.incarnation, event.boot)


def found(
    cluster: Cluster, node: VmNode, host: HostNode, incarnation: Incarnation, boot: BootId
) -> None:
    """A host has a copy that it was not known to hold: it is a holder now, and no start goes out (M2)."""
    copy = PossibleCopy(host_id=host.id, incarnation=incarnation, boot=boot)
    _holds(cluster, node, host, copy)
    cluster.tell("vm.found", vm=node, host=host)


def _holds(cluster: Cluster, node: VmNode, host: HostNode, copy: PossibleCopy) -> None:
    changes = {
        "copies": (*node.record.copies, copy),
        "incarnation": max(copy.incarnation, node.record.incarnation),
        "given_back": None,
        "home": None,  # whoever started it there had a reason: it is not taken away from there again
    }
    if node.record.start is None and cluster.move_vm(
        node, VmTrigger.FOUND, **changes, proofs=(), lost_ms=None, attempts=0, tried=()
    ):
        node.blocked_told = None
    else:
        cluster.set_vm(node, **changes)  # a start that is under way is taken back first
    if host.record.incident is not None or copy.boot != host.record.boot:
        # It told before it was judged, or of a boot that we have not heard of: the copy is as lost as that.
        lose(cluster, node)
