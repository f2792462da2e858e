"""Placement beyond what the decision files show: larger random clusters against the dumb planner, and time."""

import random

import pytest
from placement_oracle import Dumb, World, check_plan

from virtha.engine import overlay
from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.capacity import Capacity, Feature, FeatureKind, HeldVm, TargetHost, Unfit
from virtha.engine.placement import Plan, VmToPlace, plan_placements
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.policy import RecoveryPolicy
from virtha.model.time import Millis

GIB = 1 << 30
TAGS = [Feature(FeatureKind.TAG, name) for name in ("a", "b", "c")]


def some(chance, values, most):
    return tuple(chance.sample(values, chance.randint(0, most)))


def cluster(seed: int) -> World:
    """Many classes with several hosts each: what the small worlds of the properties don't have."""
    chance = random.Random(seed)
    groups = [
        AffinityGroup(
            id=AffinityGroupId(f"g{at}"),
            name=f"g{at}",
            kind=chance.choice(list(AffinityKind)),
            hard=chance.random() < 0.5,
        )
        for at in range(6)
    ]
    hosts = [
        TargetHost(
            id=HostId(f"h{number}"),
            name=f"h{number}",
            number=number,
            memory_bytes=chance.choice((16, 32, 33)) * GIB - chance.randrange(GIB),
            cpus=chance.choice((4, 8)),
            features=frozenset(some(chance, TAGS, 3)),
            unfit=chance.choice([None] * 9 + [Unfit.DOWN]),
        )
        for number in range(1, 31)
    ]
    ids = [host.id for host in hosts]
    running = [
        (
            chance.choice(ids),
            HeldVm(
                id=VmId(f"r{at}"),
                memory_bytes=chance.randint(1, 6) * GIB,
                groups=tuple(group.id for group in some(chance, groups, 1)),
            ),
            chance.random() < 0.2,
        )
        for at in range(60)
    ]
    vms = [
        VmToPlace(
            id=VmId(f"v{at}"),
            name=f"v{at}",
            memory_bytes=chance.choice((1, 2, 4, 8, 16, 24)) * GIB,
            vcpus=chance.choice((1, 4, 8)),
            priority=chance.randrange(3),
            features=frozenset(some(chance, TAGS, 1)),
            groups=some(chance, groups, 2) if chance.random() < 0.4 else (),
            excluded=frozenset(some(chance, ids, 3)),
            preferred=chance.choice(ids) if chance.random() < 0.2 else None,
        )
        for at in range(50)
    ]
    policy = RecoveryPolicy(
        starts_per_host=2, starts_per_cluster=chance.choice((20, 64)), spread=chance.random() < 0.7
    )
    return World(hosts=tuple(hosts), running=tuple(running), vms=tuple(vms), policy=policy)


def planned(world: World, capacity: Capacity | None = None) -> Plan:
    return plan_placements(
        capacity or world.capacity(), world.vms, policy=world.policy, now=Millis(0), progress={}
    )


@pytest.mark.parametrize("seed", range(25))
def test_a_larger_cluster_is_decided_as_by_the_dumb_planner(seed: int) -> None:
    world = cluster(seed)
    plan, dumb = planned(world), Dumb(world).run()
    check_plan(world, plan)
    assert [(one.vm_id, one.host_id) for one in plan.placements] == list(dumb.placed.items())
    assert [(one.vm_id, one.host_id) for one in plan.waiting] == list(dumb.waiting.items())
    assert [one.vm_id for one in plan.blocked] == dumb.blocked


def test_planning_changes_nothing() -> None:
    world = cluster(1)
    capacity = world.capacity()
    first = planned(world, capacity)
    assert planned(world, capacity) == first


def test_carried_out_step_by_step_every_vm_that_waited_for_a_slot_starts() -> None:
    """Each plan's starts end, the next plan is made: nobody is forgotten, and no plan takes back room."""
    world = cluster(2)
    capacity = world.capacity()
    for host_id, vm, _ in world.running:
        capacity.start_finished(host_id, vm.id)
    left = {vm.id: vm for vm in world.vms}
    fitting: set[VmId] = set()
    for _ in range(50):
        plan = plan_placements(
            capacity, list(left.values()), policy=world.policy, now=Millis(0), progress={}
        )
        fitting |= {one.vm_id for one in (*plan.placements, *plan.waiting)}
        if not plan.placements:
            break
        for start in plan.placements:
            vm = left.pop(start.vm_id)
            held = HeldVm(
                id=vm.id, memory_bytes=vm.memory_bytes, groups=tuple(one.id for one in vm.groups)
            )
            capacity.vm_started(start.host_id, held, in_flight=True)
            capacity.start_finished(start.host_id, vm.id)
    assert not plan.waiting
    assert fitting.isdisjoint(left)


def test_storage_is_told_by_name() -> None:
    capacity = Capacity()
    capacity.host_changed(
        TargetHost(id=HostId("h1"), name="h1", number=1, memory_bytes=GIB, cpus=1)
    )
    vm = VmToPlace(
        id=VmId("v"),
        name="v",
        memory_bytes=1,
        features=frozenset(
            {Feature(FeatureKind.STORAGE, "id-1"), Feature(FeatureKind.STORAGE, "id-2")}
        ),
    )
    plan = plan_placements(
        capacity,
        [vm],
        policy=RecoveryPolicy(),
        now=Millis(0),
        progress={},
        storage_names={StorageDomainId("id-1"): "vault"},
    )
    (reason,) = plan.blocked[0].reasons
    assert (reason.code, reason.fields) == (
        "recovery.blocked.storage",
        {"missing": "id-2, vault", "hosts": 1},
    )


def test_a_host_with_more_promised_than_it_has_is_named_as_nearest_when_it_is() -> None:
    capacity = Capacity()
    capacity.host_changed(
        TargetHost(id=HostId("h1"), name="h1", number=1, memory_bytes=4 * GIB, cpus=1)
    )
    capacity.vm_started(HostId("h1"), HeldVm(id=VmId("r"), memory_bytes=6 * GIB))
    vm = VmToPlace(id=VmId("v"), name="v", memory_bytes=GIB)
    plan = plan_placements(capacity, [vm], policy=RecoveryPolicy(), now=Millis(0), progress={})
    (blocked,) = plan.blocked
    assert [(one.free_bytes, one.short_bytes) for one in blocked.nearest] == [(-2 * GIB, 3 * GIB)]
    assert blocked.reasons[0].fields["free"] == "0B"
    assert blocked.reasons[0].fields["short"] == "3GiB"


def test_the_work_for_a_vm_does_not_grow_with_the_number_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand hosts, each a class of its own. Counted, not timed: how often a class is looked at."""
    capacity = Capacity()
    for number in range(1, 1001):
        capacity.host_changed(
            TargetHost(
                id=HostId(f"h{number:04}"),
                name=f"h{number}",
                number=number,
                memory_bytes=64 * GIB,
                cpus=8,
                features=frozenset({Feature(FeatureKind.TAG, f"own{number}")}),
            )
        )
    looked: list[int] = []

    class Counting(overlay.ClassView):
        __slots__ = ()

        def first(self, *arguments):
            looked.append(1)
            return super().first(*arguments)

    monkeypatch.setattr(overlay, "ClassView", Counting)
    vms = [VmToPlace(id=VmId(f"v{at:03}"), name="v", memory_bytes=GIB) for at in range(200)]
    policy = RecoveryPolicy(starts_per_cluster=1_000)
    plan = plan_placements(capacity, vms, policy=policy, now=Millis(0), progress={})
    assert len({one.host_id for one in plan.placements}) == 200
    assert 200 <= len(looked) < 800
