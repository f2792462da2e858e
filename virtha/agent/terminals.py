"""The host's end of interactive consoles: bytes between a channel and QEMU's own terminal or VNC socket."""

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

from virtha.domainxml.console import VncAddress
from virtha.model.errors import Failed, VirthaError
from virtha.ports.channels import ByteStream

READ_BYTES = 16 << 10
CONNECT_DEADLINE_S = 5.0


class Terminal(Protocol):
    """Something of QEMU's that is read and written."""

    async def read(self) -> bytes:
        """b"": it is closed."""
        ...

    async def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class SerialTerminal:
    """QEMU's pseudoterminal. It is QEMU that sets it raw; the agent opens it as `virsh console` would."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except OSError:
                return b""  # EIO: QEMU has closed its end

    async def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        ready = asyncio.Event()
        add(self._descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            remove(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class VncTerminal:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: VncAddress) -> "VncTerminal":
        """Raises OSError, TimeoutError."""
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            if address.path:
                return cls(*await asyncio.open_unix_connection(address.path))
            return cls(*await asyncio.open_connection(address.host, address.port))

    async def read(self) -> bytes:
        try:
            return await self._reader.read(READ_BYTES)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


async def relay(stream: ByteStream, terminal: Terminal) -> None:
    """Until either end closes. Raises Failed: QEMU has closed its end, perhaps because the VM ended."""

    async def inward() -> None:
        while data := await stream.receive():
            await terminal.write(data)

    async def outward() -> None:
        while data := await terminal.read():
            await stream.send(data)
        raise Failed("the VM's console is closed: it ended, or was started anew")

    tasks = [asyncio.create_task(inward()), asyncio.create_task(outward())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        try:
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            terminal.close()
    for task, result in zip(tasks, results, strict=True):
        if task in done and isinstance(result, VirthaError | OSError):
            raise result
