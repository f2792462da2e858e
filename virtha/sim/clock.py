"""A host's clocks: one that counts from its boot, a little fast or slow, and one on the wall that may jump."""

from virtha.model.time import Millis
from virtha.sim.kernel import Actor, Kernel
from virtha.sim.world_time import WALL_EPOCH_MS

MILLION = 1_000_000


class HostClock:
    """``drift_ppm``: how much faster than the world's time; it may change, and the clock goes on from where it is."""

    def __init__(self, kernel: Kernel | Actor) -> None:
        self._kernel = kernel
        self._from_ms = kernel.now
        self._shown_ms = 0
        self.drift_ppm = 0
        self.wall_offset_ms = 0

    def boot(self) -> None:
        """It counts from zero again."""
        self._from_ms, self._shown_ms = self._kernel.now, 0

    def read(self) -> Millis:
        passed = self._kernel.now - self._from_ms
        if self.drift_ppm:
            passed = passed * (MILLION + self.drift_ppm) // MILLION
        return Millis(self._shown_ms + passed)

    def drift(self, ppm: int) -> None:
        shown = self.read()
        self._from_ms, self._shown_ms, self.drift_ppm = self._kernel.now, shown, ppm

    def until(self, shown_ms: int) -> int:
        """How long the world waits until it shows that: 0 where it does already."""
        left = shown_ms - self.read()
        if left <= 0:
            return 0
        return -(-left * MILLION // (MILLION + self.drift_ppm)) if self.drift_ppm else left

    def wall_ms(self) -> int:
        """Shown to people; nothing may be decided by it."""
        return self._kernel.now + WALL_EPOCH_MS + self.wall_offset_ms
