"""Which host takes which VM, in which order, and why those that none takes must wait. Pure; changes nothing it is given.

The rules, in the order in which they yield:

1. A VM that failed with its host goes before one that an operator starts, that before one that is to leave its host;
   then the higher priority; then the one that waits for fewer others, failed less often, is larger (large ones fit in
   fewer places), has the lesser id. What a VM depends on inherits its place in that order. A lower VM never takes room
   that a higher one needs: the room of those that wait for a start slot, or for a dependency that is on its way, is
   kept for them.
2. Nothing that runs is moved to make room. What a VM needs of a host, capacity and hard affinity are never broken.
3. Soft affinity yields to capacity only. It outweighs a free start slot: a slot is a matter of seconds, a place stays.
   For the same reason a free slot outweighs the preferred host, and both outweigh spreading.
4. Spreading: the host with the largest share of its memory free afterwards (``spread`` off: the smallest that is left);
   among equals the lowest number.

The reserve (``reserve_hosts``) is for recoveries: only starts that operators order must leave it alone. The limits on
starts in flight make VMs wait, they never block one.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from virtha.engine.affinity import AffinityGroup, AffinityKind, bundles
from virtha.engine.capacity import Capacity, Entry, Feature, Ledger
from virtha.engine.dependencies import Dependency, Progress, Rank, start_order
from virtha.engine.obstacles import Against, Near, Obstacles, bounds_of
from virtha.engine.overlay import NOBODY, Overlay, Requirement
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.policy import DependencyExpired, RecoveryPolicy
from virtha.model.size import format_size
from virtha.model.time import Millis
from virtha.model.value import Scalar, Value
from virtha.model.vm import Reason


class Purpose(IntEnum):
    """What a start is for; the lesser goes first."""

    RECOVERY = 0
    """It ran, and its host failed."""
    ORDER = 1
    """An operator starts it."""
    MOVE = 2
    """It runs, and is to run elsewhere: what the others leave is enough. Its own copy must not be counted either."""


class VmToPlace(Value, frozen=True, kw_only=True):
    """A VM that may start now as far as safety is concerned: no host can hold it any more. Sizes in bytes."""

    id: VmId
    name: str
    memory_bytes: int
    vcpus: int = 1
    priority: int = 0
    """Higher goes first."""
    purpose: Purpose = Purpose.RECOVERY
    features: frozenset[Feature] = frozenset()
    """What its host must have: storage domains, tags, bridges and so on."""
    groups: tuple[AffinityGroup, ...] = ()
    depends_on: tuple[Dependency, ...] = ()
    waits_since_ms: int | None = None
    """Cluster time since when it has waited for dependencies; None: since now."""
    attempts: int = 0
    """Failed starts so far."""
    excluded: frozenset[HostId] = frozenset()
    """Hosts on which a start of it failed."""
    preferred: HostId | None = None


class Placement(Value, frozen=True, kw_only=True):
    """Start it there, now."""

    vm_id: VmId
    host_id: HostId
    reasons: tuple[Reason, ...]


class Waiting(Value, frozen=True, kw_only=True):
    """It fits and nothing is wrong, but not yet. Room is kept on ``host_id``; the next plan may choose another."""

    vm_id: VmId
    host_id: HostId
    reasons: tuple[Reason, ...]


class Blocked(Value, frozen=True, kw_only=True):
    """It can't start as things are. ``reasons``: what is nearest to being solved first."""

    vm_id: VmId
    reasons: tuple[Reason, ...]
    nearest: tuple[Near, ...] = ()
    """Hosts that lack nothing but memory, least lack first."""


class Plan(Value, frozen=True, kw_only=True):
    """Every VM that was asked about is in exactly one of the three, in the order in which it was decided."""

    placements: tuple[Placement, ...]
    waiting: tuple[Waiting, ...]
    blocked: tuple[Blocked, ...]
    wake_at: Millis | None = None
    """When the first wait for a dependency is over."""


