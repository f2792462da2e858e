"""The engine leads on the real store: what it writes, orders and lets hosts forget; killed at any effect, it goes on."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from led_world import ADMIN, IMAGE, LedWorld, PlayedHost, tell, two_hosts_and_a_vm

from virtha.control.requests import ClusterCreate, HoldPut, OperationQuery, SearchQuery, VmStart
from virtha.engine.events import SaveVm, StartCommand
from virtha.engine.records import VmStage
from virtha.engine.turn import Send, Write
from virtha.model.errors import Conflict, Failed
from virtha.model.facts import ReleaseCause, Released, Result, StorageReport, VmReport
from virtha.model.ids import Incarnation, Term, VmId
from virtha.model.operation import Operation, OperationState
from virtha.model.orders import DiskCheck, StartVm
from virtha.model.policy import Policy
from virtha.model.vm import VmState
from virtha.server.leader import ClusterClock, LostTerm
from virtha.store.engine import engine_records, find_vm_record, grants_of
from virtha.store.hosts import find_host
from virtha.store.installations import set_term

Story = Callable[[LedWorld], Awaitable[None]]


async def h1_dies(world: LedWorld) -> VmId:
    """web1 ran on h1, whose connections broke 8 s ago."""
    vm_id = await two_hosts_and_a_vm(world)
    world.hosts["h1"].vanish()
    await world.pass_time(8_000, beating=("h2",))
    assert world.all_starts()[1:] == [], "silence is no proof"
    return vm_id


async def recoveries(world: LedWorld) -> list[Operation]:
    items = (await world.control.operations.list(OperationQuery())).items
    return [one for one in items if one.kind == "vm.recover"]


def the_engines(host: PlayedHost) -> list[StartVm]:
    bodies = [order.body for order in host.starts()]
    return [body for body in bodies if isinstance(body, StartVm) and body.by == "engine"]


def engines_orders(world: LedWorld) -> list[tuple[str, str, int]]:
    """Its starts that went out: operation, host, incarnation."""
    return [
        (order.operation_id, host_id, order.body.grant.incarnation)
        for host_id, order in world.all_starts()
        if isinstance(order.body, StartVm) and order.body.by == "engine"
    ]


# P4: another boot


@pytest.mark.req("F3", "X1")
def test_a_host_that_comes_back_in_another_boot_gives_its_vm_to_another_host_once(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        view = await world.vm()
        assert [one.code for one in view.engine] == ["recovery.waiting.proof"] and view.engine_text
        shown = await world.control.hosts.get("h1")
        assert shown.verdict == "dead_unproven"
        assert "host.dead.unproven" in [one.code for one in shown.engine]

        await h1.hello("h1-boot2")
        await world.settle()
        (order,) = h2.starts()
        assert isinstance(order.body, StartVm)
        assert order.body.grant.incarnation == 2 and order.body.grant.boot == "h2-boot1"
        assert order.body.disk_check is DiskCheck.SKIP_PROVEN, "its death is proven by the new boot"
        assert order.term == world.term
        view = await world.vm()
        assert (view.status.state, view.status.holders) == (VmState.STARTING, (h2.id,))
        assert [one.code for one in view.engine] == ["recovery.starting"]
        (operation,) = await recoveries(world)
        assert operation.state is OperationState.RUNNING and operation.asked_by == "engine"
        with pytest.raises(Conflict) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart())
        assert refused.value.code == "problem.operation.open" and "vm.recover" in str(refused.value)

        await h1.tell_all()
        await h2.started(order)
        await world.settle()
        view = await world.vm()
        assert (view.status.state, view.status.holders) == (VmState.RUNNING, (h2.id,))
        assert view.engine == ()
        assert (await world.control.operations.get(operation.id)).state is OperationState.DONE
        assert len(the_engines(h2)) == 1 and the_engines(h1) == []
        for code in ("host.judged_dead", "host.returned", "vm.recovery_started", "vm.recovered"):
            assert len(await world.events(code)) == 1, code
        (told,) = await world.events("vm.recovered")
        assert told.vm_id == vm_id and told.fields["host"] == "h2"

    tell(tmp_path, story)


@pytest.mark.req("F3")
@pytest.mark.parametrize("effects", range(14))
def test_killed_at_any_effect_the_next_server_starts_it_once(tmp_path: Path, effects: int) -> None:
    """The process dies before the nth effect from the host's return on; the order may have gone out, or not."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        await world.hosts["h1"].hello("h1-boot2")
        await _until_effect(world, effects)
        sent = engines_orders(world)
        await world.restart()
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        for host in (h2, h1):
            # The orders that wait go out with the hello.
            for order in await host.hello():
                world.gateway.delivered.append((host.id, order))
            await host.tell_all()
        await world.settle()
        orders = sent + engines_orders(world)
        assert len(set(orders)) == 1, "the same start, whoever sends it"
        assert orders[0][2] == 2
        target = h2 if h2.starts() else h1
        await target.started(target.starts()[0])
        await world.settle()
        view = await world.vm()
        assert (view.status.state, view.status.holders) == (VmState.RUNNING, (target.id,))
        assert (await world.record(vm_id)).stage is VmStage.SETTLED
        assert [one.state for one in await recoveries(world)] == [OperationState.DONE]
        for code in ("vm.recovery_started", "vm.recovered"):
            assert len(await world.events(code)) == 1, code

    tell(tmp_path, story)


