"""What happened while nobody watched: told from libvirt's list and from the guest, never passed over.

An exit that only the list shows is within G5 where libvirt names its cause: `failed` and `crashed` are
written by the libvirtd of this host after it reaped that QEMU, in this boot, and the record says that
this incarnation ran here and was not migrating. Nothing else can have been done with it since: the gate
refuses ungranted starts. So an HA VM whose QEMU died together with the agent comes back without a
server. `unknown` and `daemon` name no cause, a VM missing from the list has none: the server decides.
"""

from collections.abc import Collection

from virtha.model.domain import DomainReport, DomainState
from virtha.model.time import Millis
from virtha.model.vm import Reason, VmState
from virtha.model.watchdog import WatchdogAction
from virtha.sentinel.events import (
    BootStatusRead,
    DomainsListed,
    Exit,
    ExitCause,
    PingGuest,
    ReadBootStatus,
    Told,
    VmRecord,
)
from virtha.sentinel.io_errors import nobody_answers
from virtha.sentinel.io_pauses import (
    io_pause_began,
    io_pause_over,
    pause_of_io_error,
    paused_by_somebody_else,
    paused_on_io,
    tell_paused,
)
from virtha.sentinel.machine import ACTIVE, Trigger
from virtha.sentinel.moves import (
    STANDS,
    awaited,
    compare_arrival,
    goes_on,
    leaves,
    stands_still,
    tell_open_moves,
)
from virtha.sentinel.restart import attempt_failed, attempt_succeeded
from virtha.sentinel.starts import appeared, forget_end, start_failed, start_succeeded
from virtha.sentinel.state import Guarded, HostState, LibvirtLink, reason
from virtha.sentinel.stops import START_UNFINISHED, attribute, ended
from virtha.sentinel.watchdog import count_firing, pause_after_dump, paused_by_watchdog

CARD_RESET = 32
"""WDIOF_CARDRESET of Linux's watchdog.h: the card did the last reset."""
GAP_DEADLINE_MS = 300_000
"""A guest under load takes minutes to start its agent; then the gap stays untold for good."""
BOOT_LAG_MS = 120_000
"""From a reset to the kernel's first second: firmware, boot loader, a slow emulator."""
RELIST_MS = 10_000
TRACELESS = frozenset({WatchdogAction.NONE, WatchdogAction.INJECT_NMI, WatchdogAction.DUMP})
"""The guest runs on after these, and neither libvirt nor the guest keeps that the card fired."""

# A new boot of the host (P4)


_EXITS_TOLD = frozenset({"vm.crashed", "vm.stopped", "vm.stopped_unexpectedly"})


def open_records(host: HostState) -> None:
    """At the agent's start: old boots' copies are dead, and what was released is said again."""
    for guarded in host.all():
        for each in host.told:
            if guarded.record.boot == host.boot and each.happened.vm_id == guarded.record.vm.id:
                _recall(guarded, each)
        if guarded.record.boot != host.boot:
            _close_old_boot(host, guarded)
        elif guarded.record.released:
            # The agent may have died between writing the record and telling it.
            host.tell_released(guarded)


def _recall(guarded: Guarded, told: Told) -> None:
    """The agent died between telling something and writing its record: it is not told again."""
    record, happened = guarded.record, told.happened
    if happened.incarnation != record.incarnation:
        return
    if happened.code in _EXITS_TOLD and guarded.up:
        guarded.exit_told = told.at_ms >= record.last_alive_ms
    # What could be told was watched.
    guarded.set(last_alive_ms=max(record.last_alive_ms, told.at_ms))
    count = happened.fields.get("count")
    if happened.code != "vm.watchdog.fired" or not isinstance(count, int):
        return
    if count > record.firing_count:
        guarded.set(
            firing_count=count,
            firings_ms=(*record.firings_ms, told.at_ms),
            started_ms=told.at_ms,
            guest_up=False,
        )
        guarded.firing_told = True


