"""The life of an incident: opened when a host is judged dead, ended by the host's return. And its proofs.

A proof is bound to one boot (safety.md, section 2). A sign of that boot after it was proven dead is the worst that can happen:
told as an alert, and the proof is void. The copies that it ended may be there after all: those of VMs that nobody else was
ordered to start are held as before, the others end (G4, ``superseded``).
"""

from msgspec.structs import replace

from virtha.engine.capacity import FeatureKind
from virtha.engine.cuts import is_cut_off, lives_cut_off, may_be_cut_off
from virtha.engine.ended import note_ended, superseding
from virtha.engine.events import Poison
from virtha.engine.machine import VmTrigger
from virtha.engine.records import Death, EndedCopy, Incident, SupersededCopy, VmStage
from virtha.engine.restored import covers_all, forget_told, may_hold, settle, unsettle
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.engine.struck import note_return
from virtha.engine.targets import refresh_target
from virtha.model.facts import ReleaseCause
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import PossibleCopy, VmState

DEAD_BOOTS_KEPT = 32
"""Enough to tell a late sign of a former boot from a new one: a session outlives its boot by seconds."""


def open_incident(cluster: Cluster, node: HostNode) -> None:
    """``node`` is dead as far as can be judged. Its VMs are lost until there is proof."""
    boot = node.record.boot
    assert boot is not None, f"{node.config.name}: judged without ever having been seen"
    assert node.record.incident is None, f"{node.config.name}: a second incident"
    number = cluster.next_incident()
    silent_since = node.sign_ms if node.sign_ms is not None else cluster.began_ms
    node.set(
        incident=Incident(
            number=number,
            boot=boot,
            silent_since_ms=silent_since,
            began_ms=cluster.now,
            timeline=node.config.timeline,
        )
    )
    cluster.tell("host.judged_dead", host=node, silent_ms=cluster.now - silent_since)
    for vm in cluster.vms_held_by(node.id):
        lose(cluster, vm)
        cluster.touch_vm(vm)  # a migrating one is not lost with one of its sides


def sign_of_life(
    cluster: Cluster,
    node: HostNode,
    boot: BootId | None,
    *,
    via: str,
    named: bool = True,
    late: bool = False,
) -> None:
    """A sign of ``boot``, which is judged or proven dead. Not ``named``: it is only taken for one of that boot, and the host may
    have booted since another timeline's proof. ``late``: it may have been under way since before the proof, so what was proven
    stands; a host that lives says so itself."""
    incident = node.record.incident
    if incident is not None and incident.boot == boot:
        if is_cut_off(node, incident):
            lives_cut_off(cluster, node, via)
            if incident.proof is None and incident.fence is not None:
                _disqualify(cluster, node, via)
            return
        if incident.proof is not None or (incident.once_proven and named):
            _contradiction(cluster, node, via)
        if incident.proof is not None:
            # What is cut off from its disks may live: that is what P3 proves.
            fenced = any(proof.kind is ProofKind.STORAGE_FENCE for proof in incident.proofs)
            if not late and not fenced:
                _revive(cluster, node, incident)
                if may_be_cut_off(node, incident):
                    # Shut out beside the operator's word (P6): what it holds again stands still until its reboot.
                    cluster.tell("host.lives_cut_off", host=node, via=via)
            return
        if incident.fence is None:
            alive_after_all(cluster, node, via)
        else:
            # Our order may still take effect: no reading of before this sign may prove anything (P1).
            _disqualify(cluster, node, via)
    elif boot in node.record.dead_boots:
        _contradiction(cluster, node, via)


def of_this_boot(cluster: Cluster, node: HostNode, boot: BootId, *, via: str) -> bool:
    """False: of a boot that is over. A boot not seen before is the host's new one (P4): only for what nobody but the boot
    that runs now can have sent, a beat or a session. A fact may be of any boot before it (``early``)."""
    if boot in node.record.dead_boots:
        sign_of_life(cluster, node, boot, via=via)
        return boot not in node.record.dead_boots
    if boot != node.record.boot:
        boot_began(cluster, node, boot)
    return True


