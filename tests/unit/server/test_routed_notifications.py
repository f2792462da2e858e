"""Routes from events in the database to messages at receivers: grouped, silenced, killed in between."""

import asyncio
import contextlib
import zoneinfo
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from notified_world import ADMIN, NotifiedWorld
from routed_world import GROUPED, Story, happens, host_dies, host_returns, pass_time

from virtha.control.event_routing import _zone, is_zone, zone_offset_ms
from virtha.control.requests import (
    InhibitionCreate,
    MatcherRequest,
    ReceiverCreate,
    SilenceCreate,
    SilenceQuery,
    SubscriptionChange,
)
from virtha.model.codes import Severity
from virtha.model.errors import InvalidInput, NotFound, Refused, Unavailable
from virtha.model.ids import Revision
from virtha.model.notification import AlertmanagerSettings, DeliveryState
from virtha.model.routing import FateState, GroupBy, QuietHours
from virtha.store.routing import all_groups


@pytest.mark.req("W7", "F4", "X4")
def test_a_dead_host_is_one_message_with_its_vms_and_its_return_another(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        dead = await host_dies(world)
        await world.route_all()
        assert await world.deliveries() == [], "it waits for what belongs to it"
        await pass_time(world, 10)
        (view,) = await world.deliveries()
        assert view.delivery.event_revision == dead
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 1)
            await host_returns(world)
            await world.until(lambda: _route_and(world, 10))
            await world.until(lambda: len(world.messengers.sent) == 2)
        first, last = world.messengers.sent
        assert first.group is not None and first.group.note.reason == "notify.told.first"
        assert len(first.group.others) == 7 and first.group.more == 0
        assert [(one.vm, one.state, one.host) for one in first.group.vms][:3] == [
            ("web0", "runs", "h2"),
            ("web1", "runs", "h2"),
            ("web2", "waiting", None),
        ]
        assert last.group is not None and last.group.note.reason == "notify.told.well"
        assert last.group.note.kind == "solved" and last.event.code == "host.incident_over"
        fates = (await world.control.events.fates(dead)).routes
        assert [(one.state, one.code, one.delivery_state) for one in fates] == [
            (FateState.TOLD, "notify.why.told", DeliveryState.SENT)
        ]
        await pass_time(world, 3_600)
        async with world.store.read() as tx:
            assert (await all_groups(tx)).groups == ()

    tell(story)


async def _route_and(world: NotifiedWorld, seconds: int) -> bool:
    """The clock goes on once the notifier has seen all; it looks by itself."""
    async with world.store.read() as tx:
        (group,) = (await all_groups(tx)).groups
    if group.incident_open:
        return False
    world.clock.wall += seconds * 1_000
    await happens(world, "server.stopped")  # wakes whoever waits by the clock that the test moved
    return True


@pytest.mark.req("W7")
def test_cut_off_at_every_write_a_group_is_told_whole_and_once(
    tell: Callable[[Story], None],
) -> None:
    """As a kill just before each commit: what is known then is what was written."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        original = world.store.write
        await host_dies(world)
        for seconds in (0, 5, 5, 1):
            world.clock.wall += seconds * 1_000
            world.store.write = _cut(original, 0)  # type: ignore[method-assign]  # a database that goes away
            with contextlib.suppress(asyncio.CancelledError):
                await world.control.deliveries.routing.route()
            world.store.write = original  # type: ignore[method-assign]  # it is back
            world.control.deliveries.routing.forget()
            await world.route_all()
        (view,) = await world.deliveries()
        assert view.delivery.about is not None and len(view.delivery.about.revisions) == 8
        for revision in view.delivery.about.revisions:
            (fate,) = (await world.control.events.fates(revision)).routes
            assert (fate.state, fate.delivery_id) == (FateState.TOLD, view.delivery.id)

    tell(story)


def _cut(original: Any, kept: int) -> Any:
    """Write transactions of which the first ``kept`` are kept, and the others cancelled before their commit."""
    count = 0

    @contextlib.asynccontextmanager
    async def write() -> Any:
        nonlocal count
        count += 1
        async with original() as tx:
            yield tx
            if count > kept:
                raise asyncio.CancelledError

    return write


def test_a_decision_that_could_not_be_written_is_made_again(tell: Callable[[Story], None]) -> None:
    """By the same server: what its router remembers is what was written. Whether one write of the step or the next fails."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED)
        original = world.store.write
        for kept in (0, 1):
            await happens(world, "vm.agent.lost", "h1", f"v{kept}")
            world.store.write = _cut(original, kept)  # type: ignore[method-assign]  # as above
            with contextlib.suppress(asyncio.CancelledError):
                await world.control.deliveries.routing.route()
            world.store.write = original  # type: ignore[method-assign]  # it is back
            await world.route_all()
        await pass_time(world, 10)
        (view,) = await world.deliveries()
        assert view.delivery.about is not None and len(view.delivery.about.revisions) == 2
        for revision in view.delivery.about.revisions:
            (fate,) = (await world.control.events.fates(revision)).routes
            assert fate.state is FateState.TOLD

    tell(story)


