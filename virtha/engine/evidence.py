"""Folds what hosts and witnesses say into the nodes. Nothing is judged here.

The time of every piece of evidence is that of its receipt: no two clocks are compared. Only a slot's change tells how old it
is at least (``SlotChanged``), for it may be read long after it was written.
"""

from virtha.engine.cuts import note_sights
from virtha.engine.early import is_kept, replaced, session_began, tells_of_now
from virtha.engine.events import (
    BeatSeen,
    DisksWatched,
    GatewayLost,
    HostSurveyed,
    LibvirtAnswered,
    NeighbourAnswered,
    SessionChanged,
    SlotChanged,
)
from virtha.engine.holders import surveyed_there
from virtha.engine.incident import of_this_boot, sign_of_life
from virtha.engine.machine import Verdict
from virtha.engine.restored import sees_again
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.engine.targets import refresh_target, told
from virtha.model.evidence import Answer, ProcessKind
from virtha.model.ids import BootId
from virtha.model.time import Millis

_SESSION = "its own session"
_SLOT = "its heartbeat slot"
SLOT_LATE_MS = 60_000
"""A change that is told may be older by two rounds (``LeaseDesk``), its block and its reader's word by a stalled path: far
less. What changes after that was written after the proof (J2)."""


def beat_seen(cluster: Cluster, event: BeatSeen) -> None:
    """The hot path: a beat that changes nothing costs four comparisons."""
    node = cluster.hosts.get(event.host_id)
    if node is None:
        return
    if (
        event.boot == node.record.boot
        and node.verdict is Verdict.ALIVE
        and event.agent_alive
        and node.broken_ms is None
    ):
        node.sign_ms = cluster.now
        return
    if not of_this_boot(cluster, node, event.boot, via=_SESSION):
        return
    node.agent_alive = event.agent_alive
    _signed(cluster, node)


def session_changed(cluster: Cluster, event: SessionChanged) -> None:
    node = cluster.hosts.get(event.host_id)
    if node is None:
        return
    if event.up:
        if not of_this_boot(cluster, node, event.boot, via=_SESSION):
            return
        if node.sessions.get(event.process) != event.boot:
            session_began(cluster, node)
        node.sessions[event.process] = event.boot
        cluster.list_host(node)
        if event.process is ProcessKind.AGENT:
            node.agent_alive = True
            sees_again(cluster, node)
        _signed(cluster, node)
        return
    if node.sessions.get(event.process) != event.boot:
        return  # of a session that a later one has replaced
    del node.sessions[event.process]
    cluster.list_host(node)
    if event.process is ProcessKind.AGENT:
        node.agent_alive = False
    if event.broken and not node.sessions:
        node.broken_ms = cluster.now
    cluster.touch(node)


def gateway_lost(cluster: Cluster, event: GatewayLost) -> None:
    """Their sessions end with the gateway: each observed anew (J1)."""
    for host_id in sorted(event.hosts):
        node = cluster.hosts.get(host_id)
        if node is not None:
            node.sessions.clear()
            cluster.list_host(node)
            node.broken_ms = None
            node.observe_from_ms = cluster.now
            cluster.touch(node)


def stalled(cluster: Cluster) -> None:
    """We were asleep: signs may lie unread, so nobody is judged by our own silence (J1)."""
    cluster.began_ms = cluster.now
    for node in cluster.hosts.values():
        node.broken_ms = None
        # Quiet rounds from before say nothing of the time that was slept through (J3).
        node.quiet_rounds = node.rounds_asked = node.reader_rounds = 0
        cluster.touch(node)


def host_surveyed(cluster: Cluster, event: HostSurveyed) -> None:
    node = cluster.hosts.get(event.host_id)
    if node is None:
        return
    now = tells_of_now(cluster, node, event)
    if now or is_kept(node, event):
        for vm_id in sorted(event.active):
            vm = cluster.vms.get(vm_id)
            if vm is not None and not _may_hold(node, vm, event.boot):
                surveyed_there(cluster, vm, node, event.boot)
    if not now:
        return
    replaced(node, event)
    node.survey = event
    if event.ceph:
        note_sights(node, event)
    if event.libvirt_connected and not node.libvirt_answers:
        sees_again(cluster, node)
    node.libvirt_answers = event.libvirt_connected
    refresh_target(cluster, node)
    told(cluster, node)
    cluster.plan_wanted = True
    _signed(cluster, node)


