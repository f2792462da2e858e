"""VMs that QEMU paused on an I/O error: let go on when their storage answers again, if nothing speaks against it (S6). Pure.

Letting a paused copy go on is a start of its processors, and asks for what a start asks for (G2, G4, G6, P2): the host
still holds this incarnation, in this boot; it is no side of a migration; the lease on its disks' storage is held; nobody
else wants it to stand still. A person's pause wins, whichever came first. What is looked at here is looked at again by
whoever carries the order out, under the VM's lock, right before.

The storage is believed when each disk was read and a block was written to each storage domain, on the storage itself:
one domain of two that is back, or a mount that is read-only, resumes nothing. It may fail the guest all the same; so the
waits between resumes grow, and at the policy's limit the VM stays paused.
"""

from msgspec.structs import replace

from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import Result
from virtha.model.ids import Incarnation
from virtha.model.orders import EndPausedVm
from virtha.model.policy import PermissionGrade
from virtha.model.time import Millis, format_duration_ms
from virtha.model.vm import NO_ROOM_PAUSE, OnIoError, Reason
from virtha.sentinel.events import ExitCause, VmRecord
from virtha.sentinel.io_error_events import (
    DisksProbed,
    EndPausedAccepted,
    IoPause,
    ProbeDisks,
    ResumeDomain,
    ResumeEnded,
)
from virtha.sentinel.io_pauses import forget_probe, paused_on_io
from virtha.sentinel.moves import leaves
from virtha.sentinel.objections import late_objection, objection_of_grade
from virtha.sentinel.restart import forbidden_by_grade
from virtha.sentinel.state import Guarded, HostState, reason

PROBE_DEADLINE_MS = 120_000
"""Longer than an agent takes to say that storage domains are silent, one after the other."""
RESUME_DEADLINE_MS = 150_000
"""Longer than the driver's own bound."""


def objection_to_resume(
    record: VmRecord | None, command: ResumeDomain, domain: DomainReport
) -> str | None:
    """What may have come between the decision and now, in words. Asked by whoever carries it out, under the VM's lock;
    hold, shutdown and lease it asks itself."""
    if record is not None and record.io_kill is not None:
        return "it is being ended"
    return _late_objection(record, command.incarnation, domain)


def objection_to_end(
    record: VmRecord | None, order: EndPausedVm, domain: DomainReport
) -> str | None:
    """As ``objection_to_resume``. Of one that its host lets go on meanwhile: both are done under that lock."""
    if record is not None and record.outside:
        return "it was started outside of virtha"
    if record is not None and record.vm.on_io_error is not OnIoError.KILL:
        return f"its on_io_error says {record.vm.on_io_error}"
    if record is not None and record.pause is not None and record.pause.code == NO_ROOM_PAUSE:
        return "its storage is full, for every host"
    objection = _late_objection(record, order.incarnation, domain)
    if objection is not None or record is None:
        return objection
    return objection_of_grade(record.vm.grade_max, PermissionGrade.MOVE)


def ended_so(record: VmRecord, order: EndPausedVm) -> bool:
    """Of one without a QEMU: it was ended by such an order, perhaps this very one."""
    same, exit = record.incarnation == order.incarnation, record.exit
    # Before the sentinel was told of its end, the mark stands.
    return same and (
        record.io_kill is not None or (exit is not None and exit.cause is ExitCause.IO_ERROR)
    )


def _late_objection(
    record: VmRecord | None, incarnation: Incarnation, domain: DomainReport
) -> str | None:
    objection = late_objection(record, incarnation)
    if objection is not None or record is None:
        return objection
    if leaves(record):
        return "it is marked as migrating"
    if not paused_on_io(record):
        return "somebody paused it meanwhile"
    if (domain.state, domain.reason) != (DomainState.PAUSED, "ioerror"):
        return f"libvirt says that it is {domain.state} ({domain.reason})"
    return None


# Answers


def end_paused_accepted(host: HostState, event: EndPausedAccepted) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None or guarded.record.incarnation != event.incarnation:
        return
    if paused_on_io(guarded.record):
        guarded.set(io_kill=event.by)
        forget_probe(guarded)


def disks_probed(host: HostState, event: DisksProbed) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None or guarded.probe_sent_ms is None or event.number != guarded.probe_number:
        return
    guarded.probe_sent_ms, guarded.probed_ms = None, host.now
    guarded.storage_objection = event.why_not


def resume_ended(host: HostState, event: ResumeEnded) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None or guarded.record.incarnation != event.incarnation:
        return
    pause = guarded.record.io_pause
    if pause is None or pause.attempt != event.attempt:
        return
    match event.result:
        case Result.OK | Result.UNKNOWN:
            # Its event ends the attempt; if that is lost, the list does, or the deadline.
            host.list_wanted = True
        case Result.FAILED | Result.REFUSED:
            host.tell(
                guarded,
                "vm.io_error.resume_failed",
                attempt=event.attempt,
                detail=event.detail or event.result.value,
            )
            _attempt_over(host, guarded, pause)


def _attempt_over(host: HostState, guarded: Guarded, pause: IoPause) -> IoPause:
    over = replace(pause, attempt=None, quiet_ms=int(host.now))
    guarded.set(io_pause=over)
    forget_probe(guarded)
    return over


def nobody_answers(host: HostState, guarded: Guarded) -> None:
    """The agent that resumed it is gone; the list says what came of it."""
    pause = guarded.record.io_pause
    if pause is not None and pause.attempt is not None:
        _attempt_over(host, guarded, pause)


# The plan


