"""A record of a later version, or one that was damaged, keeps nobody from being told: where in doubt, too much is."""

import asyncio
from collections.abc import Callable

import pytest
from notified_world import ADMIN, WAIT_S, NotifiedWorld
from routed_world import GROUPED, INCIDENT, Story, happens, host_dies, pass_time
from sqlalchemy import Table, select, update

from virtha.control.history import severity_of
from virtha.control.requests import InhibitionCreate, MatcherRequest, SilenceCreate, UserChange
from virtha.model.codes import Severity
from virtha.model.errors import Failed, NotFound
from virtha.model.ids import Revision
from virtha.model.routing import FateState, GroupBy
from virtha.server.notifier import Sender
from virtha.store.schema import (
    delivery,
    event,
    incident_vm,
    inhibition,
    receiver,
    silence,
    subscription,
    user_account,
)

STRANGE = '{"severity": "of a later version"}'


async def damage(world: NotifiedWorld, table: Table, name: str | None = None) -> str:
    """All of a table, or the one of that name. Returns the record as it was."""
    async with world.store.write() as tx:
        which = table.c.name == name if name is not None else table.c.id.is_not(None)
        before = await tx.connection.scalar(select(table.c.body).where(which))
        await tx.connection.execute(update(table).where(which).values(body=STRANGE))
    return str(before)


async def told(world: NotifiedWorld, to: str) -> list[Revision]:
    return [one.delivery.event_revision for one in await world.deliveries(receiver=to)]


@pytest.mark.req("W7", "F4")
def test_a_silence_or_a_rule_that_nobody_can_read_keeps_nothing_back(
    tell: Callable[[Story], None],
) -> None:
    """It is told once, and what it would have kept back is told; the rule can be removed."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*", "notify.record_unreadable"))
        every = MatcherRequest(codes=("vm.*",))
        await world.control.silences.create(
            ADMIN, SilenceCreate(reason="work", matcher=every, duration_ms=3_600_000)
        )
        gone = MatcherRequest(codes=("host.unreachable",))
        wanted = InhibitionCreate(name="down", source=gone, target=every)
        await world.control.inhibitions.create(ADMIN, wanted)
        await damage(world, silence)
        await damage(world, inhibition)
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        events = await world.events("notify.record_unreadable")
        assert [one.fields["kind"] for one in events] == ["inhibition", "silence"]
        assert events[0].fields["name"] == "down"
        await world.route_all()
        assert await told(world, "mail1") == [crashed, *(one.revision for one in events)]
        await happens(world, "vm.crashed", "h1", "v2")
        await world.route_all()
        assert len(await world.events("notify.record_unreadable")) == 2
        assert (await world.control.inhibitions.list()).items == ()
        await world.control.inhibitions.delete(ADMIN, "down")
        with pytest.raises(NotFound):
            await world.control.inhibitions.delete(ADMIN, "down")

    tell(story)


@pytest.mark.req("W7", "F4")
def test_a_route_that_nobody_can_read_keeps_none_of_the_others(
    tell: Callable[[Story], None],
) -> None:
    """What it was about to tell waits for it, and it is told when it can be read again: an event each time."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        await world.subscribe_mail("mail2", codes=("vm.*",), severity=Severity.WARNING)
        waiting = await happens(world, "vm.crashed", "h1", "v0")
        await world.route_all()
        body = await damage(world, subscription, "mail1-1")
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        await pass_time(world, 60)
        assert await told(world, "mail2") == [waiting, crashed]
        (told_of,) = await world.events("notify.record_unreadable")
        assert (told_of.fields["kind"], told_of.fields["name"]) == ("subscription", "mail1-1")
        async with world.store.write() as tx:
            mine = subscription.c.name == "mail1-1"
            await tx.connection.execute(update(subscription).where(mine).values(body=body))
        await pass_time(world, 60)
        assert await told(world, "mail1") == [waiting]
        fates = (await world.control.events.fates(waiting)).routes
        assert {one.state for one in fates} == {FateState.TOLD}
        await damage(world, subscription, "mail1-1")
        await world.route_all()
        assert len(await world.events("notify.record_unreadable")) == 2

    tell(story)


@pytest.mark.req("W7", "F4")
def test_a_receiver_that_nobody_can_read_keeps_none_of_the_others(
    tell: Callable[[Story], None],
) -> None:
    """Also where a group of its own counts more than it names."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**{**GROUPED, "group_by": GroupBy.CLUSTER})
        await world.subscribe_mail("mail2", codes=("vm.*",), severity=Severity.WARNING)
        await damage(world, receiver, "mail1")
        made = [await happens(world, "vm.crashed", "h1", f"v{number}") for number in range(210)]
        await pass_time(world, 3_600)
        async with world.store.read() as tx:
            column = delivery.c.event_revision
            query = select(column).order_by(delivery.c.number)
            found = [*await tx.connection.scalars(query.where(delivery.c.about.is_(None)))]
        assert found == made
        (told_of,) = await world.events("notify.record_unreadable")
        assert (told_of.fields["kind"], told_of.fields["name"]) == ("receiver", "mail1")

    tell(story)


@pytest.mark.req("W7", "F4")
def test_a_message_that_nobody_can_read_holds_up_none_behind_it(
    tell: Callable[[Story], None],
) -> None:
    """Of what it is about its main event is told; a route that can't be read by then changes nothing of what is on its way."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        crashed = [await happens(world, "vm.crashed", "h1", f"v{number}") for number in range(2)]
        await world.route_all()
        await pass_time(world, 10)
        behind = await happens(world, "vm.crashed", "h2", "v9")
        await world.route_all()
        await pass_time(world, 10)
        async with world.store.write() as tx:
            first = delivery.c.event_revision == crashed[0]
            await tx.connection.execute(update(delivery).where(first).values(about=STRANGE))
        await damage(world, subscription)
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 2)
        sent = world.messengers.sent
        assert [one.event.revision for one in sent] == [crashed[0], behind]
        assert {one.address for one in sent} == {"operators@example.org"}

    tell(story)


