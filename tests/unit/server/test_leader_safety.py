"""What a leader on the real store must not do: start from torn disks, let a fence wait, write into a restored database, or
believe a session that is over."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from led_world import ADMIN, LedWorld, ManualClock, tell, two_hosts_and_a_vm
from msgspec.structs import replace

from virtha.control.requests import VmStart
from virtha.engine import turn
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    BrakeLifted,
    Command,
    CopyGranted,
    EngineEvent,
    HostConfigured,
    Investigate,
    OrderPower,
    ReadPower,
    SessionChanged,
    StartCommand,
    VmConfigured,
)
from virtha.engine.records import ClusterRecord, EngineRecords, OrderId
from virtha.engine.snapshot import EngineSnapshot
from virtha.engine.turn import Send
from virtha.model.errors import Failed, Refused
from virtha.model.evidence import ProcessKind
from virtha.model.ids import (
    BootId,
    HostId,
    Incarnation,
    InstallationId,
    Revision,
    SnapshotId,
    Term,
    VmId,
)
from virtha.model.orders import StartVm, StopVm
from virtha.model.policy import Policy
from virtha.model.power import PowerAction, PowerDeviceId
from virtha.model.snapshot import Snapshot, SnapshotState
from virtha.model.time import Millis, UtcMillis
from virtha.model.vm import PossibleCopy, VmState
from virtha.server.cluster_feed import ClusterFeed
from virtha.server.leader import EVENTS_MAX, ClusterClock, Leader, LostTerm
from virtha.store.engine import find_vm_record
from virtha.store.installations import set_timeline
from virtha.store.snapshots import save_snapshot
from virtha.store.vms import find_vm, save_vm_status
from virtha.wire.messages import PeerRole

Story = Callable[[LedWorld], Awaitable[None]]
WAIT_S = 60.0


def engines_starts(world: LedWorld) -> list[StartVm]:
    bodies = [order.body for _, order in world.all_starts()]
    return [body for body in bodies if isinstance(body, StartVm) and body.by == "engine"]


async def h1_dies(world: LedWorld) -> VmId:
    vm_id = await two_hosts_and_a_vm(world)
    world.hosts["h1"].vanish()
    await world.pass_time(8_000, beating=("h2",))
    return vm_id


# Torn disks


async def half_way_back(world: LedWorld, vm_id: VmId, state: SnapshotState) -> None:
    async with world.store.write() as tx:
        made = Snapshot(
            id=SnapshotId("s1"), vm_id=vm_id, name="before", state=state, created=UtcMillis(0)
        )
        await save_snapshot(tx, made)


def test_the_engine_starts_nothing_from_disks_of_different_times(tmp_path: Path) -> None:
    """ADR 13. A start that was never ordered is over at once: nobody waits for a host that was never asked."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        await half_way_back(world, vm_id, SnapshotState.REVERTING)
        await world.hosts["h1"].hello("h1-boot2")
        await world.settle()
        assert engines_starts(world) == []
        told = await world.events("vm.recovery_failed")
        assert {event.fields["why"] for event in told} == {"problem.snapshot.state"}
        assert (await world.record(vm_id)).copies == (), "no host was asked"
        await half_way_back(world, vm_id, SnapshotState.READY)
        await world.pass_time(30_000, beating=("h2",))
        assert len(engines_starts(world)) == 1

    tell(tmp_path, story)


