"""Orders to stop, reboot, pause and resume: done once, and what can't be done says why."""

import asyncio

import pytest
from agent_bench import WEB1, WEB2, Bench, qemu, stop
from msgspec.structs import replace

from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.orders import (
    Order,
    PauseVm,
    RebootMode,
    RebootVm,
    ResumeVm,
    StopMode,
    StopVm,
    Superseded,
)
from virtha.model.proof import Proof, ProofKind

# Stop and the rest of power


def test_a_shutdown_that_the_guest_ignores_fails_and_says_so(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(stop(mode=StopMode.SHUTDOWN, deadline_ms=300))
        assert (outcome.result, outcome.code) == (
            Result.FAILED,
            "order.failed.shutdown_ignored",
        )
        assert qemu(bench) is not None

    bench.run(story)


async def asked_to_shut_down(bench: Bench) -> Order:
    """The guest has been asked, and has not answered."""
    asked, real = asyncio.Event(), bench.hypervisor.shutdown

    async def shutdown(vm_id: VmId) -> None:
        await real(vm_id)
        asked.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.hypervisor, "shutdown", shutdown)
        order = bench.order(stop(mode=StopMode.SHUTDOWN, deadline_ms=200_000))
        bench.agent.on_order(order)
        await asked.wait()
    return order


def test_a_power_off_overtakes_a_shutdown(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        slow = await asked_to_shut_down(bench)
        assert (await bench.do(stop())).result is Result.OK
        await bench.until(lambda: bool(bench.outcomes(slow)))
        assert bench.outcomes(slow)[0].result is Result.OK

    bench.run(story)


def test_a_shutdown_that_the_guest_obeys(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        order = await asked_to_shut_down(bench)
        bench.hypervisor.libvirt.guest_shutdown(WEB1)
        await bench.until(lambda: bool(bench.outcomes(order)))
        assert bench.outcomes(order)[0].result is Result.OK
        await bench.until(lambda: len(bench.released()) == 1)

    bench.run(story)
    assert "vm.restart.ordered" not in bench.codes()


def test_stopping_what_is_stopped_is_done_and_what_is_not_here_refused(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        assert (await bench.do(stop())).result is Result.OK
        assert (await bench.do(stop())).result is Result.OK
        outcome = await bench.do(stop(WEB2))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.not_here")

    bench.run(story)


def test_pause_resume_and_what_is_not_running(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        one = Incarnation(1)
        assert (await bench.do(PauseVm(vm_id=WEB1, incarnation=one, by="ann"))).result is Result.OK
        await bench.until(lambda: bench.state() == "paused")
        assert (await bench.do(ResumeVm(vm_id=WEB1, incarnation=one, by="a"))).result is Result.OK
        await bench.until(lambda: bench.state() == "running")
        await bench.start(incarnation=1)
        older = await bench.do(PauseVm(vm_id=WEB1, incarnation=Incarnation(0), by="ann"))
        assert older.code == "order.refused.incarnation"
        await bench.do(stop())
        outcome = await bench.do(
            RebootVm(vm_id=WEB1, incarnation=one, mode=RebootMode.REBOOT, by="ann")
        )
        assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.vm.state")

    bench.run(story)


# A copy that is superseded (G4)


def ended_for(bench: Bench, *, newer: int = 2, boot: str | None = None) -> StopVm:
    proof = Proof(
        kind=ProofKind.OPERATOR,
        host_id=HostId("h1"),
        boot=BootId(boot) if boot else bench.boot,
        at_ms=0,
    )
    return replace(stop(), superseded=Superseded(incarnation=Incarnation(newer), proof=proof))


@pytest.mark.req("G4")
def test_a_superseded_copy_ends_and_its_release_says_nothing_of_the_vm(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(ended_for(bench))
        assert outcome.result is Result.OK and qemu(bench) is None
        await bench.until(lambda: len(bench.released()) == 1)
        assert bench.released()[0].cause is ReleaseCause.SUPERSEDED

    bench.run(story)
    assert "vm.restart.ordered" not in bench.codes()


@pytest.mark.req("G4")
@pytest.mark.parametrize(
    ("newer", "boot", "code"),
    [
        (1, None, "order.refused.incarnation"),
        (0, None, "order.refused.incarnation"),
        (2, "another-boot", "order.refused.proof"),
    ],
)
def test_nothing_is_ended_for_no_higher_incarnation_or_by_a_proof_about_another_boot(
    bench: Bench, newer: int, boot: str | None, code: str
) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(ended_for(bench, newer=newer, boot=boot))
        assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        assert bench.state() == "running" and qemu(bench) is not None
        assert (await bench.do(stop())).result is Result.OK, "an operator's stop cites nothing"

    bench.run(story)
