"""The window of facts that are under way between a host and its server."""

from collections import deque

from virtha.wire.messages import FACTS_UNACKNOWLEDGED_MAX, FRAME_BYTES_MAX

FACTS_UNACKNOWLEDGED_BYTES_MAX = 4 * FRAME_BYTES_MAX
"""Beside the count: 4,096 facts of 1 MiB each would be 4 GiB of the server's memory, per host."""


class FactWindow:
    """Facts under way, counted alike on both sides, in number and in bytes."""

    __slots__ = ("_bytes", "_count", "_frames", "acknowledged", "last")

    def __init__(self, acknowledged: int) -> None:
        self.acknowledged = acknowledged
        self.last = acknowledged
        self._bytes = 0
        self._count = 0
        self._frames: deque[tuple[int, int, int]] = deque()

    def add(self, last: int, *, count: int, size: int) -> None:
        assert last > self.last
        self.last = last
        self._count += count
        self._bytes += size
        self._frames.append((last, count, size))

    def acknowledge(self, sequence: int) -> None:
        """Whole frames leave the window; a part of one stays counted until its end is acknowledged."""
        assert self.acknowledged <= sequence <= self.last
        self.acknowledged = sequence
        while self._frames and self._frames[0][0] <= sequence:
            _, count, size = self._frames.popleft()
            self._count -= count
            self._bytes -= size

    @property
    def free(self) -> int:
        """How many more facts may be sent; a frame may begin while bytes are below their bound."""
        if self._bytes >= FACTS_UNACKNOWLEDGED_BYTES_MAX:
            return 0
        return FACTS_UNACKNOWLEDGED_MAX - self._count