def boot_began(cluster: Cluster, node: HostNode, boot: BootId) -> None:
    """The host reports another boot: everything of the ones before is dead (P4). Not of one whose own session has brought
    facts and is yet to be told: sessions are told in their order, so that one is the later."""
    former = node.record.boot
    cluster.begun.add(node.id)
    if former is not None:
        note_return(cluster, node)
    # A device that said *on* in the former boot may have been rewired since.
    later = tuple(one for one in node.record.next_boots if one != boot)
    node.set(boot=boot, boot_seen_ms=int(cluster.now), on_devices=(), next_boots=later)
    node.survey = None
    node.slot_ms = node.named_ms = node.witnessed_ms = node.leaving_ms = None
    node.power.clear()
    node.off_since.clear()
    node.power_asked_ms = None
    forget_told(node)
    # No place for starts before it tells, also if nobody noticed its silence.
    refresh_target(cluster, node)
    cluster.touch(node)
    if former is not None:
        _bury(node, former)
    incident = node.record.incident
    if former is not None and incident is None:
        cluster.tell("host.rebooted_unseen", host=node)
    for vm in cluster.vms_held_by(node.id):
        mine = (copy.boot or former for copy in vm.record.copies if copy.host_id == node.id)
        for over in sorted({one for one in mine if one is not None} - {boot, *later}):
            _die(cluster, vm, node, _new_boot_proof(cluster, node, over, boot))
    if incident is not None:
        cluster.tell("host.returned", host=node)
        _end_incident(cluster, node)


def boot_passed(cluster: Cluster, node: HostNode, over: BootId, later: BootId) -> None:
    """``later``'s session brought facts of ``over``, or began after they had come. That was never the present boot here:
    a boot between two others, that nobody heard of before (P4). It says nothing of the present one, nor of copies without
    a boot."""
    assert over != node.record.boot, f"{node.config.name}: only a live sign ends the present boot"
    _bury(node, over)
    cluster.changed_hosts.add(node.id)
    proof = _new_boot_proof(cluster, node, over, later)
    for vm in cluster.vms_held_by(node.id):
        copies = tuple(
            copy for copy in vm.record.copies if (copy.host_id, copy.boot) != (node.id, over)
        )
        if copies != vm.record.copies:
            lose(cluster, vm)
            _remove_copies(cluster, vm, copies, proof)


def _new_boot_proof(cluster: Cluster, node: HostNode, over: BootId, boot: BootId) -> Proof:
    return Proof(
        kind=ProofKind.NEW_BOOT,
        host_id=node.id,
        boot=over,
        at_ms=int(cluster.now),
        detail=f"boot {boot}",
    )


def proven(cluster: Cluster, node: HostNode, proof: Proof) -> None:
    """The boot of its incident is proven dead: what it held may start elsewhere."""
    incident = node.record.incident
    if incident is None or incident.boot != proof.boot or proof.at_ms < incident.began_ms:
        return  # of an incident that is over: the host has lived since
    if proof.kind in _OF_DOMAINS and not all(
        domains_of(vm).issubset(proof.domain_ids) for vm in may_hold(cluster, node)
    ):
        if proof.kind is ProofKind.LEASE:
            # A copy with a disk elsewhere came to light since: that lease has to expire too.
            poison(cluster, node, incident)
        return
    if not covers_all(node, proof):
        return
    first = incident.proof is None
    node.set_incident(proofs=(*incident.proofs, proof))
    if not first:
        _end_sides(cluster, node)
        return
    _bury(node, proof.boot)
    node.set_incident(settled=node.untold)
    settle(cluster, node)
    cluster.await_no_more(node.id)
    cluster.plan_wanted = True
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
        _die(cluster, vm, node, proof)
    _end_sides(cluster, node)


_OF_DOMAINS = frozenset({ProofKind.LEASE, ProofKind.STORAGE_FENCE})
"""They say nothing of a VM with a disk in any other domain (P2, P3)."""
_OF_THE_MACHINE = frozenset({ProofKind.POWER_OFF, ProofKind.OPERATOR})


def end_side(cluster: Cluster, vm: VmNode, node: HostNode, copy: PossibleCopy) -> None:
    """``copy``: of a boot that a forgotten order named, and that is not the one which ``node``'s incident is about. A proof
    of this timeline that the machine is off holds for that boot too: it began before the restore, for what was ordered
    since is on record with a boot that was seen (P1, M2). A lease or a storage fence is about one boot."""
    incident = node.record.incident
    if incident is None or copy.boot is None or not _is_of_now(node, incident):
        return
    for proof in incident.proofs:
        if proof.kind in _OF_THE_MACHINE:
            _die(cluster, vm, node, replace(proof, boot=copy.boot))


def _is_of_now(node: HostNode, incident: Incident) -> bool:
    """Judged in this timeline of the database."""
    return bool(node.config.timeline) and incident.timeline == node.config.timeline