def _close_old_boot(host: HostState, guarded: Guarded) -> None:
    guarded.known = True
    guarded.set(start_open=False)
    record = guarded.record
    if record.state is VmState.DOWN and record.pending is None:
        guarded.set(released=True)
        host.tell_released(guarded)
        return
    was_up = record.state is not VmState.DOWN
    if awaited(record):
        # It was to come, and its boot is over: nothing of it was here that anybody missed.
        ending = Exit(cause=ExitCause.NEW_BOOT, at_ms=0, seen=False)
        guarded.set(state=VmState.DOWN, exit=ending, released=True)
        host.tell_released(guarded)
        return
    stopped_on_purpose = record.stop is not None
    cause = ExitCause.ORDERED if stopped_on_purpose else ExitCause.NEW_BOOT
    if was_up:
        guarded.set(state=VmState.STOPPING)
        ended(host, guarded, Exit(cause=cause, at_ms=0, seen=False), told=True)
        _tell_end_with_boot(host, guarded, record, cause)
    guarded.evidence = None
    blocked: Reason | None = None
    if record.vm.ha and record.wanted_up and not stopped_on_purpose:
        blocked = _blocked_since_boot(host, guarded, record)
    guarded.set(
        pending=None, attempt=None, attempts_ms=(), firings_ms=(), blocked=blocked, released=True
    )
    host.tell_released(guarded)


def _tell_end_with_boot(
    host: HostState, guarded: Guarded, record: VmRecord, cause: ExitCause
) -> None:
    """``record``: as the old boot left it."""
    code = "vm.stop.reconstructed"
    fields = {"cause": cause.value}
    if leaves(record):
        # That the VM stopped nobody here knows: it may have run elsewhere by then, and do so still.
        code, fields = "vm.migration_source_ended", {}
    host.tell(guarded, code, **fields, after_ms=record.last_alive_ms, before_ms=int(host.now))


def _blocked_since_boot(host: HostState, guarded: Guarded, record: VmRecord) -> Reason:
    if leaves(record):
        # Not told: no restart is missing that anybody could expect of this host.
        return reason("restart.blocked.migrating")
    blocked = reason("restart.blocked.other_boot")
    host.tell(guarded, "vm.restart.blocked", reason=blocked.code)
    return blocked


# Lists


def libvirt_lost(host: HostState) -> None:
    if not host.connected:
        return
    host.libvirt = LibvirtLink.LOST
    host.lost_ms = host.now
    for guarded in host.all():
        # The list that ends the outage is surely later than what came before it.
        guarded.moved = guarded.arrival_watched = False
    host.tell(None, "host.libvirt.lost")


def domains_listed(host: HostState, event: DomainsListed) -> None:
    before = host.libvirt
    # An agent that begins while libvirt is away gets its first list later, as any other.
    at_start = event.at_start or before is LibvirtLink.UNSEEN
    host.libvirt = LibvirtLink.CONNECTED
    host.listing_ms = None
    host.list_wanted = False
    host.listed = {report.vm_id: report for report in event.domains}
    if before is LibvirtLink.LOST:
        host.tell(None, "host.libvirt.back")
    if at_start:
        tell_open_moves(host)
    for guarded in host.all():
        if at_start:
            nobody_answers(host, guarded)
        if at_start and guarded.record.start_open:
            # Nobody will answer that start any more: the list does.
            guarded.set(start_open=False)
            if guarded.record.state is VmState.DOWN:
                guarded.move(Trigger.UNCLEAR)
        gap_ms = _gap_from(host, guarded, before, at_start=at_start)
        if gap_ms is not None and guarded.up and guarded.record.gap_from_ms is None:
            guarded.set(gap_from_ms=int(gap_ms))
        if guarded.moved:
            # The list may be older than the event that came meanwhile: ask once more.
            host.list_wanted = True
        else:
            report = host.listed.get(guarded.record.vm.id)
            _compare(host, guarded, report, at_start=at_start)
        guarded.known = True
        if gap_ms is not None and guarded.up and guarded.record.gap_from_ms is not None:
            _ask_guest(host, guarded)


