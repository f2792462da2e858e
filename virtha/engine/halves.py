"""Halves of live migrations that the records have lost: the database was restored from before they were ordered (M2).

The target tells that it awaits a copy, and by which migration. It may come to hold it, so it is a holder from then on
(G1), and no start is given the incarnation that it has (G4). When every host has told what it holds, the migration is
put on record as one that nobody knows the end of, and goes on as such (``migration``, G6; ADR 10): both sides are asked,
a copy that was received whole may run when nobody else can hold the VM, and any other is given back.
"""

from virtha.engine.events import CopyReleased, VmSeen
from virtha.engine.incident import STILL_WANTED, lose
from virtha.engine.machine import VmTrigger
from virtha.engine.records import GivenBack, Migration, MovePurpose, MoveStep, VmRecord
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.facts import ReleaseCause
from virtha.model.ids import BootId, HostId, Incarnation
from virtha.model.vm import PossibleCopy, Reason

LOOK_EVERY_MS = 1_000
"""While hosts have not told what they hold."""


def half_seen(cluster: Cluster, node: VmNode, host: HostNode, event: VmSeen) -> None:
    """A host awaits the VM. Of a migration on record that is nothing new."""
    assert event.awaited_by is not None, f"{node.config.name}: no half of a migration"
    migration = node.record.migration
    if migration is not None and migration.order_id == event.awaited_by:
        return
    node.half = event
    cluster.touch_vm(node)
    copy = PossibleCopy(host_id=host.id, incarnation=event.incarnation, boot=event.boot)
    if _ends_start(node.record, copy):
        _hold(cluster, node, copy)
    elif not any(_same(one, copy) for one in node.record.copies):
        _hold(cluster, node, copy)
        cluster.tell("vm.migration_found", vm=node, host=host)
    if host.record.incident is not None or event.boot != host.record.boot:
        lose(cluster, node)  # it told before it was judged, or of a boot that has not begun


def note_arrived(node: VmNode, event: VmSeen) -> None:
    """Of a copy that is awaited no state is told: what that host tells of it now has run there. It may have been left
    by another migration since, as whose source it stands still."""
    half = node.half
    if half is None or half.host_id != event.host_id:
        return
    if event.incarnation >= half.incarnation:
        node.half = None


def note_source_over(cluster: Cluster, node: VmNode, event: CopyReleased) -> None:
    """Another host's copy is over while this one awaits its own: as of a migration on record, only a stop on purpose
    is meant for the VM."""
    if node.half is not None and event.host_id != node.half.host_id:
        meant = event.cause is ReleaseCause.INTENDED
        given_back = GivenBack(host_id=event.host_id, cause=event.cause if meant else None)
        cluster.set_vm(node, given_back=given_back)


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


def look_at_half(cluster: Cluster, node: VmNode) -> None:
    """Puts the migration on record as soon as everybody who could know of the other side has told."""
    half, record = node.half, node.record
    assert half is not None and half.awaited_by is not None
    mine = PossibleCopy(host_id=half.host_id, incarnation=half.incarnation, boot=half.boot)
    others = [one for one in record.copies if not _same(one, mine)]
    held = len(others) < len(record.copies)
    if record.migration is not None or not held:
        node.half = None  # on record, or over
    elif record.start is None and cluster.awaited:
        cluster.wake_vm(node, cluster.now + LOOK_EVERY_MS)
    elif record.start is None and len(others) <= 1:
        source = others[0] if others else _gone(record, half)
        if source is not None and source.host_id != half.host_id:
            _put_on_record(cluster, node, half, source)


def why_half(cluster: Cluster, node: VmNode) -> tuple[Reason, ...]:
    """What keeps it from being put on record."""
    half = node.half
    if half is None:
        return ()
    if cluster.awaited:
        names = ", ".join(sorted(cluster.host_name(one) for one in cluster.awaited))
        return (reason("recovery.waiting.inventory", hosts=names),)
    if len(node.record.copies) == 1:
        return (reason("migration.blocked.source_unknown", host=cluster.host_name(half.host_id)),)
    return ()


def _put_on_record(cluster: Cluster, node: VmNode, half: VmSeen, source: PossibleCopy) -> None:
    assert half.awaited_by is not None
    migration = Migration(
        order_id=half.awaited_by,
        purpose=MovePurpose.OPERATOR,
        source=source.host_id,
        source_boot=source.boot or _boot_of(cluster, source.host_id),
        source_incarnation=source.incarnation,
        target=half.host_id,
        target_boot=half.boot,
        incarnation=half.incarnation,
        ordered_ms=int(cluster.now),
        step=MoveStep.DOUBTFUL,
    )
    given_back = node.record.given_back
    if given_back is not None and given_back.cause in STILL_WANTED:
        given_back = None  # its source went down in order: that says nothing against it
    if cluster.move_vm(node, VmTrigger.MOVE_FOUND, migration=migration, given_back=given_back):
        node.half = None
        node.asked_words, node.asked_ms = (), None


def _gone(record: VmRecord, half: VmSeen) -> PossibleCopy | None:
    """The last that held it, and does so no more. None: nobody did as far as is known, so it comes from a host that the
    restored records may not name, and may run there."""
    if record.proofs:
        host_id = record.proofs[-1].host_id
    elif record.given_back is not None:
        host_id = record.given_back.host_id
    else:
        return None
    return PossibleCopy(
        host_id=host_id, incarnation=Incarnation(half.incarnation - 1), boot=BootId("")
    )


def _boot_of(cluster: Cluster, host_id: HostId) -> BootId:
    host = cluster.hosts.get(host_id)
    return BootId("") if host is None or host.record.boot is None else host.record.boot


def _same(one: PossibleCopy, other: PossibleCopy) -> bool:
    same = (one.host_id, one.incarnation) == (other.host_id, other.incarnation)
    return same and one.boot in (None, other.boot)


def _is_former(one: PossibleCopy, half: PossibleCopy) -> bool:
    return (
        one.host_id == half.host_id
        and one.incarnation <= half.incarnation
        and one.boot in (None, half.boot)
    )
