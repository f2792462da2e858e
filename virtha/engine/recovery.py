"""Brings VMs back: from *lost* over *ready* to *starting* and settled. The proofs came before (``incident``).

A start elsewhere is possible only when nobody may hold the VM any more (G1), it is written with its target among
the holders before the order goes out, and a start whose end nobody knows is taken back before another is tried (G2).
"""

from virtha.engine.cuts import clusters_of
from virtha.engine.dependencies import StartCondition
from virtha.engine.early import forget_released
from virtha.engine.ended import never_ran
from virtha.engine.events import (
    CancelStart,
    CopyReleased,
    QuarantineLifted,
    StartCommand,
    StartEnded,
)
from virtha.engine.halves import look_at_half, note_side_over, why_half
from virtha.engine.holders import why_held
from virtha.engine.incident import (
    STILL_WANTED,
    holder_back,
    quarantine_if_due,
    settle_lost,
    with_death,
)
from virtha.engine.machine import Verdict, VmTrigger
from virtha.engine.migration import look_at_migration, note_given_back
from virtha.engine.not_shared import split_names
from virtha.engine.placement import Plan, VmToPlace, plan_placements
from virtha.engine.records import GivenBack, Start, VmRecord, VmStage
from virtha.engine.removal import node_of
from virtha.engine.restored import why_inventory
from virtha.engine.stale import stale_released
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.engine.superseded import end_superseded, is_superseded, note_superseded_over
from virtha.engine.targets import goes_down, without_guardian
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import HostId, Incarnation, VmId
from virtha.model.policy import PermissionGrade
from virtha.model.time import Millis
from virtha.model.vm import PossibleCopy, Reason, VmState

UNWANTED = "order.refused.unwanted"
"""A person switched it off between the decision and the order: nothing has failed."""
INVENTORY = "recovery.waiting.inventory"
INVENTORY_TOLD_MS = 60_000
"""Hosts tell what they run within seconds of a server's start; what takes a minute is somebody's business."""
_RUNS = frozenset({VmState.RUNNING})
_ON_ITS_WAY = frozenset({VmStage.LOST, VmStage.READY, VmStage.STARTING, VmStage.CANCELLING})
_STORAGE_FAILED = frozenset({ReleaseCause.LEASE_LOST, ReleaseCause.IO_ERROR})
_UP = frozenset({VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.CRASHED})


# One look


def look_at_vm(cluster: Cluster, node: VmNode) -> None:
    _look(cluster, node)
    if node.record.superseded:
        node.reasons = (*node.reasons, *end_superseded(cluster, node))


def _look(cluster: Cluster, node: VmNode) -> None:
    if node.half is None and node.stands is None:
        _look_by_stage(cluster, node)
    else:
        look_at_half(cluster, node)
        _look_by_stage(cluster, node)
        node.reasons = (*node.reasons, *why_half(cluster, node))


def _look_by_stage(cluster: Cluster, node: VmNode) -> None:
    match node.record.stage:
        case VmStage.LOST:
            _look_at_lost(cluster, node)
        case VmStage.READY:
            _look_at_ready(cluster, node)
        case VmStage.STARTING:
            _look_at_start(cluster, node)
        case VmStage.CANCELLING:
            _cancel(cluster, node)
        case VmStage.QUARANTINED:
            node.reasons = (reason("recovery.blocked.quarantine"),)
        case VmStage.GIVEN_UP:
            node.reasons = (reason("recovery.blocked.attempts", count=node.record.attempts),)
        case VmStage.MIGRATING:
            look_at_migration(cluster, node)
        case VmStage.SETTLED:
            node.reasons = _why_down(cluster, node)
            leaving = any(copy.host_id in cluster.drains for copy in node.record.copies)
            if leaving or node.record.home is not None:
                cluster.plan_wanted = True  # the plan of moves says why it stays


