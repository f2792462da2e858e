"""A person moves a VM: the engine orders it of both hosts, and the operation follows what becomes of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import led_world
import msgspec
import pytest
from able_host import ABLE
from led_world import ADMIN, LedWorld, PlayedHost

from virtha.control.requests import MaintenanceChange, OperationQuery, VmMigrate
from virtha.model.codes import render
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import (
    HostReport,
    Inventory,
    MigrationReport,
    Progress,
    ReleaseCause,
    Released,
    Result,
    VmReport,
)
from virtha.model.host import HostState
from virtha.model.ids import Incarnation, VmId
from virtha.model.operation import Operation, OperationState
from virtha.model.orders import (
    MigrateVm,
    MigrationSide,
    MoveDestination,
    Order,
    PauseVm,
    RebootVm,
    ReceiveVm,
    SettleMigration,
    StartVm,
    StopVm,
)
from virtha.model.vm import VmState
from virtha.store.vms import definitions
from virtha.wire.messages import PeerRole

LET_IN = {"address": "10.0.0.2", "name": "h2.migration.virtha", "data_uri": "tcp://10.0.0.2"}


def play(tmp_path: Path, story: Callable[[LedWorld], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with led_world.led_world(tmp_path) as world:
            await led_world.two_hosts_and_a_vm(world)
            await story(world)

    asyncio.run(whole())


def given(host: PlayedHost, kind: type) -> list[Order]:
    return [order for order in host.orders if isinstance(order.body, kind)]


async def asked(world: LedWorld, **request: Any) -> Operation:
    operation = await world.control.moves.migrate(ADMIN, "web1", VmMigrate(**request))
    await world.settle()
    return operation


async def begun(world: LedWorld, **request: Any) -> tuple[Operation, MigrateVm]:
    operation = await asked(world, host="h2", **request)
    (receive,) = given(world.hosts["h2"], ReceiveVm)
    await world.hosts["h2"].answer(receive, fields=LET_IN)
    await world.settle()
    (migrate,) = given(world.hosts["h1"], MigrateVm)
    await world.hosts["h1"].answer(migrate)
    await world.settle()
    assert isinstance(migrate.body, MigrateVm)
    return operation, migrate.body


async def state(world: LedWorld, operation: Operation) -> Operation:
    await world.settle()
    return await world.control.operations.get(operation.id)


async def moves_of(world: LedWorld) -> list[Operation]:
    found = (await world.control.operations.list(OperationQuery())).items
    return [one for one in found if one.kind == "vm.migrate"]


async def arrives(world: LedWorld, body: MigrateVm) -> None:
    h1, h2 = world.hosts["h1"], world.hosts["h2"]
    vm_id, move = body.vm_id, body.migration_id
    await h2.tell(
        MigrationReport(
            migration_id=move, vm_id=vm_id, incarnation=body.target_incarnation, result=Result.OK
        ),
        VmReport(vm_id=vm_id, incarnation=body.target_incarnation, state=VmState.RUNNING),
    )
    await h1.tell(
        MigrationReport(
            migration_id=move, vm_id=vm_id, incarnation=body.incarnation, result=Result.OK
        ),
        Released(vm_id=vm_id, incarnation=body.incarnation, cause=ReleaseCause.MOVED),
    )
    await world.settle()


def test_a_vm_is_moved(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation, body = await begun(world, bandwidth_mib_s=25)
        assert operation.state is OperationState.RUNNING
        assert body.destination == MoveDestination(**LET_IN, bandwidth_mib_s=25)
        assert body.progress_of == operation.id
        await world.hosts["h1"].tell(Progress(operation_id=operation.id, step=0, percent=40))
        assert (await state(world, operation)).progress == 40
        await arrives(world, body)
        ended = await state(world, operation)
        assert (ended.state, ended.code, ended.progress) == (OperationState.DONE, None, 100)
        vm = await world.vm()
        assert vm.status.holders == (world.hosts["h2"].id,)
        again = await asked(world, host="h1")
        assert again.state is OperationState.RUNNING, "and it can be moved back"
        async with world.store.read() as tx:
            known = await definitions(tx, vm.vm.id)
        assert world.hosts["h2"].id in known, (
            "its domain is forgotten there, too, when it is deleted"
        )

    play(tmp_path, story)


def listed(world: LedWorld, vm_id: VmId, state: DomainState) -> Inventory:
    host = world.hosts["h1"]
    report = DomainReport(vm_id=vm_id, name="web1", state=state)
    return Inventory(revision=host.sequence + 1, domains=(report,))


@pytest.mark.req("G1", "M2")
def test_a_source_that_says_how_fit_it_is_after_it_gave_its_copy_back_is_no_holder_again(
    tmp_path: Path,
) -> None:
    """Its last list still names what has left; the next one comes later."""

    async def story(world: LedWorld) -> None:
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.tell_all((await world.vm()).vm.id)
        _, body = await begun(world)
        await arrives(world, body)
        await h1.tell(
            HostReport(capabilities=msgspec.structs.replace(ABLE, libvirt_connected=False))
        )
        await world.settle()
        assert (await world.vm()).status.holders == (h2.id,)
        await h1.tell_all()
        await world.settle()
        assert (await world.vm()).status.holders == (h2.id,)
        assert await world.events("vm.found") == []

    play(tmp_path, story)


@pytest.mark.req("G1")
@pytest.mark.parametrize("list_first", [True, False])
def test_a_source_that_seems_to_run_it_again_for_a_moment_is_no_holder_for_good(
    tmp_path: Path, list_first: bool
) -> None:
    """Its libvirtd began anew, and listed what has left; then its agent saw that nothing is there."""

    async def story(world: LedWorld) -> None:
        _, body = await begun(world)
        await arrives(world, body)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        vm_id, former = body.vm_id, body.incarnation
        up = VmReport(vm_id=vm_id, incarnation=former, state=VmState.RUNNING)
        seen = [listed(world, vm_id, DomainState.RUNNING), up]
        for fact in seen if list_first else reversed(seen):
            await h1.tell(fact)
            await world.settle(1)
        await h1.tell(msgspec.structs.replace(up, guest_agent=False))
        await world.settle()
        status = (await world.vm()).status
        assert set(status.holders) == {h1.id, h2.id}, "it may run there"
        assert (status.host_id, status.state) == (h2.id, VmState.RUNNING)
        await h1.tell(
            Released(vm_id=vm_id, incarnation=former, cause=ReleaseCause.ENDED),
            VmReport(vm_id=vm_id, incarnation=former, state=VmState.DOWN),
            listed(world, vm_id, DomainState.SHUTOFF),
        )
        await world.settle()
        status = (await world.vm()).status
        assert status.holders == (h2.id,)
        assert (status.host_id, status.state) == (h2.id, VmState.RUNNING)
        again = await asked(world, host="h1")
        assert again.state is OperationState.RUNNING, "it can be moved"

    play(tmp_path, story)


@pytest.mark.bad_input("host that can't take a move")
@pytest.mark.parametrize("why", ["migration.ended.no_room", "migration.ended.cpu"])
def test_a_move_that_fails_says_why_and_leaves_it(tmp_path: Path, why: str) -> None:
    async def story(world: LedWorld) -> None:
        operation, body = await begun(world)
        await world.hosts["h1"].tell(
            MigrationReport(
                migration_id=body.migration_id,
                vm_id=body.vm_id,
                incarnation=body.incarnation,
                result=Result.FAILED,
                code=why,
            )
        )
        await world.settle()
        assert not (await state(world, operation)).is_over, "its target is asked first"
        assert given(world.hosts["h2"], SettleMigration)
        await world.hosts["h2"].tell(
            MigrationReport(
                migration_id=body.migration_id,
                vm_id=body.vm_id,
                incarnation=body.target_incarnation,
                result=Result.FAILED,
                code="migration.failed",
            ),
            Released(
                vm_id=body.vm_id,
                incarnation=body.target_incarnation,
                cause=ReleaseCause.NEVER_RAN,
            ),
        )
        ended = await state(world, operation)
        assert (ended.state, ended.code) == (OperationState.FAILED, why)
        assert ended.message == f"{render(why, {})}; it runs on where it was"
        assert (await world.vm()).status.holders == (world.hosts["h1"].id,)

    play(tmp_path, story)


def test_a_target_that_refuses_ends_it(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation = await asked(world, host="h2")
        (receive,) = given(world.hosts["h2"], ReceiveVm)
        assert isinstance(receive.body, ReceiveVm)
        code = "order.refused.migration_setup"
        await world.hosts["h2"].tell(
            MigrationReport(
                migration_id=receive.body.migration_id,
                vm_id=receive.body.vm.id,
                incarnation=receive.body.grant.incarnation,
                result=Result.REFUSED,
                code=code,
            )
        )
        await world.hosts["h2"].answer(receive, Result.REFUSED, code=code)
        await world.settle()
        assert given(world.hosts["h1"], MigrateVm) == []
        h1 = world.hosts["h1"]
        await settled(world, h1)
        await h1.tell(
            MigrationReport(
                migration_id=receive.body.migration_id,
                vm_id=receive.body.vm.id,
                incarnation=Incarnation(1),
                result=Result.REFUSED,
                code="order.refused.migration",
            )
        )
        ended = await state(world, operation)
        assert (ended.state, ended.code) == (OperationState.FAILED, code)

    play(tmp_path, story)


async def _unlet_in(world: LedWorld) -> None:
    """Nobody hears of it: h2's session has ended, and that was not told to the engine yet."""
    await world.control.moves.migrate(ADMIN, "web1", VmMigrate(host="h2"))
    del world.gateway.up[world.hosts["h2"].id][PeerRole.AGENT]
    await world.settle()
    assert given(world.hosts["h2"], ReceiveVm) == []


