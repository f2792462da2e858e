"""A QEMU whose end libvirt tells nobody: it had died before a libvirtd that began anew looked for it (9.0.0)."""

import asyncio
from collections.abc import Callable

import pytest
from agent_bench import WEB1, WEB2, Bench, qemu
from test_orders_to_move_on_sim import migrate

from virtha.agent import roll_call
from virtha.agent.process_table import QemuWatch
from virtha.model.domain import DomainState
from virtha.model.facts import Inventory, Result
from virtha.model.ids import VmId
from virtha.sentinel.guardian import QemuProcess

PATIENT = 1_000_000
"""Lists until the kernel agrees: on a slow machine too, what a story does comes before the last of them."""


@pytest.fixture
def quick(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(roll_call, "AGAIN_S", 0.01)
    monkeypatch.setattr(roll_call, "ROLL_CALL_S", 0.02)
    return bench


def died_unseen(bench: Bench) -> None:
    """With libvirtd, which lists it from its status file when it is back."""
    bench.hypervisor.lose()
    bench.qemus = tuple
    bench.hypervisor.heal()


def counted_lists(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    asked, listed = [0], bench.hypervisor.domains

    async def domains() -> object:
        asked[0] += 1
        return await listed()

    monkeypatch.setattr(bench.hypervisor, "domains", domains)
    return lambda: asked[0]


def shown_active(bench: Bench) -> list[bool]:
    """By the inventories, one after the other."""
    return [
        any(one.vm_id == WEB1 and one.state is not DomainState.SHUTOFF for one in fact.body.domains)
        for fact in bench.facts()
        if isinstance(fact.body, Inventory)
    ]


@pytest.mark.req("A8", "X1")
@pytest.mark.parametrize("patience", [PATIENT, 0])
def test_a_vm_that_died_with_libvirtd_is_started_again(
    quick: Bench, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """Whether its first list is asked for again at once, or the roll call comes upon it."""
    monkeypatch.setattr(roll_call, "AGAIN_MAX", patience)
    bench, lists = quick, counted_lists(quick, monkeypatch)

    async def story() -> None:
        await bench.start()
        before = qemu(bench)
        assert before is not None
        died_unseen(bench)
        seen = lists()
        await bench.until(lambda: lists() > seen + 1)
        bench.hypervisor.libvirt.end_silently(WEB1, "crashed")
        await bench.until(lambda: (new := qemu(bench)) is not None and new.pid != before.pid)
        await bench.until(lambda: "vm.restarted" in bench.codes())

    bench.run(story)


@pytest.mark.req("G1")
@pytest.mark.parametrize("patience", [PATIENT, 0])
def test_a_vm_that_has_left_is_not_held_for_good_by_a_list_of_a_moment(
    quick: Bench, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setattr(roll_call, "AGAIN_MAX", patience)
    bench, lists = quick, counted_lists(quick, monkeypatch)

    async def story() -> None:
        await bench.start()
        await bench.do(migrate())
        libvirt = bench.hypervisor.libvirt
        libvirt.stand_still(WEB1)
        libvirt.handed_over(WEB1)
        bench.moves.end(WEB1, Result.OK)
        await bench.until(lambda: len(bench.released()) == 1)
        await bench.until(lambda: shown_active(bench)[-1:] == [False])
        # Its status file outlived its end by the moment in which libvirtd was killed.
        domain = libvirt.domain(WEB1)
        domain.state, domain.reason = DomainState.RUNNING, "migrated"
        seen, shown = lists(), len(shown_active(bench))
        died_unseen(bench)
        await bench.until(lambda: lists() > seen + 1)
        if patience:
            await bench.until(lambda: not bench.agent.loop.ready)
        else:
            await bench.until(lambda: bench.state() == "running")
            await bench.until(lambda: shown_active(bench)[-1])
        domain.state, domain.reason = DomainState.SHUTOFF, "crashed"
        await bench.until(lambda: bench.agent.loop.ready)
        await bench.until(lambda: bench.state() == "down")
        await bench.until(lambda: shown_active(bench)[shown:][-1:] == [False])
        if patience:
            assert not any(shown_active(bench)[shown:])
            assert "vm.unmanaged_copy" not in bench.codes(), "nobody is alarmed"
        else:
            await bench.until(lambda: len(bench.released()) == 2)

    bench.run(story)


def test_nobody_is_missed_while_the_kernel_can_t_be_asked() -> None:
    def unreadable() -> tuple[QemuProcess, ...]:
        raise OSError("no /proc")

    async def missing(look: Callable[[], tuple[QemuProcess, ...]]) -> frozenset[VmId]:
        watch = QemuWatch(look)
        try:
            return await watch.missing([WEB1, WEB2])
        finally:
            watch.close()

    assert asyncio.run(missing(unreadable)) == frozenset()
    there = QemuProcess(pid=7, start_ticks=7, vm_id=WEB2)
    assert asyncio.run(missing(lambda: (there,))) == {WEB1}
