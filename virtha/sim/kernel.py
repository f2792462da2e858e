"""Virtual time: a heap of moments, each with its actions in the order in which they were asked for. Same calls,
same order, always."""

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

Action = Callable[[], None]
ACTIONS_MAX = 5_000_000
"""A run that needs more turns in circles."""


class Kernel:
    def __init__(self, *, began_ms: int = 0) -> None:
        self.now = began_ms
        self._moments: list[int] = []
        self._actions: dict[int, deque[tuple[Action, Actor | None]]] = {}
        """By moment. Hosts beat in step, so most moments have several."""
        self.done = 0
        self.frozen_actors = 0
        """While nobody is frozen, which is nearly always, nobody has to be asked whether he is."""

    def after(self, delay_ms: int, action: Action, actor: "Actor | None" = None) -> None:
        """``actor``: who is to do it; the world itself never freezes."""
        assert delay_ms >= 0
        at = self.now + delay_ms
        if at in self._actions:
            self._actions[at].append((action, actor))
        else:
            self._actions[at] = deque(((action, actor),))
            heapq.heappush(self._moments, at)

    def deliver(self, action: Callable[..., None], *arguments: Any) -> None:
        """As an ``Actor`` does."""
        action(*arguments)

    def advance(self, duration_ms: int) -> None:
        end = self.now + duration_ms
        while self._moments and self._moments[0] <= end:
            self.now = self._moments[0]
            self._do_all(self._actions[self.now])
            del self._actions[heapq.heappop(self._moments)]
        self.now = end

    def _do_all(self, actions: deque[tuple[Action, "Actor | None"]]) -> None:
        """Those as well that they ask for without delay."""
        while actions:
            action, actor = actions.popleft()
            self.done += 1
            if actor is None or not self.frozen_actors:
                action()
            else:
                actor.do(action)
            assert self.done < ACTIONS_MAX, "the world turns in circles"


class Actor:
    """A process or a whole machine, as time passes for it: frozen, it neither acts nor hears, and goes on where
    it was when it thaws. Its actions are those that were given to its ``after`` and ``deliver``."""

    def __init__(self, parent: "Kernel | Actor") -> None:
        self._parent = parent
        self._kernel: Kernel = parent if isinstance(parent, Kernel) else parent._kernel
        self._held: list[Action] = []
        self._frozen = False
        self.after: Callable[[int, Action], None] = partial(self._kernel.after, actor=self)
        """(delay_ms, action): as the kernel's, for this actor."""

    @property
    def now(self) -> int:
        return self._kernel.now

    @property
    def frozen(self) -> bool:
        return self._frozen

    def deliver(self, action: Callable[..., None], *arguments: Any) -> None:
        """Now, or as soon as it thaws."""
        if not self._kernel.frozen_actors:
            action(*arguments)
        elif self._frozen:
            self._held.append(partial(action, *arguments))
        else:
            self._parent.deliver(action, *arguments)

    def do(self, action: Action) -> None:
        """What its time came for: the machine that it runs on is asked first."""
        mine = partial(self.deliver, action)
        if isinstance(self._parent, Actor):
            self._parent.do(mine)
        else:
            mine()

    def freeze(self) -> None:
        self._set_frozen(frozen=True)

    def thaw(self) -> None:
        self._set_frozen(frozen=False)
        held, self._held = self._held, []
        for action in held:
            self.deliver(action)

    def die(self) -> None:
        """What it had still to do and to hear is gone."""
        self._set_frozen(frozen=False)
        self._held.clear()

    def _set_frozen(self, *, frozen: bool) -> None:
        self._kernel.frozen_actors += frozen - self._frozen
        self._frozen = frozen
