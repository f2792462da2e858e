"""Ordered starts, reboots, pauses; adopting and forgetting; new settings."""

from virtha.model.domain import DomainReport
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import HeldVm
from virtha.model.vm import Reason, VmState
from virtha.sentinel.events import (
    Adopted,
    Configured,
    Exit,
    ExitCause,
    Forgotten,
    MigrationMarked,
    PauseAccepted,
    RebootAccepted,
    RebootMark,
    ResumeAccepted,
    StartAccepted,
    StartEnded,
    StartRefused,
    VmRecord,
)
from virtha.sentinel.io_pauses import (
    counted_anew,
    io_pause_began,
    paused_by_somebody_else,
    paused_on_io,
    tell_paused,
)
from virtha.sentinel.machine import ACTIVE, Trigger
from virtha.sentinel.state import Guarded, HostState, reason, take_in

REBOOT_WAIT_MS = 300_000
"""An ordered reboot that the guest has not begun by then is forgotten; a later one is its own."""


def start_refusal(host: HostState, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
    """Coded as the order's refusal. Without libvirt's word nobody knows what runs here."""
    if not host.connected:
        return reason("host.unfit.libvirt")
    refusal = _refusal_by_record(host, vm_id, incarnation)
    guarded = host.vms.get(vm_id)
    if refusal is None and guarded is None and unlisted_domain(host, vm_id) is not None:
        return reason("order.refused.running")
    return refusal


def _refusal_by_record(host: HostState, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
    guarded = host.vms.get(vm_id)
    if guarded is None:
        return None
    record = guarded.record
    # STARTING and UNKNOWN: a copy may be there; a second start that fails would release the first.
    if record.state is not VmState.DOWN or record.attempt is not None or record.start_open:
        # With the incarnation that runs, so that the server counts back to it.
        return reason("order.refused.running", current=record.incarnation)
    again = incarnation == record.incarnation and not record.released
    if incarnation > record.incarnation or again:
        return None
    return reason("order.refused.incarnation", incarnation=incarnation, current=record.incarnation)


def start_accepted(host: HostState, event: StartAccepted) -> None:
    """The server's word ends all that was counted and held against the VM."""
    refusal = _refusal_by_record(host, event.vm.id, event.incarnation)
    assert refusal is None, f"{event.vm.id}: {refusal}"
    up = reason("vm.up.as_ordered", by=event.by)
    take_in(host, event.vm, event.incarnation, up=up).set(start_open=True)


def start_refused(host: HostState, event: StartRefused) -> None:
    """Recorded as down and not yet released; the plan releases it once libvirt has shown no copy.

    While libvirt is lost nobody knows what a former start left here: then the list releases it.
    """
    old = host.vms.get(event.vm.id)
    if _refusal_by_record(host, event.vm.id, event.incarnation) is not None:
        # A copy is or may be there, or a later incarnation is recorded: that record speaks.
        return
    if host.connected and unlisted_domain(host, event.vm.id) is not None:
        return
    record = VmRecord(
        vm=event.vm,
        incarnation=event.incarnation,
        boot=host.boot,
        state=VmState.DOWN,
        firing_count=old.record.firing_count if old else 0,
        exit=Exit(
            cause=ExitCause.START_FAILED, at_ms=int(host.now), seen=True, detail=event.detail
        ),
        down_ms=int(host.now),
    )
    guarded = old or Guarded(record, saved=None)
    guarded.record = record
    guarded.known = host.connected
    host.vms[event.vm.id] = guarded


def start_ended(host: HostState, event: StartEnded) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None or guarded.record.incarnation != event.incarnation:
        return
    guarded.set(start_open=False)
    match event.result:
        case Result.OK if guarded.record.state is VmState.DOWN:
            # Which copy it was that ended, and whether the one that is told of here runs, the list knows.
            start_unclear(host, guarded)
        case Result.OK:
            start_succeeded(host, guarded)
            host.list_wanted = True
        case Result.FAILED | Result.REFUSED:
            if guarded.record.state is VmState.STARTING:
                start_failed(host, guarded, event.detail or event.result.value)
            else:
                # It ran, yet the start is said to have failed: libvirt knows.
                host.list_wanted = True
        case Result.UNKNOWN:
            start_unclear(host, guarded)


def start_succeeded(host: HostState, guarded: Guarded) -> None:
    record = guarded.record
    if record.state is VmState.DOWN:
        return
    if record.state in (VmState.STARTING, VmState.UNKNOWN):
        guarded.move(Trigger.RUNS)
    forget_end(guarded)
    if not record.outside:
        host.tell(guarded, "vm.started")


def appeared(guarded: Guarded) -> None:
    """A copy, while an ordered start is under way: taken for that one's, as any is that comes before the first end."""
    guarded.move(Trigger.START_ORDERED)
    forget_end(guarded)


def forget_end(guarded: Guarded) -> None:
    """Of a copy before this one, which somebody else made while this start was under way."""
    guarded.set(exit=None, pending=None, blocked=None)


def start_unclear(host: HostState, guarded: Guarded) -> None:
    """Neither success nor failure, also where somebody else's copy was seen to end meanwhile: the list decides."""
    guarded.set(start_open=False)
    guarded.move(Trigger.UNCLEAR)
    host.list_wanted = True


def start_failed(host: HostState, guarded: Guarded, detail: str) -> None:
    """Down again; the plan releases it, for this host won't try again by itself. Where a copy that somebody else made was
    seen to end meanwhile, that says more of why it is down."""
    guarded.move(Trigger.START_FAILED)
    if guarded.record.exit is None:
        guarded.set(
            exit=Exit(cause=ExitCause.START_FAILED, at_ms=int(host.now), seen=True, detail=detail),
            pending=None,
            down_ms=int(host.now),
            stop=None,
        )
        host.tell(guarded, "vm.start_failed", detail=detail)


def reboot_accepted(host: HostState, event: RebootAccepted) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is not None:
        guarded.set(reboot=RebootMark(by=event.by, ends_at_ms=int(host.now) + REBOOT_WAIT_MS))


def pause_accepted(host: HostState, event: PauseAccepted) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is None:
        return
    if paused_on_io(guarded.record):
        paused_by_somebody_else(host, guarded, reason("vm.paused.as_ordered", by=event.by))
    else:
        guarded.set(pause_by=event.by)


def resume_accepted(host: HostState, event: ResumeAccepted) -> None:
    """Also during a watchdog's dump: then it is not paused after it."""
    guarded = host.vms.get(event.vm_id)
    if guarded is not None:
        guarded.set(dump_pending=False, pause_by=None)
        guarded.pause_sent_ms = None
        counted_anew(guarded)


def unlisted_domain(host: HostState, vm_id: VmId) -> DomainReport | None:
    """An active domain of the last list."""
    report = host.listed.get(vm_id)
    return report if report is not None and report.state in ACTIVE else None


def migration_marked(host: HostState, event: MigrationMarked) -> None:
    guarded = host.vms.get(event.vm_id)
    if guarded is not None:
        guarded.set(migrating=event.migrating)


def adopted(host: HostState, event: Adopted) -> None:
    state = ACTIVE.get(event.domain.state, VmState.DOWN)
    guarded = Guarded(
        VmRecord(
            vm=event.vm,
            incarnation=event.incarnation,
            boot=host.boot,
            state=state,
            wanted_up=state is not VmState.DOWN,
            last_alive_ms=int(host.now),
            pid=event.domain.pid,
            pause=reason("vm.paused.outside") if state is VmState.PAUSED else None,
            up=reason("vm.adopted.running") if state is not VmState.DOWN else None,
        ),
        saved=None,
    )
    if guarded.up and event.domain.reason == "ioerror":
        why = reason("vm.paused.io_error")
        guarded.set(pause=why)
        io_pause_began(host, guarded)
        tell_paused(host, guarded, why)
    guarded.known = True
    # It may have ended while it was patched: ``event.domain`` is from before that, and so may be a
    # list that is under way.
    guarded.moved = host.list_wanted = True
    host.vms[event.vm.id] = guarded


def forgotten(host: HostState, event: Forgotten) -> None:
    if host.vms.pop(event.vm_id, None) is not None:
        host.dropped.append(event.vm_id)


# Settings


def configured(host: HostState, event: Configured) -> None:
    host.policy = event.policy
    host.hold = event.hold
    held = {each.vm.id: each for each in event.vms}
    for guarded in host.all():
        wish = held.get(guarded.record.vm.id)
        if wish is not None:
            _configure(host, guarded, wish)
        elif guarded.record.released and guarded.record.boot != host.boot:
            # The server no longer counts on this host. A record of this boot stays: it makes an
            # order of that incarnation, sent again, be refused.
            forgotten(host, Forgotten(vm_id=guarded.record.vm.id))


def _configure(host: HostState, guarded: Guarded, wish: HeldVm) -> None:
    record = guarded.record
    if wish.incarnation < record.incarnation:
        # Written before the start that this host has accepted since.
        return
    guarded.set(vm=wish.vm)
    if not wish.wanted_up:
        guarded.set(wanted_up=False)
    elif record.stop is None:
        # Settings read from disk may be older than a stop that is under way.
        guarded.set(wanted_up=True)
    holds = guarded.up or record.pending is not None
    if wish.incarnation == record.incarnation:
        # A start that this host refused, because the VM runs, was counted and is counted back.
        guarded.set(superseded_by=None)
    if wish.incarnation > record.incarnation and holds:
        _supersede(host, guarded, wish)


def _supersede(host: HostState, guarded: Guarded, wish: HeldVm) -> None:
    """A newer copy exists elsewhere. Destroying this one needs the server's proof (G4)."""
    if guarded.record.superseded_by == wish.incarnation:
        return
    guarded.set(superseded_by=wish.incarnation)
    if guarded.up:
        host.tell(
            guarded,
            "vm.superseded",
            incarnation=guarded.record.incarnation,
            current=wish.incarnation,
        )
