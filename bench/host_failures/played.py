"""What was measured of one round. Seconds count from the fault, on this machine's monotonic clock, and are seen from outside."""

from typing import Any

import msgspec

from virtha.model.value import Value


class Round(Value, frozen=True, kw_only=True):
    started_s: tuple[float, ...] = ()
    """libvirt's `started` of each VM on the host where it came back, the first first."""
    resumed_s: tuple[float, ...] = ()
    """Its processors run: QEMU is created paused, and goes on when its grant was looked at again (G2)."""
    measured: dict[str, float] = {}
    """What else the case measures, by name, in seconds; of events and orders the number."""
    double_runs: int | None = 0
    """VMs of which two copies were, or two hosts wrote to the disk; None: nobody saw it."""
    started_again: int = 0
    """Starts beyond the first of each VM: one that took too long was taken back."""
    suspected: int = 0
    """Times that a host to which nothing was done was suspected."""
    orders: tuple[str, ...] = ()
    """What BMCs were told: ``h1 off!`` found it on."""
    phases: dict[str, int] = {}
    """Of the incident, as the server itself measured them, in milliseconds (X4)."""
    failed: str = ""
    """Why it did not come to its end."""


def encoded(played: Round) -> Any:
    return msgspec.to_builtins(played)


def decoded(document: Any) -> Round:
    return msgspec.convert(document, Round)
