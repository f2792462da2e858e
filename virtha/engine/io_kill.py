"""VMs that an I/O error paused and that are to run again elsewhere: ended on their host, then started on another (S6).

Ending one is final for its guest, so it is only ordered when a start elsewhere is sure to follow, as far as anybody can
know: for ``io_error.kill_after`` another host could have taken it while it stood still (where the storage was away for
all, its own host is given that time, too), the grade lets it move, nothing holds automatic action, no other host may hold a copy, and it was
not lost on another host within the quarantine window: a disk that fails everywhere must not send it round (M5). A host on
which another VM stands still for the same storage is none whose storage works. Until all of that is so it stays as it is,
with the reason, and its own host lets it go on when its storage answers.

The order is on record before it goes out, and is repeated until the host gives the copy back (P5) or refuses. A QEMU that
does not end keeps the VM where it is: its host is a holder, and nothing starts elsewhere (G1).
"""

from collections.abc import Mapping, Sequence

from virtha.engine.drain import place_kept, plan_away, recovering
from virtha.engine.ending import EndPaused
from virtha.engine.events import KillEnded
from virtha.engine.incident import domains_of, recent_deaths
from virtha.engine.machine import Verdict
from virtha.engine.placement import VmToPlace
from virtha.engine.records import Drain, Kill, VmStage
from virtha.engine.recovery import barrier, may_move, progress_of, to_place
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.facts import Result
from virtha.model.ids import HostId, VmId
from virtha.model.vm import PossibleCopy, Reason, VmState

AGAIN_MS = 30_000
"""An order that is not answered is sent again, and one that was refused made anew: the host's agent may have been
restarting, and what it objected to may be over. Longer than libvirt tries to end a QEMU."""


def note_pause(cluster: Cluster, node: VmNode) -> None:
    """Since when this leader knows that it stands still; at each look. Where it does no more, nothing is left to be done."""
    stands = node.io_error and node.state is VmState.PAUSED and node.record.stage is VmStage.SETTLED
    if not stands:
        node.paused_ms = node.fits_ms = None
    elif node.paused_ms is None:
        node.paused_ms = cluster.now
    kill = node.record.kill
    if kill is not None and not _is_meant(node, kill):
        cluster.set_vm(node, kill=None)
    if node.record.kill is None and not stands:
        node.kill_answer = None
    cluster.index_vm(node)
    if node.id in cluster.paused:
        cluster.plan_wanted = True


def _is_meant(node: VmNode, kill: Kill) -> bool:
    """Still that copy, and it has not gone on since. One whose host is silent is meant still: its host says how it is."""
    if node.record.stage is not VmStage.SETTLED or not node.config.wanted_up:
        return False
    if all(
        (one.host_id, one.incarnation) != (kill.host_id, kill.incarnation)
        for one in node.record.copies
    ):
        return False
    return node.seen.get(kill.host_id) != (kill.incarnation, VmState.RUNNING)


def kills_wanted(cluster: Cluster) -> bool:
    """Whether a plan of them could have anything to do."""
    return bool(cluster.paused)


def plan_kills(cluster: Cluster) -> None:
    """After all other plans. Orders what may be ended now, and says of each other one why it isn't."""
    movable: dict[VmId, tuple[VmNode, HostNode]] = {}
    under_way: list[VmNode] = []
    for vm_id in sorted(cluster.paused):
        node = cluster.vms[vm_id]
        if node.record.kill is not None:
            _go_on(cluster, node, node.record.kill)
            under_way.append(node)
        elif _asks_for_it(node):
            host, why_not = _why_not(cluster, node)
            if host is not None and why_not is None:
                movable[vm_id] = (node, host)
            elif why_not is not None:
                node.fits_ms = None
                node.reasons = (why_not,)
    if movable:
        _carry_out(cluster, movable, under_way)


def _asks_for_it(node: VmNode) -> bool:
    """A full disk is as full for every host."""
    return node.config.kill_on_io_error and node.config.wanted_up and not node.no_room


