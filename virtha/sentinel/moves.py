"""Live migrations, as one side of them knows them (G4 to G6; ADR 10). Pure.

**The source** is marked before anything begins, so its sentinel restarts nothing of a VM that may be elsewhere. The mark
goes only when it is certain that nothing was handed over. A copy that stood still when all of it was sent is never let
run from here: that is the server's word. One that ended while it was marked, and nobody can say whether it had been
handed over by then, is given back: whoever has the rest of it is asked by the server.

**The target** awaits one copy of one incarnation, and of it reports only that, before it runs. That it never ran it
says only if it watched from the acceptance on: libvirt's events tell the order of things, a look at the domain does not.

A migration is known by its target's incarnation, which only rises: a host that was asked about one begins none that is
not above it, however late the order comes.
"""

from enum import StrEnum
from typing import Any

from msgspec.structs import replace

from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import Awaited, Leaving, MigrationReport, Released, Result
from virtha.model.ids import Incarnation, OperationId, VmId
from virtha.model.orders import MigrationSide, MigrationWord, SettleMigration
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason, VmState
from virtha.sentinel.events import (
    AbortMove,
    ArrivalAccepted,
    ArrivalCalledOff,
    ArrivalRefused,
    Exit,
    ExitCause,
    Move,
    MoveAccepted,
    MoveEnded,
    MoveEnding,
    MoveGivenUp,
    MoveRefused,
    MoveToldAgain,
    VmRecord,
)
from virtha.sentinel.machine import ACTIVE, Trigger
from virtha.sentinel.starts import start_refusal, unlisted_domain
from virtha.sentinel.state import Guarded, HostState, reason, take_in

STANDS = "vm.paused.migration"
_SETTLED = (Result.OK, Result.FAILED, Result.REFUSED)


def awaited(record: VmRecord) -> bool:
    """Its copy is to come, or comes, and has not run here."""
    return never_came(record) and record.state is VmState.STARTING


def never_came(record: VmRecord) -> bool:
    """No state to report: what runs elsewhere is not down, and what comes is not here."""
    move = record.move
    return move is not None and move.side is MigrationSide.TARGET and not move.arrived


def awaited_report(record: VmRecord) -> Awaited | None:
    """Of a copy that has not run here. None: nor will it."""
    if not awaited(record) or record.move is None:
        return None
    return Awaited(
        migration_id=record.move.migration_id,
        vm_id=record.vm.id,
        incarnation=record.incarnation,
        source=record.move.other,
    )


def leaving_report(record: VmRecord) -> Leaving | None:
    """Of a source that stands still: what it waits for. None: it waits for nobody's word."""
    move = record.move
    if move is None or move.other is None or not leaves(record):
        return None
    if not move.stood or record.state is not VmState.PAUSED:
        return None
    return Leaving(migration_id=move.migration_id, target=move.other)


def leaves(record: VmRecord) -> bool:
    """Source of a migration whose end is not known."""
    move = record.move
    return move is not None and move.side is MigrationSide.SOURCE and move.told not in _SETTLED


def is_handed_over(guarded: Guarded, detail: str) -> bool:
    """Its QEMU ended because it was moved; the server tells of it as one thing."""
    move = guarded.record.move
    meant = move is not None and (detail == "migrated" or move.ending)
    return meant and leaves(guarded.record)


# Whether it may begin


def move_refusal(
    host: HostState, vm_id: VmId, incarnation: Incarnation, target_incarnation: Incarnation
) -> Reason | None:
    """Why an order to move it away must be refused; only without one is ``MoveAccepted`` allowed."""
    if not host.connected:
        return reason("host.unfit.libvirt")
    guarded = host.vms.get(vm_id)
    if guarded is None:
        return reason("order.refused.not_here")
    record = guarded.record
    if record.incarnation != incarnation or record.boot != host.boot:
        return reason(
            "order.refused.incarnation", incarnation=incarnation, current=record.incarnation
        )
    if target_incarnation <= max(record.moves_to, record.incarnation):
        return reason("order.refused.migration")
    if host.shutting_down:
        return reason("restart.blocked.host_shutting_down")
    busy = record.stop is not None or record.attempt is not None or leaves(record)
    if record.state is not VmState.RUNNING or busy or record.outside or record.superseded_by:
        return reason("order.refused.state", state=record.state.value)
    return None


