"""The life of an incident: opened when a host is judged dead, ended by the host's return. And its proofs.

A proof is bound to one boot (safety.md, section 2). A sign of that boot after it was proven dead is the worst
that can happen: told as an alert, and the copies that it may still hold are named superseded by the server.
"""

from msgspec.structs import replace

from virtha.engine.machine import VmTrigger
from virtha.engine.records import Death, Incident, VmStage
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.model.ids import BootId
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import PossibleCopy, VmState

DEAD_BOOTS_KEPT = 8
"""Enough to tell a late sign of a former boot from a new one."""


def open_incident(cluster: Cluster, node: HostNode) -> None:
    """``node`` is dead as far as can be judged. Its VMs are lost until there is proof."""
    boot = node.record.boot
    assert boot is not None, f"{node.config.name}: judged without ever having been seen"
    assert node.record.incident is None, f"{node.config.name}: a second incident"
    number = cluster.next_incident()
    silent_since = node.sign_ms if node.sign_ms is not None else cluster.began_ms
    node.set(
        incident=Incident(
            number=number, boot=boot, silent_since_ms=silent_since, began_ms=cluster.now
        )
    )
    cluster.tell("host.judged_dead", host=node, silent_ms=cluster.now - silent_since)
    for vm in cluster.vms_held_by(node.id):
        cluster.move_vm(vm, VmTrigger.HOLDER_LOST, lost_ms=int(cluster.now))


def sign_of_life(cluster: Cluster, node: HostNode, boot: BootId | None, *, via: str) -> None:
    """A sign of ``boot``, which is judged or proven dead."""
    incident = node.record.incident
    if incident is not None and incident.boot == boot:
        if incident.proof is not None:
            _contradiction(cluster, node, via)
        elif incident.fence is None:
            alive_after_all(cluster, node, via)
        else:
            # Our order may still take effect: no reading of before this sign may prove anything (P1).
            _disqualify(cluster, node, via)
    elif boot in node.record.dead_boots:
        _contradiction(cluster, node, via)


def boot_began(cluster: Cluster, node: HostNode, boot: BootId) -> None:
    """The host reports another boot: everything of the one before is dead (P4)."""
    former = node.record.boot
    node.set(boot=boot)
    node.survey = None
    node.slot_ms = None
    node.power.clear()
    cluster.await_survey(node)
    if former is None:
        return
    _bury(node, former)
    incident = node.record.incident
    if incident is None:
        cluster.tell("host.rebooted_unseen", host=node)
        # What it held went down with it, though nobody was judged dead.
        for vm in cluster.vms_held_by(node.id):
            cluster.move_vm(vm, VmTrigger.HOLDER_LOST, lost_ms=int(cluster.now))
    proof = Proof(
        kind=ProofKind.NEW_BOOT,
        host_id=node.id,
        boot=former,
        at_ms=int(cluster.now),
        detail=f"boot {boot}",
    )
    _spread(cluster, node, proof)
    if incident is not None:
        cluster.tell("host.returned", host=node)
        _end_incident(cluster, node)


def proven(cluster: Cluster, node: HostNode, proof: Proof) -> None:
    """The boot of its incident is proven dead: what it held may start elsewhere."""
    incident = node.record.incident
    if incident is None or incident.boot != proof.boot:
        return  # of an incident that is over
    first = incident.proof is None
    node.set_incident(proofs=(*incident.proofs, proof))
    if not first:
        return
    _bury(node, proof.boot)
    cluster.tell(
        "host.proven_dead",
        host=node,
        proof=proof.kind.value,
        detail=proof.detail,
        after_ms=cluster.now - incident.silent_since_ms,
    )
    _spread(cluster, node, proof)


def _spread(cluster: Cluster, node: HostNode, proof: Proof) -> None:
    for vm in cluster.vms_held_by(node.id):
        copies = tuple(copy for copy in vm.record.copies if not _dies_with(copy, proof))
        if copies != vm.record.copies:
            _remove_copies(cluster, vm, copies, proof)


def _dies_with(copy: PossibleCopy, proof: Proof) -> bool:
    """A copy without a boot was made before starts named one: it can't be of a boot not yet seen."""
    return copy.host_id == proof.host_id and copy.boot in (None, proof.boot)


