"""A failure that stands still: nothing is done about a host that is judged dead, while VMs wait for its end (X1, F4)."""

from collections.abc import Iterable

from virtha.engine.state import Cluster, HostNode
from virtha.model.time import Millis
from virtha.model.vm import Reason

WITHHELD_TOLD_MS = 60_000
"""Brakes, other observers and newcomers have mostly spoken by then. What keeps VMs down for longer is somebody's business."""
_TOLD_BY_OTHERS = frozenset(
    {
        "fence.blocked.action_nothing",
        "fence.blocked.cap",
        "fence.blocked.disks_change",
        "fence.blocked.struck_another",
    }
)


def tell_if_withheld(cluster: Cluster, node: HostNode, waiting: Iterable[Reason | None]) -> None:
    """``waiting``: what its incident waits for. Each reason once in an incident, whoever leads, when it has lasted."""
    why = _withheld(cluster, node, waiting)
    if why is None:
        node.withheld = None
        return
    if node.withheld is None or node.withheld[0] != why:
        node.withheld = (why, cluster.now)
    incident = node.record.incident
    assert incident is not None
    told_at = Millis(node.withheld[1] + WITHHELD_TOLD_MS)
    if why in incident.told_refusals:
        return
    if cluster.now < told_at:
        cluster.wake_host(node, told_at)
        return
    node.set_incident(told_refusals=(*incident.told_refusals, why))
    cluster.tell("fence.withheld", host=node, vm=None, why=why)


def _withheld(cluster: Cluster, node: HostNode, waiting: Iterable[Reason | None]) -> str | None:
    incident = node.record.incident
    if incident is None or incident.proofs or incident.fence is not None:
        return None
    if not any(vm.protected for vm in cluster.vms_held_by(node.id)):
        return None
    codes = (one.code for one in waiting if one is not None)
    why = next((code for code in codes if code.startswith("fence.blocked.")), None)
    return None if why in _TOLD_BY_OTHERS else why
