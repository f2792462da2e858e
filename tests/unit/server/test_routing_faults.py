"""What becomes of messages where routing itself fails, its records are damaged, or the clock is wrong."""

from collections.abc import Callable

import pytest
from notified_world import ADMIN, NotifiedWorld
from routed_world import GROUPED, Story, happens, pass_time
from sqlalchemy import update

from virtha.alerts.router import Decision, Router
from virtha.model.routing import FateState
from virtha.store.routing import all_groups
from virtha.store.schema import route_group


def test_a_fault_of_the_router_keeps_nobody_from_being_told(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event by itself, at once; what waited is told when the fault is mended."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        waiting = await happens(world, "vm.agent.lost", "h1", "v0")
        await world.route_all()
        with monkeypatch.context() as broken:
            broken.setattr(Router, "step", _fault)
            crashed = await happens(world, "vm.crashed", "h1", "v1")
            await pass_time(world, 60)
            (view,) = await world.deliveries()
            assert view.delivery.event_revision == crashed and view.delivery.about is None
            (fate,) = (await world.control.events.fates(crashed)).routes
            assert (fate.state, fate.code) == (FateState.TOLD, "notify.why.told_plainly")
        await pass_time(world, 60)
        assert [view.delivery.event_revision for view in await world.deliveries()] == [
            crashed,
            waiting,
        ]

    tell(story)


def test_a_group_at_which_the_router_fails_is_given_up_after_a_while(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in it is told one by one; a group whose time has not come stays."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        waiting = [await happens(world, "vm.agent.lost", "h1", f"v{number}") for number in range(2)]
        await world.route_all()
        with monkeypatch.context() as broken:
            broken.setattr(Router, "step", _fault)
            await pass_time(world, 600)
            assert await world.deliveries() == []
            await pass_time(world, 60)
        views = await world.deliveries()
        assert [view.delivery.event_revision for view in views] == waiting
        for revision in waiting:
            (fate,) = (await world.control.events.fates(revision)).routes
            assert (fate.state, fate.code) == (FateState.TOLD, "notify.why.told_plainly")
        await pass_time(world, 60)
        assert len(await world.deliveries()) == 2

    tell(story)


def test_a_group_that_nobody_can_read_is_told_one_by_one(
    tell: Callable[[Story], None],
) -> None:
    """And keeps nobody else's messages back; of a route that is gone nothing is told."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        await world.subscribe_mail("mail2", **GROUPED)
        lost = await happens(world, "vm.agent.lost", "h1", "v0")
        await world.route_all()
        async with world.store.write() as tx:
            await tx.connection.execute(update(route_group).values(body='{"id": "of another age"}'))
        await world.control.subscriptions.delete(ADMIN, "mail2-1")
        world.control.deliveries.routing.forget()
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        assert [view.delivery.event_revision for view in await world.deliveries()] == [lost]
        fates = {one.subscription: one for one in (await world.control.events.fates(lost)).routes}
        assert fates["mail1-1"].code == "notify.why.told_plainly"
        assert fates[None].code == "notify.why.dropped"
        await pass_time(world, 10)
        assert [view.delivery.event_revision for view in await world.deliveries()] == [
            lost,
            crashed,
        ]

    tell(story)


def test_what_waits_is_told_soon_where_the_clock_is_set_back(
    tell: Callable[[Story], None],
) -> None:
    """Too early rather than a day too late, and though nothing happens that makes anybody look."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        lost = await happens(world, "vm.agent.lost", "h1", "v0")
        await world.route_all()
        await pass_time(world, -86_400)
        assert [view.delivery.event_revision for view in await world.deliveries()] == [lost]

    tell(story)


def test_what_waited_at_the_last_route_is_dropped_though_the_server_was_killed(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        lost = await happens(world, "vm.agent.lost", "h1", "v0")
        await world.route_all()
        await world.control.subscriptions.delete(ADMIN, "mail1-1")
        world.control.deliveries.routing.forget()
        await world.route_all()
        (fate,) = (await world.control.events.fates(lost)).routes
        assert fate.code == "notify.why.dropped"
        async with world.store.read() as tx:
            assert (await all_groups(tx)).groups == ()

    tell(story)


def test_events_are_told_where_it_fails_to_say_whether_they_concern_anybody(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",))
        monkeypatch.setattr(Router, "concerned", _fault)
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        (view,) = await world.deliveries()
        assert view.delivery.event_revision == crashed

    tell(story)


def test_a_fault_in_looking_does_not_end_the_notifier(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.server.notifier.FAULT_PAUSE_S", 0.001)

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",))
        await happens(world, "vm.crashed", "h1", "v1")
        with monkeypatch.context() as broken:
            faults = 0

            async def fault(*_given: object) -> None:
                nonlocal faults
                faults += 1
                raise ZeroDivisionError

            broken.setattr("virtha.control.event_routing.routing_config", fault)
            async with world.notifying():
                await world.until(lambda: faults > 3)
                broken.undo()
                await world.until(lambda: world.messengers.sent)

    tell(story)


def _fault(*_given: object) -> Decision:
    raise ZeroDivisionError