async def _unread(world: LedWorld) -> None:
    """h2's agent refuses the order by its number, and no sentinel hears of it."""
    await asked(world, host="h2")
    (receive,) = given(world.hosts["h2"], ReceiveVm)
    await world.hosts["h2"].answer(receive, Result.REFUSED, code="order.refused.term")


async def _unasked(world: LedWorld) -> None:
    """h2 awaits it, and h1's session has ended."""
    await asked(world, host="h2")
    (receive,) = given(world.hosts["h2"], ReceiveVm)
    del world.gateway.up[world.hosts["h1"].id][PeerRole.AGENT]
    await world.hosts["h2"].answer(receive, fields=LET_IN)
    await world.settle()
    assert given(world.hosts["h1"], MigrateVm) == []
    world.gateway.up[world.hosts["h1"].id][PeerRole.AGENT] = world.hosts["h1"].boot


@pytest.mark.req("X1")
@pytest.mark.parametrize(
    ("begin", "untold", "code"),
    [
        (_unlet_in, "h1", "migration.ended.unsent"),
        (_unread, "h1", "order.refused.term"),
        (_unasked, "h2", "migration.ended.unsent"),
    ],
)
def test_an_order_that_nobody_reads_ends_the_move_long_before_its_deadline(
    tmp_path: Path, begin: Callable[[LedWorld], Awaitable[None]], untold: str, code: str
) -> None:
    async def story(world: LedWorld) -> None:
        await begin(world)
        (operation,) = await moves_of(world)
        await refused(world, untold)
        ended = await state(world, operation)
        assert (ended.state, ended.code) == (OperationState.FAILED, code)
        vm = await world.vm()
        assert vm.status.state is VmState.RUNNING
        assert vm.status.holders == (world.hosts["h1"].id,)

    play(tmp_path, story)


