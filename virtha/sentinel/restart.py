"""Local restarts: whether, when, and how they end (rule G5 and the restart section of the policy).

A local restart keeps the incarnation that the server gave. G4 asks for a higher one at each start so
that two copies can be told apart; here the former copy's exit was seen by the sentinel of the only
host that may hold the VM in this boot, so there is nothing to tell apart, and an isolated host could
not ask anyone for a number. ``VmRecord.local_starts`` counts them within the incarnation.

What ends the right to restart here also ends the host's hold on the VM: ``Released`` is told, and the
server decides. What only delays it (hold, libvirt lost, a delay) keeps the hold.
"""

from typing import assert_never

from virtha.model.facts import Result
from virtha.model.policy import PermissionGrade, RestartPolicy
from virtha.model.time import Millis, format_duration_ms
from virtha.model.vm import Reason, VmState
from virtha.sentinel.events import Cause, GatherEvidence, HintKind, Restart, RestartEnded, VmRecord
from virtha.sentinel.machine import Trigger
from virtha.sentinel.starts import start_unclear
from virtha.sentinel.state import Guarded, HostState, LibvirtLink, reason
from virtha.sentinel.stops import ATTRIBUTION_MS, live_hints

ATTEMPT_DEADLINE_MS = 150_000
"""Longer than the driver's own bounds for creating and running a domain."""


def allowed_by_policy(policy: RestartPolicy, cause: Cause) -> bool:
    if not policy.enabled:
        return False
    match cause:
        case Cause.CRASH:
            return policy.after_crash
        case Cause.PANIC:
            return policy.after_panic
        case Cause.WATCHDOG_POWEROFF | Cause.WATCHDOG_SHUTDOWN:
            return policy.after_watchdog_poweroff
        case Cause.GUEST_SHUTDOWN:
            return policy.after_guest_shutdown
        case _:
            assert_never(cause)


def barred(host: HostState, record: VmRecord) -> Reason | None:
    """Why this exit will never be answered by a restart here; None: it may be."""
    ending, cause = record.exit, record.pending
    assert cause is not None
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
    if ending is None or not ending.seen:
        return reason("restart.blocked.not_seen")
    if not record.wanted_up:
        return reason("restart.blocked.stopped_on_purpose", cause="not wanted up")
    allowed = allowed_by_policy(host.policy.restart, cause)
    if cause is Cause.GUEST_SHUTDOWN and not allowed:
        return reason("restart.blocked.stopped_on_purpose", cause=cause.value)
    if not record.vm.ha:
        return reason("restart.blocked.not_ha")
    forbidden = forbidden_by_grade(host, record)
    if forbidden is not None:
        return forbidden
    if not allowed:
        return reason("restart.blocked.policy", cause=cause.value)
    if host.shutting_down:
        return reason("restart.blocked.host_shutting_down")
    if record.exhausted:
        return _limit(host, record)
    return None


def forbidden_by_grade(host: HostState, record: VmRecord) -> Reason | None:
    """Below ``restart`` a host watches and tells, and touches no VM of its own accord."""
    grade = host.policy.recovery.grade.but_at_most(record.vm.grade_max)
    if grade.permits(PermissionGrade.RESTART):
        return None
    return reason("restart.blocked.grade", grade=grade.value)


def delayed(host: HostState, record: VmRecord) -> Reason | None:
    """Why the restart must wait for something other than time."""
    if record.migrating:
        return reason("restart.blocked.migrating")
    if not host.connected:
        return reason("restart.blocked.libvirt_lost")
    if host.hold is not None:
        return reason("restart.blocked.hold")
    return None


def attempts_in_window(host: HostState, record: VmRecord) -> tuple[int, ...]:
    if not record.attempts_ms:
        return ()
    since = host.now - host.policy.restart.window_ms
    return tuple(at for at in record.attempts_ms if at > since)


def due_at(host: HostState, record: VmRecord) -> Millis:
    attempt = len(attempts_in_window(host, record)) + 1
    return Millis(record.down_ms + host.policy.restart.delay_before_ms(attempt))


def _limit(host: HostState, record: VmRecord) -> Reason:
    return reason(
        "restart.blocked.limit",
        count=len(attempts_in_window(host, record)),
        window=format_duration_ms(host.policy.restart.window_ms),
    )