def test_an_order_that_went_out_is_not_called_over_because_the_disks_are_torn_by_now(
    tmp_path: Path,
) -> None:
    """G2: told again by the next leader; the first order may have been carried out."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        await world.hosts["h1"].hello("h1-boot2")
        await world.settle()
        assert len(engines_starts(world)) == 1
        await half_way_back(world, vm_id, SnapshotState.REVERTING)
        await world.restart()
        for host in world.hosts.values():
            await host.hello()
            await host.tell_all()
        await world.settle()
        assert engines_starts(world) == []
        assert (await world.record(vm_id)).copies != ()
        assert await world.events("vm.recovery_failed") == []

    tell(tmp_path, story)


def test_no_way_of_ordering_a_start_uses_torn_disks(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await world.join("h1")
        await world.add_storage()
        vm_id = await world.add_vm()
        await half_way_back(world, vm_id, SnapshotState.REVERTING)
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart())
        assert refused.value.code == "problem.snapshot.state"

    tell(tmp_path, story)


# Lanes


class NoJournal:
    def wants_snapshot(self, now: Millis) -> bool:
        return False

    def begin(self, state: EngineSnapshot, *, created_at_ms: UtcMillis) -> None: ...

    def turn(self, now: Millis, events: Sequence[EngineEvent]) -> None: ...

    def decided(self, now: Millis, decision: object) -> None: ...


class NoRecords:
    async def write(self, **_: object) -> bool:
        return True

    async def acknowledge(self, receipts: object) -> bool:
        return True

    async def held(self) -> bool:
        return True


def a_leader(
    carry_out: Callable[[Command], Awaitable[None]],
    journal: NoJournal | None = None,
    store: NoRecords | None = None,
) -> Leader:
    clock = ClusterClock(ManualClock(), written=Millis(0))
    records = EngineRecords(cluster=ClusterRecord(term=Term(1)), hosts=(), vms=())
    return Leader(
        name="default",
        engine=Engine(policy=Policy(), records=records, now=clock.now()),
        term=Term(1),
        clock=clock,
        records=store or NoRecords(),
        journal=journal or NoJournal(),
        carry_out=carry_out,
        acknowledged=lambda _receipts: None,
        stall_ms=lambda: 1_000,
    )


def a_start(number: int) -> StartCommand:
    return StartCommand(
        order_id=OrderId(f"1.{number}"),
        vm_id=VmId(f"vm{number}"),
        host_id=HostId("h2"),
        boot=BootId("b1"),
        incarnation=Incarnation(2),
        grant_ms=1_000,
        proofs=(),
    )


def an_off(host: str) -> OrderPower:
    return OrderPower(
        order_id=OrderId(f"1.off.{host}"),
        host_id=HostId(host),
        device=PowerDeviceId(f"{host}-bmc"),
        action=PowerAction.OFF,
        deadline_ms=1_000,
    )


def a_reading(host: str) -> ReadPower:
    return ReadPower(
        order_id=OrderId(f"1.read.{host}"),
        host_id=HostId(host),
        device=PowerDeviceId(f"{host}-bmc"),
        deadline_ms=1_000,
    )


@pytest.mark.req("F4")
def test_a_fence_waits_for_no_start_and_for_no_other_host(tmp_path: Path) -> None:
    """Starts wait for the database, one host's device hangs, and so does a question: the next fence goes out at once, and
    what was decided about one host keeps its order."""
    look = Investigate(
        subject=HostId("h3"), boot=None, witnesses=(), disk_reader=None, vms=(), round=1
    )
    sent: list[Command] = []
    hanging: list[Command] = []
    released = asyncio.Event()

    async def carry_out(command: Command) -> None:
        hangs = isinstance(command, StartCommand | Investigate) or command == an_off("h3")
        if hangs:
            hanging.append(command)
            await released.wait()
        sent.append(command)

    async def main() -> None:
        leader = a_leader(carry_out)
        leader.hand_over([a_start(1), look, an_off("h3"), a_reading("h3"), a_start(2)])
        sending = asyncio.create_task(leader.send_all())
        async with asyncio.timeout(WAIT_S):
            while not {a_start(1), look, an_off("h3")} <= {*hanging}:
                await asyncio.sleep(0.001)
        leader.hand_over([an_off("h4"), a_reading("h4")])
        more = asyncio.create_task(leader.send_all())
        async with asyncio.timeout(WAIT_S):
            await more
        assert sent == [an_off("h4"), a_reading("h4")]
        released.set()
        async with asyncio.timeout(WAIT_S):
            await sending

    asyncio.run(main())
    assert len(sent) == 7
    assert [one for one in sent if isinstance(one, StartCommand)] == [a_start(1), a_start(2)]
    assert [one for one in sent if getattr(one, "host_id", None) == "h3"] == [
        an_off("h3"),
        a_reading("h3"),
    ]


# A restored database


def test_a_leader_of_before_a_restore_writes_and_sends_nothing(tmp_path: Path) -> None:
    """M1, M2: the restored database counts from its backup's term again, and may come to the very same number."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        before = await world.record(vm_id)
        async with world.store.write() as tx:
            await set_timeline(tx, "another")
        await world.hosts["h1"].hello("h1-boot2")
        with pytest.raises(LostTerm):
            await world.leader.turn()
        await world.leader.send_all()
        assert await world.record(vm_id) == before
        assert engines_starts(world) == []
        with pytest.raises(LostTerm):
            world.clock.now += 5_000
            await world.leader.tick()  # nor is its lease renewed
        with pytest.raises(LostTerm):
            await world.engines.refresh()

    tell(tmp_path, story)