def _why_not(cluster: Cluster, node: VmNode) -> tuple[HostNode | None, Reason | None]:
    """Its host, and what keeps it from being ended there, in the order in which an operator would ask."""
    if not node.config.ha:
        return None, reason("io_error.kill.blocked.not_ha")
    if node.config.ignore:
        return None, reason("recovery.blocked.ignored")
    grade = may_move(cluster, node)
    if grade is not None:
        return None, reason("recovery.blocked.grade", grade=grade.value)
    others = _others(cluster, node, node.state_host)
    host = cluster.hosts.get(node.state_host) if node.state_host is not None else None
    if host is None or others is not None:
        return None, reason("io_error.kill.blocked.copies", hosts=others or "another host")
    why_not = (
        _by_host(cluster, host, node.record.copies[0])
        or _by_deaths(cluster, node, host)
        or next(iter(barrier(cluster)), None)
    )
    return host, why_not


def _others(cluster: Cluster, node: VmNode, host_id: HostId | None) -> str | None:
    """Who may hold it beside that host, by name; None: nobody, and it holds one copy."""
    others = sorted({copy.host_id for copy in node.record.copies} - {host_id})
    if not others and len(node.record.copies) == 1 and node.half is None and node.stands is None:
        return None
    return ", ".join(cluster.host_name(one) for one in others) or "another host"


def _by_host(cluster: Cluster, host: HostNode, copy: PossibleCopy) -> Reason | None:
    record = host.record
    if record.maintenance is not None and record.drain is not Drain.DRAINING:
        return reason(
            "io_error.kill.blocked.maintenance", host=host.config.name, by=record.maintenance
        )
    if not _answers(host) or copy.boot not in (None, record.boot):
        return reason("io_error.kill.waiting.host", host=host.config.name)
    return None


def _answers(host: HostNode) -> bool:
    well = host.verdict is Verdict.ALIVE and host.record.incident is None
    return well and host.libvirt_answers


def _by_deaths(cluster: Cluster, node: VmNode, host: HostNode) -> Reason | None:
    elsewhere = [death for death in recent_deaths(cluster, node) if death.host_id != host.id]
    if not elsewhere:
        return None
    last_ms = max(death.at_ms for death in elsewhere)
    cluster.wake_vm(node, last_ms + cluster.policy.recovery.quarantine_window_ms)
    names = ", ".join(sorted({cluster.host_name(death.host_id) for death in elsewhere}))
    return reason("io_error.kill.blocked.deaths", hosts=names)


def _not_yet(cluster: Cluster, node: VmNode, host: HostNode) -> Reason | None:
    """Of one that another host could take."""
    if node.fits_ms is None:
        node.fits_ms = cluster.now
    due_ms = node.fits_ms + cluster.policy.io_error.kill_after_ms
    if cluster.now < due_ms:
        cluster.wake_vm(node, due_ms)
        left_ms = due_ms - cluster.now
        return reason("io_error.kill.waiting.delay", host=host.config.name, left_ms=left_ms)
    if node.kill_answer is None or node.kill_sent_ms is None:
        return None
    again_ms = node.kill_sent_ms + AGAIN_MS
    if cluster.now >= again_ms:
        return None
    cluster.wake_vm(node, again_ms)
    return reason("io_error.kill.blocked.refused", host=host.config.name, why=node.kill_answer)


# Where to


def _carry_out(
    cluster: Cluster, movable: Mapping[VmId, tuple[VmNode, HostNode]], under_way: list[VmNode]
) -> None:
    """Those that are being ended keep their room, and so do those that are lost already."""
    first = [place_kept(node) for node in recovering(cluster)]
    kept = [_to_place(cluster, node) for node in under_way]
    wanted = [_to_place(cluster, node) for node, _ in movable.values()]
    nodes = [*under_way, *(node for node, _ in movable.values())]
    plan = plan_away(
        cluster,
        nodes,
        [*first, *kept, *wanted],
        policy=cluster.policy.recovery,
        progress=progress_of(cluster, wanted),
    )
    for placement in plan.placements:
        if placement.vm_id in movable:
            node, host = movable[placement.vm_id]
            why_not = _not_yet(cluster, node, host)
            if why_not is None:
                _order(cluster, node, host)
            else:
                node.reasons = (why_not,)
    for waiting in plan.waiting:
        if waiting.vm_id in movable:
            node, host = movable[waiting.vm_id]
            why_not = _not_yet(cluster, node, host)
            node.reasons = waiting.reasons if why_not is None else (why_not,)
    for blocked in plan.blocked:
        if blocked.vm_id in movable:
            node, _ = movable[blocked.vm_id]
            node.fits_ms = None
            node.reasons = _no_target(cluster, node, blocked.reasons)
    if plan.wake_at is not None:
        cluster.wake_vm(next(iter(movable.values()))[0], plan.wake_at)


