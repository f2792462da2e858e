"""The link between a host and its servers: asyncio + TLS around ``virtha.wire.session``.

The host's side, as the agent and the guardian use it::

    link = HostLink(
        servers=("192.0.2.10:8250",),           # tried in order, again and again
        credentials=HostCredentials(...),        # PEM texts and ids of identity/
        role=PeerRole.AGENT,                     # GUARDIAN: no outbox, beats instead
        boot=boot_id,
        events=self,                             # HostLinkEvents: plain calls on the event loop
        outbox=outbox,                           # virtha.wire.host_session.OutboxView (agent only)
        hello_state=lambda: HelloState(term_seen=…, settings_revision=…),
        live_instance=lambda: other_process_instance,   # M1, see below; optional
    )
    await link.run()              # until close(); never ends by itself, raises only on our own bugs

    link.facts_written()          # after appending to the outbox (durably!): sends at once if connected
    link.send_beat(beat)          # guardian; False: no session, the beat is dropped, never queued
    link.connected, link.server_instance, link.address, link.last_problem
    link.close()                  # says goodbye (`wire.closed.shutdown`); run() then returns

Every ended session and every failed attempt is told by ``on_disconnected``; while nothing changes
the same code and text come again and again, so log changes only.

Callbacks (``HostLinkEvents``) run inside the event loop, in the order of the messages, and must not
block; one that raises ends ``run()`` with that error.

The outbox is read, never written, by the link. It owns durability:

- ``facts_after(sequence, limit)``: facts with a higher sequence, oldest first, at most ``limit``. Where
  damage has left a gap, the first one is further on; the server is told and accepts it.
- ``last_sequence``: the last fact ever written (0: none).
- ``on_facts_acknowledged(sequence)``: drop facts up to there.
- In ``on_connected``: facts up to ``welcome.fact_sequence_acknowledged`` are acknowledged; and if
  that is beyond ``outbox.last_sequence`` the outbox lost its end: it must continue after the server's
  number, or the server takes new facts for old ones. ``on_connected`` is called before any fact is
  read, so it may renumber there.

A server with a lower term than ``term_seen`` is refused. ``live_instance`` names the server instance
with which this host's *other* process (guardian or agent) has a live session; a Welcome of another
instance is refused while it does (M1): two servers on copies of one database would both give orders.
"""

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Protocol, assert_never

from virtha.drivers.link_connection import Connection, monotonic_ms
from virtha.drivers.pki import client_context, server_installation
from virtha.model.errors import InvalidInput, Refused
from virtha.model.ids import BootId, HostId, InstallationId, Term
from virtha.model.orders import HostSettings, Order
from virtha.model.power_settings import PowerDriver
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.wire.host_session import HostSession, OutboxView
from virtha.wire.lease_messages import (
    LEASE_FEATURE,
    KeepLease,
    LeaseAnswer,
    LeaseKept,
    LeaseOrder,
    ReadSlots,
    SlotsRead,
    StopReading,
    WaiveLease,
)
from virtha.wire.messages import (
    CHANNEL_FEATURE,
    PACE_FEATURE,
    VERSION_MAJOR,
    VERSION_MINOR,
    Attach,
    Attached,
    Beat,
    BeatAck,
    Bye,
    ChannelCredit,
    ChannelData,
    Facts,
    FactsAck,
    GiveOrder,
    Hello,
    Message,
    OpenChannel,
    Pace,
    PeerRole,
    Ping,
    Pong,
    Refuse,
    Settings,
    Welcome,
)
from virtha.wire.power_messages import (
    AttemptPower,
    EndPowerAttempt,
    PowerAttempted,
    PowerWord,
    power_feature,
)
from virtha.wire.redial import SESSION_GOOD_MS, redial_delay_ms
from virtha.wire.session import Closed
from virtha.wire.witness_messages import (
    LOOK_FEATURE,
    PROBE_FEATURE,
    DisksLooked,
    HostProbed,
    LookAtDisks,
    ProbeHost,
    WitnessAnswer,
    WitnessOrder,
)

PORT_DEFAULT = 8250
CONNECT_DEADLINE_S = 5.0


