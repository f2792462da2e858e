"""Who moves while it runs, and where to: away from hosts in maintenance, and back home where the policy wants that.

Nothing else is ever moved. Moves go into what recoveries leave: those that wait for a place, or for proof, are planned
first. While the brake holds nothing is moved at all, and on hold nothing either. A move takes no start slot: those are
against boot storms, and nothing boots.

**A host that is being emptied may be fenced** when it dies with protected VMs left: its operator wanted them elsewhere, not
down. Once empty, or put into maintenance without emptying, it never is: somebody may have hands inside, and its VMs
wait with that reason. A drain may use the room that is kept free for failures: the host that it empties is what would have
failed. Failback never does: not into overcommit, not against a soft rule, one VM at a time, in calm times only.
"""

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from virtha.engine.dependencies import Progress
from virtha.engine.events import MoveAsked
from virtha.engine.machine import Verdict
from virtha.engine.migration import order_move
from virtha.engine.not_shared import split_names
from virtha.engine.placement import Plan, Purpose, VmToPlace, plan_placements
from virtha.engine.records import Drain, MovePurpose, VmStage
from virtha.engine.recovery import may_move, to_place
from virtha.engine.state import Cluster, HostNode, VmNode, held, reason
from virtha.model.ids import HostId, VmId
from virtha.model.policy import Failback, RecoveryPolicy
from virtha.model.vm import Reason, VmState


def moves_wanted(cluster: Cluster) -> bool:
    """Whether a plan of moves could have anything to do."""
    return bool(cluster.drains or cluster.moves_asked) or (
        bool(cluster.homesick) and _goes_home(cluster)
    )


def plan_moves(cluster: Cluster) -> None:
    """After the recoveries' plan. Orders what may move now, and says of each other VM why it doesn't."""
    asked, cluster.moves_asked = cluster.moves_asked, []
    for event in asked:
        _answer(cluster, event)
    movers: dict[VmId, tuple[VmNode, HostNode]] = {}
    for host_id in sorted(cluster.drains):
        host = cluster.hosts[host_id]
        _note_progress(cluster, host)
        why_none = _why_nobody(cluster, host)
        for node in cluster.vms_held_by(host_id):
            if node.record.stage is not VmStage.SETTLED:
                continue  # it has reasons of its own
            why_not = why_none or _why_not(cluster, node, host)
            if why_not is None:
                movers[node.id] = (node, host)
            else:
                node.reasons = (why_not,)
    if movers:
        _carry_out(cluster, movers, _plan(cluster, [node for node, _ in movers.values()]))
    if _goes_home(cluster):
        _plan_failback(cluster)


# Emptying a host


def _note_progress(cluster: Cluster, host: HostNode) -> None:
    left = cluster.vms_held_by(host.id)
    if not left and host.record.drain is Drain.DRAINING and host.id not in cluster.awaited:
        host.set(drain=Drain.DRAINED)
        cluster.tell("host.drained", host=host)
        cluster.changed_hosts.add(host.id)
    elif left and host.record.drain is Drain.DRAINED:
        # Somebody started one there, or an old copy came to light.
        host.set(drain=Drain.DRAINING)
        cluster.changed_hosts.add(host.id)


def _why_nobody(cluster: Cluster, host: HostNode) -> Reason | None:
    """What keeps all of a host's VMs from leaving it."""
    if cluster.hold is not None:
        return reason("recovery.blocked.hold", why=cluster.hold)
    if cluster.record.brake is not None:
        return reason("migration.waiting.brake", hosts=cluster.record.brake.hosts)
    told = host.survey is not None and host.survey.boot == host.record.boot
    if host.verdict is not Verdict.ALIVE or not host.libvirt_answers or not told:
        return reason("migration.waiting.source", host=host.config.name)
    return None