def arrival_refusal(host: HostState, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
    """As a start's; but an arrival is never asked for twice."""
    refusal = start_refusal(host, vm_id, incarnation)
    guarded = host.vms.get(vm_id)
    if refusal is None and guarded is not None and incarnation <= guarded.record.incarnation:
        return reason("order.refused.migration")
    return refusal


# Orders


def move_accepted(host: HostState, event: MoveAccepted) -> None:
    guarded = host.vms[event.vm_id]
    refusal = move_refusal(host, event.vm_id, event.incarnation, event.target_incarnation)
    assert refusal is None, f"{event.vm_id}: {refusal}"
    move = Move(
        migration_id=event.migration_id,
        side=MigrationSide.SOURCE,
        incarnation=event.target_incarnation,
        ends_ms=int(host.now) + event.deadline_ms,
        by=event.by,
        other=event.target,
    )
    guarded.set(move=move, moves_to=event.target_incarnation, migrating=True)
    guarded.abort_sent = False


def move_refused(host: HostState, event: MoveRefused) -> None:
    """The source doesn't know that migration, or refuses it: it begins nothing by it, now or later."""
    guarded = host.vms.get(event.vm.id)
    record = guarded.record if guarded is not None else None
    here = record is not None and record.incarnation == event.incarnation
    if guarded is not None and record is not None and here and not record.released:
        guarded.set(moves_to=max(record.moves_to, event.target_incarnation))
        _say(host, guarded, event.migration_id, event.incarnation, Result.REFUSED, event.code)
    elif record is None or record.incarnation < event.incarnation:
        # A copy that runs always has its record here: there is none.
        _remember_as_over(host, event)
    else:
        host.notices.append(Released(vm_id=event.vm.id, incarnation=event.incarnation))


def arrival_accepted(host: HostState, event: ArrivalAccepted) -> None:
    refusal = arrival_refusal(host, event.vm.id, event.incarnation)
    assert refusal is None, f"{event.vm.id}: {refusal}"
    move = Move(
        migration_id=event.migration_id,
        side=MigrationSide.TARGET,
        incarnation=event.incarnation,
        ends_ms=event.ends_ms,
        by=event.by,
        other=event.source,
    )
    up = reason("vm.up.migrated", by=event.by)
    guarded = take_in(host, event.vm, event.incarnation, up=up, move=move)
    guarded.arrival_watched, guarded.called_off = True, False


def arrival_refused(host: HostState, event: ArrivalRefused) -> None:
    """The target doesn't know that migration, or refuses it: no copy of it can come to be here any more (P5)."""
    guarded = host.vms.get(event.vm.id)
    record = guarded.record if guarded is not None else None
    if record is not None and record.incarnation > event.incarnation:
        # A later one was accepted here since: that one is over, whatever it did.
        host.notices.append(Released(vm_id=event.vm.id, incarnation=event.incarnation))
    elif (record is None or record.incarnation < event.incarnation) and _remember_as_over(
        host, event
    ):
        _say(
            host,
            host.vms[event.vm.id],
            event.migration_id,
            event.incarnation,
            Result.REFUSED,
            event.code,
        )


def _remember_as_over(host: HostState, event: MoveRefused | ArrivalRefused) -> bool:
    """Down, and released by the plan: whatever comes of that incarnation is refused from now on. Not where another
    copy is or may be: that record speaks. False: nothing was recorded."""
    old = host.vms.get(event.vm.id)
    if old is not None and (
        old.record.state is not VmState.DOWN
        or old.record.attempt is not None
        or old.record.start_open
    ):
        return False
    if old is None and host.connected and unlisted_domain(host, event.vm.id) is not None:
        return False
    record = VmRecord(
        vm=event.vm,
        incarnation=event.incarnation,
        boot=host.boot,
        state=VmState.DOWN,
        firing_count=old.record.firing_count if old else 0,
        exit=Exit(
            cause=ExitCause.START_FAILED, at_ms=int(host.now), seen=True, detail=event.code or ""
        ),
        down_ms=int(host.now),
        moves_to=event.target_incarnation if isinstance(event, MoveRefused) else Incarnation(0),
        move=Move(
            migration_id=event.migration_id,
            side=MigrationSide.TARGET,
            incarnation=event.incarnation,
            ends_ms=int(host.now),
            by="",
        ),
    )
    guarded = old or Guarded(record, saved=None)
    guarded.record = record
    guarded.known = host.connected
    host.vms[event.vm.id] = guarded
    return True


# What hypervisor and agent see of the source


def stands_still(guarded: Guarded) -> None:
    """All of it was sent."""
    if leaves(guarded.record):
        _change(guarded, stood=True)


def goes_on(guarded: Guarded) -> None:
    """Its own libvirt let it run on: the target had said no."""
    if leaves(guarded.record):
        _change(guarded, stood=False)


def move_ended(host: HostState, event: MoveEnded) -> None:
    """How the attempt ended as far as this host's libvirt says. What the events said before counts more."""
    guarded = host.vms.get(event.vm_id)
    if guarded is None or not leaves(guarded.record):
        return
    record, move = guarded.record, guarded.record.move
    assert move is not None
    if move.migration_id != event.migration_id:
        return
    if event.result is Result.OK:
        host.list_wanted = True  # its end is told by the event, or by the list
    elif move.stood or (event.result is Result.UNKNOWN and record.state is VmState.DOWN):
        _unclear(host, guarded)
    elif event.result in (Result.FAILED, Result.REFUSED):
        guarded.set(migrating=False)
        _tell(host, guarded, Result.FAILED, event.code)


def _unclear(host: HostState, guarded: Guarded) -> None:
    if guarded.up:
        _tell(host, guarded, Result.UNKNOWN, None)
    elif guarded.record.state is VmState.DOWN:
        _give_up(guarded)


def move_ending(host: HostState, event: MoveEnding) -> None:
    """Durable before its QEMU is ended: the end that follows was meant."""
    guarded = host.vms.get(event.vm_id)
    if guarded is not None and leaves(guarded.record):
        _change(guarded, ending=True)


def give_up(host: HostState, event: MoveGivenUp) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is not None and leaves(guarded.record) and guarded.record.state is VmState.DOWN:
        _give_up(guarded)


def _give_up(guarded: Guarded) -> None:
    """What was here is gone, and the rest of it may be elsewhere: the plan releases it, nothing restarts it."""
    guarded.set(migrating=False, pending=None, blocked=reason("restart.blocked.migrating"))


def plan_move(host: HostState, guarded: Guarded) -> None:
    """Looks at the record only, like all plans."""
    record = guarded.record
    if not leaves(record) or record.boot != host.boot or record.move is None:
        return
    gone = record.state is VmState.DOWN and record.exit is not None
    if gone and record.exit is not None and record.exit.cause is ExitCause.MIGRATED:
        guarded.set(migrating=False)
        _tell(host, guarded, Result.OK, None)
    elif _is_late(host, record) and not guarded.abort_sent and host.connected:
        guarded.abort_sent = True
        host.order(AbortMove(vm_id=record.vm.id, code="migration.ended.late"))


def _is_late(host: HostState, record: VmRecord) -> bool:
    assert record.move is not None
    copying = record.state is VmState.RUNNING and not record.move.stood
    return copying and host.now >= record.move.ends_ms


def move_ends_at(host: HostState, guarded: Guarded) -> Millis | None:
    record = guarded.record
    if not leaves(record) or guarded.abort_sent or not host.connected or record.move is None:
        return None
    moment = Millis(record.move.ends_ms)
    return moment if moment > host.now else None


# What hypervisor and agent see of the target


def arrived(host: HostState, guarded: Guarded) -> None:
    """Its processors run here."""
    record = guarded.record
    guarded.set(
        started_ms=int(host.now), exit=None, pending=None, blocked=None, guest_up=True, pause=None
    )
    assert record.move is not None
    _change(guarded, arrived=True)
    host.list_wanted = True  # brings the process id
    _tell(host, guarded, Result.OK, None)


def arrival_gone(host: HostState, guarded: Guarded, detail: str) -> None:
    """Its QEMU is gone, or never was; the plan releases it."""
    guarded.move(Trigger.START_FAILED)
    guarded.set(
        exit=Exit(cause=ExitCause.START_FAILED, at_ms=int(host.now), seen=True, detail=detail),
        pending=None,
        down_ms=int(host.now),
        stop=None,
    )
    if guarded.arrival_watched:
        _tell(host, guarded, Result.FAILED, "migration.failed")


def arrival_called_off(host: HostState, event: ArrivalCalledOff) -> None:
    """No copy was there when the server asked to end it. A list, newer than all events, has the last word."""
    guarded = host.vms.get(event.vm_id)
    if guarded is not None and awaited(guarded.record):
        guarded.called_off = True
        host.list_wanted = True


def compare_arrival(host: HostState, guarded: Guarded, report: DomainReport | None) -> None:
    """libvirt's list, about a copy that is awaited."""
    if report is None or report.state not in ACTIVE:
        if guarded.called_off:
            arrival_gone(host, guarded, "called off")
    elif report.state is DomainState.PAUSED and report.reason != "ioerror":
        # Whatever was missed: it has not run yet, and from here on events tell if it does. An I/O error is a guest's that ran.
        guarded.arrival_watched = guarded.arrival_watched or report.reason == "migration"
    else:
        guarded.move(Trigger.RUNS)
        guarded.set(pid=report.pid)
        arrived(host, guarded)


# Asked by the server


class CopySeen(Value, frozen=True, kw_only=True):
    """What libvirt says of the copy at this moment."""

    active: bool = False
    stands: bool = False
    """Paused by a migration: the source's when all was sent, the target's until it runs."""
    under_way: bool = False
    """libvirt still works at the migration."""
    whole: bool = False
    """Target: all of its memory is here."""


class SettleAction(StrEnum):
    NOTHING = "nothing"
    """What is under way ends by itself, and is told then."""
    AGAIN = "again"
    """Tell once more what was told."""
    UNCLEAR = "unclear"
    """Tell that it stands still here."""
    STAYS = "stays"
    """Tell that it goes on here."""
    REFUSE = "refuse"
    """Not known here: refused from now on."""
    ABORT = "abort"
    END = "end"
    RUN = "run"
    GIVE_UP = "give_up"
    """Nothing of it is left here: release it."""


def settle_action(host: HostState, order: SettleMigration, copy: CopySeen) -> SettleAction:
    guarded = host.vms.get(order.vm.id)
    record = guarded.record if guarded is not None else None
    if order.side is MigrationSide.TARGET:
        return _target_action(record, order, copy)
    return _source_action(record, order, copy)


def _source_action(record: VmRecord | None, order: SettleMigration, copy: CopySeen) -> SettleAction:
    move = record.move if record is not None else None
    if record is None or record.incarnation != order.incarnation:
        return SettleAction.REFUSE
    if move is None or move.migration_id != order.migration_id:
        return SettleAction.AGAIN if record.released else SettleAction.REFUSE
    if move.told in _SETTLED or record.released:
        return SettleAction.AGAIN
    if record.state is VmState.DOWN:
        if order.word is MigrationWord.RUN and not copy.active:
            return SettleAction.STAYS  # the target never ran: its restart is this host's affair
        return SettleAction.NOTHING if copy.under_way else SettleAction.GIVE_UP
    if not copy.active:
        return SettleAction.NOTHING  # the event that says how it ended is on its way
    if not copy.stands:
        if not copy.under_way:
            return SettleAction.STAYS
        return SettleAction.NOTHING if order.word is MigrationWord.TELL else SettleAction.ABORT
    match order.word:
        case MigrationWord.END:
            return SettleAction.END
        case MigrationWord.RUN:
            return SettleAction.RUN
        case MigrationWord.TELL | MigrationWord.CANCEL:
            return SettleAction.UNCLEAR


def _target_action(record: VmRecord | None, order: SettleMigration, copy: CopySeen) -> SettleAction:
    if record is None or record.incarnation != order.target_incarnation:
        return SettleAction.REFUSE
    if not awaited(record):
        return SettleAction.AGAIN
    if copy.active and not copy.stands:
        return SettleAction.NOTHING  # it just began to run
    match order.word:
        case MigrationWord.TELL:
            return SettleAction.UNCLEAR if copy.whole else SettleAction.NOTHING
        case MigrationWord.RUN if copy.whole:
            return SettleAction.RUN
        case _:
            return SettleAction.END


def move_told_again(host: HostState, event: MoveToldAgain) -> None:
    """The last word on it, and the release that went with it."""
    guarded = host.vms.get(event.vm_id)
    if guarded is None:
        return
    record, move = guarded.record, guarded.record.move
    if move is not None and move.migration_id == event.migration_id:
        if event.unclear:
            _tell(host, guarded, Result.UNKNOWN, None)
        elif move.arrived and not guarded.up:
            pass  # it ran here, and does so no more: only its release is to be said
        elif move.told is not None:
            _tell(host, guarded, move.told, move.code)
    elif record.incarnation == event.target_incarnation and guarded.up:
        _say(host, guarded, event.migration_id, record.incarnation, Result.OK, None)
    if record.released:
        host.tell_released(guarded)


def tell_open_moves(host: HostState) -> None:
    """At the agent's first list: what it had to say may not have come out of the last process."""
    for guarded in host.all():
        move = guarded.record.move
        if move is not None and move.told is not None and guarded.record.boot == host.boot:
            repeat = MoveToldAgain(
                vm_id=guarded.record.vm.id,
                migration_id=move.migration_id,
                target_incarnation=move.incarnation,
            )
            move_told_again(host, repeat)


# Inside


def _change(guarded: Guarded, **changes: Any) -> None:
    move = guarded.record.move
    assert move is not None
    guarded.set(move=replace(move, **changes))


def _tell(host: HostState, guarded: Guarded, result: Result, code: str | None) -> None:
    move = guarded.record.move
    assert move is not None
    _change(guarded, told=result, code=code)
    _say(host, guarded, move.migration_id, guarded.record.incarnation, result, code)


def _say(
    host: HostState,
    guarded: Guarded,
    migration_id: OperationId,
    incarnation: Incarnation,
    result: Result,
    code: str | None,
) -> None:
    host.notices.append(
        MigrationReport(
            migration_id=migration_id,
            vm_id=guarded.record.vm.id,
            incarnation=incarnation,
            result=result,
            code=code,
        )
    )
