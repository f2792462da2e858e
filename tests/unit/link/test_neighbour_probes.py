"""A guardian answers its neighbours past the server, and what a neighbour makes of any other answer (F1, J2)."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from link_rig import Pki, until
from msgspec.structs import replace

from virtha.agent.neighbour_probes import NeighbourProbes, own_addresses
from virtha.agent.properties import AgentProperties
from virtha.drivers.link import HostCredentials
from virtha.drivers.neighbour_probe import ProbeListener, probe
from virtha.engine.events import Investigate
from virtha.model.evidence import MANAGEMENT_NETWORK, STORAGE_NETWORK, Answer, ProbeAddress
from virtha.model.ids import BootId, HostId, Term
from virtha.model.time import Millis
from virtha.server.witness_desk import WitnessDesk
from virtha.wire.codec import HEADER
from virtha.wire.probes import NONCE_BYTES, ProbeQuestion, encode
from virtha.wire.witness_messages import HostProbed, ProbeHost, ProbeTarget, WitnessOrder

pytestmark = pytest.mark.req("F1")
H1, H2 = HostId("h1"), HostId("h2")
BOOT = BootId("boot-1")
PATIENCE_MS = 60_000


def target(port: int, *, address: str = "127.0.0.1", source: str = "127.0.0.2") -> ProbeTarget:
    return ProbeTarget(network="storage", address=address, port=port, source=source)


@asynccontextmanager
async def guardian(credentials: HostCredentials) -> AsyncIterator[int]:
    listener = ProbeListener(credentials, BOOT)
    task = asyncio.create_task(listener.run(0, address="127.0.0.1"))
    try:
        await until(lambda: listener.port, "its port")
        yield listener.port
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Noting(ProbeListener):
    """A guardian's end that notes each connection: which of its addresses was asked, and from where."""

    def __init__(self, credentials: HostCredentials, boot: BootId) -> None:
        super().__init__(credentials, boot)
        self.asked: set[tuple[str, str]] = set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = (writer.get_extra_info(name)[0] for name in ("sockname", "peername"))
        at, source = names
        self.asked.add((at, source))
        await super()._answer(reader, writer)


class Asked:
    """What a leader that knows of these hosts asks h2 about h1: a cluster and sessions in one."""

    instance = "server-1"
    led_vms: Mapping[Any, Any] = {}

    def __init__(self, told: Mapping[HostId, tuple[ProbeAddress, ...]]) -> None:
        self.led_hosts: Any = {one: SimpleNamespace(probed_at=at) for one, at in told.items()}
        self.orders: list[ProbeHost] = []

    def ask_witness(self, host_id: HostId, order: WitnessOrder) -> bool:
        assert host_id == H2 and isinstance(order, ProbeHost)
        self.orders.append(order)
        return True

    def is_shared(self, domain_id: object) -> bool:
        return True

    def offer(self, *events: object) -> None:
        """Nobody judges here."""

    def ask(self) -> ProbeHost:
        desk = WitnessDesk(self, self, term=Term(1), now=lambda: Millis(0))
        asking = Investigate(
            subject=H1, boot=BOOT, witnesses=(H2,), disk_reader=None, vms=(), round=1
        )
        desk.investigate(asking)
        (order,) = self.orders
        return replace(order, deadline_ms=PATIENCE_MS)


MANAGED = {H1: "127.0.0.11", H2: "127.0.0.12"}
STORED = {H1: "127.0.1.11", H2: "127.0.1.12"}


def addresses(host: HostId, port: int) -> tuple[ProbeAddress, ...]:
    """As its agent tells them, of properties that name its address on the storage network only."""
    properties = AgentProperties(probe_port=port, probe_storage_address=STORED[host])
    return own_addresses(properties, MANAGED[host])


def test_each_network_is_asked_at_its_own_address_and_from_its_own_address(pki: Pki) -> None:
    async def story() -> None:
        listener = Noting(pki.host("h1"), BOOT)
        task = asyncio.create_task(listener.run(0, address="0.0.0.0"))
        try:
            await until(lambda: listener.port, "its port")
            order = Asked({one: addresses(one, listener.port) for one in (H1, H2)}).ask()
            told: list[HostProbed] = []
            NeighbourProbes(pki.host("h2"), told.append).ask(order)
            await until(lambda: len(told) == 2, "both answers")
            assert {one.network: one.answer for one in told} == {
                MANAGEMENT_NETWORK: Answer.ALIVE,
                STORAGE_NETWORK: Answer.ALIVE,
            }
            assert listener.asked == {(MANAGED[H1], MANAGED[H2]), (STORED[H1], STORED[H2])}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


@pytest.mark.parametrize("left", [MANAGEMENT_NETWORK, STORAGE_NETWORK])
def test_what_is_answered_on_one_network_is_told_of_that_one(pki: Pki, left: str) -> None:
    """Its other address answers nobody any more."""

    async def story() -> None:
        listener = ProbeListener(pki.host("h1"), BOOT)
        at = (MANAGED if left == MANAGEMENT_NETWORK else STORED)[H1]
        task = asyncio.create_task(listener.run(0, address=at))
        try:
            await until(lambda: listener.port, "its port")
            order = Asked({one: addresses(one, listener.port) for one in (H1, H2)}).ask()
            told: list[HostProbed] = []
            NeighbourProbes(pki.host("h2"), told.append).ask(order)
            await until(lambda: len(told) == 2, "both answers")
            assert {one.network for one in told if one.answer is Answer.ALIVE} == {left}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())


