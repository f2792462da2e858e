"""Placement written a second time, to be compared with the real one: every VM looks at every host.

No classes, heaps, cursors or overlays; fractions instead of cross products; the whole state in two dictionaries.
Only the data types and ``rated_bytes`` (a definition) are shared. And ``check_plan``: what must be true of any plan,
whatever way it was made.
"""

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction

from virtha.engine.affinity import AffinityGroup, AffinityKind
from virtha.engine.capacity import Capacity, HeldVm, TargetHost, rated_bytes
from virtha.engine.dependencies import Progress
from virtha.engine.placement import Plan, Purpose, VmToPlace
from virtha.model.ids import HostId, VmId
from virtha.model.policy import DependencyExpired, RecoveryPolicy
from virtha.model.value import Value


class World(Value, frozen=True, kw_only=True):
    """``running``: host, VM, and whether its start is still in flight."""

    hosts: tuple[TargetHost, ...]
    running: tuple[tuple[HostId, HeldVm, bool], ...] = ()
    vms: tuple[VmToPlace, ...] = ()
    policy: RecoveryPolicy = RecoveryPolicy()
    progress: Mapping[VmId, Collection[str]] = {}
    now_ms: int = 0

    def capacity(self) -> Capacity:
        capacity = Capacity(overcommit_percent=self.policy.memory_overcommit_percent)
        for host in self.hosts:
            capacity.host_changed(host)
        for host_id, vm, in_flight in self.running:
            capacity.vm_started(host_id, vm, in_flight=in_flight)
        return capacity


