"""Why a QEMU ended: on purpose or not, and by what (G5: a stop event alone is no clean stop)."""

from msgspec.structs import replace

from virtha.model.ids import BootId
from virtha.model.orders import StopVm
from virtha.model.time import Millis
from virtha.model.vm import Reason, VmState
from virtha.sentinel.events import (
    Cause,
    Exit,
    ExitCause,
    Hint,
    HintKind,
    KilledForLease,
    StopAccepted,
    StopMark,
    VmRecord,
)
from virtha.sentinel.machine import UP_STATES, Trigger
from virtha.sentinel.state import Guarded, HostState, reason

START_UNFINISHED = "vm.paused.start_unfinished"
ATTRIBUTION_MS = 5_000
"""QEMU exits within milliseconds of a watchdog's poweroff; libvirt mostly tells of it within seconds, also under load."""
SHUTDOWN_ATTRIBUTION_MS = 300_000
"""How long a guest whose watchdog asked it to shut down may take."""

RESTARTABLE: dict[ExitCause, Cause] = {
    ExitCause.CRASH: Cause.CRASH,
    ExitCause.PANIC: Cause.PANIC,
    ExitCause.WATCHDOG_POWEROFF: Cause.WATCHDOG_POWEROFF,
    ExitCause.WATCHDOG_SHUTDOWN: Cause.WATCHDOG_SHUTDOWN,
    ExitCause.GUEST_SHUTDOWN: Cause.GUEST_SHUTDOWN,
    # Gone without a known cause: a restart is considered, and refused as not seen (G5).
    ExitCause.UNKNOWN: Cause.CRASH,
}
"""Exits that a policy may answer with a restart; all others were meant."""

_WINDOWS_MS = {
    HintKind.WATCHDOG_SHUTDOWN: SHUTDOWN_ATTRIBUTION_MS,
}


def add_hint(host: HostState, guarded: Guarded, kind: HintKind) -> None:
    others = tuple(hint for hint in guarded.record.hints if hint.kind is not kind)
    guarded.set(hints=(*others, Hint(kind=kind, at_ms=host.now)))


def live_hints(record: VmRecord, now: Millis) -> frozenset[HintKind]:
    """Those still inside their window; the others last until the VM runs again: after a panic, and after a watchdog's poweroff, at which
    QEMU exits whatever comes, however long libvirt takes to tell of it (5.4 s were seen on a loaded machine)."""
    return frozenset(
        hint.kind
        for hint in record.hints
        if hint.kind not in _WINDOWS_MS or now - hint.at_ms <= _WINDOWS_MS[hint.kind]
    )


def is_unfinished(record: VmRecord) -> bool:
    """A start made its QEMU and did not let it run: nobody knew how that start ended, or its agent ended first."""
    return record.pause is not None and record.pause.code == START_UNFINISHED


def attribute(record: VmRecord, detail: str, *, now: Millis, host_shutting_down: bool) -> ExitCause:
    """``detail``: libvirt's, of the STOPPED event or of the shut-off state."""
    if record.stop is not None:
        return ExitCause.ORDERED
    if record.move is not None and record.move.ending:
        return ExitCause.MIGRATED
    if detail == "destroyed" and is_unfinished(record):
        return ExitCause.START_FAILED  # it never ran
    match detail:
        case "destroyed" if record.io_kill is not None:
            return ExitCause.IO_ERROR
        case "destroyed" | "from_snapshot":
            return ExitCause.DESTROYED_OUTSIDE
        case "migrated":
            return ExitCause.MIGRATED
        case "saved":
            return ExitCause.SAVED
        case "shutdown" | "failed" | "crashed":
            return _attribute_end(
                record, detail, live_hints(record, now), host_shutting_down=host_shutting_down
            )
        case _:
            return ExitCause.UNKNOWN if record.io_kill is None else ExitCause.IO_ERROR


def _attribute_end(
    record: VmRecord, detail: str, hints: frozenset[HintKind], *, host_shutting_down: bool
) -> ExitCause:
    if HintKind.LEASE in hints:
        # Before all others: whatever else it was about to do, on this host it may not run again.
        return ExitCause.LEASE
    if record.io_kill is not None and not host_shutting_down:
        # Its guest stood still, so this is no wish of that; libvirt asks QEMU by a signal first.
        return ExitCause.IO_ERROR
    if HintKind.PANIC in hints:
        return ExitCause.PANIC
    if HintKind.WATCHDOG_POWEROFF in hints:
        return ExitCause.WATCHDOG_POWEROFF
    announced = detail == "shutdown" or HintKind.GUEST_SHUTDOWN in hints
    if announced and HintKind.WATCHDOG_SHUTDOWN in hints:
        return ExitCause.WATCHDOG_SHUTDOWN
    if host_shutting_down and (announced or HintKind.HOST_SIGNAL in hints):
        return ExitCause.HOST_SHUTDOWN
    if HintKind.HOST_SIGNAL in hints:
        return ExitCause.SIGNAL
    # A guest that was already shutting down when its QEMU died was meant to be down.
    return ExitCause.GUEST_SHUTDOWN if announced else ExitCause.CRASH