@pytest.mark.req("W7", "F4")
def test_an_event_that_nobody_can_read_is_told_by_its_columns_and_holds_up_none_behind_it(
    tell: Callable[[Story], None],
) -> None:
    """One of no route's, too: with each an event tells, once."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",), severity=Severity.WARNING)
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        unwanted = await happens(world, "hold.lifted")
        behind = await happens(world, "vm.crashed", "h1", "v2")
        async with world.store.write() as tx:
            both = event.c.revision.in_((crashed, unwanted))
            await tx.connection.execute(update(event).where(both).values(body=STRANGE))
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 2)
        first, second = world.messengers.sent
        assert [first.event.revision, second.event.revision] == [crashed, behind]
        told = (first.event.code, first.event.severity, first.event.host_id, first.event.vm_id)
        assert told == ("vm.crashed", severity_of("vm.crashed"), "h1", "v1")
        assert first.event.message == "vm.crashed: the rest of its record can't be read"
        assert first.event.at == second.event.at
        world.control.deliveries.routing.forget()
        await world.route_all()
        bad = await world.events("notify.record_unreadable")
        assert {one.fields["kind"] for one in bad} == {"event"}
        assert sorted(int(str(one.fields["name"])) for one in bad) == [crashed, unwanted]
        views = await world.deliveries()
        assert [one.event and one.event.code for one in views] == ["vm.crashed", "vm.crashed"]

    tell(story)


@pytest.mark.req("W7", "F4")
def test_what_a_message_names_and_nobody_can_read_is_left_out_of_it(
    tell: Callable[[Story], None],
) -> None:
    """Of a failure's VMs the others are named, and it says how many are not; an event tells of it once."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        await host_dies(world)
        await world.route_all()
        await pass_time(world, 10)
        async with world.store.write() as tx:
            mine = incident_vm.c.vm_id == "v3"
            await tx.connection.execute(update(incident_vm).where(mine).values(body=STRANGE))
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 1)
        await happens(world, "vm.quarantined", "h1", "v5", incident_id=INCIDENT, hosts="2")
        await world.route_all()
        await pass_time(world, 600)
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) > 1)
        group = world.messengers.sent[0].group
        assert group is not None and group.vms_left_out == 1
        assert [one.vm for one in group.vms] == ["web0", "web1", "web2", "web4", "web5"]
        (told,) = await world.events("notify.record_unreadable")
        assert (told.fields["kind"], told.fields["name"]) == ("vmpath", "v3")

    tell(story)


@pytest.mark.req("W7", "F4")
def test_a_receiver_that_nobody_can_read_is_not_asked_for_for_ever(
    tell: Callable[[Story], None],
) -> None:
    """Its sender ends, to be begun anew at the next look; what waited for it expires, of which the others are told."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",))
        await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        await world.subscribe_mail("mail2", codes=("vm.*", "notify.expired"))
        (waiting,) = await world.deliveries()
        await damage(world, receiver, "mail1")
        deliveries, receiver_id = world.control.deliveries, waiting.delivery.receiver_id
        sender = Sender(receiver_id, deliveries, world.messengers, world.metrics, lambda: None)
        with pytest.raises(Failed) as failed:
            async with asyncio.timeout(WAIT_S):
                await sender.run()
        assert failed.value.code == "problem.record.unknown"
        world.clock.wall += 40 * 86_400_000
        crashed = await happens(world, "vm.crashed", "h1", "v2")
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 2)
        sent = [(one.event.revision, one.event.code) for one in world.messengers.sent]
        assert (crashed, "vm.crashed") in sent
        (expired,) = await world.events("notify.expired")
        assert (expired.revision, "notify.expired") in sent
        assert expired.fields["receiver"] == receiver_id

    tell(story)


@pytest.mark.req("W7", "F4")
def test_where_nothing_can_be_expired_what_waits_is_sent(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: NotifiedWorld) -> None:
        async def refused() -> int:
            raise Failed("a fault of one record", code="problem.record.unknown")

        await world.subscribe_mail(codes=("vm.*",))
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        monkeypatch.setattr(world.control.deliveries, "expire", refused)
        async with world.notifying():
            await world.until(lambda: world.messengers.sent)
        assert world.messengers.sent[0].event.revision == crashed

    tell(story)


@pytest.mark.req("W7", "F4")
def test_a_user_with_a_role_of_a_later_version_is_told_by_mail(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        users = world.control.users
        await users.change(ADMIN, "admin", UserChange(email="eve@example.org"))
        await world.subscribe(user="admin", address=None)
        await world.happen(1)
        await world.route_all()
        async with world.store.write() as tx:
            await tx.connection.execute(update(user_account).values(role="of a later version"))
        async with world.notifying():
            await world.until(lambda: world.messengers.sent)
        assert world.messengers.sent[0].address == "eve@example.org"

    tell(story)
