"""What is told weeks after it happened: its event is kept for it, however short events are kept otherwise."""

from collections.abc import Callable

import pytest
from notified_world import ADMIN, NotifiedWorld
from routed_world import GROUPED, Story, happens, pass_time
from sqlalchemy import delete

from virtha.control.requests import MatcherRequest, SettingPut, SilenceCreate
from virtha.model.codes import Severity
from virtha.model.notification import DeliveryState
from virtha.store.events import find_event
from virtha.store.installations import the_installation
from virtha.store.schema import event

DAY_S = 86_400
DAYS = 29 * DAY_S


async def _prune(world: NotifiedWorld) -> None:
    await world.control.events.prune()
    await world.control.deliveries.prune()


async def _keep_events_for_a_week(world: NotifiedWorld) -> None:
    await world.control.settings.put(ADMIN, "event.retention", SettingPut(value="7d"))


@pytest.mark.req("W7", "X1")
def test_what_was_silenced_for_longer_than_events_are_kept_is_told(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await _keep_events_for_a_week(world)
        await world.subscribe_mail(codes=("vm.*",))
        asked = SilenceCreate(
            reason="work", matcher=MatcherRequest(codes=("*",)), duration_ms=DAYS * 1_000
        )
        await world.control.silences.create(ADMIN, asked)
        lost = await happens(world, "vm.crashed", "h1", "v1")
        over = await happens(world, "vm.watchdog.fired", "h1", "v1")
        await world.route_all()
        await pass_time(world, 28 * DAY_S)
        await _prune(world)
        async with world.store.read() as tx:
            assert await find_event(tx, lost) is not None and await find_event(tx, over) is None
        await pass_time(world, DAY_S)
        await _prune(world)
        async with world.notifying():
            await world.until(lambda: world.messengers.sent)
        assert [one.event.revision for one in world.messengers.sent] == [lost]
        assert await world.states() == [DeliveryState.SENT.value]
        await _prune(world)
        async with world.store.read() as tx:
            assert await find_event(tx, lost) is None, "it is told"

    tell(story)


def test_what_goes_on_for_longer_than_events_are_kept_is_repeated(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await _keep_events_for_a_week(world)
        await world.subscribe_mail(**GROUPED, repeat_ms=20 * DAY_S * 1_000)
        lost = await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        await pass_time(world, 10)
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 1)
        await pass_time(world, 19 * DAY_S)
        await _prune(world)
        await pass_time(world, DAY_S)
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 2)
        assert [one.event.revision for one in world.messengers.sent] == [lost, lost]

    tell(story)


def test_followers_are_not_told_that_all_is_there_above_what_was_spared(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await _keep_events_for_a_week(world)
        await world.subscribe_mail(**GROUPED)
        lost = await happens(world, "vm.crashed", "h1", "v1")
        later = await happens(world, "server.stopped")
        await pass_time(world, 10)
        await pass_time(world, 8 * DAY_S)
        await _prune(world)
        await _prune(world)
        async with world.store.read() as tx:
            assert await find_event(tx, lost) is not None and await find_event(tx, later) is None
            assert (await the_installation(tx)).events_pruned_to >= later

    tell(story)


def test_a_message_whose_event_is_gone_is_told_as_expired(tell: Callable[[Story], None]) -> None:
    """Of a damaged or restored database: nobody will be told, so that is told."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",), severity=Severity.WARNING)
        lost = await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        async with world.store.write() as tx:
            await tx.connection.execute(delete(event).where(event.c.revision == lost))
        async with world.notifying():
            await world.until(lambda: world.events("notify.expired"))
        (told,) = await world.events("notify.expired")
        assert told.fields["count"] == 1
        assert await world.states() == [DeliveryState.EXPIRED.value]

    tell(story)
