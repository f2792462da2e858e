"""Facts of a boot that is not the present one. An outbox is durable: what it brings may be of any boot of its host.

Only a beat or a session begins a boot (``incident.of_this_boot``). A fact of a boot that is neither the present one nor
known to be over tells of the host's next boot, whose session is on its way here by another road, or of one between two
others that nobody heard of. Both look the same. So what it says to run there may run there, until that boot is proven
dead (G1); the fact itself is kept until that boot begins. Over a session of *another* boot it is of one that is over.

So it is once the present boot has begun a session since (P4): the host runs that boot now, and told of the other before.
Not so if that other boot's own session brought it: then that session is known to be on its way, and this one may be late,
be it of a boot that was not heard of before either. That is on record until that boot begins or is over
(``HostRecord.next_boots``), for a later leader is told of sessions that stand, and of the copy only from the records.
"""

from collections.abc import Iterator

from virtha.engine.events import CopyReleased, HostSurveyed, VmSeen
from virtha.engine.incident import boot_passed, sign_of_life
from virtha.engine.state import Cluster, HostNode

_VIA = "its agent's report"


def tells_of_now(cluster: Cluster, node: HostNode, event: VmSeen | HostSurveyed) -> bool:
    """Whether it is of the present boot. If of one that may still begin, it is kept (``is_kept``)."""
    boot, record = event.boot, node.record
    carried_by = event.carried_by
    if boot in record.dead_boots:
        if boot == record.boot and carried_by in (None, boot):
            # Who brought what a leader finds recorded, and when, is not known.
            sign_of_life(cluster, node, boot, via=_VIA, late=carried_by is None)
        # Else what its outbox kept of a boot that it has left: no sign of life.
        return boot == record.boot and boot not in node.record.dead_boots
    if boot == record.boot:
        return True
    if carried_by is not None and carried_by != boot:
        boot_passed(cluster, node, boot, carried_by)
        return False
    if carried_by == boot and boot not in record.next_boots:
        # Durable: a later leader is told of the copy, not of who brought the word of it.
        node.set(next_boots=(*record.next_boots, boot))
        cluster.changed_hosts.add(node.id)
    if any(kept.boot != boot for kept in node.early.values()):
        node.early.clear()  # at most one boot is the next one; what the other may hold is in the records
    node.early[subject_of(event)] = event
    return False


def session_began(cluster: Cluster, node: HostNode) -> None:
    """One of the present boot that did not stand before: every other boot that facts told of by now is over (P4).
    Sound because no session is told here after what a later boot made (see ``SessionChanged``)."""
    boot = node.record.boot
    assert boot is not None, f"{node.config.name}: a session of no boot"
    told = {fact.boot for fact in node.early.values()}
    told |= {
        copy.boot
        for vm in cluster.vms_held_by(node.id)
        for copy in vm.record.copies
        if copy.host_id == node.id and copy.boot is not None
    }
    over = told - {boot, *node.record.next_boots}
    node.early = {key: fact for key, fact in node.early.items() if fact.boot not in over}
    for passed in sorted(over):
        boot_passed(cluster, node, passed, boot)


def is_kept(node: HostNode, event: VmSeen | HostSurveyed) -> bool:
    """It is of a boot that may still begin."""
    return node.early.get(subject_of(event)) is event


def replaced(node: HostNode, event: VmSeen | HostSurveyed) -> None:
    """A later one of that boot and subject came."""
    kept = node.early.get(subject_of(event))
    if kept is not None and kept.boot == event.boot:
        del node.early[subject_of(event)]


def forget_released(node: HostNode, event: CopyReleased) -> None:
    """What that boot said of it before is over."""
    kept = node.early.get(event.vm_id)
    if (
        isinstance(kept, VmSeen)
        and kept.boot == event.boot
        and kept.incarnation == event.incarnation
    ):
        del node.early[event.vm_id]


def facts_of_begun(cluster: Cluster) -> Iterator[VmSeen | HostSurveyed]:
    """What came before the first beat or session of boots that began in this step; each once."""
    for host_id in sorted(cluster.begun):
        node = cluster.hosts.get(host_id)
        if node is None:
            continue
        kept, later = node.early, node.record.next_boots
        node.early = {key: fact for key, fact in kept.items() if fact.boot in later}
        yield from (event for event in kept.values() if event.boot == node.record.boot)
    cluster.begun.clear()


def subject_of(event: VmSeen | HostSurveyed) -> str:
    """The key of a kept fact."""
    return event.vm_id if isinstance(event, VmSeen) else ""
