"""An agent ends what an I/O error keeps paused, on the engine's order: only what still stands for it, and its release says why
(S6)."""

from collections.abc import Awaitable, Callable

import pytest
from agent_bench import WEB1, Bench, prepared, runs
from msgspec.structs import replace

from virtha.agent.process_table import OpenFiles
from virtha.model.facts import Outcome, ReleaseCause, Released, Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import EndPausedVm, Order, ResumeVm
from virtha.model.policy import IoErrorPolicy, Policy
from virtha.model.vm import OnIoError, Vm
from virtha.ports.hypervisor import HypervisorFailed, HypervisorTimeout

pytestmark = pytest.mark.req("S6")
SLOW = Policy(io_error=IoErrorPolicy(delay_ms=50_000))
"""Its host does not let it go on by itself meanwhile."""
END = EndPausedVm(vm_id=WEB1, incarnation=Incarnation(1), by="engine")


async def paused(bench: Bench, **changes: object) -> Vm:
    vm = replace(bench.vm(), on_io_error=OnIoError.KILL, **changes)
    await prepared(bench)
    bench.agent.on_settings(bench.settings(vm, revision=2, policy=SLOW))
    assert (await bench.start(vm)).result is Result.OK
    bench.hypervisor.libvirt.io_error(WEB1)
    await bench.until(lambda: "vm.io_error.paused" in happened(bench))
    return vm


def happened(bench: Bench) -> list[str]:
    return [str(getattr(fact.body, "code", "")) for fact in bench.facts()]


def released(bench: Bench) -> list[ReleaseCause | None]:
    return [fact.body.cause for fact in bench.facts() if isinstance(fact.body, Released)]


def lives(bench: Bench) -> bool:
    domain = bench.hypervisor.libvirt.find(WEB1)
    return domain is not None and domain.qemu is not None


async def answered(bench: Bench, order: Order) -> Outcome:
    bench.agent.on_order(order)
    await bench.until(lambda: bool(bench.outcomes(order)))
    return bench.outcomes(order)[0]


def test_it_is_ended_and_given_back_as_one_that_is_wanted_elsewhere(bench: Bench) -> None:
    async def story() -> None:
        await paused(bench)
        outcome = await answered(bench, bench.order(END))
        assert outcome.result is Result.OK and not lives(bench)
        await bench.until(lambda: released(bench) == [ReleaseCause.IO_ERROR])
        again = await answered(bench, bench.order(END))
        assert again.result is Result.OK, "what was done is done"
        assert happened(bench).count("vm.stopped_unexpectedly") == 1

    bench.run(story)


@pytest.mark.parametrize("what", ["runs", "left", "held", "shutdown", "incarnation", "absent"])
def test_one_that_is_not_to_be_ended_is_left_as_it_is(bench: Bench, what: str) -> None:
    async def story() -> None:
        vm = await paused(bench)
        order = END
        if what == "runs":
            bench.hypervisor.libvirt.run(WEB1)
            await bench.until(lambda: "vm.io_error.resumed" in happened(bench))
        elif what == "left":
            left = replace(vm, on_io_error=OnIoError.LEAVE_PAUSED)
            bench.agent.on_settings(bench.settings(left, revision=3, policy=SLOW))
        elif what == "held":
            bench.agent.on_settings(bench.settings(vm, revision=3, policy=SLOW, hold="work"))
        elif what == "shutdown":
            bench.agent.host.shutting_down = True
        elif what == "incarnation":
            order = replace(END, incarnation=Incarnation(2))
        else:
            order = replace(END, vm_id=VmId("60000000-0000-4000-8000-00000000ffff"))
        outcome = await answered(bench, bench.order(order))
        assert outcome.result is Result.REFUSED
        wanted = "order.refused.not_here" if what == "absent" else "io_error.kill.refused.state"
        assert outcome.code == wanted and outcome.message
        assert lives(bench) and released(bench) == []

    bench.run(story)


