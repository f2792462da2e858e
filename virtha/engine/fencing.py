"""The fencing ladder of one host: order off, read off twice, prove; else the next level, else what the policy
says. Never `cycle`: a reboot is off, proof, then on as an intent of its own (P1, ``power_on``).

Each look at a host with an open incident goes through ``plan_fence``; it reads the record and moves it on by
at most one step, so a new leader that finds the record half-way goes on from there.
"""

from msgspec.structs import replace

from virtha.engine.doubts import DISKS, awaited_before_next, doubt, may_settle
from virtha.engine.events import (
    OrderPower,
    PowerOrdered,
    ReadPower,
)
from virtha.engine.incident import alive_after_all, give_up_fence, poison, proven
from virtha.engine.permits import (
    NOT_THIS_LEVEL,
    count_order,
    first_usable_level,
    is_counted,
    known_off,
    poison_refusal,
    refusal,
    uncount_order,
    unlooked,
)
from virtha.engine.power_on import after_proof, on_answered
from virtha.engine.power_orders import (
    late_pause,
    not_after_ms,
    note_too_late,
    off_strikes_until_ms,
    ordered_ms,
    overdue,
    retry_pause_ms,
    send,
)
from virtha.engine.read_back import why_not_off
from virtha.engine.records import FeedProgress, Fence, FenceStep, Incident, OrderId
from virtha.engine.state import Cluster, HostNode, reason
from virtha.engine.storage_fence import is_wanted
from virtha.engine.struck import tell_if_struck
from virtha.engine.verdict import last_sign_ms
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.policy import FencingAction, Unreachable
from virtha.model.power import TOO_LATE, PowerAction, PowerDeviceId
from virtha.model.proof import Proof, ProofKind
from virtha.model.value import Fields
from virtha.model.vm import Reason

_TOLD_ONCE = {
    "fence.blocked.cap": "fence.capped",
    "fence.blocked.action_nothing": "fence.left_alone",
}
"""Refusals that no order of ours and no time may end soon: what somebody is told of them (F4, F7)."""


def plan_fence(cluster: Cluster, node: HostNode) -> Reason | None:
    """One look at the incident of ``node``; the answer is what it waits for, None when it is at work."""
    incident = node.record.incident
    assert incident is not None
    if incident.proof is not None:
        return after_proof(cluster, node, incident)
    _send_again(cluster, node, incident)
    fence = incident.fence
    if _is_deaf(cluster, node) and (fence is not None or unlooked(cluster, node) is None):
        _poison(cluster, node, incident)
    if fence is None:
        return _begin(cluster, node, incident)
    if _lives_on(cluster, node, fence):
        give_up_fence(cluster, node, "it gives signs of life")
        return None
    if _rewired(node, fence):
        return _again(cluster, node, fence, level=0, attempt=1)
    match fence.step:
        case FenceStep.OFF_ORDERED:
            return _await_acceptance(cluster, node, fence)
        case FenceStep.READING:
            return _read_back(cluster, node, fence)
        case FenceStep.RETRYING:
            return _retry(cluster, node, fence)
        case _:
            return None  # all other steps come after a proof


def _rewired(node: HostNode, fence: Fence) -> bool:
    """Its devices were configured anew in the meantime: what was ordered is not what would be proven."""
    if fence.step is FenceStep.RETRYING:
        return fence.level >= len(node.config.power) > 0
    if fence.level >= len(node.config.power):
        return True
    level = node.config.power[fence.level]
    return {feed.device for feed in fence.feeds} != {feed.device for feed in level.feeds}


def _send_again(cluster: Cluster, node: HostNode, incident: Incident) -> None:
    """What a former leader wrote down and may not have sent."""
    if node.poison_sent or not incident.poisoned:
        return
    if poison_refusal(cluster, node) is not None:
        return
    node.poison_sent = True
    poison(cluster, node, incident)


# Beginning


