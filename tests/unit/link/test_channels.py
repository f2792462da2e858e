"""Channels for consoles: real sockets, real TLS, a real gateway and a real link of a host."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from link_rig import Pki, ServerRig, start_server, until

from virtha.drivers.channel import ChannelStream, dial_channel
from virtha.model.console import TakeScreenshot
from virtha.model.errors import NotFound, Refused, Unavailable, VirthaError
from virtha.model.ids import HostId, VmId
from virtha.server import channel_desk
from virtha.wire.messages import CHANNEL_WINDOW_BYTES, OpenChannel, PeerRole

HOST = HostId("h1")
SUBJECT = TakeScreenshot(vm_id=VmId("0b2f5f0e-1111-4a7a-9d55-000000000001"))
Answer = Callable[[ChannelStream], Awaitable[None]]


class PlayedAgent:
    """A host's link that answers each channel with what the test wants."""

    def __init__(self, server: ServerRig, answer: Answer) -> None:
        self.asked: list[OpenChannel] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._server = server
        self._answer = answer
        self.credentials = server.pki.host()
        self.rig = server.host(credentials=self.credentials, on_channel=self._on_channel)

    def _on_channel(self, request: OpenChannel) -> None:
        self.asked.append(request)
        self.tasks.append(asyncio.create_task(self._serve(request)))

    async def _serve(self, request: OpenChannel) -> None:
        stream = await dial_channel(self._server.address, self.credentials, request.channel)
        try:
            await self._answer(stream)
        except VirthaError:
            pass  # the other side ended it
        finally:
            stream.close()


def run(story: Callable[[ServerRig], Awaitable[Any]], pki: Pki) -> None:
    async def main() -> None:
        server = await start_server(pki)
        try:
            await story(server)
        finally:
            await server.stop()

    asyncio.run(main())


async def connected(server: ServerRig, answer: Answer) -> PlayedAgent:
    agent = PlayedAgent(server, answer)
    await until(lambda: server.gateway.agent_connected(HOST), "the agent's session")
    return agent


async def whole(stream: Any) -> bytes:
    received = b""
    while data := await stream.receive():
        received += data
    stream.close()
    return received


def test_megabytes_go_through_in_order(pki: Pki) -> None:
    content = bytes(range(256)) * 12_000

    async def say(stream: ChannelStream) -> None:
        await stream.send(content)
        await stream.finish()

    async def story(server: ServerRig) -> None:
        agent = await connected(server, say)
        stream = await server.gateway.channels.open(HOST, SUBJECT)
        assert await whole(stream) == content
        assert [request.subject for request in agent.asked] == [SUBJECT]
        await asyncio.gather(*agent.tasks)

    run(story, pki)


def test_both_ways_at_once(pki: Pki) -> None:
    async def echo(stream: ChannelStream) -> None:
        while data := await stream.receive():
            await stream.send(data.upper())

    async def story(server: ServerRig) -> None:
        await connected(server, echo)
        stream = await server.gateway.channels.open(HOST, SUBJECT)
        for word in (b"root", b"ls"):
            await stream.send(word)
            assert await stream.receive() == word.upper()
        stream.close()

    run(story, pki)


def test_a_reader_that_takes_nothing_costs_one_window(pki: Pki) -> None:
    sent = 0

    async def pour(stream: ChannelStream) -> None:
        nonlocal sent
        while True:
            await stream.send(b"x" * 4096)
            sent += 4096

    async def story(server: ServerRig) -> None:
        await connected(server, pour)
        stream = await server.gateway.channels.open(HOST, SUBJECT)
        await until(lambda: sent == CHANNEL_WINDOW_BYTES, "a full window")
        for _ in range(200):
            await asyncio.sleep(0)
        assert sent == CHANNEL_WINDOW_BYTES
        taken = len(await stream.receive())
        while taken < CHANNEL_WINDOW_BYTES:
            taken += len(await stream.receive())
        await until(lambda: sent > CHANNEL_WINDOW_BYTES, "more, as it was taken")
        stream.close()

    run(story, pki)


