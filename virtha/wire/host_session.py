"""A host's end of a session (see ``session``): its hello, its beats, and its facts out of the outbox."""

from collections.abc import Sequence
from typing import Protocol

from virtha.model.errors import Refused
from virtha.model.facts import Fact
from virtha.model.ids import InstallationId
from virtha.model.time import Millis
from virtha.wire.codec import encode_facts, encode_message, version_refusal
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseAnswer,
    LeaseOrder,
    ReadSlots,
    StopReading,
    WaiveLease,
)
from virtha.wire.messages import (
    FACTS_PER_FRAME_MAX,
    VERSION_MAJOR,
    Beat,
    BeatAck,
    FactsAck,
    GiveOrder,
    Hello,
    Message,
    OpenChannel,
    Pace,
    PeerRole,
    Settings,
    Welcome,
)
from virtha.wire.power_messages import (
    AttemptPower,
    EndPowerAttempt,
    PowerAttempted,
    PowerWord,
)
from virtha.wire.session import (
    ENDINGS,
    LIFE,
    PACE_MS_MAX,
    SEND_BUFFER_BYTES_HIGH,
    SEQUENCE_MAX,
    Session,
    SessionState,
)
from virtha.wire.window import FactWindow
from virtha.wire.witness_messages import DisksLooked, LookAtDisks, ProbeHost, WitnessAnswer


class OutboxView(Protocol):
    """The host's durable facts, as the session reads them."""

    @property
    def last_sequence(self) -> int:
        """The last fact ever written; 0: none."""
        ...

    def facts_after(self, sequence: int, limit: int) -> Sequence[Fact]:
        """Facts with a higher sequence, consecutive, oldest first, at most ``limit``.

        The first may be further on than ``sequence + 1`` when those between are lost: the server is
        told of the gap.
        """
        ...


