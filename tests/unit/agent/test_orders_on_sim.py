"""Orders: checked, carried out once, answered with a code, and again when they come again; starts."""

import asyncio

import pytest
from agent_bench import WEB1, Bench, SimHost, qemu, stop

from virtha.agent.gate import read_grant
from virtha.model.domain import DomainState
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import BootId, Incarnation, OperationId, Term, VmId
from virtha.model.orders import (
    Order,
    PauseVm,
    RebootMode,
    RebootVm,
    ReleaseVm,
    StartVm,
)
from virtha.ports.hypervisor import HypervisorTimeout

# Who may order what


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"term": Term(0)}, "order.refused.term"),
        ({"host_boot": BootId("boot-0")}, "order.refused.boot"),
        ({"operation_id": OperationId("../../etc/passwd")}, "problem.invalid"),
    ],
)
def test_an_order_of_another_time_is_refused(
    bench: Bench, change: dict[str, object], code: str
) -> None:
    async def story() -> None:
        await bench.configured()
        start = StartVm(vm=bench.vm(), grant=bench.grant(), by="ann")
        outcome = await bench.do(start, **change)
        assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        assert qemu(bench) is None
        # An order for a boot that is over: nothing of it can be left, the server may go elsewhere.
        assert bool(bench.released()) == (code == "order.refused.boot")

    bench.run(story)


