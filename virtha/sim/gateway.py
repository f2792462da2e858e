"""The server's process: sessions of agents and guardians, beats, facts in, orders out.

As ``virtha.server.gateway`` and ``virtha.server.watch``, without their tasks: a hello is answered and
facts are committed at the moment at which they come in. All of it is lost with the process.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from virtha.model.facts import Fact
from virtha.model.host import HostState
from virtha.model.ids import BootId, HostId, Incarnation, VmId
from virtha.model.orders import Grant, Order, OrderBody, StartVm
from virtha.model.time import Millis
from virtha.sim.kernel import Actor, Kernel
from virtha.sim.line import INSTALLATION, SERVER, Line
from virtha.sim.network import End, Network
from virtha.sim.pending_orders import PendingOrder
from virtha.sim.server import SimServer
from virtha.wire.hellos import PresentBoot, followed_elsewhere
from virtha.wire.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Beat,
    Facts,
    Hello,
    Message,
    Pace,
    PeerRole,
    Welcome,
)
from virtha.wire.server_session import ServerSession
from virtha.wire.session import Closed

if TYPE_CHECKING:
    from virtha.sim.failover import Failover

TICK_MS = 500
BEAT_INTERVAL_MS = 1_000
SILENCE_MS = 5_000
AGENT_GRACE_MS = 2_000
RECONNECT_MS = 10_000
GRANT_MS = 15_000
"""The setting ``grant.duration``."""


class _Peer:
    """One connection of a host."""

    def __init__(self, session: ServerSession, host_line: "_HostLine") -> None:
        self.session = session
        self.host_line = host_line
        self.line: Line
        self.number = 0
        """Counted up as they are accepted."""
        self.role: PeerRole | None = None


class _HostLine:
    """What is kept of one host, in memory only."""

    def __init__(self) -> None:
        self.sessions: dict[PeerRole, _Peer] = {}
        self.beat: Beat | None = None
        self.beat_at = 0
        self.agent_seen: int | None = None
        self.settings_revision = 0
        self.boot: BootId | None = None
        self.present = PresentBoot()
        self.first_hello: tuple[int, BootId, int] | None = None
        """(timeline, boot, the last fact written by then): since when its inventories count (M2)."""
        self.resent: BootId | None = None
        self.told: set[PeerRole] = set()
        """Processes of it that this server told its term."""

    @property
    def agent(self) -> _Peer | None:
        return self.sessions.get(PeerRole.AGENT)


class SimGateway:
    def __init__(self, kernel: Kernel, network: Network, server: SimServer, *, number: int) -> None:
        """``number``: of this start of the server."""
        self.kernel = Actor(kernel)
        self._kernel = self.kernel
        self._time = kernel
        """Only read: it shows the same to all."""
        self._now: Callable[[], Millis] = partial(getattr, kernel, "now")
        self._network = network
        self._server = server
        self.instance = f"instance-{number}"
        self._lines: dict[str, _HostLine] = {}
        self._peers: dict[_Peer, None] = {}
        self._opened_last = 0
        self._began_ms = kernel.now
        self.running = False
        self.failover: Failover | None = None
        """The engine's side, where this world has one."""
        self.on_beat: Callable[[str, Beat], None] = lambda _host, _beat: None
        self.on_later_term: Callable[[], None] = lambda: None
        """This server's term is over, for a host followed a later one, which its records did not know."""

    # The process

    def start(self) -> None:
        """Each start is a term of its own (M1)."""
        self.running = True
        self._server.term += 1  # type: ignore[assignment]  # adding to a NewType gives its base
        for name in self._network.endpoints:
            if name != SERVER:
                self._lines[name] = _HostLine()
        self._network.attach(SERVER).accept = lambda end: self.kernel.deliver(
            lambda: self._accept(end)
        )
        self._kernel.after(TICK_MS, self._tick)

    def kill(self) -> None:
        if self.running:
            self._network.attach(SERVER).accept = None
        self.running = False
        for peer in self._peers:
            peer.line.kill()
        self._peers.clear()
        self.kernel.die()
        if self.failover is not None:
            self.failover.leader.die()

    def lose_address(self) -> None:
        """Another server answers at its address now; the process lives on and is not told."""
        self.running = False
        for peer in self._peers:
            peer.line.kill()
        self._peers.clear()

    def line_of(self, host: str) -> _HostLine:
        line = self._lines.get(host)
        if line is None:
            line = self._lines[host] = _HostLine()
        return line

    # Sessions

    def _accept(self, end: End) -> None:
        if not self.running:
            end.close()  # its address went to another while it slept
            return
        session = ServerSession(HostId(end.peer_name), now=self._now())
        peer = _Peer(session, self.line_of(end.peer_name))
        self._peers[peer] = None
        self._opened_last += 1
        peer.number = self._opened_last
        peer.line = Line(
            self._kernel,
            self._now,
            end,
            session,
            on_message=partial(self._message, peer),
            on_ended=partial(self._ended, peer),
        )
        peer.line.begin()

    def _message(self, peer: _Peer, message: Message, now: Millis) -> None:
        hello = peer.session.hello
        assert hello is not None
        line = peer.host_line
        match message:
            case Beat():
                if line.sessions.get(PeerRole.GUARDIAN) is peer:
                    line.beat, line.beat_at = message, now
                    self.on_beat(hello.host_id, message)
                    if self.failover is not None:
                        self.failover.beat(hello.host_id, message)
            case Hello():
                self._hello(peer, line, message)
            case Facts(facts=facts):
                if line.agent is peer:
                    made_after = partial(self._made_after, line)
                    host = str(hello.host_id)
                    last = self._server.record_facts(host, facts, made_after)
                    if self.failover is not None:
                        self.failover.took(host, last)
                    else:
                        self._server.acknowledged[host] = last
                        self.acknowledge(host)
                    self.carry_out()
            case _:
                raise AssertionError(f"the session passed on {message!r}")

    def _hello(self, peer: _Peer, line: _HostLine, hello: Hello) -> None:
        server, host = self._server, str(hello.host_id)
        if not line.present.takes(hello.boot, opened=peer.number, opened_last=self._opened_last):
            peer.session.refuse("wire.refused.overtaken", "another boot was heard since")
            return
        for other in list(line.sessions.values()):
            if other.session.hello is not None and other.session.hello.boot != hello.boot:
                other.line.close("wire.closed.replaced")
        acknowledged = 0
        elsewhere = followed_elsewhere(hello, told=line.told, term=server.term)
        if server.followed(elsewhere) and self.failover is not None:
            self.on_later_term()
            return
        line.told.add(hello.role)
        if hello.role is PeerRole.AGENT:
            last = hello.fact_sequence_last
            acknowledged = server.hello(host, boot=hello.boot, last=last)
            if line.first_hello is None or line.first_hello[:2] != (server.timeline, hello.boot):
                line.first_hello = (server.timeline, hello.boot, max(last, acknowledged))
        older = line.sessions.get(hello.role)
        if older is not None:
            older.line.close("wire.closed.replaced")
        peer.role = hello.role
        line.sessions[hello.role] = peer
        line.boot = hello.boot
        if self.failover is not None:
            self.failover.session(host, hello.role, hello.boot, up=True)
        peer.session.welcome(
            Welcome(
                version_major=VERSION_MAJOR,
                version_minor=VERSION_MINOR,
                installation_id=INSTALLATION,
                server_instance=self.instance,
                term=server.term,
                fact_sequence_acknowledged=acknowledged,
                beat_interval_ms=self._beat_interval_ms,
                silence_ms=self._silence_ms,
            ),
            self._now(),
        )
        if hello.role is PeerRole.AGENT:
            settings = server.settings_for(host)
            line.settings_revision = settings.revision
            peer.session.send_settings(settings)
            for order in self._renewed(host):
                peer.session.send_order(order)
        self.carry_out()

    def _ended(self, peer: _Peer, closed: Closed) -> None:
        self._peers.pop(peer, None)
        hello = peer.session.hello
        if hello is None or peer.role is None:
            return
        line = peer.host_line
        if line.sessions.get(peer.role) is peer:
            del line.sessions[peer.role]
            if peer.role is PeerRole.AGENT:
                line.agent_seen = peer.session.heard_at
            if self.failover is not None:
                broken = closed.code == "wire.closed.lost"
                host = str(hello.host_id)
                self.failover.session(host, peer.role, hello.boot, up=False, broken=broken)

    def _made_after(self, line: _HostLine, fact: Fact) -> bool:
        """As ``virtha.control.hellos``: what lay in the outbox may be older than the restore."""
        if line.first_hello is None:
            return False
        timeline, boot, after = line.first_hello
        return timeline == self._server.timeline and boot == fact.boot and fact.sequence > after

    # What follows a commit

    def carry_out(self) -> None:
        """Settings to all hosts with a session, and the pace of their beats, if what they are told has changed."""
        if not self._server.settings_due or not self.running:
            return
        self._server.settings_due = False
        if self.failover is not None:
            self.failover.settings_changed()
        pace = Pace(beat_interval_ms=self._beat_interval_ms, silence_ms=self._silence_ms)
        for host, line in self._lines.items():
            for one in line.sessions.values():
                one.session.pace(pace)
                one.line.flush()
            peer = line.agent
            if peer is None:
                continue
            settings = self._server.settings_for(host)
            if settings.revision >= line.settings_revision:
                line.settings_revision = settings.revision
                peer.session.send_settings(settings)
                peer.line.flush()

    def acknowledge(self, host: str) -> None:
        """What is durable of its facts, it may forget."""
        peer = self.line_of(host).agent
        if self.running and peer is not None:
            peer.session.acknowledge(self._server.acknowledged.get(host, 0))
            peer.line.flush()

    def deliver(self, order: PendingOrder) -> None:
        """No session: it goes out after the next hello."""
        self.carry_out()
        line = self.line_of(order.host)
        if self.running and line.agent is not None:
            line.agent.session.send_order(self._server.addressed(order, order.body))
            line.agent.line.flush()

    def agent_connected(self, host: str) -> bool:
        return self.running and self.line_of(host).agent is not None

    def agent_boot(self, host: str) -> BootId | None:
        """Of the agent whose session stands."""
        agent = self.line_of(host).agent
        hello = agent.session.hello if agent is not None else None
        return hello.boot if hello is not None else None

    def guardian_connected(self, host: str) -> bool:
        return self.running and PeerRole.GUARDIAN in self.line_of(host).sessions

    def connected(self, host: str) -> bool:
        """Some process of it has a session."""
        return self.running and bool(self.line_of(host).sessions)

    @property
    def _grant_ms(self) -> int:
        policy = self._server.policy.recovery
        return GRANT_MS if self.failover is None else policy.start_deadline_ms

    @property
    def _beat_interval_ms(self) -> int:
        policy = self._server.policy.detection
        return BEAT_INTERVAL_MS if self.failover is None else policy.beat_interval_ms

    @property
    def _silence_ms(self) -> int:
        policy = self._server.policy.detection
        return SILENCE_MS if self.failover is None else policy.session_silence_ms

    # Grants: each quotes a beat (G2)

    def make_grant(self, host: str, vm_id: VmId, incarnation: Incarnation) -> Grant | None:
        """None: there is no fresh beat of the host's present boot to quote."""
        line = self.line_of(host)
        beat = line.beat
        if beat is None or beat.boot != self._server.boots.get(host):
            return None
        if self._kernel.now - line.beat_at >= SILENCE_MS:
            return None
        return Grant(
            vm_id=vm_id,
            incarnation=incarnation,
            boot=beat.boot,
            beat_monotonic_ms=beat.monotonic_ms,
            duration_ms=self._grant_ms,
        )

    def _renewed(self, host: str) -> list[Order]:
        """Unanswered orders for the present boot and term. A start whose grant can't be renewed waits. Under an
        engine a start is for the boot that it was made for: that boot's end is a proof (P4), by which the engine
        starts the VM elsewhere, and it may be writing so now."""
        orders = []
        for order in self._server.unanswered(host):
            body: OrderBody = order.body
            if not self._server.still_stands(order):
                continue
            if isinstance(body, StartVm):
                grant = self.make_grant(host, body.vm.id, body.grant.incarnation)
                if grant is None:
                    continue
                if self.failover is not None and grant.boot != body.grant.boot:
                    continue
                body = replace(body, grant=grant)
            orders.append(self._server.addressed(order, body))
        return orders

    def _send_what_waited(self, host: str, line: _HostLine) -> None:
        """Orders that quote a beat can't go out with the agent's hello when the guardian has not come
        yet: they go when the first beat of that boot is here."""
        beat, peer = line.beat, line.agent
        fresh = beat is not None and self._time.now - line.beat_at < SILENCE_MS
        if beat is None or peer is None or not fresh or beat.boot != line.boot:
            line.resent = None
        elif line.resent != beat.boot:
            line.resent = beat.boot
            for order in self._renewed(host):
                peer.session.send_order(order)
            peer.line.flush()

    # Presence

    def _tick(self) -> None:
        if not self.running:
            return
        now, states = self._time.now, self._server.states
        for host, line in self._lines.items():
            before, agent, beat = states.get(host), line.sessions.get(PeerRole.AGENT), line.beat
            after = HostState.UP if agent is not None else self._judge(before, line)
            if after is not None and after is not before:
                self._server.judged(host, after)
            nothing_waits = (
                agent is not None
                and beat is not None
                and beat.boot == line.boot == line.resent
                and now - line.beat_at < SILENCE_MS
            )
            if not nothing_waits:
                self._send_what_waited(host, line)
        if self._server.pending:
            self._server.expire()
            self.carry_out()
        self._kernel.after(TICK_MS, self._tick)

    def _judge(self, before: HostState | None, line: _HostLine) -> HostState | None:
        """Of one whose agent has no session. As ``virtha.server.presence``: silence proves nothing, `unreachable` starts
        nothing here."""
        beat_age_ms = self._age_ms(line.beat_at if line.beat is not None else None)
        agent_age_ms = self._age_ms(line.agent_seen)
        if line.beat is not None and beat_age_ms < SILENCE_MS:
            return HostState.AGENT_DOWN if agent_age_ms >= AGENT_GRACE_MS else before
        return before if min(beat_age_ms, agent_age_ms) < SILENCE_MS else HostState.UNREACHABLE

    def _age_ms(self, last: int | None) -> int:
        now = self._kernel.now
        return now - self._began_ms - RECONNECT_MS if last is None else now - last
