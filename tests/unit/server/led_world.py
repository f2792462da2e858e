"""A real store, real use cases and real engines; hosts are played, time is the test's, and each effect can be the last."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from able_host import ABLE, GIB, IMAGE, MIB
from argon2 import PasswordHasher
from empty_database import lay_empty_database

from virtha.agent.power_attempts import PowerAttempts
from virtha.control import Control, make_control
from virtha.control.installation import initialise
from virtha.control.passwords import Passwords
from virtha.control.requests import JoinRequest, StorageCreate, TokenCreate, VmCreate, VmStart
from virtha.control.secret_box import KEY_BYTES, KeyBox
from virtha.control.views import Caller, VmView
from virtha.engine.records import VmRecord
from virtha.model.domain import DomainReport, DomainState
from virtha.model.event import Event
from virtha.model.facts import (
    Fact,
    FactBody,
    HostReport,
    Inventory,
    Outcome,
    Result,
    StorageReport,
    VmReport,
)
from virtha.model.ids import BootId, HostId, StorageDomainId, Term, VmId
from virtha.model.orders import HostSettings, Order, StartVm
from virtha.model.power_settings import PowerDriver
from virtha.model.time import Millis, UtcMillis
from virtha.model.user import Role
from virtha.model.vm import VmState
from virtha.ports.authority import SignedCertificate
from virtha.ports.hosts import LastBeat
from virtha.ports.power import PowerDevices
from virtha.server.cluster_feed import ClusterFeed
from virtha.server.engines import Engines
from virtha.server.gateway_use_cases import HostWatcher
from virtha.server.leader import Leader
from virtha.server.neighbour_power import NeighbourPowerDesk
from virtha.store import Store, open_store
from virtha.store.engine import find_vm_record
from virtha.store.events import EventFilter, events_after
from virtha.store.installations import the_installation
from virtha.wire.lease_messages import LeaseOrder
from virtha.wire.messages import Beat, PeerRole
from virtha.wire.power_messages import PowerWord
from virtha.wire.witness_messages import LookAtDisks, WitnessAnswer, WitnessOrder

WAIT_S = 60.0
ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
PASSWORDS = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


class ManualClock:
    def __init__(self) -> None:
        self.now = 1_000_000
        self.wall_offset = 1_700_000_000_000

    def monotonic_ms(self) -> Millis:
        return Millis(self.now)

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(self.now + self.wall_offset)


class PaperAuthority:
    """Signs whatever names itself a request."""

    signed = 0

    def certificate_pem(self) -> str:
        return "authority"

    def fingerprint(self) -> str:
        return "ab" * 32

    def sign_host(self, csr_pem: str, *, host_id: HostId) -> SignedCertificate:
        self.signed += 1
        return SignedCertificate(
            certificate_pem=f"certificate of {host_id}",
            serial=f"{self.signed:x}",
            not_after=UtcMillis(2_000_000_000_000),
        )


class PlayedGateway:
    """Sessions as the test says: what the use cases and the engines need of a gateway."""

    def __init__(self) -> None:
        self.watcher: HostWatcher | None = None
        self.up: dict[HostId, dict[PeerRole, BootId]] = {}
        self.beats: dict[HostId, LastBeat] = {}
        self.delivered: list[tuple[HostId, Order]] = []
        self.acknowledged: dict[HostId, int] = {}
        self.instances: list[str] = []
        self.instance = "server-1"
        self.lease_orders: list[tuple[HostId, LeaseOrder]] = []
        self.questions: list[tuple[HostId, WitnessOrder]] = []
        self.helpers: dict[HostId, PowerAttempts] = {}
        """Agents that make attempts at others' power devices."""
        self.power_words: list[tuple[HostId, PowerWord]] = []
        self.term = Term(1)
        self.power: NeighbourPowerDesk | None = None

    def agent_connected(self, host_id: HostId) -> bool:
        return PeerRole.AGENT in self.up.get(host_id, {})

    def has_session(self, host_id: HostId) -> bool:
        return self.agent_connected(host_id)

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        return self.beats.get(host_id)

    def deliver(self, host_id: HostId, order: Order) -> bool:
        if self.agent_connected(host_id):
            self.delivered.append((host_id, order))
        return self.agent_connected(host_id)

    def configure(self, host_id: HostId, settings: HostSettings) -> None: ...

    def disconnect(self, host_id: HostId, code: str) -> None:
        self.up.pop(host_id, None)

    def sessions(self, host_id: HostId) -> tuple[tuple[PeerRole, BootId], ...]:
        return tuple(self.up.get(host_id, {}).items())

    def lease_boot(self, host_id: HostId) -> BootId | None:
        return self.up.get(host_id, {}).get(PeerRole.GUARDIAN)

    def tell_lease(self, host_id: HostId, order: LeaseOrder) -> bool:
        up = self.lease_boot(host_id) is not None
        if up:
            self.lease_orders.append((host_id, order))
        return up

    def ask_witness(self, host_id: HostId, order: WitnessOrder) -> bool:
        up = self.up.get(host_id, {})
        asked = PeerRole.AGENT in up if isinstance(order, LookAtDisks) else bool(up)
        if asked:
            self.questions.append((host_id, order))
        return asked

    def power_beat(self, host_id: HostId, driver: PowerDriver) -> LastBeat | None:
        able = host_id in self.helpers and PeerRole.AGENT in self.up.get(host_id, {})
        return self.beats.get(host_id) if able else None

    def tell_power(self, host_id: HostId, word: PowerWord) -> int | None:
        self.power_words.append((host_id, word))
        self.helpers[host_id].take(word)
        return 1

    def answer(self, host_id: HostId, answer: WitnessAnswer) -> None:
        assert self.watcher is not None, "nobody leads"
        self.watcher.witness(host_id, answer)

    def acknowledge(self, host_id: HostId, sequence: int) -> None:
        self.acknowledged[host_id] = sequence

    def begin_anew(self, instance: str) -> None:
        self.instances.append(instance)
        self.up.clear()


