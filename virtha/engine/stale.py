"""Old copies on a host that lives and is shut out of its storage (P3): they write nothing more, and may answer on the network.

One whose VM was ordered to start elsewhere by that fence is ordered to end, as any superseded copy (G4), whenever its host gives a
sign. But the proof stands: the copy is no holder, and keeps the VM from nothing. One that nothing has superseded stays as it
is until the next boot, and so does one of which its host has not said that the order to start it ever came.
"""

from msgspec.structs import replace

from virtha.engine.cuts import is_cut_off, is_end_due
from virtha.engine.ended import superseding
from virtha.engine.ending import EndCopy
from virtha.engine.events import CopyReleased, VmSeen
from virtha.engine.records import EndedCopy, Incident
from virtha.engine.state import Cluster, HostNode
from virtha.model.ids import Incarnation
from virtha.model.time import Millis


def plan_stale(cluster: Cluster, node: HostNode) -> None:
    """One look at a host with an incident: orders what is due."""
    incident = node.record.incident
    if incident is None or not is_end_due(cluster, node) or not is_cut_off(node, incident):
        return
    if cluster.hold is not None:
        return
    for ended in incident.ended:
        newer = _superseded_by(cluster, ended)
        if newer is not None:
            node.cutting = replace(node.cutting, ends=Millis(cluster.now))
            _end(cluster, node, ended, newer)


def _superseded_by(cluster: Cluster, ended: EndedCopy) -> Incarnation | None:
    vm = cluster.vms.get(ended.vm_id)
    if vm is None or vm.config.ignore or ended.start is not None:
        return None
    return None if ended.copy in vm.record.copies else superseding(vm, ended)


def _end(cluster: Cluster, node: HostNode, ended: EndedCopy, newer: Incarnation) -> None:
    vm, copy = cluster.vms[ended.vm_id], ended.copy
    order_id = ended.end
    if order_id is None:
        order_id = cluster.next_order()
        _exchange(cluster, node, ended, replace(ended, end=order_id))
        cluster.tell(
            "vm.cut_off_copy_lives", vm=vm, host=node, incarnation=copy.incarnation, newer=newer
        )
    assert copy.boot is not None, f"{vm.config.name}: a proof ended a copy of no boot"
    cluster.order(
        EndCopy(
            order_id=order_id,
            vm_id=vm.id,
            host_id=node.id,
            boot=copy.boot,
            incarnation=copy.incarnation,
            newer=newer,
            proof=ended.proof,
        )
    )


def stale_seen(cluster: Cluster, node: HostNode, event: VmSeen) -> None:
    """What its host tells of a boot that is over may be of such a copy: then it has come there."""
    for ended in _of(node, event):
        if ended.start is not None:
            _exchange(cluster, node, ended, replace(ended, start=None))


def stale_released(cluster: Cluster, node: HostNode, event: CopyReleased) -> None:
    """Its host's durable word: it is over."""
    for ended in _of(node, event):
        _exchange(cluster, node, ended, None)
        vm = cluster.vms.get(ended.vm_id)
        if vm is not None and ended.end is not None:
            cluster.tell("vm.cut_off_copy_ended", vm=vm, host=node, incarnation=event.incarnation)


def _of(node: HostNode, event: VmSeen | CopyReleased) -> tuple[EndedCopy, ...]:
    incident = node.record.incident
    if incident is None or not is_cut_off(node, incident):
        return ()
    told = (event.vm_id, event.boot, event.incarnation)
    return tuple(
        one for one in incident.ended if (one.vm_id, one.copy.boot, one.copy.incarnation) == told
    )


def _exchange(cluster: Cluster, node: HostNode, ended: EndedCopy, by: EndedCopy | None) -> None:
    incident = node.record.incident
    assert incident is not None, f"{node.config.name}: no incident that could have ended anything"
    others = tuple(by if one == ended else one for one in incident.ended)
    node.set_incident(ended=tuple(one for one in others if one is not None))
    cluster.changed_hosts.add(node.id)


def is_stale_end(incident: Incident | None, end: EndCopy) -> bool:
    """Whether that order is on record in its host's incident."""
    told = (end.order_id, end.vm_id, end.boot, end.incarnation)
    return incident is not None and any(
        (one.end, one.vm_id, one.copy.boot, one.copy.incarnation) == told and one.proof == end.proof
        for one in incident.ended
    )