def test_a_start_of_before_a_restore_is_not_sent(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await h1_dies(world)
        await world.hosts["h1"].hello("h1-boot2")
        async for effect in world.leader.effects():
            if isinstance(effect, Send):
                assert any(isinstance(one, StartCommand) for one in effect.commands)
                async with world.store.write() as tx:
                    await set_timeline(tx, "another")
        await world.leader.send_all()
        assert engines_starts(world) == []

    tell(tmp_path, story)


@pytest.mark.req("A8", "X1")
@pytest.mark.parametrize("done", [False, True], ids=["under way", "done"])
def test_a_vm_that_is_powered_off_before_its_start_goes_out_is_down_at_once(
    tmp_path: Path, done: bool
) -> None:
    """A person's word comes between the engine's decision and the order: the power-off was "done", and the VM came up
    all the same, or was "starting" until the attempt's end. Neither host nor person is told of a failure."""

    async def story(world: LedWorld) -> None:
        vm_id = await h1_dies(world)
        h2 = world.hosts["h2"]
        await world.hosts["h1"].hello("h1-boot2")
        async for effect in world.leader.effects():
            if isinstance(effect, Send):
                assert any(isinstance(one, StartCommand) for one in effect.commands)
                asked = await world.control.vms.power_off(ADMIN, "web1")
                (stop,) = [one for one in h2.orders if isinstance(one.body, StopVm)]
                if done:
                    await h2.answer(stop)
                    assert (await world.control.operations.get(asked.id)).is_over
        await world.leader.send_all()
        await world.settle()
        if not done:
            await h2.answer(stop)
            await world.settle()
        assert engines_starts(world) == []
        assert (await world.record(vm_id)).copies == (), "no host was asked"
        view = await world.vm()
        assert (view.status.state, view.status.holders) == (VmState.DOWN, ())
        await world.pass_time(60_000, beating=("h1", "h2"))
        assert engines_starts(world) == []
        for code in ("vm.recovery_failed", "vm.start_overdue", "vm.recovered"):
            assert await world.events(code) == []

    tell(tmp_path, story)


def test_a_persons_start_and_a_removal_wait_as_the_engine_does(tmp_path: Path) -> None:
    """M2, G2: a start that only the lost records knew of may come up after its host told. A person's start would run beside it,
    and with the host removed nobody would wait for it."""

    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        await world.add_vm("web2")
        async with world.store.write() as tx:
            await set_timeline(tx, "another")
        await world.restart()
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        for host, running in ((h1, (vm_id,)), (h2, ())):
            await host.hello()
            await host.tell_all(*running)
        await world.settle()
        with pytest.raises(Refused) as start:
            await world.control.vms.start(ADMIN, "web2", VmStart())
        assert start.value.code == "start.blocked.inventory"
        h2.vanish()
        with pytest.raises(Refused) as removal:
            await world.control.hosts.delete(ADMIN, "h2")
        assert removal.value.code == "start.blocked.inventory"
        await h2.hello()
        await h2.tell_all()
        await world.pass_time(60_000, beating=("h1", "h2"))
        await world.settle()
        await world.control.hosts.delete(ADMIN, "h2")
        assert (await world.control.vms.start(ADMIN, "web2", VmStart())).kind == "vm.start"

    tell(tmp_path, story)


def test_a_server_whose_database_was_restored_beneath_it_ends(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await two_hosts_and_a_vm(world)
        world.leads_itself = True
        running = asyncio.create_task(world.engines.run(asyncio.Event()))
        await asyncio.sleep(0)
        async with world.store.write() as tx:
            await set_timeline(tx, "another")
        with pytest.raises(Failed, match="restored while this server ran"):
            async with asyncio.timeout(WAIT_S):
                await running

    tell(tmp_path, story)


# What a leader is told first


def another_feed(world: LedWorld) -> ClusterFeed:
    """Of the next lead of this cluster, as ``Engines`` makes it."""
    return ClusterFeed(
        world.feed.cluster_id,
        lead=world.feed.lead,
        installation_id=InstallationId("one"),
        leading=world.control.leading,
        orders=world.control.engine_orders,
        power=world.control.engine_power,
        clock=world.clock,
        journal=world.directory / "another journal",
        sessions=world.gateway.sessions,
        lines=world.gateway,
        acknowledged=lambda _receipts: None,
    )


async def begin(world: LedWorld, feed: ClusterFeed) -> None:
    taken = await world.control.leading.take_over(feed.cluster_id, feed.lead)
    changes = await world.control.leading.changes(Revision(0), hosts=(), vms=())
    assert taken is not None
    feed.begin(taken, hosts=changes.hosts, vms=changes.vms, hold=None)


def test_a_session_that_is_over_is_not_told_after_a_later_boots_grant(tmp_path: Path) -> None:
    """P4: while the next leader reads its records, h1 connects, reboots, connects again, and a person starts web1 there. Told
    that the former boot begins, after the grant of the present one, it would bury the present one."""

    async def story(world: LedWorld) -> None:
        await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        vm_id = await world.add_vm()
        await world.settle()
        h1 = world.hosts["h1"]
        feed = another_feed(world)
        feed.session(h1.id, PeerRole.AGENT, BootId("h1-boot2"), up=True)
        feed.session(h1.id, PeerRole.AGENT, BootId("h1-boot2"), up=False, broken=True)
        await h1.hello("h1-boot3")
        feed.session(h1.id, PeerRole.AGENT, BootId("h1-boot3"), up=True)
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        await begin(world, feed)
        assert feed.leader is not None
        await feed.leader.turn()
        (copy,) = (await world.record(vm_id)).copies
        assert (copy.host_id, copy.boot) == (h1.id, "h1-boot3")
        assert feed.leader.engine.verdict(h1.id) == "alive"
        feed.close()

    tell(tmp_path, story)


def test_a_leader_is_told_of_a_recorded_copy_beside_the_one_it_knows(tmp_path: Path) -> None:
    """G1, P4: h1 reported a later incarnation, which the use cases recorded; no turn has written it. The next boot ends what
    the engine's record names, and not this one."""

    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        h1 = world.hosts["h1"]
        async with world.store.write() as tx:
            row = await find_vm(tx, vm_id)
            assert row is not None
            later = PossibleCopy(host_id=h1.id, incarnation=Incarnation(2), boot=BootId("h1-boot2"))
            await save_vm_status(
                tx,
                replace(row.status, copies=(*row.status.copies, later), incarnation=Incarnation(2)),
            )
        await h1.hello("h1-boot2")
        await world.restart()
        await world.leader.turn()
        await world.hosts["h1"].hello("h1-boot2")
        await world.leader.turn()
        async with world.store.read() as tx:
            record = await find_vm_record(tx, vm_id)
        assert record is not None
        assert [(one.host_id, one.incarnation) for one in record.copies] == [(h1.id, 2)]
        assert engines_starts(world) == []

    tell(tmp_path, story)


def test_events_that_end_no_boot_are_kept_till_the_leader_begins(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        vm_id = await two_hosts_and_a_vm(world)
        h2 = world.hosts["h2"]
        feed = another_feed(world)
        taken = CopyGranted(host_id=h2.id, boot=h2.boot, vm_id=vm_id, incarnation=Incarnation(5))
        feed.offer(
            SessionChanged(
                host_id=h2.id, process=ProcessKind.AGENT, boot=BootId("h2-boot0"), up=True
            ),
            taken,
        )
        await begin(world, feed)
        assert feed.leader is not None
        await feed.leader.turn()
        held = {one.host_id for one in (await world.record(vm_id)).copies}
        assert held == {world.hosts["h1"].id, h2.id}
        feed.close()

    tell(tmp_path, story)


# Many at once


class TurnsKept(NoJournal):
    def __init__(self) -> None:
        self.turns: list[list[EngineEvent]] = []

    def turn(self, now: Millis, events: Sequence[EngineEvent]) -> None:
        self.turns.append(list(events))


class ReceiptsKept(NoRecords):
    def __init__(self, journal: TurnsKept) -> None:
        self._journal = journal
        self.after_turns: list[int] = []

    async def write(self, **more: Any) -> bool:
        return await self.acknowledge(more["receipts"])

    async def acknowledge(self, receipts: object) -> bool:
        if receipts:
            self.after_turns.append(len(self._journal.turns))
        return True


def test_what_is_configured_is_taken_in_many_turns_with_all_hosts_in_the_first() -> None:
    """Thousands of hosts and VMs in one step would hold up the gateway, and more events than an inbox has are no sign of being
    too slow. What comes after them stays after them, and nothing is acknowledged before its turn."""

    async def nothing(_command: Command) -> None: ...

    async def main() -> None:
        journal = TurnsKept()
        records = ReceiptsKept(journal)
        leader = a_leader(nothing, journal, records)
        hosts = [
            HostConfigured(
                host=EngineHost(host_id=HostId(f"h{number}"), name=f"h{number}", number=number)
            )
            for number in range(EVENTS_MAX + 10)
        ]
        count = 3 * EVENTS_MAX
        vms = [
            VmConfigured(vm=EngineVm(vm_id=VmId(f"v{number}"), name=f"v{number}", memory_bytes=1))
            for number in range(count)
        ]
        boot = BootId("b1")
        session = SessionChanged(
            host_id=HostId("h1"), process=ProcessKind.AGENT, boot=boot, up=True
        )
        beat = BeatSeen(host_id=HostId("h1"), boot=boot, agent_alive=True)
        leader.offer(*hosts)
        leader.offer(*vms)
        leader.offer(session, beat)
        leader.took(HostId("h1"), 7)
        while leader.busy:
            await leader.turn()
        await leader.turn()
        first, *others = journal.turns
        assert [one for one in first if isinstance(one, HostConfigured)] == hosts
        assert max(len(events) for events in others) <= EVENTS_MAX + 1
        told = [event for events in journal.turns for event in events]
        assert told == [*hosts, *vms, session, beat]
        last = next(number for number, events in enumerate(journal.turns) if session in events)
        assert records.after_turns and min(records.after_turns) > last
        assert leader.engine.verdict(HostId("h1")) == "alive"

    asyncio.run(main())


def test_too_many_events_behind_are_a_leader_that_cannot_keep_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turn, "INBOX_MAX", EVENTS_MAX + 50)

    async def nothing(_command: Command) -> None: ...

    async def main() -> None:
        leader = a_leader(nothing, NoJournal(), NoRecords())
        for number in range(2 * EVENTS_MAX + 100):
            leader.offer(BrakeLifted(by=f"{number}"))
        with pytest.raises(Failed, match="can't keep up"):
            await leader.turn()

    asyncio.run(main())
