"""Virtual time: a heap of moments, each with its actions in the order in which they were asked for. Same calls,
same order, always."""

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

Action = Callable[[], None]
_Asked: TypeAlias = "tuple[Action, Actor | None]"
ACTIONS_MAX = 5_000_000
"""A run that needs more turns in circles."""


class Kernel:
    def __init__(self, *, began_ms: int = 0) -> None:
        self.now = began_ms
        self._moments: list[int] = []
        self._actions: dict[int, list[_Asked]] = {}
        """By moment, and those as well that are asked for without delay while it is gone through: a list may grow then.
        Hosts beat in step, so many moments have several."""
        self._under_way: Iterator[_Asked] | None = None
        """What is left of the present moment's: after one that failed it goes on with the next."""
        self.done = 0
        self.frozen_actors = 0
        """While nobody is frozen, which is nearly always, nobody has to be asked whether he is."""
        self.after: Callable[[int, Action], None] = partial(self.after_by, None)
        """(delay_ms, action): the world itself does it, which never freezes."""

    def after_by(self, actor: "Actor | None", delay_ms: int, action: Action) -> None:
        """``actor``: who is to do it."""
        assert delay_ms >= 0
        at = self.now + delay_ms
        if at in self._actions:
            self._actions[at].append((action, actor))
        else:
            self._actions[at] = [(action, actor)]
            heapq.heappush(self._moments, at)

    def is_last(self, at: int, action: Action) -> bool:
        """Of all that was asked for at that moment, which is still to come."""
        actions = self._actions.get(at)
        return actions is not None and actions[-1][0] is action

    def deliver(self, action: Callable[..., None], *arguments: Any) -> None:
        """As an ``Actor`` does."""
        action(*arguments)

    def advance(self, duration_ms: int) -> None:
        end, moments = self.now + duration_ms, self._moments
        while moments and moments[0] <= end:
            if self._under_way is None:
                self.now = moments[0]
                self._under_way = iter(self._actions[self.now])
            for action, actor in self._under_way:
                self.done += 1
                if actor is None or not self.frozen_actors:
                    action()
                else:
                    actor.do(action)
                assert self.done < ACTIONS_MAX, "the world turns in circles"
            self._under_way = None
            del self._actions[heapq.heappop(moments)]
        self.now = end


class Actor:
    """A process or a whole machine, as time passes for it: frozen, it neither acts nor hears, and goes on where
    it was when it thaws. Its actions are those that were given to its ``after`` and ``deliver``."""

    def __init__(self, parent: "Kernel | Actor") -> None:
        self._parent = parent
        self.root: Kernel = parent if isinstance(parent, Kernel) else parent.root
        """Whose ``frozen_actors`` says whether anybody is: while nobody is, what came may be done at once, without
        ``deliver``."""
        self._held: list[Action] = []
        self._frozen = False
        self.after: Callable[[int, Action], None] = partial(self.root.after_by, self)
        """(delay_ms, action): as the kernel's, for this actor."""

    @property
    def now(self) -> int:
        return self.root.now

    @property
    def frozen(self) -> bool:
        return self._frozen

    def deliver(self, action: Callable[..., None], *arguments: Any) -> None:
        """Now, or as soon as it thaws."""
        if not self.root.frozen_actors:
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
        self.root.frozen_actors += frozen - self._frozen
        self._frozen = frozen
