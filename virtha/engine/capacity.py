"""What the hosts of a cluster have to give, kept up to date by the engine as things happen.

Each change costs a constant time: it alters the host's ledger and marks it. Marked hosts are put in their place when a
plan asks (``settle``). Hosts that differ in nothing a rule looks at are one class, in which they are sorted by free memory,
so that a plan looks at the head of a few lists and not at every host.
"""

from bisect import bisect_left, insort
from enum import StrEnum
from heapq import nlargest
from typing import NamedTuple

from virtha.engine.affinity import AffinityGroupId, Members
from virtha.model.ids import HostId, VmId
from virtha.model.value import Value


class Unfit(StrEnum):
    """Why a host is no target at all, as a code of the registry."""

    DOWN = "host.unfit.down"
    DISCONNECTED = "host.unfit.disconnected"
    GUARDIAN = "host.unfit.guardian"
    """Its agent is connected, but a start needs a beat that its grant can quote (G2)."""
    MAINTENANCE = "host.unfit.maintenance"
    LEAVING = "host.unfit.leaving"
    """It gives its VMs back, for it is being shut down."""
    LIBVIRT = "host.unfit.libvirt"
    """It hangs or is gone: no place for starts, and no reason to fence."""
    GATE = "host.unfit.gate"
    RETURNING = "host.unfit.returning"
    """Back, but its old copies are not all dealt with (G4)."""

    @property
    def word(self) -> str:
        return self.value.rpartition(".")[2]


class FeatureKind(StrEnum):
    STORAGE = "storage"
    TAG = "tag"
    ARCHITECTURE = "architecture"
    WATCHDOG = "watchdog"
    BRIDGE = "bridge"
    CEPH = "ceph"
    """A Ceph cluster, by its fsid, whose maps that host can be told to wait for (P3)."""


class Feature(NamedTuple):
    """Something that a host has or lacks. Storage domains by id."""

    kind: FeatureKind
    name: str


class TargetHost(Value, frozen=True, kw_only=True):
    """A host as far as placement looks at it. Sizes in bytes."""

    id: HostId
    name: str
    number: int
    memory_bytes: int
    """As the host reports it, ``host.overcommit.mem.mb`` included (A2)."""
    reserved_bytes: int = 0
    """For the host itself."""
    cpus: int
    features: frozenset[Feature] = frozenset()
    unfit: Unfit | None = None
    """None: a target for starts."""


class HeldVm(Value, frozen=True, kw_only=True):
    """A VM as far as its host's capacity and the others' affinity are concerned."""

    id: VmId
    memory_bytes: int
    groups: tuple[AffinityGroupId, ...] = ()


class Ledger:
    """One host: what it has, and what is taken of it. ``target`` is None while only VMs are known to be there."""

    __slots__ = (
        "capacity_bytes",
        "entry",
        "group",
        "host_id",
        "listed_capacity_bytes",
        "starting",
        "target",
        "used_bytes",
        "vms",
    )

    def __init__(self, host_id: HostId) -> None:
        self.host_id = host_id
        self.target: TargetHost | None = None
        self.capacity_bytes = 0
        self.used_bytes = 0
        self.vms: dict[VmId, HeldVm] = {}
        self.starting: set[VmId] = set()
        self.group: HostClass | None = None
        """With ``entry`` and ``listed_capacity_bytes``: where it was last put, and as what."""
        self.entry: Entry | None = None
        self.listed_capacity_bytes = 0

    @property
    def free_bytes(self) -> int:
        """Negative when more was promised than is there now."""
        return self.capacity_bytes - self.used_bytes


Entry = tuple[int, int, HostId, Ledger]
"""Free bytes, negated; the host's number; its id; itself. The least is the first choice of its class."""


class ClassKey(NamedTuple):
    features: frozenset[Feature]
    cpus: int
    rated_bytes: int
    unfit: Unfit | None