def plan_io_error(host: HostState, guarded: Guarded) -> None:
    record, pause = guarded.record, guarded.record.io_pause
    if pause is None or not paused_on_io(record):
        return
    if pause.attempt is not None:
        if host.now < _attempt_ends_at(pause):
            return
        host.list_wanted = True
        pause = _attempt_over(host, guarded, pause)
    tries = resumes_in_window(host, record)
    if tries != record.resumes_ms:
        guarded.set(resumes_ms=tries)
    why = _objection(host, guarded.record) or _given_up(host, guarded, pause)
    if why is None:
        why = _not_yet(host, guarded, pause)
    else:
        forget_probe(guarded)
    if why is None:
        _order_resume(host, guarded, pause)
    elif guarded.record.io_pause is not None and guarded.record.io_pause.why != why:
        guarded.set(io_pause=replace(guarded.record.io_pause, why=why))


def io_error_moments(host: HostState, guarded: Guarded) -> list[Millis]:
    """When something may be decided without an event."""
    record, pause = guarded.record, guarded.record.io_pause
    if pause is None or not paused_on_io(record):
        return []
    if pause.attempt is not None:
        return [_attempt_ends_at(pause)]
    if pause.given_up is not None or _objection(host, record) is not None:
        return []
    due_ms = _due_at(host, record, pause)
    return [due_ms if host.now < due_ms else _next_probe_at(host, guarded)]


def resumes_in_window(host: HostState, record: VmRecord) -> tuple[int, ...]:
    since = host.now - host.policy.io_error.window_ms
    return tuple(at for at in record.resumes_ms if at > since)


def _objection(host: HostState, record: VmRecord) -> Reason | None:
    """Why it is not let go on by itself now, however its storage is."""
    if record.io_kill is not None:
        return reason("io_error.ending")
    if record.vm.on_io_error is OnIoError.LEAVE_PAUSED:
        return reason("io_error.left_paused")
    if record.superseded_by is not None:
        return reason(
            "restart.blocked.superseded",
            incarnation=record.incarnation,
            current=record.superseded_by,
        )
    if record.outside:
        return reason("restart.blocked.outside")
    if record.boot != host.boot:
        return reason("restart.blocked.other_boot")
    if not record.wanted_up:
        return reason("restart.blocked.stopped_on_purpose", cause="not wanted up")
    if record.migrating or leaves(record):
        return reason("restart.blocked.migrating")
    forbidden = forbidden_by_grade(host, record)
    if forbidden is not None:
        return forbidden
    if host.shutting_down:
        return reason("restart.blocked.host_shutting_down")
    if not host.connected:
        return reason("restart.blocked.libvirt_lost")
    if host.hold is not None:
        return reason("restart.blocked.hold")
    return None


def _given_up(host: HostState, guarded: Guarded, pause: IoPause) -> Reason | None:
    """For good, until a person resumes it: that the window passes says nothing of its storage."""
    if pause.given_up is not None:
        return pause.given_up
    policy = host.policy.io_error
    count = len(guarded.record.resumes_ms)
    if count < policy.resumes_max:
        return None
    why = reason("io_error.given_up", count=count, window=format_duration_ms(policy.window_ms))
    guarded.set(io_pause=replace(pause, given_up=why))
    host.tell(guarded, "vm.io_error.given_up", **why.fields)
    return why


def _not_yet(host: HostState, guarded: Guarded, pause: IoPause) -> Reason | None:
    """What time or storage still has to do; asks for a look that is due. None: nothing."""
    record = guarded.record
    if host.now < _due_at(host, record, pause):
        attempt = len(record.resumes_ms) + 1
        delay_ms = host.policy.io_error.delay_before_ms(attempt)
        return reason("io_error.waiting.delay", delay_ms=delay_ms, attempt=attempt)
    if guarded.probed_ms == host.now and guarded.storage_objection is None:
        return None
    if host.now >= _next_probe_at(host, guarded):
        guarded.probe_number += 1
        guarded.probe_sent_ms = host.now
        full = record.pause is not None and record.pause.code == "vm.paused.no_room"
        host.order(ProbeDisks(vm_id=record.vm.id, number=guarded.probe_number, needs_room=full))
    return reason(
        "io_error.waiting.storage", detail=guarded.storage_objection or "it is being asked"
    )


def _due_at(host: HostState, record: VmRecord, pause: IoPause) -> Millis:
    attempt = len(resumes_in_window(host, record)) + 1
    return Millis(pause.quiet_ms + host.policy.io_error.delay_before_ms(attempt))


def _next_probe_at(host: HostState, guarded: Guarded) -> Millis:
    if guarded.probe_sent_ms is not None:
        return Millis(guarded.probe_sent_ms + PROBE_DEADLINE_MS)
    if guarded.probed_ms is None:
        return host.now
    return Millis(guarded.probed_ms + host.policy.io_error.check_interval_ms)


def _attempt_ends_at(pause: IoPause) -> Millis:
    return Millis(pause.attempt_ms + RESUME_DEADLINE_MS)


def _order_resume(host: HostState, guarded: Guarded, pause: IoPause) -> None:
    record = guarded.record
    attempt = len(record.resumes_ms) + 1
    waits = reason("io_error.waiting.result", attempt=attempt)
    guarded.set(
        resumes_ms=(*record.resumes_ms, int(host.now)),
        io_pause=replace(pause, attempt=attempt, attempt_ms=int(host.now), why=waits),
    )
    host.order(ResumeDomain(vm_id=record.vm.id, incarnation=record.incarnation, attempt=attempt))
    host.tell(guarded, "vm.io_error.resuming", attempt=attempt)
