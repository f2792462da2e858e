"""One look at one host: judge it, ask what is still to be known, open or end its incident, go on fencing."""

from collections.abc import Iterator

from virtha.engine.doubts import readers_due_ms
from virtha.engine.drain import drain_reasons
from virtha.engine.events import Investigate, ReadPower
from virtha.engine.fencing import plan_fence
from virtha.engine.incident import alive_after_all, open_incident
from virtha.engine.machine import Verdict
from virtha.engine.not_shared import split_reasons
from virtha.engine.records import FenceStep, VmStage
from virtha.engine.stale import plan_stale
from virtha.engine.state import ABSENT, Cluster, HostNode, reason
from virtha.engine.storage_fence import plan_lift, plan_storage_fence
from virtha.engine.targets import look_at_waits, refresh_target
from virtha.engine.verdict import (
    Judgement,
    judge,
    may_take_quick_road,
    newcomers_unheard,
    watched_for,
)
from virtha.engine.withheld import tell_if_withheld
from virtha.model.ids import HostId
from virtha.model.vm import Reason

WITNESSES = 4
"""Neighbours asked in one round: enough for two to fail, and no broadcast storm in a large cluster."""

READ_AGAIN_MS = 60_000
"""A host's boot lasts minutes, and is not asked about at each of its beats."""

_ASKED_ABOUT = frozenset({Verdict.SUSPECT, Verdict.ISOLATED, Verdict.DEAD_UNPROVEN})


def look_at(cluster: Cluster, node: HostNode) -> None:
    if not _beats_on(cluster, node):
        _look_closely(cluster, node)


def _beats_on(cluster: Cluster, node: HostNode) -> bool:
    """The short way for a host that is as it was, and whose beats come in time, which is most of all looks: it is looked
    at again when the next one would be late. Decides what the close look would."""
    sign_ms, record = node.sign_ms, node.record
    if (
        node.verdict is not Verdict.ALIVE
        or record.incident is not None
        or sign_ms is None
        or sign_ms < cluster.began_ms
        or sign_ms < node.observe_from_ms
        or node.broken_ms is not None
        or not node.agent_alive
        or node.investigated
        or node.reasons
        or node.leaving_ms is not None
        or node.untold
        or record.struck_ms
        or record.cuts
        or _is_on_due(cluster, node)
    ):
        return False
    late_ms = sign_ms + cluster.policy.detection.late_after_ms
    if cluster.now >= late_ms:
        return False
    cluster.wake_host(node, late_ms)
    return True


def _look_closely(cluster: Cluster, node: HostNode) -> None:
    judgement = judge(cluster, node)
    asked_about = judgement.late or judgement.verdict in _ASKED_ABOUT
    if asked_about and not node.investigated:
        cluster.forget_investigation(node)
    if node.investigated and not asked_about and node.record.incident is None:
        # Nobody asks for them before they are forgotten anyway; here they need not be taken up first.
        cluster.forget_newcomers(node)
    node.investigated = asked_about
    _note(cluster, node, judgement)
    incident = node.record.incident
    if incident is None:
        if judgement.verdict is Verdict.DEAD_UNPROVEN or may_take_quick_road(
            cluster, node, judgement
        ):
            open_incident(cluster, node)
            judgement = judge(cluster, node)
            _note(cluster, node, judgement)
    elif judgement.verdict is Verdict.ISOLATED and incident.fence is None:
        # Seen alive before anything was done to it: nobody is to be shot (J2).
        alive_after_all(cluster, node, judgement.via)
    waiting: list[Reason | None] = []
    if node.record.incident is not None:
        waiting.append(plan_fence(cluster, node))
        if node.record.incident is not None:
            waiting.append(plan_storage_fence(cluster, node))
            plan_stale(cluster, node)
        tell_if_withheld(cluster, node, waiting)
        judgement = judge(cluster, node)
        _note(cluster, node, judgement)
    elif node.record.cuts:
        waiting.append(plan_lift(cluster, node))
    node.reasons = (*judgement.reasons, *(one for one in waiting if one is not None))
    if judgement.late or judgement.verdict in _ASKED_ABOUT:
        investigate(cluster, node)
    elif _beats(judgement) and _is_on_due(cluster, node):
        node.power_asked_ms = cluster.now
        _ask_power(cluster, node)
    if judgement.look_at_ms is not None:
        cluster.wake_host(node, judgement.look_at_ms)
    look_at_waits(cluster, node)