def _no_target(cluster: Cluster, node: VmNode, obstacles: Sequence[Reason]) -> tuple[Reason, ...]:
    failing = ", ".join(sorted(cluster.host_name(one) for one in _same_trouble(cluster, node)))
    # Those that were left out are told as such, not as hosts where a start of it failed.
    left = [one for one in obstacles if one.code != "recovery.blocked.tried"]
    return (reason("io_error.kill.waiting.target", failing=failing or "none"), *left)


def _to_place(cluster: Cluster, node: VmNode) -> VmToPlace:
    wanted = to_place(node)
    excluded = _same_trouble(cluster, node) | {copy.host_id for copy in node.record.copies}
    return VmToPlace(
        id=wanted.id,
        name=wanted.name,
        memory_bytes=wanted.memory_bytes,
        vcpus=wanted.vcpus,
        priority=wanted.priority,
        features=wanted.features,
        groups=wanted.groups,
        depends_on=wanted.depends_on,
        excluded=frozenset(excluded),
    )


def _same_trouble(cluster: Cluster, node: VmNode) -> set[HostId]:
    """Hosts that call its storage usable, and fail another VM there."""
    domains = domains_of(node)
    return {
        other.state_host
        for other in (cluster.vms[one] for one in cluster.paused)
        if other.state_host is not None and other is not node and domains & domains_of(other)
    }


# The order


def _order(cluster: Cluster, node: VmNode, host: HostNode) -> None:
    assert host.record.boot is not None and node.paused_ms is not None
    kill = Kill(
        order_id=cluster.next_order(),
        host_id=host.id,
        boot=host.record.boot,
        incarnation=node.record.copies[0].incarnation,
    )
    cluster.set_vm(node, kill=kill)
    if node.kill_answer is None:
        paused_ms = cluster.now - node.paused_ms
        cluster.tell("vm.io_error.killing", vm=node, host=host, paused_ms=paused_ms)


def _go_on(cluster: Cluster, node: VmNode, kill: Kill) -> None:
    """Also by a new leader: the order that it finds may never have been sent, and twice is harmless."""
    host = cluster.hosts.get(kill.host_id)
    name = cluster.host_name(kill.host_id)
    if cluster.hold is not None:
        node.reasons = (reason("recovery.blocked.hold", why=cluster.hold),)
        return
    grade = may_move(cluster, node)
    if grade is not None:
        # Lowered since: nothing would start it again.
        node.reasons = (reason("recovery.blocked.grade", grade=grade.value),)
        return
    others = _others(cluster, node, kill.host_id)
    if others is not None:
        node.reasons = (reason("io_error.kill.blocked.copies", hosts=others),)
        return
    if host is None or not _answers(host) or host.record.boot != kill.boot:
        node.reasons = (reason("io_error.kill.waiting.host", host=name),)
        return
    mine = node.sent == kill.order_id and node.kill_sent_ms is not None
    if not mine or (node.kill_sent_ms or 0) + AGAIN_MS <= cluster.now:
        node.sent, node.kill_sent_ms = kill.order_id, cluster.now
        cluster.order(
            EndPaused(
                order_id=kill.order_id,
                vm_id=node.id,
                host_id=kill.host_id,
                boot=kill.boot,
                incarnation=kill.incarnation,
            )
        )
    cluster.wake_vm(node, (node.kill_sent_ms or 0) + AGAIN_MS)
    if node.kill_answer is None:
        node.reasons = (reason("io_error.kill.ending", host=name),)
    else:
        node.reasons = (reason("io_error.kill.stuck", host=name, why=node.kill_answer),)


def kill_ended(cluster: Cluster, event: KillEnded) -> None:
    """What it means that it ended is its release's to say."""
    node = cluster.vms.get(event.vm_id)
    kill = node.record.kill if node is not None else None
    if node is None or kill is None or kill.order_id != event.order_id or event.result is Result.OK:
        return
    refused, why = event.result is Result.REFUSED, event.code or event.result.value
    if why != node.kill_answer:
        node.kill_answer = why
        code = "vm.io_error.kill_refused" if refused else "vm.io_error.kill_failed"
        cluster.tell(code, vm=node, host=cluster.hosts.get(event.host_id), why=why)
    if refused:
        cluster.set_vm(node, kill=None)
    cluster.touch_vm(node)
