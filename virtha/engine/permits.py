"""May this host be fenced now? Each answer is a coded reason, so that nobody has to guess why not (X1).

The order of the questions is the order in which an operator would ask them. None of them concerns proof:
they keep healthy hosts from being shot, and the proof rules keep VMs from running twice.
"""

from msgspec.structs import replace

from virtha.engine.records import Brake, Drain, FenceCount, Incident
from virtha.engine.restored import bars_starts
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.struck import struck_by
from virtha.engine.verdict import (
    awaited_checks,
    disks_are_quiet,
    disks_changed,
    fell_ms,
    is_observed,
    newcomers_unheard,
    reads_off,
    seen_alive_by,
    silent_ms,
    watched_for,
)
from virtha.model.evidence import ProcessKind
from virtha.model.policy import FencingAction, PermissionGrade, Unreachable, UntestedDevices
from virtha.model.policy.quiet import quiet_until_ms
from virtha.model.time import format_duration_ms
from virtha.model.vm import Reason

NOT_THIS_LEVEL = frozenset({"fence.blocked.foreign_device", "fence.blocked.untested"})
"""Another level's devices may do."""


def refusal(cluster: Cluster, node: HostNode, level: int) -> Reason | None:
    """Why no *off* may be ordered to that level now; None: it may. Asked before every order, repeated ones
    of a former leader included. Blink has its own, weaker questions."""
    return (
        poison_refusal(cluster, node)
        or _no_device(cluster, node, level)
        or _struck_another(cluster, node, level)
        or _brake(cluster, node, level)
        or _cap(cluster, node, level)
        or own_lease(cluster)
    )


def poison_refusal(cluster: Cluster, node: HostNode) -> Reason | None:
    """Why not even its slots may be poisoned (P2), which ends its VMs if it lives."""
    return (
        _switched_off(cluster, node)
        or _not_observed(cluster, node)
        or _seen_alive(cluster, node)
        or _written(cluster, node)
        or _not_needed(cluster, node)
        or _observer(cluster, node)
        or _newcomers(cluster, node)
    )


def hands_off(cluster: Cluster, node: HostNode) -> Reason | None:
    """By the operator's will: nothing is switched off, nor on."""
    if cluster.hold is not None:
        return reason("fence.blocked.hold", why=cluster.hold)
    if node.record.maintenance is not None and node.record.drain is not Drain.DRAINING:
        # One that is still being emptied is fenced like any other: its VMs were to go on elsewhere.
        return reason("fence.blocked.maintenance", by=node.record.maintenance)
    return None


def _switched_off(cluster: Cluster, node: HostNode) -> Reason | None:
    held = hands_off(cluster, node)
    if held is not None:
        return held
    if cluster.policy.fencing.action is FencingAction.NOTHING:
        return reason("fence.blocked.action_nothing")
    if not cluster.policy.recovery.grade.permits(PermissionGrade.FENCE):
        return reason("fence.blocked.grade", grade=cluster.policy.recovery.grade.value)
    quiet_until = quiet_until_ms(cluster.policy.fencing.quiet_times, cluster.now)
    if quiet_until is not None:
        return reason("fence.blocked.quiet_time", left_ms=quiet_until - cluster.now)
    return None


def _not_observed(cluster: Cluster, node: HostNode) -> Reason | None:
    return None if is_observed(cluster, node) else reason("fence.blocked.observing")


def _seen_alive(cluster: Cluster, node: HostNode) -> Reason | None:
    """J2: in whichever boot. What was begun against a former one must not strike the host that came back out of our reach,
    and that its neighbours hear."""
    witness = seen_alive_by(cluster, node)
    return None if witness is None else reason("fence.blocked.seen_alive", witness=witness[0])


def _written(cluster: Cluster, node: HostNode) -> Reason | None:
    """F2, J3: before *each* action a change of its VMs' disks since it fell silent means that it lives, also between two
    orders of one fence; where an order went before, whoever led then."""
    incident = node.record.incident
    after_order = incident is not None and incident.disks_written
    if not (after_order or disks_changed(cluster, node)) or disks_are_quiet(cluster, node):
        return None
    if not watched_for(cluster, node):
        return None
    needed = 1 + cluster.policy.detection.additional_checks
    return reason("fence.blocked.disks_change", quiet=node.quiet_rounds, needed=needed)