def _why_not(cluster: Cluster, node: VmNode, host: HostNode) -> Reason | None:
    """What keeps this VM from leaving ``host``, wherever to."""
    if node.config.ignore:
        return reason("migration.blocked.ignored")
    grade = may_move(cluster, node)
    if grade is not None:
        return reason("migration.blocked.grade", grade=grade.value)
    why_not = _why_it_cannot(cluster, node, host)
    if why_not is not None:
        return why_not
    retry = node.record.retry
    if retry is not None and retry.next_ms > cluster.now:
        cluster.wake_vm(node, retry.next_ms)
        delay_ms = retry.next_ms - cluster.now
        return reason("migration.waiting.retry", count=retry.failures, delay_ms=delay_ms)
    return None


def _why_it_cannot(cluster: Cluster, node: VmNode, host: HostNode) -> Reason | None:
    """Also when an operator asks for it."""
    others = sorted({copy.host_id for copy in node.record.copies} - {host.id})
    if others or len(node.record.copies) != 1:
        names = [cluster.hosts[one].config.name if one in cluster.hosts else one for one in others]
        return reason("migration.blocked.copies", hosts=", ".join(names) or host.config.name)
    (copy,) = node.record.copies
    known = node.state_host == host.id and node.state is not VmState.UNKNOWN
    if not known or copy.boot not in (None, host.record.boot):
        return reason("migration.waiting.state", host=host.config.name)
    if node.io_error:
        return reason("migration.blocked.io_error")
    if node.state is not VmState.RUNNING:
        return reason("migration.blocked.not_running", state=node.state.value)
    return None


def _plan(
    cluster: Cluster, movers: Sequence[VmNode], homes: dict[VmId, HostId] | None = None
) -> Plan:
    first = [place_kept(node) for node in recovering(cluster)]
    return plan_away(
        cluster,
        movers,
        [*first, *(_to_move(node, homes or {}) for node in movers)],
        policy=_without_slots(cluster.policy.recovery),
        progress={},
    )


def plan_away(
    cluster: Cluster,
    nodes: Sequence[VmNode],
    candidates: Sequence[VmToPlace],
    *,
    policy: RecoveryPolicy,
    progress: Progress,
) -> Plan:
    """``nodes`` are no obstacle to themselves: for the plan they are taken off the hosts that they are to leave."""
    sources = [(node.record.copies[0].host_id, node) for node in nodes]
    for host_id, node in sources:
        cluster.capacity.vm_ended(host_id, node.id)
    plan = plan_placements(
        cluster.capacity,
        candidates,
        policy=policy,
        now=cluster.now,
        progress=progress,
        storage_names=split_names(cluster),
    )
    for host_id, node in sources:
        cluster.capacity.vm_started(host_id, held(node.config))
    return plan


def recovering(cluster: Cluster) -> list[VmNode]:
    """Those that may need a place soon, and have none yet."""
    nodes = [cluster.vms[vm_id] for vm_id in sorted(cluster.unsettled)]
    placeless = (VmStage.LOST, VmStage.READY)
    return [
        node
        for node in nodes
        if node.protected and node.record.stage in placeless and may_move(cluster, node) is None
    ]


def place_kept(node: VmNode) -> VmToPlace:
    """Its room, whether or not what it depends on is up."""
    return replace(to_place(node), depends_on=())


def _to_move(node: VmNode, homes: dict[VmId, HostId]) -> VmToPlace:
    tried = node.record.retry.tried if node.record.retry is not None else ()
    home = homes.get(node.id)
    return replace(
        to_place(node),
        purpose=Purpose.MOVE,
        depends_on=(),  # it runs: what it depends on is its own affair
        attempts=0,
        # Its home is asked for alone: that a move there failed before is what the delay is for.
        excluded=frozenset({node.record.copies[0].host_id, *(() if home else tried)}),
        preferred=home,
    )


def _without_slots(policy: RecoveryPolicy) -> RecoveryPolicy:
    return replace(policy, starts_per_host=256, starts_per_cluster=10_000)