def _why_down(cluster: Cluster, node: VmNode) -> tuple[Reason, ...]:
    """Of a settled VM that should be up and that nobody holds: its former host may be gone, so it is told here."""
    record, given_back = node.record, node.record.given_back
    if not node.protected or record.incarnation == 0:
        return ()
    if record.copies:
        return why_held(cluster, node)
    if given_back is None:
        # Its protection was turned on, or on again, after its host had died.
        return (reason("recovery.not_due.unprotected"),)
    return (
        reason(
            "recovery.not_due.given_back",
            host=cluster.host_name(given_back.host_id),
            cause=given_back.cause.value if given_back.cause is not None else "not said",
        ),
    )


def _look_at_lost(cluster: Cluster, node: VmNode) -> None:
    settle_lost(cluster, node)
    if node.record.stage is not VmStage.LOST:
        return
    holders = [(copy, cluster.hosts.get(copy.host_id)) for copy in node.record.copies]
    names = ", ".join(
        sorted(copy.host_id if host is None else host.config.name for copy, host in holders)
    )
    removed = sorted(
        {node_of(cluster, copy.host_id).config.name for copy, host in holders if host is None}
    )
    if removed:
        node.reasons = (reason("recovery.waiting.removed", hosts=", ".join(removed)),)
    elif not all(host is not None and _holds_on(host, copy) for copy, host in holders):
        waits = reason("recovery.waiting.proof", hosts=names)
        node.reasons = (waits, *_unfenced(holders), *_doubted(holders))
    elif node.record.migration is not None or node.record.start is not None:
        # The last side of its migration, or the target of its start, lives after all: that goes on, or is taken back.
        holder_back(cluster, node)
    elif not node.record.proofs or any(state in _RUNS for _, state in node.seen.values()):
        # Each of them lives on in the same boot, and none of its copies died, or it is seen running.
        holder_back(cluster, node)
    else:
        # One side of a migration died, and the other may hold half a copy: it runs it, or gives it back (G6).
        node.reasons = (reason("recovery.waiting.holder", hosts=names),)


def _unfenced(holders: list[tuple[PossibleCopy, HostNode | None]]) -> list[Reason]:
    """Hosts that are not fenced although VMs wait for their proof, for somebody may be at work on them."""
    return [
        reason("recovery.waiting.maintenance", host=host.config.name, by=host.record.maintenance)
        for _, host in holders
        if host is not None and host.record.maintenance is not None and host.record.drain is None
    ]


def _doubted(holders: list[tuple[PossibleCopy, HostNode | None]]) -> list[Reason]:
    """Hosts that were read as off, which proves nothing as things are, or that are not ordered off as they may live."""
    found = []
    for host in {host.id: host for _, host in holders if host is not None}.values():
        incident = host.record.incident
        failed = (
            incident.fence.failed if incident is not None and incident.fence is not None else ""
        )
        if failed.startswith("proof."):
            found.append(reason("recovery.waiting.doubt", host=host.config.name, why=failed))
        elif any(why.code == "fence.blocked.disks_change" for why in host.reasons):
            found.append(reason("recovery.waiting.disks", host=host.config.name))
    return found


def _holds_on(host: HostNode, copy: PossibleCopy) -> bool:
    return (
        host.verdict in (Verdict.ALIVE, Verdict.AGENT_DOWN)
        and host.record.incident is None
        and copy.boot in (None, host.record.boot)
    )


def _look_at_ready(cluster: Cluster, node: VmNode) -> None:
    record = node.record
    if not (node.config.ha and node.config.wanted_up):
        cluster.move_vm(node, VmTrigger.UNWANTED, proofs=(), lost_ms=None, attempts=0, tried=())
        return
    if node.config.ignore:
        node.reasons = (reason("recovery.blocked.ignored"),)
        return
    if record.attempts >= cluster.policy.recovery.attempts_max:
        cluster.move_vm(node, VmTrigger.EXHAUSTED)
        cluster.tell("vm.recovery_given_up", vm=node, attempts=record.attempts)
        return
    if record.next_ms > cluster.now:
        node.reasons = (reason("recovery.waiting.delay", delay_ms=record.next_ms - cluster.now),)
        cluster.wake_vm(node, record.next_ms)
        return
    cluster.plan_wanted = True