def _gap_from(
    host: HostState, guarded: Guarded, before: LibvirtLink, *, at_start: bool
) -> Millis | None:
    """The last moment at which this VM was watched; None: it was watched all the time."""
    record = guarded.record
    if before is LibvirtLink.LOST:
        return host.lost_ms
    if before is LibvirtLink.CONNECTED and not at_start:
        return None
    if guarded.saved is None or record.boot != host.boot:
        return None
    watched = host.watched
    until_ms = watched.until_ms if watched and watched.boot == host.boot else 0
    return Millis(min(max(record.last_alive_ms, until_ms), host.now))


def _compare(
    host: HostState, guarded: Guarded, report: DomainReport | None, *, at_start: bool
) -> None:
    record = guarded.record
    if report is not None and report.state is DomainState.NOSTATE:
        host.list_wanted = True
        return
    active = report is not None and report.state in ACTIVE
    unresolved = at_start or record.state is VmState.UNKNOWN
    if awaited(record):
        compare_arrival(host, guarded, report)
        if guarded.up and active and report is not None:
            _same_or_changed(host, guarded, report)
    elif record.attempt is not None:
        if unresolved:
            _resolve_attempt(host, guarded, report if active else None)
    elif record.state in (VmState.STARTING, VmState.UNKNOWN):
        if unresolved or record.outside:
            _resolve_start(host, guarded, report if active else None)
    elif guarded.up and active:
        assert report is not None
        _same_or_changed(host, guarded, report)
    elif guarded.up:
        _ended_unseen(host, guarded, report)
    elif active and record.start_open:
        appeared(guarded)
    elif active and report is not None:
        started_outside(host, guarded)
        guarded.move(Trigger.RUNS)
        _same_or_changed(host, guarded, report)


def _resolve_attempt(host: HostState, guarded: Guarded, active: DomainReport | None) -> None:
    """A restart whose result nobody heard: what runs, runs; all else failed."""
    if active is None:
        attempt_failed(host, guarded, "it does not run")
    elif active.state is DomainState.SHUTTING_DOWN:
        _ask_later(host, guarded)
    elif active.state is DomainState.PAUSED:
        attempt = guarded.record.attempt
        guarded.set(attempt=None, pause=reason(START_UNFINISHED), down_ms=int(host.now))
        guarded.move(Trigger.LEFT_PAUSED)
        host.tell(guarded, "vm.restart.failed", detail="it was left paused", attempt=attempt)
    else:
        attempt_succeeded(host, guarded)
        guarded.set(pid=active.pid)
        # A guest that suspended itself or panicked by now did run.
        _same_or_changed(host, guarded, active)


def _ask_later(host: HostState, guarded: Guarded) -> None:
    """Its QEMU is on its way out, perhaps without ever having run: neither a success nor over."""
    guarded.move(Trigger.UNCLEAR)
    host.list_wanted = True
    host.listing_ms = host.now


def _resolve_start(host: HostState, guarded: Guarded, active: DomainReport | None) -> None:
    if active is None:
        start_failed(host, guarded, "it does not run")
        return
    if active.state is DomainState.SHUTTING_DOWN:
        _ask_later(host, guarded)
        return
    guarded.set(pid=active.pid)
    if active.state is not DomainState.PAUSED:
        start_succeeded(host, guarded)
        _same_or_changed(host, guarded, active)
        return
    guarded.move(Trigger.LEFT_PAUSED)
    forget_end(guarded)
    guarded.set(pause=reason(START_UNFINISHED))
    host.tell(guarded, "vm.start_failed", detail="it was left paused")


def started_outside(host: HostState, guarded: Guarded) -> None:
    """Not by us: it is told, and never restarted by us (its exit may be anyone's wish)."""
    guarded.move(Trigger.STARTED_OUTSIDE)
    guarded.set(
        outside=True,
        exit=None,
        pending=None,
        blocked=None,
        hints=(),
        up=reason("vm.up.started_outside"),
        started_ms=int(host.now),
        guest_up=False,
        pid=None,
    )
    host.tell(guarded, "vm.unmanaged_copy")


