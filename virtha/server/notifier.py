"""The loops that tell people: events into the queue, and one sender per receiver that has something due.

Whatever is in memory here is in the queue too: a kill costs at most that the message in flight goes out once
more, under the same id. A sender holds at most ``BATCH`` messages.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TypeVar

import structlog
from msgspec.structs import replace

from virtha.alerts.schedule import HANGS_MAX, away_ms
from virtha.api.metrics import Metrics
from virtha.control.deliveries import Deliveries, Upcoming
from virtha.control.due import Due, DueMessage
from virtha.control.notifications import GRACE_MS
from virtha.model.errors import VirthaError
from virtha.model.ids import DeliveryId, ReceiverId, Revision
from virtha.model.notification import DeliveryState
from virtha.model.time import format_duration_ms
from virtha.ports.clock import Clock
from virtha.ports.receivers import Messenger, Messengers, Outcome, Receipt
from virtha.store.body import UNKNOWN_RECORD

T = TypeVar("T")
log = structlog.get_logger("virtha.server.notifier")
BATCH = 100
IDLE_S = 60.0
"""How long a sender without messages keeps its connection."""
LOOK_S_MAX = 60.0
ROUTE_STEP_S = 0.02
"""The first of a burst of events is looked at at once; the others together, for each look costs as much as ten."""
STORE_PAUSE_S = 1.0
"""After the store refused something (locked, disk full)."""
FAULT_PAUSE_S = 30.0
"""After a fault of our own in routing."""
STOP_GRACE_S = 1.0
"""At the server's stop: for the message in flight, so that it is not sent twice."""
_NO_ANSWER = ("notify.queue.deadline", "notify.no_answer")
"""The first is ours, of a messenger that does not end; the second a messenger's own."""


class _Next(Enum):
    GO_ON = "go on"
    LOOK_ANEW = "look anew"
    PAUSE = "pause"


