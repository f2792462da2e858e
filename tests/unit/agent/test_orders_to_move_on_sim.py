"""An agent lets copies of moving VMs in and sends its own away; the sentinel decides, libvirt is played (ADR 10, 14)."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from agent_bench import WEB1, WEB2, Bench, prepared, qemu

from virtha.agent import order_moves
from virtha.agent.order_power import PowerOrders
from virtha.agent.records import RecordStore
from virtha.model.errors import Unavailable
from virtha.model.facts import MigrationReport, Outcome, Result
from virtha.model.ids import BootId, HostId, Incarnation, OperationId
from virtha.model.orders import (
    MigrateVm,
    MigrationSide,
    MigrationWord,
    MoveDestination,
    ReceiveVm,
    SettleMigration,
    StartVm,
)
from virtha.model.vm import PossibleCopy

MOVE = OperationId("1.7")
HERE = MoveDestination(
    address="192.0.2.7",
    name="h1.migration.virtha",
    serial_directory="/s",
    data_uri="tcp://192.0.2.7",
)
THERE = MoveDestination(address="192.0.2.8", name="h2.migration.virtha", data_uri="tcp://192.0.2.8")
SOURCE = PossibleCopy(host_id=HostId("h2"), incarnation=Incarnation(1), boot=BootId("boot-9"))


def words(bench: Bench) -> list[tuple[int, Result, str | None]]:
    reports = [fact.body for fact in bench.facts() if isinstance(fact.body, MigrationReport)]
    return [(one.incarnation, one.result, one.code) for one in reports]


def receive(bench: Bench, **changes: Any) -> ReceiveVm:
    vm = bench.vm(WEB2, "web2", disks=(bench.disk("disks/web2.qcow2"),))
    grant = bench.grant(WEB2, incarnation=2, **changes)
    return ReceiveVm(vm=vm, migration_id=MOVE, grant=grant, by="engine", source=SOURCE)


def migrate(**changes: Any) -> MigrateVm:
    values: dict[str, Any] = {
        "vm_id": WEB1,
        "migration_id": MOVE,
        "incarnation": Incarnation(1),
        "target": HostId("h2"),
        "target_incarnation": Incarnation(2),
        "deadline_ms": 60_000,
        "by": "engine",
        "target_boot": BootId("boot-9"),
        "destination": THERE,
    }
    return MigrateVm(**{**values, **changes})


def settle(bench: Bench, side: MigrationSide, word: MigrationWord) -> SettleMigration:
    source = side is MigrationSide.SOURCE
    return SettleMigration(
        vm=bench.vm() if source else bench.vm(WEB2, "web2"),
        migration_id=MOVE,
        side=side,
        incarnation=Incarnation(1 if source else 2),
        target_incarnation=Incarnation(2),
        word=word,
    )


async def told(bench: Bench, side: MigrationSide, word: MigrationWord) -> Outcome:
    return await bench.do(settle(bench, side, word))


def grant_state(bench: Bench, vm_id: Any = WEB2) -> str | None:
    grant = bench.agent.host.gate.grants().get(vm_id)
    return None if grant is None else grant.state.value


# Target


def test_a_copy_comes_in_runs_and_is_claimed(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        outcome = await bench.do(receive(bench))
        assert outcome.result is Result.OK, outcome
        assert outcome.fields == {
            "address": "192.0.2.7",
            "name": "h1.migration.virtha",
            "serial_directory": "/s",
            "data_uri": "tcp://192.0.2.7",
        }
        libvirt = bench.hypervisor.libvirt
        libvirt.receive(WEB2, uptime_ms=5_000)
        assert grant_state(bench) == "arriving"
        libvirt.go_on(WEB2)
        await bench.until(lambda: words(bench) == [(2, Result.OK, None)])
        await bench.until(lambda: grant_state(bench) == "held")
        await bench.until(lambda: bench.state(WEB2) == "running")
        domain = bench.paths.state.parents[3] / "ds1"
        # The grant is held first, the storage learns of it next: its header may not be there yet.
        await bench.until(
            lambda: any('"incarnation":2' in one.read_text() for one in domain.rglob(f"*{WEB2}*"))
        )

    bench.run(story)


def test_the_grant_to_receive_starts_nothing_here(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        with pytest.raises(Exception, match=r"gate\.refused"):
            bench.hypervisor.libvirt.start_paused(WEB2)

    bench.run(story)


def test_a_copy_that_dies_on_its_way_is_given_back(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        bench.hypervisor.libvirt.drop_part(WEB2)
        await bench.until(lambda: words(bench) == [(2, Result.FAILED, "migration.failed")])
        await bench.until(lambda: [one.incarnation for one in bench.released()] == [2])

    bench.run(story)


def test_cancelled_before_it_came_nothing_comes_in_any_more(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        await told(bench, MigrationSide.TARGET, MigrationWord.CANCEL)
        await bench.until(lambda: words(bench) == [(2, Result.FAILED, "migration.failed")])
        with pytest.raises(Exception, match=r"gate\.refused"):
            bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)

    bench.run(story)


def test_cancelled_while_it_stands_it_is_ended(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        await told(bench, MigrationSide.TARGET, MigrationWord.CANCEL)
        assert qemu(bench, WEB2) is None
        await bench.until(lambda: words(bench) == [(2, Result.FAILED, "migration.failed")])

    bench.run(story)


def test_a_copy_that_runs_is_not_ended_by_a_late_cancel(bench: Bench) -> None:
    bench.destination = HERE

    async def story() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        bench.hypervisor.libvirt.go_on(WEB2)
        await bench.until(lambda: words(bench) == [(2, Result.OK, None)])
        await told(bench, MigrationSide.TARGET, MigrationWord.CANCEL)
        assert words(bench)[-1] == (2, Result.OK, None)
        assert qemu(bench, WEB2) is not None

    bench.run(story)


@pytest.mark.bad_input("death in a move")
def test_an_agent_that_died_before_the_arrival_still_takes_it(bench: Bench) -> None:
    bench.destination = HERE

    async def accepted() -> None:
        await prepared(bench)
        await bench.do(receive(bench))

    async def arrives() -> None:
        await bench.until(lambda: grant_state(bench) == "held")
        await bench.until(lambda: bench.state(WEB2) == "running")

    bench.run(accepted)
    bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
    bench.hypervisor.libvirt.go_on(WEB2)
    bench.run(arrives)


@pytest.mark.bad_input("death in a move")
def test_an_agent_that_died_before_its_storage_knew_of_the_arrival_tells_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.destination = HERE

    async def stalls(*_: object) -> None:
        raise Unavailable("it hangs")

    async def arrives() -> None:
        await prepared(bench)
        await bench.do(receive(bench))
        bench.hypervisor.libvirt.receive(WEB2, uptime_ms=5_000)
        bench.hypervisor.libvirt.go_on(WEB2)
        await bench.until(lambda: grant_state(bench) == "held")

    async def after() -> None:
        domain = bench.paths.state.parents[3] / "ds1"
        await bench.until(
            lambda: any('"incarnation":2' in one.read_text() for one in domain.rglob(f"*{WEB2}*"))
        )

    with monkeypatch.context() as storage:
        storage.setattr(PowerOrders, "claim", stalls)
        bench.run(arrives)
    bench.run(after)


@pytest.mark.bad_input("host that can't take a move")
@pytest.mark.parametrize(
    ("why", "code"),
    [
        ("not set up", "order.refused.migration_setup"),
        ("no storage", None),
        ("runs here", "order.refused.running"),
        ("late", "order.refused.grant_expired"),
    ],
)
def test_a_target_that_can_t_refuses_for_good(bench: Bench, why: str, code: str | None) -> None:
    bench.destination = None if why == "not set up" else HERE

    async def story() -> None:
        if why != "no storage":
            await prepared(bench)
        if why == "runs here":
            outcome = await bench.start(bench.vm(WEB2, "web2"))
            assert outcome.result is Result.OK
        late = {"duration_ms": 0} if why == "late" else {}
        outcome = await bench.do(receive(bench, **late))
        assert outcome.result is not Result.OK
        assert code is None or outcome.code == code
        if why != "runs here":
            await bench.until(lambda: [one.incarnation for one in bench.released()] == [2])
            await bench.until(lambda: [one[:2] for one in words(bench)] == [(2, Result.REFUSED)])
            assert grant_state(bench) is None, "nothing may come in"

    bench.run(story)


def test_a_target_that_is_asked_of_what_it_does_not_know_says_that_nothing_came(
    bench: Bench,
) -> None:
    async def story() -> None:
        await bench.start()
        await told(bench, MigrationSide.TARGET, MigrationWord.CANCEL)
        assert [one[:2] for one in words(bench)] == [(2, Result.REFUSED)]
        assert [one.incarnation for one in bench.released()] == [2]

    bench.run(story)


# Source


def moving(bench: Bench, then: Callable[[], Any]) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(migrate())
        assert outcome.result is Result.OK, outcome
        await bench.until(lambda: bench.moves.begun.get(WEB1) == THERE)
        await then()

    bench.run(story)


def test_a_vm_is_handed_over(bench: Bench) -> None:
    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        bench.hypervisor.libvirt.handed_over(WEB1)
        bench.moves.end(WEB1, Result.OK)
        await bench.until(lambda: words(bench) == [(1, Result.OK, None)])
        await bench.until(lambda: [one.incarnation for one in bench.released()] == [1])

    moving(bench, then)


def test_a_vm_that_comes_back_at_once_is_let_in(bench: Bench) -> None:
    """What is left to be tidied up of the copy that left does not touch the grant of the one that comes."""
    bench.destination = HERE

    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        bench.hypervisor.libvirt.handed_over(WEB1)
        bench.moves.end(WEB1, Result.OK)
        await bench.until(lambda: [one.incarnation for one in bench.released()] == [1])
        order = ReceiveVm(
            vm=bench.vm(),
            migration_id=OperationId("1.8"),
            grant=bench.grant(WEB1, incarnation=3),
            by="engine",
            source=SOURCE,
        )
        assert (await bench.do(order)).result is Result.OK
        await bench.over(f"grant of {WEB1}")
        assert grant_state(bench, WEB1) == "arriving"
        bench.hypervisor.libvirt.receive(WEB1, uptime_ms=5_000)
        bench.hypervisor.libvirt.go_on(WEB1)
        await bench.until(lambda: words(bench)[-1] == (3, Result.OK, None))

    moving(bench, then)


def test_a_move_that_fails_leaves_it_running(bench: Bench) -> None:
    async def then() -> None:
        bench.moves.end(WEB1, Result.FAILED, "migration.ended.no_room")
        await bench.until(lambda: words(bench) == [(1, Result.FAILED, "migration.ended.no_room")])
        assert bench.state() == "running"
        assert bench.released() == []

    moving(bench, then)


@pytest.mark.req("S6", "G6")
@pytest.mark.parametrize("asked", [True, False])
def test_a_guest_that_was_paused_stays_paused_and_the_move_says_why(
    bench: Bench, asked: bool
) -> None:
    """``asked``: its target was quicker to say that nothing came, so the server tells this side to go on."""

    async def then() -> None:
        bench.hypervisor.libvirt.pause(WEB1)
        bench.moves.end(WEB1, Result.FAILED, "migration.ended.paused")
        await bench.until(lambda: bench.moves.over == [WEB1])
        if asked:
            await told(bench, MigrationSide.SOURCE, MigrationWord.RUN)
        await bench.until(lambda: words(bench) == [(1, Result.FAILED, "migration.ended.paused")])
        copy = qemu(bench)
        assert copy is not None
        assert not copy.running
        assert bench.state() == "paused"
        assert bench.released() == []

    moving(bench, then)


def test_a_source_without_an_answer_stands_still_until_told(bench: Bench) -> None:
    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        bench.moves.end(WEB1, Result.UNKNOWN)
        await bench.until(lambda: words(bench) == [(1, Result.UNKNOWN, None)])
        await told(bench, MigrationSide.SOURCE, MigrationWord.CANCEL)
        assert words(bench)[-1] == (1, Result.UNKNOWN, None)
        copy = qemu(bench)
        assert copy is not None
        assert not copy.running
        await told(bench, MigrationSide.SOURCE, MigrationWord.RUN)
        assert copy.running
        await bench.until(lambda: words(bench)[-1][:2] == (1, Result.FAILED))
        await bench.until(lambda: bench.state() == "running")

    moving(bench, then)


def test_a_source_whose_target_runs_is_ended(bench: Bench) -> None:
    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        bench.moves.end(WEB1, Result.UNKNOWN)
        await bench.until(lambda: words(bench) == [(1, Result.UNKNOWN, None)])
        await told(bench, MigrationSide.SOURCE, MigrationWord.END)
        assert qemu(bench) is None
        await bench.until(lambda: [one.incarnation for one in bench.released()] == [1])

    moving(bench, then)


def test_who_leads_it_still_is_sent_away_before_the_word_is_done(bench: Bench) -> None:
    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        await told(bench, MigrationSide.SOURCE, MigrationWord.END)
        assert bench.moves.left == [WEB1]
        assert qemu(bench) is None

    moving(bench, then)


def test_a_source_that_libvirt_let_run_on_is_not_ended(bench: Bench) -> None:
    """It was seen standing, but its leader was sent away before all was sent: libvirt undoes that."""

    async def then() -> None:
        bench.hypervisor.libvirt.stand_still(WEB1)
        leave = bench.moves.leave_move

        async def and_undo(vm_id: Any) -> None:
            await leave(vm_id)
            bench.hypervisor.libvirt.go_on(vm_id)

        bench.moves.leave_move = and_undo
        await told(bench, MigrationSide.SOURCE, MigrationWord.END)
        copy = qemu(bench)
        assert copy is not None
        assert copy.running
        await bench.until(lambda: [one[:2] for one in words(bench)] == [(1, Result.FAILED)])

    moving(bench, then)


def test_a_cancel_ends_the_attempt_and_says_why(bench: Bench) -> None:
    async def then() -> None:
        await told(bench, MigrationSide.SOURCE, MigrationWord.CANCEL)
        assert bench.moves.aborted == [WEB1]
        await bench.until(lambda: words(bench) == [(1, Result.FAILED, "migration.ended.cancelled")])

    moving(bench, then)


def test_a_leader_that_waits_for_a_silent_target_is_sent_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt has nothing to abort before its target is prepared, and asks the target to end its part afterwards."""
    monkeypatch.setattr(order_moves, "ENDS_S", 0.05)

    async def then() -> None:
        async def in_vain(vm_id: Any) -> None:
            bench.moves.aborted.append(vm_id)

        bench.moves.abort_move = in_vain
        for _ in range(2):
            await told(bench, MigrationSide.SOURCE, MigrationWord.CANCEL)
        await bench.until(lambda: bool(words(bench)))
        # Told again, should the second come after its end.
        assert set(words(bench)) == {(1, Result.FAILED, "migration.ended.cancelled")}
        assert bench.moves.left == [WEB1]
        assert bench.state() == "running"

    moving(bench, then)


