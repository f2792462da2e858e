"""A record of a later version, or one that was damaged, keeps nobody from being told: where in doubt, too much is."""

from collections.abc import Callable

import pytest
from notified_world import ADMIN, NotifiedWorld
from routed_world import GROUPED, Story, happens, pass_time
from sqlalchemy import Table, select, update

from virtha.control.requests import InhibitionCreate, MatcherRequest, SilenceCreate
from virtha.model.codes import Severity
from virtha.model.errors import NotFound
from virtha.model.ids import Revision
from virtha.model.routing import FateState, GroupBy
from virtha.store.schema import delivery, inhibition, receiver, silence, subscription

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
        (event,) = await world.events("notify.record_unreadable")
        assert (event.fields["kind"], event.fields["name"]) == ("subscription", "mail1-1")
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
        (event,) = await world.events("notify.record_unreadable")
        assert (event.fields["kind"], event.fields["name"]) == ("receiver", "mail1")

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
