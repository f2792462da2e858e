"""A store with use cases and a notifier over played receivers, and a clock that tests move."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from played_receivers import PlayedMessengers

from virtha.api.metrics import Metrics
from virtha.control import Control, make_control
from virtha.control.due import Due
from virtha.control.history import record
from virtha.control.installation import initialise
from virtha.control.passwords import Passwords
from virtha.control.requests import (
    DeliveryQuery,
    PageQuery,
    ReceiverCreate,
    SubscriptionCreate,
)
from virtha.control.secret_box import KeyBox
from virtha.control.views import Caller, DeliveryView
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.ids import HostId, ReceiverId
from virtha.model.notification import MailSecurity, MailSettings, WebhookSettings
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis, UtcMillis
from virtha.model.user import Role
from virtha.ports.authority import SignedCertificate
from virtha.ports.clock import Clock
from virtha.ports.hosts import LastBeat
from virtha.server.notifier import Notifier
from virtha.store import Store, open_store
from virtha.store.events import EventFilter, events_after

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
PASSWORDS = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
KEY = bytes(range(32))
WAIT_S = 60.0


class MovedClock:
    """Wall time as the test says; monotonic time is never asked here."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.wall)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.wall)


class NoLinks:
    def agent_connected(self, host_id: HostId) -> bool:
        return False

    def has_session(self, host_id: HostId) -> bool:
        return self.agent_connected(host_id)

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        return None

    def deliver(self, host_id: HostId, order: Order) -> bool:
        return False

    def configure(self, host_id: HostId, settings: HostSettings) -> None: ...

    def disconnect(self, host_id: HostId, code: str) -> None: ...


class NoAuthority:
    def certificate_pem(self) -> str:
        return ""

    def fingerprint(self) -> str:
        return ""

    def sign_host(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        raise NotImplementedError


@dataclass
class NotifiedWorld:
    clock: MovedClock
    store: Store
    control: Control
    messengers: PlayedMessengers
    metrics: Metrics

    @asynccontextmanager
    async def notifying(self) -> AsyncIterator[Notifier]:
        """The notifier runs; at the end it is stopped as the server stops it."""
        stopping = asyncio.Event()
        clock = self.store.clock
        notifier = Notifier(self.control.deliveries, self.messengers, clock, self.metrics)
        task = asyncio.create_task(notifier.run(stopping))
        try:
            yield notifier
        finally:
            stopping.set()
            await task

    async def add_mail(self, name: str = "mail1", *, password: str | None = None) -> None:
        settings = MailSettings(
            host="mail.example.org",
            sender="virtha@example.org",
            security=MailSecurity.STARTTLS,
            user="virtha" if password else None,
        )
        secrets = {"password": password} if password else {}
        await self.control.receivers.create(
            ADMIN, ReceiverCreate(name=name, settings=settings, secrets=secrets)
        )

    async def subscribe_mail(
        self, name: str = "mail1", *, events: int = 0, **wanted: object
    ) -> None:
        """A mail receiver with a subscription; then ``events`` happen."""
        await self.add_mail(name)
        await self.subscribe(name, **wanted)
        await self.happen(events)

    async def add_webhook(self, name: str = "hook1") -> None:
        settings = WebhookSettings(url="https://hooks.example.org/virtha")
        await self.control.receivers.create(ADMIN, ReceiverCreate(name=name, settings=settings))

    async def subscribe(self, receiver: str = "mail1", **wanted: object) -> None:
        if receiver.startswith("mail"):
            wanted.setdefault("address", "operators@example.org")
        wanted.setdefault("codes", ("hold.*",))
        wanted.setdefault("severity", Severity.INFO)
        await self.control.subscriptions.create(
            ADMIN,
            SubscriptionCreate(receiver=receiver, **wanted),
        )

    async def happen(
        self, count: int = 1, code: str = "hold.set", *, reason: str | None = None
    ) -> None:
        """Events, one transaction each, numbered in their ``reason`` unless that is given."""
        for number in range(count):
            async with self.store.write() as tx:
                await record(tx, code, reason=str(number) if reason is None else reason)

    async def route_all(self) -> None:
        """What happened becomes messages."""
        while (await self.control.deliveries.routing.route()).more:
            pass

    async def deliveries(self, **wanted: object) -> list[DeliveryView]:
        """Oldest first."""
        query = DeliveryQuery(limit=1_000, **wanted)
        return list((await self.control.notifications.list(query)).items)[::-1]

    async def states(self) -> list[str]:
        return [view.delivery.state.value for view in await self.deliveries()]

    async def events(self, code: str) -> list[Event]:
        async with self.store.read() as tx:
            return list(await events_after(tx, EventFilter(code=code), 0, 10_000))

    def reasons(self) -> list[object]:
        """Of what was accepted."""
        return [message.event.fields.get("reason") for message in self.messengers.sent]

    async def quiet(self) -> None:
        """All that happened was routed, and each sender was woken, looked for more and found nothing."""
        deliveries, idle = self.control.deliveries, set[ReceiverId]()
        due = deliveries.due

        async def watched(receiver_id: ReceiverId, limit: int) -> Due | None:
            found = await due(receiver_id, limit)
            (idle.add if found is None else idle.discard)(receiver_id)
            return found

        deliveries.due = watched
        try:
            async with asyncio.timeout(WAIT_S):
                while await self._wakes_somebody(idle):
                    pass
        finally:
            deliveries.due = due

    async def _wakes_somebody(self, idle: set[ReceiverId]) -> bool:
        """Whether anything changed while all were idle once."""
        revision, deliveries = self.store.changes.revision, self.control.deliveries
        await self.until(lambda: deliveries.routing._cursor >= revision)
        idle.clear()
        receivers = (await self.control.receivers.list(PageQuery())).items
        wanted = {view.receiver.id for view in receivers}
        for receiver_id in wanted:
            deliveries.bell.hurry(receiver_id)
        await self.until(lambda: idle >= wanted)
        return self.store.changes.revision != revision

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for a condition, never for a time."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.005)


@asynccontextmanager
async def open_notified(
    directory: Path, clock: Clock | None = None
) -> AsyncIterator[NotifiedWorld]:
    """Opened anew in the same directory, it is the same installation. Without a ``clock`` the test moves its own,
    ``world.clock``."""
    moved = MovedClock()
    clock = clock or moved
    store = await open_store(f"sqlite:///{directory}/virtha.db", clock=clock)
    try:
        if not await store.is_initialised():
            await initialise(
                store=store,
                name="virtha",
                administrator="admin",
                password="correct horse battery",
                passwords=PASSWORDS,
            )
        messengers = PlayedMessengers()
        control = make_control(
            store=store,
            links=NoLinks(),
            authority=NoAuthority(),
            clock=clock,
            passwords=PASSWORDS,
            box=KeyBox(KEY, where="secrets.key"),
            messengers=messengers,
        )
        yield NotifiedWorld(moved, store, control, messengers, Metrics())
    finally:
        await store.close()
