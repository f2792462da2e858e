"""What an operator may ask of the queue: look, send again, try a receiver out."""

import asyncio
from uuid import uuid4

from virtha.alerts.schedule import LATER_MAX_MS
from virtha.control.deliveries import took_a_message
from virtha.control.due import MessageMaker
from virtha.control.history import record
from virtha.control.known_settings import (
    NOTIFICATION_DEADLINE,
    NOTIFICATION_EXPIRY,
    setting_values,
)
from virtha.control.names import check_limit, the_receiver, the_subscription
from virtha.control.notifier_bell import NotifierBell
from virtha.control.receiver_checks import check_address, kind_of
from virtha.control.receivers import Receivers
from virtha.control.requests import DeliveryQuery, ReceiverTest
from virtha.control.views import Caller, DeliveryView, Page, ReceiverTestView
from virtha.model.codes import render
from virtha.model.errors import InvalidInput, NotFound, Refused, Unavailable
from virtha.model.ids import DeliveryId, Revision
from virtha.model.notification import Delivery, DeliveryState, Message
from virtha.model.time import UtcMillis, format_duration_ms
from virtha.ports.receivers import Messengers, Outcome, Receipt
from virtha.store.deliveries import (
    DeliveryFilter,
    add_deliveries,
    deliveries_before,
    end_delivery,
    find_delivery,
    last_number,
    reopen_delivery,
)
from virtha.store.events import events_at, find_event
from virtha.store.installations import the_installation
from virtha.store.notifications import ReceiverRow, find_receiver, find_subscription
from virtha.store.store import Store, Transaction
from virtha.store.users import find_user

GRACE_MS = 1_000
"""Beyond the deadline, for a messenger that does not keep it itself: its own words are better."""
RETRIED = (DeliveryState.PENDING, DeliveryState.REFUSED, DeliveryState.EXPIRED)


class Notifications:
    def __init__(
        self, store: Store, receivers: Receivers, bell: NotifierBell, messengers: Messengers | None
    ) -> None:
        self._store = store
        self._receivers = receivers
        self._bell = bell
        self._messengers = messengers

    async def list(self, query: DeliveryQuery) -> Page[DeliveryView]:
        limit = check_limit(query.limit)
        after = _number(query.after)
        if query.event is not None and not 0 < query.event < 1 << 62:
            raise InvalidInput(f"{query.event} is no revision", field="event", fix="use a revision")
        async with self._store.read() as tx:
            wanted = DeliveryFilter(
                receiver_id=(await the_receiver(tx, query.receiver, field="receiver")).receiver.id
                if query.receiver is not None
                else None,
                subscription_id=(
                    await the_subscription(tx, query.subscription, field="subscription")
                ).id
                if query.subscription is not None
                else None,
                state=query.state,
                event_revision=Revision(query.event) if query.event is not None else None,
            )
            found = await deliveries_before(tx, wanted, after, limit + 1)
            shown = found[:limit]
            return Page(
                items=await _views(tx, shown),
                revision=await tx.revision_now(),
                next=str(shown[-1].number) if len(found) > limit else None,
            )

    async def get(self, delivery_id: str) -> DeliveryView:
        async with self._store.read() as tx:
            return (await _views(tx, (await _the_delivery(tx, delivery_id),)))[0]

    async def retry(self, delivery_id: str) -> DeliveryView:
        """Now, and with a new time to expire; also what was refused or has expired. Not what was sent: it
        would come twice."""
        async with self._store.write() as tx:
            one = await _the_delivery(tx, delivery_id)
            if one.state not in RETRIED:
                raise Refused(
                    f"the message is {one.state}",
                    allowed=tuple(state.value for state in RETRIED),
                    fix="only these states can be sent again",
                )
            row = await find_receiver(tx, one.receiver_id)
            if row is None or not row.receiver.enabled:
                raise Refused(
                    "its receiver is gone or switched off", fix="switch it on, then try again"
                )
            if await find_event(tx, one.event_revision) is None:
                raise Refused("its event is no longer kept (setting event.retention)")
            expiry_ms = (await setting_values(tx)).get(NOTIFICATION_EXPIRY)
            await reopen_delivery(tx, one, tx.clock.wall_ms() + expiry_ms)
        self._bell.hurry(one.receiver_id)
        return await self.get(delivery_id)

    async def test(self, caller: Caller, ref: str, request: ReceiverTest) -> ReceiverTestView:
        """One attempt, now, beside the queue; what became of it is kept as a delivery like any other."""
        async with self._store.read() as tx:
            row = await the_receiver(tx, ref)
            address = await _test_address(tx, caller, row, request.address)
            deadline_ms = (await setting_values(tx)).get(NOTIFICATION_DEADLINE)
        if self._messengers is None:
            raise Unavailable("this server sends no notifications")
        secrets = self._receivers.opened(row)
        one, message = await self._begin_test(caller, row, address, deadline_ms)
        began = self._store.clock.monotonic_ms()
        receipt = await attempt_once(self._messengers, row, secrets, message, deadline_ms)
        duration_ms = self._store.clock.monotonic_ms() - began
        accepted = receipt.outcome is Outcome.ACCEPTED
        async with self._store.write() as wtx:
            await end_delivery(
                wtx,
                one,
                DeliveryState.SENT if accepted else DeliveryState.REFUSED,
                attempts=1,
                code=receipt.code,
                detail=receipt.detail,
            )
            if accepted:
                await took_a_message(wtx, one.receiver_id)
            ended = await find_delivery(wtx, one.id)
        if accepted:
            self._bell.hurry(one.receiver_id)
        assert ended is not None, "it was added above"
        return ReceiverTestView(
            delivery=ended,
            outcome=receipt.outcome.value,
            code=receipt.code,
            detail=receipt.detail,
            reason_text=render(receipt.code, {}),
            duration_ms=max(0, duration_ms),
        )

    async def _begin_test(
        self, caller: Caller, row: ReceiverRow, address: str | None, deadline_ms: int
    ) -> tuple[Delivery, Message]:
        """In the queue, but not yet to be sent from there: if this server dies meanwhile, it is sent then."""
        receiver = row.receiver
        async with self._store.write() as tx:
            event = await record(
                tx,
                "notify.test_asked",
                by=caller.name,
                receiver=receiver.name,
                receiver_id=receiver.id,
            )
            now = tx.clock.wall_ms()
            one = Delivery(
                id=DeliveryId(str(uuid4())),
                number=await last_number(tx) + 1,
                receiver_id=receiver.id,
                event_revision=event.revision,
                address=address,
                test=True,
                created=now,
                next_at=now,
                expires=UtcMillis(now + (await setting_values(tx)).get(NOTIFICATION_EXPIRY)),
            )
            wait_until = now + min(2 * deadline_ms, LATER_MAX_MS)
            await add_deliveries(tx, (one,), wait_until=wait_until)
            maker = MessageMaker(tx, receiver, await the_installation(tx))
            return one, await maker.message(one, event, address)


