"""Between agent and guardian: a Unix socket of sequenced packets, both ends root, one JSON each.

Agent -> guardian, twice a second, sent by the agent's event loop itself: it lives, its inventory's
revision, the server instance of its session. Guardian -> agent: the same about itself, and "look at
the reports" after it killed something. Reports themselves are files: they outlive both.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from virtha.agent.files import Files, read_bounded
from virtha.model.facts import Happened
from virtha.model.value import Value

PULSE_S = 0.5
PACKET_BYTES_MAX = 4_096
REPORTS_MAX = 10_000
INSTANCE_FRESH_S = 3.0
"""An instance that the other process spoke of longer ago says nothing about now (M1)."""
_CREDENTIALS = struct.Struct("3i")

_log = structlog.get_logger(__name__)


class Pulse(Value, frozen=True, kw_only=True):
    inventory_revision: int = 0
    server_instance: str | None = None
    """Of the sender's own live session."""
    reports: bool = False


class GuardianServer:
    """The guardian's end. One agent at a time: a newer connection replaces the old one."""

    def __init__(
        self, path: Path, *, on_pulse: Callable[[Pulse], None], on_gone: Callable[[], None]
    ) -> None:
        self._path = path
        self._on_pulse = on_pulse
        self._on_gone = on_gone
        self._listener: socket.socket | None = None
        self._agent: socket.socket | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._listener = listener
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(4)
        readers: set[asyncio.Task[None]] = set()
        try:
            while True:
                agent, _ = await loop.sock_accept(listener)
                agent.setblocking(False)
                if not _is_same_user(agent):
                    agent.close()
                    continue
                self._agent = agent
                task = loop.create_task(self._read(agent), name="agent pulses")
                readers.add(task)
                task.add_done_callback(readers.discard)
        finally:
            for task in readers:
                task.cancel()
            listener.close()
            self._path.unlink(missing_ok=True)

    async def _read(self, agent: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(agent, PACKET_BYTES_MAX):
                try:
                    self._on_pulse(msgspec.json.decode(data, type=Pulse))
                except msgspec.MsgspecError as error:
                    _log.warning("a packet of the agent can't be read", error=str(error))
        except OSError as error:
            _log.info("the agent's end broke", error=str(error))
        finally:
            agent.close()
            if self._agent is agent:
                self._agent = None
                self._on_gone()

    def tell(self, pulse: Pulse) -> None:
        """Never waits: an agent that does not read misses it, and gets the next."""
        if self._agent is None:
            return
        try:
            self._agent.send(msgspec.json.encode(pulse))
        except OSError as error:
            _log.info("the agent does not listen", error=str(error))


def _is_same_user(peer: socket.socket) -> bool:
    """Root in production (the socket is 0600 as well)."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user_id, _ = _CREDENTIALS.unpack(raw)
    return user_id in (0, os.geteuid())


class GuardianClient:
    """The agent's end: pulses, and connects again for as long as the agent runs."""

    def __init__(
        self, path: Path, *, pulse: Callable[[], Pulse], on_reports: Callable[[], None]
    ) -> None:
        self._path = path
        self._pulse = pulse
        self._on_reports = on_reports
        self._instance: str | None = None
        self._instance_at = 0.0
        self.connected = False

    @property
    def server_instance(self) -> str | None:
        """The instance of the guardian's live session, as it said just now."""
        fresh = asyncio.get_running_loop().time() - self._instance_at < INSTANCE_FRESH_S
        return self._instance if self.connected and fresh else None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            end = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            try:
                await loop.sock_connect(end, str(self._path))
                self.connected = True
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._send(end))
                    group.create_task(self._receive(end))
            except* OSError as errors:
                if self.connected:
                    _log.warning("the guardian is gone", error=str(errors.exceptions[0]))
            finally:
                self.connected = False
                end.close()
            await asyncio.sleep(PULSE_S)

    async def _send(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await loop.sock_sendall(end, msgspec.json.encode(self._pulse()))
            await asyncio.sleep(PULSE_S)

    async def _receive(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(end, PACKET_BYTES_MAX):
            pulse = msgspec.json.decode(data, type=Pulse)
            self._instance, self._instance_at = pulse.server_instance, loop.time()
            if pulse.reports:
                self._on_reports()
        raise ConnectionResetError("the guardian closed its end")


class ReportFiles:
    """What the guardian has to tell, as files that the agent turns into facts."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory
        self._files = files

    def write(self, event: Happened, *, at_ms: int, number: int) -> None:
        """By the guardian. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in self._directory.iterdir()) >= REPORTS_MAX:
            raise OSError(f"{self._directory} is full: the agent has not read it")
        path = self._directory / f"{at_ms:016d}-{os.getpid()}-{number:06d}.json"
        self._files.write_atomic(path, msgspec.json.encode(event))

    def read(self) -> list[tuple[Path, Happened]]:
        """By the agent, oldest first; it calls ``done`` once the facts are durable."""
        found = []
        for path in sorted(self._directory.glob("[0-9]*.json")):
            try:
                data = read_bounded(path, PACKET_BYTES_MAX * 4)
                found.append((path, msgspec.json.decode(data, type=Happened)))
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                _log.error("a report of the guardian can't be read", error=str(error))
                path.replace(path.with_name(f"{path.name}.damaged"))
        return found

    def done(self, paths: list[Path]) -> None:
        for path in paths:
            self._files.remove(path)
