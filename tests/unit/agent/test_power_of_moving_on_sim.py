"""What a person orders of a VM that moves: each side does it to the guest that it has, if it has one (G6)."""

import pytest
from agent_bench import WEB1, WEB2, Bench, prepared, qemu, stop
from test_orders_to_move_on_sim import HERE, grant_state, moving, receive, words

from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import Incarnation
from virtha.model.orders import PauseVm, RebootMode, RebootVm, ResumeVm, StopMode
from virtha.sentinel.events import StopMark


@pytest.mark.req("G6")
def test_powered_off_before_it_came_nothing_comes_in_any_more(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        late = await bench.do(stop(WEB2, incarnation=1))
        assert late.code == "order.refused.incarnation", "that was for the copy before"
        assert grant_state(bench) == "arriving"
        assert (await bench.do(stop(WEB2, incarnation=2))).result is Result.OK
        assert words(bench) == [(2, Result.FAILED, "migration.failed")]
        assert [one.incarnation for one in bench.released()] == [2]
        with pytest.raises(Exception, match=r"gate\.refused"):
            bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)

    bench.run(story)


@pytest.mark.req("G6")
@pytest.mark.parametrize("runs", [False, True])
def test_powered_off_while_it_comes_or_has_come_it_is_ended(bench: Bench, runs: bool) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        if runs:
            bench.hypervisor.libvirt.go_on(WEB2)
        assert (await bench.do(stop(WEB2, incarnation=2))).result is Result.OK
        assert qemu(bench, WEB2) is None
        (released,) = bench.released()
        cause = ReleaseCause.INTENDED if runs else ReleaseCause.NEVER_RAN
        assert (released.incarnation, released.cause) == (2, cause)
        told = (2, Result.OK, None) if runs else (2, Result.FAILED, "migration.failed")
        assert words(bench) == [told]

    bench.run(story)


def mark(bench: Bench) -> StopMark | None:
    record = bench.agent.host.loop.record(WEB2)
    return None if record is None else record.stop


def test_a_shutdown_asks_no_guest_that_is_still_to_come(bench: Bench) -> None:
    """It is asked where it runs; a move goes on, should it not heed that."""
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        ask = stop(WEB2, StopMode.SHUTDOWN, incarnation=2)
        assert (await bench.do(ask)).result is Result.OK, "there is nothing of it here"
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        before = mark(bench)
        order = bench.order(stop(WEB2, StopMode.SHUTDOWN, incarnation=2, deadline_ms=200_000))
        bench.agent.on_order(order)
        await bench.until(lambda: mark(bench) != before)
        bench.hypervisor.libvirt.go_on(WEB2)
        await bench.until(lambda: words(bench) == [(2, Result.OK, None)])
        assert not bench.outcomes(order), "it runs on"
        bench.hypervisor.libvirt.guest_shutdown(WEB2)
        await bench.until(lambda: bool(bench.outcomes(order)))
        assert bench.outcomes(order)[0].result is Result.OK

    bench.run(story)


@pytest.mark.req("G6")
def test_a_person_s_resume_lets_neither_side_of_a_move_run(bench: Bench) -> None:
    """Its target may run: only the server's word on the move, with the other side's end, lets it run here."""
    bench.destination = HERE

    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        bench.moves.end(WEB1, Result.UNKNOWN)
        await bench.until(lambda: words(bench) == [(1, Result.UNKNOWN, None)])
        await prepared(bench)
        await bench.do(receive(bench))
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        for vm_id in (WEB1, WEB2):
            order = ResumeVm(vm_id=vm_id, incarnation=Incarnation(2), by="ann")
            outcome = await bench.do(order)
            copy = qemu(bench, vm_id)
            assert copy is not None
            assert not copy.running, "a second writer"
            assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.vm.state")

    moving(bench, then)


@pytest.mark.bad_input
def test_a_vm_that_moves_is_not_paused_and_rebooted_only_where_it_runs(bench: Bench) -> None:
    """libvirt loses a pause of its source, or brings it to a target that then never runs."""
    one = Incarnation(1)
    pause = PauseVm(vm_id=WEB1, incarnation=one, by="ann")
    reset = RebootVm(vm_id=WEB1, incarnation=one, mode=RebootMode.RESET, by="ann")

    async def then() -> None:
        refused = (Result.REFUSED, "problem.vm.state")
        outcome = await bench.do(pause)
        assert (outcome.result, outcome.code) == refused
        copy = qemu(bench)
        assert copy is not None
        assert copy.running
        assert (await bench.do(reset)).result is Result.OK
        bench.hypervisor.libvirt.stand_still(WEB1)
        await bench.until(lambda: bench.state() == "paused")
        for order in (pause, reset):
            outcome = await bench.do(order)
            assert (outcome.result, outcome.code) == refused
        assert "vm.paused" not in bench.codes()

    moving(bench, then)
