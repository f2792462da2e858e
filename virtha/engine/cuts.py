"""How Ceph sees a host, and of what it is shut out (P3): looked up in its record, and nothing decided."""

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.ending import END_EVERY_MS
from virtha.engine.events import HostSurveyed
from virtha.engine.records import Incident, SeenByCeph, StorageCut
from virtha.engine.state import Cluster, HostNode
from virtha.model.ids import BootId, StorageDomainId
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import Millis


def note_sights(node: HostNode, event: HostSurveyed) -> None:
    """What its survey says, in its present boot. An address that it had before in this boot stays: a QEMU that was started
    with it has it yet."""
    kept = {(one.domain_id, one.fsid): one for one in seen_by_ceph(node, event.boot)}
    for domain_id, sight in event.ceph.items():
        if sight.boot != event.boot:
            continue  # what its former boot told stands in the store until this one tells
        key = (domain_id, sight.fsid)
        before = kept.get(key)
        seen = SeenByCeph(
            boot=event.boot,
            domain_id=domain_id,
            fsid=sight.fsid,
            addresses=tuple(sorted(sight.addresses)),
            obstacle=sight.obstacle,
            lacks=sight.lacks,
        )
        if before is not None:
            both = tuple(sorted({*before.addresses, *seen.addresses}))
            seen = replace(seen, addresses=both, obstacle=seen.obstacle or before.obstacle)
        kept[key] = seen
    ceph = tuple(kept[key] for key in sorted(kept))
    if ceph != node.record.ceph:
        node.set(ceph=ceph)


def seen_by_ceph(node: HostNode, boot: BootId | None) -> Iterator[SeenByCeph]:
    return (one for one in node.record.ceph if one.boot == boot)


def clusters_by_domain(node: HostNode, boot: BootId) -> dict[StorageDomainId, str]:
    """The fsid of each domain. One that was told to be in two clusters in one boot is in neither."""
    found: dict[StorageDomainId, set[str]] = {}
    for one in seen_by_ceph(node, boot):
        found.setdefault(one.domain_id, set()).add(one.fsid)
    return {key: fsid for key, fsids in found.items() if len(fsids) == 1 for fsid in fsids}


def shut_out_of(node: HostNode) -> frozenset[StorageDomainId]:
    """Domains in clusters that it is, or may be, shut out of: by its addresses, in whatever boot it is."""
    out = {cut.fsid for cut in node.record.cuts if cut.may_stand}
    if not out:
        return frozenset()
    return frozenset(one.domain_id for one in node.record.ceph if one.fsid in out)


def may_be_cut_off(node: HostNode, incident: Incident) -> bool:
    """An order to shut that boot out went out: it can't be taken back before the next boot, so it is gone through with."""
    return any(cut.boot == incident.boot and cut.may_stand for cut in node.record.cuts)


def is_cut_off(node: HostNode, incident: Incident | None) -> bool:
    """It was proven to write nothing more, or is about to be, and nothing else says that it is dead: that it lives contradicts
    nothing, and ends nothing."""
    if incident is None:
        return False
    if incident.proofs:
        return all(proof.kind is ProofKind.STORAGE_FENCE for proof in incident.proofs)
    return may_be_cut_off(node, incident)


def is_end_due(cluster: Cluster, node: HostNode) -> bool:
    """It gave a sign just now, so somebody may be there who ends old copies, and was not told to."""
    alive_ms, asked_ms = node.cutting.alive, node.cutting.ends
    if alive_ms is None or cluster.now - alive_ms >= END_EVERY_MS:
        return False
    return asked_ms is None or cluster.now - asked_ms >= END_EVERY_MS


def lives_cut_off(cluster: Cluster, node: HostNode, via: str) -> None:
    """Told once in an incident, whoever leads: it needs a reboot."""
    incident, code = node.record.incident, "host.lives_cut_off"
    node.cutting = replace(node.cutting, alive=Millis(cluster.now))
    if incident is not None and incident.ended and is_end_due(cluster, node):
        cluster.touch(node)
    if incident is not None and code not in incident.told_refusals:
        node.set_incident(told_refusals=(*incident.told_refusals, code))
        cluster.changed_hosts.add(node.id)
        cluster.tell(code, host=node, via=via)


def tell_left(cluster: Cluster, node: HostNode, cut: StorageCut) -> None:
    """It is configured no more, so nobody hears of its next boot."""
    addresses = ", ".join(cut.addresses)
    cluster.tell("fence.storage.left", host=node, cluster=cut.fsid, addresses=addresses)


def set_cut(node: HostNode, cut: StorageCut) -> None:
    """One for each cluster and boot; the newest last."""
    key = (cut.fsid, cut.boot)
    others = tuple(one for one in node.record.cuts if (one.fsid, one.boot) != key)
    node.set(cuts=(*others, cut))


def drop_cut(node: HostNode, cut: StorageCut) -> None:
    node.set(cuts=tuple(one for one in node.record.cuts if one != cut))


def clusters_of(proofs: Iterable[Proof]) -> frozenset[Feature]:
    """What a host must have that starts a VM by these: it has to understand what it is to wait for."""
    return frozenset(Feature(FeatureKind.CEPH, one.fsid) for proof in proofs for one in proof.maps)
