"""Channels on the host: what the server asks about consoles is answered on a connection of its own each."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from virtha.agent.commands import Spawn
from virtha.agent.paths import AgentPaths
from virtha.agent.picture import as_png
from virtha.agent.records import safe_name
from virtha.agent.serial_log import wait_and_read
from virtha.agent.terminals import SerialTerminal, VncTerminal, relay
from virtha.domainxml.console import serial_terminal, vnc_address
from virtha.drivers.channel import ChannelStream
from virtha.model.console import (
    LOG_LINES_MAX,
    LOG_WAIT_MS_MAX,
    OpenScreen,
    OpenSerial,
    ReadSerialLog,
    TakeScreenshot,
)
from virtha.model.errors import Failed, InvalidInput, NotFound, Refused, VirthaError
from virtha.model.ids import VmId
from virtha.ports.hypervisor import (
    DomainCatalog,
    DomainEvidence,
    DomainMissing,
    HypervisorError,
)
from virtha.wire.messages import OpenChannel

CHANNELS_MAX = 32
TAKEN_DEADLINE_S = 60.0
"""For the server to take the whole answer."""

_log = structlog.get_logger(__name__)
Dial = Callable[[str], Awaitable[ChannelStream]]


class ConsoleHypervisor(DomainCatalog, DomainEvidence, Protocol):
    """Live XML and screenshots."""


class ChannelDesk:
    """``is_managed``: only VMs of this installation are shown to its users."""

    def __init__(
        self,
        paths: AgentPaths,
        hypervisor: ConsoleHypervisor,
        *,
        spawn: Spawn,
        is_managed: Callable[[VmId], bool],
    ) -> None:
        self._paths = paths
        self._hypervisor = hypervisor
        self._spawn = spawn
        self._is_managed = is_managed
        self._open = 0
        self._serial_in_use: set[VmId] = set()

    def accept(self, request: OpenChannel, dial: Dial) -> None:
        if self._open >= CHANNELS_MAX:
            # Unanswered: the server gives up in ten seconds. It allows itself half as many.
            _log.warning("too many channels", count=self._open)
            return
        self._open += 1
        self._spawn("channel", self._serve(request, dial))

    async def _serve(self, request: OpenChannel, dial: Dial) -> None:
        try:
            stream = await dial(request.channel)
            await self._answer_all(stream, request)
        except (VirthaError, OSError) as error:
            _log.warning("no channel", error=str(error))
        finally:
            self._open -= 1

    async def _answer_all(self, stream: ChannelStream, request: OpenChannel) -> None:
        try:
            await self._answer(stream, request)
        except VirthaError as error:
            stream.refuse(_as_problem(error))
        except (OSError, TimeoutError) as error:
            stream.refuse(Failed(str(error) or "no answer in time"))
        except Exception as error:
            # A mistake of ours about a picture: VMs and their protection go on.
            _log.exception("channel failed", subject=type(request.subject).__name__)
            stream.refuse(Failed(f"agent error: {error}"))
        finally:
            stream.close()

    async def _answer(self, stream: ChannelStream, request: OpenChannel) -> None:
        subject = request.subject
        if not self._is_managed(subject.vm_id):
            raise NotFound("this host was not given that VM")
        match subject:
            case ReadSerialLog():
                await _send_all(stream, await self._read_log(subject))
            case TakeScreenshot():
                await _send_all(stream, await self._screenshot(subject.vm_id))
            case OpenSerial() | OpenScreen():
                await self._interactive(stream, subject)

    async def _interactive(self, stream: ChannelStream, subject: OpenSerial | OpenScreen) -> None:
        xml = await self._hypervisor.xml(subject.vm_id, inactive=False)
        if isinstance(subject, OpenScreen):
            address = vnc_address(xml)
            if address is None:
                raise Refused("the VM has no VNC screen, or does not run", code="problem.vm.state")
            await relay(stream, await VncTerminal.connect(address))
            return
        path = serial_terminal(xml)
        if path is None:
            raise Refused(
                "the VM has no serial port that can be typed at, or does not run",
                code="problem.vm.state",
            )
        if subject.vm_id in self._serial_in_use:
            # Two readers of one terminal would each get half of what it says.
            raise Refused(
                "somebody else is at its serial console already", code="problem.console.busy"
            )
        self._serial_in_use.add(subject.vm_id)
        try:
            await relay(stream, SerialTerminal(path))
        finally:
            self._serial_in_use.discard(subject.vm_id)

    async def _read_log(self, request: ReadSerialLog) -> bytes:
        if not 1 <= request.lines <= LOG_LINES_MAX or not 0 <= request.wait_ms <= LOG_WAIT_MS_MAX:
            raise InvalidInput("is out of range", field="lines")
        path = self._paths.serial / f"{safe_name(request.vm_id)}.log"
        return msgspec.msgpack.encode(await wait_and_read(path, request))

    async def _screenshot(self, vm_id: VmId) -> bytes:
        with tempfile.TemporaryDirectory(prefix="screenshot-", dir=self._paths.run) as directory:
            written = await self._hypervisor.screenshot(vm_id, str(Path(directory, "screenshot")))
            return await asyncio.to_thread(_read_picture, Path(written))


def _read_picture(path: Path) -> bytes:
    return as_png(path.read_bytes())


async def _send_all(stream: ChannelStream, content: bytes) -> None:
    async with asyncio.timeout(TAKEN_DEADLINE_S):
        await stream.send(content)
        await stream.finish()


def _as_problem(error: VirthaError) -> VirthaError:
    """What the server can pass on to its user: a problem of the registry."""
    if isinstance(error, DomainMissing):
        return Refused("the VM is not on this host", code="problem.vm.state")
    if isinstance(error, HypervisorError):
        return Refused(f"its host's libvirt says: {error.message}", code="problem.vm.state")
    return error
