"""What a plan has promised so far, laid over the cluster's capacity; nothing of that is copied or changed.

Of each class of hosts the overlay keeps only those that the plan touched; the rest are read where ``Capacity`` lists
them. Within a plan hosts only lose memory, start slots and places in the order, never win any: so a list's head, once
passed, needn't be looked at again, and what was the best of a class bounds what is its best now.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from virtha.engine.affinity import AffinityGroupId, Members
from virtha.engine.capacity import Capacity, Entry, Feature, HostClass, Ledger
from virtha.model.ids import HostId

NOBODY: frozenset[HostId] = frozenset()
ANY_FREE = -(1 << 62)
"""Less than any host has free, however much more was promised than is there."""


class Requirement(NamedTuple):
    """What a VM asks of a host besides memory."""

    features: frozenset[Feature]
    vcpus: int

    def met_by(self, group: HostClass) -> bool:
        key = group.key
        return key.unfit is None and self.vcpus <= key.cpus and self.features <= key.features


class ClassView:
    """One class in the overlay: hosts not touched yet, touched ones with a start slot left, and those without."""

    __slots__ = ("_cursor", "_overlay", "base", "full", "ready")

    def __init__(self, base: Sequence[Entry], overlay: "Overlay") -> None:
        self.base = base
        self.ready: list[Entry] = []
        self.full: list[Entry] = []
        self._overlay = overlay
        self._cursor = 0

    def first(
        self, slot: bool, memory_bytes: int = ANY_FREE, skip: Collection[HostId] = NOBODY
    ) -> Entry | None:
        """The host with most free memory that isn't skipped. ``slot``: that can start something now.
        None: none has ``memory_bytes`` free."""
        found = _first(self.ready, memory_bytes, skip)
        if not slot:
            found = _lesser(found, _first(self.full, memory_bytes, skip))
        return _lesser(found, self._first_untouched(slot, memory_bytes, skip))

    def _first_untouched(
        self, slot: bool, memory_bytes: int, skip: Collection[HostId]
    ) -> Entry | None:
        base, touched = self.base, self._overlay.free
        while self._cursor < len(base) and base[self._cursor][2] in touched:
            self._cursor += 1
        for at in range(self._cursor, len(base)):
            entry = base[at]
            if -entry[0] < memory_bytes:
                return None
            if entry[2] in touched:
                continue
            if slot and not self._overlay.has_slot(entry[3]):
                self._overlay.touch(self, entry)
            elif entry[2] not in skip:
                return entry
        return None

    def last(self, slot: bool, memory_bytes: int, skip: Collection[HostId]) -> Entry | None:
        """The fullest host that still has ``memory_bytes`` free."""
        overlay = self._overlay

        def untouched(entry: Entry) -> bool:
            if entry[2] in overlay.free or entry[2] in skip:
                return False
            return not slot or overlay.has_slot(entry[3])

        def not_skipped(entry: Entry) -> bool:
            return entry[2] not in skip

        found = [
            _last(self.base, memory_bytes, untouched),
            _last(self.ready, memory_bytes, not_skipped),
        ]
        if not slot:
            found.append(_last(self.full, memory_bytes, not_skipped))
        return max((one for one in found if one is not None), key=_fullness, default=None)


class Choice(NamedTuple):
    """All classes that meet a requirement, by the size that their hosts are rated at: within one size more free
    memory is a greater free share, whatever the VM's size."""

    views: list[ClassView]
    ready: dict[int, list[tuple[Entry, ClassView]]]
    every: dict[int, list[tuple[Entry, ClassView]]]
    """Heaps by each class's best host, as it was when last looked at."""