def sides_left(cluster: Cluster, node: HostNode) -> list[tuple[VmNode, PossibleCopy]]:
    """Copies there that are sides of migrations on record in a boot that was not the present one, so of forgotten ones."""
    left: list[tuple[VmNode, PossibleCopy]] = []
    incident = node.record.incident
    if incident is None or not _is_of_now(node, incident):
        return left
    for vm in cluster.vms_held_by(node.id):
        move = vm.record.migration
        if move is not None:
            sides = ((move.source, move.source_boot), (move.target, move.target_boot))
            left += [
                (vm, copy)
                for copy in vm.record.copies
                if copy.host_id == node.id
                and (copy.host_id, copy.boot) in sides
                and copy.boot not in (None, node.record.boot)
            ]
    return left


def _end_sides(cluster: Cluster, node: HostNode) -> None:
    for vm, copy in sides_left(cluster, node):
        end_side(cluster, vm, node, copy)


def lose(cluster: Cluster, vm: VmNode) -> None:
    """A host that may hold it is judged, gone or dead. Lost is lost from the first of them on."""
    since = vm.record.lost_ms if vm.record.stage is VmStage.LOST else None
    cluster.move_vm(vm, VmTrigger.HOLDER_LOST, lost_ms=int(cluster.now) if since is None else since)


def _die(cluster: Cluster, vm: VmNode, node: HostNode, proof: Proof) -> None:
    """Whatever copies of ``vm`` the proof covers are over."""
    copies = tuple(copy for copy in vm.record.copies if not _dies_with(vm, copy, proof))
    if copies != vm.record.copies:
        lose(cluster, vm)  # found there after the host was judged, or nobody was judged
        note_ended(cluster, vm, copies, node, proof)
        _remove_copies(cluster, vm, copies, proof)


def reconcile(cluster: Cluster, vm: VmNode) -> None:
    """A VM that is read from the records after its hosts: what happened to them happened to it."""
    for host_id in sorted({copy.host_id for copy in vm.record.copies}):
        node = cluster.hosts.get(host_id)
        if node is None:
            continue
        incident = node.record.incident
        if incident is not None:
            lose(cluster, vm)
            for proof in incident.proofs:
                _die(cluster, vm, node, proof)
        for copy in vm.record.copies:
            # One that was proven dead and has not come up anew died by that proof, as far as it goes.
            over = copy.boot != node.record.boot and copy.boot in node.record.dead_boots
            if copy.host_id == host_id and over and node.record.boot is not None:
                assert copy.boot is not None
                proof = _new_boot_proof(cluster, node, copy.boot, node.record.boot)
                _die(cluster, vm, node, proof)


def _dies_with(vm: VmNode, copy: PossibleCopy, proof: Proof) -> bool:
    """A copy without a boot was made before starts named one: it can't be of a boot not yet seen."""
    if proof.kind is ProofKind.LEASE and not domains_of(vm).issubset(proof.domain_ids):
        return False  # it says nothing about a copy that writes elsewhere as well (P2)
    return copy.host_id == proof.host_id and copy.boot in (None, proof.boot)


def domains_of(vm: VmNode) -> frozenset[StorageDomainId]:
    """Where it has disks."""
    return frozenset(
        StorageDomainId(feature.name)
        for feature in vm.config.features
        if feature.kind is FeatureKind.STORAGE
    )


def poison(cluster: Cluster, node: HostNode, incident: Incident) -> None:
    """Of all domains that the host's copies have disks in (P2)."""
    domains = frozenset[StorageDomainId]().union(
        *(domains_of(vm) for vm in may_hold(cluster, node))
    )
    cluster.order(
        Poison(host_id=node.id, boot=incident.boot, incident=incident.number, domain_ids=domains)
    )


def _remove_copies(
    cluster: Cluster, vm: VmNode, copies: tuple[PossibleCopy, ...], proof: Proof
) -> None:
    deaths = vm.record.deaths
    if proof.kind is not ProofKind.RELEASED and vm.state_host in (None, proof.host_id):
        deaths = with_death(cluster, vm, proof.host_id)
    if vm.state_host == proof.host_id:
        vm.state, vm.state_host, vm.guest_agent = VmState.UNKNOWN, None, None
    start, attempts = vm.record.start, vm.record.attempts
    if start is not None and (start.host_id, start.boot) == (proof.host_id, proof.boot):
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


STILL_WANTED = frozenset(
    {
        ReleaseCause.HOST_SHUTDOWN,
        ReleaseCause.HOST_BOOTED,
        ReleaseCause.LEASE_LOST,
        ReleaseCause.SUPERSEDED,
        ReleaseCause.IO_ERROR,
        None,
    }
)
"""Releases that say nothing against starting it elsewhere."""