def test_an_order_that_comes_again_is_answered_not_repeated(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        order = bench.order(
            RebootVm(vm_id=WEB1, incarnation=Incarnation(1), mode=RebootMode.RESET, by="ann")
        )
        first = await bench.give(order)
        await bench.until(lambda: "vm.rebooted" in bench.codes())
        assert await bench.give(order) == first
        assert bench.codes().count("vm.rebooted") == 1

    bench.run(story)


def test_an_answer_that_is_on_its_way_is_not_told_again(bench: Bench) -> None:
    async def story() -> None:
        order = bench.order(StartVm(vm=bench.vm(), grant=bench.grant(), by="ann"))
        await bench.give(order)
        for _ in range(3):
            bench.agent.on_order(order)
        # An order that came later has been answered, so those before it have been looked at.
        pause = bench.order(PauseVm(vm_id=WEB1, incarnation=Incarnation(1), by="ann"))
        bench.agent.on_order(pause)
        await bench.until(lambda: bool(bench.outcomes(pause)))
        assert len(bench.outcomes(order)) == 1

    bench.run(story)


def test_outcomes_outlive_the_agent(bench: Bench) -> None:
    orders: list[Order] = []

    async def first() -> None:
        orders.append(bench.order(StartVm(vm=bench.vm(), grant=bench.grant(), by="ann")))
        assert (await bench.give(orders[0])).result is Result.OK

    async def second() -> None:
        await bench.until(lambda: bench.agent.loop.record(WEB1) is not None)
        assert (await bench.give(orders[0])).result is Result.OK
        assert bench.codes().count("vm.started") == 1

    bench.run(first)
    bench.run(second)


def test_a_reset_that_was_cut_off_is_unknown_not_done_twice(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        order = bench.order(
            RebootVm(vm_id=WEB1, incarnation=Incarnation(1), mode=RebootMode.RESET, by="ann")
        )
        bench.agent.host.outcomes.begin(order.operation_id, order.step)  # and then kill -9
        outcome = await bench.give(order)
        assert (outcome.result, outcome.code) == (Result.UNKNOWN, "order.unknown.interrupted")

    bench.run(story)
    assert "vm.rebooted" not in bench.codes()


# Start


@pytest.mark.parametrize(
    ("duration_ms", "boot", "code"),
    [
        (-1, None, "order.refused.grant_expired"),
        (60_000, BootId("boot-0"), "order.refused.boot"),
    ],
)
def test_a_grant_that_does_not_hold_starts_nothing(
    bench: Bench, duration_ms: int, boot: BootId | None, code: str
) -> None:
    async def story() -> None:
        grant = bench.grant(duration_ms=duration_ms)
        if boot is not None:
            grant = type(grant)(
                vm_id=WEB1,
                incarnation=Incarnation(1),
                boot=boot,
                beat_monotonic_ms=grant.beat_monotonic_ms,
                duration_ms=duration_ms,
            )
        outcome = await bench.do(StartVm(vm=bench.vm(), grant=grant, by="ann"))
        assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        assert qemu(bench) is None
        await bench.until(lambda: [fact.incarnation for fact in bench.released()] == [1])

    bench.run(story)


def test_a_lower_incarnation_is_refused_and_releases_nothing(bench: Bench) -> None:
    async def story() -> None:
        await bench.start(incarnation=5)
        await bench.do(stop(incarnation=Incarnation(5)))
        await bench.until(lambda: len(bench.released()) == 1)
        for lower in (4, 5):
            outcome = await bench.start(incarnation=lower)
            assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        assert qemu(bench) is None

    bench.run(story)


def test_a_higher_incarnation_does_not_start_over_a_running_copy(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.start(incarnation=2)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.running")
        assert bench.released() == []

    bench.run(story)


@pytest.mark.parametrize("runs_out", [False, True])
def test_a_start_that_was_cut_off_while_paused_is_carried_on_within_its_grant(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, runs_out: bool
) -> None:
    orders: list[Order] = []
    real_run = bench.hypervisor.run

    async def hang(vm_id: VmId) -> None:
        await asyncio.sleep(3_600)

    async def first() -> None:
        await bench.listed()
        monkeypatch.setattr(bench.hypervisor, "run", hang)
        start = StartVm(vm=bench.vm(), grant=bench.grant(), by="ann")
        orders.append(bench.order(start))
        bench.agent.on_order(orders[0])
        await bench.until(lambda: qemu(bench) is not None)

    async def second() -> None:
        monkeypatch.setattr(bench.hypervisor, "run", real_run)
        await bench.listed()
        outcome = await bench.give(orders[0])
        if runs_out:
            assert (outcome.result, outcome.code) == (
                Result.REFUSED,
                "order.refused.grant_expired",
            )
            assert bench.hypervisor.libvirt.domain(WEB1).reason != "unpaused"
            await bench.until(lambda: bench.released() != [])
            assert qemu(bench) is None, "only what is gone is given back"
        else:
            assert outcome.result is Result.OK
            await bench.until(lambda: bench.state() == "running")

    bench.run(first)
    if runs_out:
        bench.clock.ahead_ms = 60_000
    bench.run(second)
    assert [fact.cause for fact in bench.released()] == [ReleaseCause.NEVER_RAN] * runs_out


def test_a_start_whose_answer_never_came_is_unknown_until_the_next_list(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(vm_id: VmId) -> None:
        raise HypervisorTimeout("no answer within 60 s")

    async def story() -> None:
        monkeypatch.setattr(bench.hypervisor, "start_paused", hang)
        outcome = await bench.start()
        assert outcome.result is Result.UNKNOWN
        # libvirt lists it as off: with its grant taken away, what may still come never starts.
        await bench.until(lambda: len(bench.released()) == 1)
        assert read_grant(bench.paths.grant(WEB1)) is None

    bench.run(story)


def test_a_start_that_fails_leaves_no_qemu_and_releases(bench: Bench) -> None:
    async def story() -> None:
        bench.hypervisor.libvirt.starts_that_fail = 1
        outcome = await bench.start()
        assert outcome.result is Result.FAILED
        assert qemu(bench) is None
        assert read_grant(bench.paths.grant(WEB1)) is None
        await bench.until(lambda: bool(bench.released()))
        assert len(bench.released()) == 1

    bench.run(story)


def test_a_grant_that_runs_out_while_qemu_is_made_ends_it_before_it_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[VmId] = []
    real_start, real_run = bench.hypervisor.start_paused, bench.hypervisor.run

    async def slow(vm_id: VmId) -> None:
        await real_start(vm_id)
        bench.clock.ahead_ms = 60_000

    async def run(vm_id: VmId) -> None:
        ran.append(vm_id)
        await real_run(vm_id)

    monkeypatch.setattr(bench.hypervisor, "start_paused", slow)
    monkeypatch.setattr(bench.hypervisor, "run", run)

    async def story() -> None:
        outcome = await bench.do(StartVm(vm=bench.vm(), grant=bench.grant(), by="ann"))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.grant_expired")
        assert qemu(bench) is None
        assert ran == []
        await bench.until(lambda: bool(bench.released()))

    bench.run(story)


# Many orders


def test_no_order_is_left_without_an_answer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtha.agent.order_desk.IN_HAND_MAX", 3)

    async def story() -> None:
        await bench.listed()
        orders = [bench.order(ReleaseVm(vm_id=WEB1)) for _ in range(6)]
        for order in orders:
            bench.agent.on_order(order)
        await bench.until(lambda: all(bench.outcomes(order) for order in orders))
        answers = [bench.outcomes(order)[0].code for order in orders]
        assert answers == [None] * 3 + ["problem.unavailable"] * 3
        # Turned away is not carried out: the same order is, once there is room.
        assert (await bench.give(orders[5])).result is Result.OK

    bench.run(story)


# A start whose answer was lost, with its QEMU made and paused


async def left_paused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SimHost.start_paused

    async def unanswered(host: SimHost, vm_id: VmId) -> None:
        await real(host, vm_id)
        raise HypervisorTimeout("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(SimHost, "start_paused", unanswered)
        assert (await bench.start()).result is Result.UNKNOWN
    await bench.until(lambda: bench.state() == "paused")


@pytest.mark.req("G1", "G2")
def test_a_start_that_is_taken_back_leaves_no_qemu_that_never_ran(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept, it would hold the VM for ever: nobody lets it run, and nobody else may start it."""

    async def story() -> None:
        await left_paused(bench, monkeypatch)
        outcome = await bench.do(StartVm(vm=bench.vm(), grant=bench.grant(duration_ms=-1), by="a"))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.grant_expired")
        assert qemu(bench) is None
        await bench.until(lambda: len(bench.released()) == 1)
        assert bench.released()[0].cause is ReleaseCause.NEVER_RAN

    bench.run(story)


@pytest.mark.req("G2")
def test_a_start_that_comes_again_in_time_lets_run_what_the_first_one_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await left_paused(bench, monkeypatch)
        assert (await bench.start()).result is Result.OK
        await bench.until(lambda: bench.state() == "running")
        assert bench.released() == []

    bench.run(story)


@pytest.mark.req("G2")
def test_a_start_that_is_taken_back_ends_nothing_that_somebody_let_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await left_paused(bench, monkeypatch)
        domain = bench.hypervisor.libvirt.domain(WEB1)
        assert domain.qemu is not None
        domain.qemu.running, domain.state = True, DomainState.RUNNING  # the event is under way
        await bench.do(StartVm(vm=bench.vm(), grant=bench.grant(duration_ms=-1), by="ann"))
        assert qemu(bench) is not None and bench.released() == []

    bench.run(story)
