"""Live migrations that the records have lost: the database was restored from before they were ordered (M2).

Either side tells of one: the target that it awaits a copy, the source that it stands still until it is told how it goes
on. Each names the other side's copy as its order did. Who tells is a holder from then on (G1), and no start is given the
incarnation that it has (G4). When every host has told what it holds, and nobody but those two may hold the VM, the migration
is put on record, with both as holders, as one that nobody knows the end of, and goes on as such (``migration``, G6; ADR
10): both sides are asked, a copy that was received whole may run when nobody else can hold the VM, the source when the
target says that it never ran, and any other is given back.

Nothing that was said or proven of other copies is taken for the end of its source: that would let the target run beside a
host that the restored records don't name.
"""

from msgspec.structs import replace

from virtha.engine.events import CopyReleased, VmSeen
from virtha.engine.holders import incarnation_told, same_copy
from virtha.engine.incident import (
    STILL_WANTED,
    boot_passed,
    end_side,
    lose,
    reconcile,
)
from virtha.engine.machine import VmTrigger
from virtha.engine.records import GivenBack, Migration, MovePurpose, MoveStep, OrderId, VmRecord
from virtha.engine.removal import hold_fast, node_of
from virtha.engine.restored import why_inventory
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.facts import ReleaseCause
from virtha.model.ids import BootId, HostId
from virtha.model.vm import PossibleCopy, Reason

LOOK_EVERY_MS = 1_000
"""While hosts have not told what they hold."""


# What hosts tell


def half_seen(cluster: Cluster, node: VmNode, host: HostNode, event: VmSeen) -> None:
    """A host awaits the VM. Of a migration on record that is nothing new."""
    assert event.awaited_by is not None, f"{node.config.name}: no half of a migration"
    if _is_on_record(node, event.awaited_by):
        return
    if node.half is None or _rank(event) >= _rank(node.half):
        node.half = event
    cluster.touch_vm(node)
    copy = _told_by(event)
    if _ends_start(node.record, copy):
        _hold(cluster, node, copy)
    elif not any(same_copy(one, copy) for one in node.record.copies):
        _hold(cluster, node, copy)
        cluster.tell("vm.migration_found", vm=node, host=host)
    _hold_unknown(cluster, node, event)
    if host.record.incident is not None or event.boot != host.record.boot:
        lose(cluster, node)  # it told before it was judged, or of a boot that has not begun
    incarnation_told(cluster, node, copy)


def state_seen(cluster: Cluster, node: VmNode, event: VmSeen) -> None:
    """A host told how the VM is there. Of a copy that is awaited no state is told: it has run there since. It may have
    been left by another migration, as whose source it stands still."""
    half, stands = node.half, node.stands
    if half is not None and half.host_id == event.host_id and event.incarnation >= half.incarnation:
        node.half = None
    if stands is not None and stands.host_id == event.host_id:
        node.stands = None  # told by an agent that had not said yet how it went on
    if event.leaves_by is None or event.other is None or _is_on_record(node, event.leaves_by):
        return
    if node.stands is None or _rank(event) >= _rank(node.stands):
        node.stands = event
    cluster.touch_vm(node)
    _hold_unknown(cluster, node, event)


def note_side_over(cluster: Cluster, node: VmNode, event: CopyReleased) -> None:
    """Another host's copy is over while this one awaits its own: as of a migration on record, only a stop on purpose
    is meant for the VM."""
    half = node.half
    if node.stands is not None or (half is not None and event.host_id != half.host_id):
        meant = event.cause is ReleaseCause.INTENDED
        given_back = GivenBack(host_id=event.host_id, cause=event.cause if meant else None)
        cluster.set_vm(node, given_back=given_back)


def _rank(event: VmSeen) -> tuple[int, bool]:
    """The latest counts: it was ordered when the ones before were over. Of one and the same rather what its source tells,
    which waits for an answer whatever becomes of the target."""
    _, target = _sides(event)
    return target.incarnation, event.leaves_by is not None


def _forgotten(node: VmNode) -> VmSeen | None:
    told = [one for one in (node.half, node.stands) if one is not None]
    return max(told, key=_rank, default=None)