def _stays_down(vm: VmNode) -> bool:
    """Its host was only thought dead, and says that it ended there otherwise: nothing died that has to be brought back."""
    given_back = vm.record.given_back
    if given_back is None or vm.record.proofs:
        return False
    return given_back.cause not in STILL_WANTED


def settle_lost(cluster: Cluster, vm: VmNode) -> None:
    """If nobody may hold a lost VM any more, it may be started, or needn't be."""
    if vm.record.copies or vm.record.stage is not VmStage.LOST:
        return
    cluster.move_vm(vm, VmTrigger.ALL_PROVEN, ready_ms=int(cluster.now), migration=None)
    if vm.protected and _stays_down(vm):
        cluster.move_vm(vm, VmTrigger.UNWANTED, lost_ms=None)
        return
    if not vm.protected:
        cluster.tell("vm.not_recovered", vm=vm)
        cluster.move_vm(vm, VmTrigger.UNWANTED, proofs=(), lost_ms=None)
        return
    quarantine_if_due(cluster, vm)


def recent_deaths(cluster: Cluster, vm: VmNode) -> tuple[Death, ...]:
    since = cluster.now - cluster.policy.recovery.quarantine_window_ms
    return tuple(death for death in vm.record.deaths if death.at_ms > since)


def with_death(cluster: Cluster, vm: VmNode, host_id: HostId) -> tuple[Death, ...]:
    return (*recent_deaths(cluster, vm), Death(host_id=host_id, at_ms=int(cluster.now)))


def quarantine_if_due(cluster: Cluster, vm: VmNode) -> None:
    """M5. Of one that is ready."""
    if len({death.host_id for death in vm.record.deaths}) > 1:
        cluster.move_vm(vm, VmTrigger.TWO_DEATHS)
        cluster.tell("vm.quarantined", vm=vm, hosts=len(vm.record.deaths))


def alive_after_all(cluster: Cluster, node: HostNode, via: str) -> None:
    if is_cut_off(node, node.record.incident):
        return
    cluster.tell("host.alive_after_all", host=node, via=via)
    _lives_since_restore(cluster, node)
    _end_incident(cluster, node)


def _end_incident(cluster: Cluster, node: HostNode) -> None:
    incident = node.record.incident
    fence = incident.fence if incident is not None else None
    struck_ms = node.record.struck_ms
    if fence is not None:
        struck_ms = max(fence.ordered_ms, node.sent_ms or 0)
    node.set(incident=None, struck_ms=struck_ms)
    node.sent = node.sent_ms = None
    node.poison_sent = False
    node.contradicted = False
    cluster.forget_investigation(node)
    for vm in cluster.vms_held_by(node.id):
        if vm.record.stage is VmStage.LOST:
            cluster.touch_vm(
                vm
            )  # perhaps it is lost no more: its other holders are looked at as well


def holder_back(cluster: Cluster, vm: VmNode) -> None:
    """All that may hold it live: it is not lost, and a start that was under way there still is."""
    if vm.record.start is not None:
        cluster.move_vm(vm, VmTrigger.START_GOES_ON)
    elif vm.record.migration is not None:
        cluster.move_vm(vm, VmTrigger.MOVE_GOES_ON, lost_ms=None)
    else:
        cluster.move_vm(vm, VmTrigger.HOLDER_BACK, lost_ms=None, proofs=())
    cluster.plan_wanted = True


def give_up_fence(cluster: Cluster, node: HostNode, why: str) -> None:
    """The host lives on although it was ordered off: nothing was proven, and it is not tried at once again."""
    if is_cut_off(node, node.record.incident):
        return
    cluster.tell("fence.failed_host_lives", host=node, detail=why)
    _lives_since_restore(cluster, node)
    _end_incident(cluster, node)


def _disqualify(cluster: Cluster, node: HostNode, via: str) -> None:
    """A device said *off*, and then the boot gave a sign: what it says proves nothing any more (P1).

    Before the first such reading a sign says only that the order has not taken effect yet.
    """
    incident = node.record.incident
    assert incident is not None and incident.fence is not None
    said_off = any(feed.off_since_ms is not None for feed in incident.fence.feeds)
    if said_off and not incident.disqualified:
        _disprove(node, incident)
        feeds = tuple(
            replace(feed, off_since_ms=None, confirmed=False) for feed in incident.fence.feeds
        )
        node.set_incident(fence=replace(incident.fence, feeds=feeds), disqualified=True)
        cluster.tell("fence.contradicted", host=node, via=via)


