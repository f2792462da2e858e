"""Copies that a proof ended, for as long as it may turn out to be wrong (G4)."""

from msgspec.structs import replace

from virtha.engine.records import EndedCopy, Start
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.model.ids import Incarnation
from virtha.model.proof import Proof
from virtha.model.vm import PossibleCopy


def note_ended(
    cluster: Cluster, vm: VmNode, left: tuple[PossibleCopy, ...], node: HostNode, proof: Proof
) -> None:
    """For as long as the incident lasts, of whose boot ``proof`` is: it may turn out to be wrong. Also of a host that was removed:
    it may be added again."""
    incident = node.record.incident
    if incident is None or incident.boot != proof.boot:
        return  # a new boot's word
    record = vm.record
    # One that was to end already is as old as it was: its newer copy came before this proof.
    newer = {due.copy: due.newer for due in record.superseded}
    gone = tuple(
        EndedCopy(
            vm_id=vm.id,
            copy=replace(copy, boot=proof.boot),
            given_out=Incarnation(newer[copy] - 1) if copy in newer else record.incarnation,
            proof=proof,
            start=record.start
            if record.start is not None and _is_its(copy, record.start)
            else None,
        )
        for copy in record.copies
        if copy not in left
    )
    node.set_incident(ended=(*incident.ended, *gone))
    if node.id in cluster.hosts:
        cluster.changed_hosts.add(node.id)


def _is_its(copy: PossibleCopy, start: Start) -> bool:
    return (copy.host_id, copy.incarnation) == (start.host_id, start.incarnation)


def never_ran(cluster: Cluster, vm: VmNode, incarnation: Incarnation) -> None:
    """A start's own host says so: what it was to replace is not superseded by it."""
    for host_id in sorted({proof.host_id for proof in vm.record.proofs}):
        node = cluster.hosts.get(host_id)
        incident = node.record.incident if node is not None else None
        if node is None or incident is None:
            continue
        ended = tuple(
            replace(one, given_out=incarnation)
            if (one.vm_id, one.given_out) == (vm.id, incarnation - 1)
            else one
            for one in incident.ended
        )
        if ended != incident.ended:
            node.set_incident(ended=ended)
            cluster.changed_hosts.add(node.id)


def superseding(vm: VmNode, ended: EndedCopy) -> Incarnation | None:
    """What was ordered elsewhere by that proof; None: nothing was."""
    record = vm.record
    if record.incarnation > ended.given_out:
        return record.incarnation
    if record.migration is not None:
        return None  # it goes on with both its sides
    # The target of its migration had been given that incarnation before the proof, and went on by it.
    moved_to = [copy.incarnation for copy in record.copies if copy not in record.guessed]
    newest = max(moved_to, default=ended.copy.incarnation)
    return newest if newest > ended.copy.incarnation else None
