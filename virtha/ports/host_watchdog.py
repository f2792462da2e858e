"""The host's own watchdog, and its reset. One process uses them: the guardian."""

from typing import Protocol

from virtha.model.value import Value


class ArmedWatchdog(Value, frozen=True, kw_only=True):
    timeout_ms: int
    """As the driver has it, rounded as it rounds."""
    no_way_out: bool
    """Nothing short of a reset stops it: neither closing it nor the end of whoever opened it."""


class HostWatchdog(Protocol):
    """Every method may wait for the device: they are called in a thread of their own, one at a time. Raises OSError."""

    def runs_ms(self) -> int:
        """The timeout with which it runs already; 0: it does not, or nobody can tell. Feeds nothing."""
        ...

    def arm(self, timeout_ms: int) -> ArmedWatchdog:
        """From here on the host is reset that long after the last feeding. Runs already: taken over, and fed."""
        ...

    def feed(self) -> None: ...

    def disarm(self) -> None: ...


class HostReset(Protocol):
    def reset(self) -> None:
        """At once, past everything that could wait: no file system is synced. Returns only if it could not; raises
        OSError."""
        ...
