"""Virtual time: a heap of (moment, sequence, action). Same calls, same order, always."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]
ACTIONS_MAX = 5_000_000
"""A run that needs more turns in circles."""


class Kernel:
    def __init__(self, *, began_ms: int = 0) -> None:
        self.now = began_ms
        self._sequence = 0
        self._heap: list[tuple[int, int, Action]] = []
        self.done = 0

    def after(self, delay_ms: int, action: Action) -> None:
        assert delay_ms >= 0
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_ms, self._sequence, action))

    def advance(self, duration_ms: int) -> None:
        end = self.now + duration_ms
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            self.done += 1
            assert self.done < ACTIONS_MAX, "the world turns in circles"
        self.now = end