class HostSession(Session):
    """The host's end. Sends its hello at once; after the welcome facts flow from the outbox.

    Messages for the caller: Welcome, Pace (a guardian's), Settings, GiveOrder, OpenChannel, FactsAck, BeatAck, LeaseOrder,
    WitnessOrder, PowerWord.
    """

    _PING_AFTER = (1, 3)
    __slots__ = ("_hello", "_installation_id", "_live_instance", "_outbox", "_window")

    def __init__(
        self,
        hello: Hello,
        *,
        installation_id: InstallationId,
        now: Millis,
        outbox: OutboxView | None = None,
        live_instance: str | None = None,
    ) -> None:
        """``live_instance``: the only server instance that may answer; None: any (M1)."""
        super().__init__(now)
        self.role = hello.role
        self._hello = hello
        self._installation_id = installation_id
        self._live_instance = live_instance
        self._outbox = outbox
        self._window = FactWindow(0)
        self._put(encode_message(hello))

    def send_beat(self, beat: Beat) -> bool:
        """False: not connected, or the line is full; a beat is never kept, the next one says more."""
        if self.state is not SessionState.ESTABLISHED or len(self.unsent) > SEND_BUFFER_BYTES_HIGH:
            return False
        assert self.role is PeerRole.GUARDIAN
        self._put(encode_message(beat))
        return True

    def send_lease(self, answer: LeaseAnswer) -> bool:
        """False: not connected, or the line is full. The next round says more, and ``LeaseKept`` is asked for again."""
        if self.state is not SessionState.ESTABLISHED or len(self.unsent) > SEND_BUFFER_BYTES_HIGH:
            return False
        assert self.role is PeerRole.GUARDIAN
        self._put(encode_message(answer))
        return True

    def send_witness(self, answer: WitnessAnswer) -> bool:
        """False: not connected, or the line is full. The server asks others in its next round."""
        if self.state is not SessionState.ESTABLISHED or len(self.unsent) > SEND_BUFFER_BYTES_HIGH:
            return False
        assert self.role is PeerRole.AGENT or not isinstance(answer, DisksLooked)
        self._put(encode_message(answer))
        return True

    def send_power(self, answer: PowerAttempted) -> bool:
        """False: not connected, or the line is full. How the attempt ended is not known then."""
        if self.state is not SessionState.ESTABLISHED or len(self.unsent) > SEND_BUFFER_BYTES_HIGH:
            return False
        assert self.role is PeerRole.AGENT
        self._put(encode_message(answer))
        return True

    def data_to_send(self) -> bytes:
        outbox = self._outbox
        if outbox is not None and self.state is SessionState.ESTABLISHED:
            self.holds_back = outbox.last_sequence > self._window.last
            if self.holds_back:
                self._send_facts(outbox)
                self.holds_back = outbox.last_sequence > self._window.last
        return super().data_to_send() if self.unsent else b""

    def _send_facts(self, outbox: OutboxView) -> None:
        window = self._window
        while (
            outbox.last_sequence > window.last
            and len(self.unsent) < SEND_BUFFER_BYTES_HIGH
            and (free := window.free) > 0
        ):
            limit = min(FACTS_PER_FRAME_MAX, free)
            facts = outbox.facts_after(window.last, limit)
            if not facts:
                return
            gap = facts[0].sequence != window.last + 1
            assert not gap or facts[0].sequence > window.last, "the outbox went backwards"
            frame, count = encode_facts(tuple(facts[:limit]), gap=gap)
            window.add(facts[count - 1].sequence, count=count, size=len(frame))
            self._put(frame)

    def _on_welcome(self, welcome: Welcome, size: int) -> Message | None:
        self._check_welcome(welcome)
        self._window = FactWindow(welcome.fact_sequence_acknowledged)
        self._establish(welcome.silence_ms)
        return welcome

    def _check_welcome(self, welcome: Welcome) -> None:
        if welcome.version_major != VERSION_MAJOR:
            raise version_refusal(welcome.version_major)
        if welcome.installation_id != self._installation_id:
            raise Refused(
                f"the server is of installation {welcome.installation_id}, "
                f"this host of {self._installation_id}",
                code="wire.refused.identity",
                field="installation_id",
            )
        if welcome.term < self._hello.term_seen:
            raise Refused(
                f"the server's term {welcome.term} is older than {self._hello.term_seen}, which this "
                "host has seen: its database is an old copy",
                code="wire.refused.term",
                field="term",
            )
        if self._live_instance not in (None, welcome.server_instance):
            raise Refused(
                f"server instance {self._live_instance} is live for this host, "
                f"so {welcome.server_instance} is a second one",
                code="wire.refused.instance",
                field="server_instance",
            )
        _check_pace(welcome)
        if not 0 <= welcome.fact_sequence_acknowledged <= SEQUENCE_MAX:
            raise Refused("the welcome makes no sense", code="wire.refused.malformed")

    def _on_pace(self, pace: Pace, size: int) -> Message | None:
        _check_pace(pace)
        self._establish(pace.silence_ms)
        return pace if self.role is PeerRole.GUARDIAN else None

    def _on_facts_ack(self, ack: FactsAck, size: int) -> Message | None:
        if self._outbox is None:
            raise self._wrong_role(ack)
        if ack.sequence > self._window.last:
            raise Refused(
                f"fact {ack.sequence} was acknowledged, {self._window.last} is the last one sent",
                code="wire.refused.sequence",
                field="sequence",
            )
        if ack.sequence <= self._window.acknowledged:
            return None  # said before
        self._window.acknowledge(ack.sequence)
        return ack

    def _for_agent(
        self, message: Settings | GiveOrder | OpenChannel | LookAtDisks | PowerWord, size: int
    ) -> Message | None:
        if self.role is not PeerRole.AGENT:
            raise self._wrong_role(message)
        return message

    def _for_guardian(self, message: BeatAck | LeaseOrder, size: int) -> Message | None:
        if self.role is not PeerRole.GUARDIAN:
            raise self._wrong_role(message)
        return message

    def _for_both(self, message: ProbeHost, size: int) -> Message | None:
        return message

    _TABLE = {
        SessionState.CONNECTING: {Welcome: _on_welcome, **ENDINGS},
        SessionState.ESTABLISHED: {
            BeatAck: _for_guardian,
            ReadSlots: _for_guardian,
            StopReading: _for_guardian,
            WaiveLease: _for_guardian,
            KeepLease: _for_guardian,
            FactsAck: _on_facts_ack,
            Settings: _for_agent,
            GiveOrder: _for_agent,
            OpenChannel: _for_agent,
            LookAtDisks: _for_agent,
            AttemptPower: _for_agent,
            EndPowerAttempt: _for_agent,
            ProbeHost: _for_both,
            Pace: _on_pace,
            **LIFE,
            **ENDINGS,
        },
    }


def _check_pace(told: Welcome | Pace) -> None:
    if not 0 < told.beat_interval_ms <= told.silence_ms <= PACE_MS_MAX:
        tag = told.__struct_config__.tag
        raise Refused(f"the times of the {tag} make no sense", code="wire.refused.malformed")
