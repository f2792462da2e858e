"""The notifier: what is sent, in which order, what waits, what ends, and what a crash costs."""

import asyncio
from collections.abc import Callable

import pytest
from notified_world import ADMIN, NotifiedWorld
from played_receivers import ACCEPTED, AWAY, LATER, NEVER, Answer, PlayedMessengers
from routed_world import Story

from virtha.alerts import schedule
from virtha.control.requests import (
    ReceiverChange,
    ReceiverTest,
    SettingPut,
    SubscriptionChange,
    UserChange,
)
from virtha.model.codes import Severity
from virtha.model.errors import InvalidInput, Refused
from virtha.model.notification import DeliveryState, Message
from virtha.ports.receivers import Outcome, Receipt
from virtha.server import notifier as notifier_module


def in_turn(*answers: Answer) -> Callable[[Message], Answer]:
    """One by one, the last for ever."""
    left = list(answers)
    return lambda _message: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.req("W7", "F4")
def test_events_go_out_in_their_order_by_each_subscription(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        await world.add_webhook()
        await world.subscribe("mail1", name="a", address="a@example.org")
        await world.subscribe("mail1", name="b", address="b@example.org")
        await world.subscribe("hook1", name="c")
        await world.happen(20)
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 60)
            await world.happen(1)
            await world.until(lambda: len(world.messengers.sent) == 63)
        for address in ("a@example.org", "b@example.org", None):
            told = [
                message.event.revision
                for message in world.messengers.sent
                if message.address == address
            ]
            assert told == sorted(told) and len(told) == 21
        assert set(await world.states()) == {"sent"}
        assert world.messengers.open == 0, "the stop closed what was open"
        view = await world.control.receivers.get("mail1")
        assert view.deliveries == {"sent": 42} and view.status.accepted_at is not None

    tell(story)


