"""The link over real sockets and TLS: certificates, breaks, dead peers, bad servers."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from link_rig import (
    INSTALLATION,
    INSTALLATION_OTHER,
    Pki,
    Recorder,
    ServerRig,
    start_server,
    until,
)

from virtha.drivers.link import HelloState, HostLink, parse_address
from virtha.drivers.pki import client_context
from virtha.model.errors import InvalidInput
from virtha.model.ids import BootId, HostId, Term
from virtha.model.orders import HostSettings
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.wire.codec import HEADER, encode_message
from virtha.wire.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Beat,
    Hello,
    PeerRole,
    Refuse,
    Welcome,
)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def run_on_uvloop(test: Coroutine[Any, Any, None]) -> None:
    import uvloop

    uvloop.run(test)


both_loops = pytest.mark.parametrize("run", [run, run_on_uvloop], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


def beat(sequence: int) -> Beat:
    return Beat(
        sequence=sequence,
        boot=BootId("boot-1"),
        monotonic_ms=sequence,
        inventory_revision=1,
        agent_alive=True,
    )


def make_hello(**changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "version_major": VERSION_MAJOR,
        "version_minor": VERSION_MINOR,
        "role": PeerRole.AGENT,
        "host_id": HostId("h1"),
        "boot": BootId("boot-1"),
    }
    return Hello(**{**fields, **changes})


@contextlib.asynccontextmanager
async def server(pki: Pki, **options: Any) -> Any:
    rig = await start_server(pki, **options)
    try:
        yield rig
    finally:
        await rig.stop()


async def raw(rig: ServerRig, pki: Pki) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A peer with a good certificate that says whatever the test wants."""
    credentials = pki.host()
    context = client_context(pki.authority_pem, credentials.certificate_pem, credentials.key_pem)
    return await asyncio.open_connection("127.0.0.1", rig.port, ssl=context)


async def last_words(reader: asyncio.StreamReader) -> Refuse:
    (length,) = HEADER.unpack(await reader.readexactly(4))
    return msgspec.msgpack.decode(await reader.readexactly(length), type=Refuse)


async def shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@both_loops
@pytest.mark.req("L6")
def test_agent_and_guardian_connect(pki: Pki, run: Run) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            agent, guardian = rig.host(), rig.host(PeerRole.GUARDIAN)
            await until(lambda: agent.link.connected and guardian.link.connected, "both connect")
            assert agent.link.server_instance == rig.gateway.instance
            assert agent.link.address == rig.address
            for sequence in range(50):
                assert guardian.link.send_beat(beat(sequence))
            await until(lambda: len(guardian.events.beats_acknowledged) == 50, "beats")
            assert guardian.events.beats_acknowledged == list(range(50))

    run(story())


@both_loops
@pytest.mark.req("L6")
@pytest.mark.bad_input("certificate of another authority")
def test_a_host_of_another_authority_is_told_why(pki: Pki, other_pki: Pki, run: Run) -> None:
    """Its TLS handshake is finished when the server looks at its certificate: the alert must arrive."""

    async def story() -> None:
        async with server(pki) as rig:
            # It trusts our authority and claims our installation, but its certificate is another's.
            stranger = other_pki.host(authority_pem=pki.authority_pem)
            stranger = msgspec.structs.replace(stranger, installation_id=INSTALLATION)
            host = rig.host(credentials=stranger)
            await until(lambda: host.events.ended, "refusal")
            code, message = host.events.ended[0]
            assert code == "wire.refused.certificate"
            assert "refuses our certificate" in message and "join" in message
            await until(lambda: rig.gateway.metrics().ended, "the server's side")
            assert rig.gateway.metrics().ended == {"wire.refused.certificate": 1}
            assert rig.control.hellos == []

    run(story())


HOUR_MS = 3_600_000


@pytest.mark.req("L6")
@pytest.mark.parametrize("hours", [-20, 20])
@pytest.mark.bad_input("agent with a wrong clock")
def test_clocks_that_are_hours_apart_do_no_harm(pki: Pki, hours: int) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host(credentials=pki.host(signed_in_ms=hours * HOUR_MS))
            await until(lambda: host.link.connected, "connected")

    run(story())