# Holding


def _hold_unknown(cluster: Cluster, node: VmNode, event: VmSeen) -> None:
    """No inventory tells of a host that is not configured (M2). Any other tells itself; what was told of it here may be of
    long ago."""
    if event.other is not None and event.other.host_id not in cluster.hosts:
        _hold_other(cluster, node, event)


def _hold_other(cluster: Cluster, node: VmNode, event: VmSeen) -> None:
    """Until it says itself that it doesn't, or is proven dead: what it said before the restore is forgotten."""
    other = event.other
    if other is None or any(same_copy(one, other) for one in node.record.copies):
        return
    host = cluster.hosts.get(other.host_id)
    if host is not None:
        _hold(cluster, node, other)
        reconcile(cluster, node)
        end_side(cluster, node, host, other)
        return
    removed = node_of(cluster, other.host_id)
    if other.boot not in removed.record.dead_boots:
        _hold(cluster, node, other)
        hold_fast(cluster, removed)


def _ends_start(record: VmRecord, copy: PossibleCopy) -> bool:
    """A start that was given there: with this incarnation or a later one awaited, it is refused for good."""
    start = record.start
    return (
        start is not None
        and (start.host_id, start.boot) == (copy.host_id, copy.boot)
        and start.incarnation <= copy.incarnation
    )


def _hold(cluster: Cluster, node: VmNode, copy: PossibleCopy) -> None:
    record = node.record
    changes = {
        # What that host had of it before is over, or it would not await another; nor was that more than a guess if a
        # survey named it.
        "copies": (*(one for one in record.copies if not _is_former(one, copy)), copy),
        "incarnation": max(copy.incarnation, record.incarnation),
        "given_back": None,  # said of a copy before this one
    }
    if record.start is not None and not _ends_start(record, copy):
        cluster.set_vm(node, **changes)  # it is taken back first
        return
    changes |= {
        "start": None,
        "lost_ms": int(cluster.now) if record.lost_ms is None else record.lost_ms,
    }
    if not cluster.move_vm(node, VmTrigger.HALF_FOUND, **changes):
        del changes["lost_ms"]
        cluster.set_vm(node, **changes)


# One look


def look_at_half(cluster: Cluster, node: VmNode) -> None:
    """Puts the migration on record as soon as everybody who could know of it has told."""
    _drop_what_is_over(node)
    half = _forgotten(node)
    if half is None or node.record.start is not None:
        return
    if cluster.awaited:
        cluster.wake_vm(node, cluster.now + LOOK_EVERY_MS)
        return
    source, others = _source_and_others(node.record, half)
    _, target = _sides(half)
    # A migration on record that it came after is over: its last side was this one's source.
    migration = node.record.migration
    last = migration is None or migration.incarnation < target.incarnation
    if source is not None and not others and last:
        _put_on_record(cluster, node, half, source)
    else:
        _tell_blocked(cluster, node)


def _drop_what_is_over(node: VmNode) -> None:
    """Put on record, or the copy of its host is over."""
    for name in ("half", "stands"):
        told: VmSeen | None = getattr(node, name)
        if told is None:
            continue
        held = any(same_copy(one, _told_by(told)) for one in node.record.copies)
        if not held or _is_on_record(node, _order(told)):
            setattr(node, name, None)


def why_half(cluster: Cluster, node: VmNode) -> tuple[Reason, ...]:
    """What keeps it from being put on record."""
    half, record = _forgotten(node), node.record
    if half is None or record.start is not None or record.migration is not None:
        return ()  # what is under way gives its own
    if cluster.awaited:
        return why_inventory(cluster)
    source, others = _source_and_others(record, half)
    if others:
        names = ", ".join(sorted({cluster.host_name(one.host_id) for one in others}))
        return (reason("migration.blocked.copies", hosts=names),)
    if source is None:
        return (reason("migration.blocked.source_unknown", host=cluster.host_name(half.host_id)),)
    return ()


def _tell_blocked(cluster: Cluster, node: VmNode) -> None:
    """Once for each kind of obstacle: nobody runs it until a person has looked."""
    for why in why_half(cluster, node):
        if node.blocked_told != why.code:
            node.blocked_told = why.code
            cluster.tell("vm.migration_unsettled", vm=node, why=why.code)


