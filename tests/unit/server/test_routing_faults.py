"""What becomes of messages where routing itself fails, its records are damaged, or the clock is wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from notified_world import ADMIN, NotifiedWorld
from played_receivers import NEVER
from routed_world import GROUPED, Story, happens, pass_time
from sqlalchemy import update

from virtha.alerts.decision import Decision
from virtha.alerts.router import Router
from virtha.control.requests import (
    InhibitionCreate,
    MatcherRequest,
    ReceiverChange,
    SilenceCreate,
)
from virtha.model.codes import Severity
from virtha.model.routing import FateState, MemberState
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


def test_a_fault_at_one_event_leaves_the_others_to_their_routes(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred are looked at together; for one of them all were told plainly."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        _faulty_for(monkeypatch, "v2")
        made = [await happens(world, "vm.crashed", "h1", f"v{number}") for number in range(5)]
        await world.route_all()
        (view,) = await world.deliveries()
        assert view.delivery.event_revision == made[2]
        await pass_time(world, 10)
        _, view = await world.deliveries()
        assert view.delivery.about is not None
        assert view.delivery.about.revisions == (*made[:2], *made[3:])

    tell(story)


@pytest.mark.req("W7", "F4")
def test_the_end_of_a_problem_is_told_and_ends_it_though_the_router_fails(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of no severity that the route asks for: it was lost, and its problem was repeated for ever."""

    async def story(world: NotifiedWorld) -> None:
        wanted = {**GROUPED, "repeat_ms": 3_600_000}
        await world.subscribe_mail(**wanted)
        await world.subscribe_mail("mail2", codes=("vm.crashed",), severity=Severity.WARNING)
        for number in range(2):
            await happens(world, "vm.crashed", "h1", f"v{number}")
        await world.route_all()
        await pass_time(world, 10)
        held = await happens(world, "vm.crashed", "h2", "v3")
        silenced = SilenceCreate(
            reason="work", matcher=MatcherRequest(codes=("vm.panicked",)), duration_ms=60_000
        )
        await world.control.silences.create(ADMIN, silenced)
        parked = await happens(world, "vm.panicked", "h2", "v4")
        await world.route_all()
        known = len(await world.deliveries())
        with monkeypatch.context() as broken:
            broken.setattr(Router, "step", _fault)
            ends = [await happens(world, "vm.restarted", "h1", f"v{n}") for n in (0, 3, 4)]
            await world.route_all()
        told = [view.delivery.event_revision for view in (await world.deliveries())[known:]]
        assert told == ends
        (fate,) = (await world.control.events.fates(parked)).routes[:1]
        assert fate.code == "notify.why.solved_untold"
        async with world.store.read() as tx:
            members = [one for group in (await all_groups(tx)).groups for one in group.members]
        assert {(one.event.vm_id, one.state, one.solved) for one in members if one.event.vm_id} == {
            ("v1", MemberState.OPEN, False),
            ("v3", MemberState.HELD, True),
        }
        await pass_time(world, 10)
        (fate, *_) = (await world.control.events.fates(held)).routes
        assert fate.state is FateState.TOLD

    tell(story)