def plan_placements(
    capacity: Capacity,
    vms: Sequence[VmToPlace],
    *,
    policy: RecoveryPolicy,
    now: Millis,
    progress: Progress,
    storage_names: Mapping[StorageDomainId, str] | None = None,
) -> Plan:
    """Place ``vms``. ``capacity`` must not count them; its overcommit is set from the same policy."""
    return _Planner(capacity, vms, policy, now, progress, storage_names or {}).plan()


class _Demand(NamedTuple):
    """What is looked for: room for one VM, or for all that hard rules bind to one host."""

    requirement: Requirement
    memory_bytes: int
    skip: frozenset[HostId]
    bound: frozenset[HostId] | None
    """Only these; None: any."""


class _Candidate(NamedTuple):
    """The lesser tuple is the better, but for spreading, which compares the entries."""

    soft_broken: int
    no_slot: bool
    not_preferred: bool
    entry: Entry


class _Awaited(NamedTuple):
    """The dependency that holds a VM back."""

    dependency: Dependency
    on_its_way: bool
    overdue: bool
    """The policy's time for waiting is over."""


class _Planner:
    """One plan in the making."""

    def __init__(
        self,
        capacity: Capacity,
        vms: Sequence[VmToPlace],
        policy: RecoveryPolicy,
        now: Millis,
        progress: Progress,
        storage_names: Mapping[StorageDomainId, str],
    ) -> None:
        self._policy = policy
        self._now = now
        self._progress = progress
        self._vms = {vm.id: vm for vm in vms}
        assert len(self._vms) == len(vms), "a VM was given twice"
        self._overlay = Overlay(
            capacity,
            starts_per_host=policy.starts_per_host,
            starts_per_cluster=policy.starts_per_cluster,
        )
        self._obstacles = Obstacles(self._overlay, storage_names)
        self._reserve_bytes: int | None = None
        self._bundle_of, self._bundles = _hard_bundles(vms)
        """Bundles hold those that are still undecided."""
        self._placed: dict[VmId, Placement] = {}
        self._waiting: dict[VmId, Waiting] = {}
        self._refused: dict[VmId, Against | None] = {}
        """None: it fits nowhere, or what it waits for does; explained when the plan is complete."""
        self._wake_at: int | None = None

    def plan(self) -> Plan:
        for vm in self._in_order():
            self._decide(vm)
            bundle = self._bundle_of.get(vm.id)
            if bundle is not None:
                del self._bundles[bundle][vm.id]
        blocked = []
        for vm_id in self._refused:
            # In the order of decisions: what it depends on has been explained before it.
            against = self._refused[vm_id] = self._refused[vm_id] or self._explain(self._vms[vm_id])
            blocked.append(Blocked(vm_id=vm_id, reasons=against.reasons, nearest=against.nearest))
        return Plan(
            placements=tuple(self._placed.values()),
            waiting=tuple(self._waiting.values()),
            blocked=tuple(blocked),
            wake_at=None if self._wake_at is None else Millis(self._wake_at),
        )

    def _in_order(self) -> list[VmToPlace]:
        ranks = {vm.id: Rank((vm.purpose, -vm.priority)) for vm in self._vms.values()}
        depends_on = {vm.id: vm.depends_on for vm in self._vms.values() if vm.depends_on}
        depth: Mapping[VmId, int] = {}
        if depends_on:
            ranks, depth = start_order(ranks, depends_on)
        return sorted(
            self._vms.values(),
            key=lambda vm: (
                ranks[vm.id],
                depth.get(vm.id, 0),
                vm.attempts,
                -vm.memory_bytes,
                vm.id,
            ),
        )

    # One VM

    def _decide(self, vm: VmToPlace) -> None:
        awaited = self._awaited(vm) if vm.depends_on else None
        held = awaited is not None and not awaited.overdue
        if awaited is not None and self._refuses(vm, awaited):
            return
        chosen = self._choose(vm, heed_slots=not held)
        if chosen is None:
            self._refused[vm.id] = None
            return
        if vm.purpose is Purpose.ORDER and self._touches_reserve(vm):
            self._refused[vm.id] = Against((self._reserve_reason(vm),))
            return
        ledger = chosen.entry[3]
        groups = [group.id for group in vm.groups]
        if awaited is not None and held:
            waits = _reason(
                "recovery.waiting.dependency",
                vm=awaited.dependency.name,
                condition=awaited.dependency.condition,
            )
        elif chosen.no_slot:
            waits = self._limit_reason(ledger)
        else:
            reasons = self._why(vm, chosen, awaited)
            self._overlay.take(ledger, vm.memory_bytes, groups, start=True)
            self._placed[vm.id] = Placement(vm_id=vm.id, host_id=ledger.host_id, reasons=reasons)
            return
        self._overlay.take(ledger, vm.memory_bytes, groups, start=False)
        self._waiting[vm.id] = Waiting(vm_id=vm.id, host_id=ledger.host_id, reasons=(waits,))

    # Dependencies

    def _awaited(self, vm: VmToPlace) -> _Awaited | None:
        """The first dependency that is not there and not coming; if all are coming, the first."""
        since = self._now if vm.waits_since_ms is None else vm.waits_since_ms
        overdue = self._now - since >= self._policy.dependency_wait_ms
        coming: _Awaited | None = None
        for dependency in vm.depends_on:
            reached = self._progress.get(dependency.vm_id)
            if reached is not None and dependency.condition in reached:
                continue
            other = dependency.vm_id
            on_its_way = reached is not None or other in self._placed or other in self._waiting
            if not on_its_way:
                return _Awaited(dependency, False, overdue)
            coming = coming or _Awaited(dependency, True, overdue)
        return coming

    def _refuses(self, vm: VmToPlace, awaited: _Awaited) -> bool:
        """Whether the missing dependency blocks it, rather than makes it wait or go without."""
        if awaited.overdue:
            if self._policy.dependency_expired is DependencyExpired.START:
                return False
            self._refused[vm.id] = Against(
                (_about("recovery.blocked.dependency_expired", awaited),)
            )
            return True
        since = self._now if vm.waits_since_ms is None else vm.waits_since_ms
        over = since + self._policy.dependency_wait_ms
        self._wake_at = over if self._wake_at is None else min(self._wake_at, over)
        if awaited.on_its_way:
            return False
        other = awaited.dependency.vm_id
        if other in self._refused:
            self._refused[vm.id] = None
        else:
            # In the plan, and yet not decided before what waits for it: a cycle.
            code = "recovery.dependency.cycle" if other in self._vms else "recovery.dependency.down"
            blocked = _about("recovery.blocked.dependency", awaited)
            self._refused[vm.id] = Against((blocked, _reason(code)))
        return True

    def _explain(self, vm: VmToPlace) -> Against:
        awaited = self._awaited(vm) if vm.depends_on else None
        if awaited is not None and not awaited.on_its_way and not awaited.overdue:
            other = self._refused[awaited.dependency.vm_id]
            assert other is not None, f"{awaited.dependency.name} was decided after {vm.name}"
            return Against((_about("recovery.blocked.dependency", awaited), other.reasons[0]))
        return self._obstacles.of(_requirement(vm), vm.memory_bytes, vm.excluded, vm.groups)

    # Choosing

    def _choose(self, vm: VmToPlace, *, heed_slots: bool) -> _Candidate | None:
        bundle = self._bundle_of.get(vm.id)
        if bundle is not None and len(self._bundles[bundle]) > 1:
            # A host that takes all whom hard rules bind together; if there is none, one that takes this VM.
            whole = self._demand(tuple(self._bundles[bundle].values()))
            chosen = self._search(vm, whole, heed_slots)
            if chosen is not None:
                return chosen
        return self._search(vm, self._demand((vm,)), heed_slots)

    def _demand(self, vms: Sequence[VmToPlace]) -> _Demand:
        bound: frozenset[HostId] | None = None
        skip = NOBODY
        for vm in vms:
            skip |= vm.excluded
            if vm.groups:
                bounds = bounds_of(self._overlay, vm.groups)
                skip |= bounds.apart
                if bounds.together is not None:
                    bound = bounds.together if bound is None else bound & bounds.together
        if len(vms) == 1:
            return _Demand(_requirement(vms[0]), vms[0].memory_bytes, skip, bound)
        features = frozenset[Feature]().union(*(vm.features for vm in vms))
        requirement = Requirement(features, max(vm.vcpus for vm in vms))
        return _Demand(requirement, sum(vm.memory_bytes for vm in vms), skip, bound)

    def _search(self, vm: VmToPlace, demand: _Demand, heed_slots: bool) -> _Candidate | None:
        usual, broken = self._soft_broken(vm)
        candidates: list[_Candidate] = []
        special: Collection[HostId]
        if demand.bound is None:
            # Hosts that a soft rule or the VM's preference sets apart from all the others.
            if vm.preferred is not None:
                broken.setdefault(vm.preferred, usual)
            skip = demand.skip.union(broken) if broken else demand.skip
            candidates = self._usual(demand, skip, usual, heed_slots)
            # One that soft rules are more against than against those found can't be chosen.
            special = [one for one, weight in broken.items() if weight <= usual or not candidates]
        else:
            special = demand.bound
        for host_id in special:
            entry = self._fits(host_id, demand)
            if entry is not None:
                no_slot = heed_slots and not self._slot_on(entry[3])
                weight = broken.get(host_id, usual)
                candidates.append(_Candidate(weight, no_slot, host_id != vm.preferred, entry))
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        best = min(candidate[:3] for candidate in candidates)
        return self._spread([one for one in candidates if one[:3] == best], demand.memory_bytes)

    def _usual(
        self, demand: _Demand, skip: frozenset[HostId], soft_broken: int, heed_slots: bool
    ) -> list[_Candidate]:
        look = self._overlay.most_free if self._policy.spread else self._overlay.fullest
        if heed_slots and self._overlay.slots_left > 0:
            found = look(demand.requirement, True, demand.memory_bytes, skip)
            if found:
                return [_Candidate(soft_broken, False, True, entry) for entry in found]
        found = look(demand.requirement, False, demand.memory_bytes, skip)
        return [_Candidate(soft_broken, heed_slots, True, entry) for entry in found]

    def _fits(self, host_id: HostId, demand: _Demand) -> Entry | None:
        """The host's entry with what it has free in this plan."""
        ledger = self._overlay.capacity.ledgers.get(host_id)
        if ledger is None or ledger.group is None or ledger.entry is None:
            return None
        if host_id in demand.skip or not demand.requirement.met_by(ledger.group):
            return None
        free = self._overlay.free_of(ledger)
        return (-free, ledger.entry[1], host_id, ledger) if free >= demand.memory_bytes else None

    def _slot_on(self, ledger: Ledger) -> bool:
        return self._overlay.slots_left > 0 and self._overlay.has_slot(ledger)

    def _soft_broken(self, vm: VmToPlace) -> tuple[int, dict[HostId, int]]:
        """How much soft rules are against most hosts, and against each that has members of their groups."""
        soft = [group for group in vm.groups if not group.hard]
        together = [group.kind is AffinityKind.TOGETHER for group in soft]
        members = [self._overlay.members(group.id) for group in soft]
        usual = sum(bind and bool(there) for bind, there in zip(together, members, strict=True))
        broken: dict[HostId, int] = {}
        for bind, there in zip(together, members, strict=True):
            for host_id, count in there.items():
                broken[host_id] = broken.get(host_id, usual) + (-1 if bind else count)
        return usual, broken

    def _spread(self, candidates: Sequence[_Candidate], memory_bytes: int) -> _Candidate:
        """By the share of memory that is free afterwards; compared without a division, so exactly."""
        best = candidates[0]
        for one in candidates[1:]:
            left = (-one.entry[0] - memory_bytes) * _rated(best)
            best_left = (-best.entry[0] - memory_bytes) * _rated(one)
            if left != best_left:
                better = (left > best_left) is self._policy.spread
            else:
                better = one.entry[1:3] < best.entry[1:3]
            best = one if better else best
        return best

    # The reserve

    def _touches_reserve(self, vm: VmToPlace) -> bool:
        if self._reserve_bytes is None:
            self._reserve_bytes = self._overlay.capacity.reserve_bytes(self._policy.reserve_hosts)
        # Only where there is one: an overcommitted cluster without a reserve starts what fits.
        return 0 < self._reserve_bytes > self._overlay.free_bytes - vm.memory_bytes

    def _reserve_reason(self, vm: VmToPlace) -> Reason:
        return _reason(
            "recovery.blocked.reserve",
            needed=format_size(vm.memory_bytes),
            free=format_size(max(self._overlay.free_bytes, 0)),
            reserve=format_size(self._reserve_bytes or 0),
            hosts=self._policy.reserve_hosts,
        )

    # Telling

    def _limit_reason(self, ledger: Ledger) -> Reason:
        overlay, policy = self._overlay, self._policy
        if overlay.slots_left <= 0:
            return _reason("recovery.waiting.cluster_limit", limit=policy.starts_per_cluster)
        limit = policy.starts_per_host
        return _reason("recovery.waiting.host_limit", host=_name(ledger), limit=limit)

    def _why(
        self, vm: VmToPlace, chosen: _Candidate, awaited: _Awaited | None
    ) -> tuple[Reason, ...]:
        ledger = chosen.entry[3]
        host, host_id = _name(ledger), ledger.host_id
        following, yielding = [], []
        for group in vm.groups:
            members, together = self._overlay.members(group.id), group.kind is AffinityKind.TOGETHER
            if together and host_id in members:
                following.append(group.name)
            elif not group.hard and ((together and members) or host_id in members):
                yielding.append(group.name)
        if following:
            reasons = [_reason("placement.together", host=host, group=", ".join(following))]
        elif host_id == vm.preferred:
            reasons = [_reason("placement.preferred", host=host)]
        else:
            left = format_size(-chosen.entry[0] - vm.memory_bytes)
            code = "placement.most_free" if self._policy.spread else "placement.fullest"
            reasons = [_reason(code, host=host, left=left)]
        reasons += [_reason("placement.soft_rule_broken", group=name) for name in yielding]
        if awaited is not None:
            reasons.append(_about("placement.without_dependency", awaited))
        return tuple(reasons)


