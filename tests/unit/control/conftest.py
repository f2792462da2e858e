"""A whole control over a real SQLite; hosts are played by the tests, through facts."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import able_host
import pytest
from able_host import GIB, IMAGE, MIB
from argon2 import PasswordHasher
from msgspec.structs import replace

from virtha.control import Control, make_control
from virtha.control.installation import initialise
from virtha.control.passwords import Passwords
from virtha.control.requests import (
    JoinRequest,
    SearchQuery,
    StorageCreate,
    TokenCreate,
    VmCreate,
    VmStart,
)
from virtha.control.views import Caller, JoinAnswer, Page
from virtha.model.errors import InvalidInput, Unavailable
from virtha.model.event import Event
from virtha.model.facts import (
    Fact,
    FactBody,
    HostReport,
    Outcome,
    Released,
    Result,
    StorageReport,
    VmReport,
)
from virtha.model.host import HostCapabilities, HostState
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.operation import Operation
from virtha.model.orders import HostSettings, Order, StartVm
from virtha.model.time import Millis, UtcMillis
from virtha.model.user import Role
from virtha.model.vm import VmState
from virtha.model.watchdog import WatchdogModel
from virtha.ports.authority import SignedCertificate
from virtha.ports.hosts import LastBeat
from virtha.store import Store, open_store
from virtha.store.events import EventFilter, events_after

PASSWORD = "correct horse battery"
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
FINGERPRINT = "ab" * 32
# The real cost of argon2 would be most of these tests' time; that it is argon2 is tested for itself.
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class ManualClock:
    def __init__(self) -> None:
        self.now = 1_000_000
        self.wall_offset = 1_700_000_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now + self.wall_offset)

    def advance(self, duration_ms: int) -> None:
        self.now += duration_ms


class RecordingLinks:
    """Remembers what went to hosts. ``connected`` says who is there."""

    def __init__(self) -> None:
        self.connected: set[HostId] = set()
        self.guardians: set[HostId] = set()
        """Hosts that have a guardian's session, with or without an agent's."""
        self.beats: dict[HostId, LastBeat] = {}
        self.delivered: list[tuple[HostId, Order]] = []
        self.configured: list[tuple[HostId, HostSettings]] = []
        self.disconnected: list[tuple[HostId, str]] = []

    def agent_connected(self, host_id: HostId) -> bool:
        return host_id in self.connected

    def has_session(self, host_id: HostId) -> bool:
        return host_id in self.connected | self.guardians

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        return self.beats.get(host_id)

    def deliver(self, host_id: HostId, order: Order) -> bool:
        if host_id not in self.connected:
            return False
        self.delivered.append((host_id, order))
        return True

    def configure(self, host_id: HostId, settings: HostSettings) -> None:
        self.configured.append((host_id, settings))

    def disconnect(self, host_id: HostId, code: str) -> None:
        self.disconnected.append((host_id, code))

    def settings_of(self, host_id: HostId) -> HostSettings:
        """The newest that was sent."""
        return [settings for of, settings in self.configured if of == host_id][-1]


class PaperAuthority:
    """Signs whatever names itself a request."""

    def __init__(self) -> None:
        self.signed = 0

    def certificate_pem(self) -> str:
        return "authority"

    def fingerprint(self) -> str:
        return FINGERPRINT

    def sign_host(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        if csr_pem != "csr":
            raise InvalidInput("is no certificate request", field="csr")
        self.signed += 1
        return SignedCertificate(
            certificate_pem=f"certificate of {host_id}",
            serial=f"{self.signed:x}",
            not_after=UtcMillis(2_000_000_000_000),
        )


ABLE = replace(able_host.ABLE, watchdog_models=(WatchdogModel.I6300ESB, WatchdogModel.IB700))


@dataclass
class PlayedHost:
    """A host as the test plays it: its facts have sequences, boots and time."""

    world: "World"
    id: HostId
    name: str
    serial: str
    boot: BootId
    sequence: int = 0

    async def tell(self, *bodies: FactBody) -> int:
        return await self.world.control.facts.record_facts(self.id, self.facts(*bodies))

    def facts(self, *bodies: FactBody) -> list[Fact]:
        made = []
        for body in bodies:
            self.sequence += 1
            made.append(
                Fact(
                    sequence=self.sequence,
                    boot=self.boot,
                    monotonic_ms=self.world.clock.now,
                    # Hours off: nothing may depend on it.
                    wall_ms=self.world.clock.wall_ms() - 7 * 3_600_000,
                    body=body,
                )
            )
        return made

    async def hello(self, boot: str | None = None) -> Any:
        if boot is not None:
            self.boot = BootId(boot)
        answer = await self.world.control.hosts.hello(
            self.id,
            boot=self.boot,
            certificate_serial=self.serial,
            term_elsewhere=0,
            fact_sequence_last=self.sequence,
        )
        self.world.links.connected.add(self.id)
        self.beat()
        return answer

    def beat(self) -> None:
        self.world.links.beats[self.id] = LastBeat(
            boot=self.boot,
            sequence=1,
            monotonic_ms=77_000,
            received_at=self.world.clock.monotonic_ms(),
            agent_alive=True,
        )

    def vanish(self) -> None:
        self.world.links.connected.discard(self.id)
        self.world.links.beats.pop(self.id, None)

    @property
    def orders(self) -> list[Order]:
        return [order for host_id, order in self.world.links.delivered if host_id == self.id]

    async def answer(
        self, order: Order | None = None, result: Result = Result.OK, **more: Any
    ) -> None:
        order = order or self.orders[-1]
        await self.tell(
            Outcome(operation_id=order.operation_id, step=order.step, result=result, **more)
        )

    async def started(self, order: Order | None = None) -> None:
        """The VM of a start order runs."""
        order = order or self.orders[-1]
        assert isinstance(order.body, StartVm), order
        body = order.body
        await self.tell(
            VmReport(vm_id=body.vm.id, incarnation=body.grant.incarnation, state=VmState.RUNNING),
            Outcome(operation_id=order.operation_id, step=order.step, result=Result.OK),
        )

    async def stopped(self, vm_id: VmId, incarnation: int) -> None:
        await self.tell(
            VmReport(vm_id=vm_id, incarnation=Incarnation(incarnation), state=VmState.DOWN),
            Released(vm_id=vm_id, incarnation=Incarnation(incarnation)),
        )


@dataclass
class World:
    directory: Path
    clock: ManualClock
    store: Store
    links: RecordingLinks
    authority: PaperAuthority
    control: Control
    hosts: dict[str, PlayedHost] = field(default_factory=dict)

    async def join(self, name: str, **capabilities: Any) -> PlayedHost:
        """A host that has joined, connected and said what it can."""
        token = await self.control.tokens.create(ADMIN, TokenCreate(cluster="default"))
        answer: JoinAnswer = await self.control.join.join(
            JoinRequest(token=token.secret, csr_pem="csr", name=name), address="10.0.0.1"
        )
        host = PlayedHost(
            self, answer.host_id, name, f"{self.authority.signed:x}", BootId(f"{name}-boot1")
        )
        self.hosts[name] = host
        await host.hello()
        able = {**{key: getattr(ABLE, key) for key in ABLE.__struct_fields__}, **capabilities}
        await host.tell(HostReport(capabilities=HostCapabilities(**able)))
        return host

    async def add_storage(self, name: str = "ds1", usable: bool = True) -> Any:
        """With an image, seen by all hosts that have joined."""
        view = await self.control.storage.create(
            ADMIN, StorageCreate(name=name, path=f"/srv/{name}")
        )
        for host in self.hosts.values():
            if host.orders:
                await host.answer()
            await host.tell(
                StorageReport(
                    storage_domain_id=view.domain.id,
                    usable=usable,
                    size_bytes=100 * GIB,
                    free_bytes=50 * GIB,
                    images=(IMAGE,),
                )
            )
        return view

    async def add_vm(self, name: str = "web1", **wanted: Any) -> VmId:
        """Created, its host has done all that it was told."""
        request = VmCreate(
            name=name, **{"memory_bytes": 512 * MIB, "image": "tiny", "ha": True, **wanted}
        )
        operation = await self.control.vms.create(ADMIN, request)
        await self.play(operation.id)
        return VmId(operation.subject)

    async def play(self, operation_id: str) -> Operation:
        """Hosts answer every order with success until the operation is over."""
        answered: set[int] = set()
        while True:
            operation = await self.control.operations.get(operation_id)
            if operation.is_over:
                return operation
            waiting = [
                (self.of(host_id), order)
                for host_id, order in self.links.delivered
                if order.operation_id == operation_id and order.step not in answered
            ]
            assert waiting, f"nobody has anything to do: {operation}"
            host, order = waiting[0]
            answered.add(order.step)
            if isinstance(order.body, StartVm):
                await host.started(order)
            else:
                await host.answer(order)

    async def run_vm(self, name: str = "web1") -> tuple[VmId, PlayedHost]:
        """Started, by order."""
        operation = await self.control.vms.start(ADMIN, name, VmStart())
        await self.play(operation.id)
        view = await self.control.vms.get(name)
        assert view.host_name is not None
        return view.vm.id, self.hosts[view.host_name]

    def of(self, host_id: HostId) -> PlayedHost:
        return next(host for host in self.hosts.values() if host.id == host_id)

    async def events(self, code: str = "*") -> list[Event]:
        async with self.store.read() as tx:
            return list(await events_after(tx, EventFilter(code=code), 0, 10_000))

    async def codes(self) -> list[str]:
        return [event.code for event in await self.events()]

    async def reopen(self) -> None:
        """The server dies and comes back: nothing but the database is left."""
        await self.store.close()
        self.store = await self._opened()
        self.links = RecordingLinks()
        self.control = _control(self)

    async def _opened(self) -> Store:
        """A statement that was cancelled runs to its end in its own thread, and keeps the lock until then."""
        deadline = time.monotonic() + 60.0
        while True:
            try:
                return await open_store(str(self.store.database), clock=self.clock)
            except Unavailable:
                assert time.monotonic() < deadline

    async def host_state(self, name: str) -> HostState:
        return (await self.control.hosts.get(name)).status.state


def _control(world: World) -> Control:
    return make_control(
        store=world.store,
        links=world.links,
        authority=world.authority,
        clock=world.clock,
        servers=("server1:8250",),
        passwords=Passwords(CHEAP),
    )


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    store = await open_store(f"sqlite:///{directory}/virtha.db", clock=clock)
    await initialise(
        store=store,
        name="virtha",
        administrator="admin",
        password=PASSWORD,
        passwords=Passwords(CHEAP),
    )
    links, authority = RecordingLinks(), PaperAuthority()
    control = make_control(
        store=store,
        links=links,
        authority=authority,
        clock=clock,
        servers=("server1:8250",),
        passwords=Passwords(CHEAP),
    )
    world = World(directory, clock, store, links, authority, control)
    try:
        yield world
    finally:
        await world.store.close()


Story = Callable[[World], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path, fresh_database: Callable[[Path], None]) -> Callable[[Story], None]:
    """Runs one story in a fresh world."""
    fresh_database(tmp_path)

    def run(story: Story) -> None:
        async def main() -> None:
            async with open_world(tmp_path) as world:
                await story(world)

        asyncio.run(main())

    return run


async def everything(fetch: Callable[[SearchQuery], Awaitable[Page[Any]]], limit: int) -> list[Any]:
    """All pages of a list."""
    items: list[Any] = []
    after = None
    while True:
        page = await fetch(SearchQuery(limit=limit, after=after))
        items += page.items
        if page.next is None:
            return items
        after = page.next
