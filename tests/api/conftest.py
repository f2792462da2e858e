"""An installation in a temporary directory: real SQLite, real use cases, real authority; hosts are links
that remember what they were given."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from answers_by_document import Watch, watching
from argon2 import PasswordHasher
from litestar import Litestar
from litestar.testing import AsyncTestClient
from story import Story as InstalledStory
from story import telling

from virtha.api.app import create_app
from virtha.api.route import Services
from virtha.control import Control, make_control
from virtha.control.installation import initialise
from virtha.control.passwords import Passwords
from virtha.control.secret_box import KEY_BYTES, KeyBox
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import LocalAuthority, create_authority
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.ids import HostId, InstallationId
from virtha.model.notification import Message, Receiver
from virtha.model.orders import HostSettings, Order
from virtha.model.time import UtcMillis
from virtha.ports.hosts import LastBeat
from virtha.ports.receivers import Outcome, Receipt
from virtha.store import Store, open_store

T = TypeVar("T")
PASSWORDS = {
    "viewer": "only-looks-around",
    "operator": "starts-and-stops",
    "administrator": "may-do-everything",
}
INSTALLATION = InstallationId("00000000-0000-4000-8000-000000000001")
_AUTHORITY = create_authority(INSTALLATION, now=MachineClock().wall_ms())


@dataclass
class MovableClock(MachineClock):
    """The real clock, moved by a story."""

    ahead_ms: int = 0

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(super().wall_ms() + self.ahead_ms)


@dataclass
class RememberingLinks:
    """HostLinks without a network: which agents are there, and what was sent to them."""

    connected: set[HostId] = field(default_factory=set)
    beats: dict[HostId, LastBeat] = field(default_factory=dict)
    orders: list[tuple[HostId, Order]] = field(default_factory=list)
    closed: list[tuple[HostId, str]] = field(default_factory=list)

    def agent_connected(self, host_id: HostId) -> bool:
        return host_id in self.connected

    def has_session(self, host_id: HostId) -> bool:
        return self.agent_connected(host_id)

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        return self.beats.get(host_id)

    def deliver(self, host_id: HostId, order: Order) -> bool:
        if host_id not in self.connected:
            return False
        self.orders.append((host_id, order))
        return True

    def configure(self, host_id: HostId, settings: HostSettings) -> None:
        """Nobody asks for it here."""

    def disconnect(self, host_id: HostId, code: str) -> None:
        self.connected.discard(host_id)
        self.closed.append((host_id, code))


@dataclass
class TakingMessengers:
    """``Messengers`` that take everything, but for what goes to addresses at refused.example."""

    deadline_ms: int = 0
    told: list[Message] = field(default_factory=list)

    def messenger(self, receiver: Receiver, secrets: Mapping[str, str]) -> "TakingMessengers":
        return self

    async def send(self, message: Message) -> Receipt:
        self.told.append(message)
        if (message.address or "").endswith("@refused.example"):
            return Receipt(outcome=Outcome.NEVER, code="notify.queue.failed", detail="550 no")
        return Receipt(outcome=Outcome.ACCEPTED, code="notify.accepted", detail="250 yes")

    async def close(self) -> None:
        """Nothing is open."""


class LentServices:
    """Stands for the ``Services`` of the installation that the app is lent to."""

    lent_to: Services

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lent_to, name)


_IDLE_APPS: list[tuple[Litestar, LentServices]] = []


@contextmanager
def lent_app(services: Services) -> Iterator[Litestar]:
    """To make one takes longer than most tests do with it: it is lent to one installation after another."""
    if not _IDLE_APPS:
        lent = LentServices()
        lent.lent_to = services
        _IDLE_APPS.append((create_app(lent), lent))
    app, lent = _IDLE_APPS.pop()
    lent.lent_to = services
    try:
        yield app
    finally:
        del lent.lent_to
    _IDLE_APPS.append((app, lent))


@dataclass(kw_only=True)
class World:
    store: Store
    control: Control
    services: Services
    app: Litestar
    client: "AsyncTestClient[Litestar]"
    links: RememberingLinks
    messengers: TakingMessengers
    clock: MovableClock
    tokens: dict[str, str] = field(default_factory=dict)

    async def sign_in(self, name: str) -> None:
        """One of those that every test has."""
        wanted = {"user": name, "password": PASSWORDS[name]}
        session = await self.ok("POST", "/v1/sessions", wanted, role=None)
        assert session["role"] == name
        self.tokens[name] = session["token"]

    def headers(self, role: str | None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"} if role else {}

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str | None = "administrator",
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        content = raw if raw is not None else (None if body is None else msgspec.json.encode(body))
        sent = {**self.headers(role), **(headers or {})}
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        return await self.client.request(method, path, content=content, headers=sent)

    async def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The decoded answer of a request that must succeed."""
        answer = await self.call(method, path, body, **more)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    clock = MovableClock()
    # The cheapest argon2 there is: its price is tested where it is made, in tests/unit/control.
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    store = await open_store(f"sqlite:///{directory}/virtha.db", clock=clock)
    links, messengers = RememberingLinks(), TakingMessengers()
    authority = LocalAuthority(*_AUTHORITY, wall_ms=clock.wall_ms)
    try:
        await initialise(
            store=store,
            name="virtha",
            administrator="administrator",
            password=PASSWORDS["administrator"],
            passwords=passwords,
        )
        control = make_control(
            store=store,
            links=links,
            authority=authority,
            clock=clock,
            servers=("127.0.0.1:8250",),
            passwords=passwords,
            box=KeyBox(bytes(KEY_BYTES), where="secrets.key"),
            messengers=messengers,
            power_devices=RealPowerDevices(),
        )
        services = Services(control=control, authority=authority)
        with lent_app(services) as app:
            async with AsyncTestClient(app) as client:
                world = World(
                    store=store,
                    control=control,
                    services=services,
                    app=app,
                    client=client,
                    links=links,
                    messengers=messengers,
                    clock=clock,
                )
                await _sign_in_all(world)
                yield world
    finally:
        await store.close()


async def _sign_in_all(world: World) -> None:
    for name in ("administrator", "operator", "viewer"):
        if name != "administrator":
            wanted = {"name": name, "password": PASSWORDS[name], "role": name}
            await world.ok("POST", "/v1/users", wanted)
        await world.sign_in(name)


Story = Callable[[World], Awaitable[T]]


@pytest.fixture
def play(tmp_path: Path, fresh_database: Callable[[Path], None]) -> Callable[[Story[T]], T]:
    """Run one story in a fresh installation."""
    fresh_database(tmp_path)

    def run(story: Story[T]) -> T:
        async def main() -> T:
            async with open_world(tmp_path) as world:
                return await story(world)

        return asyncio.run(main())

    return run


@pytest.fixture(scope="session")
def open_installation() -> Callable[[Path], Any]:
    """For tests that run the installation's loop by themselves."""
    return open_world


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledStory]:
    """A real server process with a live host; one for all tests of a module."""
    with telling(tmp_path_factory.mktemp("story")) as told:
        yield told


@pytest.fixture(autouse=True, scope="module")
def _leaks_are_told_where_they_are_made() -> Iterator[None]:
    """As in tests/unit: not in whichever later test the garbage collector happens to run."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def watched_answers() -> Iterator[Watch]:
    """What clients are answered by servers of the tests below here."""
    watch = Watch()
    with watching(watch):
        yield watch


@pytest.fixture(autouse=True)
def _each_answer_fits_the_document(watched_answers: Watch) -> Iterator[None]:
    yield
    wrong, watched_answers.wrong = watched_answers.wrong, []
    assert not wrong, "\n".join(wrong[:10])
