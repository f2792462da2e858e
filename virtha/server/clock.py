"""The server's real clocks."""

import time
from pathlib import Path

from virtha.model.ids import BootId
from virtha.model.time import Millis, UtcMillis


class SystemClock:
    """Implements ``virtha.ports.clock.Clock``."""

    def monotonic_ms(self) -> Millis:
        return Millis(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(time.time_ns() // 1_000_000)


def boot_of_this_machine() -> BootId | None:
    """As an agent on the same machine tells it; None: it can't be read."""
    try:
        return BootId(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    except OSError:
        return None