@dataclass
class PlayedHost:
    world: "LedWorld"
    id: HostId
    name: str
    serial: str
    boot: BootId
    sequence: int = 0
    outbox: list[Fact] = field(default_factory=list)
    """Written, and not acknowledged."""

    async def hello(
        self,
        boot: str | None = None,
        term_seen: int = 0,
        meanwhile: Callable[[], Awaitable[None]] | None = None,
    ) -> list[Order]:
        """Its sessions begin: guardian and agent; what was not acknowledged comes again. Returns the orders that waited.

        ``meanwhile`` comes between the answer's commit and the sessions."""
        world = self.world
        if boot is not None:
            self.boot = BootId(boot)
        answer = await world.control.hosts.hello(
            self.id,
            boot=self.boot,
            certificate_serial=self.serial,
            term_elsewhere=Term(term_seen),
            fact_sequence_last=self.sequence,
        )
        if meanwhile is not None:
            await meanwhile()
        for role in (PeerRole.GUARDIAN, PeerRole.AGENT):
            world.gateway.up.setdefault(self.id, {})[role] = self.boot
            if world.gateway.watcher is not None:
                world.gateway.watcher.session(self.id, role, self.boot, up=True)
        self.beat()
        self.outbox = [
            fact for fact in self.outbox if fact.sequence > answer.fact_sequence_acknowledged
        ]
        if self.outbox:
            await self._send(self.outbox)
        return list(answer.orders)

    def vanish(self) -> None:
        """Its connections break, and nothing more comes."""
        gateway = self.world.gateway
        for role, boot in gateway.up.pop(self.id, {}).items():
            if gateway.watcher is not None:
                gateway.watcher.session(self.id, role, boot, up=False, broken=True)

    def beat(self) -> None:
        gateway, now = self.world.gateway, self.world.clock.monotonic_ms()
        gateway.beats[self.id] = LastBeat(
            boot=self.boot, sequence=1, monotonic_ms=int(now), received_at=now, agent_alive=True
        )
        beat = Beat(
            sequence=1,
            boot=self.boot,
            monotonic_ms=int(now),
            inventory_revision=1,
            agent_alive=True,
        )
        if gateway.watcher is not None:
            gateway.watcher.beat(self.id, beat)

    async def tell(self, *bodies: FactBody) -> None:
        facts = []
        for body in bodies:
            self.sequence += 1
            facts.append(
                Fact(
                    sequence=self.sequence,
                    boot=self.boot,
                    monotonic_ms=self.world.clock.now,
                    wall_ms=0,
                    body=body,
                )
            )
        self.outbox += facts
        await self._send(facts)

    async def _send(self, facts: list[Fact]) -> None:
        recorded = await self.world.control.facts.record_facts(self.id, facts)
        watcher = self.world.gateway.watcher
        if watcher is not None:
            await watcher.facts(self.id, self.boot, facts, recorded)

    async def tell_all(self, *running: VmId) -> None:
        """What it can, and what it runs, as agents do to a server that has just begun."""
        await self.tell(
            HostReport(capabilities=ABLE),
            Inventory(
                revision=self.sequence,
                domains=tuple(
                    DomainReport(vm_id=one, name=one, state=DomainState.RUNNING) for one in running
                ),
            ),
        )

    @property
    def orders(self) -> list[Order]:
        return [order for host_id, order in self.world.gateway.delivered if host_id == self.id]

    def starts(self) -> list[Order]:
        """With a grant that could be used."""
        return [
            order
            for order in self.orders
            if isinstance(order.body, StartVm) and order.body.grant.duration_ms
        ]

    async def started(self, order: Order) -> None:
        """The VM of a start order runs."""
        assert isinstance(order.body, StartVm), order
        incarnation = order.body.grant.incarnation
        await self.tell(
            VmReport(vm_id=order.body.vm.id, incarnation=incarnation, state=VmState.RUNNING),
            Outcome(operation_id=order.operation_id, step=order.step, result=Result.OK),
        )

    async def answer(self, order: Order, result: Result = Result.OK, **more: Any) -> None:
        await self.tell(
            Outcome(operation_id=order.operation_id, step=order.step, result=result, **more)
        )


