"""The states of a VM as the sentinel sees them, and what moves it from one to the next.

libvirt's events and lists, our orders and their results are all brought to a ``Trigger``. A trigger
that has no row for the present state tells that something was missed: the caller asks libvirt for a
list instead of guessing.
"""

from enum import StrEnum

from virtha.model.domain import DomainState
from virtha.model.vm import VmState


class Trigger(StrEnum):
    START_ORDERED = "start ordered"
    """By the server, or by the sentinel's own restart."""
    STARTED_OUTSIDE = "started outside"
    RUNS = "processors run"
    PAUSES = "processors stop"
    LEFT_PAUSED = "start left it paused"
    STOP_ORDERED = "stop ordered"
    STOP_IGNORED = "stop ignored"
    SHUTS_DOWN = "shuts down"
    PANICS = "panics"
    ENDS = "QEMU ends"
    START_FAILED = "start failed"
    UNCLEAR = "result unknown"


_DOWN, _STARTING, _RUNNING = VmState.DOWN, VmState.STARTING, VmState.RUNNING
_STOPPING, _PAUSED, _CRASHED, _UNKNOWN = (
    VmState.STOPPING,
    VmState.PAUSED,
    VmState.CRASHED,
    VmState.UNKNOWN,
)

TRANSITIONS: dict[Trigger, dict[VmState, VmState]] = {
    # PAUSED: what an attempt of unknown outcome left behind is let run by the next one.
    Trigger.START_ORDERED: {_DOWN: _STARTING, _PAUSED: _STARTING, _UNKNOWN: _STARTING},
    Trigger.STARTED_OUTSIDE: {_DOWN: _STARTING},
    Trigger.RUNS: {
        _STARTING: _RUNNING,
        _PAUSED: _RUNNING,
        _CRASHED: _RUNNING,
        _UNKNOWN: _RUNNING,
        _STOPPING: _STOPPING,
        _RUNNING: _RUNNING,
    },
    Trigger.PAUSES: {
        # Created paused (G2): still starting.
        _STARTING: _STARTING,
        _RUNNING: _PAUSED,
        _STOPPING: _PAUSED,
        # Part of a start whose result nobody knows: only a list tells what came of it.
        _UNKNOWN: _UNKNOWN,
        _PAUSED: _PAUSED,
        _CRASHED: _CRASHED,
    },
    Trigger.LEFT_PAUSED: {_STARTING: _PAUSED, _UNKNOWN: _PAUSED},
    Trigger.STOP_ORDERED: {
        _RUNNING: _STOPPING,
        _PAUSED: _STOPPING,
        _CRASHED: _STOPPING,
        _STOPPING: _STOPPING,
    },
    Trigger.STOP_IGNORED: {_STOPPING: _RUNNING},
    Trigger.SHUTS_DOWN: {_RUNNING: _STOPPING, _PAUSED: _STOPPING, _STOPPING: _STOPPING},
    Trigger.PANICS: {_RUNNING: _CRASHED, _STOPPING: _CRASHED, _PAUSED: _CRASHED},
    Trigger.ENDS: {
        _RUNNING: _DOWN,
        _PAUSED: _DOWN,
        _STOPPING: _DOWN,
        _CRASHED: _DOWN,
        _UNKNOWN: _DOWN,
        _STARTING: _DOWN,
    },
    Trigger.START_FAILED: {_STARTING: _DOWN, _UNKNOWN: _DOWN, _DOWN: _DOWN},
    # DOWN: somebody else started it while ours was under way, and it ended since; ours may still make a copy.
    Trigger.UNCLEAR: {_STARTING: _UNKNOWN, _UNKNOWN: _UNKNOWN, _DOWN: _UNKNOWN},
}

UP_STATES = frozenset({_RUNNING, _PAUSED, _STOPPING, _CRASHED})
"""A QEMU exists."""


ACTIVE: dict[DomainState, VmState] = {
    DomainState.RUNNING: _RUNNING,
    DomainState.SHUTTING_DOWN: _STOPPING,
    DomainState.PAUSED: _PAUSED,
    DomainState.PMSUSPENDED: _PAUSED,
    DomainState.CRASHED: _CRASHED,
}
"""libvirt's states with a QEMU; all others have none (or, NOSTATE, don't say)."""


def next_state(state: VmState, trigger: Trigger) -> VmState | None:
    """None: that trigger is not expected in that state."""
    return TRANSITIONS[trigger].get(state)
