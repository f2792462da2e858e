"""What operators configure: hosts, VMs, policy, hold and maintenance come and go."""

from msgspec.structs import replace

from virtha.engine.events import (
    HoldChanged,
    HostConfigured,
    MaintenanceChanged,
    PolicyChanged,
    VmConfigured,
    VmRemoved,
)
from virtha.engine.incident import reconcile
from virtha.engine.records import Drain, VmRecord
from virtha.engine.removal import added_again, look_for_removed
from virtha.engine.restored import is_outdated, is_untold, joined, taken_over
from virtha.engine.state import Cluster, HostNode, VmNode, held
from virtha.engine.targets import refresh_target


def host_configured(cluster: Cluster, event: HostConfigured) -> None:
    """New, or something about it changed. A host that the records know goes on from there."""
    config = event.host
    node = cluster.hosts.get(config.host_id)
    if node is None:
        kept = cluster.kept_hosts.pop(config.host_id, None)
        record = joined(config) if kept is None else added_again(cluster, kept)
        outdated = is_outdated(config, record)
        record = taken_over(cluster, config, record)
        node = HostNode(config, record, cluster.now)
        node.untold = is_untold(config, record)
        node.saved = None if config.host_id in cluster.changed_kept else kept
        cluster.hosts[config.host_id] = node
        cluster.list_host(node)
        list_drain(cluster, node)
        if outdated:
            cluster.tell("host.judged_anew", host=node)
        proven_dead = record.incident is not None and record.incident.proof is not None
        if node.untold or (record.boot is not None and not proven_dead):
            # A recorded host may hold anything until it has told, or is proven dead (M2).
            cluster.await_survey(node)
        for vm in cluster.vms_held_by(node.id):
            cluster.touch_vm(vm)
    else:
        node.config = config
        cluster.list_host(node)
    refresh_target(cluster, node)
    cluster.touch(node)


def vm_configured(cluster: Cluster, event: VmConfigured) -> None:
    config = event.vm
    node = cluster.vms.get(config.vm_id)
    if node is None:
        kept = cluster.kept_vms.pop(config.vm_id, None)
        node = VmNode(config, VmRecord(vm_id=config.vm_id))
        cluster.vms[config.vm_id] = node
        if kept is not None:
            node.saved = kept
            changes = {field: getattr(kept, field) for field in kept.__struct_fields__}
            cluster.set_vm(node, **changes)
            reconcile(cluster, node)
            look_for_removed(cluster, node)
    else:
        node.config = config
        for copy in node.record.copies:
            starting = node.record.start is not None and node.record.start.host_id == copy.host_id
            cluster.capacity.vm_started(copy.host_id, held(config), in_flight=starting)
    cluster.plan_wanted = True
    cluster.touch_vm(node)


def vm_removed(cluster: Cluster, event: VmRemoved) -> None:
    node = cluster.vms.pop(event.vm_id, None)
    if node is None:
        return
    for copy in node.record.copies:
        cluster.vms_on.get(copy.host_id, set()).discard(event.vm_id)
        cluster.capacity.vm_ended(copy.host_id, event.vm_id)
    cluster.forget_vm(event.vm_id)
    cluster.plan_wanted = True
    cluster.dropped_vms.append(event.vm_id)


def policy_changed(cluster: Cluster, event: PolicyChanged) -> None:
    """Also in mid-incident: orders on their way keep their deadline, the next step takes the new one."""
    before, cluster.policy = cluster.policy.detection, event.policy
    if event.policy.detection.beat_interval_ms < before.beat_interval_ms:
        cluster.paced_ms = cluster.now
    cluster.capacity.overcommit_changed(event.policy.recovery.memory_overcommit_percent)
    _look_at_all(cluster)


def hold_changed(cluster: Cluster, event: HoldChanged) -> None:
    if event.reason == cluster.hold:
        return
    cluster.record = replace(cluster.record, hold=event.reason)
    _look_at_all(cluster)


def maintenance_changed(cluster: Cluster, event: MaintenanceChanged) -> None:
    """On again with another ``drain``: its VMs are to leave after all, or the rest of them is to stay."""
    node = cluster.hosts.get(event.host_id)
    if node is None:
        return
    before = node.record
    drain = (before.drain or Drain.DRAINING) if event.on and event.drain else None
    by = (before.maintenance or event.by) if event.on else None
    if (by, drain) == (before.maintenance, before.drain):
        return
    node.set(maintenance=by, drain=drain)
    left = cluster.vms_held_by(node.id)
    if drain is not None and before.drain is None:
        cluster.tell("host.drain_began", host=node, by=event.by, vms=len(left))
    elif drain is None and before.drain is Drain.DRAINING:
        cluster.tell("host.drain_stopped", host=node, by=event.by)
    list_drain(cluster, node)
    refresh_target(cluster, node)
    cluster.plan_wanted = True
    cluster.touch(node)
    for vm in left:
        if drain is not None and before.drain is None and vm.record.retry is not None:
            cluster.set_vm(vm, retry=None)  # what failed the last time may work now
        cluster.touch_vm(vm)


def list_drain(cluster: Cluster, node: HostNode) -> None:
    """Among the hosts that VMs are to leave, or not."""
    if node.record.drain is None:
        cluster.drains.discard(node.id)
    else:
        cluster.drains.add(node.id)


def _look_at_all(cluster: Cluster) -> None:
    """The rare changes that concern everything."""
    for host in cluster.hosts.values():
        cluster.touch(host)
    for vm in cluster.vms.values():
        cluster.touch_vm(vm)
    cluster.plan_wanted = True
