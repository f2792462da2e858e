"""libvirt's events about one VM, folded into its record."""

from virtha.model.domain import DomainEvent, DomainEventKind
from virtha.model.time import Millis
from virtha.model.vm import IO_PAUSES, Reason, VmState
from virtha.sentinel.events import GuestAnswered, HintKind, PingGuest, ReadBootStatus
from virtha.sentinel.io_pauses import (
    io_error_told,
    io_pause_began,
    io_pause_over,
    pause_of_io_error,
    paused_on_io,
    tell_paused,
)
from virtha.sentinel.machine import Trigger
from virtha.sentinel.moves import (
    STANDS,
    arrival_gone,
    arrived,
    awaited,
    goes_on,
    is_handed_over,
    stands_still,
)
from virtha.sentinel.reconstruct import close_gap, started_outside
from virtha.sentinel.restart import attempt_succeeded, ended_in_attempt
from virtha.sentinel.starts import appeared, start_succeeded
from virtha.sentinel.state import Guarded, HostState, reason
from virtha.sentinel.stops import add_hint, stopped
from virtha.sentinel.watchdog import fired, pause_after_dump, reset_just_now

AGENT_GRACE_MS = 120_000
"""A rebooting guest's agent is silent for its whole boot: no warning before that."""
REBOOT_ECHO_MS = 1_000
"""One reset gives two reboot events 30 to 40 ms apart, for SeaBIOS resets the machine once more (QEMU
7.2); under load they were seen further apart. No guest boots twice within a second."""


def domain_event(host: HostState, event: DomainEvent) -> None:
    if event.kind is DomainEventKind.STOPPED:
        host.listed.pop(event.vm_id, None)
    guarded = host.vms.get(event.vm_id)
    if guarded is None:
        return
    guarded.moved = True
    match event.kind:
        case DomainEventKind.STARTED:
            _started(host, guarded)
        case DomainEventKind.RESUMED:
            _resumed(host, guarded)
        case DomainEventKind.SUSPENDED:
            _suspended(host, guarded, event.detail)
        case DomainEventKind.SHUTDOWN:
            _shutting_down(host, guarded, event.detail)
        case DomainEventKind.STOPPED:
            close_gap(host, guarded, "it stopped before it could be asked")
            ended_in_attempt(host, guarded)
            if awaited(guarded.record):
                arrival_gone(host, guarded, event.detail)
            else:
                # A move that came off is told by the server, as one thing.
                stopped(host, guarded, event.detail, told=is_handed_over(guarded, event.detail))
        case DomainEventKind.PANICKED:
            _panicked(host, guarded)
        case DomainEventKind.REBOOTED:
            _rebooted(host, guarded)
        case DomainEventKind.WATCHDOG:
            close_gap(host, guarded, "its watchdog fired before it could be asked")
            fired(host, guarded, event.detail)
        case DomainEventKind.AGENT:
            _agent(host, guarded, connected=event.detail == "connected")
        case DomainEventKind.IO_ERROR:
            # What follows from it comes as SUSPENDED.
            io_error_told(guarded, event.detail)
        case DomainEventKind.UNDEFINED:
            pass  # what follows from it comes as STOPPED


def _started(host: HostState, guarded: Guarded) -> None:
    if guarded.record.state is VmState.DOWN and guarded.record.start_open:
        appeared(guarded)
    elif guarded.record.state is VmState.DOWN:
        started_outside(host, guarded)
    elif guarded.up and guarded.record.pending is None:
        # Its stop was missed.
        host.list_wanted = True


def _resumed(host: HostState, guarded: Guarded) -> None:
    guarded.full_disk = None
    before, comes = guarded.record.state, awaited(guarded.record)
    if not guarded.move(Trigger.RUNS):
        host.list_wanted = True
        return
    if comes:
        arrived(host, guarded)
        return
    if before is VmState.UNKNOWN:
        # The start whose result was unknown has come to its end.
        if guarded.record.attempt is not None:
            attempt_succeeded(host, guarded)
        else:
            start_succeeded(host, guarded)
    if before is not VmState.PAUSED:
        guarded.set(pause=None)
        return
    if guarded.record.dump_pending:
        pause_after_dump(host, guarded)
        return
    stood = guarded.record.pause is not None and guarded.record.pause.code == STANDS
    goes_on(guarded)
    guarded.set(pause=None, pause_by=None, pending=None, blocked=None)
    if not stood:
        host.tell(guarded, "vm.resumed")
    io_pause_over(host, guarded)


