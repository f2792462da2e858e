"""Leads one live migration: a process of its own, so that it can end without libvirt's library going on (ADR 14).

    python -m virtha.drivers.libvirt_mover    (the request as JSON on standard input, a ``MoveEnd`` on standard output)

Whoever kills it does what it does itself when it can't know how the migration ended: the source stands still from then
on if all of it was sent, and goes on if not.
"""

import asyncio
import contextlib
import os
import ssl
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import libvirt
import msgspec

from virtha.drivers.libvirt_rpc import AnswerFilter, Packets, Passage, ProtocolBroken
from virtha.model.facts import Result
from virtha.model.orders import MoveDestination
from virtha.model.value import Value
from virtha.ports.hypervisor import MoveEnd

CONNECT_S = 10.0
CHUNK_BYTES = 1 << 16
FAILED, UNREACHABLE = "migration.failed", "migration.ended.unreachable"
UNPREPARED = "migration.ended.unprepared"
GATE, FULL, CPU = "migration.ended.gate", "migration.ended.no_room", "migration.ended.cpu"
PAUSED, IO_ERROR = "migration.ended.paused", "migration.ended.io_error"
CPU_WORDS = ("incompatible", "not provided by host", "match specification")
"""Of libvirt's comparison with the host's processor, and with what QEMU gave the guest there."""
PREPARE_S = 90.0
"""Until the target's libvirt has made the QEMU that the copy comes into, and a second more for each GiB of its memory. libvirt
itself waits for a QEMU's monitor 30 s, and with huge pages a second more for each GiB."""
PREPARE_POLL_S = 0.2
LOOK_S = 5.0
"""For libvirt to say how the source stands: both stand still meanwhile."""


class MoveRequest(Value, frozen=True, kw_only=True):
    vm_id: str
    source_uri: str
    destination: MoveDestination
    relay_socket: str
    """Where this process lets its own libvirt client connect to."""
    tls_directory: str
    """QEMU's layout: ca-cert.pem, client-cert.pem, client-key.pem."""
    serial_directory: str = ""
    """This host's; the target's takes its place in the domain's XML."""


