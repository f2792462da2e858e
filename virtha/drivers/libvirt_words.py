"""libvirt's numbers as our words. A number that a newer libvirt made up is ``unknown``, never an error."""

import libvirt

from virtha.model.domain import DomainEvent, DomainEventKind, DomainState
from virtha.model.ids import VmId

STATES: dict[int, DomainState] = {
    libvirt.VIR_DOMAIN_NOSTATE: DomainState.NOSTATE,
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    # "Blocked on resource" is Xen's; a domain that is blocked has its processors on.
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.SHUTOFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PMSUSPENDED,
}


def _named(prefix: str) -> dict[int, str]:
    """All constants of an enumeration as words: VIR_DOMAIN_PAUSED_API_ERROR -> api_error."""
    return {
        value: name.removeprefix(prefix).lower()
        for name, value in vars(libvirt).items()
        if name.startswith(prefix) and isinstance(value, int) and not name.endswith("_LAST")
    }


REASONS: dict[int, dict[int, str]] = {
    libvirt.VIR_DOMAIN_RUNNING: _named("VIR_DOMAIN_RUNNING_"),
    libvirt.VIR_DOMAIN_PAUSED: _named("VIR_DOMAIN_PAUSED_"),
    libvirt.VIR_DOMAIN_SHUTDOWN: {
        libvirt.VIR_DOMAIN_SHUTDOWN_UNKNOWN: "unknown",
        libvirt.VIR_DOMAIN_SHUTDOWN_USER: "user",
    },
    libvirt.VIR_DOMAIN_SHUTOFF: _named("VIR_DOMAIN_SHUTOFF_"),
    libvirt.VIR_DOMAIN_CRASHED: _named("VIR_DOMAIN_CRASHED_"),
}

_LIFECYCLE_KINDS: dict[int, tuple[DomainEventKind, dict[int, str]]] = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: (
        DomainEventKind.STARTED,
        _named("VIR_DOMAIN_EVENT_STARTED_"),
    ),
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: (
        DomainEventKind.SUSPENDED,
        _named("VIR_DOMAIN_EVENT_SUSPENDED_"),
    ),
    libvirt.VIR_DOMAIN_EVENT_RESUMED: (
        DomainEventKind.RESUMED,
        _named("VIR_DOMAIN_EVENT_RESUMED_"),
    ),
    libvirt.VIR_DOMAIN_EVENT_STOPPED: (
        DomainEventKind.STOPPED,
        _named("VIR_DOMAIN_EVENT_STOPPED_"),
    ),
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: (
        DomainEventKind.SHUTDOWN,
        _named("VIR_DOMAIN_EVENT_SHUTDOWN_"),
    ),
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: (DomainEventKind.SUSPENDED, {0: "pmsuspended"}),
    libvirt.VIR_DOMAIN_EVENT_CRASHED: (
        DomainEventKind.PANICKED,
        {
            libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED: "panicked",
            # pvpanic's second bit: the guest runs its own crash kernel.
            libvirt.VIR_DOMAIN_EVENT_CRASHED_CRASHLOADED: "crashloaded",
        },
    ),
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: (DomainEventKind.UNDEFINED, {}),
}

WATCHDOG_ACTIONS: dict[int, str] = {
    value: "inject-nmi" if word == "injectnmi" else word
    for value, word in _named("VIR_DOMAIN_EVENT_WATCHDOG_").items()
}

_AGENT_STATES = {
    libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED: "connected",
    libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_DISCONNECTED: "disconnected",
}


def state_words(state: int, reason: int) -> tuple[DomainState, str]:
    words = REASONS.get(state, {})
    return STATES.get(state, DomainState.NOSTATE), words.get(reason, "unknown")


def lifecycle_event(vm_id: VmId, event: int, detail: int) -> DomainEvent | None:
    """None: a definition changed, or an event that this version doesn't know."""
    known = _LIFECYCLE_KINDS.get(event)
    if known is None:
        return None
    kind, words = known
    if not words:
        return DomainEvent(vm_id=vm_id, kind=kind)
    return DomainEvent(vm_id=vm_id, kind=kind, detail=words.get(detail, "unknown"))


def watchdog_event(vm_id: VmId, action: int) -> DomainEvent:
    """libvirt does ``dump`` itself (pause, dump, run on) and reports it as ``pause``."""
    return DomainEvent(
        vm_id=vm_id,
        kind=DomainEventKind.WATCHDOG,
        detail=WATCHDOG_ACTIONS.get(action, "unknown"),
    )


def agent_event(vm_id: VmId, state: int) -> DomainEvent:
    return DomainEvent(
        vm_id=vm_id, kind=DomainEventKind.AGENT, detail=_AGENT_STATES.get(state, "unknown")
    )


def io_error_event(vm_id: VmId, alias: str, why: str) -> DomainEvent:
    """``why``: libvirt's word, ``enospc`` or nothing."""
    full = " no-room" if why == "enospc" else ""
    return DomainEvent(vm_id=vm_id, kind=DomainEventKind.IO_ERROR, detail=disk_target(alias) + full)


def disk_target(alias: str) -> str:
    """libvirt's alias as the disk's target where that can be told: virtio-disk1 -> vdb.

    Asking libvirt would block the thread that all events come through.
    """
    number = alias.removeprefix("virtio-disk")
    if number == alias or not number.isdigit() or int(number) >= 26:
        return alias
    return "vd" + chr(ord("a") + int(number))
