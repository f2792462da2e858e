"""The write log: what landed, from whom, and that late writes of the dead are seen."""

import pytest

from virtha.model.ids import Incarnation, VmId
from virtha.sim.kernel import Kernel
from virtha.sim.storage import WRITE_MS, SharedStorage, Writer

VM = VmId("vm")
FIRST = Writer("h1", Incarnation(1))
SECOND = Writer("h2", Incarnation(2))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def storage(kernel: Kernel) -> SharedStorage:
    storage = SharedStorage(kernel)
    storage.on_breach = lambda _vm_id, what: storage_breaches.append(what)
    storage_breaches.clear()
    return storage


storage_breaches: list[str] = []


def test_a_running_vm_writes_and_one_that_stands_does_not(kernel: Kernel, storage: SharedStorage):
    storage.runs(VM, FIRST)
    kernel.advance(3 * WRITE_MS)
    assert storage.written(VM, 2 * WRITE_MS, 3 * WRITE_MS)
    storage.stands(VM, "h1")
    kernel.advance(3 * WRITE_MS)
    assert not storage.written(VM, 3 * WRITE_MS, 6 * WRITE_MS)


@pytest.mark.parametrize("why", ["path", "hang"])
def test_nothing_lands_without_a_path_and_all_of_it_when_it_is_back(
    kernel: Kernel, storage: SharedStorage, why: str
):
    storage.runs(VM, FIRST)
    kernel.advance(1_000)
    _break(storage, why)
    kernel.advance(10_000)
    assert not storage.written(VM, 1_000, 11_000)
    _break(storage, why, well=True)
    kernel.advance(WRITE_MS)
    assert storage.written(VM, 11_000 - 1, 11_000)
    assert storage_breaches == []


def _break(storage: SharedStorage, why: str, *, well: bool = False) -> None:
    if why == "path":
        storage.set_up("h1", up=well)
    else:
        storage.set_awake("h1", awake=well)


def test_a_late_write_of_a_killed_qemu_is_seen_after_another_writes(
    kernel: Kernel, storage: SharedStorage
):
    storage.runs(VM, FIRST)
    kernel.advance(1_000)
    storage.set_up("h1", up=False)
    storage.stands(VM, "h1")  # killed: the kernel's queue outlives it
    storage.runs(VM, SECOND)
    kernel.advance(1_000)
    assert storage_breaches == []
    storage.set_up("h1", up=True)
    assert len(storage_breaches) == 2
    assert "late write of h1" in storage_breaches[0]
    assert "h1 (incarnation 1) writes again after h2" in storage_breaches[1]


def test_what_a_host_without_power_had_queued_never_lands(kernel: Kernel, storage: SharedStorage):
    storage.runs(VM, FIRST)
    storage.set_up("h1", up=False)
    storage.power_lost("h1")
    storage.runs(VM, SECOND)
    storage.set_up("h1", up=True)
    kernel.advance(1_000)
    assert storage_breaches == [] and storage.disk(VM).writers == [FIRST, SECOND]


def test_two_writers_at_once_are_seen(kernel: Kernel, storage: SharedStorage):
    storage.runs(VM, FIRST)
    kernel.advance(100)
    storage.runs(VM, SECOND)
    assert storage_breaches == ["h2 (incarnation 2) writes while h1 (incarnation 1) does"]


def test_a_local_restart_is_the_same_writer(kernel: Kernel, storage: SharedStorage):
    storage.runs(VM, FIRST)
    kernel.advance(100)
    storage.stands(VM, "h1")
    kernel.advance(100)
    storage.runs(VM, FIRST)
    assert storage_breaches == [] and storage.disk(VM).writers == [FIRST]