def awaits_restart(record: VmRecord) -> bool:
    return record.pending is not None and record.state in (VmState.DOWN, VmState.PAUSED)


# The plan


def plan(host: HostState, guarded: Guarded) -> None:
    """Looks at state only: a restart of the agent and the undisturbed case are one path."""
    record = guarded.record
    if host.libvirt is LibvirtLink.UNSEEN and record.boot == host.boot:
        # Before the first list nothing is known to be down.
        return
    if record.attempt is not None:
        _expire_attempt(host, guarded)
        return
    _expire_start(host, guarded)
    record = guarded.record
    if record.pending is None:
        _release_if_over(host, guarded)
        return
    if not awaits_restart(record):
        return
    bar = barred(host, record)
    if bar is not None:
        _give_up(host, guarded, bar)
        return
    wait = delayed(host, record)
    if wait is not None:
        _block(host, guarded, wait)
        return
    if record.start_open:
        return  # it may still make a copy
    guarded.set(blocked=None, attempts_ms=attempts_in_window(host, record))
    if len(guarded.record.attempts_ms) >= host.policy.restart.restarts_max:
        _exhaust(host, guarded)
    elif host.now >= due_at(host, guarded.record):
        _order_restart(host, guarded)


def _order_restart(host: HostState, guarded: Guarded) -> None:
    record = guarded.record
    assert record.pending is not None
    attempt = len(record.attempts_ms) + 1
    guarded.move(Trigger.START_ORDERED)
    guarded.set(
        attempts_ms=(*record.attempts_ms, int(host.now)),
        attempt=attempt,
        attempt_ms=int(host.now),
        pid=None,
        pause=None,
        guest_up=False,
        started_ms=int(host.now),
    )
    host.order(
        Restart(
            vm_id=record.vm.id,
            incarnation=record.incarnation,
            attempt=attempt,
            cause=record.pending,
        )
    )
    host.tell(
        guarded,
        "vm.restart.ordered",
        attempt=attempt,
        cause=record.pending.value,
        delay_ms=int(host.now) - record.down_ms,
    )


_EXPECTED = ("restart.blocked.stopped_on_purpose", "restart.blocked.superseded")


def _exhaust(host: HostState, guarded: Guarded) -> None:
    limit = _limit(host, guarded.record)
    guarded.set(exhausted=True)
    host.tell(guarded, "vm.restart.exhausted", **limit.fields)
    _settle(host, guarded, limit)


def _give_up(host: HostState, guarded: Guarded, bar: Reason) -> None:
    # Without HA, after a stop on purpose, or when the server has gone on to a new start, nobody
    # expects a restart: the reason says so, history need not.
    if guarded.record.vm.ha and bar.code not in _EXPECTED:
        _tell_blocked(host, guarded, bar)
    _settle(host, guarded, bar)


def _settle(host: HostState, guarded: Guarded, why: Reason) -> None:
    guarded.set(pending=None, blocked=why)
    _release_if_over(host, guarded)


def _block(host: HostState, guarded: Guarded, why: Reason) -> None:
    _tell_blocked(host, guarded, why)
    guarded.set(blocked=why)


def _tell_blocked(host: HostState, guarded: Guarded, why: Reason) -> None:
    before = guarded.record.blocked
    if before is None or before.code != why.code:
        host.tell(guarded, "vm.restart.blocked", reason=why.code)


def _release_if_over(host: HostState, guarded: Guarded) -> None:
    """Down, and never started here again without a new grant (P5).

    A paused leftover of a failed attempt is still a copy: nothing is released while it exists. Nor
    while libvirt is lost: a start that it never answered may have made one. Nor while an ordered start
    is under way, which may still make one (G2).

    A copy that somebody started outside after the release made this host a holder again (the server
    saw it in the inventory); its end is said too, or the VM could start nowhere else.
    """
    record = guarded.record
    if record.start_open:
        return
    if record.state is VmState.DOWN and not record.released and host.connected:
        guarded.set(released=True)
        host.tell_released(guarded)
    elif record.state is VmState.DOWN and record.outside and host.connected and _was_up(guarded):
        host.tell_released(guarded)


def _was_up(guarded: Guarded) -> bool:
    """Before this step."""
    return guarded.saved is not None and guarded.saved.state is not VmState.DOWN


