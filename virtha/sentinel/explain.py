"""The coded reasons that a VM's state carries (X1): derived from its record alone."""

from virtha.model.vm import Reason, VmState
from virtha.sentinel.events import ExitCause, VmRecord
from virtha.sentinel.io_pauses import paused_on_io
from virtha.sentinel.restart import due_at
from virtha.sentinel.state import HostState, reason

_CAUSE_CODES = {
    ExitCause.CRASH: "restart.crash",
    ExitCause.PANIC: "restart.panic",
    ExitCause.WATCHDOG_POWEROFF: "restart.watchdog_poweroff",
    ExitCause.WATCHDOG_SHUTDOWN: "restart.watchdog_shutdown",
}


def reasons_of(host: HostState, record: VmRecord) -> tuple[Reason, ...]:
    match record.state:
        case VmState.DOWN:
            return _down(host, record)
        case VmState.STARTING | VmState.UNKNOWN:
            return _starting(record)
        case VmState.PAUSED:
            waits = record.io_pause.why if record.io_pause and paused_on_io(record) else None
            told = (record.pause, waits, record.blocked, record.up)
            return tuple(why for why in told if why is not None)
        case VmState.CRASHED:
            return (reason("vm.crashed.kept"),)
        case VmState.RUNNING | VmState.STOPPING:
            return (record.up,) if record.up else ()


def _starting(record: VmRecord) -> tuple[Reason, ...]:
    if record.attempt is None:
        return (record.up,) if record.up else ()
    waits = reason("restart.waiting.result", attempt=record.attempt)
    return (*_exit(record), waits)


def _down(host: HostState, record: VmRecord) -> tuple[Reason, ...]:
    if record.exit is None:
        return (reason("vm.down.never_started"),)
    if record.start_open:
        return (*_exit(record), reason("start.waiting.result"))
    if record.blocked is not None:
        return (*_exit(record), record.blocked)
    if record.pending is None:
        return _exit(record)
    attempt = len(record.attempts_ms) + 1
    delay_ms = int(due_at(host, record)) - record.down_ms
    return (
        *_exit(record),
        reason("restart.waiting.delay", delay_ms=delay_ms, attempt=attempt),
    )


def _exit(record: VmRecord) -> tuple[Reason, ...]:
    ending = record.exit
    if ending is None:
        return ()
    match ending.cause:
        case ExitCause.ORDERED:
            return (reason("vm.down.as_ordered", by=ending.detail),)
        case ExitCause.GUEST_SHUTDOWN:
            return (reason("vm.down.guest_shutdown"),)
        case ExitCause.DESTROYED_OUTSIDE:
            return (reason("vm.down.destroyed_outside"),)
        case ExitCause.HOST_SHUTDOWN:
            return (reason("vm.down.host_shutdown"),)
        case ExitCause.MIGRATED | ExitCause.SAVED:
            return (reason("vm.down.moved", cause=ending.cause.value),)
        case ExitCause.START_FAILED:
            return (reason("vm.down.start_failed", detail=ending.detail),)
        case (
            ExitCause.SIGNAL
            | ExitCause.NEW_BOOT
            | ExitCause.LEASE
            | ExitCause.IO_ERROR
            | ExitCause.UNKNOWN
        ):
            return (reason("vm.down.failed", cause=ending.cause.value),)
        case _:
            return (reason(_CAUSE_CODES[ending.cause]),)
