"""One VM's live migration, from the order until one side runs it and the other has given its copy back.

**Both sides may hold it** from before the command goes out (G1), and neither stops counting but by its own word or by a
proof. A host that dies in between does not make the VM *lost*: the other side may run it. It is lost once the last side
that could go on with it has failed.

**The incarnation rises** (G4): the target's copy gets the next one, the source's keeps its own. With one number for
both, a release that a host says again (as agents do when they start) would be taken for one of the copy that it has just been
sent, and the two could never be told apart when one comes back. When the move fails the source goes on under its lower
number; the record's is only the highest that was given, and the storage learns of it when the target runs.

**The command is never sent twice.** A start may be, because a host knows it again. A migration that was ordered once may
have ended in any way while its leader died, and sent again it would begin anew on a target that has released that
incarnation for good (P5). So a new leader asks both sides; a host that doesn't know the order refuses it from then on.

An order that may be lost with a session, or with its agent, is asked about in the same way, until its host has answered
that it is written down there. From then on that host tells of it by itself, whatever becomes of its sessions.

**Who may go on (G6).** A side left paused runs on only by our order, when the other side's copy is over. The target may
always: what it has is the newest. The source only if the target said that it never ran; otherwise the disks may be newer
than the source's memory, so what is left of it is ended and the VM starts afresh.
"""

from msgspec.structs import replace

from virtha.engine.events import (
    CopyReleased,
    MigrateCommand,
    MigrationEnded,
    MigrationWord,
    MoveCancelled,
    SessionChanged,
    SettleMigration,
    VmSeen,
)
from virtha.engine.incident import settle_lost
from virtha.engine.machine import Verdict, VmTrigger
from virtha.engine.move_answer import MoveAnswered
from virtha.engine.records import GivenBack, Migration, MovePurpose, MoveRetry, MoveStep
from virtha.engine.state import Cluster, HostNode, VmNode, reason
from virtha.model.evidence import ProcessKind
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import HostId, Incarnation
from virtha.model.proof import ProofKind
from virtha.model.vm import PossibleCopy, VmState

ASK_EVERY_MS = 5_000
"""A side that has not answered is asked again: its agent may have been restarting."""

NEVER_BEGAN = "order.refused.migration"
"""Of a side that was asked about an order which had not come: it says no more than that."""
LOST = "migration.ended.lost"
CANCELLED = "migration.ended.cancelled"

Words = tuple[MigrationWord | None, MigrationWord | None]
"""For the source and for the target."""

_TELL, _CANCEL = MigrationWord.TELL, MigrationWord.CANCEL
_END, _RUN = MigrationWord.END, MigrationWord.RUN


def order_move(
    cluster: Cluster, node: VmNode, source: HostNode, target: HostNode, purpose: MovePurpose
) -> None:
    """``source`` is the only one that may hold it; both are alive and told what they hold."""
    (copy,) = node.record.copies
    assert copy.host_id == source.id, f"{node.config.name}: moved from where it is not"
    assert source.record.boot is not None and target.record.boot is not None
    incarnation = Incarnation(node.record.incarnation + 1)
    migration = Migration(
        order_id=cluster.next_order(),
        purpose=purpose,
        source=source.id,
        source_boot=source.record.boot,
        source_incarnation=copy.incarnation,
        target=target.id,
        target_boot=target.record.boot,
        incarnation=incarnation,
        ordered_ms=int(cluster.now),
    )
    new = PossibleCopy(host_id=target.id, incarnation=incarnation, boot=migration.target_boot)
    cluster.move_vm(
        node,
        VmTrigger.MOVE_ORDERED,
        incarnation=incarnation,
        copies=(replace(copy, boot=migration.source_boot), new),
        migration=migration,
    )
    node.sent, node.unanswered = migration.order_id, migration.target
    node.asked_words, node.asked_ms = (), None
    cluster.order(
        MigrateCommand(
            order_id=migration.order_id,
            vm_id=node.id,
            source=source.id,
            target=target.id,
            source_boot=migration.source_boot,
            target_boot=migration.target_boot,
            source_incarnation=copy.incarnation,
            incarnation=incarnation,
            deadline_ms=cluster.policy.maintenance.migration_deadline_ms,
        )
    )
    cluster.tell(
        "vm.migration_began",
        vm=node,
        source=source.config.name,
        target=target.config.name,
        purpose=purpose.value,
    )


# One look


