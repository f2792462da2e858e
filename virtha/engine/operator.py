"""The operator's word about a host (P6): bound to its boot and incident, and refused while anything speaks
against it, unless forced with a reason. Poison and storage fence go out all the same."""

from virtha.engine.cut_removed import cut_removed, plan_removed_cuts
from virtha.engine.events import BrakeLifted, DeathConfirmed
from virtha.engine.incident import poison, proven, sides_left
from virtha.engine.permits import lift_brake
from virtha.engine.removal import hold_fast, is_removed, keep, node_of
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.verdict import last_sign_ms
from virtha.model.evidence import PowerState
from virtha.model.proof import Proof, ProofKind
from virtha.model.vm import Reason

LIFE_MS = 60_000
"""A witness that saw life this recently speaks against the operator's word (P6)."""


def death_confirmed(cluster: Cluster, event: DeathConfirmed) -> None:
    removed = is_removed(cluster, event.host_id)
    node = node_of(cluster, event.host_id) if removed else cluster.hosts.get(event.host_id)
    if node is None:
        return
    why_not = _refusal(cluster, node, event, watched=not removed)
    if why_not is not None:
        cluster.tell("host.confirmation_refused", host=node, by=event.by, why=why_not.code)
        return
    incident = node.record.incident
    assert incident is not None
    # The word may be wrong: what can keep a living copy from writing is done as well.
    if not incident.poisoned:
        node.set_incident(poisoned=True)
        poison(cluster, node, incident)
    if not incident.storage_fenced:
        node.set_incident(storage_fenced=True)
    detail = event.by if event.force_reason is None else f"{event.by}, forced: {event.force_reason}"
    proven(
        cluster,
        node,
        Proof(
            kind=ProofKind.OPERATOR,
            host_id=node.id,
            boot=incident.boot,
            at_ms=int(cluster.now),
            detail=detail,
        ),
    )
    if removed:
        keep(cluster, node)
        cut_removed(cluster, node.id)
        plan_removed_cuts(cluster)  # its incident may become another boot's in the next line
        hold_fast(cluster, node_of(cluster, node.id))
    else:
        cluster.touch(node)


def _refusal(
    cluster: Cluster, node: HostNode, event: DeathConfirmed, *, watched: bool
) -> Reason | None:
    incident = node.record.incident
    if incident is None or incident.number != event.incident or incident.boot != event.boot:
        return reason("confirm.refused.other_incident")
    if incident.proof is not None and not sides_left(cluster, node):
        return reason("confirm.refused.proven_already")
    if event.force_reason is not None:
        return None
    if not watched:
        return reason("confirm.refused.unwatched")  # whatever it does, nobody would have seen it
    since = cluster.now - LIFE_MS
    if max(last_sign_ms(node), node.disks_changed_ms or 0) > since:
        return reason("confirm.refused.life_seen")
    if cluster.began_ms > since:
        return reason("confirm.refused.just_begun")  # it could not have seen any
    if any(state is PowerState.ON for state, _ in node.power.values()):
        return reason("confirm.refused.power_on")
    return None


def brake_lifted(cluster: Cluster, event: BrakeLifted) -> None:
    lift_brake(cluster, by=event.by)