def _may_hold(node: HostNode, vm: VmNode, boot: BootId) -> bool:
    """As a copy of whatever incarnation; of the present boot's, also one that was made before copies named a boot."""
    may = (boot,) if boot != node.record.boot else (boot, None)
    return any(copy.host_id == node.id and copy.boot in may for copy in vm.record.copies)


def libvirt_answered(cluster: Cluster, event: LibvirtAnswered) -> None:
    node = cluster.hosts.get(event.host_id)
    if node is not None and node.libvirt_answers is not event.answering:
        node.libvirt_answers = event.answering
        if event.answering:
            sees_again(cluster, node)
        refresh_target(cluster, node)
        cluster.plan_wanted = True
        cluster.touch(node)


def neighbour_answered(cluster: Cluster, event: NeighbourAnswered) -> None:
    node = cluster.hosts.get(event.subject)
    if node is None or event.witness not in cluster.hosts:
        return
    if event.answer is Answer.ALIVE:
        name = cluster.hosts[event.witness].config.name
        # An answer that names no boot is taken for one of the present boot: it speaks against its death.
        boot = event.boot if event.boot is not None else node.record.boot
        if boot in node.record.dead_boots:
            # Asked before the proof: nobody is asked after it.
            sign_of_life(cluster, node, boot, via=name, late=True)
            return
        if boot == node.record.boot:
            node.witnessed_ms = Millis(cluster.now)
            if event.boot is not None:
                node.named_ms = node.witnessed_ms
            if node.record.incident is not None:
                sign_of_life(cluster, node, boot, via=name, named=event.boot is not None)
    node.neighbours[event.witness, event.network] = (event.answer, cluster.now)
    if node.verdict is not Verdict.ALIVE:
        cluster.touch(node)


def disks_watched(cluster: Cluster, event: DisksWatched) -> None:
    """A change is one between two reads of one reader (J3). No change proves nothing."""
    node = cluster.hosts.get(event.subject)
    if node is None:
        return
    if event.changed:
        node.disks_changed_ms = cluster.now
        node.quiet_rounds = 0
        incident = node.record.incident
        if incident is not None and incident.fence is not None and incident.proof is None:
            # Durable: a later leader must not find the readings alone, and believe them.
            node.set_incident(disks_written=True)
    elif event.changed is not None:
        node.quiet_rounds += 1
    cluster.touch(node)


def slot_changed(cluster: Cluster, event: SlotChanged) -> None:
    node = cluster.hosts.get(event.subject)
    if node is None:
        return
    lived_ms = Millis(cluster.now - event.old_ms)
    if _is_before_its_fall(node, event.boot, lived_ms):
        return
    if event.boot in node.record.dead_boots:
        incident = node.record.incident
        proof = incident.proof if incident is not None else None
        late = proof is None or cluster.now < proof.at_ms + SLOT_LATE_MS
        sign_of_life(cluster, node, event.boot, via=_SLOT, late=late)
        if event.boot in node.record.dead_boots:
            return
    node.slot_ms = max(node.slot_ms or lived_ms, lived_ms)
    if event.boot == node.record.boot:
        # Whoever needs it to have lived *at* a time (P1) may not take a change for later than it certainly is.
        landed_ms = Millis(cluster.now - event.within_ms)
        node.named_ms = max(node.named_ms or landed_ms, landed_ms)
    if node.verdict is not Verdict.ALIVE:
        if event.boot == node.record.boot:
            sign_of_life(cluster, node, event.boot, via=_SLOT)
        cluster.touch(node)


def _is_before_its_fall(node: HostNode, boot: BootId, lived_ms: int) -> bool:
    """A sign of before its connections broke, or of before the order that is to prove its death, says nothing of what came
    after: a renewal of the last moment, which is read only now. Nothing is counted as read *off* before that order (P1)."""
    fell_ms = 0 if node.broken_ms is None else node.broken_ms
    incident = node.record.incident
    if incident is not None and incident.boot == boot:
        ordered_ms = 0 if incident.fence is None else incident.fence.ordered_ms
        fell_ms = max(fell_ms, ordered_ms, incident.silent_since_ms)
    elif boot != node.record.boot:
        return False
    return lived_ms < fell_ms


def _signed(cluster: Cluster, node: HostNode) -> None:
    node.sign_ms = Millis(cluster.now)
    node.broken_ms = None
    incident = node.record.incident
    if incident is not None and incident.boot == node.record.boot:
        sign_of_life(cluster, node, incident.boot, via=_SESSION)
    cluster.touch(node)