def look_at_migration(cluster: Cluster, node: VmNode) -> None:
    migration = node.record.migration
    assert migration is not None, f"{node.config.name}: migrating without a migration"
    source, target = _copy_on(node, migration.source), _copy_on(node, migration.target)
    sides = (migration.source, migration.target)
    others = sorted(copy.host_id for copy in node.record.copies if copy.host_id not in sides)
    if others and (source is not None or target is not None):
        names = ", ".join(cluster.host_name(one) for one in others)
        node.reasons = (reason("migration.blocked.copies", hosts=names),)
        _say(cluster, node, migration, (_TELL, _TELL))
    elif others:
        _stayed(cluster, node, migration)
    elif source is not None and target is not None:
        _look_at_both(cluster, node, migration)
    elif source is not None:
        _look_at_source(cluster, node, migration)
    elif target is not None:
        _look_at_target(cluster, node, migration)
    elif node.record.given_back is not None:
        # Stopped on purpose while it moved, by its operator or its guest: nothing is lost.
        cluster.move_vm(node, VmTrigger.MOVE_ENDED, migration=None, retry=None, proofs=())
    else:
        cluster.tell(
            "vm.migration_lost",
            vm=node,
            source=cluster.host_name(migration.source),
            target=cluster.host_name(migration.target),
        )
        cluster.move_vm(node, VmTrigger.MOVE_LOST, lost_ms=_lost_since_ms(cluster, node, migration))
        settle_lost(cluster, node)