@pytest.mark.parametrize("files", [OpenFiles(buffered=True), None], ids=["buffered", "unknown"])
def test_one_whose_writes_may_land_after_its_end_is_not_ended(
    bench: Bench, files: OpenFiles | None
) -> None:
    bench.qemu_files = files

    async def story() -> None:
        await paused(bench)
        outcome = await answered(bench, bench.order(END))
        assert (outcome.result, outcome.code) == (
            Result.REFUSED,
            "io_error.kill.refused.page_cache",
        )
        assert lives(bench)

    bench.run(story)


def test_without_readable_records_of_the_gate_nobody_knows_where_it_writes(bench: Bench) -> None:
    async def story() -> None:
        await paused(bench)
        bench.agent.host.gate.records_path.write_text("damaged")
        outcome = await answered(bench, bench.order(END))
        assert outcome.code == "io_error.kill.refused.page_cache" and lives(bench)

    bench.run(story)


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (HypervisorFailed("Failed to terminate process 7 with SIGKILL"), Result.FAILED),
        (HypervisorTimeout("no answer"), Result.UNKNOWN),
    ],
    ids=["lives", "silent"],
)
def test_one_that_does_not_end_is_told_and_not_given_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, result: Result
) -> None:
    async def fails(_vm_id: VmId) -> None:
        raise error

    async def story() -> None:
        await paused(bench)
        destroy: Callable[[VmId], Awaitable[None]] = bench.hypervisor.destroy
        monkeypatch.setattr(bench.hypervisor, "destroy", fails)
        outcome = await answered(bench, bench.order(END))
        assert (outcome.result, outcome.code) == (result, "io_error.kill.failed")
        record = bench.agent.loop.record(WEB1)
        assert record is not None and "io_error.ending" in [one.code for one in record.reasons]
        assert released(bench) == [] and lives(bench)
        monkeypatch.setattr(bench.hypervisor, "destroy", destroy)
        assert (await answered(bench, bench.order(END))).result is Result.OK
        await bench.until(lambda: released(bench) == [ReleaseCause.IO_ERROR])

    bench.run(story)


def test_it_is_not_given_back_while_the_kernel_has_its_process(bench: Bench) -> None:
    """libvirt says that it ended; a thread of it waits for its storage."""

    async def story() -> None:
        await paused(bench)
        stuck = bench.qemus()
        bench.qemus = lambda: stuck
        outcome = await answered(bench, bench.order(END))
        assert (outcome.result, outcome.code) == (Result.FAILED, "io_error.kill.failed")
        await bench.until(lambda: "vm.stopped_unexpectedly" in happened(bench))
        assert released(bench) == []
        bench.qemus = tuple
        await bench.until(lambda: released(bench) == [ReleaseCause.IO_ERROR])

    bench.run(story)


def test_a_person_may_still_let_go_on_what_could_not_be_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_vm_id: VmId) -> None:
        raise HypervisorFailed("busy")

    async def story() -> None:
        await paused(bench)
        monkeypatch.setattr(bench.hypervisor, "destroy", fails)
        await answered(bench, bench.order(END))
        resume = ResumeVm(vm_id=WEB1, incarnation=Incarnation(1), by="ann")
        assert (await answered(bench, bench.order(resume))).result is Result.OK
        await bench.until(lambda: runs(bench))

    bench.run(story)


def test_without_room_for_the_reason_it_is_not_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent after this one would take its end for somebody's wish, and it would stay down for good."""

    async def story() -> None:
        await paused(bench)
        told: Callable[[object], Awaitable[bool]] = bench.agent.loop.told

        async def full(event: object) -> bool:
            await told(event)
            return False

        monkeypatch.setattr(bench.agent.loop, "told", full)
        outcome = await answered(bench, bench.order(END))
        assert (outcome.result, outcome.code) == (Result.FAILED, "io_error.kill.failed")
        assert lives(bench)

    bench.run(story)
