"""A line that stops in the middle of a frame: noticed in time, and what it carried arrives once, later."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from installed import Installed, recorded
from link_rig import until

from virtha.model.policy.profiles import PROFILES, Profile
from virtha.server.gateway import Gateway
from virtha.wire.messages import PeerRole

FAST = PROFILES[Profile.FAST]
"""Its sessions end after three seconds of silence."""


class Line:
    """Carries bytes between one host and the gateway; from ``cut_after`` bytes of the host on, nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.port = 0
        self.cut_after: int | None = None
        self.carried = 0
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += (writer, up_writer)
        carrying = (self._carry(reader, up_writer, up=True), self._carry(up_reader, writer))
        for work in carrying:
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4_096):
                if up:
                    room = None if self.cut_after is None else self.cut_after - self.carried
                    data = data[: max(room, 0)] if room is not None else data
                    self.carried += len(data)
                if self.cut_after is None or (up and data):
                    writer.write(data)
                    await writer.drain()
            if self.cut_after is None:
                writer.close()


def silences(gateway: Gateway) -> int:
    return gateway.metrics().ended.get("wire.closed.silent", 0)


@pytest.mark.req("W7", "L7")
@pytest.mark.bad_input("half a frame, then silence", story=True)
@pytest.mark.parametrize("let_through", [1, 40, 700])
def test_an_event_in_half_a_frame_comes_once_after_the_break(
    tmp_path: Path, let_through: int
) -> None:
    async def story() -> None:
        installed = Installed(tmp_path)
        await installed.initialise()
        async with installed.server(policy=FAST) as (control, gateway):
            line = Line(installed.port)
            await line.open()
            host = installed.connect(await installed.join(control), PeerRole.AGENT, port=line.port)
            assert host.outbox is not None
            host.outbox.write(3)
            await until(lambda: host.events.facts_acknowledged[-1:] == [3], "the first three")
            # On a busy machine its session may have ended before, too.
            before = silences(gateway)
            line.cut_after = line.carried + let_through
            host.outbox.write(20)
            host.link.facts_written()
            await until(lambda: line.carried == line.cut_after, "half of it went")
            await until(lambda: silences(gateway) > before, "the server ends it")
            assert await recorded(control) == [1, 2, 3]
            await until(lambda: bool(host.events.ended), "the host ends it")
            line.cut_after = None
            await until(lambda: host.events.facts_acknowledged[-1:] == [23], "all of it")
            assert line.connections > 1
            assert await recorded(control) == list(range(1, 24))
            await host.stop()
            await line.close()

    asyncio.run(story())