class Relay:
    """Between libvirt's client in this process and the target's libvirt."""

    def __init__(self, request: MoveRequest) -> None:
        self._request = request
        self.filter = AnswerFilter()
        self.objection: Callable[[], MoveEnd | None] = lambda: None
        """Right before the word to run goes up: why it must not. It may block."""
        self.patience_s = PREPARE_S
        self._taken = False
        self.error = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._taken:
            writer.close()
            return
        self._taken = True
        try:
            above_reader, above_writer = await self._connect()
        except (OSError, TimeoutError, ssl.SSLError, ProtocolBroken) as error:
            self.error = (
                f"the target's libvirt can't be reached: {str(error) or 'no answer in time'}"
            )
            writer.close()
            return
        pumps = (
            asyncio.ensure_future(self._pump_up(reader, above_writer)),
            asyncio.ensure_future(self._pump_down(above_reader, writer)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Before anything that this process's libvirt client could take for an answer.
            if self.filter.waits:
                lost(f"no answer to the word to run: {self.error or 'the connection ended'}")
            for pump in pumps:
                pump.cancel()
            for one in (writer, above_writer):
                one.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        destination = self._request.destination
        async with asyncio.timeout(CONNECT_S):
            if destination.socket:
                return await asyncio.open_unix_connection(destination.socket)
            reader, writer = await asyncio.open_connection(
                destination.address,
                destination.port,
                ssl=tls_context(Path(self._request.tls_directory)),
                server_hostname=destination.name,
            )
            # libvirt's server says so when it has found our certificate good.
            if await reader.read(1) != b"\x01":
                raise ProtocolBroken("it refuses this host's certificate")
            return reader, writer

    async def _pump_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets = Packets()
        with contextlib.suppress(OSError):
            try:
                while data := await reader.read(CHUNK_BYTES):
                    for packet in packets.feed(data):
                        if self.filter.gives_word(packet):
                            await self._look_before_word()
                        self.filter.up(packet)
                        writer.write(packet.data)
                    await writer.drain()
            except ProtocolBroken as error:
                self.error = f"this host's libvirt: {error}"

    async def _look_before_word(self) -> None:
        """Ends the process where it must not be given: libvirt's library would let the source run on (ADR 14)."""
        try:
            async with asyncio.timeout(LOOK_S):
                objection = await asyncio.to_thread(self.objection)
        except TimeoutError:
            leave(
                MoveEnd(result=Result.UNKNOWN, detail="libvirt does not say how the guest stands")
            )
        if objection is not None:
            leave(objection)

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets = Packets()
        with contextlib.suppress(OSError):
            try:
                while data := await reader.read(CHUNK_BYTES):
                    for packet in packets.feed(data):
                        if self.filter.down(packet) is Passage.HOLD_BACK:
                            self.error = "the target's libvirt says that it failed"
                            return
                        writer.write(packet.data)
                    await writer.drain()
            except ProtocolBroken as error:
                self.error = f"the target's libvirt: {error}"


def tls_context(directory: Path) -> ssl.SSLContext:
    """Raises OSError, ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(directory / "ca-cert.pem")
    context.load_cert_chain(directory / "client-cert.pem", directory / "client-key.pem")
    return context


def lost(why: str) -> NoReturn:
    leave(MoveEnd(result=Result.UNKNOWN, detail=why))


def leave(end: MoveEnd) -> NoReturn:
    """End at once: libvirt's library must not get to its *confirm*."""
    _say(end)
    os._exit(0)


def _say(end: MoveEnd) -> None:
    # Nobody may be there any more to hear it: the agent that began this is gone, say.
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(end) + b"\n")


def flags_of(destination: MoveDestination) -> int:
    """Never POSTCOPY (G6), PAUSED, PEER2PEER, TUNNELLED; nor ABORT_ON_ERROR, for libvirt then lets the source run on: who
    stopped on an I/O error is kept where it is by ``word_objection`` (S6). UNSAFE: see ADR 14."""
    flags = int(libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE)
    if not destination.socket:
        flags |= int(libvirt.VIR_MIGRATE_TLS)
    return flags


def parameters_of(request: MoveRequest, xml: str) -> dict[str, str | int]:
    """``xml``: the domain's, migratable. What is of this host in it becomes the target's."""
    destination = request.destination
    parameters: dict[str, str | int] = {libvirt.VIR_MIGRATE_PARAM_URI: destination.data_uri}
    if not destination.socket:
        parameters[libvirt.VIR_MIGRATE_PARAM_TLS_DESTINATION] = destination.name
    if destination.bandwidth_mib_s:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = destination.bandwidth_mib_s
    mine, theirs = request.serial_directory, destination.serial_directory
    if mine and theirs and mine != theirs:
        parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = xml.replace(f"{mine}/", f"{theirs}/")
    return parameters


def standing(domain: "libvirt.virDomain") -> MoveEnd | None:
    """Why a guest that stands still is not moved: libvirt would carry it over all the same, and let it run there or
    leave it standing, as it likes (G6); and with an I/O in flight it may not be moved at all (S6). None: it runs, or ended."""
    state, reason = domain.state()
    if state not in (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED):
        return None
    on_error = (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR)
    detail = f"the guest stands still (libvirt's state {state}, reason {reason})"
    return MoveEnd(result=Result.FAILED, code=IO_ERROR if on_error else PAUSED, detail=detail)


def word_objection(domain: "libvirt.virDomain") -> MoveEnd | None:
    """All of it was sent. None: it stands still for that alone, or its QEMU has ended since."""
    try:
        found = tuple(domain.state())
        if found == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION):
            return None
        if found[0] == libvirt.VIR_DOMAIN_RUNNING:
            return MoveEnd(result=Result.UNKNOWN, detail="libvirt says that the guest runs here")
        return standing(domain)
    except libvirt.libvirtError as error:
        return MoveEnd(result=Result.UNKNOWN, detail=_text(error))


