"""This machine's clocks (port ``Clock``)."""

import time

from virtha.model.time import Millis, UtcMillis


class MachineClock:
    def monotonic_ms(self) -> Millis:
        return Millis(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(time.time_ns() // 1_000_000)