def test_a_leader_whose_source_stands_still_is_left_alone_by_a_cancel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_moves, "ENDS_S", 0.05)

    async def then() -> None:
        asked = []

        async def too_late(vm_id: Any) -> None:
            bench.hypervisor.libvirt.stand_still(vm_id)
            asked.append(vm_id)

        bench.moves.abort_move = too_late
        await told(bench, MigrationSide.SOURCE, MigrationWord.CANCEL)
        await bench.until(lambda: bool(asked))
        await bench.over(f"see the end of the move of {WEB1}")
        assert bench.moves.left == [], "its target may be about to say that it runs"

    moving(bench, then)


def test_a_move_that_takes_too_long_is_ended(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        await bench.do(migrate(deadline_ms=300))
        await bench.until(lambda: words(bench) == [(1, Result.FAILED, "migration.ended.late")])
        assert bench.moves.aborted == [WEB1]

    bench.run(story)


@pytest.mark.bad_input("death in a move")
def test_the_next_agent_restarts_nothing_of_a_vm_that_is_moving(bench: Bench) -> None:
    async def begun() -> None:
        await bench.start()
        await bench.do(migrate())
        await bench.until(lambda: WEB1 in bench.moves.begun)

    async def after() -> None:
        await bench.listed()
        bench.hypervisor.libvirt.stand_still(WEB1)
        bench.hypervisor.libvirt.handed_over(WEB1)
        bench.moves.end(WEB1, Result.OK)
        await bench.until(lambda: [one.incarnation for one in bench.released()] == [1])
        assert qemu(bench) is None
        assert (1, Result.OK, None) in words(bench)

    bench.run(begun)
    bench.run(after)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"destination": None}, "order.refused.unsupported"),
        ({"incarnation": Incarnation(3)}, "order.refused.incarnation"),
        ({"target_incarnation": Incarnation(1)}, "order.refused.migration"),
    ],
)
def test_a_source_refuses_and_its_vm_runs_on(
    bench: Bench, changes: dict[str, Any], code: str
) -> None:
    async def story() -> None:
        await bench.start()
        outcome = await bench.do(migrate(**changes))
        assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        assert WEB1 not in bench.moves.begun
        await bench.until(lambda: bench.state() == "running")
        assert all(one.incarnation != 1 for one in bench.released())

    bench.run(story)


