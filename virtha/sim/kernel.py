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

    def deliver(self, action: Action) -> None:
        """As an ``Actor`` does; the world itself never freezes."""
        action()

    def advance(self, duration_ms: int) -> None:
        end = self.now + duration_ms
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            self.done += 1
            assert self.done < ACTIONS_MAX, "the world turns in circles"
        self.now = end


class Actor:
    """A process or a whole machine, as time passes for it: frozen, it neither acts nor hears, and goes on where
    it was when it thaws. Its actions are those that were given to its ``after`` and ``deliver``."""

    def __init__(self, parent: "Kernel | Actor") -> None:
        self._parent = parent
        self._held: list[Action] = []
        self.frozen = False

    @property
    def now(self) -> int:
        return self._parent.now

    def after(self, delay_ms: int, action: Action) -> None:
        self._parent.after(delay_ms, lambda: self.deliver(action))

    def deliver(self, action: Action) -> None:
        """Now, or as soon as it thaws."""
        if self.frozen:
            self._held.append(action)
        else:
            self._parent.deliver(action)

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen = False
        held, self._held = self._held, []
        for action in held:
            self.deliver(action)

    def die(self) -> None:
        """What it had still to do and to hear is gone."""
        self.frozen = False
        self._held.clear()
