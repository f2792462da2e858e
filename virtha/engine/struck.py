"""Whom our orders may have struck instead (P1, ADR 0011): noted at each order and at each host's return.

A device that does not name its host may be another one's. Then that one falls silent at our order, and comes back in a
new boot. It is noted in the incident, so that a later leader knows it too and its next boots don't hide it; ``permits``
refuses further orders, and the operator is told once. A host that fell at another time was not struck by us.

Nobody knows when a host fell that no leader saw to the end: it had been heard by a former one, or before we slept. It is
taken for struck, but only for a time: else any restart of a server could keep a host from being fenced for good.
"""

from msgspec.structs import replace

from virtha.engine.records import Incident, Orders, Struck
from virtha.engine.state import Cluster, HostNode
from virtha.engine.verdict import last_sign_of_boot_ms
from virtha.model.vm import Reason

UNSURE_MS = 600_000
"""The longest pause between two rounds of orders: time to read the event and to act on it."""
ORDERS_KEPT = 32
"""Rounds of orders of one incident; older ones count as one."""


def strikes_until_ms(cluster: Cluster, given_ms: int) -> int:
    """Until then an *off* that was decided at ``given_ms``, or before, may still take a host's power: it may be sent for as
    long as its evidence counts (``power_orders.not_after_ms``), and take its deadline after that.

    ``given_ms=cluster.began_ms`` bounds what any former leader ordered (J7). What it decides after we lead is refused by
    the store, so never sent; so what it did send was decided before that, however much of its own lease was left.
    """
    policy = cluster.policy
    return given_ms + policy.detection.evidence_max_age_ms + policy.fencing.order_deadline_ms


def note_order(cluster: Cluster, node: HostNode) -> None:
    """It is being ordered off now; again as well, by whoever leads."""
    incident = node.record.incident
    assert incident is not None, f"{node.config.name}: ordered off without an incident"
    now, orders = int(cluster.now), incident.orders
    if orders and now <= strikes_until_ms(cluster, orders[-1].last_ms):
        orders = (*orders[:-1], replace(orders[-1], last_ms=now))
    else:
        orders = (*orders, Orders(first_ms=now, last_ms=now))
    if len(orders) > ORDERS_KEPT:
        orders = (replace(orders[1], first_ms=orders[0].first_ms), *orders[2:])
    node.set_incident(orders=orders)


def note_return(cluster: Cluster, other: HostNode) -> None:
    """``other`` comes in a new boot; nothing of its former one is forgotten yet."""
    earliest_ms, latest_ms = _fell_ms(cluster, other)
    for node in cluster.hosts.values():
        incident = node.record.incident
        if node is other or incident is None or incident.proof is not None:
            continue
        if any(
            orders.first_ms - cluster.policy.detection.suspect_after_ms <= latest_ms
            and earliest_ms <= strikes_until_ms(cluster, orders.last_ms)
            for orders in incident.orders
        ):
            _note(cluster, node, incident, other, sure=earliest_ms == latest_ms)


def _fell_ms(cluster: Cluster, other: HostNode) -> tuple[int, int]:
    """Between which moments; the same twice where it was heard to the last."""
    sign_ms = last_sign_of_boot_ms(other)
    began_ms = max(cluster.began_ms, other.observe_from_ms)
    suspect_ms = cluster.policy.detection.suspect_after_ms
    if sign_ms > began_ms + suspect_ms:
        return sign_ms, sign_ms
    # Of what is read first after a sleep nobody knows how old it is.
    earliest_ms = sign_ms if sign_ms > cluster.began_ms + suspect_ms else 0
    incident = other.record.incident
    return earliest_ms, int(cluster.now) if incident is None else incident.began_ms


def _note(
    cluster: Cluster, node: HostNode, incident: Incident, other: HostNode, *, sure: bool
) -> None:
    before = next((one for one in incident.struck if one.host_id == other.id), None)
    if before is not None and before.until_ms is None:
        return
    until_ms = None if sure else int(cluster.now) + UNSURE_MS
    told = before is not None and before.told
    mine = Struck(host_id=other.id, until_ms=until_ms, told=told)
    others = (one for one in incident.struck if one.host_id != other.id)
    node.set_incident(struck=(*others, mine))
    cluster.touch(node)


def struck_by(cluster: Cluster, node: HostNode, level: int) -> HostNode | None:
    """One that a further order to that level might strike again. Not one whose devices all name it, for none of them
    is another host's."""
    incident = node.record.incident
    known = node.record.identified_devices
    if incident is None or all(feed.device in known for feed in node.config.power[level].feeds):
        return None
    for one in incident.struck:
        other = cluster.hosts.get(one.host_id)
        if other is None or _names_itself(other):
            continue
        if one.until_ms is None or cluster.now < one.until_ms:
            return other
    return None


def _names_itself(other: HostNode) -> bool:
    feeds = [feed.device for level in other.config.power for feed in level.feeds]
    return bool(feeds) and all(one in other.record.identified_devices for one in feeds)


def tell_if_struck(cluster: Cluster, node: HostNode, why: Reason) -> None:
    """``why`` no further order goes out: for the sake of which host, once for each of them."""
    incident = node.record.incident
    if incident is None or why.code != "fence.blocked.struck_another":
        return
    for one in incident.struck:
        other = cluster.hosts.get(one.host_id)
        if other is not None and other.config.name == why.fields["other"] and not one.told:
            told = tuple(
                replace(each, told=True) if each == one else each for each in incident.struck
            )
            node.set_incident(struck=told)
            cluster.tell("fence.struck_another", host=node, other=other.config.name)
