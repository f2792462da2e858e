"""An Alertmanager has an alert per problem, so it hears of each problem and of each end, whatever a group has room for."""

import json
from collections.abc import Callable

import pytest
from notified_world import ADMIN, NotifiedWorld
from routed_world import GROUPED, Story, happens, pass_time

from virtha.alerts.alertmanager_body import alertmanager_body
from virtha.control.known_settings import DAY_MS
from virtha.control.requests import ReceiverCreate, SettingPut
from virtha.model.ids import DeliveryId, Revision
from virtha.model.notification import AlertmanagerSettings
from virtha.model.routing import FateState, GroupBy
from virtha.model.time import UtcMillis, format_utc


async def subscribe_alerts(
    world: NotifiedWorld, *, resolve_after_ms: int = 7 * DAY_MS, **wanted: object
) -> None:
    settings = AlertmanagerSettings(
        url="https://alerts.example.org", resolve_after_ms=resolve_after_ms
    )
    await world.control.receivers.create(ADMIN, ReceiverCreate(name="alerts", settings=settings))
    await world.subscribe("alerts", **wanted)


async def named_in(world: NotifiedWorld) -> dict[Revision, DeliveryId]:
    """By event, the last message to the Alertmanager that names it."""
    told = [view.delivery for view in await world.deliveries(receiver="alerts")]
    return {
        one: delivery.id
        for delivery in told
        for one in (delivery.about.revisions if delivery.about else (delivery.event_revision,))
    }