def _begin(cluster: Cluster, node: HostNode, incident: Incident) -> Reason | None:
    if cluster.policy.fencing.action is FencingAction.BLINK:
        return _blink(cluster, node, incident)
    level = first_usable_level(cluster, node) or 0
    why_not = (
        refusal(cluster, node, level)
        or unlooked(cluster, node)
        or late_pause(cluster, node, incident)
    )
    if why_not is not None:
        if unlooked(cluster, node) is None:
            if why_not.code == "fence.blocked.no_device":
                _want_storage_fence(cluster, node)  # there is no order that could fail
            elif why_not.code in NOT_THIS_LEVEL:
                _without_devices(cluster, node, incident)
        _tell_refusal(cluster, node, why_not)
        return why_not
    node.set_incident(told_written=False)  # written after an order of ours says more
    for vm in cluster.vms_held_by(node.id):
        cluster.touch_vm(vm)  # they may have named the disks that are quiet now
    _order_level(cluster, node, level=level, attempt=1, rounds=0)
    return None


def _is_deaf(cluster: Cluster, node: HostNode) -> bool:
    """No device of it has answered in as many questions as one order has attempts, or it has none: the
    lease's clock should not wait until the orders have failed as well."""
    answered = any(state is not PowerState.UNKNOWN for state, _ in node.power.values())
    return not answered and node.rounds_asked > cluster.policy.fencing.attempts_per_device


def _poison(cluster: Cluster, node: HostNode, incident: Incident) -> None:
    wanted = Unreachable.LEASE in cluster.policy.fencing.unreachable
    if not wanted or not cluster.policy.leases_in_use or incident.poisoned:
        return
    if poison_refusal(cluster, node) is None:
        node.set_incident(poisoned=True)
        node.poison_sent = True
        poison(cluster, node, incident)


def _want_storage_fence(cluster: Cluster, node: HostNode) -> None:
    """Where the policy names it; what it waits for from then on, ``storage_fence`` says."""
    incident = node.record.incident
    assert incident is not None
    if is_wanted(cluster) and not incident.storage_fenced:
        node.set_incident(storage_fenced=True)


def _without_devices(cluster: Cluster, node: HostNode, incident: Incident) -> None:
    """None of its devices may be ordered: what comes after them has its turn now, for no order of ours will fail (F9)."""
    _want_storage_fence(cluster, node)
    _poison(cluster, node, incident)


def _order_level(
    cluster: Cluster, node: HostNode, *, level: int, attempt: int, rounds: int
) -> None:
    incident = node.record.incident
    assert incident is not None
    off_already = known_off(cluster, node, level)
    if not off_already and not is_counted(cluster, node, incident):
        count_order(cluster, node)
    before = incident.fence
    feeds = tuple(FeedProgress(device=feed.device) for feed in node.config.power[level].feeds)
    fence = Fence(
        action=PowerAction.OFF,
        level=level,
        attempt=attempt,
        step=FenceStep.OFF_ORDERED,
        order_id=cluster.next_order(),
        ordered_ms=int(cluster.now),
        began_ms=before.began_ms if before is not None else int(cluster.now),
        feeds=feeds,
        on_after=cluster.policy.fencing.action is FencingAction.REBOOT,
        known_off=off_already,
        rounds=rounds,
        off_until_ms=off_strikes_until_ms(cluster, node, before) if before is not None else 0,
        failed=before.failed if before is not None else "",
        unread=before.unread if before is not None else "",
    )
    node.set_incident(fence=fence)
    send(cluster, node, fence)
    _tell_level(cluster, node, level)


def _tell_level(cluster: Cluster, node: HostNode, level: int) -> None:
    """Once for each level of an incident, however often it is ordered."""
    incident = node.record.incident
    assert incident is not None
    if level < incident.levels_told:
        return
    if incident.levels_told == 0:
        cluster.tell("fence.began", host=node, action=cluster.policy.fencing.action.value)
    if level > 0:
        cluster.tell("fence.next_level", host=node, level=level + 1)
    node.set_incident(levels_told=level + 1)


def _blink(cluster: Cluster, node: HostNode, incident: Incident) -> Reason:
    """Shows people which host it is; its VMs wait (F4)."""
    if not incident.blinked and node.config.power and cluster.hold is None:
        node.set_incident(blinked=True)
        order_id = cluster.next_order()
        for feed in node.config.power[0].feeds:
            cluster.order(
                OrderPower(
                    order_id=order_id,
                    host_id=node.id,
                    device=feed.device,
                    action=PowerAction.BLINK,
                    deadline_ms=cluster.policy.fencing.order_deadline_ms,
                    not_after_ms=not_after_ms(cluster),
                )
            )
        cluster.tell("fence.blinked", host=node)
    return reason("fence.blocked.action_blink")