def test_a_host_tells_each_network_by_its_own_address() -> None:
    def told(local: str | None = None, **properties: Any) -> dict[str, tuple[str, int]]:
        found = own_addresses(AgentProperties(**properties), local)
        return {one.network: (one.address, one.port) for one in found}

    both = {"probe_address": "192.0.2.1", "probe_storage_address": "192.0.2.2"}
    of_session = {MANAGEMENT_NETWORK: ("192.0.2.9", 8252)}
    assert told() == {}, "no session yet"
    assert told("192.0.2.9") == of_session
    assert told("192.0.2.9", probe_storage_address="192.0.2.2") == {
        **of_session,
        STORAGE_NETWORK: ("192.0.2.2", 8252),
    }
    assert told("192.0.2.9", probe_port=9_252, **both) == {
        MANAGEMENT_NETWORK: ("192.0.2.1", 9_252),
        STORAGE_NETWORK: ("192.0.2.2", 9_252),
    }
    assert told("192.0.2.9", probe_port=0, **both) == {}


@asynccontextmanager
async def impostor(reply: bytes) -> AsyncIterator[int]:
    """Takes every question, says the same to each, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = encode(ProbeQuestion(nonce=bytes(NONCE_BYTES)))
        await reader.readexactly(len(question))
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


def test_a_guardian_names_its_boot_and_is_asked_from_the_address_of_that_network(pki: Pki) -> None:
    async def story() -> None:
        h1, h2 = pki.host("h1"), pki.host("h2")
        async with guardian(h1) as port:
            told: list[HostProbed] = []
            probes = NeighbourProbes(h2, told.append)
            away = target(port, source="192.0.2.1")
            asked = ProbeHost(
                question=7, subject=H1, targets=(target(port), away), deadline_ms=10_000
            )
            probes.ask(asked)
            await until(lambda: len(told) == 2, "both answers")
            assert {one.answer: one.boot for one in told} == {
                Answer.ALIVE: BOOT,
                Answer.UNKNOWN: None,  # this host has no such address, so it could not ask
            }
            # At that address there is another host now: the subject itself was not asked.
            assert await probe(target(port), H2, h2, deadline_ms=PATIENCE_MS) == (
                Answer.UNKNOWN,
                None,
            )

    asyncio.run(story())


def test_what_is_not_signed_by_the_guardian_now_is_a_hint_at_most(pki: Pki, other_pki: Pki) -> None:
    async def story() -> None:
        h1, h2 = pki.host("h1"), pki.host("h2")

        async def ask(port: int) -> Answer:
            answer, boot = await probe(target(port), H1, h2, deadline_ms=PATIENCE_MS)
            assert boot is None
            return answer

        async with guardian(h1) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(encode(ProbeQuestion(nonce=bytes(NONCE_BYTES))))
            recorded = await reader.read()
            writer.close()
            assert len(recorded) > HEADER.size
        assert await ask(port) is Answer.HINT, "refused: its kernel lives"
        for reply in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", HEADER.pack(1 << 30), recorded):
            async with impostor(reply) as port:
                assert await ask(port) is Answer.HINT, reply[:20]
        async with guardian(other_pki.host("h1")) as port:
            assert await ask(port) is Answer.HINT, "of another installation"

    asyncio.run(story())


def test_nobody_there_is_silence_and_an_address_that_is_none_says_nothing(pki: Pki) -> None:
    async def story() -> None:
        h2 = pki.host("h2")
        with socket.socket() as full, socket.socket() as first, socket.socket() as second:
            # A queue that is full takes no connection: packets are lost, as on a cable that is cut.
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            port = int(full.getsockname()[1])
            for one in (first, second):
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(("127.0.0.1", port))
            assert await probe(target(port), H1, h2, deadline_ms=200) == (Answer.SILENT, None)
        for wrong in (
            target(1, address="h1.example.org"),
            target(1, source="eth0"),
            target(70_000),
        ):
            assert await probe(wrong, H1, h2, deadline_ms=PATIENCE_MS) == (Answer.UNKNOWN, None)

    asyncio.run(story())


@pytest.mark.bad_input
def test_a_question_that_is_none_gets_no_answer(pki: Pki) -> None:
    async def story() -> None:
        async with guardian(pki.host("h1")) as port:
            for words in (
                b"GET / HTTP/1.1\r\n\r\n",
                HEADER.pack(3) + b"abc",
                encode(ProbeQuestion(nonce=b"x")),
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(words)
                assert await reader.read() == b""
                writer.close()
            answer, _ = await probe(target(port), H1, pki.host("h2"), deadline_ms=PATIENCE_MS)
            assert answer is Answer.ALIVE

    asyncio.run(story())