class Overlay:
    """``starts_per_host``, ``starts_per_cluster``: how many may be in flight at once."""

    def __init__(
        self, capacity: Capacity, *, starts_per_host: int, starts_per_cluster: int
    ) -> None:
        capacity.settle()
        self.capacity = capacity
        self.starts_per_host = starts_per_host
        self.free: dict[HostId, int] = {}
        """Of the hosts that the plan touched."""
        self.free_bytes = capacity.free_bytes
        self.slots_left = starts_per_cluster - capacity.starting
        self._starts: dict[HostId, int] = {}
        self._members: dict[AffinityGroupId, dict[HostId, int]] = {}
        self._views: dict[int, ClassView] = {}
        self._choices: dict[Requirement, Choice] = {}

    # Looking

    def free_of(self, ledger: Ledger) -> int:
        return self.free.get(ledger.host_id, ledger.free_bytes)

    def starts_of(self, ledger: Ledger) -> int:
        """In flight, or ordered by this plan."""
        return len(ledger.starting) + self._starts.get(ledger.host_id, 0)

    def has_slot(self, ledger: Ledger) -> bool:
        return self.starts_of(ledger) < self.starts_per_host

    def members(self, group_id: AffinityGroupId) -> Members:
        planned = self._members.get(group_id)
        return self.capacity.members(group_id) if planned is None else planned

    def choice(self, requirement: Requirement) -> Choice:
        choice = self._choices.get(requirement)
        if choice is None:
            choice = self._choices[requirement] = self._choice(requirement)
        return choice

    def most_free(
        self, requirement: Requirement, slot: bool, memory_bytes: int, skip: Collection[HostId]
    ) -> list[Entry]:
        """Of each rated size the host with the most free memory, if it is enough."""
        choice = self.choice(requirement)
        heaps = choice.ready if slot else choice.every
        found = (_best_of(heap, slot, memory_bytes, skip) for heap in heaps.values())
        return [entry for entry in found if entry is not None]

    def fullest(
        self, requirement: Requirement, slot: bool, memory_bytes: int, skip: Collection[HostId]
    ) -> list[Entry]:
        """Of each class the fullest host that has enough."""
        views = self.choice(requirement).views
        found = (view.last(slot, memory_bytes, skip) for view in views)
        return [entry for entry in found if entry is not None]

    # Promising

    def take(
        self, ledger: Ledger, memory_bytes: int, groups: Collection[AffinityGroupId], *, start: bool
    ) -> None:
        """``start``: at once, which takes a slot; else the room is only kept."""
        assert ledger.group is not None and ledger.entry is not None, (
            f"{ledger.host_id} is no target"
        )
        view = self._view(ledger.group)
        host_id, number = ledger.host_id, ledger.entry[1]
        free = self.free_of(ledger)
        if host_id in self.free:
            lane = view.ready if self.has_slot(ledger) else view.full
            del lane[bisect_left(lane, (-free, number, host_id, ledger))]
        if start:
            self._starts[host_id] = self._starts.get(host_id, 0) + 1
            self.slots_left -= 1
        self._list(view, (memory_bytes - free, number, host_id, ledger))
        self.free_bytes -= memory_bytes
        for group_id in groups:
            planned = self._members.get(group_id)
            if planned is None:
                planned = self._members[group_id] = dict(self.capacity.members(group_id))
            planned[host_id] = planned.get(host_id, 0) + 1

    def touch(self, view: ClassView, entry: Entry) -> None:
        """Take it out of the untouched ones, as it is."""
        self._list(view, entry)

    def _list(self, view: ClassView, entry: Entry) -> None:
        self.free[entry[2]] = -entry[0]
        insort(view.ready if self.has_slot(entry[3]) else view.full, entry)

    def _view(self, group: HostClass) -> ClassView:
        # By identity: a class lives as long as the capacity isn't settled anew, and no plan outlives that.
        view = self._views.get(id(group))
        if view is None:
            view = self._views[id(group)] = ClassView(group.entries, self)
        return view

    def _choice(self, requirement: Requirement) -> Choice:
        matching = [group for group in self.capacity.classes.values() if requirement.met_by(group)]
        ready: dict[int, list[tuple[Entry, ClassView]]] = {}
        for group in matching:
            heap = ready.setdefault(group.key.rated_bytes, [])
            heap.append((group.entries[0], self._view(group)))
        for heap in ready.values():
            heapq.heapify(heap)
        every = {size: list(heap) for size, heap in ready.items()}
        return Choice([self._view(group) for group in matching], ready, every)


def _best_of(
    heap: list[tuple[Entry, ClassView]], slot: bool, memory_bytes: int, skip: Collection[HostId]
) -> Entry | None:
    found: Entry | None = None
    passed: list[tuple[Entry, ClassView]] = []
    while heap and -heap[0][0][0] >= memory_bytes and (found is None or heap[0][0] < found):
        bound, view = heap[0]
        best = view.first(slot)
        if best is None:
            heapq.heappop(heap)
        elif best != bound:
            heapq.heapreplace(heap, (best, view))
        elif best[2] not in skip:
            found = best
        else:
            # Its best may not be taken; its second may still be better than the other classes' best.
            passed.append(heapq.heappop(heap))
            found = _lesser(found, view.first(slot, memory_bytes, skip))
    for item in passed:
        heapq.heappush(heap, item)
    return found


def _first(entries: list[Entry], memory_bytes: int, skip: Collection[HostId]) -> Entry | None:
    for entry in entries:
        if -entry[0] < memory_bytes:
            return None
        if entry[2] not in skip:
            return entry
    return None


def _lesser(one: Entry | None, other: Entry | None) -> Entry | None:
    if one is None or (other is not None and other < one):
        return other
    return one


def _last(
    entries: Sequence[Entry], memory_bytes: int, allowed: Callable[[Entry], bool]
) -> Entry | None:
    end = bisect_right(entries, -memory_bytes, key=_negated_free)
    last = next((entries[at] for at in range(end - 1, -1, -1) if allowed(entries[at])), None)
    if last is None:
        return None
    # Of those that are equally full, the lowest number.
    start = bisect_left(entries, last[0], key=_negated_free)
    return next(entries[at] for at in range(start, end) if allowed(entries[at]))


def _negated_free(entry: Entry) -> int:
    return entry[0]


def _fullness(entry: Entry) -> tuple[int, int]:
    return entry[0], -entry[1]