@dataclass
class LedWorld:
    directory: Path
    clock: ManualClock
    authority: PaperAuthority
    gateway: PlayedGateway
    store: Store
    control: Control
    engines: Engines
    term: Term
    hosts: dict[str, PlayedHost] = field(default_factory=dict)
    storage_domain_id: StorageDomainId | None = None
    power: PowerDevices | None = None
    leads_itself: bool = False
    """The engines run in their tasks; else the test makes each turn."""

    @property
    def feed(self) -> ClusterFeed:
        (feed,) = self.engines.feeds.values()
        return feed

    @property
    def leader(self) -> Leader:
        leader = self.feed.leader
        assert leader is not None
        return leader

    async def settle(self, rounds: int = 4) -> None:
        """Turns, commands and what they change, until the engine has had its say."""
        if self.leads_itself:
            await self._all_durable()
            return
        for _ in range(rounds):
            await self.engines.refresh()
            await self.leader.turn()
            await self.leader.send_all()

    async def _all_durable(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while any(
                self.gateway.acknowledged.get(host.id, 0) < host.sequence
                for host in self.hosts.values()
            ):
                await asyncio.sleep(0.005)

    async def pass_time(self, duration_ms: int, *, beating: tuple[str, ...]) -> None:
        """In steps of half a second, with turns."""
        for _ in range(duration_ms // 500):
            self.clock.now += 500
            for name in beating:
                self.hosts[name].beat()
            await self.leader.tick()
            await self.leader.turn()
            await self.leader.send_all()

    async def restart(self) -> None:
        """The server dies and comes back: nothing but the database is left."""
        for feed in self.engines.feeds.values():
            await feed.stop()
            feed.close()
        await self.store.close()
        self.gateway = PlayedGateway()
        self.store, self.control, self.engines, self.term = await _started(
            self.directory, self.clock, self.authority, self.gateway, self.power
        )

    async def close(self) -> None:
        for feed in self.engines.feeds.values():
            await feed.stop()
            feed.close()
        await self.store.close()

    # What there is

    async def join(self, name: str) -> PlayedHost:
        token = await self.control.tokens.create(ADMIN, TokenCreate(cluster="default"))
        answer = await self.control.join.join(
            JoinRequest(token=token.secret, csr_pem="csr", name=name), address="10.0.0.1"
        )
        serial = f"{self.authority.signed:x}"
        host = PlayedHost(self, answer.host_id, name, serial, BootId(f"{name}-boot1"))
        self.hosts[name] = host
        await host.hello()
        await host.tell_all()
        return host

    async def add_storage(self) -> None:
        """Seen by all hosts that have joined."""
        view = await self.control.storage.create(ADMIN, StorageCreate(name="ds1", path="/srv/ds1"))
        self.storage_domain_id = view.domain.id
        for name, host in self.hosts.items():
            for order in host.orders:
                await host.answer(order)
            await self.tell_storage(name, usable=True)

    async def tell_storage(self, name: str, *, usable: bool) -> None:
        """Its agent does."""
        assert self.storage_domain_id is not None, "no storage was added"
        await self.hosts[name].tell(
            StorageReport(
                storage_domain_id=self.storage_domain_id,
                usable=usable,
                size_bytes=100 * GIB if usable else 0,
                free_bytes=50 * GIB if usable else 0,
                images=(IMAGE,) if usable else (),
            )
        )

    async def add_vm(self, name: str = "web1", *, ha: bool = True) -> VmId:
        request = VmCreate(name=name, memory_bytes=512 * MIB, image="tiny", ha=ha)
        operation = await self.control.vms.create(ADMIN, request)
        await self.done(operation.id)
        return VmId(operation.subject)

    async def run_vm(self, name: str, host: str) -> Order:
        operation = await self.control.vms.start(ADMIN, name, VmStart(host=host))
        await self.done(operation.id)
        return self.hosts[host].starts()[-1]

    async def done(self, operation_id: str) -> None:
        """Hosts answer every order with success until the operation is over."""
        answered: set[int] = set()
        while not (await self.control.operations.get(operation_id)).is_over:
            host_id, order = next(
                (host_id, order)
                for host_id, order in self.gateway.delivered
                if order.operation_id == operation_id and order.step not in answered
            )
            answered.add(order.step)
            host = next(one for one in self.hosts.values() if one.id == host_id)
            if isinstance(order.body, StartVm):
                await host.started(order)
            else:
                await host.answer(order)

    # What is on record

    async def vm(self, name: str = "web1") -> VmView:
        return await self.control.vms.get(name)

    async def record(self, vm_id: VmId) -> VmRecord:
        async with self.store.read() as tx:
            found = await find_vm_record(tx, vm_id)
        assert found is not None
        return found

    async def events(self, code: str) -> list[Event]:
        async with self.store.read() as tx:
            return list(await events_after(tx, EventFilter(code=code), 0, 10_000))

    def all_starts(self) -> list[tuple[HostId, Order]]:
        return [(host.id, order) for host in self.hosts.values() for order in host.starts()]


async def _started(
    directory: Path,
    clock: ManualClock,
    authority: PaperAuthority,
    gateway: PlayedGateway,
    power: PowerDevices | None,
) -> tuple[Store, Control, Engines, Term]:
    lay_empty_database(directory)
    store = await open_store(f"sqlite:///{directory}/virtha.db", clock=clock)
    if not await store.is_initialised():
        await initialise(
            store=store,
            name="virtha",
            administrator="admin",
            password="correct horse battery",
            passwords=PASSWORDS,
        )
    async with store.read() as tx:
        installation_id = (await the_installation(tx)).installation.id
    engines = Engines(
        gateway=gateway,
        clock=clock,
        journals=directory / "journals",
        installation_id=installation_id,
    )
    gateway.power = NeighbourPowerDesk(gateway, clock)
    control = make_control(
        store=store,
        links=gateway,
        authority=authority,
        clock=clock,
        servers=("server1:8250",),
        passwords=PASSWORDS,
        leaders=engines,
        power_devices=power,
        neighbour_power=gateway.power,
        box=KeyBox(bytes(KEY_BYTES), where="secrets.key"),
    )
    term = await control.installation.started(version="test")
    gateway.term = term
    try:
        await engines.begin(control, term)
    except BaseException:
        await store.close()
        raise
    return store, control, engines, term


@asynccontextmanager
async def led_world(directory: Path, power: PowerDevices | None = None) -> AsyncIterator[LedWorld]:
    clock, authority, gateway = ManualClock(), PaperAuthority(), PlayedGateway()
    store, control, engines, term = await _started(directory, clock, authority, gateway, power)
    world = LedWorld(directory, clock, authority, gateway, store, control, engines, term)
    world.power = power
    try:
        yield world
    finally:
        await world.close()


async def two_hosts_and_a_vm(world: LedWorld) -> VmId:
    """h1 runs web1 (HA), h2 could."""
    for name in ("h1", "h2"):
        if name not in world.hosts:
            await world.join(name)
    await world.add_storage()
    vm_id = await world.add_vm()
    await world.settle()
    await world.run_vm("web1", "h1")
    await world.settle()
    return vm_id


def tell(directory: Path, story: Callable[[LedWorld], Awaitable[None]]) -> None:
    async def main() -> None:
        async with led_world(directory) as world:
            await story(world)

    asyncio.run(main())


async def while_turning(world: LedWorld, asking: Awaitable[object]) -> object:
    """The engine makes its turns meanwhile."""
    task = asyncio.ensure_future(asking)
    async with asyncio.timeout(60):
        while not task.done():
            await world.leader.turn()
            await world.leader.send_all()
            await asyncio.wait({task}, timeout=0.01)
    return task.result()
