"""What a host sees of its libvirt domains: reports and events, in our words, not in libvirt's numbers."""

from enum import StrEnum

from virtha.model.ids import VmId
from virtha.model.value import Value


class DomainState(StrEnum):
    NOSTATE = "nostate"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTTING_DOWN = "shutting_down"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"


class DomainReport(Value, frozen=True, kw_only=True):
    """One domain as libvirt lists it. ``reason`` is libvirt's state reason as a word (`failed`,
    `shutdown`, `destroyed`, `crashed`, `watchdog`, `ioerror`, `user`, `booted`, `unknown` …)."""

    vm_id: VmId
    """The domain's UUID; for a domain that virtha does not manage it is just that."""
    name: str
    state: DomainState
    reason: str = "unknown"
    persistent: bool = True
    autostart: bool = False
    managed_save: bool = False
    pid: int | None = None
    """QEMU's process id, while it runs and where it is known."""


class DomainEventKind(StrEnum):
    """Details per kind (``DomainEvent.detail``):

    - ``STARTED``: booted, migrated, restored, from_snapshot, wakeup
    - ``SUSPENDED``: paused, migrated, ioerror, watchdog, restored, from_snapshot, api_error, postcopy
    - ``RESUMED``: unpaused, migrated, from_snapshot, postcopy
    - ``SHUTDOWN``: guest (it shut down by itself), host (QEMU got a signal), finished
    - ``STOPPED``: shutdown, destroyed, crashed, migrated, saved, failed, from_snapshot
    - ``PANICKED``: panicked
    - ``REBOOTED``: empty (a reset, ordered or not)
    - ``WATCHDOG``: none, pause, reset, poweroff, shutdown, debug, inject-nmi
    - ``AGENT``: connected, disconnected (the guest opened or closed the agent's channel)
    - ``IO_ERROR``: the disk's target; behind it `` no-room`` where its storage is full
    - ``UNDEFINED``: empty
    """

    STARTED = "started"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    SHUTDOWN = "shutdown"
    STOPPED = "stopped"
    PANICKED = "panicked"
    REBOOTED = "rebooted"
    WATCHDOG = "watchdog"
    AGENT = "agent"
    IO_ERROR = "io_error"
    UNDEFINED = "undefined"


class DomainEvent(Value, frozen=True, kw_only=True):
    vm_id: VmId
    kind: DomainEventKind
    detail: str = ""
