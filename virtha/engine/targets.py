"""Whether a host may be given starts now, and from when on it may again."""

from virtha.engine.capacity import Feature, FeatureKind, TargetHost, Unfit
from virtha.engine.cuts import seen_by_ceph, shut_out_of
from virtha.engine.machine import Verdict
from virtha.engine.restored import has_told, is_missing, settle, settles_ms, tell_missing
from virtha.engine.state import Cluster, HostNode
from virtha.engine.struck import strikes_until_ms
from virtha.engine.verdict import silence_base_ms
from virtha.model.evidence import ProcessKind
from virtha.model.ids import BootId
from virtha.model.time import Millis

LEAVING_MS = 600_000
"""A host that still lives then has had its shutdown called off: systemd gives guests half of that by default."""


def refresh_target(cluster: Cluster, node: HostNode) -> None:
    """Whether it is a place for starts right now, and what it has to give."""
    config, survey = node.config, node.survey
    storage: frozenset[Feature] = frozenset()
    if survey is not None:
        usable = survey.storage_domains - cluster.not_shared.keys() - shut_out_of(node)
        storage = frozenset(Feature(FeatureKind.STORAGE, one) for one in usable) | frozenset(
            Feature(FeatureKind.CEPH, one.fsid)
            for one in seen_by_ceph(node, survey.boot)
            if one.domain_id in usable
        )
    target = TargetHost(
        id=node.id,
        name=config.name,
        number=config.number,
        memory_bytes=config.memory_bytes,
        reserved_bytes=config.reserved_bytes,
        cpus=config.cpus,
        features=config.features | storage,
        unfit=_unfit(cluster, node),
    )
    if target != cluster.capacity.target(node.id):
        cluster.capacity.host_changed(target)
        cluster.plan_wanted = True


def goes_down(cluster: Cluster, node: HostNode, boot: BootId) -> None:
    """It gave a VM back because it is being shut down: nothing starts there."""
    if boot == node.record.boot:
        node.leaving_ms = Millis(cluster.now)
        cluster.touch(node)
        refresh_target(cluster, node)


def told(cluster: Cluster, node: HostNode) -> None:
    """Its survey came."""
    if node.untold:
        has_told(cluster, node)
    else:
        cluster.await_no_more(node.id)


def without_guardian(node: HostNode) -> bool:
    """Its agent is connected and a witness sees it, but its guardian does not beat: no grant can be given there (G2),
    and nobody would end its VMs."""
    return node.verdict is Verdict.ISOLATED and ProcessKind.AGENT in node.sessions


def struck_until_ms(cluster: Cluster, node: HostNode) -> int:
    """Until then an order to its power devices may be under way that was given before it came back (J7)."""
    return strikes_until_ms(cluster, node.record.struck_ms) if node.record.struck_ms else 0


def look_at_waits(cluster: Cluster, node: HostNode) -> None:
    """In each look at a host: what keeps it from being a target, or others from being one, and ends by itself."""
    if node.leaving_ms is not None:
        _look_at(cluster, node, node.leaving_ms + LEAVING_MS)
        if cluster.now >= node.leaving_ms + LEAVING_MS:
            node.leaving_ms = None
            refresh_target(cluster, node)
    settled_ms = settles_ms(cluster, node)
    if settled_ms is not None:
        _look_at(cluster, node, settled_ms)
        if (node.sign_ms or 0) >= settled_ms:
            settle(cluster, node)
    if is_missing(node):
        missing_ms = silence_base_ms(cluster, node)
        _look_at(cluster, node, missing_ms)
        if cluster.now >= missing_ms:
            tell_missing(cluster, node)
    if node.record.struck_ms:
        until_ms = struck_until_ms(cluster, node)
        _look_at(cluster, node, until_ms)
        if cluster.now >= until_ms:
            node.set(struck_ms=0)  # said of no later moment: its looks may be the short ones again
            cluster.changed_hosts.add(node.id)
        target = cluster.capacity.target(node.id)
        if target is not None and target.unfit is Unfit.RETURNING:
            refresh_target(cluster, node)


def _look_at(cluster: Cluster, node: HostNode, at_ms: int) -> None:
    if at_ms > cluster.now:
        cluster.wake_host(node, at_ms)


def _unfit(cluster: Cluster, node: HostNode) -> Unfit | None:
    if node.verdict is Verdict.AGENT_DOWN:
        return Unfit.DISCONNECTED
    if node.verdict in (Verdict.SUSPECT, Verdict.ISOLATED) and ProcessKind.AGENT in node.sessions:
        return Unfit.GUARDIAN
    if node.verdict is not Verdict.ALIVE or node.record.incident is not None:
        return Unfit.DOWN
    if node.record.maintenance is not None:
        return Unfit.MAINTENANCE
    if node.leaving_ms is not None:
        return Unfit.LEAVING
    if node.survey is None or node.survey.boot != node.record.boot:
        return Unfit.RETURNING
    if cluster.now < struck_until_ms(cluster, node):
        return Unfit.RETURNING
    if not node.survey.gate_in_force:
        return Unfit.GATE
    if not node.libvirt_answers:
        return Unfit.LIBVIRT
    return None