def _remove_copies(
    cluster: Cluster, vm: VmNode, copies: tuple[PossibleCopy, ...], proof: Proof
) -> None:
    deaths = vm.record.deaths
    if proof.kind is not ProofKind.RELEASED and vm.state_host in (None, proof.host_id):
        since = cluster.now - cluster.policy.recovery.quarantine_window_ms
        recent = [death for death in deaths if death.at_ms > since]
        deaths = (*recent, Death(host_id=proof.host_id, at_ms=int(cluster.now)))
    if vm.state_host == proof.host_id:
        vm.state, vm.state_host, vm.guest_agent = VmState.UNKNOWN, None, None
    start, attempts = vm.record.start, vm.record.attempts
    if start is not None and start.host_id == proof.host_id:
        start, attempts = None, attempts + 1
    cluster.set_vm(
        vm,
        copies=copies,
        proofs=(*vm.record.proofs, proof),
        deaths=deaths,
        start=start,
        attempts=attempts,
    )
    settle_lost(cluster, vm)


def settle_lost(cluster: Cluster, vm: VmNode) -> None:
    """If nobody may hold a lost VM any more, it may be started, or needn't be."""
    if vm.record.copies or vm.record.stage is not VmStage.LOST:
        return
    cluster.move_vm(vm, VmTrigger.ALL_PROVEN, ready_ms=int(cluster.now))
    if not vm.protected:
        cluster.tell("vm.not_recovered", vm=vm)
        cluster.move_vm(vm, VmTrigger.UNWANTED, proofs=(), lost_ms=None)
        return
    if len({death.host_id for death in vm.record.deaths}) > 1:
        cluster.move_vm(vm, VmTrigger.TWO_DEATHS)
        cluster.tell("vm.quarantined", vm=vm, hosts=len(vm.record.deaths))


def alive_after_all(cluster: Cluster, node: HostNode, via: str) -> None:
    cluster.tell("host.alive_after_all", host=node, via=via)
    _end_incident(cluster, node)


def _end_incident(cluster: Cluster, node: HostNode) -> None:
    node.set(incident=None)
    node.sent = None
    node.forget_investigation()
    for vm in cluster.vms_held_by(node.id):
        holder_back(cluster, vm)


def holder_back(cluster: Cluster, vm: VmNode) -> None:
    """Whoever may hold it lives: it is not lost, and a start that was under way there still is."""
    if vm.record.start is not None:
        cluster.move_vm(vm, VmTrigger.START_GOES_ON)
    else:
        cluster.move_vm(vm, VmTrigger.HOLDER_BACK, lost_ms=None)
    cluster.plan_wanted = True


def give_up_fence(cluster: Cluster, node: HostNode, why: str) -> None:
    """The host lives on although it was ordered off: nothing was proven, and it is not tried at once again."""
    cluster.tell("fence.failed_host_lives", host=node, detail=why)
    _end_incident(cluster, node)


def _disqualify(cluster: Cluster, node: HostNode, via: str) -> None:
    """A device said *off*, and then the boot gave a sign: what it says proves nothing any more (P1).

    Before the first such reading a sign says only that the order has not taken effect yet.
    """
    incident = node.record.incident
    assert incident is not None and incident.fence is not None
    said_off = any(feed.off_since_ms is not None for feed in incident.fence.feeds)
    if said_off and not incident.disqualified:
        feeds = tuple(
            replace(feed, off_since_ms=None, confirmed=False) for feed in incident.fence.feeds
        )
        node.set_incident(fence=replace(incident.fence, feeds=feeds), disqualified=True)
        cluster.tell("fence.contradicted", host=node, via=via)


def _contradiction(cluster: Cluster, node: HostNode, via: str) -> None:
    if node.contradicted:
        return  # once per process and host: the beat comes twice a second
    node.contradicted = True
    cluster.tell("host.alive_though_proven_dead", host=node, via=via)


def _bury(node: HostNode, boot: BootId) -> None:
    if boot not in node.record.dead_boots:
        node.set(dead_boots=(*node.record.dead_boots, boot)[-DEAD_BOOTS_KEPT:])
