"""The gateway: sessions of agents and guardians, beats, facts in, orders out.

Beats live in memory only and are acknowledged by the session itself: whatever the database does, they
are answered. Facts pass to the use cases (``fact_queue``), and are acknowledged after the commit, and
after what the engine makes of them is durable as well (``watcher``); while the store is unavailable they
wait (the session's window bounds how many) and stay on their host's disk. The wiring::

    gateway = Gateway(clock=clock, installation_id=…)
    control = make_control(store=…, links=gateway, …)
    await gateway.start(control, term=…, context=server_context(…), host="0.0.0.0", port=8250)
    …
    await gateway.close()
"""

import asyncio
import ssl
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog

from virtha.control.views import HelloAnswer
from virtha.drivers.link_server import ServerConnection, ServerLink
from virtha.model.errors import Unavailable, VirthaError
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, InstallationId, Term
from virtha.model.orders import HostSettings, Order
from virtha.model.policy import DetectionPolicy
from virtha.model.power_settings import PowerDriver
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.ports.hosts import LastBeat
from virtha.server.channel_desk import ChannelDesk
from virtha.server.fact_queue import FactQueue
from virtha.server.gateway_use_cases import GatewayUseCases, HostWatcher
from virtha.server.hello_refusals import overtaken, revoked, unavailable
from virtha.server.host_line import HostLine
from virtha.server.neighbour_power import NeighbourPowerDesk
from virtha.server.presence import HostPresence, Sighting
from virtha.wire.hellos import followed_elsewhere
from virtha.wire.lease_messages import LeaseAnswer, LeaseOrder
from virtha.wire.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Beat,
    Facts,
    Hello,
    PeerRole,
    Welcome,
)
from virtha.wire.power_messages import PowerAttempted, PowerWord
from virtha.wire.session import Closed
from virtha.wire.witness_messages import WitnessAnswer, WitnessOrder

HELLO_DEADLINE_S = 8.0
"""For the use case's answer; below the session's own deadline, so that the host hears why."""
HELLOS_MAX = 32
"""Use cases under way at once: after a restart of the server all hosts come, and share one database."""
PENDING_ORDERS_MAX = 1_024
LOG_REPEAT_MS = 60_000
LOG_KEYS_MAX = 1_000

_log = structlog.get_logger(__name__)


class GatewayMetrics(Value, frozen=True, kw_only=True):
    """Counters since the start; ``ended`` by code of the registry."""

    agents: int
    guardians: int
    connections: int
    beats: int
    facts: int
    facts_waiting: int
    store_retries: int
    ended: Mapping[str, int]