# Under way


def _await_acceptance(cluster: Cluster, node: HostNode, fence: Fence) -> Reason | None:
    is_overdue = overdue(cluster, node, fence)
    if node.sent != fence.order_id:
        # A former leader's: it may never have gone out, and much may have changed since.
        if is_overdue:
            return _again(cluster, node, fence, level=fence.level, attempt=fence.attempt)
        why_not = refusal(cluster, node, fence.level)
        if why_not is not None:
            _tell_refusal(cluster, node, why_not)
            return why_not
        # The time of the last one that may have gone out is what counts for whoever leads next (J7).
        fence = replace(fence, ordered_ms=int(cluster.now))
        node.set_incident(fence=fence)
        send(cluster, node, fence)
    if all(feed.accepted for feed in fence.feeds):
        node.set_incident(fence=replace(fence, step=FenceStep.READING))
        node.power_asked_ms = None
        _ask_feeds(cluster, node, fence)
        return None
    if is_overdue:
        return level_failed(cluster, node, "power.no_answer")
    cluster.wake_host(node, ordered_ms(node, fence) + cluster.policy.fencing.order_deadline_ms)
    return reason("fence.waiting.order", level=fence.level + 1, attempt=fence.attempt)


def _read_back(cluster: Cluster, node: HostNode, fence: Fence) -> Reason | None:
    incident = node.record.incident
    assert incident is not None
    if all(feed.confirmed for feed in fence.feeds):
        return _conclude(cluster, node, incident, fence)
    if overdue(cluster, node, fence):
        if node.sent != fence.order_id:
            # A former leader's, and nobody has read since: that says nothing of the device.
            return _again(cluster, node, fence, level=fence.level, attempt=fence.attempt)
        code, cause = why_not_off(fence)
        return level_failed(cluster, node, code, unread=cause)
    _ask_feeds(cluster, node, fence)
    return reason("fence.waiting.readings", level=fence.level + 1)


def _ask_feeds(cluster: Cluster, node: HostNode, fence: Fence) -> None:
    """Those whose next reading is due, as P1 wants them: the second asked for no sooner than the gap after the first
    was here, so that the two can't tell of one moment, and no answer comes a moment too early to count."""
    asked_ms = node.power_asked_ms
    next_ms: list[int] = []
    for feed in fence.feeds:
        if feed.confirmed:
            continue
        due_ms = _due_ms(cluster, node, feed, asked_ms)
        if due_ms <= cluster.now:
            node.power_asked_ms = cluster.now
            cluster.order(_question(cluster, node, feed.device, fence.order_id))
            due_ms = _due_ms(cluster, node, feed, int(cluster.now))
        next_ms.append(due_ms)
    cluster.wake_host(node, min(next_ms))


def _due_ms(cluster: Cluster, node: HostNode, feed: FeedProgress, asked_ms: int | None) -> int:
    """When it is to be asked (again). One question at a time: an answer that is late belongs to the last one."""
    if asked_ms is None:
        return int(cluster.now)
    fencing = cluster.policy.fencing
    gap_ms = fencing.read_back_gap_ms
    if feed.off_since_ms is not None and asked_ms < feed.off_since_ms + gap_ms:
        return feed.off_since_ms + gap_ms
    read = node.power.get(feed.device)
    if read is not None and read[1] >= asked_ms:
        return asked_ms + gap_ms
    return asked_ms + max(gap_ms, fencing.read_deadline_ms)


def _question(
    cluster: Cluster, node: HostNode, device: PowerDeviceId, order_id: OrderId
) -> ReadPower:
    return ReadPower(
        order_id=order_id,
        host_id=node.id,
        device=device,
        deadline_ms=cluster.policy.fencing.read_deadline_ms,
    )