def _carry_out(cluster: Cluster, movers: dict[VmId, tuple[VmNode, HostNode]], plan: Plan) -> None:
    limit = cluster.policy.maintenance.migrations_per_host
    moving = _moving(cluster)
    for placement in plan.placements:
        if placement.vm_id not in movers:
            continue  # a recovery's place, which is kept for it
        node, source = movers[placement.vm_id]
        target = cluster.hosts[placement.host_id]
        full = next((one for one in (source, target) if moving[one.id] >= limit), None)
        if full is not None:
            why = reason("migration.waiting.limit", host=full.config.name, limit=limit)
            node.reasons = (why,)
            continue
        moving.update((source.id, target.id))
        order_move(cluster, node, source, target, MovePurpose.MAINTENANCE)
    for waiting in plan.waiting:
        if waiting.vm_id in movers:
            movers[waiting.vm_id][0].reasons = waiting.reasons
    for blocked in plan.blocked:
        if blocked.vm_id not in movers:
            continue
        node, source = movers[blocked.vm_id]
        no_target = reason("migration.blocked.no_target", host=source.config.name)
        node.reasons = (no_target, *blocked.reasons)
        retry = node.record.retry
        if retry is not None and retry.tried:
            # Nothing is left but what failed before: once more around, after the delay.
            cluster.set_vm(node, retry=replace(retry, tried=()))


def _moving(cluster: Cluster) -> Counter[HostId]:
    """How many moves each host takes part in."""
    moving: Counter[HostId] = Counter()
    for vm_id in cluster.migrating:
        migration = cluster.vms[vm_id].record.migration
        if migration is not None:
            moving.update((migration.source, migration.target))
    return moving


# Asked for by an operator


def move_asked(cluster: Cluster, event: MoveAsked) -> None:
    """At once or not at all: nobody wants a move that begins an hour later."""
    cluster.moves_asked.append(event)
    cluster.plan_wanted = True


def _answer(cluster: Cluster, event: MoveAsked) -> None:
    node = cluster.vms.get(event.vm_id)
    if node is None:
        return
    why_not = _try_move(cluster, node, event.target)
    if why_not is None:
        return
    target = cluster.hosts.get(event.target) if event.target is not None else None
    name = "another host" if event.target is None else event.target
    cluster.tell(
        "vm.move_refused",
        vm=node,
        why=why_not.code,
        target=name if target is None else target.config.name,
    )


def _try_move(cluster: Cluster, node: VmNode, target_id: HostId | None) -> Reason | None:
    if node.record.stage is not VmStage.SETTLED or not node.record.copies:
        first = next(iter(node.reasons), None)
        return first or reason("migration.blocked.not_running", state=node.state.value)
    source = cluster.hosts.get(node.record.copies[0].host_id)
    if source is None or target_id == source.id or (target_id or source.id) not in cluster.hosts:
        return reason("migration.blocked.no_target", host=node.record.copies[0].host_id)
    why_not = _why_nobody(cluster, source) or _why_it_cannot(cluster, node, source)
    if why_not is not None:
        return why_not
    plan = _plan(cluster, [node], {} if target_id is None else {node.id: target_id})
    place = next((one.host_id for one in plan.placements if one.vm_id == node.id), None)
    if place is None or target_id not in (None, place):
        return reason("migration.blocked.no_target", host=source.config.name)
    limit, moving = cluster.policy.maintenance.migrations_per_host, _moving(cluster)
    for one in (source, cluster.hosts[place]):
        if moving[one.id] >= limit:
            return reason("migration.waiting.limit", host=one.config.name, limit=limit)
    order_move(cluster, node, source, cluster.hosts[place], MovePurpose.OPERATOR)
    return None


# Failback


def _goes_home(cluster: Cluster) -> bool:
    return cluster.policy.recovery.failback is Failback.AUTOMATIC