def test_nothing_is_written_while_nothing_concerns_a_route(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.crashed",))
        await world.route_all()
        world.store.write = None  # type: ignore[assignment,method-assign]  # any write would fail the test
        await world.route_all()

    tell(story)


@pytest.mark.req("X1")
def test_a_wider_route_is_told_nothing_of_before_though_the_server_begins_anew(
    tell: Callable[[Story], None],
) -> None:
    """The cursor is written now and then only: what it had passed was held against the route as it is now."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.crashed",), severity=Severity.INFO)
        await world.route_all()
        await happens(world, "vm.quarantined", "h1", "v1")
        await world.route_all()
        wider = SubscriptionChange(codes=("vm.*",))
        await world.control.subscriptions.change(ADMIN, "mail1-1", wider)
        await world.route_all()
        world.control.deliveries.routing.forget()
        crashed = await happens(world, "vm.crashed", "h1", "v2")
        await world.route_all()
        assert [view.delivery.event_revision for view in await world.deliveries()] == [crashed]

    tell(story)


def test_a_silence_says_who_and_why_and_what_goes_on_is_told_when_it_ends(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*", "host.*"))
        silences = world.control.silences
        asked = SilenceCreate(
            reason="new switch", matcher=MatcherRequest(codes=("vm.*",)), duration_ms=600_000
        )
        made = await silences.create(ADMIN, asked)
        lost = await happens(world, "vm.agent.lost", "h1", "v1")
        fired = await happens(world, "vm.watchdog.fired", "h1", "v1")
        dead = await happens(world, "host.judged_dead", "h1")
        await world.route_all()
        (one,) = (await world.control.events.fates(lost)).routes
        assert (one.state, one.code) == (FateState.PARKED, "notify.why.silenced")
        assert one.by_text == "admin: new switch"
        (one,) = (await world.control.events.fates(fired)).routes
        assert one.code == "notify.why.silenced_for_good"
        assert [view.delivery.event_revision for view in await world.deliveries()] == [dead]
        await silences.end(ADMIN, made.silence.id)
        with pytest.raises(Refused):
            await silences.end(ADMIN, made.silence.id)
        await pass_time(world, 0)
        assert [view.delivery.event_revision for view in await world.deliveries()] == [dead, lost]
        assert (await silences.list(SilenceQuery())).items == ()
        (ended,) = (await silences.list(SilenceQuery(ended=True))).items
        assert ended.state == "ended" and (await silences.get(ended.silence.id)) == ended
        (told,) = await world.events("notify.silence.set")
        assert told.user == "admin" and told.fields["reason"] == "new switch"

    tell(story)


def test_a_silence_ends_by_itself(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",))
        asked = SilenceCreate(
            reason="work", matcher=MatcherRequest(codes=("*",)), duration_ms=60_000
        )
        await world.control.silences.create(ADMIN, asked)
        await happens(world, "vm.agent.lost", "h1", "v1")
        await world.route_all()
        await pass_time(world, 59)
        assert await world.deliveries() == []
        await pass_time(world, 1)
        assert len(await world.deliveries()) == 1

    tell(story)


def test_a_route_that_can_not_be_weighed_is_there_all_the_same(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written by then: an error would say that it was not, and another try would make a second."""

    async def story(world: NotifiedWorld) -> None:
        async def fault(*_given: object) -> None:
            raise Unavailable("the database is locked")

        monkeypatch.setattr("virtha.control.subscriptions.weight_of", fault)
        await world.subscribe_mail(codes=("vm.*",))
        changed = await world.control.subscriptions.change(
            ADMIN, "mail1-1", SubscriptionChange(name="mine")
        )
        view = await world.control.subscriptions.get("mine")
        assert changed.weight is None and view.subscription.codes == ("vm.*",)

    tell(story)


EVENING = (QuietHours(begins="22:00", ends="23:00"),)
"""In which these stories begin."""


@pytest.mark.req("W7", "F4")
def test_an_alertmanager_is_told_each_event_of_a_large_group(tell: Callable[[Story], None]) -> None:
    """In several messages, in the order in which they came: an alert of which it never hears is no alert. Also those that the
    group only counted."""

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(**GROUPED, quiet=EVENING)
        settings = AlertmanagerSettings(url="https://alerts.example.org")
        await world.control.receivers.create(
            ADMIN, ReceiverCreate(name="alerts", settings=settings)
        )
        await world.subscribe("alerts", **GROUPED, quiet=EVENING)
        made = [await happens(world, "vm.crashed", "h1", f"v{number}") for number in range(230)]
        await world.route_all()
        await pass_time(world, 3 * 3_600)
        told = [view.delivery for view in await world.deliveries(receiver="alerts")]
        assert all(one.about is not None and one.about.counted == 0 for one in told)
        named = [one for delivery in told for one in delivery.about.revisions if delivery.about]
        assert named == made and [len(one.about.revisions) for one in told] == [100, 100, 30]
        (mail,) = await world.deliveries(receiver="mail1")
        about = mail.delivery.about
        assert about is not None and (len(about.revisions), about.counted) == (100, 130)
        for number in (0, 150, 229):
            fates = (await world.control.events.fates(made[number])).routes
            by_route = {one.subscription: one for one in fates}
            assert {one.state for one in fates} == {FateState.TOLD}
            assert by_route["alerts-1"].delivery_id == told[number // 100].id

    tell(story)


NOON = "2023-11-14T12:00:00Z"


@pytest.mark.bad_input("a silence that ends before it begins")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"duration_ms": 0}, "duration_ms"),
        ({"duration_ms": -5}, "duration_ms"),
        ({"duration_ms": None}, "ends"),
        ({"ends": NOON}, "ends"),
        ({"duration_ms": None, "ends": "2023-01-01T00:00:00Z"}, "ends"),
        (
            {"duration_ms": None, "begins": "2030-01-02T00:00:00Z", "ends": "2030-01-01T00:00:00Z"},
            "ends",
        ),
        ({"duration_ms": None, "ends": "tomorrow"}, "ends"),
        ({"begins": "2026-01-01T00:00:00"}, "begins"),
        ({"begins": "2022-01-01T00:00:00Z"}, "duration_ms"),
        ({"duration_ms": 31 * 86_400_000}, "duration_ms"),
        ({"reason": " "}, "reason"),
        ({"matcher": MatcherRequest()}, "matcher"),
        ({"matcher": MatcherRequest(severity=Severity.WARNING)}, "matcher"),
        ({"matcher": MatcherRequest(codes=("vm.chrashed",))}, "matcher.codes[0]"),
        ({"matcher": MatcherRequest(codes=("vm.*",), labels={"vn": "x"})}, "matcher.labels.vn"),
        ({"matcher": MatcherRequest(host="nobody")}, "matcher.host"),
    ],
)
def test_silences_that_can_not_be(
    changes: dict[str, Any], field: str, tell: Callable[[Story], None]
) -> None:
    async def story(world: NotifiedWorld) -> None:
        good = SilenceCreate(
            reason="work", matcher=MatcherRequest(codes=("vm.*",)), duration_ms=60_000
        )
        with pytest.raises((InvalidInput, NotFound)) as wrong:
            await world.control.silences.create(ADMIN, replace(good, **changes))
        assert wrong.value.field == field
        assert wrong.value.fix or wrong.value.allowed
        assert (await world.control.silences.list(SilenceQuery(ended=True))).items == ()

    tell(story)