def _suspended(host: HostState, guarded: Guarded, detail: str) -> None:
    record = guarded.record
    if not guarded.move(Trigger.PAUSES):
        host.list_wanted = True
        return
    if guarded.record.state is not VmState.PAUSED:
        return
    if detail == "migrated":
        # Told by its report: it lasts a moment, or the server asks what it is about.
        guarded.set(pause=reason(STANDS), pause_by=None)
        stands_still(guarded)
        return
    why = _pause_reason(guarded, detail)
    dump_goes_on = record.dump_pending and detail == "watchdog"
    guarded.set(pause=why, pause_by=None, dump_pending=dump_goes_on)
    guarded.pause_sent_ms = None
    if detail == "ioerror":
        io_pause_began(host, guarded)
    # Of one that a person had paused: it ran for a moment that nobody saw, and stands still for another reason.
    another = why.code in IO_PAUSES and not paused_on_io(record)
    # A dump's pause is told once, when the guest stays paused.
    if not dump_goes_on and (record.state is not VmState.PAUSED or another):
        tell_paused(host, guarded, why)


def _pause_reason(guarded: Guarded, detail: str) -> Reason:
    record = guarded.record
    if detail == "watchdog" or record.dump_pending:
        return reason("vm.paused.watchdog")
    if record.pause_by is not None:
        # Also before an I/O error's: its storage does not answer for a person.
        return reason("vm.paused.as_ordered", by=record.pause_by)
    if detail == "ioerror":
        return pause_of_io_error(guarded)
    return reason("vm.paused.outside")


def _shutting_down(host: HostState, guarded: Guarded, detail: str) -> None:
    kind = HintKind.HOST_SIGNAL if detail == "host" else HintKind.GUEST_SHUTDOWN
    add_hint(host, guarded, kind)
    guarded.move(Trigger.SHUTS_DOWN)


def _panicked(host: HostState, guarded: Guarded) -> None:
    if guarded.record.state is VmState.CRASHED:
        return
    add_hint(host, guarded, HintKind.PANIC)
    guarded.move(Trigger.PANICS)
    guarded.evidence = "panic"
    host.tell(guarded, "vm.panicked")


def _rebooted(host: HostState, guarded: Guarded) -> None:
    record = guarded.record
    if guarded.rebooted_ms is not None and host.now - guarded.rebooted_ms < REBOOT_ECHO_MS:
        # Firings are counted by their own events, so nothing is lost by taking these together.
        return
    guarded.rebooted_ms = host.now
    close_gap(host, guarded, "it rebooted before it could be asked")
    cause, by = "guest", ""
    if record.reboot is not None and host.now < record.reboot.ends_at_ms:
        cause, by = "ordered", record.reboot.by
    elif record.state is VmState.CRASHED:
        cause = "panic"
    elif reset_just_now(record, host.now):
        cause = "watchdog"
    if record.state is VmState.CRASHED:
        guarded.move(Trigger.RUNS)
    guarded.set(reboot=None, started_ms=int(host.now), guest_up=False, guest_agent=None, hints=())
    host.tell(guarded, "vm.rebooted", cause=cause, by=by)


# The guest agent


def _agent(host: HostState, guarded: Guarded, *, connected: bool) -> None:
    if not connected:
        _agent_silent(host, guarded)
        return
    guarded.agent_lost_ms = None
    host.order(PingGuest(vm_id=guarded.record.vm.id))
    if guarded.record.gap_from_ms is not None:
        # Asked before the agent is known as up: the answer must be judged by the state before.
        host.order(ReadBootStatus(vm_id=guarded.record.vm.id))


def guest_answered(host: HostState, event: GuestAnswered) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None or not guarded.up:
        return
    if not event.answers:
        _agent_silent(host, guarded)
        return
    guarded.agent_lost_ms = None
    if guarded.record.guest_agent is not True:
        host.tell(guarded, "vm.agent.connected")
    # While a gap is open, its judgement still needs to know that the last boot was not seen through.
    guest_up = guarded.record.guest_up or guarded.record.gap_from_ms is None
    guarded.set(guest_agent=True, guest_up=guest_up)


def _agent_silent(host: HostState, guarded: Guarded) -> None:
    if guarded.record.guest_agent is True:
        guarded.agent_lost_ms = host.now
    guarded.set(guest_agent=False)


def agent_grace_ends(guarded: Guarded) -> Millis | None:
    if guarded.agent_lost_ms is None or guarded.record.state is not VmState.RUNNING:
        return None
    return Millis(guarded.agent_lost_ms + AGENT_GRACE_MS)


def tell_silent_agent(host: HostState, guarded: Guarded) -> None:
    ends_ms = agent_grace_ends(guarded)
    if ends_ms is not None and host.now >= ends_ms:
        guarded.agent_lost_ms = None
        host.tell(guarded, "vm.agent.lost")
