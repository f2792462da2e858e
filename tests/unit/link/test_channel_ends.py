"""Consoles that end in the middle: agent, server or user killed, and what must be free again after that.

A real gateway, real TLS, the agent's own desk, and QEMU's terminal as a real pseudoterminal. What a kill leaves of a process is
what its kernel does: its connections are cut, its descriptors closed.
"""

import asyncio
import os
import tty
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from link_rig import Pki, ServerRig, start_server, until

from virtha.agent import channel_desk as agent_desk
from virtha.agent.channel_desk import ChannelDesk
from virtha.agent.paths import AgentPaths
from virtha.drivers.channel import ChannelStream, dial_channel
from virtha.drivers.link_server import ServerLink
from virtha.model.console import OpenScreen, OpenSerial
from virtha.model.errors import Refused, Unavailable
from virtha.model.ids import HostId, VmId
from virtha.server import channel_desk as server_desk
from virtha.wire import channel_session
from virtha.wire.messages import CHANNEL_WINDOW_BYTES, OpenChannel

HOST = HostId("h1")
VM = VmId("0b2f5f0e-1111-4a7a-9d55-000000000001")


class Xml:
    def __init__(self, devices: str) -> None:
        self._xml = f"<domain><devices>{devices}</devices></domain>"

    async def xml(self, vm_id: VmId, *, inactive: bool = True) -> str:
        return self._xml