async def attempt_once(
    messengers: Messengers,
    row: ReceiverRow,
    secrets: dict[str, str],
    message: Message,
    deadline_ms: int,
) -> Receipt:
    messengers.deadline_ms = deadline_ms
    messenger = messengers.messenger(row.receiver, secrets)
    try:
        async with asyncio.timeout((deadline_ms + GRACE_MS) / 1_000):
            return await messenger.send(message)
    except TimeoutError:
        return Receipt(
            outcome=Outcome.AWAY,
            code="notify.queue.deadline",
            detail=f"no answer within {format_duration_ms(deadline_ms)}",
        )
    finally:
        await messenger.close()


async def _test_address(
    tx: Transaction, caller: Caller, row: ReceiverRow, given: str | None
) -> str | None:
    if kind_of(row.receiver.settings) != "mail":
        if given is not None:
            raise InvalidInput(
                f"{row.receiver.name} is no mail receiver", field="address", fix="leave it out"
            )
        return None
    if given is not None:
        return check_address(given, field="address")
    user = await find_user(tx, caller.user_id) if caller.user_id is not None else None
    if user is None or user.user.email is None:
        raise InvalidInput(
            f"is missing, and {caller.name} has no e-mail address", field="address", fix="give one"
        )
    return user.user.email


async def _the_delivery(tx: Transaction, delivery_id: str) -> Delivery:
    found = await find_delivery(tx, delivery_id)
    if found is None:
        raise NotFound(
            f"there is no message '{delivery_id[:100]}'", fix="'virtha notify list' shows them"
        )
    return found


async def _views(tx: Transaction, rows: tuple[Delivery, ...]) -> tuple[DeliveryView, ...]:
    events = await events_at(tx, [one.event_revision for one in rows])
    names: dict[str, str | None] = {}
    for one in rows:
        if one.receiver_id not in names:
            row = await find_receiver(tx, one.receiver_id)
            names[one.receiver_id] = row.receiver.name if row is not None else None
        of = one.subscription_id
        if of is not None and of not in names:
            found = await find_subscription(tx, of)
            names[of] = found.name if found is not None else None
    return tuple(
        DeliveryView(
            delivery=one,
            receiver_name=names[one.receiver_id],
            subscription_name=names[one.subscription_id] if one.subscription_id else None,
            event=events.get(one.event_revision),
            reason_text=render(one.code, {}) if one.code is not None else "",
        )
        for one in rows
    )


def _number(after: str | None) -> int | None:
    if after is None:
        return None
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise InvalidInput(
            f"'{after[:50]}' is no place in this list", field="after", fix="use an answer's next"
        )
    return int(after)
