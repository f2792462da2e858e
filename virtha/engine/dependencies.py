"""Start order: which VMs wait for which, and whether what they wait for has come.

A dependency holds over hosts: it asks for a state of the other VM, wherever that runs. Cycles are refused when they
are configured (``check_dependencies``); should one be met all the same, its VMs are blocked with that reason and the
policy's ``dependency_wait_ms`` lets them go.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from typing import NewType

from virtha.model.errors import InvalidInput
from virtha.model.ids import VmId
from virtha.model.value import Value


class StartCondition(StrEnum):
    """What of the other VM is awaited. None includes another: a guest without an agent can be healthy."""

    STARTED = "started"
    GUEST_AGENT = "guest_agent"
    HEALTHY = "healthy"


class Dependency(Value, frozen=True, kw_only=True):
    vm_id: VmId
    name: str
    """Of that VM, for people."""
    condition: StartCondition = StartCondition.STARTED


Progress = Mapping[VmId, Collection[StartCondition]]
"""Of each VM that runs or is being started: the conditions it has reached, none at first. A VM that is
absent doesn't run and nobody is starting it."""

Rank = NewType("Rank", tuple[int, int])
"""Lower goes first: what the start is for, then the priority, higher first."""


def check_dependencies(
    graph: Mapping[VmId, Collection[VmId]], names: Mapping[VmId, str] | None = None
) -> None:
    """Refuse a start order that can never begin. ``graph``: for each VM those that it waits for.

    Raises InvalidInput that shows the cycle from its first VM (by name) back to it.
    """
    called = names or {}
    state: dict[VmId, bool] = {}
    """False: on the path. True: no cycle can be reached from it."""
    for root in sorted(graph):
        if root in state:
            continue
        # A stack of its own: a chain may be longer than Python's.
        path = [root]
        ahead = [iter(sorted(graph[root]))]
        state[root] = False
        while path:
            following = next(ahead[-1], None)
            if following is None:
                state[path.pop()] = True
                ahead.pop()
            elif following not in state:
                state[following] = False
                path.append(following)
                ahead.append(iter(sorted(graph.get(following, ()))))
            elif not state[following]:
                raise _cycle(path[path.index(following) :], called)


def _cycle(path: Sequence[VmId], names: Mapping[VmId, str]) -> InvalidInput:
    shown = [names.get(vm_id, vm_id) for vm_id in path]
    at = shown.index(min(shown))
    shown = shown[at:] + shown[: at + 1]
    return InvalidInput(
        f"these VMs wait for each other: {' -> '.join(shown)}",
        field="depends_on",
        fix="remove one of these dependencies",
    )


def start_order(
    ranks: Mapping[VmId, Rank], depends_on: Mapping[VmId, Sequence[Dependency]]
) -> tuple[dict[VmId, Rank], dict[VmId, int]]:
    """The rank and the depth by which VMs are to be placed.

    A VM's dependencies inherit its rank if theirs is worse: an important VM isn't helped by being first in a
    queue while what it waits for stands at the end. The depth is the longest way down to a VM that waits for none;
    VMs on a cycle, or behind one, come after all others. Only dependencies inside ``ranks`` count.
    """
    inside = {
        vm_id: [one.vm_id for one in needed if one.vm_id in ranks]
        for vm_id, needed in depends_on.items()
        if needed
    }
    order, depth = _from_the_ground(ranks, inside)
    inherited = dict(ranks)
    for vm_id in reversed(order):
        for needed in inside.get(vm_id, ()):
            inherited[needed] = min(inherited[needed], inherited[vm_id])
    return inherited, depth


def _from_the_ground(
    ranks: Mapping[VmId, Rank], inside: Mapping[VmId, Sequence[VmId]]
) -> tuple[list[VmId], dict[VmId, int]]:
    """VMs after all that they wait for (Kahn's algorithm), and their depths."""
    missing = {vm_id: len(set(needed)) for vm_id, needed in inside.items()}
    waiting_for: dict[VmId, list[VmId]] = {}
    for vm_id, needed in inside.items():
        for other in sorted(set(needed)):
            waiting_for.setdefault(other, []).append(vm_id)
    depth = dict.fromkeys(ranks, 0)
    order: list[VmId] = []
    free = deque(vm_id for vm_id in ranks if not missing.get(vm_id))
    while free:
        vm_id = free.popleft()
        order.append(vm_id)
        for behind in waiting_for.get(vm_id, ()):
            depth[behind] = max(depth[behind], depth[vm_id] + 1)
            missing[behind] -= 1
            if not missing[behind]:
                free.append(behind)
    if len(order) < len(ranks):
        done = set(order)
        for vm_id in ranks:
            if vm_id not in done:
                depth[vm_id] = len(ranks)
    return order, depth