def _source_and_others(
    record: VmRecord, half: VmSeen
) -> tuple[PossibleCopy | None, list[PossibleCopy]]:
    """Where it comes from, and who else may hold it. An agent of an earlier version does not say where from: then the only
    other holder is it; None: there is none, so a host may run it that the restored records don't name."""
    source, target = _sides(half)
    others = [one for one in record.copies if not same_copy(one, target)]
    if source is not None:
        return source, [one for one in others if not same_copy(one, source)]
    if len(others) == 1 and others[0].host_id != target.host_id:
        return others[0], []
    return None, others


def _end_former_boots(cluster: Cluster, node: VmNode, half: VmSeen) -> None:
    """A side whose host told of another boot in this term: the order named the boot that it had then, so that one is
    over (P4), though the restored records never heard of it."""
    for side in _sides(half):
        host = cluster.hosts.get(side.host_id) if side is not None else None
        if side is None or side.boot is None or host is None or host.survey is None:
            continue
        boot = host.record.boot
        told = (
            host.survey.boot == boot
        )  # whether it is within reach now or not: boots don't come back
        held = any(same_copy(one, side) for one in node.record.copies)
        if held and told and boot is not None and side.boot not in (boot, *host.record.dead_boots):
            boot_passed(cluster, host, side.boot, boot)


def _put_on_record(cluster: Cluster, node: VmNode, half: VmSeen, source: PossibleCopy) -> None:
    _, target = _sides(half)
    # Whatever the other side has given back, it is asked: a source may go on only if the target says that it never ran (G6).
    _hold_other(cluster, node, half)
    _end_former_boots(cluster, node, half)
    if half.leaves_by is not None:
        source_host = cluster.hosts.get(source.host_id)
        cluster.tell("vm.migration_source_found", vm=node, host=source_host)
    migration = Migration(
        order_id=_order(half),
        purpose=MovePurpose.OPERATOR,
        source=source.host_id,
        source_boot=source.boot or _boot_of(cluster, source.host_id),
        source_incarnation=source.incarnation,
        target=target.host_id,
        target_boot=target.boot or _boot_of(cluster, target.host_id),
        incarnation=target.incarnation,
        ordered_ms=int(cluster.now),
        step=MoveStep.DOUBTFUL,
    )
    given_back = node.record.given_back
    if given_back is not None and given_back.cause in STILL_WANTED:
        given_back = None  # its source went down in order: that says nothing against it
    copies = tuple(
        replace(one, boot=source.boot) if same_copy(one, source) else one
        for one in node.record.copies
    )
    if cluster.move_vm(
        node, VmTrigger.MOVE_FOUND, migration=migration, given_back=given_back, copies=copies
    ):
        node.half = node.stands = None
        node.asked_words, node.asked_ms = (), None


# Small questions


def _sides(event: VmSeen) -> tuple[PossibleCopy | None, PossibleCopy]:
    """Source and target."""
    if event.awaited_by is not None:
        return event.other, _told_by(event)
    assert event.other is not None, "a source that does not say for whom it waits"
    return _told_by(event), event.other


def _told_by(event: VmSeen) -> PossibleCopy:
    return PossibleCopy(host_id=event.host_id, incarnation=event.incarnation, boot=event.boot)


def _order(event: VmSeen) -> OrderId:
    order_id = event.awaited_by or event.leaves_by
    assert order_id is not None, "of no migration"
    return order_id


def _is_on_record(node: VmNode, order_id: OrderId) -> bool:
    migration = node.record.migration
    return migration is not None and migration.order_id == order_id


def _boot_of(cluster: Cluster, host_id: HostId) -> BootId:
    host = cluster.hosts.get(host_id)
    return BootId("") if host is None or host.record.boot is None else host.record.boot


def _is_former(one: PossibleCopy, half: PossibleCopy) -> bool:
    return (
        one.host_id == half.host_id
        and one.incarnation <= half.incarnation
        and one.boot in (None, half.boot)
    )