# Folding


def killed_for_lease(host: HostState, event: KilledForLease) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is not None:
        add_hint(host, guarded, HintKind.LEASE)


def end_refusal(boot: BootId, stop: StopVm) -> Reason | None:
    """An old copy is ended only for a strictly higher incarnation, and by a proof about the boot that it runs in (G4)."""
    why = stop.superseded
    if why is None:
        return None
    if why.incarnation <= stop.incarnation:
        return reason(
            "order.refused.incarnation", incarnation=why.incarnation, current=stop.incarnation
        )
    if why.proof.boot != boot:
        return reason("order.refused.proof", boot=why.proof.boot, current=boot)
    return None


def stop_accepted(host: HostState, event: StopAccepted) -> None:
    """The mark is durable before the command goes out, so the stop that follows was on purpose."""
    guarded = host.vms.get(event.vm_id)
    if guarded is None:
        return
    if event.superseded_by is None:
        guarded.set(wanted_up=False)
    else:
        guarded.set(superseded_by=event.superseded_by)
    if guarded.up or guarded.record.state in (VmState.STARTING, VmState.UNKNOWN):
        mark = StopMark(mode=event.mode, by=event.by, ends_at_ms=int(host.now) + event.deadline_ms)
        guarded.set(stop=mark)
        guarded.move(Trigger.STOP_ORDERED)


def stop_may_lapse(record: VmRecord) -> bool:
    return record.stop is not None and record.state in UP_STATES


def expire_stop_mark(host: HostState, guarded: Guarded) -> None:
    """A guest that did not heed the request runs on, and a power-off may have failed; a crash next
    week is no stop on purpose. It stays unwanted until the server says otherwise.
    """
    mark = guarded.record.stop
    if mark is None or not stop_may_lapse(guarded.record) or host.now < mark.ends_at_ms:
        return
    if guarded.record.state is VmState.STOPPING:
        # A paused guest can't heed anything: it is as paused as before.
        ignored = Trigger.STOP_IGNORED if guarded.record.pause is None else Trigger.PAUSES
        guarded.move(ignored)
    guarded.set(stop=None)


def stopped(host: HostState, guarded: Guarded, detail: str, *, told: bool = False) -> None:
    record = guarded.record
    if guarded.up or (record.outside and record.state is VmState.STARTING):
        cause = attribute(record, detail, now=host.now, host_shutting_down=host.shutting_down)
        seen = cause is not ExitCause.UNKNOWN
        ending = Exit(cause=cause, at_ms=host.now, seen=seen, detail=detail)
        ended(host, guarded, ending, told=told)
    elif record.attempt is not None or record.state in (VmState.STARTING, VmState.UNKNOWN):
        # Part of a start that fails: its result comes from who makes the attempt, or from a list.
        host.list_wanted = host.list_wanted or record.state is VmState.UNKNOWN


def ended(host: HostState, guarded: Guarded, exit: Exit, *, told: bool = False) -> None:
    """The VM is down; whether it comes back is decided in the plan. ``told``: history has it."""
    by = guarded.record.stop.by if guarded.record.stop else ""
    if exit.cause is ExitCause.ORDERED:
        exit = replace(exit, detail=by)
    guarded.move(Trigger.ENDS)
    guarded.set(
        exit=exit,
        pending=RESTARTABLE.get(exit.cause),
        down_ms=exit.at_ms,
        stop=None,
        hints=(),
        pause=None,
        pause_by=None,
        io_pause=None,
        io_kill=None,
        resumes_ms=(),
        reboot=None,
        dump_pending=False,
        pid=None,
        guest_agent=None,
        guest_up=False,
        blocked=None,
        gap_from_ms=None,
    )
    guarded.agent_lost_ms = None
    if exit.cause in RESTARTABLE and exit.cause is not ExitCause.GUEST_SHUTDOWN:
        guarded.evidence = exit.cause.value
    if not told:
        _tell_exit(host, guarded, exit.cause, by)


def _tell_exit(host: HostState, guarded: Guarded, cause: ExitCause, by: str) -> None:
    match cause:
        case ExitCause.CRASH:
            host.tell(guarded, "vm.crashed", cause="QEMU ended without a shutdown")
        case (
            ExitCause.PANIC
            | ExitCause.WATCHDOG_POWEROFF
            | ExitCause.LEASE
            | ExitCause.IO_ERROR
            | ExitCause.UNKNOWN
            | ExitCause.SIGNAL
        ):
            host.tell(guarded, "vm.stopped_unexpectedly", cause=cause.value)
        case _:
            host.tell(guarded, "vm.stopped", cause=cause.value, by=by)