def test_what_was_before_the_subscription_or_does_not_match_is_not_told(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        await world.happen(3)
        await world.subscribe(severity=Severity.WARNING)
        async with world.notifying():
            await world.happen(1, code="hold.lifted")
            await world.happen(1, code="hold.set")
            await world.until(lambda: len(world.messengers.sent) == 1)
        assert [one.event.code for one in world.messengers.sent] == ["hold.set"]

    tell(story)


def test_the_cursor_is_written_with_the_messages_and_rarely_without(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail()
        writes = 0
        original = world.store.write

        def counted() -> object:
            nonlocal writes
            writes += 1
            return original()

        await world.happen(300, code="hold.lifted")
        async with world.store.write() as tx:
            # All its events are older than any subscription's, but for the ones of the story.
            _ = tx
        await world.control.subscriptions.change(
            ADMIN, "mail1-1", SubscriptionChange(codes=("vm.*",))
        )
        world.store.write = counted
        await world.route_all()
        assert writes == 0, "nothing matched, and it is not far"

    tell(story)


def test_a_message_put_off_lets_others_pass_and_comes_later(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(events=3)
        world.messengers.answer = lambda message: (
            LATER
            if message.event.fields["reason"] == "0" and len(world.messengers.tried) < 4
            else ACCEPTED
        )
        async with world.notifying():
            await world.until(lambda: world.reasons() == ["1", "2"])
            first = (await world.deliveries())[0].delivery
            await world.until(lambda: _is_put_off(world))
            first = (await world.deliveries())[0].delivery
            assert (first.state, first.attempts) == (DeliveryState.PENDING, 1)
            assert (first.code, first.detail) == (LATER.code, LATER.detail)
            assert first.next_at == world.clock.wall + schedule.LATER_FIRST_MS
            world.clock.wall += schedule.LATER_FIRST_MS
            world.control.deliveries.bell.hurry(first.receiver_id)  # the clock moved: look now
            await world.until(lambda: world.reasons() == ["1", "2", "0"])
        assert {m.delivery_id for m in world.messengers.tried} == {
            m.delivery_id for m in world.messengers.sent
        }, "the same id each time"

    tell(story)


async def _is_put_off(world: NotifiedWorld) -> bool:
    return (await world.deliveries())[0].delivery.attempts == 1


def test_while_the_receiver_is_away_all_wait_and_none_is_the_worse_for_it(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []

    def quick(failures: int) -> int:
        pauses.append(schedule.away_ms(failures))
        return 1

    monkeypatch.setattr(notifier_module, "away_ms", quick)

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(events=5)
        world.messengers.answer = in_turn(*[AWAY] * 9, ACCEPTED)
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 5)
        assert world.reasons() == ["0", "1", "2", "3", "4"]
        assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]
        assert {one.delivery.attempts for one in await world.deliveries()} == {1}
        (away,) = await world.events("notify.receiver_away")
        assert away.fields["reason_code"] == AWAY.code and away.fields["detail"] == AWAY.detail
        (back,) = await world.events("notify.receiver_back")
        assert back.revision > away.revision
        view = await world.control.receivers.get("mail1")
        assert view.status.away_since is None and not view.status.away_told

    tell(story)


def test_a_refusal_is_told_but_never_through_itself_nor_about_tellings(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        for name in ("mail1", "mail2"):
            await world.subscribe_mail(name, codes=())
        world.messengers.answer = lambda _message: NEVER
        await world.happen(1)
        async with world.notifying():
            # Each refuses hold.set; each refusal is refused by the other, and that is the end of it.
            await world.until(lambda: _all_over(world, 6))
            await world.quiet()
        hold = [v for v in await world.deliveries() if v.event and v.event.code == "hold.set"]
        assert [view.delivery.state for view in hold] == [DeliveryState.REFUSED] * 2
        refused = await world.events("notify.refused")
        assert [event.fields["event_code"] for event in refused] == ["hold.set"] * 2
        for view in await world.deliveries():
            assert view.event is not None
            assert view.event.fields.get("receiver_id") != view.delivery.receiver_id
        assert set(await world.states()) == {"refused"}

    tell(story)


async def _all_over(world: NotifiedWorld, at_least: int) -> bool:
    states = await world.states()
    return len(states) >= at_least and "pending" not in states


@pytest.mark.req("W7")
def test_what_expires_is_told_once_and_can_be_sent_all_the_same(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.control.settings.put(ADMIN, "notification.expiry", SettingPut(value="1h"))
        await world.subscribe_mail(events=3)
        world.messengers.answer = lambda _message: AWAY
        async with world.notifying():
            await world.until(lambda: world.messengers.tried)
        world.clock.wall += 3_600_000
        async with world.notifying():
            await world.until(lambda: _all_over(world, 3))
        assert await world.states() == ["expired"] * 3
        (told,) = await world.events("notify.expired")
        assert told.fields["count"] == 3 and told.severity is Severity.ERROR
        one = (await world.deliveries())[0].delivery
        assert one.code == "notify.queue.expired"
        world.messengers.answer = lambda _message: ACCEPTED
        async with world.notifying():
            await world.control.notifications.retry(one.id)
            await world.until(lambda: world.reasons() == ["0"])
            await world.until(lambda: _is_sent(world))
            with pytest.raises(Refused) as twice:
                await world.control.notifications.retry(one.id)
        assert "sent" in str(twice.value)

    tell(story)


def test_many_that_expire_are_told_once_per_receiver(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtha.control.deliveries.EXPIRE_BATCH", 4)

    async def story(world: NotifiedWorld) -> None:
        for name in ("mail1", "mail2"):
            await world.subscribe_mail(name)
        await world.happen(8)
        await world.route_all()
        world.clock.wall += 24 * 3_600_000
        assert await world.control.deliveries.expire() == 16
        told = await world.events("notify.expired")
        assert sorted(str(event.fields["receiver"]) for event in told) == ["mail1", "mail2"]
        assert {event.fields["count"] for event in told} == {8}

    tell(story)


async def _is_sent(world: NotifiedWorld) -> bool:
    return (await world.states())[0] == "sent"


def test_a_retry_ends_the_pause_of_a_receiver_taken_for_away(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier_module, "away_ms", lambda _failures: 3_600_000)

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(events=1)
        world.messengers.answer = in_turn(AWAY, ACCEPTED)
        async with world.notifying():
            await world.until(lambda: _away(world))
            await world.happen(1)
            (one, *_) = await world.deliveries()
            await world.control.notifications.retry(one.delivery.id)
            await world.until(lambda: len(world.messengers.sent) == 2)

    tell(story)


def test_settings_that_change_during_a_failing_attempt_are_tried_at_once(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier_module, "away_ms", lambda _failures: 3_600_000)

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(events=1)
        gate = asyncio.Event()

        def away_with_the_old(message: Message) -> Answer:
            return AWAY if len(world.messengers.secrets) == 1 else ACCEPTED

        world.messengers.answer = away_with_the_old
        original = world.control.deliveries.away

        async def changed_meanwhile(*given: object) -> None:
            if not gate.is_set():
                gate.set()
                await world.control.receivers.change(
                    ADMIN, "mail1", ReceiverChange(name="mail-other")
                )
            await original(*given)

        world.control.deliveries.away = changed_meanwhile
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 1)

    tell(story)


async def _away(world: NotifiedWorld) -> bool:
    return (await world.control.receivers.get("mail1")).status.away_since is not None


def test_a_messenger_that_hangs_is_cut_off_and_does_not_block_the_rest_for_ever(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier_module, "GRACE_MS", -950)
    monkeypatch.setattr(notifier_module, "away_ms", lambda _failures: 1)

    async def story(world: NotifiedWorld) -> None:
        await world.control.settings.put(ADMIN, "notification.deadline", SettingPut(value="1s"))
        await world.subscribe_mail(events=2)
        never = asyncio.Event()
        world.messengers.answer = lambda message: (
            never if message.event.fields["reason"] == "0" else ACCEPTED
        )
        async with world.notifying():
            await world.until(lambda: world.reasons() == ["1"])
            await world.until(lambda: _is_put_off(world))
        assert len([m for m in world.messengers.tried if m.event.fields["reason"] == "0"]) == 3
        (first, _) = await world.deliveries()
        assert first.delivery.code == "notify.queue.deadline"
        assert world.messengers.deadline_ms == 1_000
        assert world.messengers.open == 0

    tell(story)


def test_a_message_that_is_never_answered_does_not_block_the_rest_for_ever(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As messengers tell of it themselves: they end at their own deadline, before ours."""
    monkeypatch.setattr(notifier_module, "away_ms", lambda _failures: 1)
    unanswered = Receipt(outcome=Outcome.AWAY, code="notify.no_answer", detail="no answer in 1 s")

    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(events=2)
        world.messengers.answer = lambda message: (
            unanswered if message.event.fields["reason"] == "0" else ACCEPTED
        )
        async with world.notifying():
            await world.until(lambda: world.reasons() == ["1"])
            await world.until(lambda: _is_put_off(world))
        assert len([m for m in world.messengers.tried if m.event.fields["reason"] == "0"]) == 3

    tell(story)


def test_a_messenger_that_raises_says_nothing_of_what_it_raised(
    tell: Callable[[Story], None], capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail(password="not-for-any-log")
        await world.subscribe()
        await world.happen(2)
        world.messengers.answer = in_turn(ValueError("sign-in with not-for-any-log"), ACCEPTED)
        async with world.notifying():
            await world.until(lambda: world.reasons() == ["1"])
            await world.until(lambda: _is_put_off(world))
        (first, _) = await world.deliveries()
        assert first.delivery.code == "notify.queue.failed"
        assert world.messengers.secrets[0] == {"password": "not-for-any-log"}
        told = repr(await world.deliveries()) + repr(await world.events("*"))
        said = capsys.readouterr()
        assert "not-for-any-log" not in told + said.out + said.err

    tell(story)


def test_dropped_with_its_subscription_even_if_it_was_handed_out(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.subscribe_mail(events=5)
        gate = asyncio.Event()
        world.messengers.answer = lambda _message: gate
        async with world.notifying():
            await world.until(lambda: world.messengers.tried)
            await world.control.subscriptions.delete(ADMIN, "mail1-1")
            gate.set()
            await world.until(lambda: _all_over(world, 5))
            await world.quiet()
        assert len(world.messengers.tried) == 1, "only the one that was on its way"
        assert await world.states() == ["sent", *["dropped"] * 4]

    tell(story)


def test_a_receiver_switched_off_drops_what_waits_and_a_changed_one_is_connected_anew(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail(password="the-first-one")
        await world.subscribe()
        async with world.notifying():
            await world.happen(1)
            await world.until(lambda: len(world.messengers.sent) == 1)
            await world.control.receivers.change(
                ADMIN, "mail1", ReceiverChange(secrets={"password": "the-second-one"})
            )
            await world.happen(1)
            await world.until(lambda: len(world.messengers.sent) == 2)
            assert [one["password"] for one in world.messengers.secrets] == [
                "the-first-one",
                "the-second-one",
            ]
            await world.control.receivers.change(ADMIN, "mail1", ReceiverChange(enabled=False))
            await world.happen(1)
        assert len(world.messengers.tried) == 2

    tell(story)


def test_mail_goes_where_its_user_is_now_and_not_to_one_who_is_locked_out(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        users = world.control.users
        await world.add_mail()
        with pytest.raises(InvalidInput) as no_address:
            await world.subscribe(user="admin", address=None)
        assert no_address.value.field == "user" and "--email" in no_address.value.fix
        await users.change(ADMIN, "admin", UserChange(email="old@example.org"))
        await world.subscribe(user="admin", address=None)
        await world.happen(1)
        await world.route_all()
        await users.change(ADMIN, "admin", UserChange(email="new@example.org"))
        async with world.notifying():
            await world.until(lambda: len(world.messengers.sent) == 1)
        assert world.messengers.sent[0].address == "new@example.org"
        assert (await world.deliveries())[0].delivery.address == "new@example.org"
        await users.change(ADMIN, "admin", UserChange(email=None))
        await world.happen(1)
        async with world.notifying():
            await world.until(lambda: _all_over(world, 2))
        assert (await world.deliveries())[1].delivery.code == "notify.queue.no_address"

    tell(story)


def test_two_that_tell_of_each_other_end(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier_module, "away_ms", lambda _failures: 1)

    async def story(world: NotifiedWorld) -> None:
        for name in ("mail1", "mail2"):
            await world.subscribe_mail(name, codes=())
        # Away at every second attempt: flapping, for whatever is told.
        count = iter(range(10_000))
        world.messengers.answer = lambda _message: AWAY if next(count) % 2 else ACCEPTED
        async with world.notifying():
            await world.happen(3)
            await world.until(lambda: _all_over(world, 6))
            await world.quiet()
            assert await _all_over(world, 6)
        told = [
            *await world.events("notify.receiver_away"),
            *await world.events("notify.receiver_back"),
        ]
        assert len(told) <= 2 * 6

    tell(story)


def test_a_test_message_answers_at_once_and_is_kept(tell: Callable[[Story], None]) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        with pytest.raises(InvalidInput) as nobody:
            await world.control.notifications.test(ADMIN, "mail1", ReceiverTest())
        assert nobody.value.field == "address"
        request = ReceiverTest(address="me@example.org")
        good = await world.control.notifications.test(ADMIN, "mail1", request)
        assert (good.outcome, good.delivery.state) == ("accepted", DeliveryState.SENT)
        assert (
            world.messengers.sent[0].test and world.messengers.sent[0].address == "me@example.org"
        )
        world.messengers.answer = lambda _message: AWAY
        bad = await world.control.notifications.test(ADMIN, "mail1", request)
        assert (bad.outcome, bad.code, bad.detail) == ("away", AWAY.code, AWAY.detail)
        assert bad.delivery.state is DeliveryState.REFUSED
        async with world.notifying():
            await world.quiet()
        assert len(world.messengers.tried) == 2, "a failed test is not tried again by itself"
        assert world.messengers.open == 0

    tell(story)


def test_a_test_whose_server_died_meanwhile_is_sent_by_the_next_one(
    tell: Callable[[Story], None],
) -> None:
    async def story(world: NotifiedWorld) -> None:
        await world.add_mail()
        gate = asyncio.Event()
        world.messengers.answer = lambda _message: gate
        request = ReceiverTest(address="me@example.org")
        asking = asyncio.create_task(world.control.notifications.test(ADMIN, "mail1", request))
        await world.until(lambda: world.messengers.tried)
        async with world.notifying():
            await world.quiet()
            assert len(world.messengers.tried) == 1, "the queue does not send it beside that"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert world.messengers.open == 0
        world.messengers.answer = lambda _message: ACCEPTED
        world.clock.wall += schedule.LATER_MAX_MS
        async with world.notifying():
            await world.until(lambda: _all_over(world, 1))
        assert [m.delivery_id for m in world.messengers.sent] == [
            world.messengers.tried[0].delivery_id
        ]
        assert world.messengers.sent[0].test

    tell(story)


def test_the_played_messengers_are_messengers() -> None:
    """For the type checker, and for the contract suite of the real ones."""
    from virtha.ports.receivers import Messengers

    made: Messengers = PlayedMessengers()
    assert made.deadline_ms == 0