def _look_at_both(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    source_lost = _lost(cluster, node, migration.source)
    target_lost = _lost(cluster, node, migration.target)
    source, target = cluster.host_name(migration.source), cluster.host_name(migration.target)
    ends_ms = _ends_ms(cluster, migration)
    if migration.step is MoveStep.ORDERED and (
        source_lost or target_lost or cluster.now >= ends_ms
    ):
        migration = _doubt(cluster, node, migration)
    words: Words = (None, None)
    match migration.step:
        case MoveStep.ORDERED:
            node.reasons = (reason("migration.under_way", source=source, target=target),)
            cluster.wake_vm(node, ends_ms)
            if node.sent != migration.order_id:
                words = (_TELL, _TELL)
        case MoveStep.DOUBTFUL:
            # What a target has of a source that is gone is all there is: it is not ended but asked.
            words = (None, _TELL) if source_lost else (_CANCEL, _CANCEL)
            hosts = ", ".join(sorted((source, target)))
            node.reasons = (reason("migration.waiting.word", hosts=hosts),)
        case MoveStep.STAYED:
            words = (None, _CANCEL)
            node.reasons = (reason("migration.waiting.release", runs_on=source, host=target),)
            if source_lost:
                node.reasons = (reason("recovery.waiting.proof", hosts=f"{source}, {target}"),)
        case MoveStep.SWITCHED:
            words = (_END, None)
            node.reasons = (reason("migration.waiting.release", runs_on=target, host=source),)
            if target_lost:
                node.reasons = (reason("recovery.waiting.proof", hosts=f"{source}, {target}"),)
        case MoveStep.CONTRADICTED:
            words = (_TELL, _TELL)
            why = reason("migration.blocked.contradicted", source=source, target=target)
            node.reasons = (why,)
    _say(cluster, node, migration, words)


def _look_at_source(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    """The target's copy is over."""
    if _lost(cluster, node, migration.source):
        _lose(cluster, node, migration.source)
    elif migration.step in (MoveStep.STAYED, MoveStep.CONTRADICTED):
        _stayed(cluster, node, migration)
    elif migration.never_ran and migration.step is not MoveStep.SWITCHED:
        _last_side(cluster, node, migration, (_RUN, None), migration.source)
    else:
        _last_side(cluster, node, migration, (_END, None), migration.source)


def _look_at_target(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    """The source's copy is over."""
    if _lost(cluster, node, migration.target):
        _lose(cluster, node, migration.target)
    elif migration.step in (MoveStep.SWITCHED, MoveStep.CONTRADICTED):
        _moved(cluster, node, migration)
    elif migration.step is MoveStep.STAYED:
        # It ran on at the source, and then no more: what the target has is out of date.
        _last_side(cluster, node, migration, (None, _CANCEL), migration.target)
    else:
        word = _CANCEL if _is_only_shut_out(node, migration.source) else _RUN
        _last_side(cluster, node, migration, (None, word), migration.target)


def _is_only_shut_out(node: VmNode, host_id: HostId) -> bool:
    """Its writes may be under way until the other side's host has the map that shuts it out, and nothing but a start waits for
    that (P3): so what came there is ended, and the VM started."""
    kinds = {proof.kind for proof in node.record.proofs if proof.host_id == host_id}
    return kinds == {ProofKind.STORAGE_FENCE}


def _last_side(
    cluster: Cluster, node: VmNode, migration: Migration, words: Words, host_id: HostId
) -> None:
    if cluster.hold is not None and _RUN in words:
        node.reasons = (reason("recovery.blocked.hold", why=cluster.hold),)
        return
    node.reasons = (reason("migration.waiting.last_side", host=cluster.host_name(host_id)),)
    _say(cluster, node, migration, words)


def _lost_since_ms(cluster: Cluster, node: VmNode, migration: Migration) -> int:
    """Since the first of its hosts failed, or it was lost before the migration came to light; else since now."""
    hosts = [cluster.hosts.get(one) for one in (migration.source, migration.target)]
    incidents = [host.record.incident for host in hosts if host is not None]
    began = [one.began_ms for one in incidents if one is not None]
    since_ms = node.record.lost_ms
    return min((*began, int(cluster.now) if since_ms is None else since_ms))


def _lose(cluster: Cluster, node: VmNode, host_id: HostId) -> None:
    """The last side's host failed. The migration stays on record: that host may turn out to live."""
    host = cluster.hosts.get(host_id)
    incident = host.record.incident if host is not None else None
    lost_ms = int(cluster.now) if incident is None else incident.began_ms
    cluster.move_vm(node, VmTrigger.MOVE_LOST, lost_ms=lost_ms)


def _doubt(cluster: Cluster, node: VmNode, migration: Migration) -> Migration:
    cluster.tell(
        "vm.migration_doubtful",
        vm=node,
        source=cluster.host_name(migration.source),
        target=cluster.host_name(migration.target),
    )
    return _set(cluster, node, migration, step=MoveStep.DOUBTFUL)


def move_cancelled(cluster: Cluster, event: MoveCancelled) -> None:
    """Both sides are asked to end it; from then on it is as one that nobody knows the end of."""
    node = cluster.vms.get(event.vm_id)
    migration = node.record.migration if node is not None else None
    if node is None or migration is None or migration.step is not MoveStep.ORDERED:
        return
    cluster.tell(
        "vm.migration_cancelled",
        vm=node,
        source=cluster.host_name(migration.source),
        target=cluster.host_name(migration.target),
        by=event.by,
    )
    _set(cluster, node, migration, step=MoveStep.DOUBTFUL, code=migration.code or CANCELLED)
    cluster.touch_vm(node)


# Orders that may be lost


def move_answered(cluster: Cluster, event: MoveAnswered) -> None:
    """Its target is ordered first, and its source when the target has answered. Nobody is asked about what is written down:
    a source that stands still for the moment of the switch would say so, and a move that is well would be called off."""
    node = cluster.vms.get(event.vm_id)
    migration = node.record.migration if node is not None else None
    if node is None or migration is None or migration.order_id != event.order_id:
        return
    if event.result is not Result.OK:
        _ask_soon(cluster, node)
        return
    node.unanswered = migration.source if event.host_id == migration.target else None
    if migration.step is MoveStep.ORDERED:
        node.sent = migration.order_id
        cluster.touch_vm(node)


def ask_after_session(cluster: Cluster, event: SessionChanged) -> None:
    """An order that its agent has not answered may have been lost with the former session, or the agent may have died
    in the midst of it; and nobody sends it again (ADR 10)."""
    if event.process is not ProcessKind.AGENT:
        return
    for vm_id in sorted(cluster.migrating):
        node = cluster.vms[vm_id]
        if node.unanswered == event.host_id:
            _ask_soon(cluster, node)


def _ask_soon(cluster: Cluster, node: VmNode) -> None:
    """Both sides, as a new leader does; not at once, for an answer may be on its way from the host's outbox, and a source that
    is asked before its order goes out refuses that for good."""
    migration = node.record.migration
    if migration is not None and node.sent == migration.order_id:
        node.sent = None
        node.asked_words, node.asked_ms = (_TELL, _TELL), cluster.now
        cluster.touch_vm(node)


# Asking


def _say(cluster: Cluster, node: VmNode, migration: Migration, words: Words) -> None:
    """Each word once, then again at intervals until something changes."""
    if words == (None, None):
        return
    asked_ms = node.asked_ms
    if words != node.asked_words or asked_ms is None or cluster.now >= asked_ms + ASK_EVERY_MS:
        node.asked_words, node.asked_ms = words, cluster.now
        hosts = (migration.source, migration.target)
        for host_id, word in zip(hosts, words, strict=True):
            copy = _copy_on(node, host_id)
            if word is not None and copy is not None and _reachable(cluster, copy):
                _send_word(cluster, node, migration, copy, word)
    assert node.asked_ms is not None
    cluster.wake_vm(node, node.asked_ms + ASK_EVERY_MS)


def _send_word(
    cluster: Cluster, node: VmNode, migration: Migration, copy: PossibleCopy, word: MigrationWord
) -> None:
    assert copy.boot is not None
    cluster.order(
        SettleMigration(
            order_id=migration.order_id,
            vm_id=node.id,
            host_id=copy.host_id,
            boot=copy.boot,
            incarnation=copy.incarnation,
            word=word,
            proofs=node.record.proofs,
        )
    )


def _reachable(cluster: Cluster, copy: PossibleCopy) -> bool:
    host = cluster.hosts.get(copy.host_id)
    if host is None or host.verdict is not Verdict.ALIVE:
        return False
    return host.record.incident is None and host.record.boot == copy.boot


# The ends


def _moved(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    home: HostId | None = node.record.home or migration.source
    if migration.purpose is not MovePurpose.MAINTENANCE or home == migration.target:
        home = None  # it is back there; or an operator wants it where it is now
    cluster.move_vm(
        node,
        VmTrigger.MOVE_ENDED,
        migration=None,
        retry=None,
        proofs=(),
        lost_ms=None,
        home=home,
        given_back=None,
    )
    if node.state_host != migration.target:
        node.state, node.state_host = VmState.RUNNING, migration.target
    node.io_error = node.no_room = False
    cluster.plan_wanted = True
    after_ms = cluster.now - migration.ordered_ms
    cluster.tell(
        "vm.migrated", vm=node, host=cluster.hosts.get(migration.target), after_ms=after_ms
    )


def _stayed(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    """It goes on where it was. Another target, with growing delay."""
    before = node.record.retry or MoveRetry()
    failures = before.failures + 1
    target = migration.target
    recovery = cluster.policy.recovery
    retry = MoveRetry(
        failures=failures,
        tried=before.tried if target in before.tried else (*before.tried, target),
        # The first pause already: it runs, so nothing is in a hurry.
        next_ms=int(cluster.now) + recovery.delay_before_ms(failures + 1),
    )
    cluster.move_vm(
        node,
        VmTrigger.MOVE_ENDED,
        migration=None,
        retry=retry,
        proofs=(),
        lost_ms=None,
        given_back=None,
    )
    cluster.plan_wanted = True
    why = LOST if migration.code == NEVER_BEGAN else migration.code
    if failures <= recovery.attempts_max:
        cluster.tell(
            "vm.migration_failed",
            vm=node,
            target=cluster.host_name(target),
            attempt=failures,
            why=why or "migration.failed",
        )
    if failures == recovery.attempts_max:
        cluster.tell("vm.migration_keeps_failing", vm=node, attempts=failures)


# What the sides say


def migration_ended(cluster: Cluster, event: MigrationEnded) -> None:
    node = cluster.vms.get(event.vm_id)
    migration = node.record.migration if node is not None else None
    if node is None or migration is None or migration.order_id != event.order_id:
        return  # of one that was settled otherwise
    if event.host_id == migration.source:
        _source_said(cluster, node, migration, event)
    elif event.host_id == migration.target:
        _target_said(cluster, node, migration, event)
    cluster.touch_vm(node)


def _source_said(
    cluster: Cluster, node: VmNode, migration: Migration, event: MigrationEnded
) -> None:
    open_still = migration.step in (MoveStep.ORDERED, MoveStep.DOUBTFUL)
    match event.result:
        case Result.OK:
            if open_still:
                _set(cluster, node, migration, step=MoveStep.SWITCHED)
        case Result.UNKNOWN:
            if migration.step is MoveStep.ORDERED:
                _doubt(cluster, node, migration)
        case Result.FAILED | Result.REFUSED:
            if migration.step is MoveStep.SWITCHED and _copy_on(node, migration.target) is not None:
                _contradict(cluster, node, migration)
            elif migration.step is not MoveStep.CONTRADICTED:
                never_began = event.code == NEVER_BEGAN and migration.code is not None
                code = migration.code if never_began else event.code
                _set(cluster, node, migration, step=MoveStep.STAYED, code=code)


def _target_said(
    cluster: Cluster, node: VmNode, migration: Migration, event: MigrationEnded
) -> None:
    if event.result is Result.OK:
        _target_runs(cluster, node, migration)
    elif event.result in (Result.FAILED, Result.REFUSED):
        # As good as a release: no copy of this order can come to be there any more.
        open_still = migration.step in (MoveStep.ORDERED, MoveStep.DOUBTFUL)
        code = migration.code or event.code
        _set(cluster, node, migration, never_ran=open_still, code=code)
        over = (migration.target, migration.incarnation)
        copies = tuple(
            copy for copy in node.record.copies if (copy.host_id, copy.incarnation) != over
        )
        cluster.set_vm(node, copies=copies)


def note_given_back(cluster: Cluster, node: VmNode, event: CopyReleased) -> None:
    """One side's copy is over: was that meant for the VM? A copy that was moved or never came says nothing of that, nor
    does a crash at the source, which its host would have answered with a restart but for the move."""
    migration = node.record.migration
    assert migration is not None
    ran = event.host_id == migration.target and migration.step is MoveStep.SWITCHED
    meant = event.cause is ReleaseCause.INTENDED or (ran and event.cause is ReleaseCause.ENDED)
    if meant:
        given_back = GivenBack(host_id=event.host_id, cause=event.cause)
        cluster.set_vm(node, given_back=given_back)


def side_seen(cluster: Cluster, node: VmNode, event: VmSeen) -> None:
    """A report of a VM that is migrating, or was when the last side's host failed."""
    migration = node.record.migration
    assert migration is not None
    cluster.touch_vm(node)
    told = (event.host_id, event.boot, event.incarnation)
    if told == (migration.target, migration.target_boot, migration.incarnation):
        if event.state is VmState.RUNNING and _copy_on(node, migration.target) is not None:
            _target_runs(cluster, node, migration)
            _note_state(node, event)
    elif told == (migration.source, migration.source_boot, migration.source_incarnation) and (
        migration.step is not MoveStep.SWITCHED
    ):
        _note_state(node, event)


def _note_state(node: VmNode, event: VmSeen) -> None:
    node.seen[event.host_id] = (event.incarnation, event.state)
    node.state, node.state_host = event.state, event.host_id
    node.guest_agent, node.io_error = event.guest_agent, event.io_error
    node.no_room = event.no_room


def _target_runs(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    if _copy_on(node, migration.target) is None:
        return  # a late word: it has given its copy back since
    if migration.step is MoveStep.STAYED and _copy_on(node, migration.source) is not None:
        _contradict(cluster, node, migration)
    elif migration.step is not MoveStep.CONTRADICTED:
        _set(cluster, node, migration, step=MoveStep.SWITCHED)


def _contradict(cluster: Cluster, node: VmNode, migration: Migration) -> None:
    """The worst that can come of a move: whichever we ended might be the one that was right."""
    _set(cluster, node, migration, step=MoveStep.CONTRADICTED)
    cluster.tell(
        "vm.migration_contradicted",
        vm=node,
        source=cluster.host_name(migration.source),
        target=cluster.host_name(migration.target),
    )


# Small questions


def _set(cluster: Cluster, node: VmNode, migration: Migration, **changes: object) -> Migration:
    changed = replace(migration, **changes)
    if changed != migration:
        cluster.set_vm(node, migration=changed)
    return changed


def _ends_ms(cluster: Cluster, migration: Migration) -> int:
    """By then the source has ended the attempt itself, if it can do anything."""
    deadline = cluster.policy.maintenance.migration_deadline_ms
    return migration.ordered_ms + deadline + cluster.policy.recovery.grant_margin_ms


def _copy_on(node: VmNode, host_id: HostId) -> PossibleCopy | None:
    return next((copy for copy in node.record.copies if copy.host_id == host_id), None)


def _lost(cluster: Cluster, node: VmNode, host_id: HostId) -> bool:
    """Its host was judged dead, or is no longer of this cluster."""
    host = cluster.hosts.get(host_id)
    return host is None or host.record.incident is not None