def _look_at_start(cluster: Cluster, node: VmNode) -> None:
    start = node.record.start
    assert start is not None
    if node.seen.get(start.host_id) == (start.incarnation, VmState.RUNNING):
        runs(cluster, node)
        return
    ends_ms = start.ordered_ms + cluster.policy.recovery.attempt_ms
    holders = {copy.host_id for copy in node.record.copies}
    target = cluster.hosts.get(start.host_id)
    if (
        cluster.now >= ends_ms
        or holders != {start.host_id}
        or _is_overtaken(node, start)
        or (target is not None and without_guardian(target))
    ):
        _cancel_late(cluster, node)
        return
    why_not = () if node.sent == start.order_id else barrier(cluster)
    if not why_not and node.sent != start.order_id and node.protected:
        _send(cluster, node, start)
    node.reasons = why_not or (reason("recovery.starting", host=cluster.host_name(start.host_id)),)
    cluster.wake_vm(node, ends_ms)


def _is_overtaken(node: VmNode, start: Start) -> bool:
    """Somebody told of a later incarnation: the order would be refused, or worse, not be."""
    return node.record.incarnation > start.incarnation


def _send(cluster: Cluster, node: VmNode, start: Start) -> None:
    """Also by a new leader: the order that it finds may never have been sent, and twice is harmless."""
    node.sent = start.order_id
    cluster.order(
        StartCommand(
            order_id=start.order_id,
            vm_id=node.id,
            host_id=start.host_id,
            boot=start.boot,
            incarnation=start.incarnation,
            grant_ms=cluster.policy.recovery.start_deadline_ms,
            proofs=node.record.proofs,
        )
    )


def _cancel_late(cluster: Cluster, node: VmNode) -> None:
    start = node.record.start
    assert start is not None
    cluster.tell("vm.start_overdue", vm=node, host=cluster.hosts.get(start.host_id))
    cluster.move_vm(node, VmTrigger.OVERDUE)


def _take_back(cluster: Cluster, node: VmNode, code: str | None) -> None:
    """Its host can't say how the start ended. With a code it has answered, and is not late."""
    if code is None:
        _cancel_late(cluster, node)
        return
    start = node.record.start
    assert start is not None
    cluster.tell("vm.start_unclear", vm=node, host=cluster.hosts.get(start.host_id), why=code)
    cluster.move_vm(node, VmTrigger.OVERDUE)


CANCEL_EVERY_MS = 5_000
"""A cancellation that is not answered is sent again: the host's agent may have been restarting."""


def _cancel(cluster: Cluster, node: VmNode) -> None:
    """Until the host confirms by its release, or is proven dead, its copy is possible (G2)."""
    start = node.record.start
    assert start is not None
    cluster.order(
        CancelStart(
            order_id=start.order_id,
            vm_id=node.id,
            host_id=start.host_id,
            incarnation=start.incarnation,
        )
    )
    node.reasons = (reason("recovery.waiting.cancel", host=cluster.host_name(start.host_id)),)
    cluster.wake_vm(node, cluster.now + CANCEL_EVERY_MS)


# The plan


def plan_recoveries(cluster: Cluster) -> None:
    """Places all VMs that are ready and due, and orders their starts."""
    why_none = barrier(cluster)
    candidates: list[VmToPlace] = []
    for vm_id in sorted(cluster.ready):
        node = cluster.vms[vm_id]
        if node.record.next_ms > cluster.now or node.config.ignore:
            continue
        why_not = why_none or _grade(cluster, node)
        if why_not:
            node.reasons = why_not
            _tell_kept(cluster, node, why_not[0].code)
            continue
        candidates.append(to_place(node))
    if not candidates:
        return
    plan = plan_placements(
        cluster.capacity,
        candidates,
        policy=cluster.policy.recovery,
        now=cluster.now,
        progress=progress_of(cluster, candidates),
        storage_names=split_names(cluster),
    )
    _carry_out(cluster, plan)