def _ended_unseen(host: HostState, guarded: Guarded, report: DomainReport | None) -> None:
    record = guarded.record
    detail = report.reason if report is not None else "missing"
    cause = attribute(record, detail, now=host.now, host_shutting_down=host.shutting_down)
    seen = cause is not ExitCause.UNKNOWN
    handed_over = cause is ExitCause.MIGRATED and leaves(record)
    if not guarded.exit_told and not handed_over:
        _tell_between(host, guarded, "vm.stop.reconstructed", cause=cause.value)
        if cause is ExitCause.GUEST_SHUTDOWN:
            _tell_traceless(host, guarded, {WatchdogAction.SHUTDOWN})
    ending = Exit(cause=cause, at_ms=int(host.now), seen=seen, detail=detail)
    ended(host, guarded, ending, told=True)


def _same_or_changed(host: HostState, guarded: Guarded, report: DomainReport) -> None:
    record = guarded.record
    if record.pid is not None and report.pid is not None and record.pid != report.pid:
        _another_qemu(host, guarded, report)
    guarded.set(pid=report.pid if report.pid is not None else record.pid)
    match report.state:
        case DomainState.RUNNING | DomainState.SHUTTING_DOWN:
            if record.state in (VmState.PAUSED, VmState.CRASHED):
                _runs_again(host, guarded)
        case DomainState.PAUSED | DomainState.PMSUSPENDED:
            if record.state in (VmState.RUNNING, VmState.STOPPING):
                _was_paused(host, guarded, report)
            elif paused_on_io(record) and report.reason != "ioerror":
                # It ran since, and somebody paused it.
                guarded.set(io_pause=None)
                paused_by_somebody_else(host, guarded, reason("vm.paused.outside"))
        case DomainState.CRASHED if record.state is not VmState.CRASHED:
            guarded.move(Trigger.PANICS)
            host.tell(guarded, "vm.panicked")
            guarded.evidence = "panic"


def _another_qemu(host: HostState, guarded: Guarded, report: DomainReport) -> None:
    _tell_unknown_restart(host, guarded)
    guarded.set(
        outside=True,
        up=reason("vm.up.started_outside"),
        gap_from_ms=None,
        started_ms=int(host.now),
        guest_up=False,
        pid=report.pid,
    )


def _runs_again(host: HostState, guarded: Guarded) -> None:
    guarded.move(Trigger.RUNS)
    goes_on(guarded)
    if guarded.record.dump_pending:
        pause_after_dump(host, guarded)
        return
    guarded.set(pause=None, pending=None)
    host.tell(guarded, "vm.resumed")
    io_pause_over(host, guarded)


def _was_paused(host: HostState, guarded: Guarded, report: DomainReport) -> None:
    record = guarded.record
    guarded.move(Trigger.PAUSES)
    if record.pause is not None:
        # It was known to be paused when it was asked to stop.
        return
    if report.reason == "migration":
        guarded.set(pause=reason(STANDS))
        stands_still(guarded)
        return
    if record.dump_pending:
        # Either the dump goes on, or our pause came through: both show as paused by the watchdog.
        guarded.set(pause=reason("vm.paused.watchdog"))
        guarded.set(dump_pending=report.reason == "watchdog" and record.pause_attempts == 0)
        return
    if paused_by_watchdog(report):
        if not guarded.firing_told:
            _tell_between(
                host, guarded, "vm.watchdog.reconstructed", evidence="its watchdog paused it"
            )
            count_firing(host, guarded)
        guarded.set(pause=reason("vm.paused.watchdog"))
    elif record.pause_by is not None:
        guarded.set(pause=reason("vm.paused.as_ordered", by=record.pause_by), pause_by=None)
    elif report.reason == "ioerror":
        guarded.set(pause=pause_of_io_error(guarded))
    else:
        guarded.set(pause=reason("vm.paused.outside"))
    if report.reason == "ioerror":
        io_pause_began(host, guarded)
    pause = guarded.record.pause
    assert pause is not None  # each of the ways above has set it
    tell_paused(host, guarded, pause)


# What the guest did in the gap


def _ask_guest(host: HostState, guarded: Guarded) -> None:
    guarded.gap_seen_ms = host.now
    host.order(ReadBootStatus(vm_id=guarded.record.vm.id))
    host.order(PingGuest(vm_id=guarded.record.vm.id))