@pytest.mark.req("W7", "F4")
def test_what_is_counted_and_told_in_one_step_is_named(tell: Callable[[Story], None]) -> None:
    """A group fills within one batch: who is told nothing but a number there has an alert as well, and its fate is of the
    message that names it. Another route in the same step has fates of its own."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        await subscribe_alerts(world, **GROUPED)
        made = [await happens(world, "vm.crashed", "h1", f"v{number}") for number in range(260)]
        await world.route_all()
        await pass_time(world, 3_600)
        named = await named_in(world)
        assert [one for one in made if one not in named] == []
        for revision in made[::10]:
            fates = (await world.control.events.fates(revision)).routes
            assert {one.state for one in fates} == {FateState.TOLD}
            by_route = {one.subscription: one.delivery_id for one in fates}
            assert by_route["alerts-1"] == named[revision]

    tell(story)


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("grouped", [True, False])
def test_an_end_is_told_though_nobody_remembers_its_problem(
    tell: Callable[[Story], None], grouped: bool
) -> None:
    """More problems than a group or a route has room for: else those alerts would stand for a week. A mail tells no ends
    of what it told as a number."""

    async def story(world: NotifiedWorld) -> None:
        wanted = GROUPED if grouped else {**GROUPED, "group_by": GroupBy.NONE}
        number = 260 if grouped else 600
        await subscribe_alerts(world, **wanted, solved=True)
        made = [await happens(world, "vm.agent.lost", "h1", f"v{one}") for one in range(number)]
        await pass_time(world, 3_600)
        began = await named_in(world)  # a list has a thousand at most
        # Elsewhere by now, with labels of their own; others have no end for anybody here.
        ends = [
            await happens(world, "vm.agent.connected", "h2", f"v{one}") for one in range(number)
        ]
        nothing = await happens(world, "host.lease.reset", "h3")
        await world.route_all()
        await pass_time(world, 3_600)
        named = began | await named_in(world)
        assert [one for one in (*made, *ends) if one not in named] == []
        assert nothing in named

    tell(story)


def test_others_are_told_only_of_the_ends_of_what_they_were_told(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED, solved=True)
        await subscribe_alerts(world, **GROUPED, solved=True)
        end = await happens(world, "vm.agent.connected", "h2", "v1")
        unwanted = await happens(world, "vm.started", "h2", "v1", by="somebody")
        await world.route_all()
        await pass_time(world, 3_600)
        assert await world.deliveries(receiver="mail1") == []
        assert {end, unwanted} <= {*await named_in(world)}

    tell(story)


async def standing(world: NotifiedWorld) -> set[tuple[tuple[str, str], ...]]:
    """The labels of all alerts that began and did not end by what is to be posted; takes nothing out of the queue."""
    view = await world.control.receivers.get("alerts")
    due = await world.control.deliveries.due(view.receiver.id, 100)
    assert due is not None and isinstance(due.receiver.settings, AlertmanagerSettings)
    stands = set()
    now = UtcMillis(world.clock.wall)
    for one in due.items:
        assert one.message is not None
        for alert in json.loads(alertmanager_body(one.message, due.receiver.settings, now)):
            labels = tuple(sorted(alert["labels"].items()))
            (stands.add if alert["endsAt"] > format_utc(now) else stands.discard)(labels)
    return stands


@pytest.mark.req("W7", "F4")
@pytest.mark.parametrize("group_by", [GroupBy.CAUSE, GroupBy.NONE])
@pytest.mark.parametrize("end", ["host.returned", "host.incident_over", "host.removed"])
def test_an_end_that_names_no_part_ends_the_alerts_of_all_parts(
    tell: Callable[[Story], None], end: str, group_by: GroupBy
) -> None:
    """Of that host. Else the alert of a lease, which has its domain among its labels, stands for a week after the host is back."""

    async def story(world: NotifiedWorld) -> None:
        wanted = {**GROUPED, "group_by": group_by, "codes": ("host.*", "power.*")}
        await subscribe_alerts(world, **wanted, solved=True)
        for domain in ("d1", "d2"):
            await happens(world, "host.lease.lost", "h1", domain=domain)
            await happens(world, "host.lease.lost", "h2", domain=domain)
        await world.route_all()
        await pass_time(world, 60)
        await happens(world, "power.test.broke", "h1", device="bmc", why="?")
        await world.route_all()
        await pass_time(world, 3_600)
        assert len(await standing(world)) == 5
        await happens(world, end, "h1", vms="1", after_ms="1")
        await world.route_all()
        await pass_time(world, 3_600)
        stands = [dict(one) for one in await standing(world)]
        left = [one for one in stands if one["alertname"] == "host.lease.lost"]
        assert sorted((one["host"], one["domain"]) for one in left) == [("h2", "d1"), ("h2", "d2")]
        broken = any(one["alertname"] == "power.test.broke" for one in stands)
        assert broken is (end != "host.removed"), "its device is as it was"

    tell(story)


async def posted(world: NotifiedWorld, last: int) -> list[dict[str, str]]:
    """The labels of what the newest of ``last`` messages says."""
    view = await world.control.receivers.get("alerts")
    due = await world.control.deliveries.due(view.receiver.id, 100)
    assert due is not None and isinstance(due.receiver.settings, AlertmanagerSettings)
    assert len(due.items) == last
    message = due.items[-1].message
    assert message is not None
    now = UtcMillis(world.clock.wall)
    return [
        one["labels"] for one in json.loads(alertmanager_body(message, due.receiver.settings, now))
    ]


@pytest.mark.req("W7", "F4")
def test_only_what_was_is_ended(tell: Callable[[Story], None]) -> None:
    """An Alertmanager that groups tells its people of each end, though it knew no problem of it: at a VM's every start."""

    async def story(world: NotifiedWorld) -> None:
        await subscribe_alerts(world, codes=("vm.*", "host.*"), solved=True)
        await happens(world, "vm.crashed", "h1", "v1")
        await happens(world, "vm.started", "h1", "v2", by="somebody")
        await world.route_all()
        assert await posted(world, 2) == [], "v2 had no trouble"
        await happens(world, "vm.restarted", "h2", "v1", took_ms="1")
        await world.route_all()
        assert [one["alertname"] for one in await posted(world, 3)] == ["vm.crashed"]
        await happens(world, "host.lease.lost", "h1", domain="d1")
        await world.route_all()
        await happens(world, "host.returned", "h1")
        await world.route_all()
        ended = await posted(world, 5)
        assert {"host.lease.lost", "d1"} <= {*ended[-1].values()}, "by its part"
        assert {one["alertname"] for one in ended} == {"host.lease.lost"}
        await happens(world, "host.returned", "h2")
        await world.route_all()
        assert await posted(world, 6) == [], "h2 was there all the time"

    tell(story)


def test_where_events_are_forgotten_before_their_alerts_each_end_is_told(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await subscribe_alerts(world, resolve_after_ms=8 * DAY_MS, codes=("vm.*",), solved=True)
        await world.control.settings.put(ADMIN, "event.retention", SettingPut(value="7d"))
        await happens(world, "vm.restarted", "h1", "v1", took_ms="1")
        await world.route_all()
        ended = {one["alertname"] for one in await posted(world, 1)}
        assert {"vm.crashed", "vm.panicked", "vm.guest_frozen"} <= ended

    tell(story)
