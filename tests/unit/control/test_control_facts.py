"""What hosts report: recorded once, in order, whatever comes twice or late."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from virtha.control.history import severity_of
from virtha.control.incident_fold import AGENT_ANSWERS
from virtha.control.requests import EventQuery, VmStart
from virtha.control.views import Caller
from virtha.model.codes import Severity
from virtha.model.domain import DomainReport, DomainState
from virtha.model.errors import Gone, InvalidInput, NotFound, Refused
from virtha.model.event import PAST
from virtha.model.facts import Happened, HostReport, Inventory, StorageReport, VmReport
from virtha.model.host import HostCapabilities, HostState
from virtha.model.ids import BootId, Incarnation, Revision, StorageDomainId, VmId
from virtha.model.user import Role
from virtha.model.vm import VmState
from virtha.store.events import EventFilter, events_after
from virtha.store.vms import save_vm_status

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]


def fired(vm_id: VmId) -> Happened:
    return Happened(
        code="vm.watchdog.fired",
        vm_id=vm_id,
        incarnation=Incarnation(1),
        fields={"action": "reset", "model": "i6300esb"},
    )


@pytest.mark.req("W7")
def test_facts_that_come_again_are_recorded_once(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        facts = host.facts(fired(vm_id), fired(vm_id), fired(vm_id))
        record = world.control.facts.record_facts
        assert await record(host.id, facts[:2]) == facts[1].sequence
        assert await record(host.id, facts) == facts[2].sequence
        assert await record(host.id, facts) == facts[2].sequence
        events = await world.events("vm.watchdog.fired")
        assert [event.host_sequence for event in events] == [fact.sequence for fact in facts]
        assert len({event.revision for event in events}) == 3
        status = (await world.control.vms.get("web1")).status
        assert status.watchdog_count == 3
        assert status.last_watchdog == world.clock.wall_ms()
        event = events[0]
        assert event.severity is Severity.WARNING
        assert event.message == "Watchdog of web1 fired, action reset"
        assert event.host_at == world.clock.wall_ms() - 7 * 3_600_000
        assert event.at == world.clock.wall_ms(), "the host's wrong clock decides nothing"

    tell(story)


def test_a_batch_is_recorded_whole_or_not_at_all(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        facts = host.facts(fired(vm_id), fired(vm_id))
        broken = [facts[0], "no fact"]
        with pytest.raises(AttributeError):
            await world.control.facts.record_facts(host.id, broken)
        assert await world.events("vm.watchdog.fired") == []
        assert (await world.control.facts.record_facts(host.id, facts)) == host.sequence
        assert len(await world.events("vm.watchdog.fired")) == 2

    tell(story)


def test_an_unknown_code_is_kept_as_a_warning(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await host.tell(Happened(code="vm.of_the_future", fields={"depth": 3}))
        (event,) = await world.events("vm.of_the_future")
        assert event.severity is Severity.WARNING
        assert "vm.of_the_future" in event.message and "depth=3" in event.message

    tell(story)


def test_reports_of_older_incarnations_and_other_hosts_are_void(tell: Tell) -> None:
    async def story(world: Any) -> None:
        h1 = await world.join("h1")
        h2 = await world.join("h2")
        await world.add_storage()
        vm_id = await world.add_vm()
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        await h1.started()
        await h1.stopped(vm_id, 1)
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        await h1.started()
        await h1.tell(VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.CRASHED))
        await h2.tell(VmReport(vm_id=vm_id, incarnation=Incarnation(9), state=VmState.CRASHED))
        status = (await world.control.vms.get("web1")).status
        assert (status.state, status.incarnation, status.host_id) == (VmState.RUNNING, 2, h1.id)

    tell(story)


@pytest.mark.req("A8")
def test_a_copy_without_a_grant_is_told_once_and_blocks_starts(tell: Tell) -> None:
    async def story(world: Any) -> None:
        h1 = await world.join("h1")
        h2 = await world.join("h2")
        await world.add_storage()
        vm_id = await world.add_vm()
        runs = DomainReport(vm_id=vm_id, name="web1", state=DomainState.RUNNING)
        await h2.tell(Inventory(revision=1, domains=(runs,)))
        await h2.tell(Inventory(revision=2, domains=(runs,)))
        (event,) = await world.events("vm.unmanaged_copy")
        assert event.severity is Severity.ALERT and event.host_id == h2.id
        with pytest.raises(Refused):
            await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        off = DomainReport(vm_id=vm_id, name="web1", state=DomainState.SHUTOFF)
        await h2.tell(Inventory(revision=3, domains=(off,)))
        await world.control.vms.start(ADMIN, "web1", VmStart(host="h1"))
        assert (await world.control.vms.get("web1")).status.holders == (h1.id,)

    tell(story)


def test_a_domain_that_is_gone_is_told_once(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        _, host = await world.run_vm()
        await host.tell(Inventory(revision=1, domains=()))
        await host.tell(Inventory(revision=2, domains=()))
        assert len(await world.events("vm.absent")) == 1
        status = (await world.control.vms.get("web1")).status
        assert status.state is VmState.UNKNOWN
        assert status.holders == (host.id,), "not seen is not released"

    tell(story)


def test_facts_about_what_is_gone_do_no_harm(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        nobody = VmId("00000000-0000-0000-0000-000000000000")
        await host.tell(
            fired(nobody),
            VmReport(vm_id=nobody, incarnation=Incarnation(1), state=VmState.RUNNING),
            StorageReport(storage_domain_id=StorageDomainId("none"), usable=True),
            HostReport(capabilities=HostCapabilities(memory_bytes=5)),
        )
        assert (await world.control.hosts.get("h1")).status.capabilities.memory_bytes == 5
        assert len(await world.events("vm.watchdog.fired")) == 1
        with pytest.raises(NotFound):
            await world.control.facts.record_facts("nobody", host.facts(fired(nobody)))

    tell(story)


def test_after_a_restore_every_host_must_speak_before_a_start(tell: Tell) -> None:
    async def story(world: Any) -> None:
        h1 = await world.join("h1")
        h2 = await world.join("h2")
        await world.add_storage()
        await world.add_vm()
        await world.control.installation.restored(path="/tmp/b.tar", by="root")
        await h1.hello()
        await h1.tell(Inventory(revision=1, domains=()))
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "web1", VmStart())
        assert refused.value.code == "start.blocked.inventory" and "h2" in str(refused.value)
        await h2.hello()
        await h2.tell(Inventory(revision=1, domains=()))
        await world.control.vms.start(ADMIN, "web1", VmStart())
        assert "server.restored" in await world.codes()

    tell(story)


@pytest.mark.req("W7")
def test_a_follower_sees_every_event_as_it_is_told(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        seen: list[int] = []
        one_more = asyncio.Event()
        begins = await world.control.events.current_revision()

        async def follow() -> None:
            query = EventQuery(code="vm.watchdog.*", vm="web1")
            place = await world.control.events.place(begins)
            async for event in world.control.events.follow(query, place):
                assert event.host_sequence is not None
                seen.append(event.host_sequence)
                one_more.set()
                if len(seen) == 20:
                    return

        follower = asyncio.create_task(follow())
        first = host.sequence + 1
        for number in range(20):
            one_more.clear()
            await host.tell(fired(vm_id))
            # Each by itself, before anything else is told that could wake the follower.
            await asyncio.wait_for(one_more.wait(), 60)
            assert seen == list(range(first, first + number + 1))
        await asyncio.wait_for(follower, 60)

    tell(story)


def test_no_fact_waits_for_the_record_of_an_incident(
    tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a body that nobody can read")

    async def story(world: Any) -> None:
        monkeypatch.setattr("virtha.control.facts.agent_answered", broken)
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, _ = await world.run_vm()
        await host.tell(Happened(code=AGENT_ANSWERS, vm_id=vm_id))
        assert len(await world.events(AGENT_ANSWERS)) == 1

    tell(story)


@pytest.mark.bad_input("stream from nowhere")
def test_a_follower_resumes_and_learns_when_it_can_not(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        before = await world.control.events.current_revision()
        for number in range(3):
            await host.tell(Happened(code="host.disk.full", fields={"count": number}))
        events = world.control.events
        place = await events.place(before)
        stream = events.follow(EventQuery(), place)
        for number in range(3):
            event = await anext(stream)
            assert (event.fields["count"], place.revision) == (number, event.revision)
        await stream.aclose()
        slow = await events.place(before)
        world.clock.advance(91 * 86_400_000)
        assert await events.prune() > 0
        with pytest.raises(Gone):
            await anext(events.follow(EventQuery(), slow))
        with pytest.raises(Gone) as caught:
            await events.place(before)
        now = await events.current_revision()
        assert f"oldest is {now}" in caught.value.fix
        assert (await events.place(now)).revision == now
        with pytest.raises(InvalidInput) as future:
            await events.place(now + 1)
        assert (future.value.code, future.value.field) == ("problem.revision.future", "after")
        with pytest.raises(Gone):
            await events.place(now, "00000000")

    tell(story)


def test_a_place_moves_on_where_nothing_is_to_be_told(tell: Tell) -> None:
    """Or whoever waits for what never happens falls behind what is kept."""

    async def story(world: Any) -> None:
        host = await world.join("h1")
        events = world.control.events
        place = await events.place(None)
        stream = events.follow(EventQuery(code="host.joined"), place)
        coming = asyncio.ensure_future(anext(stream))
        await host.tell(Happened(code="host.disk.full", fields={"count": 1}))
        now = await events.current_revision()
        async with asyncio.timeout(60):
            while place.revision < now:
                await asyncio.sleep(0.01)
        assert not coming.done()
        await world.join("h2")
        assert (await coming).revision == place.revision > now
        await stream.aclose()

    tell(story)


def test_events_are_listed_by_page_both_ways(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        for number in range(5):
            await host.tell(Happened(code="host.disk.full", fields={"count": number}))
        for order, expected in (("asc", [0, 1, 2, 3, 4]), ("desc", [4, 3, 2, 1, 0])):
            found: list[Any] = []
            after = None
            while True:
                page = await world.control.events.list(
                    EventQuery(code="host.disk.*", host="h1", order=order, limit=2, after=after)
                )
                found += [event.fields["count"] for event in page.items]
                if page.next is None:
                    break
                after = int(page.next)
            assert found == expected
        errors = await world.control.events.list(EventQuery(severity=Severity.ERROR))
        assert {event.code for event in errors.items} == {"host.disk.full"}

    tell(story)


def test_presence_is_told_as_what_it_is(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        start = len(await world.codes())
        change = world.control.hosts.presence_changed
        await change(host.id, HostState.AGENT_DOWN)
        await change(host.id, HostState.AGENT_DOWN)
        await change(host.id, HostState.UP)
        await change(host.id, HostState.UNREACHABLE)
        await host.hello(boot="h1-boot2")
        assert (await world.codes())[start:] == [
            "host.agent.down",
            "host.agent.up",
            "host.unreachable",
            "host.rebooted",
            "host.reachable",
            "host.connected",
        ]
        assert await world.host_state("h1") is HostState.UP

    tell(story)


def test_a_wrong_clock_is_told_when_it_begins(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        for offset_ms in (5, 7_200_000, 7_200_050, 3):
            await world.control.hosts.clock_measured(host.id, offset_ms)
        (event,) = await world.events("host.clock.wrong")
        assert event.fields["offset_ms"] == 7_200_000

    tell(story)


def test_a_host_that_lost_its_outbox_counts_on_from_ours(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await host.tell(Happened(code="host.disk.full"), Happened(code="host.disk.full"))
        known, host.sequence = host.sequence, 0
        answer = await host.hello()
        assert answer.fact_sequence_acknowledged == known
        host.sequence = known
        await host.tell(Happened(code="host.disk.full"))
        assert len(await world.events("host.disk.full")) == 3
        assert len(await world.events("host.outbox.truncated")) == 1

    tell(story)


def test_a_gap_in_a_hosts_history_is_told(tell: Tell) -> None:
    """The database was restored: the host had been told that these facts are recorded."""

    async def story(world: Any) -> None:
        host = await world.join("h1")
        host.sequence += 7
        await host.tell(Happened(code="host.disk.full"), Happened(code="host.disk.full"))
        (event,) = await world.events("host.facts.lost")
        assert event.fields["count"] == 7
        assert len(await world.events("host.disk.full")) == 2

    tell(story)


def test_storage_that_a_host_can_not_use_is_told_once(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        storage = (await world.add_storage()).domain.id
        for usable in (False, False, True, False):
            report = StorageReport(storage_domain_id=storage, usable=usable, detail="I/O error")
            await host.tell(report)
        events = await world.events("storage.unusable")
        assert [event.fields["detail"] for event in events] == ["I/O error", "I/O error"]
        view = await world.control.storage.get("ds1")
        assert view.usable_by == {"h1": False} and view.detail == {"h1": "I/O error"}

    tell(story)


def test_a_hello_of_a_later_term_raises_ours(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        first = await world.control.installation.started(version="1")
        answer = await world.control.hosts.hello(
            host.id,
            boot=host.boot,
            certificate_serial=host.serial,
            term_elsewhere=first + 6,
            fact_sequence_last=host.sequence,
        )
        assert answer.term == answer.settings.term == first + 7
        assert await world.control.installation.started(version="1") == first + 8

    tell(story)


def test_revisions_of_events_are_commit_order(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        await asyncio.gather(
            *(
                world.control.installation.backed_up(path=str(number), by="root")
                for number in range(10)
            ),
            host.tell(Happened(code="host.disk.full")),
        )
        async with world.store.read() as tx:
            revisions = [
                event.revision for event in await events_after(tx, EventFilter(), 0, 1_000)
            ]
            assert revisions == sorted(set(revisions))
            assert await tx.revision_now() == Revision(revisions[-1])

    tell(story)


@pytest.mark.req("X4")
def test_a_host_that_returns_calls_nobody_for_a_copy_that_runs_elsewhere_by_now(tell: Tell) -> None:
    """It tells how its copy ended with its boot, maybe hours after the VM was recovered: that stays on record."""

    async def story(world: Any) -> None:
        for name in ("h1", "h2"):
            await world.join(name)
        await world.add_storage()
        await world.add_vm()
        vm_id, first = await world.run_vm()
        second = "h2" if first.name == "h1" else "h1"
        codes = ("vm.stop.reconstructed", "vm.restart.blocked", "vm.crashed", "vm.agent.lost")
        ended = [Happened(code=code, vm_id=vm_id, incarnation=Incarnation(1)) for code in codes]
        await first.tell(*ended)
        await first.stopped(vm_id, 1)
        operation = await world.control.vms.start(ADMIN, vm_id, VmStart(host=second))
        await first.tell(*ended)  # a start under way may fail
        await world.play(operation.id)
        await first.tell(*ended)
        for code in codes:
            events = await world.events(code)
            assert [one.severity for one in events] == [*[severity_of(code)] * 2, Severity.INFO]
            assert [one.fields.get(PAST) for one in events] == [None, None, True]
        news = ("vm.agent.connected", "vm.stopped", "vm.unmanaged_copy")
        await first.tell(*(msgspec.structs.replace(ended[0], code=code) for code in news))
        late = [(await world.events(code))[-1] for code in news]
        assert [one.fields.get(PAST) for one in late] == [True, True, None]
        assert late[-1].severity is severity_of("vm.unmanaged_copy"), "it may run twice"

    tell(story)


@pytest.mark.req("W7", "F4")
def test_a_start_that_is_told_late_says_nothing_of_now(tell: Tell) -> None:
    """Of a boot that is over, or of a copy that was superseded: it ends no trouble of the VM."""

    async def story(world: Any) -> None:
        host = await world.join("h1")
        await world.add_storage()
        await world.add_vm()
        vm_id, host = await world.run_vm()
        started = Happened(code="vm.started", vm_id=vm_id, incarnation=Incarnation(1))
        await host.tell(started)
        await host.hello(boot="h1-boot2")
        (late,) = (
            msgspec.structs.replace(one, boot=BootId("h1-boot1")) for one in host.facts(started)
        )
        await world.control.facts.record_facts(host.id, [late])
        await host.tell(
            msgspec.structs.replace(started, code="vm.restarted", incarnation=Incarnation(0))
        )
        await host.tell(msgspec.structs.replace(started, code="vm.restarted"))
        events = [*await world.events("vm.started"), *await world.events("vm.restarted")]
        assert [one.fields.get(PAST) for one in events][-4:] == [None, True, True, None]
        status = (await world.control.vms.get("web1")).status
        async with world.store.write() as tx:  # as a move that failed leaves it
            await save_vm_status(tx, msgspec.structs.replace(status, incarnation=Incarnation(2)))
        await host.tell(msgspec.structs.replace(started, code="vm.restarted"))
        assert (await world.events("vm.restarted"))[-1].fields.get(PAST) is None
        async with world.store.write() as tx:
            gone = msgspec.structs.replace(
                status, incarnation=Incarnation(2), holders=(), copies=()
            )
            await save_vm_status(tx, gone)
        stopped = msgspec.structs.replace(started, code="vm.stopped")
        await host.tell(started, stopped)
        assert (await world.events("vm.started"))[-1].fields.get(PAST) is True
        assert (await world.events("vm.stopped"))[-1].fields.get(PAST) is None

    tell(story)