def _conclude(cluster: Cluster, node: HostNode, incident: Incident, fence: Fence) -> Reason | None:
    """Both readings are there; P1's conditions decide whether they prove anything."""
    why_not = doubt(cluster, node, incident, fence)
    if why_not is None:
        off = max(feed.off_since_ms or 0 for feed in fence.feeds)
        proven(
            cluster,
            node,
            Proof(
                kind=ProofKind.POWER_OFF,
                host_id=node.id,
                boot=incident.boot,
                at_ms=int(cluster.now),
                detail=f"level {fence.level + 1}, off since {off}",
            ),
        )
        return after_proof(cluster, node, node.record.incident or incident)
    if may_settle(cluster, fence, why_not.code):
        cluster.wake_host(node, cluster.now + cluster.policy.detection.beat_interval_ms)
        return why_not
    return level_failed(cluster, node, why_not.code)


def _lives_on(cluster: Cluster, node: HostNode, fence: Fence) -> bool:
    """Signs after the order, and it has nothing more under way: to order once more would shoot a living host.

    While the order may still take effect a sign says nothing but that it has not yet.
    """
    recent = cluster.now - last_sign_ms(node) < cluster.policy.detection.evidence_max_age_ms
    if last_sign_ms(node) <= ordered_ms(node, fence) or not recent:
        return False
    if fence.step is FenceStep.RETRYING or node.sent != fence.order_id:
        return True
    return overdue(cluster, node, fence)


# When a level fails


def level_failed(cluster: Cluster, node: HostNode, code: str, *, unread: str = "") -> Reason | None:
    incident = node.record.incident
    assert incident is not None and incident.fence is not None
    fence = replace(incident.fence, failed=code, unread=unread)
    for vm in cluster.vms_held_by(node.id):
        cluster.touch_vm(vm)  # its reasons name the doubt
    told: Fields = {"level": fence.level + 1, "attempt": fence.attempt, "why": code}
    if unread:
        told = {**told, "cause": unread}
    cluster.tell("fence.level_failed", host=node, vm=None, **told)
    if code in DISKS:
        _tell_written(cluster, node)
    fencing = cluster.policy.fencing
    if fence.attempt < fencing.attempts_per_device and not code.startswith("proof."):
        return _again(cluster, node, fence, level=fence.level, attempt=fence.attempt + 1)
    if _has_next_level(cluster, node, fence):
        return _again(cluster, node, fence, level=fence.level + 1, attempt=1)
    return _exhausted(cluster, node, incident, fence)


def _again(
    cluster: Cluster, node: HostNode, fence: Fence, *, level: int, attempt: int, pause_ms: int = 0
) -> Reason | None:
    """Every order goes out from one place, after the same questions as the first one."""
    again = replace(
        fence,
        step=FenceStep.RETRYING,
        level=level,
        attempt=attempt,
        next_ms=int(cluster.now) + pause_ms,
    )
    node.set_incident(fence=again)
    cluster.touch(node)  # looked at once more in this very step: whether it lives, too
    return None


def _exhausted(cluster: Cluster, node: HostNode, incident: Incident, fence: Fence) -> Reason | None:
    """A state of its own, with a policy: never an endless loop (F9)."""
    _want_storage_fence(cluster, node)
    _poison(cluster, node, incident)
    if fence.rounds == 0:
        cluster.tell("fence.failed", host=node)
    pause = retry_pause_ms(fence.rounds)
    rounds = replace(fence, rounds=fence.rounds + 1)
    return _again(cluster, node, rounds, level=0, attempt=1, pause_ms=pause)


def _retry(cluster: Cluster, node: HostNode, fence: Fence) -> Reason | None:
    awaited = awaited_before_next(cluster, node, fence)
    if awaited is not None:
        if cluster.now < fence.next_ms:
            cluster.wake_host(node, fence.next_ms)
        return awaited
    incident = node.record.incident
    assert incident is not None
    why_not = refusal(cluster, node, fence.level)
    if why_not is not None and why_not.code in NOT_THIS_LEVEL:
        return _past_level(cluster, node, incident, fence, why_not)
    why_not = why_not or late_pause(cluster, node, incident)
    if why_not is not None:
        _tell_refusal(cluster, node, why_not)
        return why_not
    _order_level(cluster, node, level=fence.level, attempt=fence.attempt, rounds=fence.rounds)
    return None


def _past_level(
    cluster: Cluster, node: HostNode, incident: Incident, fence: Fence, why: Reason
) -> Reason | None:
    """A device of that level may not be ordered: it got no order, and so can't have failed either."""
    if _has_next_level(cluster, node, fence):
        return _again(cluster, node, fence, level=fence.level + 1, attempt=1)
    if first_usable_level(cluster, node) is not None:
        return _exhausted(cluster, node, incident, fence)
    _without_devices(cluster, node, incident)
    return why


