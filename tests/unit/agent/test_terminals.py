"""The host's end of consoles: a real pseudoterminal and a real VNC socket, played by the test."""

import asyncio
import os
import tty
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from virtha.agent.channel_desk import ChannelDesk
from virtha.agent.paths import AgentPaths
from virtha.domainxml.console import VncAddress, serial_terminal, vnc_address
from virtha.model.console import ChannelSubject, OpenScreen, OpenSerial
from virtha.model.errors import VirthaError
from virtha.model.ids import VmId
from virtha.wire.messages import OpenChannel

VM = VmId("0b2f5f0e-1111-4a7a-9d55-000000000001")


class PlayedStream:
    """The server's side: what the test types, and what the host showed."""

    def __init__(self) -> None:
        self.typed: asyncio.Queue[bytes] = asyncio.Queue()
        self.shown = b""
        self.refused: VirthaError | None = None
        self.closed = asyncio.Event()
        self.news = asyncio.Event()

    async def receive(self) -> bytes:
        return await self.typed.get()

    async def send(self, data: bytes) -> None:
        self.shown += data
        self.news.set()

    def refuse(self, error: VirthaError) -> None:
        self.refused = error

    def close(self) -> None:
        self.closed.set()

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(60):
            while text not in self.shown:
                self.news.clear()
                await self.news.wait()


class Xml:
    def __init__(self, devices: str) -> None:
        self._xml = f"<domain><devices>{devices}</devices></domain>"

    async def xml(self, vm_id: VmId, *, inactive: bool = True) -> str:
        assert not inactive
        return self._xml


class Rig:
    def __init__(self, path: Path, devices: str) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.desk = ChannelDesk(
            AgentPaths(root=str(path)),
            Xml(devices),
            spawn=self._spawn,
            is_managed=lambda vm_id: vm_id == VM,
        )

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def open(self, subject: ChannelSubject) -> PlayedStream:
        stream = PlayedStream()

        async def dial(channel: str) -> Any:
            return stream

        self.desk.accept(OpenChannel(channel="one", subject=subject), dial)
        return stream


def test_a_serial_console_is_one_users(tmp_path: Path) -> None:
    async def main() -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        name = os.ttyname(slave)
        rig = Rig(tmp_path, f"<serial type='pty'><source path='{name}'/></serial>")
        first = rig.open(OpenSerial(vm_id=VM))
        os.write(master, b"tiny login: ")
        await first.until(b"login: ")
        first.typed.put_nowait(b"root\r")
        assert await asyncio.to_thread(os.read, master, 100) == b"root\r"
        second = rig.open(OpenSerial(vm_id=VM))
        await second.closed.wait()
        assert second.refused is not None and second.refused.code == "problem.console.busy"
        stranger = rig.open(OpenSerial(vm_id=VmId("other")))
        await stranger.closed.wait()
        assert stranger.refused is not None and stranger.refused.code == "problem.not_found"
        first.typed.put_nowait(b"")
        await first.closed.wait()
        assert first.refused is None
        third = rig.open(OpenSerial(vm_id=VM))
        os.write(master, b"again")
        await third.until(b"again")
        os.close(slave)
        os.close(master)
        await third.closed.wait()
        assert third.refused is not None and "closed" in third.refused.message
        await asyncio.gather(*rig.tasks)

    asyncio.run(main())


def test_vnc_over_its_socket(tmp_path: Path) -> None:
    async def main() -> None:
        async def vnc(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"RFB 003.008\n")
            writer.write(await reader.readexactly(12))
            await reader.read()
            writer.close()

        path = tmp_path / "v.sock"
        async with await asyncio.start_unix_server(vnc, path):
            listen = f"<graphics type='vnc'><listen type='socket' socket='{path}'/></graphics>"
            rig = Rig(tmp_path, listen)
            stream = rig.open(OpenScreen(vm_id=VM))
            await stream.until(b"RFB 003.008\n")
            stream.typed.put_nowait(b"RFB 003.007\n")
            await stream.until(b"RFB 003.007\n")
            stream.typed.put_nowait(b"")
            await stream.closed.wait()
            await asyncio.gather(*rig.tasks)
        gone = rig.open(OpenScreen(vm_id=VM))
        path.unlink(missing_ok=True)
        await gone.closed.wait()
        assert gone.refused is not None and gone.refused.code == "problem.failed"
        down = Rig(tmp_path, "<graphics type='vnc' port='-1'/>")
        for subject in (OpenScreen(vm_id=VM), OpenSerial(vm_id=VM)):
            refused = down.open(subject)
            await refused.closed.wait()
            assert refused.refused is not None and refused.refused.code == "problem.vm.state"
        await asyncio.gather(*rig.tasks, *down.tasks)

    asyncio.run(main())


def test_where_a_domain_has_them() -> None:
    def domain(devices: str) -> str:
        return f"<domain><devices>{devices}</devices></domain>"

    every = "<graphics type='vnc' port='5901'><listen type='address' address='0.0.0.0'/></graphics>"
    assert vnc_address(domain(every)) == VncAddress(host="127.0.0.1", port=5901)
    assert vnc_address(domain("<graphics type='spice' port='5901'/>")) is None
    assert vnc_address("<domain/>") is None
    assert serial_terminal("<domain/>") is None
    assert serial_terminal(domain("<serial type='unix'/>")) is None
    odd = "<serial type='pty'><source path='/etc/shadow'/></serial>"
    assert serial_terminal(domain(odd)) is None