@pytest.mark.bad_input("a cycle of inhibitions")
def test_rules_of_inhibition(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        rules = world.control.inhibitions

        def asked(name: str, source: str, target: str) -> InhibitionCreate:
            return InhibitionCreate(
                name=name,
                source=MatcherRequest(codes=(source,)),
                target=MatcherRequest(codes=(target,)),
            )

        made = await rules.create(ADMIN, asked("down", "host.unreachable", "vm.*"))
        for name, source, target, field in (
            ("back", "vm.crashed", "host.unreachable", "target"),
            ("self", "host.*", "host.unreachable", "target"),
            ("endless", "vm.watchdog.fired", "vm.agent.lost", "source.codes"),
            ("always", "host.unreachable", "vm.quarantined", "target.codes"),
            ("twice", "host.unreachable", "vm.unmanaged_copy", "target.codes"),
            ("wrong", "host.unreachabel", "vm.*", "source.codes[0]"),
            ("down", "host.unreachable", "vm.*", "name"),
        ):
            with pytest.raises(Exception) as wrong:
                await rules.create(ADMIN, asked(name, source, target))
            assert getattr(wrong.value, "field", None) == field and getattr(wrong.value, "fix", "")
        with pytest.raises(NotFound, match="there is no inhibition") as absent:
            await rules.delete(ADMIN, "dwon")
        assert "did you mean down?" in absent.value.fix
        await world.subscribe_mail(codes=("host.*", "vm.*"))
        await happens(world, "host.unreachable", "h1")
        lost = await happens(world, "vm.agent.lost", "h1", "v1")
        await world.route_all()
        (fate,) = (await world.control.events.fates(lost)).routes
        assert (fate.code, fate.by_text) == ("notify.why.inhibited", "down")
        assert (await rules.get("down")) == made
        await rules.delete(ADMIN, "down")
        await pass_time(world, 0)
        await pass_time(world, 60)
        (fate,) = (await world.control.events.fates(lost)).routes
        assert fate.code == "notify.why.told"
        assert (await rules.list()).items == ()

    tell(story)


@pytest.mark.req("X1")
def test_why_an_event_was_not_wanted(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        before = await happens(world, "vm.crashed", "h1", "v1")
        await world.subscribe(name="errors", codes=(), severity=Severity.ERROR)
        await world.subscribe(name="fencing", codes=("fence.*",))
        await world.subscribe(name="label", codes=("vm.crashed",), labels={"cause": "signal*"})
        await world.subscribe(name="off", codes=(), enabled=False)
        event = await happens(world, "vm.watchdog.fired", "h1", "v1")

        async def codes(revision: Revision) -> dict[str | None, str]:
            found = (await world.control.events.fates(revision)).routes
            return {one.subscription: one.code.rpartition(".")[2] for one in found}

        expected = {"errors": "severity", "fencing": "code", "label": "code", "off": "switched_off"}
        assert await codes(event) == expected
        assert (await codes(before))["errors"] == "before"
        crashed = await happens(world, "vm.crashed", "h1", "v1", cause="signal 9")
        assert (await codes(crashed))["label"] == "not_looked_at"
        await world.route_all()
        assert (await codes(crashed))["label"] == "told"
        other = await happens(world, "vm.crashed", "h1", "v1", cause="exit 1")
        assert (await codes(other))["label"] == "label"
        with pytest.raises(NotFound):
            await world.control.events.fates(10_000)

    tell(story)


@pytest.mark.bad_input("a route that matches nothing, or everything")
def test_a_route_is_told_its_weight(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        for number in range(20):
            await happens(world, "vm.crashed", "h1", f"v{number}")
            world.clock.wall += 1_000
        changes = {
            "nothing": {"codes": ("vm.quarantined",)},
            "everything": {"codes": (), "severity": Severity.INFO},
            "each": {"codes": ("vm.crashed",)},
            "grouped": {"codes": ("vm.crashed",), "group_by": GroupBy.CAUSE},
        }
        weights = {}
        for name, wanted in changes.items():
            await world.subscribe(name=name, **wanted)
            weights[name] = (await world.control.subscriptions.get(name)).weight
        nothing, everything, each, grouped = (weights[name] for name in changes)
        assert nothing is not None and nothing.code == "notify.route.matches_nothing"
        assert everything is not None and everything.code == "notify.route.matches_everything"
        assert everything.messages == everything.matched >= 20
        assert each is not None and each.code == "notify.route.weight"
        assert (each.matched, each.messages) == (20, 20)
        assert grouped is not None and grouped.matched == 20 and grouped.messages <= 2
        assert str(each.per_day) in each.reason_text

    tell(story)


@pytest.mark.bad_input("options of a route that can't be")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"group_wait_ms": 5_000}, "group_wait_ms"),
        ({"group_by": GroupBy.HOST, "group_wait_ms": -1}, "group_wait_ms"),
        ({"group_by": GroupBy.HOST, "group_interval_ms": 1}, "group_interval_ms"),
        ({"repeat_ms": 1}, "repeat_ms"),
        ({"same_again_ms": 10**10}, "same_again_ms"),
        ({"labels": {"nonsense": "x"}}, "labels.nonsense"),
        ({"quiet": (QuietHours(begins="22:00", ends="22:00"),)}, "quiet[0].ends"),
        ({"quiet": (QuietHours(begins="22:00", ends="7:00", zone="Mars/Base"),)}, "quiet[0].ends"),
        ({"quiet": (QuietHours(begins="22:00", ends="07:00", zone="Mars/Base"),)}, "quiet[0].zone"),
        ({"quiet": (QuietHours(begins="22:00", ends="07:00", zone="../etc"),)}, "quiet[0].zone"),
    ],
)
def test_routes_that_can_not_be(
    changes: dict[str, Any], field: str, tell: Callable[[Story], None]
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        with pytest.raises(InvalidInput) as wrong:
            await world.subscribe(**changes)
        assert wrong.value.field == field and (wrong.value.fix or wrong.value.allowed)
        await world.subscribe(group_by=GroupBy.HOST)
        if "group_by" not in changes and "group_wait_ms" not in changes:
            with pytest.raises(InvalidInput) as wrong:
                await world.control.subscriptions.change(
                    ADMIN, "mail1-1", SubscriptionChange(**changes)
                )
            assert wrong.value.field == field

    tell(story)


def test_the_quiet_hours_of_berlin(tell: Callable[[Story], None]) -> None:
    """2023-11-14 22:13 UTC is 23:13 there."""

    async def story(world: NotifiedWorld) -> None:
        night = QuietHours(begins="23:00", ends="06:00", zone="Europe/Berlin")
        await world.subscribe_mail(codes=("vm.*",), quiet=(night,))
        await happens(world, "vm.crashed", "h1", "v1")
        await world.route_all()
        assert await world.deliveries() == []
        await pass_time(world, 6 * 3_600 + 46 * 60)
        assert await world.deliveries() == []
        await pass_time(world, 60)
        assert len(await world.deliveries()) == 1

    tell(story)


def test_zones_are_known_where_the_machine_has_none() -> None:
    """As a small container: by the package that the lock pins."""
    try:
        zoneinfo.reset_tzpath(to=[])
        zoneinfo.ZoneInfo.clear_cache()
        _zone.cache_clear()
        assert is_zone("Europe/Berlin") and not is_zone("Europe/Nowhere")
        assert zone_offset_ms("Europe/Berlin", 1_769_857_200_000) == 3_600_000
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
        _zone.cache_clear()


def test_what_is_only_counted_has_a_fate_as_well(tell: Callable[[Story], None]) -> None:
    """More events in quiet hours than a group keeps: told as a number after them, or dropped with the route."""

    async def story(world: NotifiedWorld) -> None:
        night = QuietHours(begins="22:00", ends="06:00")
        for name in ("kept", "dropped"):
            if name == "kept":
                await world.add_mail()
            await world.subscribe(
                name=name, codes=("vm.*",), quiet=(night,), group_by=GroupBy.CAUSE
            )
        last = [await happens(world, "vm.crashed", "h1", f"v{number}") for number in range(205)][-1]
        await world.route_all()
        await world.control.subscriptions.delete(ADMIN, "dropped")
        await pass_time(world, 8 * 3_600)
        (view,) = await world.deliveries()
        about = view.delivery.about
        assert about is not None and about.counted + len(about.revisions) == 205
        fates = {one.subscription: one for one in (await world.control.events.fates(last)).routes}
        assert (fates["kept"].code, fates["kept"].delivery_id) == (
            "notify.why.told",
            view.delivery.id,
        )
        assert fates[None].code == "notify.why.dropped"

    tell(story)


def test_what_became_of_events_is_forgotten_with_the_messages(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(codes=("vm.*",))
        crashed = await happens(world, "vm.crashed", "h1", "v1")
        async with world.notifying():
            await world.until(lambda: world.messengers.sent)
        world.clock.wall += 31 * 86_400_000
        await world.control.deliveries.prune()
        (one,) = (await world.control.events.fates(crashed)).routes
        assert one.state is None and one.code in (
            "notify.why.forgotten",
            "notify.why.not_looked_at",
        )

    tell(story)