def _lead(request: MoveRequest, relay: Relay) -> MoveEnd:
    """In a thread: libvirt waits."""
    try:
        source = libvirt.open(request.source_uri)
        domain = source.lookupByUUIDString(request.vm_id)
        still = standing(domain)
        if still is not None:
            return still
        relay.objection = partial(word_objection, domain)
        relay.patience_s += domain.maxMemory() >> 20
        flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE
        xml = domain.XMLDesc(flags)
        # Until here nothing was begun, so a target that is away is told as such.
        target = libvirt.open(f"qemu+unix:///system?socket={request.relay_socket}")
    except libvirt.libvirtError as error:
        code = UNREACHABLE if relay.error else FAILED
        return MoveEnd(result=Result.FAILED, code=code, detail=relay.error or _text(error))
    try:
        domain.migrate3(target, parameters_of(request, xml), flags_of(request.destination))
    except libvirt.libvirtError as error:
        if relay.filter.word_given:
            return MoveEnd(result=Result.UNKNOWN, detail=_text(error))
        detail = relay.error or _text(error)
        return MoveEnd(result=Result.FAILED, code=_why(error, domain), detail=detail)
    return MoveEnd(result=Result.OK)


def _text(error: "libvirt.libvirtError") -> str:
    return (error.get_error_message() or str(error))[:1_000]


def code_of(error: "libvirt.libvirtError") -> str:
    """Why it was not moved, as far as libvirt's error tells it."""
    known = {
        libvirt.VIR_ERR_HOOK_SCRIPT_FAILED: GATE,
        libvirt.VIR_ERR_OPERATION_ABORTED: "migration.ended.cancelled",
        libvirt.VIR_ERR_CPU_INCOMPATIBLE: CPU,
        libvirt.VIR_ERR_NO_MEMORY: FULL,
    }
    text = _text(error).lower()
    code = known.get(error.get_error_code())
    if code is not None:
        return code
    if "cannot allocate memory" in text or "cannot set up guest memory" in text:
        return FULL
    if "cpu" in text and any(words in text for words in CPU_WORDS):
        return CPU
    refused = "unable to connect" in text or "connection refused" in text or "no route" in text
    return UNREACHABLE if refused else FAILED


def _why(error: "libvirt.libvirtError", domain: "libvirt.virDomain") -> str:
    """Also where QEMU gave up because the guest's storage fails: libvirt says only that it did."""
    code = code_of(error)
    if code != FAILED:
        return code
    try:
        still = standing(domain)
    except libvirt.libvirtError:
        return code
    return IO_ERROR if still is not None and still.code == IO_ERROR else code


async def _leave_unprepared(relay: Relay) -> None:
    """A libvirt that hangs answers nothing, for ever, and there is no job yet that could be aborted. Nothing was copied: as
    long as its target has not prepared itself, the word to run can't have been given."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while not relay.filter.prepared:
        if loop.time() - began_s >= relay.patience_s:
            detail = relay.error or f"no libvirt was ready for it within {relay.patience_s:.0f} s"
            leave(MoveEnd(result=Result.FAILED, code=UNPREPARED, detail=detail))
        await asyncio.sleep(PREPARE_POLL_S)


async def _run(request: MoveRequest) -> None:
    relay = Relay(request)
    server = await asyncio.start_unix_server(relay.serve, request.relay_socket)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[MoveEnd] = loop.create_future()

    def lead() -> None:
        try:
            end = _lead(request, relay)
        except Exception as error:
            # A mistake of ours: unsaid, the agent would wait for this process until the move's deadline.
            end = MoveEnd(result=Result.UNKNOWN, detail=repr(error)[:1_000])
        loop.call_soon_threadsafe(ended.set_result, end)

    # A daemon: it may hang in libvirt for ever, and this process ends all the same.
    threading.Thread(target=lead, name="migration", daemon=True).start()
    watching = asyncio.ensure_future(_leave_unprepared(relay))
    async with server:
        _say(await ended)
    watching.cancel()
    os._exit(0)


def main() -> None:
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=MoveRequest)
    try:
        asyncio.run(_run(request))
    finally:
        # Whatever went wrong here: nothing of libvirt's library runs on.
        os._exit(1)


if __name__ == "__main__":
    main()