async def settled(world: LedWorld, host: PlayedHost) -> None:
    """Asked how the move stands, in far less than its deadline of ten minutes."""
    for _ in range(40):
        if given(host, SettleMigration):
            return
        await world.pass_time(5_000, beating=("h1", "h2"))


async def refused(world: LedWorld, name: str) -> None:
    """It is asked how the move stands, and knows nothing of it."""
    host = world.hosts[name]
    await settled(world, host)
    body = given(host, SettleMigration)[0].body
    assert isinstance(body, SettleMigration)
    at_source = body.side is MigrationSide.SOURCE
    await host.tell(
        MigrationReport(
            migration_id=body.migration_id,
            vm_id=body.vm.id,
            incarnation=body.incarnation if at_source else body.target_incarnation,
            result=Result.REFUSED,
            code="order.refused.migration",
        )
    )
    await world.settle()


@pytest.mark.req("G1", "G6")
def test_a_vm_that_moves_is_powered_off_on_both_sides(tmp_path: Path) -> None:
    """Each with what it has: named the source's incarnation, the target would refuse it as one of before its copy."""

    async def story(world: LedWorld) -> None:
        moving, body = await begun(world)
        off = await world.control.vms.power_off(ADMIN, "web1")
        await world.settle()
        (at_source,) = given(world.hosts["h1"], StopVm)
        (at_target,) = given(world.hosts["h2"], StopVm)
        assert isinstance(at_source.body, StopVm)
        assert isinstance(at_target.body, StopVm)
        assert at_source.body.incarnation == body.incarnation
        assert at_target.body.incarnation == body.target_incarnation
        gone = (
            ("h1", body.incarnation, ReleaseCause.INTENDED),
            ("h2", body.target_incarnation, ReleaseCause.NEVER_RAN),
        )
        for (name, incarnation, cause), order in zip(gone, (at_source, at_target), strict=True):
            await world.hosts[name].tell(
                Released(vm_id=body.vm_id, incarnation=incarnation, cause=cause)
            )
            await world.hosts[name].answer(order)
        ended = await state(world, off)
        assert (ended.state, ended.code) == (OperationState.DONE, None)
        assert (await state(world, moving)).state is OperationState.FAILED
        status = (await world.vm()).status
        assert (status.state, status.holders) == (VmState.DOWN, ())
        assert [given(host, StartVm) for host in world.hosts.values()][1] == [], (
            "nobody brings it back"
        )

    play(tmp_path, story)