def _hard_bundles(
    vms: Sequence[VmToPlace],
) -> tuple[dict[VmId, VmId], dict[VmId, dict[VmId, VmToPlace]]]:
    """Which bundle each VM with a hard together rule belongs to, and who is in it."""
    bound = {vm.id: vm for vm in vms if any(group.hard_together for group in vm.groups)}
    bundle_of = bundles({vm_id: vm.groups for vm_id, vm in bound.items()}) if bound else {}
    members: dict[VmId, dict[VmId, VmToPlace]] = {}
    for vm_id, bundle in bundle_of.items():
        members.setdefault(bundle, {})[vm_id] = bound[vm_id]
    return bundle_of, members


def _requirement(vm: VmToPlace) -> Requirement:
    return Requirement(vm.features, vm.vcpus)


def _rated(candidate: _Candidate) -> int:
    group = candidate.entry[3].group
    assert group is not None
    return group.key.rated_bytes


def _name(ledger: Ledger) -> str:
    return ledger.target.name if ledger.target is not None else ledger.host_id


def _about(code: str, awaited: _Awaited) -> Reason:
    dependency = awaited.dependency
    return _reason(code, vm=dependency.name, condition=dependency.condition)


def _reason(code: str, **fields: Scalar) -> Reason:
    return Reason(code=code, fields=fields)
