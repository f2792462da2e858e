"""Where time comes from."""

from typing import Protocol

from virtha.model.time import Millis, UtcMillis


class Clock(Protocol):
    def monotonic_ms(self) -> Millis:
        """CLOCK_BOOTTIME: it counts through suspend, so that a grant can't outlive one."""
        ...

    def wall_ms(self) -> UtcMillis: ...