def test_the_end_of_all_is_the_end_where_the_router_fails(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        await happens(world, "host.judged_dead", "h1", incident_id="I")
        await happens(world, "vm.crashed", "h2", "v1")
        await world.route_all()
        await pass_time(world, 10)
        with monkeypatch.context() as broken:
            broken.setattr(Router, "step", _fault)
            await happens(world, "host.incident_over", "h1", incident_id="I")
            await happens(world, "vm.deleted", None, "v1")
            await world.route_all()
        async with world.store.read() as tx:
            groups = (await all_groups(tx)).groups
        assert not any(group.members or group.incident_open for group in groups)
        monkeypatch.setattr("virtha.alerts.plain.ends_at", _fault)
        monkeypatch.setattr(Router, "step", _fault)
        crashed = await happens(world, "vm.crashed", "h2", "v2")
        await happens(world, "vm.restarted", "h2", "v2")
        await world.route_all()
        assert crashed in [view.delivery.event_revision for view in await world.deliveries()]

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


@pytest.mark.req("W7", "F4")
def test_what_is_switched_off_is_not_given_up_where_the_router_fails(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its groups are long due, and not because of the router."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        lost = await happens(world, "vm.agent.lost", "h1", "v1")
        await world.route_all()
        await world.control.receivers.change(ADMIN, "mail1", ReceiverChange(enabled=False))
        await world.route_all()
        await pass_time(world, 660)
        with monkeypatch.context() as broken:
            broken.setattr(Router, "step", _fault)
            await happens(world, "vm.agent.connected", "h1", "v2")
            world.control.deliveries.routing.forget()
            await world.route_all()
        await world.control.receivers.change(ADMIN, "mail1", ReceiverChange(enabled=True))
        await pass_time(world, 60)
        assert [view.delivery.event_revision for view in await world.deliveries()] == [lost]

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


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("ends", [True, False])
def test_a_receiver_that_is_switched_off_for_a_minute_is_told_what_goes_on(
    tell: Callable[[Story], None], ends: bool
) -> None:
    """Though it is the only one, and the server begins anew meanwhile."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        every = MatcherRequest(codes=("vm.*",))
        await world.control.silences.create(
            ADMIN, SilenceCreate(reason="work", matcher=every, duration_ms=3_600_000)
        )
        parked = await happens(world, "vm.quarantined", "h1", "v1", hosts="2")
        await world.route_all()
        await world.control.receivers.change(ADMIN, "mail1", ReceiverChange(enabled=False))
        await world.route_all()
        world.control.deliveries.routing.forget()
        await pass_time(world, 60)
        if ends:
            await happens(world, "vm.freed", "h1", "v1", by="eve")
            await world.route_all()
        await world.control.receivers.change(ADMIN, "mail1", ReceiverChange(enabled=True))
        await pass_time(world, 3_600)
        await pass_time(world, 60)
        told = [view.delivery.event_revision for view in await world.deliveries()]
        assert (parked in told) is not ends

    tell(story)


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("expires", [True, False])
def test_a_message_that_reached_nobody_explains_nothing(
    tell: Callable[[Story], None], expires: bool
) -> None:
    """The receiver took no word of the host, or was away for too long, and was told of none of its VMs."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("host.*", "vm.*"), severity=Severity.WARNING, solved=True)
        source, target = (
            MatcherRequest(codes=(code,)) for code in ("host.unreachable", "vm.agent.lost")
        )
        wanted = InhibitionCreate(name="down", source=source, target=target)
        await world.control.inhibitions.create(ADMIN, wanted)
        await happens(world, "host.unreachable", "h1")
        await world.route_all()
        lost = await happens(world, "vm.agent.lost", "h1", "v1")
        await world.route_all()
        assert lost not in [view.delivery.event_revision for view in await world.deliveries()]
        if expires:
            world.clock.wall += 40 * 86_400_000
            assert await world.control.deliveries.expire() == 1
        else:
            world.messengers.answer = lambda _message: NEVER
            async with world.notifying():
                await world.until(lambda: world.events("notify.refused"))
        await world.route_all()
        await pass_time(world, 60)
        assert lost in [view.delivery.event_revision for view in await world.deliveries()]

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


def _faulty_for(monkeypatch: pytest.MonkeyPatch, vm: str) -> None:
    step = Router.step

    def faulty(router: Router, now: int, config: Any, events: Any, *more: Any) -> Decision:
        if any(one.vm_id == vm for one in events):
            raise ZeroDivisionError
        return step(router, now, config, events, *more)

    monkeypatch.setattr(Router, "step", faulty)


def _fault(*_given: object) -> Decision:
    raise ZeroDivisionError
