"""Hosts that are no longer configured although VMs may run there: removed by an operator, or while nobody led.

Nobody watches such a host any more, so no proof comes by itself. Its VMs are lost and say so; an incident bound to the boot in
question is open, so that the operator's word (P6) has something to be about; and its record is kept, for it may be added
again: then its own session or next boot tells. The record stays after the proof too: a late sign of an old boot must not
look new (P4).
"""

from msgspec.structs import replace

from virtha.engine.configured import EngineHost
from virtha.engine.cuts import tell_left
from virtha.engine.events import HostRemoved
from virtha.engine.incident import lose
from virtha.engine.machine import Verdict
from virtha.engine.outage import waits_no_more
from virtha.engine.records import FenceCount, HostRecord, Incident
from virtha.engine.restored import is_untold
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.model.ids import BootId, HostId
from virtha.model.time import Millis

REMOVALS_KEPT = 32


def host_removed(cluster: Cluster, event: HostRemoved) -> None:
    node = cluster.hosts.pop(event.host_id, None)
    if node is None:
        return
    waits_no_more(cluster, node.record)
    cluster.rings.forget(event.host_id)
    cluster.absent.discard(event.host_id)
    cluster.await_no_more(event.host_id)
    cluster.drains.discard(event.host_id)
    cluster.arrivals_from.pop(event.host_id, None)
    cluster.fallen_ms.pop(event.host_id, None)
    cluster.capacity.host_removed(event.host_id)
    cluster.plan_wanted = True
    if node.verdict not in (Verdict.ALIVE, Verdict.AGENT_DOWN):
        _note_removal(cluster, event.host_id)
    if node.record.boot is None and not cluster.vms_held_by(node.id):
        cluster.dropped_hosts.append(event.host_id)
    else:
        node.set(name=node.config.name)
        for cut in node.record.cuts:
            if cut.may_stand:
                tell_left(cluster, node, cut)
        keep(cluster, node)
        hold_fast(cluster, node)


def removed_while_nobody_led(cluster: Cluster) -> None:
    """When this leader has learned what is configured, and again when it learned of VMs later: hosts that the records know
    and that are not. Where no host comes at all, after the time in which one would."""
    if not cluster.fresh:
        return
    if not cluster.hosts and cluster.now < patience_ms(cluster):
        return
    cluster.fresh = False
    for record in list(cluster.kept_hosts.values()):
        if record.name is None and record.boot is not None:
            # Nobody can say any more when it fell silent: an order of ours may have struck it (P1). Once: the name is kept.
            _note_removal(cluster, record.host_id)
            waits_no_more(cluster, record)
            keep(cluster, _named(cluster, record))
    for host_id in sorted(cluster.vms_on):
        if host_id not in cluster.hosts and cluster.vms_held_by(host_id):
            record = cluster.kept_hosts.get(host_id) or HostRecord(host_id=host_id)
            hold_fast(cluster, _named(cluster, record))


def patience_ms(cluster: Cluster) -> int:
    """Until then hosts may still be made known to a leader that has just begun."""
    return cluster.began_ms + cluster.policy.detection.reconnect_ms


def look_for_removed(cluster: Cluster, vm: VmNode) -> None:
    """``vm`` was read from the records: its holders may have been removed since, or be made known in this very step."""
    missing = [one.host_id for one in vm.record.copies if one.host_id not in cluster.hosts]
    if missing:
        cluster.fresh = True
        if not cluster.hosts:
            cluster.wake_vm(vm, patience_ms(cluster))


def _named(cluster: Cluster, record: HostRecord) -> HostNode:
    """Its name went with its configuration, unless this leader removed it."""
    cluster.kept_hosts[record.host_id] = replace(record, name=record.name or record.host_id)
    return node_of(cluster, record.host_id)


def _note_removal(cluster: Cluster, host_id: HostId) -> None:
    removal = FenceCount(host_id=host_id, at_ms=int(cluster.now))
    kept = (*cluster.record.removed, removal)[-REMOVALS_KEPT:]
    cluster.record = replace(cluster.record, removed=kept)


def node_of(cluster: Cluster, host_id: HostId) -> HostNode:
    """A host that is not configured, as if it were: to be changed and then ``keep``-ed."""
    record = cluster.kept_hosts.get(host_id) or HostRecord(host_id=host_id, name=host_id)
    config = EngineHost(
        host_id=host_id, name=record.name or host_id, number=0, timeline=_timeline(cluster)
    )
    node = HostNode(config, record, cluster.now)
    node.untold = is_untold(config, record)
    if record.incident is not None:
        node.sign_ms = Millis(record.incident.silent_since_ms)
    return node


def _timeline(cluster: Cluster) -> str:
    """All hosts' configuration names the same; empty while none is known."""
    return next((node.config.timeline for node in cluster.hosts.values()), "")


def is_removed(cluster: Cluster, host_id: HostId) -> bool:
    kept = cluster.kept_hosts.get(host_id)
    return kept is not None and kept.name is not None


def keep(cluster: Cluster, node: HostNode) -> None:
    """Write down what ``node``, which is not configured, has become."""
    cluster.kept_hosts[node.id] = node.record
    cluster.changed_kept.add(node.id)


def hold_fast(cluster: Cluster, node: HostNode) -> None:
    """What may run there is lost, and somebody is told, once for each boot that is to be proven dead."""
    held = cluster.vms_held_by(node.id)
    for vm in held:
        lose(cluster, vm)
        cluster.touch_vm(vm)
    boots = {
        copy.boot or node.record.boot or BootId("")
        for vm in held
        for copy in vm.record.copies
        if copy.host_id == node.id
    }
    if not boots:
        return
    incident = node.record.incident
    if incident is None or incident.proof is not None or incident.boot not in boots:
        boot = node.record.boot if node.record.boot in boots else min(boots)
        assert boot is not None
        last_sign_ms = node.sign_ms if node.sign_ms is not None else cluster.began_ms
        opened = Incident(
            number=cluster.next_incident(),
            boot=boot,
            silent_since_ms=last_sign_ms,
            began_ms=cluster.now,
            timeline=node.config.timeline,
            by_removal=True,
        )
        node.set(incident=opened)
    elif incident.told_removed:
        return
    node.set_incident(told_removed=True)
    keep(cluster, node)
    cluster.tell(
        "host.removed_unproven",
        host=node,
        vms=", ".join(vm.config.name for vm in held),
        boot=boot_of(node),
    )


def boot_of(node: HostNode) -> BootId:
    assert node.record.incident is not None
    return node.record.incident.boot


def added_again(cluster: Cluster, record: HostRecord) -> HostRecord:
    """As its node begins with. That it was removed is no judgement: nothing is done to it for that, and from now on it is
    heard itself about whether an order struck it."""
    left = tuple(one for one in cluster.record.removed if one.host_id != record.host_id)
    if left != cluster.record.removed:
        cluster.record = replace(cluster.record, removed=left)
    incident = record.incident
    if incident is not None and incident.by_removal:
        proven_dead = incident.proof is not None and incident.boot == record.boot
        incident = incident if proven_dead else None
    elif incident is not None:
        incident = replace(incident, told_removed=False)
    return replace(record, name=None, incident=incident)