class Gateway:
    """Implements ``virtha.ports.hosts.HostLinks`` and takes the link's events."""

    def __init__(
        self,
        *,
        clock: Clock,
        installation_id: InstallationId,
        instance: str | None = None,
    ) -> None:
        """``instance``: this start of the server; made here unless given (tests)."""
        self._clock = clock
        self._installation_id = installation_id
        self.instance = instance or str(uuid.uuid4())
        self._control: GatewayUseCases | None = None
        self.watcher: HostWatcher | None = None
        """None: hosts may forget what is recorded."""
        self._term = Term(0)
        self._link: ServerLink | None = None
        self._lines: dict[HostId, HostLine] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(HELLOS_MAX)
        self._ended: Counter[str] = Counter()
        self._beats = 0
        self._fact_queue = FactQueue(self._on_recorded)
        self._told: dict[tuple[str, str], Millis] = {}
        self._closing = False
        self.channels = ChannelDesk(self._agent_session)
        self.power = NeighbourPowerDesk(self, clock)

    # Wiring

    async def start(
        self,
        control: GatewayUseCases,
        *,
        term: Term,
        context: ssl.SSLContext,
        host: str,
        port: int,
    ) -> int:
        """Listen; returns the port. Raises OSError when the address can't be had."""
        self._control = control
        self._fact_queue.start(control.facts)
        self._term = term
        self._link = ServerLink(
            self,
            context,
            installation_id=self._installation_id,
            clock=self._clock.monotonic_ms,
            channels=self.channels,
        )
        return await self._link.listen(host, port)

    async def close(self) -> None:
        """Goodbye to all. Facts whose commit is under way are finished, the others come again."""
        self._closing = True
        self._fact_queue.stop()
        for task in self._tasks:
            task.cancel()
        if self._link is not None:
            await self._link.close()
        await self._fact_queue.finish(self._lines.values())
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # HostLinks

    def agent_connected(self, host_id: HostId) -> bool:
        line = self._lines.get(host_id)
        return line is not None and line.agent is not None

    def has_session(self, host_id: HostId) -> bool:
        return bool(self.sessions(host_id))

    def _agent_session(self, host_id: HostId) -> ServerConnection | None:
        line = self._lines.get(host_id)
        return line.agent if line is not None else None

    def last_beat(self, host_id: HostId) -> LastBeat | None:
        line = self._lines.get(host_id)
        return None if line is None else line.last_beat()

    def deliver(self, host_id: HostId, order: Order) -> bool:
        line = self._lines.get(host_id)
        if line is None:
            return False
        if line.pending_orders is not None:
            # A hello is being answered. Its orders may have been read before this one was committed,
            # and nobody would send it until the next hello.
            if len(line.pending_orders) >= PENDING_ORDERS_MAX:
                return False
            line.pending_orders[order.operation_id, order.step] = order
            return True
        if line.agent is None:
            return False
        line.agent.wire.send_order(order)
        line.agent.flush()
        return True  # also where the session broke in that: some of it may have come through

    def configure(self, host_id: HostId, settings: HostSettings) -> None:
        line = self._lines.get(host_id)
        if line is None:
            return
        line.follow(settings.policy.detection, settings.revision)
        if line.pending_orders is not None:
            line.pending_settings = _newer(line.pending_settings, settings)
        elif line.agent is not None and settings.revision >= line.settings_revision:
            line.settings_revision = settings.revision
            line.agent.wire.send_settings(settings)
            line.agent.flush()

    def acknowledge(self, host_id: HostId, sequence: int) -> None:
        """The host may forget its facts up to this one."""
        line = self._lines.get(host_id)
        if line is not None and line.agent is not None:
            line.agent.wire.acknowledge(sequence)
            line.agent.flush()

    def sessions(self, host_id: HostId) -> tuple[tuple[PeerRole, BootId], ...]:
        """Those that stand at this moment."""
        return self._lines[host_id].sessions() if host_id in self._lines else ()

    def lease_boot(self, host_id: HostId) -> BootId | None:
        line = self._lines.get(host_id)
        return None if line is None else line.lease_boot()

    def tell_lease(self, host_id: HostId, order: LeaseOrder) -> bool:
        line = self._lines.get(host_id)
        return line is not None and line.tell_lease(order)

    def ask_witness(self, host_id: HostId, order: WitnessOrder) -> bool:
        line = self._lines.get(host_id)
        return line is not None and line.ask_witness(order)

    def power_beat(self, host_id: HostId, driver: PowerDriver) -> LastBeat | None:
        line = self._lines.get(host_id)
        return None if line is None else line.power_beat(driver, self._clock.monotonic_ms())

    def tell_power(self, host_id: HostId, word: PowerWord) -> int | None:
        line = self._lines.get(host_id)
        return None if line is None else line.tell_power(word)

    @property
    def term(self) -> Term:
        return self._term

    def begin_anew(self, instance: str) -> None:
        """As after a restart of the server: all sessions end, hosts come again and tell what was not acknowledged, and what
        they run (M2)."""
        self.instance = instance
        for host_id, line in self._lines.items():
            self.channels.disconnect(host_id)
            for connection in {line.agent, line.guardian, *line.newest.values()}:
                if connection is not None:
                    connection.close("wire.closed.shutdown")

    def disconnect(self, host_id: HostId, code: str) -> None:
        self.channels.disconnect(host_id)
        line = self._lines.pop(host_id, None)
        if line is None:
            return
        connections = {line.agent, line.guardian, *line.newest.values()}
        for connection in connections:
            if connection is not None:
                connection.wire.refuse(code, "the server ended this host's sessions")
                connection.flush()

    # For the presence loop, /metrics and readiness

    def sighting(self, host_id: HostId) -> Sighting:
        line = self._lines.get(host_id)
        if line is None:
            return Sighting(agent_connected=False)
        return line.sighting(self._clock.monotonic_ms())

    def presence(self, host_id: HostId) -> HostPresence | None:
        """None: nothing was heard of it since this server started."""
        line = self._lines.get(host_id)
        if line is None:
            return None
        return HostPresence(
            host_id=host_id,
            agent_connected=line.agent is not None,
            guardian_connected=line.guardian is not None,
            boot=line.boot,
            clock_offset_ms=self._clock_offset_ms(line),
            facts_waiting=line.facts_waiting,
        )

    def _clock_offset_ms(self, line: HostLine) -> int | None:
        if line.beat is None or line.beat.wall_ms == 0:
            return None
        since_ms = self._clock.monotonic_ms() - line.beat_at
        return line.beat.wall_ms - (self._clock.wall_ms() - since_ms)

    def metrics(self) -> GatewayMetrics:
        lines = self._lines.values()
        return GatewayMetrics(
            agents=sum(line.agent is not None for line in lines),
            guardians=sum(line.guardian is not None for line in lines),
            connections=self._link.connections if self._link is not None else 0,
            beats=self._beats,
            facts=self._fact_queue.facts,
            facts_waiting=sum(line.facts_waiting for line in lines),
            store_retries=self._fact_queue.store_retries,
            ended=dict(self._ended),
        )

    # ServerLinkEvents: beats

    def on_beat(self, connection: ServerConnection, beat: Beat, now: Millis) -> None:
        line = connection.owner
        assert isinstance(line, HostLine)
        if line.guardian is connection:  # else a newer session of this guardian has taken over
            line.beat = beat
            line.beat_at = now
            self._beats += 1
            if self.watcher is not None:
                self.watcher.beat(line.host_id, beat)

    def on_lease(self, connection: ServerConnection, answer: LeaseAnswer) -> None:
        line = connection.owner
        assert isinstance(line, HostLine)
        if line.guardian is connection and self.watcher is not None:
            self.watcher.lease(line.host_id, answer)

    # ServerLinkEvents: witnesses

    def on_witness(self, connection: ServerConnection, answer: WitnessAnswer) -> None:
        line = connection.owner
        assert isinstance(line, HostLine)
        if connection in (line.agent, line.guardian) and self.watcher is not None:
            self.watcher.witness(line.host_id, answer)

    # ServerLinkEvents: power

    def on_power(self, connection: ServerConnection, answer: PowerAttempted) -> None:
        self.power.heard(connection.number, answer)

    # ServerLinkEvents: hello

    def on_hello(self, connection: ServerConnection, hello: Hello) -> None:
        line = self._lines.setdefault(hello.host_id, HostLine(hello.host_id))
        connection.owner = line
        assert self._link is not None
        self._spawn(
            self._answer_hello(line, connection, hello, self._link.opened_last),
            f"hello {hello.role} {hello.host_id}",
        )

    def _take_in(
        self, line: HostLine, connection: ServerConnection, hello: Hello, opened_last: int
    ) -> bool:
        """Its certificate is accepted, so its hello counts: before, it touches nothing of the host, which goes by that name
        rightly. False: something else has happened meanwhile, and it doesn't. ``opened_last``: when it was read."""
        if connection.wire.closed is not None:
            return False
        if self._lines.get(line.host_id) is not line:
            connection.close("wire.closed.replaced")  # all of that host were sent away meanwhile
            return False
        if not line.present.takes(hello.boot, opened=connection.number, opened_last=opened_last):
            self._refuse(connection, overtaken())  # nothing of that boot may be put on record
            return False
        older = line.newest.get(hello.role)
        if older is not None and older.number > connection.number:
            connection.close("wire.closed.replaced")  # its hello lay unread meanwhile
            return False
        self._end_other_boots(line, hello.boot)
        line.newest[hello.role] = connection
        if older is not None and older is not line.session(hello.role):
            older.close("wire.closed.replaced")  # its hello isn't answered yet
        if hello.role is PeerRole.AGENT:
            line.agent_hellos += 1
            if line.pending_orders is None:
                line.pending_orders = {}
        return True

    def _end_other_boots(self, line: HostLine, boot: BootId) -> None:
        """A host runs one boot: sessions of another one are over, also those whose hello is still being answered. That
        answer, late as it is, must not make the former boot the present one again (P4)."""
        for role, connection in tuple(line.newest.items()):
            if connection.boot != boot:
                del line.newest[role]
                connection.close("wire.closed.replaced")
        # Also one whose successor of the same boot was still being answered.
        for session in (line.agent, line.guardian):
            if session is not None and session.boot != boot:
                session.close("wire.closed.replaced")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_hello(
        self, line: HostLine, connection: ServerConnection, hello: Hello, opened_last: int
    ) -> None:
        taken = False
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S), self._slots:
                await self._check_certificate(line, connection, hello)
                taken = self._take_in(line, connection, hello, opened_last)
                if not taken:
                    return
                answer = await self._ask_control(line, connection, hello)
            if line.newest.get(hello.role) is connection:
                self._take_over(line, connection, hello, answer)
        except TimeoutError:
            self._refuse(connection, unavailable("the server is too slow now"))
        except VirthaError as error:
            self._refuse(
                connection, unavailable(str(error)) if isinstance(error, Unavailable) else error
            )
        except Exception as error:
            # A mistake of ours: this host is told, the others go on.
            _log.exception("hello failed", host_id=hello.host_id)
            self._refuse(connection, unavailable(f"server error: {error}"))
        finally:
            if taken and hello.role is PeerRole.AGENT:
                self._agent_hello_over(line)

    def _agent_hello_over(self, line: HostLine) -> None:
        """If no hello took what waited, the session that lives on gets it; else the next hello does."""
        line.agent_hellos -= 1
        if line.agent_hellos or line.pending_orders is None:
            return
        orders, settings = line.pending_orders, line.pending_settings
        line.pending_orders = line.pending_settings = None
        if settings is not None:
            self.configure(line.host_id, settings)
        for order in orders.values():
            self.deliver(line.host_id, order)

    async def _check_certificate(
        self, line: HostLine, connection: ServerConnection, hello: Hello
    ) -> None:
        """Raises VirthaError to refuse."""
        assert self._control is not None
        serial = connection.certificate_serial
        try:
            allowed = await self._control.hosts.certificate_allowed(hello.host_id, serial)
        except Unavailable:
            # A guardian whose certificate this server has accepted before may beat on while the
            # database is away: an outage of ours must not look like the silence of a host.
            if hello.role is PeerRole.AGENT or line.serial_allowed != serial:
                raise
            allowed = True
        if not allowed:
            if line.serial_allowed == serial:
                line.serial_allowed = None
            raise revoked()
        line.serial_allowed = serial

    async def _ask_control(
        self, line: HostLine, connection: ServerConnection, hello: Hello
    ) -> HelloAnswer | None:
        """What an agent is told; None for a guardian. Raises VirthaError to refuse."""
        assert self._control is not None
        elsewhere = followed_elsewhere(hello, told=line.told, term=self._term)
        if hello.role is PeerRole.GUARDIAN:
            await self._ask_for_guardian(line, elsewhere)
            return None
        answer = await self._control.hosts.hello(
            hello.host_id,
            boot=hello.boot,
            certificate_serial=connection.certificate_serial,
            term_elsewhere=elsewhere,
            fact_sequence_last=hello.fact_sequence_last,
        )
        self._term = Term(max(self._term, answer.term))
        line.follow(answer.settings.policy.detection, answer.settings.revision)
        return answer

    async def _ask_for_guardian(self, line: HostLine, elsewhere: Term) -> None:
        assert self._control is not None
        try:
            answer = await self._control.hosts.guardian_hello(
                line.host_id, term_elsewhere=elsewhere
            )
        except Unavailable:
            # As with its certificate. A term that is not on record can't be told to anybody.
            if line.detection is None or (elsewhere and elsewhere >= self._term):
                raise
            return
        self._term = Term(max(self._term, answer.term))
        line.follow(answer.detection, answer.revision)

    def _take_over(
        self,
        line: HostLine,
        connection: ServerConnection,
        hello: Hello,
        answer: HelloAnswer | None,
    ) -> None:
        older = line.session(hello.role)
        if older is not None:
            older.close("wire.closed.replaced")
        line.boot = hello.boot
        line.told.add(hello.role)
        detection = line.detection or DetectionPolicy()
        if answer is None:
            line.guardian = connection
        else:
            line.agent = connection
        connection.wire.welcome(
            Welcome(
                version_major=VERSION_MAJOR,
                version_minor=VERSION_MINOR,
                installation_id=self._installation_id,
                server_instance=self.instance,
                term=self._term,
                fact_sequence_acknowledged=answer.fact_sequence_acknowledged if answer else 0,
                beat_interval_ms=detection.beat_interval_ms,
                silence_ms=detection.session_silence_ms,
                server_wall_ms=self._clock.wall_ms(),
            ),
            self._clock.monotonic_ms(),
        )
        if answer is not None:
            self._send_what_waits(line, connection, answer)
        connection.flush()
        if self.watcher is not None:
            self.watcher.session(line.host_id, hello.role, hello.boot, up=True)
        _log.info("host connected", host_id=line.host_id, role=hello.role, peer=connection.peer)

    def _send_what_waits(
        self, line: HostLine, connection: ServerConnection, answer: HelloAnswer
    ) -> None:
        settings = _newer(line.pending_settings, answer.settings)
        orders = {(order.operation_id, order.step): order for order in answer.orders}
        orders.update(line.pending_orders or {})
        line.pending_orders = line.pending_settings = None
        line.settings_revision = settings.revision
        connection.wire.send_settings(settings)
        for order in orders.values():
            connection.wire.send_order(order)

    def _refuse(self, connection: ServerConnection, error: VirthaError) -> None:
        connection.wire.refuse(error.code, str(error), error.field)
        connection.flush()

    def on_ended(self, connection: ServerConnection, closed: Closed) -> None:
        self._ended[closed.code] += 1
        self.power.session_ended(connection.number)
        line = connection.owner
        if not isinstance(line, HostLine):
            self._log_seldom(connection, closed)
            return
        self._tell_ended(line, connection, closed)
        if line.agent is connection:
            line.agent = None
            line.agent_seen = connection.wire.heard_at
            if not self._closing:
                self._spawn(self._tell_agent_lost(line.host_id), f"agent lost {line.host_id}")
        elif line.guardian is connection:
            line.guardian = None
        for role, newest in tuple(line.newest.items()):
            if newest is connection:
                del line.newest[role]
        _log.info(
            "session ended",
            host_id=line.host_id,
            code=closed.code,
            detail=closed.message,
            by_peer=closed.by_peer,
        )

    def _tell_ended(self, line: HostLine, connection: ServerConnection, closed: Closed) -> None:
        """Not of one that a newer session has replaced, nor that this server ends with itself."""
        hello = connection.wire.hello
        if self.watcher is None or self._closing or hello is None:
            return
        if line.session(hello.role) is connection:
            broken = closed.code == "wire.closed.lost"
            self.watcher.session(line.host_id, hello.role, hello.boot, up=False, broken=broken)

    async def _tell_agent_lost(self, host_id: HostId) -> None:
        assert self._control is not None
        try:
            async with self._slots:
                await self._control.hosts.agent_lost(host_id)
        except VirthaError as error:
            # Only when it was last seen; the presence loop judges by what this gateway has in memory.
            _log.warning("the end of a session was not noted", host_id=host_id, error=str(error))

    def _log_seldom(self, connection: ServerConnection, closed: Closed) -> None:
        """Anybody can make connections that fail; once a minute per address and code is enough."""
        now = self._clock.monotonic_ms()
        key = (connection.peer.rpartition(":")[0], closed.code)
        last = self._told.get(key)
        if last is not None and now - last < LOG_REPEAT_MS:
            return
        if len(self._told) >= LOG_KEYS_MAX:
            self._told.clear()
        self._told[key] = now
        _log.warning(
            "connection refused", peer=connection.peer, code=closed.code, detail=closed.message
        )

    # ServerLinkEvents: facts

    def on_facts(self, connection: ServerConnection, facts: Facts) -> None:
        line = connection.owner
        assert isinstance(line, HostLine)
        self._fact_queue.take(line, connection, facts)

    async def _on_recorded(
        self, line: HostLine, connection: ServerConnection, batch: list[Fact], sequence: int
    ) -> None:
        if self.watcher is None:
            connection.wire.acknowledge(sequence)
            connection.flush()
        else:
            await self.watcher.facts(line.host_id, connection.boot, batch, sequence)


def _newer(one: HostSettings | None, other: HostSettings) -> HostSettings:
    return one if one is not None and one.revision > other.revision else other
