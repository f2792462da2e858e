"""This agent can't move running VMs yet: it says so for good, and nothing of such an order ever begins (ADR 10)."""

from agent_bench import WEB1, WEB2, Bench

from virtha.model.facts import MigrationReport, Result
from virtha.model.ids import HostId, Incarnation, OperationId
from virtha.model.orders import (
    MigrateVm,
    MigrationSide,
    MigrationWord,
    OrderBody,
    ReceiveVm,
    SettleMigration,
)

MOVE = OperationId("1.7")
UNSUPPORTED = (Result.REFUSED, "order.refused.unsupported")


def words(bench: Bench) -> list[tuple[int, Result]]:
    reports = [fact.body for fact in bench.facts() if isinstance(fact.body, MigrationReport)]
    return [(one.incarnation, one.result) for one in reports]


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


async def refused(bench: Bench, body: OrderBody) -> bool:
    outcome = await bench.do(body)
    return (outcome.result, outcome.code) == UNSUPPORTED


def test_a_copy_that_was_to_come_in_is_refused_and_released(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        receive = ReceiveVm(
            vm=bench.vm(WEB2, "web2"),
            migration_id=MOVE,
            grant=bench.grant(WEB2, incarnation=2),
            by="engine",
        )
        assert await refused(bench, receive)
        assert words(bench) == [(2, Result.REFUSED)]
        assert [one.incarnation for one in bench.released()] == [2]
        assert not list(bench.paths.grants.glob(f"*{WEB2}*")), "nothing may come in"

    bench.run(story)


def test_the_source_refuses_and_its_vm_runs_on(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        move = MigrateVm(
            vm_id=WEB1,
            migration_id=MOVE,
            incarnation=Incarnation(1),
            target=HostId("h2"),
            target_incarnation=Incarnation(2),
            deadline_ms=60_000,
            by="engine",
        )
        assert await refused(bench, move)
        for word in MigrationWord:
            assert await refused(bench, settle(bench, MigrationSide.SOURCE, word))
        assert set(words(bench)) == {(1, Result.REFUSED)}, "it goes on here, whatever was asked"
        assert bench.released() == []
        assert bench.state() == "running"

    bench.run(story)


def test_a_target_that_is_asked_says_that_nothing_came(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        assert await refused(bench, settle(bench, MigrationSide.TARGET, MigrationWord.CANCEL))
        assert words(bench) == [(2, Result.REFUSED)]
        assert [one.incarnation for one in bench.released()] == [2]

    bench.run(story)