def boot_status_read(host: HostState, event: BootStatusRead) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None or guarded.record.gap_from_ms is None or not guarded.up:
        return
    if event.guest_uptime_ms is None:
        if event.bootstatus is not None:
            _judge_without_uptime(host, guarded, event.bootstatus)
        # Neither could be read: its agent may still come up; the deadline ends the wait.
        return
    _judge(host, guarded, event.bootstatus, Millis(host.now - event.guest_uptime_ms))


def _judge(host: HostState, guarded: Guarded, bootstatus: int | None, boot_ms: Millis) -> None:
    """``boot_ms``: when the guest's kernel began, on this host's clock."""
    record = guarded.record
    assert record.gap_from_ms is not None
    if boot_ms <= record.gap_from_ms:
        _tell_traceless(host, guarded, TRACELESS)
        guarded.set(gap_from_ms=None, guest_up=True)
        return
    if _known_boot(guarded, boot_ms):
        close_gap(host, guarded, "it was booting when it was last seen")
        guarded.set(guest_up=True)
        return
    if bootstatus is not None and bootstatus & CARD_RESET:
        _tell_between(host, guarded, "vm.watchdog.reconstructed", evidence="bootstatus")
        count_firing(host, guarded)
    elif record.reboot is not None:
        host.tell(guarded, "vm.rebooted", cause="ordered", by=record.reboot.by)
    else:
        _tell_unknown_restart(host, guarded)
    guarded.set(gap_from_ms=None, guest_up=True, started_ms=max(int(boot_ms), 0), reboot=None)


def _known_boot(guarded: Guarded, boot_ms: Millis) -> bool:
    """A reset seen just before the gap: its kernel only began to count within it.

    One more reset before its agent connected would look the same, so it is no proof that there was
    none; but a second entry for the one that was seen would be wrong.
    """
    record = guarded.record
    assert record.gap_from_ms is not None
    open_start = not record.guest_up and record.started_ms <= record.gap_from_ms
    return open_start and boot_ms <= record.started_ms + BOOT_LAG_MS


def _judge_without_uptime(host: HostState, guarded: Guarded, bootstatus: int) -> None:
    if bootstatus & CARD_RESET and guarded.record.firing_count == 0:
        _tell_between(host, guarded, "vm.watchdog.reconstructed", evidence="bootstatus")
        count_firing(host, guarded)
        guarded.set(gap_from_ms=None, guest_up=True)
        return
    # The mark of an earlier, known firing stays in the card until the next clean boot.
    close_gap(host, guarded, "the guest does not say how long it has been up")


def close_gap(host: HostState, guarded: Guarded, detail: str) -> None:
    """What can't be cleared up any more is told as such."""
    if guarded.record.gap_from_ms is None:
        return
    _tell_between(host, guarded, "vm.history.gap", detail=detail)
    guarded.set(gap_from_ms=None)


def gap_deadline(guarded: Guarded) -> Millis | None:
    if guarded.record.gap_from_ms is None or guarded.gap_seen_ms is None:
        return None
    return Millis(guarded.gap_seen_ms + GAP_DEADLINE_MS)


def expire_gap(host: HostState, guarded: Guarded) -> None:
    deadline = gap_deadline(guarded)
    if deadline is not None and host.now >= deadline:
        close_gap(host, guarded, "its guest agent does not answer")


def _tell_traceless(host: HostState, guarded: Guarded, actions: Collection[WatchdogAction]) -> None:
    """Nobody watched, and a firing would have left nothing to find: that is told (W7), not the firing."""
    card = guarded.record.vm.watchdog or host.default_watchdog
    if card is not None and card.action in actions and not guarded.firing_told:
        _tell_between(host, guarded, "vm.watchdog.unknown", action=card.action.value)


def _tell_unknown_restart(host: HostState, guarded: Guarded) -> None:
    _tell_between(host, guarded, "vm.restart.unknown")


def _tell_between(host: HostState, guarded: Guarded, code: str, **fields: str) -> None:
    record = guarded.record
    after_ms = record.gap_from_ms if record.gap_from_ms is not None else record.last_alive_ms
    host.tell(guarded, code, **fields, after_ms=after_ms, before_ms=int(host.now))