def barrier(cluster: Cluster) -> tuple[Reason, ...]:
    """Empty: nothing keeps all of them."""
    if cluster.hold is not None:
        return (reason("recovery.blocked.hold", why=cluster.hold),)
    # M2: a host that has not told yet may run any of them.
    return why_inventory(cluster) if cluster.awaited else ()


def _grade(cluster: Cluster, node: VmNode) -> tuple[Reason, ...]:
    grade = may_move(cluster, node)
    return () if grade is None else (reason("recovery.blocked.grade", grade=grade.value),)


def may_move(cluster: Cluster, node: VmNode) -> PermissionGrade | None:
    """The grade that forbids it to go to another host; None: it may."""
    for grade in (cluster.policy.recovery.grade, node.config.grade):
        if grade is not None and not grade.permits(PermissionGrade.MOVE):
            return grade
    return None


def to_place(node: VmNode) -> VmToPlace:
    config = node.config
    return VmToPlace(
        id=config.vm_id,
        name=config.name,
        memory_bytes=config.memory_bytes,
        vcpus=config.vcpus,
        priority=config.priority,
        features=config.features | clusters_of(node.record.proofs),
        groups=config.groups,
        depends_on=config.depends_on,
        waits_since_ms=node.record.ready_ms,
        attempts=node.record.attempts,
        excluded=frozenset(node.record.tried),
    )


def progress_of(cluster: Cluster, candidates: list[VmToPlace]) -> dict[VmId, list[StartCondition]]:
    """How far those are that the candidates depend on."""
    progress: dict[VmId, list[StartCondition]] = {}
    for candidate in candidates:
        for dependency in candidate.depends_on:
            other = cluster.vms.get(dependency.vm_id)
            if other is not None and dependency.vm_id not in progress:
                reached = _reached(other)
                if reached is not None:
                    progress[other.id] = reached
    return progress


def _reached(node: VmNode) -> list[StartCondition] | None:
    if node.record.stage in _ON_ITS_WAY:
        return [] if node.protected else None
    settled = node.record.stage in (VmStage.SETTLED, VmStage.MIGRATING)
    if not settled or node.state not in _RUNS:
        return None
    if node.guest_agent:
        return [StartCondition.STARTED, StartCondition.GUEST_AGENT]
    return [StartCondition.STARTED]


def _carry_out(cluster: Cluster, plan: Plan) -> None:
    for placement in plan.placements:
        _order_start(cluster, cluster.vms[placement.vm_id], placement.host_id)
    for waiting in plan.waiting:
        cluster.vms[waiting.vm_id].reasons = waiting.reasons
    for blocked in plan.blocked:
        node = cluster.vms[blocked.vm_id]
        node.reasons = blocked.reasons
        _tell_blocked(cluster, node, blocked.reasons[0].code)
        if any(one.code == "recovery.blocked.tried" for one in blocked.reasons):
            # Nothing is left but what failed before: once more around.
            cluster.set_vm(node, tried=())
    if plan.wake_at is not None:
        # One look at any of them makes the next plan.
        undecided = [*(one.vm_id for one in plan.waiting), *(one.vm_id for one in plan.blocked)]
        cluster.wake_vm(cluster.vms[undecided[0]], plan.wake_at)


def _tell_kept(cluster: Cluster, node: VmNode, code: str) -> None:
    """Of hosts that have yet to tell what they run, only once that lasts: after each start of a server it does for a moment."""
    ready_ms = node.record.ready_ms
    told_at = Millis((cluster.now if ready_ms is None else ready_ms) + INVENTORY_TOLD_MS)
    if code == INVENTORY and cluster.now < told_at:
        cluster.wake_vm(node, told_at)
        return
    _tell_blocked(cluster, node, code)