def _plan_failback(cluster: Cluster) -> None:
    """At most one order. VMs that stay say why, though nothing is wrong with them."""
    calm = _is_calm(cluster)
    movers: dict[VmId, tuple[VmNode, HostNode, HostNode]] = {}
    for vm_id in sorted(cluster.homesick):
        node = cluster.vms[vm_id]
        pair = _way_home(cluster, node)
        if pair is None:
            continue
        source, home = pair
        why_not = _why_not_home(cluster, node, source, home, calm=calm)
        if why_not is None:
            movers[node.id] = (node, source, home)
        else:
            node.reasons = (why_not,)
    if not movers:
        return
    homes = {vm_id: home.id for vm_id, (_, _, home) in movers.items()}
    plan = _plan(cluster, [node for node, _, _ in movers.values()], homes)
    fitting = {
        placement.vm_id
        for placement in plan.placements
        if placement.host_id == homes.get(placement.vm_id)
        and all(why.code != "placement.soft_rule_broken" for why in placement.reasons)
    }
    ordered = False
    for vm_id, (node, source, home) in movers.items():
        name = home.config.name
        if vm_id not in fitting or not _fits_without_overcommit(cluster, node, home):
            node.reasons = (reason("failback.blocked.room", host=name),)
        elif ordered:
            node.reasons = (reason("failback.waiting.turn", host=name),)
        else:
            order_move(cluster, node, source, home, MovePurpose.FAILBACK)
            ordered = True


def _way_home(cluster: Cluster, node: VmNode) -> tuple[HostNode, HostNode] | None:
    """From where to where; None: it is not settled on one host that may keep it, or its home is gone."""
    record = node.record
    if record.stage is not VmStage.SETTLED or len(record.copies) != 1 or record.home is None:
        return None
    source = cluster.hosts.get(record.copies[0].host_id)
    home = cluster.hosts.get(record.home)
    if source is None or home is None or source is home or source.record.drain is not None:
        return None
    return source, home


def _is_calm(cluster: Cluster) -> bool:
    """No failure is dealt with. A host that is proven dead, and whose VMs are up again, is none."""
    if cluster.unsettled or cluster.awaited or cluster.record.brake is not None:
        return False
    return all(cluster.hosts[host_id].verdict is Verdict.DEAD_PROVEN for host_id in cluster.absent)


def _why_not_home(
    cluster: Cluster, node: VmNode, source: HostNode, home: HostNode, *, calm: bool
) -> Reason | None:
    name = home.config.name
    target = cluster.capacity.target(home.id)
    if target is None or target.unfit is not None:
        return reason("failback.blocked.unfit", host=name)
    if cluster.hold is not None:
        return reason("recovery.blocked.hold", why=cluster.hold)
    well_ms = home.verdict_ms + cluster.policy.recovery.failback_stable_ms
    if cluster.now < well_ms:
        cluster.wake_vm(node, well_ms)
        return reason("failback.waiting.stable", host=name, left_ms=well_ms - cluster.now)
    if not calm:
        return reason("failback.waiting.calm", host=name)
    why_not = _why_nobody(cluster, source) or _why_not(cluster, node, source)
    if why_not is None and cluster.migrating:
        return reason("failback.waiting.turn", host=name)
    return why_not


def _fits_without_overcommit(cluster: Cluster, node: VmNode, home: HostNode) -> bool:
    """As though the policy promised memory only once."""
    ledger = cluster.capacity.ledgers[home.id]
    target = ledger.target
    if target is None:
        return False
    free = target.memory_bytes - target.reserved_bytes - ledger.used_bytes
    return free >= node.config.memory_bytes


# Told of a host


def drain_reasons(cluster: Cluster, host: HostNode) -> tuple[Reason, ...]:
    """How far it is; empty where nothing is to leave it."""
    if host.record.drain is None:
        return ()
    left = cluster.vms_held_by(host.id)
    if not left:
        return (reason("host.empty"),) if host.record.drain is Drain.DRAINED else ()
    moving = sum(node.record.stage is VmStage.MIGRATING for node in left)
    blocked = sum(
        any(".blocked." in why.code for why in node.reasons)
        for node in left
        if node.record.stage is not VmStage.MIGRATING
    )
    return (reason("host.draining", left=len(left), moving=moving, blocked=blocked),)