# Results


def restart_ended(host: HostState, event: RestartEnded) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None:
        return
    record = guarded.record
    if (record.incarnation, record.attempt) != (event.incarnation, event.attempt):
        return
    match event.result:
        case Result.OK:
            attempt_succeeded(host, guarded)
        case Result.FAILED | Result.REFUSED:
            attempt_failed(host, guarded, event.detail or event.result.value)
        case Result.UNKNOWN:
            _attempt_unclear(host, guarded)


def attempt_succeeded(host: HostState, guarded: Guarded) -> None:
    record = guarded.record
    cause = record.pending.value if record.pending else "unknown"
    guarded.set(attempt=None, local_starts=record.local_starts + 1)
    # The list brings the process id, and tells if it died again before its result came.
    host.list_wanted = True
    if record.state is VmState.DOWN:
        return
    if record.state in (VmState.STARTING, VmState.UNKNOWN):
        guarded.move(Trigger.RUNS)
    guarded.set(
        pending=None,
        exit=None,
        blocked=None,
        up=reason("vm.up.restarted", cause=cause),
    )
    _tell_restarted(host, guarded, record)


def ended_in_attempt(host: HostState, guarded: Guarded) -> None:
    """It ran, and stopped before the result of the attempt came: the restart was one all the same."""
    if guarded.record.attempt is not None and guarded.record.state is VmState.RUNNING:
        _tell_restarted(host, guarded, guarded.record)


def _tell_restarted(host: HostState, guarded: Guarded, record: VmRecord) -> None:
    """``record``: as it was during the attempt."""
    duration_ms = int(host.now) - record.exit.at_ms if record.exit else 0
    host.tell(guarded, "vm.restarted", duration_ms=duration_ms, attempt=record.attempt)


def attempt_failed(host: HostState, guarded: Guarded, detail: str) -> None:
    record = guarded.record
    host.tell(guarded, "vm.restart.failed", detail=detail, attempt=record.attempt)
    guarded.set(attempt=None)
    if guarded.up:
        # It ran, yet the attempt is said to have failed: libvirt knows.
        host.list_wanted = True
        return
    guarded.move(Trigger.START_FAILED)
    guarded.set(down_ms=int(host.now))


def _attempt_unclear(host: HostState, guarded: Guarded) -> None:
    """Never taken for success, nor for failure: libvirt's list decides."""
    guarded.move(Trigger.UNCLEAR)
    host.list_wanted = True


def _expire_attempt(host: HostState, guarded: Guarded) -> None:
    record = guarded.record
    overdue = host.now - record.attempt_ms >= ATTEMPT_DEADLINE_MS
    if overdue and record.state in (VmState.STARTING, VmState.DOWN):
        _attempt_unclear(host, guarded)


def _expire_start(host: HostState, guarded: Guarded) -> None:
    """The copy that ended was somebody else's; what came of ours, its answer says, and without one the list."""
    record = guarded.record
    if not record.start_open or record.state is not VmState.DOWN:
        return
    if start_overdue_ms(record) <= host.now:
        start_unclear(host, guarded)


def start_overdue_ms(record: VmRecord) -> int:
    return max(record.started_ms, record.down_ms) + ATTEMPT_DEADLINE_MS


# Evidence (W12)


def exit_expected_until(host: HostState, guarded: Guarded) -> Millis | None:
    """A poweroff or a panic was announced and QEMU's end must follow at once."""
    announced = live_hints(guarded.record, host.now) & {
        HintKind.WATCHDOG_POWEROFF,
        HintKind.PANIC,
    }
    if not guarded.up or not announced:
        return None
    until_ms = max(
        hint.at_ms + ATTRIBUTION_MS for hint in guarded.record.hints if hint.kind in announced
    )
    return Millis(until_ms) if host.now < until_ms else None


def gather_evidence(host: HostState, guarded: Guarded) -> None:
    """After the restart order, never before it: a screenshot would hold libvirt's domain lock."""
    record = guarded.record
    if guarded.evidence is None or exit_expected_until(host, guarded) is not None:
        return
    if awaits_restart(record) and record.blocked is None:
        return
    host.order(GatherEvidence(vm_id=record.vm.id, cause=guarded.evidence))
    guarded.evidence = None
