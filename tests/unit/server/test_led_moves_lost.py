"""Orders of moves that are lost between the server and its hosts: nobody sends them again, and nobody waits for the deadline."""

from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, PlayedHost
from test_led_moves import LET_IN, arrives, asked, begun, given, moves_of, play, refused, state

from virtha.control.requests import VmMigrate
from virtha.model.facts import Outcome, Result
from virtha.model.ids import HostId
from virtha.model.operation import Operation, OperationState
from virtha.model.orders import MigrateVm, Order, ReceiveVm, SettleMigration
from virtha.wire.messages import PeerRole

SOON_MS = 20_000


async def comes_back(host: PlayedHost) -> None:
    """Its sessions break, and others begin."""
    host.vanish()
    await host.hello()
    await host.world.settle()


async def failed(world: LedWorld, operation: Operation) -> None:
    ended = await state(world, operation)
    assert (ended.state, ended.code) == (OperationState.FAILED, "migration.ended.lost")
    assert ended.message.endswith("; it runs on where it was")
    assert (await world.vm()).status.holders == (world.hosts["h1"].id,)


@pytest.mark.req("X1")
@pytest.mark.bad_input("death in a move")
def test_a_target_whose_session_broke_on_its_order_is_asked(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation = await asked(world, host="h2")
        assert given(world.hosts["h2"], ReceiveVm) != []
        since = world.clock.now
        await comes_back(world.hosts["h2"])
        await refused(world, "h2")
        await refused(world, "h1")
        assert world.clock.now - since <= SOON_MS
        await failed(world, operation)

    play(tmp_path, story)


@pytest.mark.req("X1")
@pytest.mark.bad_input("death in a move")
def test_a_source_whose_session_broke_on_its_order_is_asked(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation = await asked(world, host="h2")
        (receive,) = given(world.hosts["h2"], ReceiveVm)
        await world.hosts["h2"].answer(receive, fields=LET_IN)
        await world.settle()
        assert given(world.hosts["h1"], MigrateVm) != []
        since = world.clock.now
        await comes_back(world.hosts["h1"])
        await refused(world, "h1")
        assert world.clock.now - since <= SOON_MS
        await refused(world, "h2")
        await failed(world, operation)

    play(tmp_path, story)


def test_sessions_that_break_while_it_is_under_way_make_nobody_ask(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation, body = await begun(world)
        for host in world.hosts.values():
            await comes_back(host)
        for _ in range(6):
            await world.pass_time(5_000, beating=("h1", "h2"))
        for host in world.hosts.values():
            assert given(host, SettleMigration) == []
        await arrives(world, body)
        assert (await state(world, operation)).state is OperationState.DONE

    play(tmp_path, story)


def test_an_answer_that_comes_with_the_next_session_is_followed(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation = await asked(world, host="h2")
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        (receive,) = given(h2, ReceiveVm)
        h2.vanish()
        await world.settle()
        await h2.hello()
        await h2.answer(receive, fields=LET_IN)
        await world.settle()
        (migrate,) = given(h1, MigrateVm)
        await h1.answer(migrate)
        for _ in range(3):
            await world.pass_time(5_000, beating=("h1", "h2"))
        assert given(h1, SettleMigration) == given(h2, SettleMigration) == []
        assert isinstance(migrate.body, MigrateVm)
        await arrives(world, migrate.body)
        assert (await state(world, operation)).state is OperationState.DONE

    play(tmp_path, story)


def test_an_answer_to_an_order_of_a_former_move_orders_nothing(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await asked(world, host="h2")
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        (former,) = given(h2, ReceiveVm)
        await comes_back(h2)
        await refused(world, "h2")
        await refused(world, "h1")
        second = await asked(world, host="h2")
        assert not second.is_over and len(given(h2, ReceiveVm)) == 2
        await h2.answer(former, fields=LET_IN)
        await world.settle()
        assert given(h1, MigrateVm) == []

    play(tmp_path, story)


@pytest.mark.parametrize("side", ["h2", "h1"])
def test_an_order_that_certainly_goes_nowhere_is_told_at_once(tmp_path: Path, side: str) -> None:
    """Its session ends between the look at it and the sending."""

    async def story(world: LedWorld) -> None:
        deliver, host = world.gateway.deliver, world.hosts[side]

        def gone(host_id: HostId, order: Order) -> bool:
            if host_id == host.id and isinstance(order.body, ReceiveVm | MigrateVm):
                del world.gateway.up[host.id][PeerRole.AGENT]
            return deliver(host_id, order)

        world.gateway.deliver = gone  # type: ignore[method-assign]  # a session that ends in between
        await world.control.moves.migrate(ADMIN, "web1", VmMigrate(host="h2"))
        await world.settle()
        (operation,) = await moves_of(world)
        if side == "h1":
            (receive,) = given(world.hosts["h2"], ReceiveVm)
            await world.hosts["h2"].answer(receive, fields=LET_IN)
            await world.settle()
        assert given(host, ReceiveVm | MigrateVm) == []
        world.gateway.up[host.id][PeerRole.AGENT] = host.boot
        await refused(world, "h1" if side == "h2" else "h2")
        ended = await state(world, operation)
        assert (ended.state, ended.code) == (OperationState.FAILED, "migration.ended.unsent")

    play(tmp_path, story)


@pytest.mark.parametrize("side", ["h2", "h1"])
def test_a_side_that_answers_that_it_could_not_is_asked(tmp_path: Path, side: str) -> None:
    """libvirt did not answer in time, say: nothing of the move may be written down there."""

    async def story(world: LedWorld) -> None:
        operation = await asked(world, host="h2")
        (receive,) = given(world.hosts["h2"], ReceiveVm)
        if side == "h2":
            order = receive
        else:
            await world.hosts["h2"].answer(receive, fields=LET_IN)
            await world.settle()
            (order,) = given(world.hosts["h1"], MigrateVm)
        host = world.hosts[side]
        await host.tell(
            Outcome(
                operation_id=order.operation_id,
                step=order.step,
                result=Result.UNKNOWN,
                code="problem.unavailable",
            )
        )
        await refused(world, side)
        await refused(world, "h1" if side == "h2" else "h2")
        assert (await state(world, operation)).state is OperationState.FAILED

    play(tmp_path, story)
