"""A real gateway on loopback with a control in memory, and hosts with real certificates."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from virtha.control.views import GuardianAnswer, HelloAnswer
from virtha.drivers.link import HostCredentials, HostLink
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import (
    LocalAuthority,
    client_context,
    create_authority,
    make_key_and_csr,
    server_context,
)
from virtha.model.facts import Fact, Happened
from virtha.model.ids import BootId, HostId, InstallationId, OperationId, Revision, Term
from virtha.model.orders import HostSettings, Order, ScanForeign
from virtha.model.policy import Policy
from virtha.model.time import UtcMillis
from virtha.server.gateway import Gateway
from virtha.wire.codec import HEADER, encode_message
from virtha.wire.messages import Beat, Hello, Pace, PeerRole, Welcome

H1 = HostId("h1")
INSTALLATION = InstallationId("6f0f3f3e-0000-4000-8000-000000000001")

INSTALLATION_OTHER = InstallationId("6f0f3f3e-0000-4000-8000-0000000000ff")


class Pki:
    """One installation's authority with what it issued."""

    def __init__(self, installation_id: InstallationId = INSTALLATION) -> None:
        self.installation_id = installation_id
        self.authority_pem, key = create_authority(
            installation_id, now=UtcMillis(time.time_ns() // 1_000_000)
        )
        self._key = key
        self.authority = LocalAuthority(self.authority_pem, key, wall_ms=MachineClock().wall_ms)
        self.server_pem, self.server_key = self.authority.issue_server_certificate(("127.0.0.1",))
        self.context = server_context(self.authority_pem, self.server_pem, self.server_key)

    def host(
        self, name: str = "h1", *, authority_pem: str | None = None, signed_in_ms: int = 0
    ) -> HostCredentials:
        """``signed_in_ms``: as if the authority's clock were that far ahead (or behind)."""
        key, csr = make_key_and_csr(name)
        wall_ms = UtcMillis(time.time_ns() // 1_000_000 + signed_in_ms)
        authority = LocalAuthority(self.authority_pem, self._key, wall_ms=lambda: wall_ms)
        signed = authority.sign_host(csr, host_id=HostId(name))
        return HostCredentials(
            installation_id=self.installation_id,
            host_id=HostId(name),
            authority_pem=authority_pem or self.authority_pem,
            certificate_pem=signed.certificate_pem,
            key_pem=key,
        )


class MemoryControl:
    """The use cases that the gateway needs, kept in memory; ``fail`` and ``gate`` disturb them."""

    def __init__(self) -> None:
        self.recorded: dict[HostId, list[Fact]] = {}
        self.batches: list[int] = []
        self.revoked: set[str] = set()
        self.orders: list[Order] = []
        self.settings_revision = 1
        self.hellos: list[HostId] = []
        self.lost: list[HostId] = []
        self.boots: list[BootId] = []
        """Of the hellos that were recorded."""
        self.term = Term(3)
        self.counts_on = True
        """Past terms of other servers."""
        self.policy = Policy()
        self.fail: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.checks: list[asyncio.Event] = []
        """Each holds up one question for a certificate, first come first held."""
        self.hello_gate = asyncio.Event()
        self.hello_gate.set()

    @property
    def hosts(self) -> "MemoryControl":
        return self

    @property
    def facts(self) -> "MemoryControl":
        return self

    async def certificate_allowed(self, host_id: HostId, serial: str) -> bool:
        if self.fail is not None:
            raise self.fail
        allowed = serial not in self.revoked
        if self.checks:
            await self.checks.pop(0).wait()
        return allowed

    async def agent_lost(self, host_id: HostId) -> None:
        self.lost.append(host_id)
        if self.fail is not None:
            raise self.fail

    async def hello(
        self,
        host_id: HostId,
        *,
        boot: BootId,
        certificate_serial: str,
        term_elsewhere: Term,
        fact_sequence_last: int,
    ) -> HelloAnswer:
        self.hellos.append(host_id)
        self.boots.append(boot)
        self._count_on(term_elsewhere)
        acknowledged = self.acknowledged(host_id)
        orders = tuple(self.orders)
        await self.hello_gate.wait()
        return HelloAnswer(
            installation_id=INSTALLATION,
            term=self.term,
            fact_sequence_acknowledged=acknowledged,
            settings=HostSettings(
                revision=self.settings_revision,
                installation_id=INSTALLATION,
                term=self.term,
                policy=self.policy,
            ),
            orders=orders,
        )

    async def guardian_hello(self, host_id: HostId, *, term_elsewhere: Term) -> GuardianAnswer:
        if self.fail is not None:
            raise self.fail
        self._count_on(term_elsewhere)
        return GuardianAnswer(
            term=self.term,
            revision=Revision(self.settings_revision),
            detection=self.policy.detection,
        )

    def _count_on(self, elsewhere: Term) -> None:
        if self.counts_on and elsewhere >= self.term:
            self.term = Term(elsewhere + 1)

    def acknowledged(self, host_id: HostId) -> int:
        facts = self.recorded.get(host_id)
        return facts[-1].sequence if facts else 0

    async def record_facts(self, host_id: HostId, facts: Sequence[Fact]) -> int:
        if self.fail is not None:
            raise self.fail
        await self.gate.wait()
        known = self.acknowledged(host_id)
        self.batches.append(len(facts))
        self.recorded.setdefault(host_id, []).extend(f for f in facts if f.sequence > known)
        return self.acknowledged(host_id)


def fact(sequence: int, text: str = "") -> Fact:
    return Fact(
        sequence=sequence,
        boot=BootId("boot-1"),
        monotonic_ms=sequence,
        wall_ms=1_700_000_000_000 + sequence,
        body=Happened(code="host.libvirt.lost", fields={"name": text or f"fact {sequence}"}),
    )


class MemoryOutbox:
    """An outbox that keeps everything; ``acknowledged`` is the agent's view."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []

    @property
    def last_sequence(self) -> int:
        return self.facts[-1].sequence if self.facts else 0

    def write(self, count: int) -> None:
        start = self.last_sequence + 1
        self.facts.extend(fact(start + index) for index in range(count))

    def facts_after(self, sequence: int, limit: int) -> Sequence[Fact]:
        return [f for f in self.facts if f.sequence > sequence][:limit]


class Recorder:
    """HostLinkEvents that remembers."""

    def __init__(self) -> None:
        self.welcomes: list[Welcome] = []
        self.ended: list[tuple[str, str]] = []
        self.settings: list[HostSettings] = []
        self.orders: list[Order] = []
        self.facts_acknowledged: list[int] = []
        self.beats_acknowledged: list[int] = []
        self.paces: list[Pace] = []

    def on_connected(self, welcome: Welcome, address: str) -> None:
        self.welcomes.append(welcome)

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        self.ended.append((code, message))

    def on_settings(self, settings: HostSettings) -> None:
        self.settings.append(settings)

    def on_order(self, order: Order) -> None:
        self.orders.append(order)

    def on_facts_acknowledged(self, sequence: int) -> None:
        self.facts_acknowledged.append(sequence)

    def on_beat_acknowledged(self, sequence: int) -> None:
        self.beats_acknowledged.append(sequence)


@dataclass
class HostRig:
    link: HostLink
    events: Recorder
    outbox: MemoryOutbox | None
    task: "asyncio.Task[None]"

    async def stop(self) -> None:
        self.link.close()
        await self.task


@dataclass
class ServerRig:
    """A gateway that listens, and the hosts that the test has connected to it."""

    pki: Pki
    control: MemoryControl
    gateway: Gateway
    port: int
    rigs: list[HostRig] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def host(
        self,
        role: PeerRole = PeerRole.AGENT,
        *,
        credentials: HostCredentials | None = None,
        servers: tuple[str, ...] = (),
        boot: str = "boot-1",
        **options: Any,
    ) -> HostRig:
        events = Recorder()
        outbox = MemoryOutbox() if role is PeerRole.AGENT else None
        link = HostLink(
            servers=servers or (self.address,),
            credentials=credentials or self.pki.host(),
            role=role,
            boot=BootId(boot),
            events=events,
            outbox=outbox,
            on_pace=events.paces.append,
            **options,
        )
        rig = HostRig(link, events, outbox, asyncio.create_task(link.run()))
        self.rigs.append(rig)
        return rig

    async def stop(self) -> None:
        for rig in self.rigs:
            await rig.stop()
        await self.gateway.close()


async def start_server(
    pki: Pki, *, control: MemoryControl | None = None, policy: Policy | None = None, port: int = 0
) -> ServerRig:
    control = control or MemoryControl()
    control.policy = policy or control.policy
    gateway = Gateway(
        clock=MachineClock(),
        installation_id=pki.installation_id,
    )
    port = await gateway.start(
        control, term=Term(3), context=pki.context, host="127.0.0.1", port=port
    )
    return ServerRig(pki, control, gateway, port)


async def until(condition: Callable[[], object], what: str, *, seconds: float = 60.0) -> None:
    """Wait for a condition, never for a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


@contextlib.asynccontextmanager
async def server(pki: Pki, **options: Any) -> Any:
    rig = await start_server(pki, **options)
    try:
        yield rig
    finally:
        await rig.stop()


def order(name: str, step: int = 0) -> Order:
    return Order(
        operation_id=OperationId(name),
        step=step,
        term=Term(3),
        host_boot=BootId("boot-1"),
        body=ScanForeign(),
    )


def settings(revision: int, hold: str | None = None) -> HostSettings:
    return HostSettings(
        revision=revision, installation_id=InstallationId(INSTALLATION), term=Term(3), hold=hold
    )


def beat(sequence: int, wall_ms: int = 0) -> Beat:
    return Beat(
        sequence=sequence,
        boot=BootId("boot-1"),
        monotonic_ms=10_000 + sequence,
        inventory_revision=1,
        agent_alive=True,
        wall_ms=wall_ms,
    )


async def connected(rig: ServerRig, role: PeerRole = PeerRole.AGENT, **options: Any) -> HostRig:
    host = rig.host(role, **options)
    await until(lambda: host.link.connected, f"{role} connects")
    return host


class Peer:
    """A connection with a host's certificate that says hello when the test wants it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def hello(self, boot: str, role: PeerRole = PeerRole.AGENT) -> None:
        hello = Hello(version_major=1, version_minor=0, role=role, host_id=H1, boot=BootId(boot))
        self._writer.write(encode_message(hello))

    async def ended_by(self) -> str:
        """The code that the server says before it ends the connection."""
        (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        code: str = msgspec.msgpack.decode(await self._reader.readexactly(length))["code"]
        self._writer.close()
        return code


async def peer(rig: ServerRig, pki: Pki, credentials: HostCredentials) -> Peer:
    context = client_context(pki.authority_pem, credentials.certificate_pem, credentials.key_pem)
    before = rig.gateway.metrics().connections
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, ssl=context)
    assert rig.gateway.metrics().connections > before
    return Peer(reader, writer)