class Dumb:
    """``placed``, ``waiting``: host by VM, in the order of decisions. ``blocked``: in that order too."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.policy = world.policy
        self.hosts = {host.id: host for host in world.hosts}
        self.vms = {vm.id: vm for vm in world.vms}
        self.size = {
            host.id: host.memory_bytes * self.policy.memory_overcommit_percent // 100
            - host.reserved_bytes
            for host in world.hosts
        }
        self.on: dict[HostId, list[tuple[int, tuple[str, ...]]]] = {}
        self.starts: dict[HostId, int] = {}
        self.placed: dict[VmId, HostId] = {}
        self.waiting: dict[VmId, HostId] = {}
        self.blocked: list[VmId] = []
        for host_id, vm, in_flight in world.running:
            self.on.setdefault(host_id, []).append((vm.memory_bytes, vm.groups))
            self.starts[host_id] = self.starts.get(host_id, 0) + in_flight
        self.reserve = self._reserve()

    def run(self) -> "Dumb":
        for vm in self.order():
            self.decide(vm)
        return self

    # State

    def free(self, host_id: HostId) -> int:
        return self.size[host_id] - sum(memory for memory, _ in self.on.get(host_id, ()))

    def members(self, group: AffinityGroup, host_id: HostId) -> int:
        return sum(group.id in groups for _, groups in self.on.get(host_id, ()))

    def hosts_with(self, group: AffinityGroup) -> set[HostId]:
        return {host_id for host_id in self.on if self.members(group, host_id)}

    def slot(self, host_id: HostId) -> bool:
        used = sum(self.starts.values())
        return (
            used < self.policy.starts_per_cluster
            and self.starts.get(host_id, 0) < self.policy.starts_per_host
        )

    def targets(self) -> list[TargetHost]:
        return [host for host in self.world.hosts if host.unfit is None]

    def _reserve(self) -> int:
        sizes = sorted((self.size[host.id] for host in self.targets()), reverse=True)
        return sum(sizes[: max(min(self.policy.reserve_hosts, len(sizes) - 1), 0)])

    # Order

    def order(self) -> list[VmToPlace]:
        return sorted(
            self.vms.values(),
            key=lambda vm: (self.rank(vm), self.depth(vm), vm.attempts, -vm.memory_bytes, vm.id),
        )

    def behind(self, vm: VmToPlace) -> list[VmToPlace]:
        """All that wait for it, directly or not."""
        found: dict[VmId, VmToPlace] = {}
        queue = [vm.id]
        while queue:
            at = queue.pop()
            for other in self.vms.values():
                if other.id not in found and any(one.vm_id == at for one in other.depends_on):
                    found[other.id] = other
                    queue.append(other.id)
        return list(found.values())

    def rank(self, vm: VmToPlace) -> tuple[int, int]:
        return min((one.purpose, -one.priority) for one in (vm, *self.behind(vm)))

    def depth(self, vm: VmToPlace) -> int:
        inside = [self.vms[one.vm_id] for one in vm.depends_on if one.vm_id in self.vms]
        return max((self.depth(one) + 1 for one in inside), default=0)

    # Decisions

    def decide(self, vm: VmToPlace) -> None:
        state = self.dependency(vm)
        if state == "blocked":
            self.blocked.append(vm.id)
            return
        host_id = self.choose(vm, heed_slots=state == "there")
        if host_id is None or (vm.purpose is Purpose.ORDER and self.breaks_reserve(vm)):
            self.blocked.append(vm.id)
            return
        if state == "coming" or not self.slot(host_id):
            self.waiting[vm.id] = host_id
        else:
            self.placed[vm.id] = host_id
            self.starts[host_id] = self.starts.get(host_id, 0) + 1
        self.on.setdefault(host_id, []).append(
            (vm.memory_bytes, tuple(group.id for group in vm.groups))
        )

    def dependency(self, vm: VmToPlace) -> str:
        progress: Progress = self.world.progress
        missing = [one for one in vm.depends_on if one.condition not in progress.get(one.vm_id, ())]
        since = self.world.now_ms if vm.waits_since_ms is None else vm.waits_since_ms
        if not missing:
            return "there"
        if self.world.now_ms - since >= self.policy.dependency_wait_ms:
            hold = self.policy.dependency_expired is DependencyExpired.HOLD
            return "blocked" if hold else "there"
        coming = {*progress, *self.placed, *self.waiting}
        return "coming" if all(one.vm_id in coming for one in missing) else "blocked"

    def breaks_reserve(self, vm: VmToPlace) -> bool:
        left = sum(self.free(host.id) for host in self.targets()) - vm.memory_bytes
        return self.reserve > 0 and left < self.reserve

    def fits(self, vms: Sequence[VmToPlace], host: TargetHost) -> bool:
        if host.unfit is not None or self.free(host.id) < sum(vm.memory_bytes for vm in vms):
            return False
        for vm in vms:
            if vm.vcpus > host.cpus or not vm.features <= host.features:
                return False
            if host.id in vm.excluded:
                return False
            for group in vm.groups:
                if group.hard_apart and self.members(group, host.id):
                    return False
                if group.hard_together and host.id not in (self.hosts_with(group) or {host.id}):
                    return False
        return True

    def bundle(self, vm: VmToPlace) -> list[VmToPlace]:
        """The undecided VMs that hard together rules bind to it, itself included. Rules pass on through
        VMs of this plan, decided ones too."""
        found = {vm.id: vm}
        queue = [vm]
        while queue:
            mine = {group.id for group in queue.pop().groups if group.hard_together}
            for other in self.vms.values():
                theirs = {group.id for group in other.groups if group.hard_together}
                if other.id not in found and mine & theirs:
                    found[other.id] = other
                    queue.append(other)
        decided = {*self.placed, *self.waiting, *self.blocked}
        return [one for one in found.values() if one.id not in decided]

    def choose(self, vm: VmToPlace, *, heed_slots: bool) -> HostId | None:
        whole = self.bundle(vm)
        for vms in (whole, [vm]):
            fitting = [host for host in self.world.hosts if self.fits(vms, host)]
            if fitting:
                memory = sum(one.memory_bytes for one in vms)
                return min(fitting, key=lambda host: self.key(vm, memory, host, heed_slots)).id
        return None

    def key(self, vm: VmToPlace, memory: int, host: TargetHost, heed_slots: bool) -> object:
        share = Fraction(self.free(host.id) - memory, rated_bytes(self.size[host.id]))
        return (
            self.soft_broken(vm, host),
            heed_slots and not self.slot(host.id),
            host.id != vm.preferred,
            -share if self.policy.spread else share,
            host.number,
        )

    def soft_broken(self, vm: VmToPlace, host: TargetHost) -> int:
        broken = 0
        for group in vm.groups:
            if group.hard:
                continue
            here = self.members(group, host.id)
            if group.kind is AffinityKind.APART:
                broken += here
            elif not here and self.hosts_with(group):
                broken += 1
        return broken


def check_plan(world: World, plan: Plan) -> None:
    """Validity, without regard to which of several right plans it is."""
    _check_complete(world, plan)
    state = Dumb(world)
    taken = [*plan.placements, *plan.waiting]
    where = {one.vm_id: one.host_id for one in taken}
    for vm_id, host_id in where.items():
        vm = state.vms[vm_id]
        groups = tuple(group.id for group in vm.groups)
        state.on.setdefault(host_id, []).append((vm.memory_bytes, groups))
    for vm_id, host_id in where.items():
        _check_place(state, state.vms[vm_id], state.hosts[host_id])
    for one in plan.placements:
        state.starts[one.host_id] = state.starts.get(one.host_id, 0) + 1
        assert state.dependency(state.vms[one.vm_id]) == "there"
        assert state.starts[one.host_id] <= world.policy.starts_per_host
    if plan.placements:
        assert sum(state.starts.values()) <= world.policy.starts_per_cluster
    _check_blocked(world, plan, state)


def _check_complete(world: World, plan: Plan) -> None:
    told = [one.vm_id for one in (*plan.placements, *plan.waiting, *plan.blocked)]
    assert sorted(told) == sorted(vm.id for vm in world.vms)
    for one in (*plan.placements, *plan.waiting, *plan.blocked):
        assert one.reasons, f"{one.vm_id}: no reason"


def _check_place(state: Dumb, vm: VmToPlace, host: TargetHost) -> None:
    assert host.unfit is None
    assert vm.features <= host.features
    assert vm.vcpus <= host.cpus
    assert host.id not in vm.excluded
    assert state.free(host.id) >= 0, f"{host.id} has more promised than it has"
    for group in vm.groups:
        if group.hard_apart:
            assert state.members(group, host.id) == 1, f"{group.id} broken on {host.id}"
        if group.hard_together:
            assert host.id in state.hosts_with(group)
            before = Dumb(state.world).hosts_with(group)
            # Running members may be spread by what happened before; a start joins one of them.
            assert host.id in before if before else len(state.hosts_with(group)) == 1


def _check_blocked(world: World, plan: Plan, state: Dumb) -> None:
    """None of the blocked could be added to what the plan leaves; and none gave way to a lesser one."""
    state.placed = {one.vm_id: one.host_id for one in plan.placements}
    state.waiting = {one.vm_id: one.host_id for one in plan.waiting}
    for one in plan.blocked:
        vm = state.vms[one.vm_id]
        state.blocked = [other.vm_id for other in plan.blocked]
        if state.dependency(vm) == "blocked":
            continue
        if vm.purpose is Purpose.ORDER and state.breaks_reserve(vm):
            continue
        assert not [host.id for host in world.hosts if state.fits([vm], host)], vm.id
        for near in one.nearest:
            assert near.free_bytes == state.free(near.host_id)
            assert near.short_bytes == vm.memory_bytes - near.free_bytes > 0
    _check_priority(world, plan, state)


def _check_priority(world: World, plan: Plan, state: Dumb) -> None:
    """A VM without any rule but capacity isn't blocked for memory that VMs behind it in the order hold."""
    position = {vm.id: at for at, vm in enumerate(state.order())}
    where = {one.vm_id: one.host_id for one in (*plan.placements, *plan.waiting)}
    for one in plan.blocked:
        vm = state.vms[one.vm_id]
        if vm.groups or vm.depends_on or vm.purpose is Purpose.ORDER:
            continue
        for host in state.targets():
            if vm.vcpus > host.cpus or not vm.features <= host.features or host.id in vm.excluded:
                continue
            behind = sum(
                state.vms[other].memory_bytes
                for other, host_id in where.items()
                if host_id == host.id and position[other] > position[vm.id]
            )
            assert state.free(host.id) + behind < vm.memory_bytes, f"{vm.id} gave way on {host.id}"