def _note(cluster: Cluster, node: HostNode, judgement: Judgement) -> None:
    before = node.verdict
    if judgement.verdict is before:
        return
    cluster.note_verdict(node, judgement.verdict)
    refresh_target(cluster, node)
    match judgement.verdict:
        case Verdict.SUSPECT if before in (Verdict.ALIVE, Verdict.AGENT_DOWN, Verdict.UNKNOWN):
            cluster.tell("host.suspected", host=node)
        case Verdict.ISOLATED:
            cluster.tell("host.isolated", host=node, witness=judgement.via)
        case Verdict.ALIVE | Verdict.AGENT_DOWN if before in (Verdict.SUSPECT, Verdict.ISOLATED):
            # Its guardian may be back first: what was told of the host is over, and of its agent it is told otherwise.
            cluster.tell("host.answers_again", host=node)
        case _:
            pass
    if judgement.verdict in ABSENT or judgement.verdict is Verdict.ISOLATED:
        # Out of reach: what it holds by the records is waited for VM by VM, unless they are not to be believed.
        if not node.untold:
            cluster.await_no_more(node.id)
        cluster.plan_wanted = True
        for vm in cluster.vms_held_by(node.id):
            if vm.record.stage is VmStage.STARTING:
                cluster.touch_vm(vm)
    elif judgement.verdict is Verdict.ALIVE:
        for vm in cluster.vms_held_by(node.id):
            if vm.record.stage is VmStage.LOST:
                cluster.touch_vm(vm)


def investigate(cluster: Cluster, node: HostNode) -> None:
    """All witnesses at once, again at each interval for as long as it is silent (F2)."""
    interval = cluster.policy.detection.check_interval_ms
    if node.asked_ms is not None and cluster.now - node.asked_ms < interval:
        cluster.wake_host(node, node.asked_ms + interval)
        return
    node.asked_ms = cluster.now
    cluster.take_up(node)
    node.round += 1
    node.rounds_asked += 1
    witnesses = _witnesses(cluster, node)
    vms = tuple(vm.id for vm in watched_for(cluster, node))
    reader = _reader(cluster, node, witnesses) if vms else None
    if reader is not None:
        node.reader_rounds += 1
    elif vms and cluster.now < readers_due_ms(cluster):
        node.blind = True
    cluster.order(
        Investigate(
            subject=node.id,
            boot=node.record.boot,
            witnesses=witnesses,
            disk_reader=reader,
            vms=vms,
            round=node.round,
        )
    )
    incident = node.record.incident
    fence = incident.fence if incident is not None else None
    if fence is None or fence.step is FenceStep.RETRYING or node.sent != fence.order_id:
        _ask_power(cluster, node)
    cluster.wake_host(node, cluster.now + interval)


def _beats(judgement: Judgement) -> bool:
    return judgement.verdict in (Verdict.ALIVE, Verdict.AGENT_DOWN)


def _is_on_due(cluster: Cluster, node: HostNode) -> bool:
    """P1: a device whose identity is not known must have said *on* while this boot was beating, and not before. It is asked
    until it does: many a BMC is slow while its host boots."""
    asked_ms = node.power_asked_ms
    again = asked_ms is None or cluster.now - asked_ms >= READ_AGAIN_MS
    return again and _is_on_unread(node)


def _is_on_unread(node: HostNode) -> bool:
    record = node.record
    for level in node.config.power:
        for feed in level.feeds:
            device = feed.device
            known = device in record.identified_devices or device in record.on_devices
            if feed.reads_state and not known:
                return True
    return False


def _ask_power(cluster: Cluster, node: HostNode) -> None:
    """Off already is the quick road to proof (P1); on says that it is hung rather than without power."""
    for level in node.config.power:
        for feed in level.feeds:
            if feed.reads_state:
                cluster.order(
                    ReadPower(
                        order_id=cluster.next_question(),
                        host_id=node.id,
                        device=feed.device,
                        deadline_ms=cluster.policy.fencing.read_deadline_ms,
                    )
                )


def _witnesses(cluster: Cluster, node: HostNode) -> tuple[HostId, ...]:
    """The next neighbours by number, other ones at each round. Hosts that have just come within reach go first: the
    others were asked before."""
    rings = cluster.rings
    start = rings.all.place_after(node.id, (node.round - 1) * WITNESSES)
    chosen: list[HostId] = []
    if newcomers_unheard(cluster, node):
        _choose(node, rings.present.those_of(node.newcomers, start), chosen)
    _choose(node, rings.present.around(start), chosen)
    if len(chosen) < WITNESSES:
        # Whoever is heard by its agent alone counts as reached (J4), so it must have been asked as well (J2).
        _choose(node, rings.heard_by_agent.around(start), chosen)
    return tuple(chosen)


def _reader(cluster: Cluster, node: HostNode, witnesses: tuple[HostId, ...]) -> HostId | None:
    """Of the witnesses if one can: agents read disks, so one whose agent is gone would say nothing. None: nobody can."""
    readers = cluster.rings.readers
    for host_id in witnesses:
        if host_id in readers:
            return host_id
    start = cluster.rings.all.place_after(node.id, node.round)
    return next((one for one in readers.around(start) if one != node.id), None)


def _choose(node: HostNode, among: Iterator[HostId], chosen: list[HostId]) -> None:
    for host_id in among:
        if len(chosen) == WITNESSES:
            return
        if host_id != node.id and host_id not in chosen:
            chosen.append(host_id)


def reasons_of(cluster: Cluster, node: HostNode) -> tuple[Reason, ...]:
    """Why the host is as it is and what is awaited (X1)."""
    why = (*node.reasons, *split_reasons(cluster, node))
    if node.record.maintenance is None:
        return why
    by = reason("host.maintenance", by=node.record.maintenance)
    return (*why, by, *drain_reasons(cluster, node))