class Notifier:
    def __init__(
        self, deliveries: Deliveries, messengers: Messengers, clock: Clock, metrics: Metrics
    ) -> None:
        self._deliveries = deliveries
        self._messengers = messengers
        self._clock = clock
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._look = asyncio.Event()
        """Set when there is a new wait to keep. For a new expiry it need not be: none is nearer than
        ``LOOK_S_MAX``."""
        self._senders: dict[ReceiverId, Sender] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stopping: asyncio.Event) -> None:
        loops = [
            asyncio.create_task(self._route(), name="notifier-route"),
            asyncio.create_task(self._keep_times(), name="notifier-times"),
            asyncio.create_task(self._answer_bell(), name="notifier-bell"),
        ]
        stop = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait({*loops, stop}, return_when=asyncio.FIRST_COMPLETED)
            for one in done - {stop}:
                one.result()  # a loop that ended by itself: raises what ended it
        finally:
            await self._end(loops, stop)

    async def _end(self, loops: list[asyncio.Task[None]], stop: "asyncio.Task[bool]") -> None:
        self._stopping.set()
        for sender in self._senders.values():
            sender.stop()
        for one in (*loops, stop):
            one.cancel()
        await asyncio.gather(*loops, stop, return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_GRACE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _route(self) -> None:
        up_to = Revision(0)
        while True:
            try:
                routed = await self._deliveries.routing.route()
            except VirthaError as error:
                await self._store_refused("events can't be routed now", error)
                continue
            except Exception:
                # A fault of ours: no VM may stay down because nobody can be told.
                log.exception("events can't be routed")
                self._deliveries.routing.forget()
                await asyncio.sleep(FAULT_PAUSE_S)
                continue
            up_to = routed.up_to
            for receiver_id in sorted(routed.to):
                self._wake(receiver_id)
            if not routed.more:
                await asyncio.sleep(ROUTE_STEP_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._until(routed.wake_at)):
                        await self._deliveries.routing.beyond(up_to)

    async def _keep_times(self) -> None:
        """Ends waits and expires messages, each when it is due."""
        while True:
            self._look.clear()
            expired = await self._expired()
            try:
                for receiver_id in sorted(await self._deliveries.ready()):
                    self._wake(receiver_id)
                moment = await self._deliveries.next_moment()
            except VirthaError as error:
                await self._store_refused("the queue can't be read now", error)
                continue
            if not expired:
                await asyncio.sleep(STORE_PAUSE_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until(moment) or LOOK_S_MAX):
                    await self._look.wait()

    async def _expired(self) -> bool:
        """False: what nobody wants any more can't be given up now; what waits is to be sent all the same."""
        try:
            await self._deliveries.expire()
        except VirthaError as error:
            self._metrics.store_failures.inc()
            log.warning("messages can't be expired now", code=error.code, error=str(error))
            return False
        return True

    def _until(self, moment: int | None) -> float | None:
        """Seconds until the next look; None: there is nothing to look for. At most a minute, for the clock may be set; at
        least a little: a moment that has just passed is taken care of by the next look."""
        if moment is None:
            return None
        return min(LOOK_S_MAX, max(0.05, (moment - self._clock.wall_ms()) / 1_000))

    async def _answer_bell(self) -> None:
        while True:
            for receiver_id in sorted(await self._deliveries.bell.rung()):
                self._wake(receiver_id, hurry=True)
            self._look.set()

    def _wake(self, receiver_id: ReceiverId, *, hurry: bool = False) -> None:
        sender = self._senders.get(receiver_id)
        if sender is None:
            sender = Sender(
                receiver_id,
                self._deliveries,
                self._messengers,
                self._metrics,
                self._look.set,
            )
            self._senders[receiver_id] = sender
            task = asyncio.create_task(self._send(sender), name=f"sender-{receiver_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        sender.wake(hurry=hurry)

    async def _send(self, sender: "Sender") -> None:
        try:
            await sender.run()
            # Woken while it hung up: there is something again.
            while sender.woken:
                await sender.run()
        except Exception:
            # A fault of ours in one sender must not end the others; it is begun anew at the next look.
            log.exception("a sender failed", receiver_id=sender.receiver_id)
        finally:
            del self._senders[sender.receiver_id]

    async def _store_refused(self, what: str, error: VirthaError) -> None:
        self._metrics.store_failures.inc()
        log.warning(what, code=error.code, error=str(error))
        await asyncio.sleep(STORE_PAUSE_S)


class Sender:
    """Sends one receiver's messages, one at a time and in order, over one kept connection."""

    def __init__(
        self,
        receiver_id: ReceiverId,
        deliveries: Deliveries,
        messengers: Messengers,
        metrics: Metrics,
        waits: Callable[[], None],
    ) -> None:
        """``waits`` is called when a message was put off."""
        self.receiver_id = receiver_id
        self._deliveries = deliveries
        self._messengers = messengers
        self._metrics = metrics
        self._waits = waits
        self._woken = asyncio.Event()
        self._hurried = asyncio.Event()
        self._stopped = False
        self._messenger: Messenger | None = None
        self._made_for: tuple[Revision, int] | None = None
        self._failures = 0
        self._hung: tuple[DeliveryId | None, int] = (None, 0)

    def wake(self, *, hurry: bool = False) -> None:
        self._woken.set()
        if hurry:
            self._hurried.set()

    @property
    def woken(self) -> bool:
        return self._woken.is_set() and not self._stopped

    def stop(self) -> None:
        """After the message in flight."""
        self._stopped = True
        self.wake(hurry=True)

    async def run(self) -> None:
        """Until nothing is left to be sent for a while."""
        try:
            while not self._stopped:
                self._woken.clear()
                # Here, not when a pause begins: what changed during the attempt ends the pause after it.
                self._hurried.clear()
                due = await self._insist(lambda: self._deliveries.due(self.receiver_id, BATCH))
                if due is not None:
                    if await self._send_batch(due) is _Next.PAUSE:
                        await self._pause()
                    continue
                if not await self._woken_within(IDLE_S):
                    return
        finally:
            await self._hang_up()

    async def _woken_within(self, idle_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(idle_s):
                await self._woken.wait()
                return True
        return False

    async def _pause(self) -> None:
        """Away: left alone for a while, whatever new messages come; a retry or a change ends it."""
        self._failures += 1
        if self._stopped:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(away_ms(self._failures) / 1_000):
                await self._hurried.wait()
                self._failures = 0

    async def _send_batch(self, due: Due) -> _Next:
        if due.secrets is None:
            receipt = Receipt(
                outcome=Outcome.AWAY, code="notify.queue.secrets", detail=due.problem[:500]
            )
            return await self._away(receipt, due.items[0])
        still_due = True  # as of a moment ago
        for place, one in enumerate(due.items):
            if self._stopped or not still_due:
                break
            after, still_due = await self._deal_with(due, one, _upcoming(due, place))
            if after is not _Next.GO_ON:
                return after
        return _Next.LOOK_ANEW

    async def _deal_with(
        self, due: Due, one: DueMessage, upcoming: Upcoming | None
    ) -> tuple[_Next, bool]:
        """What is next, and whether ``upcoming`` may still go out."""
        if one.message is None:
            return _Next.GO_ON, await self._cannot_be_sent(one, upcoming)
        receipt = await self._attempt(due, one)
        self._metrics.notifications.labels(receipt.outcome.value).inc()
        if receipt.outcome is Outcome.AWAY:
            return await self._away(receipt, one), False
        return _Next.GO_ON, await self._settle(one, receipt, upcoming)

    async def _settle(self, one: DueMessage, receipt: Receipt, upcoming: Upcoming | None) -> bool:
        """What became of it is written before the next goes out, however long the store takes: in the
        meantime it must not be sent once more."""
        delivery, event = one.delivery, one.event
        assert event is not None, "its message was made from it"
        if receipt.outcome is Outcome.LATER:
            due = await self._insist(lambda: self._deliveries.later(delivery, receipt, upcoming))
            self._waits()
            return due
        self._failures = 0
        if receipt.outcome is Outcome.ACCEPTED:
            return await self._insist(
                lambda: self._deliveries.accepted(delivery, receipt, upcoming)
            )
        return await self._insist(
            lambda: self._deliveries.refused(delivery, event, receipt, upcoming)
        )

    async def _away(self, receipt: Receipt, one: DueMessage) -> _Next:
        await self._hang_up()
        code = one.event.code if one.event is not None else None
        await self._insist(lambda: self._deliveries.away(self.receiver_id, receipt, code))
        if self._failures == 0:
            log.warning(
                "a receiver is away",
                receiver_id=self.receiver_id,
                code=receipt.code,
                detail=receipt.detail,
            )
        return _Next.PAUSE

    async def _cannot_be_sent(self, one: DueMessage, upcoming: Upcoming | None) -> bool:
        event = one.event
        if one.end is DeliveryState.REFUSED and event is not None:
            receipt = Receipt(outcome=Outcome.NEVER, code=one.code)
            return await self._insist(
                lambda: self._deliveries.refused(one.delivery, event, receipt, upcoming)
            )
        return await self._insist(
            lambda: self._deliveries.ended(one.delivery, one.end, one.code, upcoming)
        )

    async def _attempt(self, due: Due, one: DueMessage) -> Receipt:
        assert one.message is not None and due.secrets is not None, "looked at before"
        try:
            messenger = await self._connection(due)
            async with asyncio.timeout((due.deadline_ms + GRACE_MS) / 1_000):
                receipt = await messenger.send(one.message)
        except TimeoutError:
            await self._hang_up()
            waited = f"no answer within {format_duration_ms(due.deadline_ms)}"
            receipt = Receipt(outcome=Outcome.AWAY, code="notify.queue.deadline", detail=waited)
        except Exception as error:
            # Messengers raise nothing; if one does, it is its fault. Not what it says: it may hold a secret.
            log.error(
                "a messenger failed", receiver_id=self.receiver_id, error=type(error).__name__
            )
            await self._hang_up()
            return Receipt(outcome=Outcome.LATER, code="notify.queue.failed")
        if receipt.code not in _NO_ANSWER:
            self._hung = (None, 0)
            return receipt
        return self._unanswered(one, receipt)

    def _unanswered(self, one: DueMessage, receipt: Receipt) -> Receipt:
        """It did not keep its deadline. The receiver is taken for away, but not for one message for ever."""
        last, count = self._hung
        count = count + 1 if last == one.delivery.id else 1
        self._hung = (one.delivery.id, count)
        return replace(receipt, outcome=Outcome.LATER) if count >= HANGS_MAX else receipt

    async def _connection(self, due: Due) -> Messenger:
        wanted = (due.receiver.revision, due.deadline_ms)
        if self._messenger is None or self._made_for != wanted:
            await self._hang_up()
            assert due.secrets is not None, "looked at before"
            self._messengers.deadline_ms = due.deadline_ms
            self._messenger = self._messengers.messenger(due.receiver, due.secrets)
            self._made_for = wanted
        return self._messenger

    async def _hang_up(self) -> None:
        messenger, self._messenger = self._messenger, None
        if messenger is not None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(GRACE_MS / 1_000):
                    await messenger.close()

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Until the store takes it: what a receiver said must not be forgotten for a lock or a full disk. Raises Failed where a
        record can't be read: asked again it is the same."""
        while True:
            try:
                return await work()
            except VirthaError as error:
                if error.code == UNKNOWN_RECORD:
                    raise
                self._metrics.store_failures.inc()
                log.warning("the queue can't be written now", code=error.code, error=str(error))
                await asyncio.sleep(STORE_PAUSE_S)


def _upcoming(due: Due, place: int) -> Upcoming | None:
    """What follows it in its batch."""
    if place + 1 >= len(due.items):
        return None
    return Upcoming(
        delivery_id=due.items[place + 1].delivery.id, receiver_revision=due.receiver.revision
    )