@pytest.mark.bad_input
def test_a_source_that_can_t_write_its_mark_moves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await bench.start()

        def no_space(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        with monkeypatch.context() as full:
            full.setattr(RecordStore, "write", no_space)
            outcome = await bench.do(migrate())
        assert outcome.result is Result.FAILED, outcome
        assert WEB1 not in bench.moves.begun
        await bench.until(lambda: [one[:2] for one in words(bench)] == [(1, Result.FAILED)])
        await bench.until(lambda: bench.state() == "running")

    bench.run(story)


def test_a_source_that_was_asked_first_begins_nothing_later(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        for word in MigrationWord:
            await told(bench, MigrationSide.SOURCE, word)
        assert {one[:2] for one in words(bench)} == {(1, Result.REFUSED)}
        outcome = await bench.do(migrate())
        assert outcome.code == "order.refused.migration"
        await bench.until(lambda: bench.state() == "running")

    bench.run(story)


def test_a_vm_that_moves_is_not_moved_twice_and_a_start_of_it_is_refused(bench: Bench) -> None:
    async def then() -> None:
        again = await bench.do(
            migrate(migration_id=OperationId("1.8"), target_incarnation=Incarnation(3))
        )
        assert again.code == "order.refused.state"
        start = await bench.do(StartVm(vm=bench.vm(), grant=bench.grant(incarnation=4), by="ann"))
        assert start.result is Result.REFUSED

    moving(bench, then)
