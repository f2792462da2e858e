"""The second half of a reboot: on, as an intent of its own, once the proof is written (P1). No VM waits for it.

What the device said is in the record (``FenceStep``), so a new leader goes on from there. It sends an *on* again of which
the record does not say that the device took it: twice is harmless, for an *on* changes nothing at a host that has power.

A host may be proven dead otherwise while its *off* is under way, or though that never went out: by its lease, or by the
operator's word. Then it is not ordered off any more, and switched on all the same, when no *off* can strike any more.
One that is off comes back by that; one that hangs stays as it is, poisoned, and is told as not back. A host that nobody
ordered off is not switched on either.
"""

from msgspec.structs import replace

from virtha.engine.events import PowerOrdered
from virtha.engine.permits import hands_off, own_lease
from virtha.engine.power_orders import (
    late_pause,
    note_too_late,
    off_strikes_until_ms,
    ordered_ms,
    send,
)
from virtha.engine.records import Fence, FenceStep, Incident
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.struck import strikes_until_ms
from virtha.engine.targets import struck_until_ms
from virtha.model.facts import Result
from virtha.model.power import TOO_LATE, PowerAction
from virtha.model.vm import Reason

RETURN_MS = 900_000
"""A host that took its *on* and gave no sign for so long is told as not back. Large servers test their memory for up to ten
minutes before they boot; no policy bounds it, for nothing is decided by it."""


def after_proof(cluster: Cluster, node: HostNode, incident: Incident) -> Reason | None:
    """One look at a host that is proven dead; the answer is what its *on* waits for, or how it ended."""
    fence = incident.fence
    if fence is None or not fence.on_after:
        return None
    match fence.step:
        case FenceStep.ON_FAILED:
            return reason("fence.blocked.on_failed")
        case FenceStep.NOT_BACK:
            return reason("fence.blocked.not_back")
        case FenceStep.ON_TAKEN:
            return _await_return(cluster, node, fence)
        case FenceStep.ON_ORDERED if node.sent == fence.order_id:
            return _await_answer(cluster, node, fence)
        case _:
            return _not_yet(cluster, node, incident, fence) or _order_on(cluster, node, fence)


def _not_yet(cluster: Cluster, node: HostNode, incident: Incident, fence: Fence) -> Reason | None:
    """Why it may not be switched on now. Asked before every *on*, a former leader's included."""
    held = hands_off(cluster, node)
    if held is not None:
        return held
    for feed in fence.feeds:
        if feed.device in node.record.foreign_devices:
            return reason("fence.blocked.foreign_device", device=feed.device)
    safe_ms = _no_off_from_ms(cluster, node, fence)
    if cluster.now < safe_ms:
        cluster.wake_host(node, safe_ms)
        return reason("fence.waiting.former_orders")
    pause = late_pause(cluster, node, incident)
    if pause is not None:
        return pause
    short = own_lease(cluster)
    if short is not None:
        # Nobody looks at a proven host otherwise, and a renewal touches none.
        cluster.wake_host(node, cluster.now + cluster.policy.detection.check_interval_ms)
    return short


def _no_off_from_ms(cluster: Cluster, node: HostNode, fence: Fence) -> int:
    """From then on no *off* can be on its way to it, which would end the new boot (J7): a former leader's, our own of this
    fence, or one of an incident before."""
    return max(
        strikes_until_ms(cluster, int(cluster.began_ms)),
        off_strikes_until_ms(cluster, node, fence),
        struck_until_ms(cluster, node),
    )


def _order_on(cluster: Cluster, node: HostNode, fence: Fence) -> Reason:
    on = replace(
        fence,
        action=PowerAction.ON,
        step=FenceStep.ON_ORDERED,
        order_id=cluster.next_order(),
        ordered_ms=int(cluster.now),
    )
    node.set_incident(fence=on)
    send(cluster, node, on)
    return reason("fence.waiting.on")


def _await_answer(cluster: Cluster, node: HostNode, fence: Fence) -> Reason:
    # One that came while this process slept may still lie unread.
    since_ms = max(ordered_ms(node, fence), cluster.began_ms)
    over_ms = since_ms + cluster.policy.fencing.order_deadline_ms
    if cluster.now >= over_ms:
        node.set_incident(fence=replace(fence, step=FenceStep.ON_FAILED))
        cluster.tell("fence.on_failed", host=node, why="power.no_answer")
        return reason("fence.blocked.on_failed")
    cluster.wake_host(node, over_ms)
    return reason("fence.waiting.on")


def _await_return(cluster: Cluster, node: HostNode, fence: Fence) -> Reason:
    """What ends the waiting is the new boot, which ends the incident. It may be back already, and on its way to a leader
    that has just begun (J1)."""
    until_ms = max(fence.next_ms, cluster.began_ms + cluster.policy.detection.reconnect_ms)
    if cluster.now < until_ms:
        cluster.wake_host(node, until_ms)
        return reason("fence.waiting.return")
    node.set_incident(fence=replace(fence, step=FenceStep.NOT_BACK))
    cluster.tell("fence.not_back", host=node, after_ms=cluster.now - fence.ordered_ms)
    return reason("fence.blocked.not_back")


def on_answered(cluster: Cluster, node: HostNode, fence: Fence, event: PowerOrdered) -> None:
    """What a device says of the *on*. One that took it is enough for a host to come back; each that did not is told."""
    cluster.touch(node)
    if event.result is Result.REFUSED and event.error == TOO_LATE:
        if fence.step in (FenceStep.ON_ORDERED, FenceStep.ON_TAKEN):
            node.set_incident(fence=replace(fence, step=FenceStep.ON_DUE))
            note_too_late(cluster, node, fence)
    elif event.result is Result.OK:
        if fence.step in (FenceStep.ON_ORDERED, FenceStep.ON_FAILED):
            until_ms = int(cluster.now) + RETURN_MS
            node.set_incident(fence=replace(fence, step=FenceStep.ON_TAKEN, next_ms=until_ms))
    elif fence.step in (FenceStep.ON_ORDERED, FenceStep.ON_TAKEN):
        cluster.tell("fence.on_failed", host=node, why=event.error or "power.failed")
        if fence.step is FenceStep.ON_ORDERED:
            node.set_incident(fence=replace(fence, step=FenceStep.ON_FAILED))