class World:
    """A server, and one host with a VM that has a serial port and a VNC socket."""

    def __init__(self, server: ServerRig, path: Path) -> None:
        self.server = server
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.vnc_path = path / "vnc.sock"
        self.vnc_viewers = 0
        serial = f"<serial type='pty'><source path='{os.ttyname(self._slave)}'/></serial>"
        screen = f"<graphics type='vnc'><listen type='socket' socket='{self.vnc_path}'/></graphics>"
        self.tasks: set[asyncio.Task[None]] = set()
        self.dialled: list[ChannelStream] = []
        self.broken_dials = 0
        """So many more fail in a way that no dial should."""
        self.desk = ChannelDesk(
            AgentPaths(root=str(path)),
            Xml(serial + screen),
            spawn=self._spawn,
            is_managed=lambda vm_id: vm_id == VM,
        )
        self.credentials = server.pki.host()
        server.host(credentials=self.credentials, on_channel=self._on_channel)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def _on_channel(self, request: OpenChannel) -> None:
        async def dial(channel: str) -> ChannelStream:
            if self.broken_dials:
                self.broken_dials -= 1
                raise OSError("the certificate can't be read")
            self.dialled.append(await dial_channel(self.server.address, self.credentials, channel))
            return self.dialled[-1]

        self.desk.accept(request, dial)

    async def vnc(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.vnc_viewers += 1
        writer.write(b"RFB 003.008\n")
        await reader.read()
        self.vnc_viewers -= 1
        writer.close()

    async def open(self, subject: OpenSerial | OpenScreen) -> ChannelStream:
        stream = await self.server.gateway.channels.open(HOST, subject)
        if isinstance(subject, OpenSerial):
            os.write(self.master, b"login: ")
            assert await stream.receive() == b"login: "
        else:
            assert await stream.receive() == b"RFB 003.008\n"
        return stream

    async def free(self) -> None:
        """Nobody has a console any more, on either side."""
        await until(
            lambda: not self.tasks and not self.desk._serial_in_use and not self.vnc_viewers,
            "the host's end",
        )
        assert self.desk._open == 0
        await until(lambda: self.link.connections == 1, "the agent's session alone")

    @property
    def link(self) -> ServerLink:
        link = self.server.gateway._link
        assert link is not None
        return link

    def close(self) -> None:
        os.close(self.master)
        os.close(self._slave)


def run(story: Callable[[World], Coroutine[Any, Any, None]], pki: Pki, path: Path) -> None:
    async def main() -> None:
        server = await start_server(pki)
        world = World(server, path)
        try:
            async with await asyncio.start_unix_server(world.vnc, world.vnc_path):
                await until(lambda: server.gateway.agent_connected(HOST), "the agent's session")
                await story(world)
        finally:
            world.close()
            await server.stop()

    asyncio.run(main())


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


Kill = Callable[[World, ChannelStream], None]


def kill_agent(world: World, stream: ChannelStream) -> None:
    world.dialled[-1]._connection.abort()
    for task in world.tasks:
        task.cancel()


def break_line(world: World, stream: ChannelStream) -> None:
    world.dialled[-1]._connection.abort()


def kill_server(world: World, stream: ChannelStream) -> None:
    stream._connection.abort()


def leave(world: World, stream: ChannelStream) -> None:
    stream.close()


@pytest.mark.parametrize("subject", [OpenSerial(vm_id=VM), OpenScreen(vm_id=VM)])
@pytest.mark.parametrize("kill", [kill_agent, break_line, kill_server, leave])
def test_whoever_is_killed_the_console_is_free_again(
    pki: Pki, tmp_path: Path, kill: Kill, subject: OpenSerial | OpenScreen
) -> None:
    async def story(world: World) -> None:
        before, tasks = 0, 0
        for number in range(4):
            stream = await world.open(subject)
            kill(world, stream)
            with pytest.raises(Unavailable):
                while await stream.receive():
                    pass
            await world.free()
            if number == 0:
                before, tasks = descriptors(), len(asyncio.all_tasks())
        assert descriptors() <= before and len(asyncio.all_tasks()) <= tasks
        stream = await world.open(subject)
        stream.close()
        await world.free()

    run(story, pki, tmp_path)


def test_a_user_that_reads_nothing_is_killed_while_qemu_talks(pki: Pki, tmp_path: Path) -> None:
    """Both directions are full; the guest's output stays in the terminal, and the console is free."""

    async def story(world: World) -> None:
        stream = await world.open(OpenSerial(vm_id=VM))
        sent = 0
        async with asyncio.timeout(60):
            while sent <= CHANNEL_WINDOW_BYTES:
                try:
                    sent += os.write(world.master, b"x" * 1_024)
                except BlockingIOError:
                    await asyncio.sleep(0)
        stream.close()
        await world.free()

    run(story, pki, tmp_path)


def test_a_host_that_falls_silent_gives_its_console_up(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its power is cut: nothing says goodbye. Each end notices by itself."""
    monkeypatch.setattr(channel_session, "SILENCE_MS", 1_500)

    async def story(world: World) -> None:
        stream = await world.open(OpenSerial(vm_id=VM))
        for connection in (stream._connection, world.dialled[-1]._connection):
            transport = connection._transport
            assert transport is not None
            transport.pause_reading()
        with pytest.raises(Unavailable, match="nothing heard"):
            await stream.receive()
        await world.free()

    run(story, pki, tmp_path)


def test_a_channel_that_comes_as_its_user_gives_up_is_closed(pki: Pki, tmp_path: Path) -> None:
    """It is attached, and whoever wanted it is cancelled before it runs again: nobody would ever close it, and the serial
    port would be somebody's for ever."""

    async def story(world: World) -> None:
        desk = world.server.gateway.channels
        attached = desk.on_attach
        opening: asyncio.Task[ChannelStream] | None = None

        def attach_and_give_up(connection: Any, attach: Any) -> None:
            attached(connection, attach)
            assert opening is not None
            opening.cancel()

        world.link.channels = type("GivesUp", (), {"on_attach": staticmethod(attach_and_give_up)})()
        opening = asyncio.create_task(desk.open(HOST, OpenSerial(vm_id=VM)))
        with pytest.raises(asyncio.CancelledError):
            await opening
        await until(lambda: world.dialled, "the host's end was there")
        world.link.channels = desk
        await world.free()
        (await world.open(OpenSerial(vm_id=VM))).close()
        await world.free()

    run(story, pki, tmp_path)


def test_dials_that_fail_take_no_place(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_desk, "CHANNELS_MAX", 2)
    monkeypatch.setattr(server_desk, "OPEN_DEADLINE_S", 0.1)

    async def story(world: World) -> None:
        world.broken_dials = 3
        for _ in range(3):
            with pytest.raises(Unavailable, match="in time"):
                await world.server.gateway.channels.open(HOST, OpenSerial(vm_id=VM))
        monkeypatch.setattr(server_desk, "OPEN_DEADLINE_S", 60.0)
        (await world.open(OpenSerial(vm_id=VM))).close()
        await world.free()

    run(story, pki, tmp_path)


def test_a_second_user_is_refused_and_the_first_notices_nothing(pki: Pki, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        first = await world.open(OpenSerial(vm_id=VM))
        second = await world.server.gateway.channels.open(HOST, OpenSerial(vm_id=VM))
        with pytest.raises(Refused) as busy:
            await second.receive()
        assert busy.value.code == "problem.console.busy"
        os.write(world.master, b"still")
        assert await first.receive() == b"still"
        first.close()
        await world.free()

    run(story, pki, tmp_path)