def _tell_blocked(cluster: Cluster, node: VmNode, code: str) -> None:
    """Once for each kind of obstacle: a VM that stays down is somebody's business."""
    if node.blocked_told != code:
        node.blocked_told = code
        cluster.tell("vm.recovery_blocked", vm=node, why=code)


def _order_start(cluster: Cluster, node: VmNode, host_id: HostId) -> None:
    host = cluster.hosts[host_id]
    assert host.record.boot is not None, f"{host.config.name}: a target that was never seen"
    record = node.record
    incarnation = Incarnation(record.incarnation + 1)
    start = Start(
        order_id=cluster.next_order(),
        host_id=host_id,
        boot=host.record.boot,
        incarnation=incarnation,
        ordered_ms=int(cluster.now),
    )
    copy = PossibleCopy(host_id=host_id, incarnation=incarnation, boot=host.record.boot)
    home = record.home or _left(record)
    cluster.move_vm(
        node,
        VmTrigger.ORDERED,
        incarnation=incarnation,
        copies=(copy,),
        start=start,
        given_back=None,
        home=None if home == host_id else home,
    )
    cluster.tell("vm.recovery_started", vm=node, host=host, attempt=record.attempts + 1)


def _left(record: VmRecord) -> HostId | None:
    """Where it ran before this recovery."""
    if record.proofs:
        return record.proofs[0].host_id
    return None if record.given_back is None else record.given_back.host_id


# What comes back


def start_ended(cluster: Cluster, event: StartEnded) -> None:
    node = cluster.vms.get(event.vm_id)
    start = node.record.start if node is not None else None
    if node is None or start is None or start.order_id != event.order_id:
        return  # of a start that was settled otherwise
    match event.result:
        case Result.OK:
            node.seen[event.host_id] = (event.incarnation, VmState.RUNNING)
            cluster.touch_vm(node)
            if node.record.stage is not VmStage.LOST:
                runs(cluster, node)
        case Result.UNKNOWN:
            if node.record.stage is VmStage.STARTING:
                _take_back(cluster, node, event.code)
        case Result.REFUSED | Result.FAILED:
            _failed(cluster, node, event.host_id, event.code or "start.failed")


def runs(cluster: Cluster, node: VmNode) -> None:
    lost_ms = node.record.lost_ms
    start = node.record.start
    host_id = node.record.copies[0].host_id if start is None else start.host_id
    moved = cluster.move_vm(
        node,
        VmTrigger.RUNS,
        start=None,
        proofs=(),
        attempts=0,
        tried=(),
        next_ms=0,
        lost_ms=None,
        ready_ms=None,
    )
    if moved:
        node.blocked_told = None
        node.state, node.state_host = VmState.RUNNING, host_id
        cluster.plan_wanted = True
        after_ms = 0 if lost_ms is None else cluster.now - lost_ms
        cluster.tell("vm.recovered", vm=node, host=cluster.hosts.get(host_id), after_ms=after_ms)


def _failed(cluster: Cluster, node: VmNode, host_id: HostId, code: str) -> None:
    """That copy can't come to be any more. Another host at once, then with growing delay."""
    record = node.record
    failures = record.attempts + 1
    delay = cluster.policy.recovery.delay_before_ms(failures)
    start = record.start
    assert start is not None
    copies = tuple(
        copy
        for copy in record.copies
        if (copy.host_id, copy.incarnation) != (host_id, start.incarnation)
        or copy.boot not in (None, start.boot)
    )
    tried = record.tried if host_id in record.tried else (*record.tried, host_id)
    trigger = VmTrigger.REFUSED
    if record.stage is VmStage.LOST:
        # Lost together with the target of its start; that copy is over, others may not be.
        trigger = VmTrigger.HOLDER_LOST
    elif copies:
        trigger = VmTrigger.FOUND  # somebody else has it: nothing is to be started
    moved = cluster.move_vm(
        node,
        trigger,
        copies=copies,
        start=None,
        attempts=failures,
        tried=tried,
        next_ms=int(cluster.now) + delay,
        ready_ms=int(cluster.now),
    )
    settle_lost(cluster, node)
    if moved and code != UNWANTED:
        cluster.tell(
            "vm.recovery_failed",
            vm=node,
            host=cluster.hosts.get(host_id),
            attempt=failures,
            why=code,
        )


