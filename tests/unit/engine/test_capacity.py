"""The ledgers: what a host has left, whatever order things are told in."""

import pytest

from virtha.engine.affinity import AffinityGroupId
from virtha.engine.capacity import Capacity, HeldVm, TargetHost, Unfit, rated_bytes
from virtha.model.ids import HostId, VmId

GIB = 1 << 30
H1, H2 = HostId("h1"), HostId("h2")
GROUP = AffinityGroupId("g")


def host(
    number: int, memory_gib: int = 64, unfit: Unfit | None = None, reserved_gib: int = 0
) -> TargetHost:
    return TargetHost(
        id=HostId(f"h{number}"),
        name=f"h{number}",
        number=number,
        memory_bytes=memory_gib * GIB,
        reserved_bytes=reserved_gib * GIB,
        cpus=8,
        unfit=unfit,
    )


def held(name: str, memory_gib: int, *groups: AffinityGroupId) -> HeldVm:
    return HeldVm(id=VmId(name), memory_bytes=memory_gib * GIB, groups=groups)


def free_gib(capacity: Capacity, host_id: HostId = H1) -> float:
    return capacity.ledgers[host_id].free_bytes / GIB


def listed(capacity: Capacity) -> list[list[str]]:
    """Hosts per class, as a plan would see them."""
    capacity.settle()
    return [[entry[2] for entry in group.entries] for group in capacity.classes.values()]


def test_starts_and_ends_move_memory() -> None:
    capacity = Capacity()
    capacity.host_changed(host(1, reserved_gib=4))
    capacity.vm_started(H1, held("web", 8))
    assert free_gib(capacity) == 52
    capacity.vm_ended(H1, VmId("web"))
    assert free_gib(capacity) == 60


def test_told_twice_counts_once_and_the_later_word_holds() -> None:
    capacity = Capacity()
    capacity.host_changed(host(1))
    capacity.vm_started(H1, held("web", 8, GROUP), in_flight=True)
    capacity.vm_started(H1, held("web", 16), in_flight=True)
    assert (free_gib(capacity), capacity.starting) == (48, 1)
    assert dict(capacity.members(GROUP)) == {}
    for _ in range(2):
        capacity.vm_ended(H1, VmId("web"))
    assert (free_gib(capacity), capacity.starting) == (64, 0)


def test_a_start_in_flight_frees_its_slot_once() -> None:
    capacity = Capacity()
    capacity.host_changed(host(1))
    capacity.vm_started(H1, held("web", 8), in_flight=True)
    for _ in range(2):
        capacity.start_finished(H1, VmId("web"))
    capacity.start_finished(H2, VmId("web"))
    assert (capacity.starting, free_gib(capacity)) == (0, 56)


def test_a_vm_may_be_held_by_two_hosts() -> None:
    capacity = Capacity()
    for number in (1, 2):
        capacity.host_changed(host(number))
        capacity.vm_started(HostId(f"h{number}"), held("web", 8, GROUP))
    assert dict(capacity.members(GROUP)) == {H1: 1, H2: 1}
    capacity.vm_ended(H1, VmId("web"))
    assert (free_gib(capacity, H1), free_gib(capacity, H2)) == (64, 56)
    assert dict(capacity.members(GROUP)) == {H2: 1}


def test_vms_of_a_host_not_known_yet_count_once_it_is() -> None:
    capacity = Capacity()
    capacity.vm_started(H1, held("web", 8, GROUP))
    assert listed(capacity) == []
    assert dict(capacity.members(GROUP)) == {H1: 1}
    capacity.host_changed(host(1))
    assert listed(capacity) == [["h1"]]
    assert free_gib(capacity) == 56


def test_a_removed_host_is_no_target_but_what_it_holds_still_counts_for_affinity() -> None:
    capacity = Capacity()
    capacity.host_changed(host(1))
    capacity.vm_started(H1, held("web", 8, GROUP))
    capacity.host_removed(H1)
    assert listed(capacity) == []
    assert (dict(capacity.members(GROUP)), capacity.free_bytes) == ({H1: 1}, 0)
    capacity.vm_ended(H1, VmId("web"))
    capacity.settle()
    assert (dict(capacity.members(GROUP)), capacity.ledgers) == ({}, {})


def test_what_is_not_known_is_not_removed() -> None:
    capacity = Capacity()
    capacity.host_removed(H1)
    capacity.vm_ended(H1, VmId("web"))
    assert listed(capacity) == []


def test_hosts_are_listed_by_free_memory_then_number() -> None:
    capacity = Capacity()
    for number in (3, 1, 2):
        capacity.host_changed(host(number))
    assert listed(capacity) == [["h1", "h2", "h3"]]
    capacity.vm_started(H1, held("web", 1))
    assert listed(capacity) == [["h2", "h3", "h1"]]


def test_a_host_changes_class_with_what_it_can_do() -> None:
    capacity = Capacity()
    for number in (1, 2):
        capacity.host_changed(host(number))
    capacity.settle()
    capacity.host_changed(host(1, unfit=Unfit.MAINTENANCE))
    assert sorted(listed(capacity)) == [["h1"], ["h2"]]
    assert capacity.free_bytes == 64 * GIB
    capacity.host_changed(host(1))
    assert listed(capacity) == [["h1", "h2"]]
    assert capacity.free_bytes == 128 * GIB


@pytest.mark.parametrize("changed", [1, 50, 100])
def test_few_and_many_changes_end_in_the_same_order(changed: int) -> None:
    capacity = Capacity()
    for number in range(1, 101):
        capacity.host_changed(host(number))
    capacity.settle()
    for number in range(1, changed + 1):
        capacity.vm_started(HostId(f"h{number}"), held(f"v{number}", 1 + number % 7))
    capacity.settle()
    (group,) = capacity.classes.values()
    assert group.entries == sorted(group.entries)
    assert {entry[2]: -entry[0] for entry in group.entries} == {
        host_id: ledger.free_bytes for host_id, ledger in capacity.ledgers.items()
    }


def test_overcommit_concerns_every_host() -> None:
    capacity = Capacity()
    capacity.host_changed(host(1, reserved_gib=4))
    capacity.host_changed(host(2))
    capacity.overcommit_changed(150)
    assert (free_gib(capacity, H1), free_gib(capacity, H2)) == (92, 96)
    capacity.settle()
    assert capacity.free_bytes == 188 * GIB


@pytest.mark.parametrize(
    ("sizes_gib", "hosts", "reserve_gib"),
    [
        ((), 1, 0),
        ((64,), 1, 0),
        ((64, 64), 0, 0),
        ((64, 64), 1, 64),
        ((64, 64), 9, 64),
        ((32, 128, 64), 1, 128),
        ((32, 128, 64), 2, 192),
        ((64, 64, 64, 64), 3, 192),
    ],
)
def test_the_reserve_is_the_largest_hosts(
    sizes_gib: tuple[int, ...], hosts: int, reserve_gib: int
) -> None:
    capacity = Capacity()
    for number, size in enumerate(sizes_gib, 1):
        capacity.host_changed(host(number, size))
    capacity.host_changed(host(99, 512, unfit=Unfit.MAINTENANCE))
    assert capacity.reserve_bytes(hosts) == reserve_gib * GIB


@pytest.mark.parametrize(
    ("capacity_bytes", "rated"),
    [(0, 0), (31, 31), (32, 32), (33, 32), (256 * GIB - 1, 248 * GIB), (251 * GIB, 248 * GIB)],
)
def test_rating_drops_all_but_five_bits(capacity_bytes: int, rated: int) -> None:
    assert rated_bytes(capacity_bytes) == rated