def test_refusals_keep_their_code(pki: Pki) -> None:
    async def refuse(stream: ChannelStream) -> None:
        stream.refuse(NotFound("no such VM here"))

    async def story(server: ServerRig) -> None:
        with pytest.raises(Unavailable, match="not connected"):
            await server.gateway.channels.open(HOST, SUBJECT)
        await connected(server, refuse)
        stream = await server.gateway.channels.open(HOST, SUBJECT)
        with pytest.raises(NotFound, match="no such VM here"):
            await stream.receive()

    run(story, pki)


def test_an_agent_without_the_feature_is_never_asked(pki: Pki) -> None:
    async def story(server: ServerRig) -> None:
        server.host()
        await until(lambda: server.gateway.agent_connected(HOST), "the agent's session")
        with pytest.raises(Refused, match="too old"):
            await server.gateway.channels.open(HOST, SUBJECT)
        assert server.gateway.agent_connected(HOST)

    run(story, pki)


def test_only_the_host_that_was_asked_can_attach(pki: Pki) -> None:
    stolen: list[str] = []

    async def story(server: ServerRig) -> None:
        other = server.pki.host("h2")
        agent = PlayedAgent(server, whole)
        agent._on_channel = lambda request: stolen.append(request.channel)
        rig = server.host(credentials=other, on_channel=lambda request: None)
        link = agent.rig.link
        link._on_channel = agent._on_channel
        await until(
            lambda: all(server.gateway.agent_connected(HostId(h)) for h in ("h1", "h2")), "both"
        )
        opening = asyncio.create_task(server.gateway.channels.open(HOST, SUBJECT))
        await until(lambda: stolen, "the request")
        for channel, credentials in (
            (stolen[0], other),
            ("guessed", agent.credentials),
        ):
            with pytest.raises(Unavailable, match="nobody awaits"):
                await dial_channel(server.address, credentials, channel)
        stream = await dial_channel(server.address, agent.credentials, stolen[0])
        await opening
        with pytest.raises(Unavailable, match="nobody awaits"):
            await dial_channel(server.address, agent.credentials, stolen[0])
        stream.close()
        assert rig.link.connected and link.connected

    run(story, pki)


def test_a_line_that_breaks_is_told_on_the_other_side(pki: Pki) -> None:
    async def break_off(stream: ChannelStream) -> None:
        await stream.send(b"half")
        await stream.receive()
        stream._connection.abort()

    async def story(server: ServerRig) -> None:
        await connected(server, break_off)
        stream = await server.gateway.channels.open(HOST, SUBJECT)
        assert await stream.receive() == b"half"
        await stream.send(b"now")
        with pytest.raises(Unavailable, match="ended"):
            await stream.receive()
        with pytest.raises(Unavailable):
            await stream.send(b"more")

    run(story, pki)


def test_an_agent_that_opens_nothing_is_given_up(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_desk, "OPEN_DEADLINE_S", 0.05)

    async def story(server: ServerRig) -> None:
        server.host(on_channel=lambda request: None)
        await until(lambda: server.gateway.agent_connected(HOST), "the agent's session")
        with pytest.raises(Unavailable, match="in time"):
            await server.gateway.channels.open(HOST, SUBJECT)

    run(story, pki)


def test_no_more_than_so_many_per_host(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_desk, "PER_HOST_MAX", 2)

    async def wait(stream: ChannelStream) -> None:
        await stream.wait_closed()

    async def story(server: ServerRig) -> None:
        await connected(server, wait)
        first, _ = [await server.gateway.channels.open(HOST, SUBJECT) for _ in range(2)]
        with pytest.raises(Refused) as refused:
            await server.gateway.channels.open(HOST, SUBJECT)
        assert refused.value.code == "problem.console.busy"
        first.close()
        (await server.gateway.channels.open(HOST, SUBJECT)).close()

    run(story, pki)


def test_a_guardian_is_asked_for_none(pki: Pki) -> None:
    async def story(server: ServerRig) -> None:
        server.host(PeerRole.GUARDIAN)
        await until(lambda: server.gateway.metrics().guardians == 1, "the guardian's session")
        with pytest.raises(Unavailable):
            await server.gateway.channels.open(HOST, SUBJECT)

    run(story, pki)
