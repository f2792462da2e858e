"""What the gateway keeps of one host."""

import asyncio
from collections import deque

from virtha.drivers.link_server import ServerConnection
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, OperationId
from virtha.model.orders import HostSettings, Order
from virtha.model.policy import DetectionPolicy
from virtha.model.power_settings import PowerDriver
from virtha.model.time import Millis
from virtha.ports.hosts import LastBeat
from virtha.server.presence import Sighting
from virtha.wire.hellos import PresentBoot
from virtha.wire.lease_messages import LEASE_FEATURE, LeaseOrder
from virtha.wire.messages import Beat, Pace, PeerRole
from virtha.wire.power_messages import PowerWord, power_feature
from virtha.wire.witness_messages import LOOK_FEATURE, PROBE_FEATURE, LookAtDisks, WitnessOrder

COMMIT_FACTS_MAX = 1_024
"""Of one host, in one transaction."""


class HostLine:
    """Sessions, newest beat, and what waits in either direction."""

    __slots__ = (
        "agent",
        "agent_hellos",
        "agent_seen",
        "beat",
        "beat_at",
        "boot",
        "detection",
        "detection_revision",
        "guardian",
        "host_id",
        "newest",
        "pending_orders",
        "pending_settings",
        "present",
        "queue",
        "recorder",
        "serial_allowed",
        "settings_revision",
        "told",
    )

    def __init__(self, host_id: HostId) -> None:
        self.host_id = host_id
        self.agent: ServerConnection | None = None
        self.agent_hellos = 0
        """Hellos of agents that are being answered."""
        self.guardian: ServerConnection | None = None
        self.newest: dict[PeerRole, ServerConnection] = {}
        """Whose accepted hello came last, answered or not: the newest session wins."""
        self.agent_seen: Millis | None = None
        self.beat: Beat | None = None
        self.beat_at = Millis(0)
        self.boot: BootId | None = None
        """Of the newest session that was welcomed."""
        self.present = PresentBoot()
        """Of the newest hello whose certificate was accepted, answered or not."""
        self.told: set[PeerRole] = set()
        """Processes of it that this server has welcomed."""
        self.detection: DetectionPolicy | None = None
        """Of its cluster's policy; None: no process of it came yet."""
        self.detection_revision = 0
        """Of the settings that it was read from."""
        self.serial_allowed: str | None = None
        self.queue: deque[tuple[ServerConnection, tuple[Fact, ...]]] = deque()
        self.recorder: asyncio.Task[None] | None = None
        self.pending_orders: dict[tuple[OperationId, int], Order] | None = None
        """Orders given while a hello is being answered; None: no hello is."""
        self.pending_settings: HostSettings | None = None
        self.settings_revision = 0

    def follow(self, detection: DetectionPolicy, revision: int) -> None:
        """The policy as of that revision: sessions that stand are told of another pace, those to come by their welcome."""
        if revision < self.detection_revision:
            return
        self.detection, self.detection_revision = detection, revision
        pace = Pace(
            beat_interval_ms=detection.beat_interval_ms, silence_ms=detection.session_silence_ms
        )
        for session in (self.agent, self.guardian):
            if session is not None:
                session.wire.pace(pace)
                session.flush()

    def session(self, role: PeerRole) -> ServerConnection | None:
        return self.agent if role is PeerRole.AGENT else self.guardian

    def sessions(self) -> tuple[tuple[PeerRole, BootId], ...]:
        """Those that stand at this moment."""
        found = []
        for role in PeerRole:
            session = self.session(role)
            if session is not None and session.wire.hello is not None:
                found.append((role, session.wire.hello.boot))
        return tuple(found)

    def ask_witness(self, order: WitnessOrder) -> bool:
        """Its guardian where that can answer, else its agent. False: neither."""
        looks = isinstance(order, LookAtDisks)
        feature = LOOK_FEATURE if looks else PROBE_FEATURE
        for session in (self.agent,) if looks else (self.guardian, self.agent):
            hello = session.wire.hello if session is not None else None
            if session is not None and hello is not None and feature in hello.features:
                session.wire.send_witness(order)
                session.flush()
                return True
        return False

    def last_beat(self) -> LastBeat | None:
        if self.beat is None:
            return None
        return LastBeat(
            boot=self.beat.boot,
            sequence=self.beat.sequence,
            monotonic_ms=self.beat.monotonic_ms,
            received_at=self.beat_at,
            agent_alive=self.beat.agent_alive,
        )

    def sighting(self, now: Millis) -> Sighting:
        connected = self.agent is not None
        return Sighting(
            agent_connected=connected,
            agent_seen=now if connected else self.agent_seen,
            beat_received=self.beat_at if self.beat is not None else None,
        )

    def power_beat(self, driver: PowerDriver, now: Millis) -> LastBeat | None:
        """What an attempt at another host's power device would quote; None: its agent can't make one, or the host may be
        silent itself."""
        hello = self.agent.wire.hello if self.agent is not None else None
        beat = self.last_beat()
        if hello is None or power_feature(driver) not in hello.features or beat is None:
            return None
        silent_ms = (self.detection or DetectionPolicy()).suspect_after_ms
        fresh = self.guardian is not None and now - beat.received_at <= silent_ms
        return beat if fresh and beat.boot == hello.boot else None

    def tell_power(self, word: PowerWord) -> int | None:
        """The number of its agent's session; None: there is none."""
        agent = self.agent
        if agent is None:
            return None
        agent.wire.send_power(word)
        agent.flush()
        return agent.number

    def lease_boot(self) -> BootId | None:
        """Of its guardian's session; None: there is none, or it holds no leases."""
        hello = self.guardian.wire.hello if self.guardian is not None else None
        return hello.boot if hello is not None and LEASE_FEATURE in hello.features else None

    def tell_lease(self, order: LeaseOrder) -> bool:
        """False: no guardian that knows of leases has a session now."""
        if self.guardian is None or self.lease_boot() is None:
            return False
        self.guardian.wire.send_lease(order)
        self.guardian.flush()
        return self.guardian is not None

    def next_batch(self) -> tuple[ServerConnection, list[Fact], int]:
        """(session, its facts for one commit, how many frames they came in)."""
        connection = self.queue[0][0]
        batch: list[Fact] = []
        frames = 0
        for of, facts in self.queue:
            if of is not connection or (frames and len(batch) + len(facts) > COMMIT_FACTS_MAX):
                break
            batch.extend(facts)
            frames += 1
        return connection, batch, frames

    def drop(self, frames: int) -> None:
        for _ in range(frames):
            self.queue.popleft()

    def drop_of(self, connection: ServerConnection) -> None:
        while self.queue and self.queue[0][0] is connection:
            self.queue.popleft()

    @property
    def facts_waiting(self) -> int:
        return sum(len(facts) for _, facts in self.queue)
