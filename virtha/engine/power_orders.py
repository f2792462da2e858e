"""How a power order goes out, how long it may be under way, and what happens when it is too late.

Every *off* and *on* of a fence goes through ``send``: its record is durable before it leaves (J7), and it says itself
till when it may be carried out.
"""

from virtha.engine.events import OrderPower
from virtha.engine.records import Fence, Incident
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.struck import note_order, strikes_until_ms
from virtha.model.power import PowerAction
from virtha.model.vm import Reason

RETRY_MS = 30_000
"""Between two rounds through all levels; doubled up to ``RETRY_MS_MAX``: never an endless fast loop (F9)."""
RETRY_MS_MAX = 600_000
LATE_MS = 1_000
"""Before an order is given once more that was too late twice; doubled up to ``RETRY_MS``. The first time costs nothing:
one slow write is no reason to let VMs wait."""


def send(cluster: Cluster, node: HostNode, fence: Fence) -> None:
    """Also by a new leader: the order it finds may never have been sent, and twice is harmless."""
    node.sent, node.sent_ms = fence.order_id, cluster.now
    if fence.action is PowerAction.OFF:
        note_order(cluster, node)
    cluster.just_ordered.add(node.id)
    cluster.wake_host(node, cluster.now + 1)  # to note when it had gone out
    deadline = cluster.policy.fencing.order_deadline_ms
    not_after = not_after_ms(cluster)
    for feed in fence.feeds:
        cluster.order(
            OrderPower(
                order_id=fence.order_id,
                host_id=node.id,
                device=feed.device,
                action=fence.action,
                deadline_ms=deadline,
                not_after_ms=not_after,
            )
        )


def not_after_ms(cluster: Cluster) -> int:
    """Till when an order that is decided now may go to its device: while the evidence for it still counts, and early
    enough for its whole deadline to lie within our own lease (J7)."""
    decided_ms, policy = int(cluster.now), cluster.policy
    fresh_until_ms = decided_ms + policy.detection.evidence_max_age_ms
    lease_ms = cluster.lease_until_ms - policy.fencing.order_deadline_ms
    return max(decided_ms, min(fresh_until_ms, lease_ms))


def ordered_ms(node: HostNode, fence: Fence) -> int:
    """When it really went out, where we sent it: the record can only say when that was decided."""
    if node.sent == fence.order_id and node.sent_ms is not None:
        return node.sent_ms
    return fence.ordered_ms


def overdue(cluster: Cluster, node: HostNode, fence: Fence) -> bool:
    deadline_ms = cluster.policy.fencing.order_deadline_ms
    return cluster.now - ordered_ms(node, fence) >= deadline_ms


# Until when an off may strike


def off_strikes_until_ms(cluster: Cluster, node: HostNode, fence: Fence) -> int:
    """The same of all that was ordered *off* in this fence. One that its device confirmed, by readings after it, has struck;
    one that was too late never will."""
    if all(feed.confirmed or feed.too_late for feed in fence.feeds):
        return fence.off_until_ms
    return max(fence.off_until_ms, strikes_until_ms(cluster, ordered_ms(node, fence)))


# Orders that came too late


def retry_pause_ms(rounds: int) -> int:
    return min(RETRY_MS << min(rounds, 8), RETRY_MS_MAX)


def note_too_late(cluster: Cluster, node: HostNode, fence: Fence) -> None:
    """Whatever makes orders too late (a slow database, a full lane, a lease that ends) is likely to do it again.

    Told at the first, second, fourth one and so on, and as given up once there were as many as a device has attempts: a
    state of its own, in which they are tried on, but nobody has to wait for more mails to know (F9).
    """
    incident = node.record.incident
    assert incident is not None
    late = incident.late_orders
    pause_ms = 0 if late == 0 else min(LATE_MS << min(late - 1, 8), RETRY_MS)
    orders = late + 1
    node.set_incident(late_orders=orders, next_order_ms=int(cluster.now) + pause_ms)
    if orders & (orders - 1) == 0:
        late_ms = cluster.now - fence.ordered_ms
        cluster.tell("fence.order_too_late", host=node, late_ms=late_ms, orders=orders)
    if orders >= cluster.policy.fencing.attempts_per_device and not incident.told_late:
        node.set_incident(told_late=True)
        cluster.tell("fence.orders_late", host=node, orders=orders, action=fence.action.value)
    cluster.touch(node)


def late_pause(cluster: Cluster, node: HostNode, incident: Incident) -> Reason | None:
    """Why no order goes out yet, after others that were too late."""
    if cluster.now >= incident.next_order_ms:
        return None
    cluster.wake_host(node, incident.next_order_ms)
    pause_ms = incident.next_order_ms - cluster.now
    return reason("fence.waiting.late_orders", orders=incident.late_orders, pause_ms=pause_ms)
