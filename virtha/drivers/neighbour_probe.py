"""One host asks another's guardian whether it lives, past the server (J2): both ends.

TCP, because its refusals tell something: a connection that is taken and not answered is a kernel without its guardian
(a hint, never a vote). The answer is signed (``wire/probes.py``); no TLS, for a host's certificate poses as no server.
"""

import asyncio
import errno
import ipaddress
import secrets
import socket

import structlog

from virtha.drivers.link import HostCredentials
from virtha.drivers.pki import signed_by, signing_host
from virtha.model.errors import Refused, VirthaError
from virtha.model.evidence import Answer
from virtha.model.ids import BootId, HostId
from virtha.wire.codec import HEADER
from virtha.wire.probes import (
    NONCE_BYTES,
    ProbeAnswer,
    ProbeQuestion,
    decode_answer,
    decode_question,
    encode,
    frame_size,
    signed_words,
)
from virtha.wire.witness_messages import ProbeTarget

QUESTION_DEADLINE_S = 2.0
CONNECTIONS_MAX = 64
"""At once; more are cut, which the asker takes for a hint."""
LISTEN_AGAIN_S = 5.0
_NOBODY = (errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EHOSTDOWN)
_log = structlog.get_logger(__name__)


class ProbeListener:
    """The guardian's end. ``run`` it in a task; a port that can't be had is tried again, and stops nothing else."""

    def __init__(self, credentials: HostCredentials, boot: BootId) -> None:
        self._credentials = credentials
        self._boot = boot
        self._server: asyncio.Server | None = None
        self._open = 0
        self.port = 0
        """0: it does not listen (yet)."""

    def use(self, credentials: HostCredentials) -> None:
        self._credentials = credentials

    async def run(self, port: int, *, address: str | None = None) -> None:
        """``port`` 0: any. ``address`` None: all that the host has."""
        said = ""
        while True:
            try:
                self._server = await asyncio.start_server(self._answer, address, port)
                break
            except OSError as error:
                if str(error) != said:
                    said = str(error)
                    _log.error("neighbours' probes can't be answered", port=port, error=said)
            await asyncio.sleep(LISTEN_AGAIN_S)
        self.port = int(self._server.sockets[0].getsockname()[1])
        async with self._server:
            await self._server.serve_forever()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS_MAX:
                async with asyncio.timeout(QUESTION_DEADLINE_S):
                    size = frame_size(await reader.readexactly(HEADER.size))
                    question = decode_question(await reader.readexactly(size))
                    writer.write(encode(self._signed(question)))
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, VirthaError):
            pass  # whoever asked like that gets no answer
        finally:
            self._open -= 1
            writer.close()

    def _signed(self, question: ProbeQuestion) -> ProbeAnswer:
        own = self._credentials
        words = signed_words(question.nonce, own.host_id, self._boot)
        return ProbeAnswer(
            host_id=own.host_id,
            boot=self._boot,
            certificate_pem=own.certificate_pem,
            signature=signed_by(own.key_pem, words),
        )


async def probe(
    target: ProbeTarget, subject: HostId, credentials: HostCredentials, *, deadline_ms: int
) -> tuple[Answer, BootId | None]:
    """One attempt; never raises. The boot comes with ``ALIVE`` only."""
    try:
        connection = _bound(target)
    except (OSError, ValueError) as error:
        _log.info("a probe can't be made", network=target.network, error=str(error))
        return Answer.UNKNOWN, None
    connected = False
    try:
        async with asyncio.timeout(deadline_ms / 1_000):
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, (target.address, target.port))
            connected = True
            return await _ask(connection, subject, credentials)
    except TimeoutError:
        return (Answer.HINT if connected else Answer.SILENT), None
    except (ConnectionError, EOFError):
        return Answer.HINT, None  # refused or cut: by a kernel that lives
    except OSError as error:
        return (Answer.SILENT if error.errno in _NOBODY else Answer.UNKNOWN), None
    except VirthaError as error:
        # Something answers there, and it is not the subject's guardian.
        _log.warning("a probe was answered by another", address=target.address, error=str(error))
        return Answer.HINT, None
    finally:
        connection.close()


def _bound(target: ProbeTarget) -> socket.socket:
    """Raises OSError: this host has no such address (any more). ValueError: it is none."""
    version = ipaddress.ip_address(target.address).version
    ipaddress.ip_address(target.source)
    if not 0 < target.port < 65_536:
        raise ValueError(f"{target.port} is no port")
    found = socket.socket(
        socket.AF_INET6 if version == 6 else socket.AF_INET,
        socket.SOCK_STREAM | socket.SOCK_CLOEXEC,
    )
    try:
        found.setblocking(False)
        found.bind((target.source, 0))
    except OSError:
        found.close()
        raise
    return found


async def _ask(
    connection: socket.socket, subject: HostId, credentials: HostCredentials
) -> tuple[Answer, BootId | None]:
    """Raises EOFError, OSError, Refused, Unauthenticated."""
    loop = asyncio.get_running_loop()
    nonce = secrets.token_bytes(NONCE_BYTES)
    await loop.sock_sendall(connection, encode(ProbeQuestion(nonce=nonce)))
    size = frame_size(await _exactly(connection, HEADER.size))
    answer = decode_answer(await _exactly(connection, size))
    signer = signing_host(
        credentials.authority_pem,
        answer.certificate_pem,
        signed_words(nonce, answer.host_id, answer.boot),
        answer.signature,
    )
    if signer.host_id != answer.host_id or signer.installation_id != credentials.installation_id:
        raise Refused("it signs for another", code="wire.refused.certificate")
    if signer.host_id != subject:
        return Answer.UNKNOWN, None  # that address is another host's now: the subject was not asked
    return Answer.ALIVE, answer.boot


async def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = await asyncio.get_running_loop().sock_recv(connection, size - len(found))
        if not data:
            raise EOFError
        found += data
    return found
