"""What is known of a pause by an I/O error: since when, and whether anybody else wants the VM to stand still (S6). Pure."""

from msgspec.structs import replace

from virtha.model.vm import IO_PAUSES, Reason, VmState
from virtha.sentinel.events import VmRecord
from virtha.sentinel.io_error_events import IoPause
from virtha.sentinel.state import Guarded, HostState, reason

NO_ROOM = "no-room"
"""Second word of libvirt's I/O error event where the storage is full."""


def paused_on_io(record: VmRecord) -> bool:
    """Nobody but QEMU wants it to stand still."""
    pause = record.pause
    return record.state is VmState.PAUSED and pause is not None and pause.code in IO_PAUSES


# What libvirt tells


def io_error_told(guarded: Guarded, detail: str) -> None:
    """Comes right before the pause that it explains, or alone where the guest is told of the error instead."""
    disk, _, kind = detail.partition(" ")
    guarded.full_disk = disk if kind == NO_ROOM else None


def pause_of_io_error(guarded: Guarded) -> Reason:
    disk, guarded.full_disk = guarded.full_disk, None
    return reason("vm.paused.io_error") if disk is None else reason("vm.paused.no_room", disk=disk)


def tell_paused(host: HostState, guarded: Guarded, why: Reason) -> None:
    """A pause that nobody ordered calls somebody: QEMU's own may last as long as its storage is full."""
    code = "vm.io_error.paused" if why.code in IO_PAUSES else "vm.paused"
    host.tell(guarded, code, cause=why.code)


def io_pause_began(host: HostState, guarded: Guarded) -> None:
    """Also of one that is paused already, and was resumed meanwhile for a moment that nobody saw."""
    guarded.set(io_pause=IoPause(since_ms=int(host.now), quiet_ms=int(host.now)))
    forget_probe(guarded)


def io_pause_over(host: HostState, guarded: Guarded) -> None:
    """It runs."""
    pause = guarded.record.io_pause
    if pause is None:
        return
    host.tell(
        guarded,
        "vm.io_error.resumed",
        paused_ms=int(host.now) - pause.since_ms,
        attempt=len(guarded.record.resumes_ms),
    )
    guarded.set(io_pause=None, io_kill=None)
    forget_probe(guarded)


def paused_by_somebody_else(host: HostState, guarded: Guarded, why: Reason) -> None:
    """libvirt tells nothing of a pause of what is paused already. From now on it waits for a person."""
    guarded.set(pause=why, pause_by=None)
    forget_probe(guarded)
    tell_paused(host, guarded, why)


def counted_anew(guarded: Guarded) -> None:
    """A person lets it go on."""
    pause = guarded.record.io_pause
    guarded.set(resumes_ms=())
    if pause is not None:
        guarded.set(io_pause=replace(pause, given_up=None))


def forget_probe(guarded: Guarded) -> None:
    """What was asked before says nothing of now: its answer is passed over, as nothing is awaited or a later number is."""
    guarded.probe_sent_ms = guarded.probed_ms = guarded.storage_objection = None