class HostCredentials(Value, frozen=True, kw_only=True):
    """Who this host is; PEM texts as they lie in ``identity/``."""

    installation_id: InstallationId
    host_id: HostId
    authority_pem: str
    certificate_pem: str
    key_pem: str


class HelloState(Value, frozen=True, kw_only=True):
    """What the host's disk says when a session begins."""

    term_seen: Term = Term(0)
    settings_revision: int = 0


class HostLinkEvents(Protocol):
    """What a host's process hears from its link."""

    def on_connected(self, welcome: Welcome, address: str) -> None: ...

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        """A session ended or an attempt failed; ``code`` is of the registry (`wire.…`)."""
        ...

    def on_settings(self, settings: HostSettings) -> None: ...

    def on_order(self, order: Order) -> None: ...

    def on_facts_acknowledged(self, sequence: int) -> None: ...

    def on_beat_acknowledged(self, sequence: int) -> None: ...


class HostLink:
    """Keeps one session of one role to one of the servers. See the module's text."""

    def __init__(
        self,
        *,
        servers: tuple[str, ...],
        credentials: HostCredentials,
        role: PeerRole,
        boot: BootId,
        events: HostLinkEvents,
        outbox: OutboxView | None = None,
        hello_state: Callable[[], HelloState] = HelloState,
        live_instance: Callable[[], str | None] = lambda: None,
        program_version: str = "",
        on_channel: Callable[[OpenChannel], None] | None = None,
        on_lease: Callable[[LeaseOrder], None] | None = None,
        on_pace: Callable[[Pace], None] | None = None,
        on_witness: Callable[[WitnessOrder], None] | None = None,
        on_power: Callable[[PowerWord], None] | None = None,
        power_drivers: tuple[PowerDriver, ...] = (),
        clock: Callable[[], Millis] = monotonic_ms,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """``on_channel``: the server wants a channel; None: it is told that this host opens none. ``on_lease``: what it
        asks of a guardian that holds leases; None: it is told that this one does not. ``on_pace``: its beats are to come at another interval. ``on_witness``: what it asks about
        silent neighbours (an agent also about disks); None: it is told that nobody here can be asked. ``on_power``: attempts at other hosts' power
        devices, with these drivers only.

        Raises InvalidInput: no or malformed server addresses, unusable certificate or key.
        """
        assert (outbox is not None) == (role is PeerRole.AGENT)
        self._servers = _checked(servers)
        self.use(credentials)
        self._role = role
        self._boot = boot
        self._events = events
        self._outbox = outbox
        self._hello_state = hello_state
        self._live_instance = live_instance
        self._program_version = program_version
        self._on_channel = on_channel
        self._on_lease = on_lease
        self._on_pace = on_pace
        self._on_witness = on_witness
        self._on_power = on_power
        self._power_drivers = power_drivers if on_power is not None else ()
        self._clock = clock
        self._jitter = jitter
        self._term_seen = Term(0)
        self._connection: _HostConnection | None = None
        self._welcome: Welcome | None = None
        self._closing = asyncio.Event()
        self.address: str | None = None
        """The server of the present session, or of the attempt under way."""
        self.last_problem: Closed | None = None

    @property
    def connected(self) -> bool:
        return self._welcome is not None

    @property
    def server_instance(self) -> str | None:
        """The server's instance while there is a session (for the other process's check, M1)."""
        return self._welcome.server_instance if self._welcome is not None else None

    @property
    def welcome(self) -> Welcome | None:
        return self._welcome

    def facts_written(self) -> None:
        if self._connection is not None:
            self._connection.flush()

    def send_beat(self, beat: Beat) -> bool:
        session = self._connection.session if self._connection is not None else None
        if not isinstance(session, HostSession) or not session.send_beat(beat):
            return False
        assert self._connection is not None
        self._connection.flush()
        return True

    def send_lease(self, answer: LeaseAnswer) -> bool:
        """False: there is no session, or its line is full."""
        session = self._connection.session if self._connection is not None else None
        if not isinstance(session, HostSession) or not session.send_lease(answer):
            return False
        assert self._connection is not None
        self._connection.flush()
        return True

    def send_power(self, answer: PowerAttempted) -> bool:
        """False: there is no session, or its line is full."""
        session = self._connection.session if self._connection is not None else None
        if not isinstance(session, HostSession) or not session.send_power(answer):
            return False
        assert self._connection is not None
        self._connection.flush()
        return True

    def send_witness(self, answer: WitnessAnswer) -> bool:
        """False: there is no session, or its line is full."""
        session = self._connection.session if self._connection is not None else None
        if not isinstance(session, HostSession) or not session.send_witness(answer):
            return False
        assert self._connection is not None
        self._connection.flush()
        return True

    @property
    def local_address(self) -> str | None:
        """From which the present session goes out."""
        return self._connection.local_address if self._connection is not None else None

    def close(self, code: str = "wire.closed.shutdown") -> None:
        self._closing.set()
        if self._connection is not None:
            self._connection.close(code)

    async def run(self) -> None:
        """Connect, and connect again, until ``close``."""
        failures = 0
        outage_began = self._clock()
        while not self._closing.is_set():
            lasted = await self._try_all()
            failures = 0 if lasted else failures + 1
            outage_began = self._clock() if lasted else outage_began
            await self._pause(failures, outage_s=(self._clock() - outage_began) / 1_000)

    async def _try_all(self) -> bool:
        """Each address in turn, until one gave a good session; then the first is preferred again (L4)."""
        for address in self._servers:
            began = self._clock()
            had_session = await self._attempt(address)
            if self._closing.is_set():
                return True
            if had_session and self._clock() - began > SESSION_GOOD_MS:
                return True
        return False

    async def _pause(self, failures: int, *, outage_s: float) -> None:
        delay_ms = redial_delay_ms(
            failures,
            outage_ms=int(outage_s * 1_000),
            last_code=self.last_problem.code if self.last_problem is not None else None,
            chance=self._jitter(),
        )
        try:
            async with asyncio.timeout(delay_ms / 1_000):
                await self._closing.wait()
        except TimeoutError:
            pass  # the pause is over

    async def _attempt(self, address: str) -> bool:
        """One connection from beginning to end; whether there was a session."""
        loop = asyncio.get_running_loop()
        host, port = parse_address(address)
        connection = _HostConnection(loop, self, self._context, self._clock)
        self.address = address
        self._connection = connection  # from now on close() reaches it
        try:
            async with asyncio.timeout(CONNECT_DEADLINE_S):
                await loop.create_connection(lambda: connection, host, port)
        except (OSError, TimeoutError) as error:
            text = str(error) or f"no connection within {CONNECT_DEADLINE_S:g} s"
            closed = Closed(code="wire.closed.unreachable", message=text)
            self._connection = None
            self._tell_disconnected(closed, address)
            return False
        try:
            if self._closing.is_set():
                connection.abort()
            closed = await connection.ended
            if self._closing.is_set():
                await connection.gone.wait()  # the goodbye is read, or a second has passed
        except BaseException:
            connection.abort()  # run() was cancelled, or a callback raised
            raise
        finally:
            had_session = self._welcome is not None
            self._connection = self._welcome = None
        self._tell_disconnected(closed, address)
        return had_session

    def use(self, credentials: HostCredentials) -> None:
        """From the next connection on; the one that stands goes on. Raises InvalidInput: unusable certificate or key."""
        self._context = client_context(
            credentials.authority_pem, credentials.certificate_pem, credentials.key_pem
        )
        self._credentials = credentials

    @property
    def credentials(self) -> HostCredentials:
        return self._credentials

    def _tell_disconnected(self, closed: Closed, address: str) -> None:
        self.last_problem = closed
        self._events.on_disconnected(closed.code, closed.message, address)

    # For the connection

    def begin_session(self, peer_certificate: bytes) -> HostSession:
        installation_id = server_installation(peer_certificate)
        if installation_id != self._credentials.installation_id:
            raise Refused(
                f"the server is of installation {installation_id}",
                code="wire.refused.certificate",
            )
        state = self._hello_state()
        self._term_seen = max(self._term_seen, state.term_seen)
        outbox = self._outbox
        hello = Hello(
            version_major=VERSION_MAJOR,
            version_minor=VERSION_MINOR,
            features=(
                *(() if self._on_channel is None else (CHANNEL_FEATURE,)),
                *(() if self._on_lease is None else (LEASE_FEATURE,)),
                *(() if self._on_witness is None else _witness_features(self._role)),
                *(power_feature(driver) for driver in self._power_drivers),
                PACE_FEATURE,
            ),
            role=self._role,
            host_id=self._credentials.host_id,
            boot=self._boot,
            term_seen=self._term_seen,
            fact_sequence_last=outbox.last_sequence if outbox is not None else 0,
            settings_revision=state.settings_revision,
            program_version=self._program_version,
        )
        return HostSession(
            hello,
            installation_id=self._credentials.installation_id,
            now=self._clock(),
            outbox=outbox,
            live_instance=self._live_instance(),
        )

    def take_message(self, message: Message) -> None:
        match message:
            case BeatAck():
                self._events.on_beat_acknowledged(message.sequence)
            case FactsAck():
                self._events.on_facts_acknowledged(message.sequence)
            case GiveOrder():
                self._events.on_order(message.order)
            case OpenChannel():
                if self._on_channel is not None:
                    self._on_channel(message)
            case ReadSlots() | StopReading() | WaiveLease() | KeepLease():
                if self._on_lease is not None:
                    self._on_lease(message)
            case ProbeHost() | LookAtDisks():
                if self._on_witness is not None:
                    self._on_witness(message)
            case AttemptPower() | EndPowerAttempt():
                if self._on_power is not None:
                    self._on_power(message)
            case Pace():
                if self._on_pace is not None:
                    self._on_pace(message)
            case Settings():
                self._term_seen = max(self._term_seen, message.settings.term)
                self._events.on_settings(message.settings)
            case Welcome():
                self._term_seen = max(self._term_seen, message.term)
                self._welcome = message
                self._events.on_connected(message, self.address or "")
            case (
                Hello()
                | Beat()
                | Facts()
                | Ping()
                | Pong()
                | Refuse()
                | Bye()
                | Attach()
                | Attached()
                | ChannelData()
                | ChannelCredit()
                | SlotsRead()
                | LeaseKept()
                | HostProbed()
                | DisksLooked()
                | PowerAttempted()
            ):
                raise AssertionError(f"the session passed on {message!r}")
            case _:
                assert_never(message)


def _witness_features(role: PeerRole) -> tuple[str, ...]:
    return (PROBE_FEATURE, LOOK_FEATURE) if role is PeerRole.AGENT else (PROBE_FEATURE,)


class _HostConnection(Connection):
    __slots__ = ("_link", "ended", "gone")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: HostLink,
        context: ssl.SSLContext,
        clock: Callable[[], Millis],
    ) -> None:
        super().__init__(loop, context, server_side=False, clock=clock)
        self._link = link
        self.ended: asyncio.Future[Closed] = loop.create_future()
        self.gone = asyncio.Event()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.gone.set()

    def _tls_ready(self, peer_certificate: bytes) -> HostSession:
        return self._link.begin_session(peer_certificate)

    def _message(self, message: Message, now: Millis) -> None:
        if self.ended.done():
            return
        try:
            self._link.take_message(message)
        except Exception as error:
            # A bug on our side must not pass for a broken line: run() ends with it.
            self.ended.set_exception(error)
            self.close("problem.failed", str(error))

    def _ended(self, closed: Closed) -> None:
        if not self.ended.done():
            self.ended.set_result(closed)


def parse_address(address: str) -> tuple[str, int]:
    """``name``, ``name:port``, ``[v6]:port`` as (host, port). Raises InvalidInput (field ``servers``)."""
    host, _, port_text = address.strip().rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        host, port_text = address, str(PORT_DEFAULT)
    elif not host:
        host, port_text = address.strip(), str(PORT_DEFAULT)
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare and not host.startswith("[")) or not port_text.isdecimal():
        raise _bad_address(address)
    if not 0 < int(port_text) < 65_536:
        raise _bad_address(address)
    return bare, int(port_text)


def _bad_address(address: str) -> InvalidInput:
    return InvalidInput(
        f"'{address}' is not a server address",
        field="servers",
        allowed=("name", "name:port", "192.0.2.10:8250", "[2001:db8::1]:8250"),
    )


def _checked(servers: tuple[str, ...]) -> tuple[str, ...]:
    if not servers:
        raise InvalidInput("there is no server address", field="servers")
    for address in servers:
        parse_address(address)
    return servers