async def _until_effect(world: LedWorld, effects: int) -> None:
    seen = 0
    for _ in range(4):
        async for _ in world.leader.effects():
            if seen == effects:
                return
            seen += 1
        if seen == effects:
            return  # written and handed over, and not sent
        seen += 1
        await world.leader.send_all()
        await world.engines.refresh()


def test_a_leader_whose_term_is_over_writes_and_sends_nothing(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        before = await world.record(vm_id)
        async with world.store.write() as tx:
            await set_term(tx, Term(world.term + 1))
        await world.hosts["h1"].hello("h1-boot2")
        with pytest.raises(LostTerm):
            await world.leader.turn()
        await world.leader.send_all()
        assert await world.record(vm_id) == before
        assert the_engines(world.hosts["h2"]) == []

    tell(tmp_path, story)


def test_a_start_that_was_decided_in_a_former_term_is_not_sent(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await h1_dies(world)
        await world.hosts["h1"].hello("h1-boot2")
        async for effect in world.leader.effects():
            if isinstance(effect, Send):
                assert any(isinstance(one, StartCommand) for one in effect.commands)
                async with world.store.write() as tx:
                    await set_term(tx, Term(world.term + 1))
        await world.leader.send_all()
        assert the_engines(world.hosts["h2"]) == []

    tell(tmp_path, story)


# G1: beside people's orders


def test_a_persons_start_is_known_to_the_engine_before_it_goes_out(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        vm_id = await world.add_vm()
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        async with world.store.read() as tx:
            (granted,) = await grants_of(tx, vm_id)
        assert (granted.host_id, granted.boot) == (world.hosts["h1"].id, "h1-boot1")
        await world.settle()
        (copy,) = (await world.record(vm_id)).copies
        assert (copy.host_id, copy.incarnation) == (granted.host_id, 1)
        async with world.store.read() as tx:
            assert await grants_of(tx, vm_id) == (), "it is in the engine's own records now"

    tell(tmp_path, story)


def test_the_next_leader_is_told_of_a_copy_that_no_turn_has_written(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        vm_id = await world.add_vm()
        await world.settle()
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        await world.restart()
        await world.leader.turn()
        assert [copy.host_id for copy in (await world.record(vm_id)).copies] == [
            world.hosts["h1"].id
        ]

    tell(tmp_path, story)


def test_an_engines_start_that_a_persons_has_overtaken_is_not_sent(tmp_path: Path) -> None:
    """The person's order, to another host, is committed while the engine's decision is being written, and answered at
    once."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.hello("h1-boot2")
        await h1.tell_all()
        await h1.tell(Released(vm_id=vm_id, incarnation=Incarnation(1)))
        chosen = h1
        async for effect in world.leader.effects():
            if not isinstance(effect, Write):
                continue
            for intent in effect.intents:
                if isinstance(intent, SaveVm) and intent.record.start is not None:
                    chosen = h2 if intent.record.start.host_id == h1.id else h1
                    await world.control.vms.start(ADMIN, "web1", VmStart(host=chosen.name))
                    await chosen.started(chosen.starts()[-1])
        await world.leader.send_all()
        assert engines_orders(world) == [], "another host runs it"
        ours = chosen.starts()[-1]
        assert isinstance(ours.body, StartVm) and ours.body.by == "admin"
        for _ in range(3):
            await world.settle()
        view = await world.vm()
        assert chosen.id in view.status.holders and view.status.state is VmState.RUNNING
        assert engines_orders(world) == []

    tell(tmp_path, story)


def test_what_a_storage_domain_says_of_a_later_start_holds_the_engine_too(tmp_path: Path) -> None:
    """G4: h1 is named as the one that started it last, above all that is known here. It is asked, and nothing starts."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.hello("h1-boot2")
        await world.settle()
        (order,) = h2.starts()
        await h1.tell_all()
        claim = {"incarnation": 9, "current": 9, "holder_host": h1.id}
        await h2.answer(order, Result.REFUSED, code="order.refused.incarnation", fields=claim)
        await h2.tell(
            Released(vm_id=vm_id, incarnation=Incarnation(2), cause=ReleaseCause.NEVER_RAN)
        )
        await world.settle()
        await world.pass_time(5_000, beating=("h1", "h2"))
        assert len(engines_orders(world)) == 1
        view = await world.vm()
        assert view.status.holders == (h1.id,) and view.status.incarnation == 9
        assert [(one.host_id, one.incarnation) for one in (await world.record(vm_id)).copies] == [
            (h1.id, 9)
        ]

    tell(tmp_path, story)


@pytest.mark.req("A8")
def test_a_vm_that_its_host_gave_back_as_it_went_down_starts_elsewhere(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.tell(
            Released(vm_id=vm_id, incarnation=Incarnation(1), cause=ReleaseCause.HOST_SHUTDOWN),
            VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.DOWN),
        )
        await world.settle()
        assert len(the_engines(h2)) == 1
        assert (await world.vm()).status.holders == (h2.id,)

    tell(tmp_path, story)


def test_a_start_that_is_refused_is_tried_again_as_another_one(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.hello("h1-boot2")
        await world.settle()
        (order,) = h2.starts()
        await h1.tell_all()
        await h2.tell(
            Released(vm_id=vm_id, incarnation=Incarnation(2), cause=ReleaseCause.NEVER_RAN)
        )
        await h2.answer(order, Result.REFUSED, code="order.refused.disk_active")
        await world.settle()
        assert [body.grant.incarnation for body in the_engines(h1)] == [3]
        view = await world.vm()
        assert (view.status.state, view.status.holders) == (VmState.STARTING, (h1.id,))
        assert len(await world.events("vm.recovery_failed")) == 1
        assert await world.events("operation.failed") == [], "nobody is told the same twice"
        states = [one.state for one in await recoveries(world)]
        assert states == [OperationState.RUNNING, OperationState.FAILED], "newest first"

    tell(tmp_path, story)


def test_a_start_that_takes_too_long_is_taken_back(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await h1.hello("h1-boot2")
        await world.settle()
        assert len(the_engines(h2)) == 1
        await h1.tell_all()
        await world.pass_time(60_000, beating=("h1", "h2"))
        taken_back = [
            order
            for order in h2.orders
            if isinstance(order.body, StartVm) and not order.body.grant.duration_ms
        ]
        assert len(taken_back) > 1, "until it answers"
        assert len({order.operation_id for order in taken_back}) == len(taken_back)
        assert len(the_engines(h2)) == 1 and the_engines(h1) == [], "nobody else before that (G2)"
        assert [one.state for one in await recoveries(world)] == [OperationState.FAILED]
        await h2.tell(
            Released(vm_id=vm_id, incarnation=Incarnation(2), cause=ReleaseCause.NEVER_RAN)
        )
        await world.settle()
        assert [body.grant.incarnation for body in the_engines(h1)] == [3]

    tell(tmp_path, story)


def test_while_held_nothing_is_started(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await h1_dies(world)
        await world.control.hold.set(ADMIN, HoldPut(reason="a test"))
        await world.hosts["h1"].hello("h1-boot2")
        await world.settle()
        assert the_engines(world.hosts["h2"]) == []
        assert [one.code for one in (await world.vm()).engine] == ["recovery.blocked.hold"]
        await world.control.hold.lift(ADMIN)
        await world.settle()
        assert len(the_engines(world.hosts["h2"])) == 1

    tell(tmp_path, story)


# Facts: a host forgets them when all that follows is durable


def test_a_host_may_forget_a_release_only_when_the_engines_records_have_it(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        h1 = world.hosts["h1"]
        forgotten = world.gateway.acknowledged[h1.id]
        await h1.tell(
            VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.DOWN),
            Released(vm_id=vm_id, incarnation=Incarnation(1), cause=ReleaseCause.HOST_SHUTDOWN),
        )
        assert world.gateway.acknowledged[h1.id] == forgotten
        assert (await world.vm()).status.holders == (), "recorded at once all the same"
        # The server dies with what it was told: it comes again, and is not lost on the engine.
        await world.restart()
        assert (await world.record(vm_id)).copies != ()
        h2 = world.hosts["h2"]
        for host in (h1, h2):
            await host.hello()
        await h2.tell_all()
        await h1.tell_all()
        await world.settle()
        assert [copy.host_id for copy in (await world.record(vm_id)).copies] == [h2.id]
        assert world.gateway.acknowledged[h1.id] == h1.sequence
        async with world.store.read() as tx:
            row = await find_host(tx, h1.id)
        assert row is not None and row.fact_acknowledged == row.fact_sequence == h1.sequence

    tell(tmp_path, story)


# Before there was an engine


def test_an_installation_of_before_the_engine_goes_on_with_what_its_hosts_hold(
    tmp_path: Path,
) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        async with world.store.write() as tx:
            for table in ("engine_vm", "engine_host", "engine_cluster"):
                await tx.connection.exec_driver_sql(f"DELETE FROM {table}")
        await world.restart()
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        assert (await world.vm()).status.holders == (h1.id,)
        await world.leader.turn()
        assert (await world.vm()).status.holders == (h1.id,), "nobody said otherwise"
        assert [copy.host_id for copy in (await world.record(vm_id)).copies] == [h1.id]
        await h2.hello()
        await h2.tell_all()
        await h1.hello("h1-boot2")
        await world.settle()
        assert engines_orders(world) == [], "h1 has not told what it holds (M2)"
        await h1.tell_all()
        await world.settle()
        assert engines_orders(world) == [], "a start that nobody recorded may still come up (G2)"
        await world.pass_time(Policy().recovery.attempt_ms + 1_000, beating=("h1", "h2"))
        await world.settle()
        assert len(engines_orders(world)) == 1, "its former boot is over, whoever had recorded it"
        assert len((await world.vm()).status.holders) == 1

    tell(tmp_path, story)


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        async with world.store.write() as tx:
            await tx.connection.exec_driver_sql("UPDATE engine_vm SET body = '{\"stage\": 7}'")
        with pytest.raises(Failed) as failed:
            await world.restart()
        assert f"VM {vm_id}" in str(failed.value) and failed.value.fix
        async with world.store.read() as tx:
            with pytest.raises(Failed):
                await find_vm_record(tx, vm_id)

    tell(tmp_path, story)


def test_a_deleted_vm_leaves_no_record(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        cluster_id = world.feed.cluster_id
        h1 = world.hosts["h1"]
        operation = await world.control.vms.power_off(ADMIN, "web1")
        await h1.tell(
            VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.DOWN),
            Released(vm_id=vm_id, incarnation=Incarnation(1), cause=ReleaseCause.INTENDED),
        )
        await h1.answer(h1.orders[-1])
        assert (await world.control.operations.get(operation.id)).is_over
        await world.settle()
        assert len(world.all_starts()) == 1, "nobody wants it up"
        gone = await world.control.vms.delete(ADMIN, "web1", delete_data=True)
        await world.done(gone.id)
        await world.settle()
        async with world.store.read() as tx:
            assert (await engine_records(tx, cluster_id)).vms == ()

    tell(tmp_path, story)


def test_a_leader_whose_cluster_was_deleted_writes_nothing(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        made = await world.control.clusters.create(ADMIN, ClusterCreate(name="other"))
        await world.engines.refresh()
        leader = world.engines.feeds[made.id].leader
        assert leader is not None
        await world.control.clusters.delete(ADMIN, "other")
        await leader.turn()
        async with world.store.read() as tx:
            assert (await engine_records(tx, made.id)).cluster is None
        await world.engines.refresh()
        assert list(world.engines.feeds) == [world.feed.cluster_id]

    tell(tmp_path, story)


# The clock


def test_cluster_time_never_runs_back(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        clock = world.clock
        before = ClusterClock(clock, written=world.leader.clock.now())
        clock.wall_offset -= 3_600_000
        clock.now += 1_000
        after = ClusterClock(clock, written=before.now())
        assert after.now() >= before.now()
        clock.now += 500
        assert after.now() == before.now()

    tell(tmp_path, story)


@pytest.mark.req("F7", "F6")
def test_what_an_agent_said_last_before_its_session_broke_counts_with_its_next_one(
    tmp_path: Path,
) -> None:
    """Swarm seed 1693: its storage was there again, the leader read of it without a session, and no list of it followed."""

    async def storage(world: LedWorld, host: PlayedHost, *, usable: bool) -> None:
        (view,) = (await world.control.storage.list(SearchQuery())).items
        await host.tell(
            StorageReport(storage_domain_id=view.domain.id, usable=usable, images=(IMAGE,))
        )

    async def story(world: LedWorld) -> None:
        await two_hosts_and_a_vm(world)
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        await storage(world, h2, usable=False)
        await world.settle()
        await storage(world, h2, usable=True)
        h2.vanish()
        await world.settle()
        await h2.hello(meanwhile=world.settle)
        await world.settle()

        h1.vanish()
        await world.pass_time(8_000, beating=("h2",))
        await h1.hello("h1-boot2")
        await world.settle()
        assert len(h2.starts()) == 1

    tell(tmp_path, story)