def copy_released(cluster: Cluster, event: CopyReleased) -> None:
    """Durable word of the host (P5): this incarnation is over there."""
    node = cluster.vms.get(event.vm_id)
    if node is None:
        return
    host = cluster.hosts.get(event.host_id)
    if host is not None:
        forget_released(host, event)
        stale_released(cluster, host, event)
    start = node.record.start
    if start is not None and (start.host_id, start.boot, start.incarnation) == (
        event.host_id,
        event.boot,
        event.incarnation,
    ):
        if event.cause is ReleaseCause.NEVER_RAN:
            never_ran(cluster, node, event.incarnation)
        _failed(cluster, node, event.host_id, "start.cancelled")
        return
    copies = tuple(
        copy
        for copy in node.record.copies
        if (copy.host_id, copy.incarnation) != (event.host_id, event.incarnation)
        or copy.boot not in (None, event.boot)
    )
    if copies == node.record.copies:
        return
    was_superseded = note_superseded_over(cluster, node, event)
    cluster.set_vm(node, copies=copies)
    if node.state_host == event.host_id:
        node.state, node.state_host, node.guest_agent = VmState.DOWN, None, None
    if event.cause is ReleaseCause.HOST_SHUTDOWN and host is not None:
        goes_down(cluster, host, event.boot)
    if node.record.migration is not None:
        note_given_back(cluster, node, event)
    elif copies and (node.half is not None or node.stands is not None):
        note_side_over(cluster, node, event)
    elif all(is_superseded(node, copy) for copy in copies):
        # Not by its incarnation: a move that was begun and failed has counted it up, and the copy stayed the one it was.
        given_back = GivenBack(host_id=event.host_id, cause=event.cause)
        if was_superseded and node.record.given_back is not None:
            given_back = node.record.given_back  # how the newer one ended is how the VM did
        cluster.set_vm(node, given_back=given_back)
        if not copies:
            _given_back(cluster, node, given_back)


def _given_back(cluster: Cluster, node: VmNode, last: GivenBack) -> None:
    """Its last copy is over by its host's own word: what that host said of it decides whether it starts elsewhere."""
    now = int(cluster.now)
    if last.cause is not None and last.cause in STILL_WANTED and node.protected:
        if last.cause in _STORAGE_FAILED and last.host_id not in node.record.tried:
            # What it said of its storage before may not be taken back yet; it would refuse the start, or fail it again.
            cluster.set_vm(node, tried=(*node.record.tried, last.host_id))
        if last.cause is ReleaseCause.IO_ERROR:
            cluster.set_vm(node, deaths=with_death(cluster, node, last.host_id))
        cluster.move_vm(node, VmTrigger.GIVEN_BACK, lost_ms=now, ready_ms=now)
        if last.cause is ReleaseCause.IO_ERROR:
            quarantine_if_due(cluster, node)


def quarantine_lifted(cluster: Cluster, event: QuarantineLifted) -> None:
    node = cluster.vms.get(event.vm_id)
    if node is None:
        return
    if node.record.stage not in (VmStage.QUARANTINED, VmStage.GIVEN_UP):
        return
    trigger = VmTrigger.FOUND if node.record.copies else VmTrigger.FREED
    if cluster.move_vm(
        node, trigger, attempts=0, tried=(), next_ms=0, deaths=(), ready_ms=int(cluster.now)
    ):
        cluster.tell("vm.freed", vm=node, by=event.by)