def _disprove(node: HostNode, incident: Incident) -> None:
    """Whatever comes of this incident: who said *off* in it proves nothing until it passes a test again."""
    fence = incident.fence
    feeds = fence.feeds if fence is not None else ()
    liars = {feed.device for feed in feeds if feed.off_since_ms is not None}
    record = node.record
    if liars - set(record.disproved_devices):
        node.set(
            tested_devices=tuple(one for one in record.tested_devices if one not in liars),
            identified_devices=tuple(one for one in record.identified_devices if one not in liars),
            disproved_devices=(
                *(one for one in record.disproved_devices if one not in liars),
                *sorted(liars),
            ),
        )


def _contradiction(cluster: Cluster, node: HostNode, via: str) -> None:
    """The sign may also be of a boot whose incident is over. That disproves no device: the incident ended because the host
    reported a next boot, by which the former one is dead whatever its device had said (P4), so this sign was under way since
    before; and which devices had said *off* ended with the incident. It is told all the same."""
    if node.contradicted:
        return  # once per process and host: the beat comes twice a second
    if node.record.incident is not None:
        _disprove(node, node.record.incident)
    node.contradicted = True
    cluster.tell("host.alive_though_proven_dead", host=node, via=via)


def _revive(cluster: Cluster, node: HostNode, incident: Incident) -> None:
    """Its boot was proven dead, and lives. Nothing is judged by that proof any more, and what it ended may run there."""
    node.set(dead_boots=tuple(one for one in node.record.dead_boots if one != incident.boot))
    if incident.settled:
        unsettle(cluster, node)
    for ended in incident.ended:
        vm = cluster.vms.get(ended.vm_id)
        if vm is not None and ended.copy not in vm.record.copies:
            _may_run_after_all(cluster, vm, node, ended)
    _end_incident(cluster, node)
    cluster.touch(node)


def _lives_since_restore(cluster: Cluster, node: HostNode) -> None:
    """What was proven in another timeline is void, and what it may run it tells itself (M2); but what was ordered by that
    proof had been ordered."""
    incident = node.record.incident
    assert incident is not None, f"{node.config.name}: no incident that could be over"
    for ended in incident.ended:
        vm = cluster.vms.get(ended.vm_id)
        held = vm is None or ended.copy in vm.record.copies
        if vm is not None and not held and superseding(vm, ended) is not None:
            _may_run_after_all(cluster, vm, node, ended)


def _may_run_after_all(cluster: Cluster, vm: VmNode, node: HostNode, ended: EndedCopy) -> None:
    record, copy = vm.record, ended.copy
    deaths = tuple(one for one in record.deaths if one.host_id != node.id)
    newer = superseding(vm, ended)
    if newer is None:
        if not _start_found(cluster, vm, ended):
            holds(cluster, vm, node, copy)
        cluster.set_vm(vm, deaths=deaths)
        cluster.tell("vm.lives_after_all", vm=vm, host=node)
        return
    if record.stage is VmStage.READY:
        holds(cluster, vm, node, copy)  # no start goes out before it has ended (G1)
    copies = vm.record.copies if copy in vm.record.copies else (*record.copies, copy)
    due = SupersededCopy(copy=copy, proof=ended.proof, newer=newer, order_id=cluster.next_order())
    cluster.set_vm(vm, copies=copies, superseded=(*record.superseded, due), deaths=deaths)
    cluster.tell(
        "vm.superseded_copy_lives",
        host=node,
        vm=vm,
        incarnation=copy.incarnation,
        newer=newer,
    )


def _start_found(cluster: Cluster, vm: VmNode, ended: EndedCopy) -> bool:
    """A start whose order may have been lost on the way to a host that seemed dead is taken back: by itself that host would
    never say a word of it. False: it was none, or others may hold the VM."""
    record = vm.record
    if ended.start is None or record.start is not None or record.copies:
        return False
    return cluster.move_vm(
        vm,
        VmTrigger.START_FOUND,
        start=ended.start,
        copies=(ended.copy,),
        proofs=tuple(one for one in record.proofs if one != ended.proof),
        given_back=None,
    )


def holds(cluster: Cluster, node: VmNode, host: HostNode, copy: PossibleCopy) -> None:
    """``host`` may have that copy, otherwise than by an order of ours that stands: nobody else is ordered to start it."""
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


def _bury(node: HostNode, boot: BootId) -> None:
    if boot not in node.record.dead_boots:
        node.set(dead_boots=(*node.record.dead_boots, boot)[-DEAD_BOOTS_KEPT:])
    if boot in node.record.next_boots:
        node.set(next_boots=tuple(one for one in node.record.next_boots if one != boot))