@pytest.mark.req("G1", "G6")
@pytest.mark.parametrize(
    ("what", "arrived"), [("reboot", False), ("reset", True), ("pause", False)]
)
def test_a_vm_that_is_drained_is_rebooted_and_paused_where_its_guest_is(
    tmp_path: Path, what: str, arrived: bool
) -> None:
    """By the incarnation that it has there; its other side has no guest, and would but refuse."""

    async def story(world: LedWorld) -> None:
        change = MaintenanceChange(on=True, drain=True)
        care = asyncio.ensure_future(world.control.host_care.set_maintenance(ADMIN, "h1", change))
        while not care.done():
            await world.settle(1)
            await asyncio.wait({care}, timeout=0.01)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await world.settle()
        (receive,) = given(h2, ReceiveVm)
        await h2.answer(receive, fields=LET_IN)
        await world.settle()
        (migrate,) = given(h1, MigrateVm)
        await h1.answer(migrate)
        assert isinstance(migrate.body, MigrateVm)
        if arrived:
            incarnation = migrate.body.target_incarnation
            await h2.tell(
                VmReport(vm_id=migrate.body.vm_id, incarnation=incarnation, state=VmState.RUNNING)
            )
        await world.settle()
        assert set((await world.vm()).status.holders) == {h1.id, h2.id}
        operation = await getattr(world.control.vms, what)(ADMIN, "web1")
        await world.settle()
        kind = PauseVm if what == "pause" else RebootVm
        there, other = (h2, h1) if arrived else (h1, h2)
        (order,) = given(there, kind)
        assert given(other, kind) == []
        assert isinstance(order.body, PauseVm | RebootVm)
        assert order.body.incarnation == (
            migrate.body.target_incarnation if arrived else migrate.body.incarnation
        )
        await there.answer(order)
        assert (await state(world, operation)).state is OperationState.DONE

    play(tmp_path, story)


def test_a_move_is_called_off(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation, body = await begun(world)
        cancelled = await world.control.moves.cancel(ADMIN, "web1")
        assert cancelled.id == operation.id
        await world.settle()
        assert given(world.hosts["h1"], SettleMigration)
        for name, incarnation in (("h1", body.incarnation), ("h2", body.target_incarnation)):
            await world.hosts[name].tell(
                MigrationReport(
                    migration_id=body.migration_id,
                    vm_id=body.vm_id,
                    incarnation=incarnation,
                    result=Result.FAILED,
                    code="migration.failed",
                )
            )
        ended = await state(world, operation)
        assert (ended.state, ended.code) == (OperationState.CANCELLED, "migration.ended.cancelled")

    play(tmp_path, story)


@pytest.mark.req("X1")
def test_a_target_that_falls_silent_makes_nobody_doubt_that_its_source_runs_it(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        await begun(world)
        await world.control.hosts.presence_changed(world.hosts["h2"].id, HostState.UNREACHABLE)
        vm = await world.vm()
        assert set(vm.status.holders) == {host.id for host in world.hosts.values()}
        assert vm.status.state is VmState.RUNNING, (
            "and it would be said still when h2 holds nothing any more"
        )

    play(tmp_path, story)


@pytest.mark.bad_input("death in a move")
def test_a_server_that_begins_anew_ends_what_was_never_ordered(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation = await world.control.moves.migrate(ADMIN, "web1", VmMigrate(host="h2"))
        await world.restart()
        await world.settle()
        ended = await world.control.operations.get(operation.id)
        assert (ended.state, ended.code) == (OperationState.FAILED, "problem.unavailable")

    play(tmp_path, story)


@pytest.mark.bad_input("death in a move")
def test_a_server_that_begins_anew_follows_what_was_ordered(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        operation, body = await begun(world)
        await world.restart()
        await world.settle()
        for host in world.hosts.values():
            await host.hello()
        assert not (await state(world, operation)).is_over
        await arrives(world, body)
        assert (await state(world, operation)).state is OperationState.DONE

    play(tmp_path, story)
