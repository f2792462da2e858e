"""A host's clocks: one that counts from its boot, a little fast or slow, and one on the wall that may jump."""

from virtha.model.time import Millis
from virtha.sim.kernel import Actor, Kernel
from virtha.sim.world_time import WALL_EPOCH_MS

MILLION = 1_000_000


class HostClock:
    """``drift_ppm``: how much faster than the world's time; it may change, and the clock goes on from where it is."""

    def __init__(self, kernel: Kernel | Actor) -> None:
        self._kernel = kernel if isinstance(kernel, Kernel) else kernel.root
        self._from_ms = kernel.now
        self._shown_ms = 0
        self.drift_ppm = 0
        self.wall_offset_ms = 0

    def boot(self) -> None:
        """It counts from zero again."""
        self._from_ms, self._shown_ms = self._kernel.now, 0

    def read(self) -> Millis:
        if not self.drift_ppm:
            return self._shown_ms + self._kernel.now - self._from_ms  # type: ignore[return-value]  # sums of times; asked too often to be wrapped
        passed = self._kernel.now - self._from_ms
        return Millis(self._shown_ms + passed * (MILLION + self.drift_ppm) // MILLION)

    def drift(self, ppm: int) -> None:
        shown = self.read()
        self._from_ms, self._shown_ms, self.drift_ppm = self._kernel.now, shown, ppm

    def until(self, shown_ms: int) -> int:
        """How long the world waits until it shows that: 0 where it does already."""
        if not self.drift_ppm:
            left = shown_ms - self._shown_ms - self._kernel.now + self._from_ms
            return left if left > 0 else 0
        left = shown_ms - self.read()
        return -(-left * MILLION // (MILLION + self.drift_ppm)) if left > 0 else 0

    def wall_ms(self) -> int:
        """Shown to people; nothing may be decided by it."""
        return self._kernel.now + WALL_EPOCH_MS + self.wall_offset_ms