class HostClass:
    """Hosts between which only their free memory and the VMs on them make a difference."""

    __slots__ = ("entries", "key")

    def __init__(self, key: ClassKey) -> None:
        self.key = key
        self.entries: list[Entry] = []


def rated_bytes(capacity_bytes: int) -> int:
    """Capacity to five significant bits: the measure of free *shares*.

    Machines of one model report sizes that differ by what the kernel kept; rated alike they stay one class.
    """
    shift = max(capacity_bytes.bit_length() - 5, 0)
    return capacity_bytes >> shift << shift


class Capacity:
    """The ledgers of a cluster. ``overcommit_percent``: 100 promises a host's memory once."""

    def __init__(self, *, overcommit_percent: int = 100) -> None:
        self.overcommit_percent = overcommit_percent
        self.ledgers: dict[HostId, Ledger] = {}
        self.classes: dict[ClassKey, HostClass] = {}
        self.starting = 0
        """Starts in flight in the whole cluster."""
        self.free_bytes = 0
        """Of all targets together, as settled."""
        self._sizes: dict[int, int] = {}
        """How many targets have which capacity."""
        self._members: dict[AffinityGroupId, dict[HostId, int]] = {}
        self._changed: dict[HostId, Ledger] = {}

    # What happens

    def host_changed(self, target: TargetHost) -> None:
        """It is new, or something about it is."""
        ledger = self._ledger(target.id)
        ledger.target = target
        ledger.capacity_bytes = self._capacity_of(target)
        self._changed[target.id] = ledger

    def host_removed(self, host_id: HostId) -> None:
        """What it may still hold counts on for affinity, until that ends too."""
        ledger = self.ledgers.get(host_id)
        if ledger is not None:
            ledger.target, ledger.capacity_bytes = None, 0
            self._changed[host_id] = ledger

    def vm_started(self, host_id: HostId, vm: HeldVm, *, in_flight: bool = False) -> None:
        """The host runs it, or may: from the order on. Told again, the later word counts."""
        ledger = self._ledger(host_id)
        self.vm_ended(host_id, vm.id)
        ledger.vms[vm.id] = vm
        ledger.used_bytes += vm.memory_bytes
        if in_flight:
            ledger.starting.add(vm.id)
            self.starting += 1
        for group_id in vm.groups:
            members = self._members.setdefault(group_id, {})
            members[host_id] = members.get(host_id, 0) + 1
        self._changed[host_id] = ledger

    def start_finished(self, host_id: HostId, vm_id: VmId) -> None:
        """It runs: its slot is free for another start."""
        ledger = self.ledgers.get(host_id)
        if ledger is not None and vm_id in ledger.starting:
            ledger.starting.discard(vm_id)
            self.starting -= 1

    def vm_ended(self, host_id: HostId, vm_id: VmId) -> None:
        """That host can't hold it any more. Unknown VMs are none of its."""
        ledger = self.ledgers.get(host_id)
        vm = ledger.vms.pop(vm_id, None) if ledger is not None else None
        if ledger is None or vm is None:
            return
        self.start_finished(host_id, vm_id)
        ledger.used_bytes -= vm.memory_bytes
        for group_id in vm.groups:
            members = self._members[group_id]
            members[host_id] -= 1
            if not members[host_id]:
                del members[host_id]
            if not members:
                del self._members[group_id]
        self._changed[host_id] = ledger

    def overcommit_changed(self, percent: int) -> None:
        """The one change that concerns every host."""
        if percent == self.overcommit_percent:
            return
        self.overcommit_percent = percent
        for ledger in self.ledgers.values():
            if ledger.target is not None:
                ledger.capacity_bytes = self._capacity_of(ledger.target)
                self._changed[ledger.host_id] = ledger

    # What a plan asks

    def members(self, group_id: AffinityGroupId) -> Members:
        return self._members.get(group_id, {})

    def target(self, host_id: HostId) -> TargetHost | None:
        ledger = self.ledgers.get(host_id)
        return ledger.target if ledger is not None else None

    def reserve_bytes(self, hosts: int) -> int:
        """What must be free in all so that any ``hosts`` of the targets may fail.

        If S fail, the others must have free what S uses. Free(others) >= used(S) is free(all) >= capacity(S),
        and the largest hosts ask for most. Never more than all targets but one: if every host fails nobody is
        left who could use a reserve. How free memory is cut up over hosts is not looked at.
        """
        self.settle()
        kept = min(hosts, sum(self._sizes.values()) - 1)
        if kept <= 0:
            return 0
        wanted: list[int] = []
        for size in nlargest(kept, self._sizes):
            wanted += [size] * min(self._sizes[size], kept - len(wanted))
        return sum(wanted)

    def settle(self) -> None:
        """Put the hosts that changed where they belong; a plan does it first."""
        leaving: dict[HostClass, list[Entry]] = {}
        coming: dict[HostClass, list[Entry]] = {}
        for ledger in self._changed.values():
            group, entry = self._place_of(ledger)
            if ledger.group is not None and ledger.entry is not None:
                self._count(ledger, ledger.group, -1)
                leaving.setdefault(ledger.group, []).append(ledger.entry)
            ledger.group, ledger.entry = group, entry
            ledger.listed_capacity_bytes = ledger.capacity_bytes
            if group is not None and entry is not None:
                self._count(ledger, group, 1)
                coming.setdefault(group, []).append(entry)
            elif not ledger.vms:
                del self.ledgers[ledger.host_id]
        self._changed = {}
        for group, entries in leaving.items():
            _take_out(group.entries, entries)
        for group, entries in coming.items():
            _put_in(group.entries, entries)
        for group in leaving:
            if not group.entries:
                del self.classes[group.key]

    def _place_of(self, ledger: Ledger) -> tuple[HostClass | None, Entry | None]:
        target = ledger.target
        if target is None:
            return None, None
        key = _class_key(target, ledger.capacity_bytes)
        group = self.classes.get(key)
        if group is None:
            group = self.classes[key] = HostClass(key)
        return group, (-ledger.free_bytes, target.number, target.id, ledger)

    def _count(self, ledger: Ledger, group: HostClass, sign: int) -> None:
        """Into the sums over all targets, or out of them, as it is listed."""
        if group.key.unfit is not None or ledger.entry is None:
            return
        self.free_bytes -= sign * ledger.entry[0]
        size = ledger.listed_capacity_bytes
        self._sizes[size] = self._sizes.get(size, 0) + sign
        if not self._sizes[size]:
            del self._sizes[size]

    def _capacity_of(self, target: TargetHost) -> int:
        return target.memory_bytes * self.overcommit_percent // 100 - target.reserved_bytes

    def _ledger(self, host_id: HostId) -> Ledger:
        ledger = self.ledgers.get(host_id)
        if ledger is None:
            ledger = self.ledgers[host_id] = Ledger(host_id)
        return ledger


def _class_key(target: TargetHost, capacity_bytes: int) -> ClassKey:
    if target.unfit is not None:
        # Nothing is asked of it: all that are unfit alike are one class.
        return ClassKey(frozenset(), 0, 0, target.unfit)
    return ClassKey(target.features, target.cpus, rated_bytes(capacity_bytes), None)


_FEW = 16
"""Up to one in this many, entries are moved one by one; sorting the whole list anew costs less for more."""


def _take_out(entries: list[Entry], leaving: list[Entry]) -> None:
    if len(leaving) * _FEW > len(entries):
        gone = {entry[2] for entry in leaving}
        entries[:] = [entry for entry in entries if entry[2] not in gone]
        return
    for entry in leaving:
        at = bisect_left(entries, entry)
        assert entries[at] is entry, f"host {entry[2]} is not where its class lists it"
        del entries[at]


def _put_in(entries: list[Entry], coming: list[Entry]) -> None:
    if len(coming) * _FEW > len(entries):
        entries += coming
        entries.sort()
        return
    for entry in coming:
        insort(entries, entry)
