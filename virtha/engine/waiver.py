"""When most hosts lose a storage domain, their leases are waived: nobody could take over what they would kill.

Self-fencing is unconditional on the host, which can't know whether others lost the domain too. The leader can: it hears
from each host over a live session which domains it can use. Where more hosts that have something to lose lack a
domain than any hosts see it, the storage is out, not a host, and those hosts keep their VMs (safety.md, section 3).

A waiver is in the host's record before it is given. It stands until the host says that it keeps the lease again
(``WaiverOver``), or begins a new boot: until then that lease proves nothing. It is given only while there is time, after
a third of ``lease.self_fence_after``, so that a short stall is nobody's business.
"""

from collections.abc import Callable

from msgspec.structs import replace

from virtha.engine.capacity import FeatureKind
from virtha.engine.events import EndWaiver, GiveWaiver, HostSurveyed, SessionChanged, WaiverOver
from virtha.engine.evidence import host_surveyed, session_changed
from virtha.engine.outage import waits_no_more
from virtha.engine.records import Waiver
from virtha.engine.state import Cluster, HostNode
from virtha.model.evidence import ProcessKind
from virtha.model.ids import StorageDomainId
from virtha.model.time import Millis

WAIT_SHARE = 3
"""The part of ``lease.self_fence_after`` for which most hosts must lack a domain."""


def surveyed(cluster: Cluster, event: HostSurveyed) -> None:
    """A host says which domains it can use."""
    node = cluster.hosts.get(event.host_id)
    before = node.survey if node is not None else None
    host_surveyed(cluster, event)
    if node is None or node.survey is not event:
        return
    _drop(cluster, node, lambda waiver: waiver.boot != event.boot)
    had = before.storage_domains if before is not None else frozenset()
    for domain_id in sorted((had | _needed(cluster, node)) - event.storage_domains):
        cluster.storage_out.setdefault(domain_id, None)
    cluster.storage_told |= bool(cluster.storage_out) or bool(node.record.waived)


def session_told(cluster: Cluster, event: SessionChanged) -> None:
    """What its guardian was told in a former session, or by a former leader, may not have come."""
    session_changed(cluster, event)
    node = cluster.hosts.get(event.host_id)
    if node is None or not event.up or event.process is not ProcessKind.GUARDIAN:
        return
    cluster.storage_told |= bool(cluster.storage_out)
    for waiver in node.record.waived:
        if waiver.boot == event.boot:
            _send(cluster, node, waiver)


def waiver_over(cluster: Cluster, event: WaiverOver) -> None:
    """The host keeps the lease again: it counts from here on."""
    node = cluster.hosts.get(event.host_id)
    if node is not None:
        before = node.record.waived
        mine = Waiver(
            waiver_id=event.waiver_id, domain_id=event.domain_id, boot=event.boot, ending=True
        )
        _drop(cluster, node, lambda waiver: waiver == mine)
        if node.record.waived != before:
            cluster.tell("storage.lease_again", host=node, domain=event.domain_id)


def watch_storage(cluster: Cluster) -> None:
    """After each step's events. Costs nothing while every host sees what it needs."""
    due = storage_looks_at(cluster)
    if not cluster.storage_told and (due is None or cluster.now < due):
        return
    cluster.storage_told = False
    for domain_id in sorted(cluster.storage_out):
        _watch_domain(cluster, domain_id)
    for host_id in sorted(cluster.hosts):
        node = cluster.hosts[host_id]
        for waiver in node.record.waived:
            _end_if_seen(cluster, node, waiver)


def storage_looks_at(cluster: Cluster) -> Millis | None:
    """When a domain has been out for so long that something is done. None also where no host kills for a lease: once
    the policy has that changed, the next step finds the outage as old as it is."""
    if not cluster.policy.leases_in_use:
        return None
    wait_ms = cluster.policy.lease.self_fence_after_ms // WAIT_SHARE
    moments = [since + wait_ms for since in cluster.storage_out.values() if since is not None]
    return Millis(min(moments)) if moments else None


def _watch_domain(cluster: Cluster, domain_id: StorageDomainId) -> None:
    seeing, lacking = 0, []
    for host_id in sorted(cluster.hosts):
        node = cluster.hosts[host_id]
        survey = node.survey
        if survey is None or ProcessKind.GUARDIAN not in node.sessions:
            continue
        if domain_id in survey.storage_domains:
            seeing += 1
        elif domain_id in _needed(cluster, node):
            lacking.append(node)
    if not lacking:
        del cluster.storage_out[domain_id]
        return
    since = cluster.storage_out[domain_id]
    if len(lacking) <= seeing:
        cluster.storage_out[domain_id] = None
        return
    if since is None:
        cluster.storage_out[domain_id] = cluster.now
        return
    wait_ms = cluster.policy.lease.self_fence_after_ms // WAIT_SHARE
    if not cluster.policy.leases_in_use or cluster.now - since < wait_ms:
        return
    given = [node for node in lacking if _give(cluster, node, domain_id)]
    if given:
        cluster.tell("storage.outage", domain=domain_id, hosts=len(lacking), seeing=seeing)
    # Whoever else comes to lack it is looked at when it says so.
    cluster.storage_out[domain_id] = None


def _give(cluster: Cluster, node: HostNode, domain_id: StorageDomainId) -> bool:
    boot = node.record.boot
    if boot is None or node.record.incident is not None:
        return False
    if any(waiver.domain_id == domain_id and not waiver.ending for waiver in node.record.waived):
        return False
    others = tuple(waiver for waiver in node.record.waived if waiver.domain_id != domain_id)
    waiver = Waiver(waiver_id=cluster.next_order(), domain_id=domain_id, boot=boot)
    node.set(waived=(*others, waiver))
    cluster.changed_hosts.add(node.id)
    _send(cluster, node, waiver)
    return True


def _end_if_seen(cluster: Cluster, node: HostNode, waiver: Waiver) -> None:
    """It sees the domain again. Its guardian takes care that it promises nothing before it can keep it."""
    survey = node.survey
    seen = (
        survey is not None
        and survey.boot == waiver.boot
        and waiver.domain_id in survey.storage_domains
    )
    if waiver.ending or not seen or ProcessKind.GUARDIAN not in node.sessions:
        return
    ending = replace(waiver, ending=True)
    node.set(waived=tuple(ending if each == waiver else each for each in node.record.waived))
    cluster.changed_hosts.add(node.id)
    _send(cluster, node, ending)


def _send(cluster: Cluster, node: HostNode, waiver: Waiver) -> None:
    command = EndWaiver if waiver.ending else GiveWaiver
    cluster.order(
        command(
            waiver_id=waiver.waiver_id,
            host_id=node.id,
            boot=waiver.boot,
            domain_id=waiver.domain_id,
        )
    )


def _drop(cluster: Cluster, node: HostNode, over: Callable[[Waiver], bool]) -> None:
    left = tuple(waiver for waiver in node.record.waived if not over(waiver))
    if left != node.record.waived:
        waits_no_more(cluster, node.record)
        node.set(waived=left)
        cluster.changed_hosts.add(node.id)


def _needed(cluster: Cluster, node: HostNode) -> frozenset[StorageDomainId]:
    """Domains in which VMs that it may hold have disks."""
    return frozenset(
        StorageDomainId(feature.name)
        for vm in cluster.vms_held_by(node.id)
        for feature in vm.config.features
        if feature.kind is FeatureKind.STORAGE
    )