def _has_next_level(cluster: Cluster, node: HostNode, fence: Fence) -> bool:
    further = Unreachable.NEXT_LEVEL in cluster.policy.fencing.unreachable
    return further and fence.level + 1 < len(node.config.power)


def _tell_refusal(cluster: Cluster, node: HostNode, why: Reason) -> None:
    """Why the ladder does not go on, where an operator has to know."""
    tell_if_struck(cluster, node, why)
    if why.code == "fence.blocked.disks_change":
        _tell_written(cluster, node)
    if why.code in _TOLD_ONCE:
        _tell_once(cluster, node, why)


def _tell_once(cluster: Cluster, node: HostNode, why: Reason) -> None:
    """In an incident, whoever leads: it may stay so for good."""
    incident, code = node.record.incident, _TOLD_ONCE[why.code]
    if incident is None or code in incident.told_refusals:
        return
    node.set_incident(told_refusals=(*incident.told_refusals, code))
    cluster.tell(code, host=node, vm=None, **why.fields)


def _tell_written(cluster: Cluster, node: HostNode) -> None:
    """Once before it was ordered off, and once after: it is written on. Who lives then, a person has to find out (J3)."""
    incident = node.record.incident
    if incident is None or incident.told_written:
        return
    if incident.disks_written:
        node.set_incident(told_written=True)
        cluster.tell("fence.disks_written", host=node)
    elif incident.fence is None:
        node.set_incident(told_written=True)
        cluster.tell("fence.held_by_disks", host=node)
        for vm in cluster.vms_held_by(node.id):
            cluster.touch_vm(vm)


# What the devices say


def power_ordered(cluster: Cluster, event: PowerOrdered) -> None:
    node = cluster.hosts.get(event.host_id)
    incident = node.record.incident if node is not None else None
    if node is None or incident is None or incident.fence is None:
        return
    fence = incident.fence
    if fence.order_id != event.order_id:
        return  # of an order that was given up
    if fence.action is PowerAction.ON:
        on_answered(cluster, node, fence, event)
        return
    if fence.step is not FenceStep.OFF_ORDERED:
        return
    if event.result is Result.REFUSED and event.error == TOO_LATE:
        _was_too_late(cluster, node, incident, event.device)
        return
    if incident.proof is not None and event.result is not Result.OK:
        return  # it is dead by another proof: nobody orders it off again
    if event.result is not Result.OK:
        level_failed(cluster, node, event.error or "power.failed")
    else:
        feeds = tuple(
            replace(feed, accepted=True) if feed.device == event.device else feed
            for feed in fence.feeds
        )
        node.set_incident(fence=replace(fence, feeds=feeds))
    cluster.touch(node)


def _was_too_late(
    cluster: Cluster, node: HostNode, incident: Incident, device: PowerDeviceId
) -> None:
    """An *off* that never went to its device: as if it had not been given, and judged on what is known by now.

    Where another proof has come by then, nothing is taken back but its count: that proof stands without it, the
    incident lasts until the host is back, and a reboot goes on from there (``power_on``).
    """
    fence = incident.fence
    assert fence is not None
    cluster.touch(node)
    feeds = tuple(
        replace(feed, too_late=True) if feed.device == device else feed for feed in fence.feeds
    )
    node.set_incident(fence=replace(fence, feeds=feeds))
    if not all(feed.too_late or feed.accepted for feed in feeds):
        return  # its other devices may have been asked in time
    note_too_late(cluster, node, fence)
    never = not any(feed.accepted for feed in feeds)
    first = never and fence.ordered_ms == fence.began_ms
    if first:
        # Nothing was done to it. One that a former leader may have sent as well was ordered before.
        uncount_order(cluster, node, fence.ordered_ms)
    if first and incident.proof is None:
        node.set_incident(fence=None, orders=(), struck=())
        if last_sign_ms(node) > fence.ordered_ms:
            alive_after_all(cluster, node, "what came meanwhile")
    else:
        node.set_incident(
            fence=replace(fence, feeds=feeds, step=FenceStep.RETRYING, next_ms=int(cluster.now))
        )