def unlooked(cluster: Cluster, node: HostNode) -> Reason | None:
    """F2: before the first order of an incident its VMs' disks are looked at as often as before a judgement. Whoever
    judged it did; but that may have been a former leader, or one of another timeline, or before we slept. What its device
    says of itself, that it is off, suffices as it does for judging."""
    for level in node.config.power:
        if all(reads_off(cluster, node, feed.device, readings=1) for feed in level.feeds):
            return None
    return awaited_checks(cluster, node)


def _no_device(cluster: Cluster, node: HostNode, level: int) -> Reason | None:
    if not node.config.power:
        return reason("fence.blocked.no_device")
    record, feeds = node.record, node.config.power[level].feeds
    for feed in feeds:
        if feed.device in record.foreign_devices:
            return reason("fence.blocked.foreign_device", device=feed.device)
    if cluster.policy.fencing.untested_devices is UntestedDevices.ORDER:
        return None
    # One that was caught in a lie was tested once: whose it is was known then.
    known = {*record.tested_devices, *record.identified_devices, *record.disproved_devices}
    for feed in feeds:
        if feed.reads_state and feed.device not in known:
            return reason("fence.blocked.untested", device=feed.device)
    return None


def first_usable_level(cluster: Cluster, node: HostNode) -> int | None:
    """None: no level of it may be ordered whatever else is known."""
    further = Unreachable.NEXT_LEVEL in cluster.policy.fencing.unreachable
    levels = range(len(node.config.power) if further else min(1, len(node.config.power)))
    return next((one for one in levels if _no_device(cluster, node, one) is None), None)


def _struck_another(cluster: Cluster, node: HostNode, level: int) -> Reason | None:
    """P1: a device that does not name its host may be another one's, and would strike that one again. What reads *off*
    is not that one's, which is up."""
    other = struck_by(cluster, node, level)
    if other is None or known_off(cluster, node, level):
        return None
    return reason("fence.blocked.struck_another", other=other.config.name)


def _not_needed(cluster: Cluster, node: HostNode) -> Reason | None:
    for vm_id in cluster.vms_on.get(node.id, ()):
        vm = cluster.vms.get(vm_id)
        if vm is not None and vm.protected and vm.config.grade in (None, PermissionGrade.FENCE):
            return None
    if bars_starts(cluster, node):
        return None
    return reason("fence.blocked.not_needed")


def _observer(cluster: Cluster, node: HostNode) -> Reason | None:
    """J4: it may be us who is cut off. The reference address suffices by itself, as that rule has it, but only what was
    reached lately: an answer from before we were cut off says nothing."""
    if node.config.carries_server:
        return reason("fence.blocked.own_host")
    others = len(cluster.hosts) - 1
    reached = len(cluster.present) - (node.id in cluster.present)
    needed_percent = cluster.policy.fencing.witnesses_percent
    if reached * 100 < others * needed_percent:
        by_agent = [cluster.hosts[one] for one in cluster.rings.heard_by_agent]
        reached += sum(other is not node and _agent_reached(cluster, other) for other in by_agent)
    if others and reached * 100 >= others * needed_percent:
        return None
    if cluster.reference and cluster.reference_ms is not None:
        age_ms = cluster.now - cluster.reference_ms
        if age_ms <= cluster.policy.detection.evidence_max_age_ms:
            return None
    return reason("fence.blocked.observer", reached=reached, others=others)


def _newcomers(cluster: Cluster, node: HostNode) -> Reason | None:
    """J2: whoever came within reach since it fell silent is asked first."""
    return reason("fence.blocked.newcomers") if newcomers_unheard(cluster, node) else None


def _agent_reached(cluster: Cluster, node: HostNode) -> bool:
    """Its guardian is silent, and has been for longer than a session may be before it is given up: its agent's still
    stands, so that is heard (J2). A guardian that is down does not cut us off."""
    if node.id in cluster.present or ProcessKind.AGENT not in node.sessions:
        return False
    return silent_ms(cluster, node) >= cluster.policy.detection.hung_after_ms


def _brake(cluster: Cluster, node: HostNode, level: int) -> Reason | None:
    """J5. A host whose *off* was read already is not held: ordering it off changes nothing."""
    brake = cluster.record.brake
    if brake is None or known_off(cluster, node, level):
        return None
    return reason("fence.blocked.brake", hosts=brake.hosts)


