"""Hosts after a restored database, until each has told what it runs or is proven dead (M2).

The restored records may be older than the hosts: whom they call dead may have come back since and run anything. So what they
know of a host's failure is judged anew: no proof of theirs, no order and no reading counts towards a proof any more,
only what came in this timeline of the database does. Who is proven dead in it has answered, whoever leads.

A host that neither tells nor is proven dead holds every start of the cluster. So it is fenced like one that VMs are lost
with, as soon as any waits for it; where that can't be done, the operator's word ends the wait (P6).
"""

from msgspec.structs import replace

from virtha.engine.events import EngineHost
from virtha.engine.records import HostRecord, VmStage
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.policy import PermissionGrade
from virtha.model.vm import Reason


def is_outdated(config: EngineHost, record: HostRecord) -> bool:
    """Whether its failure was judged in another timeline than this one, which it has told nothing in."""
    incident = record.incident
    if not config.untold or incident is None:
        return False
    return not config.timeline or incident.timeline != config.timeline


def has_answered(config: EngineHost, record: HostRecord) -> bool:
    """It need not tell any more: it is proven dead in this timeline."""
    incident = record.incident
    return incident is not None and incident.proof is not None and not is_outdated(config, record)


def judged_anew(cluster: Cluster, config: EngineHost, record: HostRecord) -> HostRecord:
    """Of an outdated incident only what speaks against a proof is left, and since when the host was silent, so that it
    isn't counted as fallen now (J5)."""
    incident = record.incident
    assert incident is not None, f"{config.name}: no incident to judge anew"
    was_proven = incident.proof is not None
    anew = replace(
        incident,
        number=cluster.next_incident(),
        began_ms=int(cluster.now),
        timeline=config.timeline,
        fence=None,
        proofs=(),
        poisoned=False,
        storage_fenced=False,
        levels_told=0,
        once_proven=was_proven or incident.once_proven,
    )
    struck_ms = record.struck_ms
    if incident.fence is not None:
        struck_ms = max(struck_ms, incident.fence.ordered_ms)  # that order may still strike (J7)
    dead_boots = record.dead_boots
    if was_proven:
        # It may live in that very boot for all that is known now: then it is heard, and tells.
        dead_boots = tuple(one for one in dead_boots if one != incident.boot)
    return replace(record, incident=anew, struck_ms=struck_ms, dead_boots=dead_boots)


def may_hold(cluster: Cluster, node: HostNode) -> list[VmNode]:
    """The VMs that a proof of its death must be about. Of a host that has not told: any, whatever the records say."""
    if node.untold:
        return [cluster.vms[key] for key in sorted(cluster.vms)]
    return cluster.vms_held_by(node.id)


def bars_starts(cluster: Cluster, node: HostNode) -> bool:
    """Somebody waits for its word who may have hosts fenced for it. Rare enough to ask all: only of silent hosts that have
    not told since a restore."""
    if not node.untold or node.told_ms is not None or node.id not in cluster.awaited:
        return False
    return any(
        (vm.record.stage in (VmStage.LOST, VmStage.READY) or vm.half is not None)
        and vm.protected
        and vm.config.grade in (None, PermissionGrade.FENCE)
        for vm in cluster.vms.values()
    )


def why_inventory(cluster: Cluster) -> tuple[Reason, ...]:
    """Whose word is awaited, and for whom an operator may have to give it (P6)."""
    nodes = [cluster.hosts[one] for one in cluster.awaited]
    names = sorted(node.config.name for node in nodes)
    silent = sorted(
        node.config.name for node in nodes if node.untold and node.record.incident is not None
    )
    return (
        reason("recovery.waiting.inventory", hosts=", ".join(names)),
        *(reason("recovery.waiting.restored", host=one) for one in silent),
    )