@both_loops
@pytest.mark.parametrize("days", [-900, 10])
@pytest.mark.bad_input("agent with a wrong clock")
def test_a_certificate_out_of_its_time_is_told(pki: Pki, run: Run, days: int) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host(credentials=pki.host(signed_in_ms=days * 24 * HOUR_MS))
            await until(lambda: host.events.ended, "refusal")
            code, message = host.events.ended[0]
            assert code == "wire.refused.certificate"
            assert "certificate" in message and "refuses" in message
            assert rig.control.hellos == []

    run(story())


@pytest.mark.req("L6")
@pytest.mark.bad_input("certificate of another authority")
def test_a_host_refuses_a_server_of_another_authority(pki: Pki, other_pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host(credentials=other_pki.host())
            await until(lambda: host.events.ended, "refusal")
            code, message = host.events.ended[0]
            assert code == "wire.refused.certificate"
            assert "another installation" in message

    run(story())


def test_a_host_refuses_another_installation_of_the_same_authority(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            claimed = msgspec.structs.replace(pki.host(), installation_id=INSTALLATION_OTHER)
            host = rig.host(credentials=claimed)
            await until(lambda: host.events.ended, "refusal")
            assert host.events.ended[0][0] == "wire.refused.certificate"
            assert rig.control.hellos == []

    run(story())


def test_the_server_certificate_is_no_host(pki: Pki) -> None:
    """It is good for serving only: TLS itself refuses it as a client."""

    async def story() -> None:
        async with server(pki) as rig:
            posing = msgspec.structs.replace(
                pki.host(), certificate_pem=pki.server_pem, key_pem=pki.server_key
            )
            host = rig.host(credentials=posing)
            await until(lambda: host.events.ended, "refusal")
            assert host.events.ended[0][0] == "wire.refused.certificate"

    run(story())


def test_a_client_without_certificate_is_refused(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            context = ssl.create_default_context(cadata=pki.authority_pem)
            context.check_hostname = False
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, ssl=context)
            with pytest.raises((ssl.SSLError, asyncio.IncompleteReadError, OSError)):
                await reader.readexactly(1)
            await shut(writer)
            await until(lambda: rig.gateway.metrics().connections == 0, "closed")

    run(story())


def test_plain_text_on_the_port_harms_nobody(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.read()
            await shut(writer)
            host = rig.host()
            await until(lambda: host.link.connected, "a host connects")

    run(story())


BAD_HELLOS = [
    (encode_message(make_hello(version_major=2)), "wire.refused.version"),
    (encode_message(make_hello(host_id=HostId("h2"))), "wire.refused.identity"),
    (struct.pack(">I", 1 << 30) + b"x" * 1_000_000, "wire.refused.frame_size"),
    (struct.pack(">I", 3) + b"abc", "wire.refused.malformed"),
    (struct.pack(">I", 6) + msgspec.msgpack.encode({"a": 1, "b": 2})[:6], "wire.refused.malformed"),
    (encode_message(beat(1)), "wire.refused.unexpected"),
]


@pytest.mark.parametrize(("data", "code"), BAD_HELLOS, ids=[code for _, code in BAD_HELLOS])
@pytest.mark.bad_input("hello of a future major version", "frame of 1 GiB")
def test_bad_first_words_are_answered(pki: Pki, data: bytes, code: str) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            reader, writer = await raw(rig, pki)
            writer.write(data)
            assert (await last_words(reader)).code == code
            await shut(writer)
            await until(lambda: rig.gateway.metrics().connections == 0, "closed")
            assert rig.gateway.metrics().ended == {code: 1}

    run(story())


@both_loops
@pytest.mark.req("L7")
@pytest.mark.bad_input("half a frame, then silence")
def test_half_a_frame_then_silence_is_closed(pki: Pki, run: Run) -> None:
    async def story() -> None:
        async with server(pki, policy=PROFILES[Profile.FAST]) as rig:
            _, writer = await raw(rig, pki)
            writer.write(encode_message(make_hello()) + b"\x00\x00")
            await until(lambda: rig.gateway.agent_connected(HostId("h1")), "connected")
            await until(lambda: rig.gateway.metrics().ended, "silence noticed")
            assert rig.gateway.metrics().ended == {"wire.closed.silent": 1}
            assert not rig.gateway.agent_connected(HostId("h1"))
            await shut(writer)

    run(story())


@both_loops
def test_a_host_that_does_not_read_is_closed(pki: Pki, run: Run) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            reader, writer = await raw(rig, pki)
            writer.write(encode_message(make_hello()))
            await until(lambda: rig.gateway.agent_connected(HostId("h1")), "connected")
            revision = 2
            while rig.gateway.agent_connected(HostId("h1")) and revision < 100:
                rig.gateway.configure(HostId("h1"), large_settings(revision))
                revision += 1
                await asyncio.sleep(0)
            await until(lambda: rig.gateway.metrics().ended, "closed")
            assert rig.gateway.metrics().ended == {"wire.closed.overload": 1}
            assert 4 < revision < 40
            assert not reader.at_eof()
            writer.transport.abort()

    run(story())


def large_settings(revision: int) -> HostSettings:
    return HostSettings(
        revision=revision, installation_id=INSTALLATION, term=Term(3), hold="x" * 900_000
    )


@pytest.mark.req("L7")
def test_a_server_that_falls_silent_is_left_in_seconds(pki: Pki) -> None:
    """A power cut sends no FIN: a listener that only swallows bytes after the welcome."""

    async def story() -> None:
        context = pki.context
        welcome = Welcome(
            version_major=1,
            version_minor=0,
            installation_id=INSTALLATION,
            server_instance="dead",
            term=Term(1),
            beat_interval_ms=100,
            silence_ms=300,
        )
        writers: list[asyncio.StreamWriter] = []

        async def dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readexactly(10)
            writer.write(encode_message(welcome))
            with contextlib.suppress(OSError):
                await reader.read()

        silent = await asyncio.start_server(dead, "127.0.0.1", 0, ssl=context)
        port = silent.sockets[0].getsockname()[1]
        async with silent, server(pki) as rig:
            host = rig.host(servers=(f"127.0.0.1:{port}", rig.address), jitter=lambda: 0.0)
            await until(lambda: host.events.ended, "silence noticed")
            assert host.events.ended[0][0] == "wire.closed.silent"
            silent.close()
            for writer in writers:
                writer.transport.abort()
            await until(lambda: host.link.address == rig.address, "the next server")
            await until(lambda: host.link.connected, "connected")

    run(story())


def test_the_next_address_is_tried_at_once(pki: Pki) -> None:
    async def story() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
            dead = f"127.0.0.1:{taken.getsockname()[1]}"
            async with server(pki) as rig:
                # A pause between them would be of 200 s.
                host = rig.host(servers=(dead, rig.address), jitter=lambda: 1_000.0)
                await until(lambda: host.link.connected, "connected", seconds=100)
                assert [code for code, _ in host.events.ended] == ["wire.closed.unreachable"]
                assert host.link.address == rig.address

    run(story())


@both_loops
@pytest.mark.req("W7", "L7")
def test_facts_survive_breaks_and_server_restarts(pki: Pki, run: Run) -> None:
    async def story() -> None:
        rig = await start_server(pki)
        host = rig.host(jitter=lambda: 0.0)
        assert host.outbox is not None
        control, port = rig.control, rig.port
        for round_number in range(4):
            host.outbox.write(700)
            host.link.facts_written()
            await until(lambda n=round_number: control.acknowledged(HostId("h1")) > 700 * n, "some")
            if round_number % 2:
                await rig.gateway.close()
                host.outbox.write(50)
                rig = await start_server(pki, control=control, port=port)
            else:
                assert host.link._connection is not None
                host.link._connection.abort()
        last = host.outbox.last_sequence
        await until(lambda: control.acknowledged(HostId("h1")) == last, "all facts")
        sequences = [fact.sequence for fact in control.recorded[HostId("h1")]]
        assert sequences == list(range(1, last + 1))
        await until(lambda: host.events.facts_acknowledged[-1:] == [last], "acknowledged")
        await host.stop()
        await rig.stop()

    run(story())


@pytest.mark.req("L7")
def test_a_lower_term_is_refused(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            rig.control.counts_on = False
            host = rig.host(hello_state=lambda: HelloState(term_seen=Term(9)))
            await until(lambda: host.events.ended, "refusal")
            assert host.events.ended[0][0] == "wire.refused.term"
            assert host.events.welcomes == []

    run(story())


def test_a_second_live_server_instance_is_refused(pki: Pki) -> None:
    async def story() -> None:
        live: list[str | None] = ["another instance"]
        async with server(pki) as rig:
            host = rig.host(live_instance=lambda: live[0], jitter=lambda: 0.0)
            await until(lambda: host.events.ended, "refusal")
            assert host.events.ended[0][0] == "wire.refused.instance"
            live[0] = None  # the other process lost its session: that instance is gone
            await until(lambda: host.link.connected, "accepted")

    run(story())


def test_a_callback_that_raises_ends_run(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host()
            rig.rigs.clear()
            await until(lambda: host.link.connected, "connected")

            def broken(settings: object) -> None:
                raise ValueError("a mistake of ours")

            monkeypatch.setattr(host.events, "on_settings", broken)
            settings = msgspec.structs.replace(host.events.settings[0], revision=99)
            rig.gateway.configure(HostId("h1"), settings)
            with pytest.raises(ValueError, match="mistake of ours"):
                await asyncio.wait_for(host.task, 60)

    run(story())


@pytest.mark.parametrize("steps", range(12))
def test_close_ends_run_whatever_it_does_just_then(pki: Pki, steps: int) -> None:
    """While it connects, shakes hands, waits for the welcome, or is connected."""

    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host()
            rig.rigs.clear()
            for _ in range(steps):
                await asyncio.sleep(0)
            host.link.close()
            await asyncio.wait_for(host.task, 60)
            assert not host.link.connected
            await until(lambda: rig.gateway.metrics().connections == 0, "closed")

    run(story())


def test_close_ends_a_pause(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host(servers=("127.0.0.1:1",), jitter=lambda: 10_000.0)
            await until(lambda: host.events.ended, "refused, so it waits half an hour")
            host.link.close()
            await asyncio.wait_for(host.task, 60)

    run(story())


def test_the_pause_grows_and_is_short_in_a_short_outage(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = HostLink(
        servers=("127.0.0.1:1",),
        credentials=pki.host(),
        role=PeerRole.GUARDIAN,
        boot=BootId("b"),
        events=Recorder(),
        jitter=lambda: 0.5,
    )
    asked: list[float] = []

    def timeout(delay_s: float) -> asyncio.Timeout:
        asked.append(round(delay_s, 3))
        return asyncio.Timeout(asyncio.get_running_loop().time())

    async def story() -> None:
        monkeypatch.setattr(asyncio, "timeout", timeout)
        for failures in range(6):
            await link._pause(failures, outage_s=10.0)
        for failures in range(1, 8):
            await link._pause(failures, outage_s=61.0)

    run(story())
    assert asked == [0, 0.2, 0.4, 0.8, 1.0, 1.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_cancelling_run_leaves_nothing_open(pki: Pki) -> None:
    async def story() -> None:
        async with server(pki) as rig:
            host = rig.host()
            rig.rigs.clear()
            await until(lambda: host.link.connected, "connected")
            host.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await host.task
            assert not host.link.connected
            await until(lambda: rig.gateway.metrics().connections == 0, "closed")

    run(story())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", 8250)),
        ("192.0.2.1:99", ("192.0.2.1", 99)),
        (" name.example.org:8251 ", ("name.example.org", 8251)),
        ("[2001:db8::1]:8250", ("2001:db8::1", 8250)),
        ("[2001:db8::1]", ("2001:db8::1", 8250)),
        ("", None),
        (":8250", None),
        ("name:", None),
        ("name:port", None),
        ("name:0", None),
        ("name:65536", None),
        ("2001:db8::1", None),
        ("[]:8250", None),
    ],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    if address is not None:
        assert parse_address(text) == address
        return
    with pytest.raises(InvalidInput) as refused:
        parse_address(text)
    assert refused.value.field == "servers"


def test_a_link_without_servers_is_refused(pki: Pki) -> None:
    async def story() -> None:
        with pytest.raises(InvalidInput) as refused:
            HostLink(
                servers=(),
                credentials=pki.host(),
                role=PeerRole.GUARDIAN,
                boot=BootId("b"),
                events=Recorder(),
            )
        assert refused.value.field == "servers"

    run(story())