def _cap(cluster: Cluster, node: HostNode, level: int) -> Reason | None:
    """F7 and J6. Further attempts on a host that was counted in this incident are the same power-down."""
    incident = node.record.incident
    if incident is not None and is_counted(cluster, node, incident):
        return None
    if known_off(cluster, node, level):
        return None
    fencing = cluster.policy.fencing
    if len(counted(cluster)) < fencing.cap_count:
        return None
    return reason(
        "fence.blocked.cap",
        count=fencing.cap_count,
        window=format_duration_ms(fencing.cap_window_ms),
    )


def own_lease(cluster: Cluster) -> Reason | None:
    """J7: an order that outlives our leadership could strike a host that a new leader has brought back."""
    left = cluster.lease_until_ms - cluster.now
    if left > cluster.policy.fencing.order_deadline_ms:
        return None
    return reason("fence.blocked.own_lease", left_ms=max(0, left))


def known_off(cluster: Cluster, node: HostNode, level: int) -> bool:
    """The devices of that level all read *off* before any order to them."""
    return all(reads_off(cluster, node, feed.device) for feed in node.config.power[level].feeds)


def counted(cluster: Cluster) -> tuple[FenceCount, ...]:
    """Orders inside the cap's window."""
    since = cluster.now - cluster.policy.fencing.cap_window_ms
    return tuple(count for count in cluster.record.fence_counts if count.at_ms > since)


def uncount_order(cluster: Cluster, node: HostNode, at_ms: int) -> None:
    """The order that was counted then was never carried out."""
    mine = FenceCount(host_id=node.id, at_ms=at_ms)
    counts = tuple(count for count in cluster.record.fence_counts if count != mine)
    cluster.record = replace(cluster.record, fence_counts=counts)


def is_counted(cluster: Cluster, node: HostNode, incident: Incident) -> bool:
    return any(
        count.host_id == node.id and count.at_ms >= incident.began_ms for count in counted(cluster)
    )


def count_order(cluster: Cluster, node: HostNode) -> None:
    """Before an *off* goes out to a host that is not known to be off."""
    counts = (*counted(cluster), FenceCount(host_id=node.id, at_ms=int(cluster.now)))
    cluster.record = replace(cluster.record, fence_counts=counts)


def watch_brake(cluster: Cluster) -> None:
    """Trips when too many hosts fall silent within the window; lifts when a majority of the survivors has seen
    its storage for as long as the policy says (J5)."""
    fencing = cluster.policy.fencing
    brake = cluster.record.brake
    since = max(cluster.now - fencing.brake_window_ms, cluster.record.brake_lifted_ms)
    fallen = sum(fell_ms(cluster, cluster.hosts[host_id]) > since for host_id in cluster.absent)
    limit = max(fencing.brake_hosts, -(-len(cluster.hosts) * fencing.brake_percent // 100))
    if brake is None:
        if fallen >= limit:
            tripped = Brake(tripped_ms=int(cluster.now), hosts=fallen)
            cluster.record = replace(cluster.record, brake=tripped)
            cluster.steady_since_ms = None
            cluster.tell("fence.brake.tripped", hosts=fallen, limit=limit)
        return
    if fallen > brake.hosts:
        cluster.record = replace(cluster.record, brake=replace(brake, hosts=fallen))
        cluster.steady_since_ms = None
    if not _survivors_see_storage(cluster):
        cluster.steady_since_ms = None
    elif cluster.steady_since_ms is None:
        cluster.steady_since_ms = cluster.now
    elif cluster.now - cluster.steady_since_ms >= fencing.brake_lift_ms:
        lift_brake(cluster, by="the survivors' storage")


def brake_looks_at(cluster: Cluster) -> int | None:
    """When the brake may lift by itself."""
    if cluster.record.brake is None or cluster.steady_since_ms is None:
        return None
    return cluster.steady_since_ms + cluster.policy.fencing.brake_lift_ms


def _survivors_see_storage(cluster: Cluster) -> bool:
    """Only while the brake holds, so its scan over the hosts costs nothing in good times."""
    seeing = sum(
        1
        for host_id in cluster.present
        if (survey := cluster.hosts[host_id].survey) is not None and survey.storage_domains
    )
    return 2 * seeing > len(cluster.present)


def lift_brake(cluster: Cluster, *, by: str) -> None:
    if cluster.record.brake is None:
        return
    cluster.record = replace(cluster.record, brake=None, brake_lifted_ms=int(cluster.now))
    cluster.tell("fence.brake.lifted", by=by)
    cluster.plan_wanted = True
    for host_id in cluster.absent:
        cluster.touch(cluster.hosts[host_id])
