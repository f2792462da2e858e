"""The server's side of the link: a listening port whose connections speak ``virtha.wire.session``."""

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol

from virtha.drivers.channel import ChannelStream
from virtha.drivers.link_connection import Connection, monotonic_ms
from virtha.drivers.pki import host_identity
from virtha.model.errors import Refused
from virtha.model.ids import BootId, HostId, InstallationId
from virtha.model.time import Millis
from virtha.wire.channel_session import ServerChannelSession
from virtha.wire.lease_messages import LeaseAnswer, LeaseKept, SlotsRead
from virtha.wire.messages import CHANNEL_PROTOCOL, Attach, Beat, Facts, Hello, Message
from virtha.wire.power_messages import PowerAttempted
from virtha.wire.server_session import ServerSession
from virtha.wire.session import Closed
from virtha.wire.witness_messages import DisksLooked, HostProbed, WitnessAnswer

HANDSHAKES_MAX = 1_024
"""Connections without a session, at once. More are cut at once and come again later."""
BACKLOG = 1_024


class ServerLinkEvents(Protocol):
    """What the server hears of its connections; plain calls on the event loop."""

    def on_hello(self, connection: "ServerConnection", hello: Hello) -> None:
        """Answer by ``connection.wire.welcome`` or ``.refuse``, then ``connection.flush()``."""
        ...

    def on_beat(self, connection: "ServerConnection", beat: Beat, now: Millis) -> None:
        """Its acknowledgement is on its way already."""
        ...

    def on_facts(self, connection: "ServerConnection", facts: Facts) -> None: ...

    def on_lease(self, connection: "ServerConnection", answer: LeaseAnswer) -> None:
        """Of a guardian, about its own boot."""
        ...

    def on_witness(self, connection: "ServerConnection", answer: WitnessAnswer) -> None:
        """What it found out about another host, on our question."""
        ...

    def on_power(self, connection: "ServerConnection", answer: PowerAttempted) -> None:
        """How its attempt at another host's power device ended."""
        ...

    def on_ended(self, connection: "ServerConnection", closed: Closed) -> None:
        """Once for each connection, also for one that never got as far as TLS."""
        ...


class ServerChannelEvents(Protocol):
    """What the server hears of connections that are channels."""

    def on_attach(self, connection: "ServerConnection", attach: Attach) -> None:
        """Answer by ``connection.channel.accept`` or ``.refuse``, then ``connection.flush()``."""
        ...


class ServerConnection(Connection):
    """One host's connection. After ``on_hello`` the gateway keeps what it knows in ``owner``; ``stream`` is there
    if it is a channel."""

    __slots__ = (
        "_events",
        "_listener",
        "certificate_serial",
        "host_id",
        "number",
        "owner",
        "stream",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext,
        listener: "ServerLink",
        clock: Callable[[], Millis],
    ) -> None:
        super().__init__(loop, context, server_side=True, clock=clock)
        self._listener = listener
        self._events = listener.events
        self.host_id: HostId | None = None
        self.certificate_serial = ""
        self.owner: object = None
        self.stream: ChannelStream | None = None
        self.number = 0
        """Counted up as they are accepted, each before its handshake is answered."""

    @property
    def wire(self) -> ServerSession:
        assert isinstance(self.session, ServerSession)
        return self.session

    @property
    def boot(self) -> BootId:
        """Of the host, as its hello says; not before that."""
        hello = self.wire.hello
        assert hello is not None
        return hello.boot

    @property
    def channel(self) -> ServerChannelSession:
        assert isinstance(self.session, ServerChannelSession)
        return self.session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._listener.begun(self)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._listener.gone(self)

    def _tls_ready(self, peer_certificate: bytes) -> ServerSession | ServerChannelSession:
        identity = host_identity(peer_certificate)
        if identity.installation_id != self._listener.installation_id:
            raise Refused(
                f"the certificate is of installation {identity.installation_id}",
                code="wire.refused.certificate",
            )
        self.host_id = identity.host_id
        self.certificate_serial = identity.serial
        if self._tls.selected_alpn_protocol() == CHANNEL_PROTOCOL:
            self.stream = ChannelStream(self)
            return ServerChannelSession(self._clock())
        return ServerSession(identity.host_id, now=self._clock())

    def _message(self, message: Message, now: Millis) -> None:
        if type(message) is Beat:
            self._events.on_beat(self, message, now)
        elif type(message) is Facts:
            self._events.on_facts(self, message)
        elif type(message) is SlotsRead or type(message) is LeaseKept:
            self._events.on_lease(self, message)
        elif type(message) is HostProbed or type(message) is DisksLooked:
            self._events.on_witness(self, message)
        elif type(message) is PowerAttempted:
            self._events.on_power(self, message)
        elif type(message) is Attach:
            self._listener.greeted(self)
            self._listener.channels.on_attach(self, message)
        elif self.stream is not None:
            self.stream.take(message)
        else:
            assert type(message) is Hello
            self._listener.greeted(self)
            self._events.on_hello(self, message)

    def _ended(self, closed: Closed) -> None:
        self._listener.greeted(self)
        if self.stream is not None:
            self.stream.ended(closed)
        else:
            self._events.on_ended(self, closed)


class _NoChannels:
    def on_attach(self, connection: ServerConnection, attach: Attach) -> None:
        connection.channel.refuse("wire.refused.unexpected", "this server has no channels")
        connection.flush()


class ServerLink:
    """The gateway's port. ``close`` says goodbye to all and waits until they are gone."""

    def __init__(
        self,
        events: ServerLinkEvents,
        context: ssl.SSLContext,
        *,
        installation_id: InstallationId,
        clock: Callable[[], Millis] = monotonic_ms,
        channels: ServerChannelEvents | None = None,
    ) -> None:
        self.events = events
        self.channels: ServerChannelEvents = channels or _NoChannels()
        context.set_alpn_protocols([CHANNEL_PROTOCOL])
        self.installation_id = installation_id
        self._context = context
        self._clock = clock
        self._connections: set[ServerConnection] = set()
        self._handshakes: set[ServerConnection] = set()
        self._server: asyncio.Server | None = None
        self._all_gone = asyncio.Event()
        self.opened_last = 0
        """The number of the connection that was accepted last."""

    async def listen(self, host: str, port: int) -> int:
        """Returns the port (useful with 0). Raises OSError when the address can't be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: ServerConnection(loop, self._context, self, self._clock),
            host,
            port,
            backlog=BACKLOG,
        )
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def close(self, code: str = "wire.closed.shutdown") -> None:
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.close(code)
        if self._connections:
            self._all_gone.clear()
            await self._all_gone.wait()  # each is cut after a second at the latest

    # For the connections

    def begun(self, connection: ServerConnection) -> None:
        self.opened_last += 1
        connection.number = self.opened_last
        self._connections.add(connection)
        self._handshakes.add(connection)
        if len(self._handshakes) > HANDSHAKES_MAX:
            asyncio.get_running_loop().call_soon(connection.abort)

    def greeted(self, connection: ServerConnection) -> None:
        self._handshakes.discard(connection)

    def gone(self, connection: ServerConnection) -> None:
        self._connections.discard(connection)
        self._handshakes.discard(connection)
        if not self._connections:
            self._all_gone.set()
