"""Channels over TLS: ``virtha.wire.channel_session`` behind two calls that wait, ``receive`` and ``send``."""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable

from virtha.drivers.link import CONNECT_DEADLINE_S, HostCredentials, parse_address
from virtha.drivers.link_connection import Connection, monotonic_ms
from virtha.drivers.pki import client_context, server_installation
from virtha.model.errors import Failed, NotFound, Refused, Unavailable, VirthaError
from virtha.model.time import Millis
from virtha.wire.channel_session import ChannelSession, HostChannelSession
from virtha.wire.messages import CHANNEL_PROTOCOL, Attached, ChannelCredit, ChannelData, Message
from virtha.wire.session import Closed

ATTACH_DEADLINE_S = 10.0
CLOSED_FINISHED = "wire.closed.finished"
_KINDS: dict[str, type[VirthaError]] = {
    "problem.not_found": NotFound,
    "problem.unavailable": Unavailable,
    "problem.failed": Failed,
}


class ChannelStream:
    """Implements ``virtha.ports.channels.ByteStream`` on a connection that carries a channel session."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._received: deque[bytes] = deque()
        self._all_received = False
        self._closed: Closed | None = None
        self._changed = asyncio.Event()

    @property
    def _session(self) -> ChannelSession:
        assert isinstance(self._connection.session, ChannelSession)
        return self._connection.session

    async def receive(self) -> bytes:
        while True:
            if self._received:
                data = self._received.popleft()
                self._session.taken(len(data))
                self._connection.flush()
                return data
            if self._all_received:
                return b""
            if self._closed is not None:
                raise self._ending(self._closed)
            await self._change()

    async def send(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            if self._closed is not None:
                raise self._ending(self._closed)
            count = self._session.send(data[position:])
            self._connection.flush()
            position += count
            if count == 0:
                await self._change()

    async def finish(self) -> None:
        """Say that this was all, and wait until the peer has taken it and ends the channel."""
        self._session.say_all()
        self._connection.flush()
        await self.wait_closed()

    async def wait_closed(self) -> None:
        while self._closed is None:
            await self._change()

    def refuse(self, error: VirthaError) -> None:
        self._session.refuse(error.code, error.message, error.field)
        self._connection.flush()

    def close(self, code: str = CLOSED_FINISHED) -> None:
        if self._closed is None:
            self._connection.close(code)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _ending(self, closed: Closed) -> VirthaError:
        if closed.by_peer and closed.code.startswith("problem."):
            kind = _KINDS.get(closed.code, Refused)
            return kind(closed.message, code=closed.code)
        text = closed.message or closed.code
        return Unavailable(f"the channel to the host ended: {text}", fix="try again")

    # For the connection

    def take(self, message: Message) -> None:
        if isinstance(message, ChannelData):
            if message.data:
                self._received.append(message.data)
            else:
                self._all_received = True
        else:
            assert isinstance(message, ChannelCredit)
        self._changed.set()

    def ended(self, closed: Closed) -> None:
        self._closed = closed
        self._changed.set()


class _HostChannelConnection(Connection):
    __slots__ = ("_channel", "_installation_id", "attached", "stream")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext,
        credentials: HostCredentials,
        channel: str,
        clock: Callable[[], Millis],
    ) -> None:
        super().__init__(loop, context, server_side=False, clock=clock)
        self._channel = channel
        self._installation_id = credentials.installation_id
        self.attached: asyncio.Future[ChannelStream] = loop.create_future()
        self.stream = ChannelStream(self)

    def _tls_ready(self, peer_certificate: bytes) -> HostChannelSession:
        if server_installation(peer_certificate) != self._installation_id:
            raise Refused("the server is of another installation", code="wire.refused.certificate")
        return HostChannelSession(self._channel, self._clock())

    def _message(self, message: Message, now: Millis) -> None:
        if isinstance(message, Attached):
            if not self.attached.done():
                self.attached.set_result(self.stream)
        else:
            self.stream.take(message)

    def _ended(self, closed: Closed) -> None:
        self.stream.ended(closed)
        if not self.attached.done():
            text = closed.message or closed.code
            self.attached.set_exception(Unavailable(f"no channel to the server: {text}"))


async def dial_channel(
    address: str,
    credentials: HostCredentials,
    channel: str,
    *,
    clock: Callable[[], Millis] = monotonic_ms,
) -> ChannelStream:
    """The host's end: connect to the server once more and attach. Raises Unavailable; one attempt."""
    context = client_context(
        credentials.authority_pem, credentials.certificate_pem, credentials.key_pem
    )
    context.set_alpn_protocols([CHANNEL_PROTOCOL])
    loop = asyncio.get_running_loop()
    host, port = parse_address(address)
    connection = _HostChannelConnection(loop, context, credentials, channel, clock)
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            await loop.create_connection(lambda: connection, host, port)
        async with asyncio.timeout(ATTACH_DEADLINE_S):
            return await asyncio.shield(connection.attached)
    except (OSError, TimeoutError) as error:
        connection.abort()
        connection.attached.cancel()
        text = str(error) or "no answer in time"
        raise Unavailable(f"no channel to {address}: {text}") from None
    except BaseException:
        connection.abort()
        raise
