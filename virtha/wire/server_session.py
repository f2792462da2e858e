"""The server's end of a session (see ``session``): who says hello, and which beats and facts are taken."""

from virtha.model.errors import Refused
from virtha.model.facts import Fact
from virtha.model.ids import HostId
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.wire.codec import encode_beat_ack, encode_message, version_refusal
from virtha.wire.lease_messages import LeaseAnswer, LeaseKept, LeaseOrder, SlotsRead
from virtha.wire.messages import (
    FACTS_PER_FRAME_MAX,
    FACTS_UNACKNOWLEDGED_MAX,
    PACE_FEATURE,
    VERSION_MAJOR,
    Beat,
    Facts,
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
from virtha.wire.power_messages import PowerAttempted, PowerWord
from virtha.wire.session import ENDINGS, LIFE, SEQUENCE_MAX, Session, SessionState
from virtha.wire.window import FactWindow
from virtha.wire.witness_messages import DisksLooked, HostProbed, WitnessOrder


class ServerSession(Session):
    """The server's end. Messages for the caller: Hello (answer it), Beat, Facts (only new ones), LeaseAnswer,
    WitnessAnswer, PowerAttempted."""

    _PING_AFTER = (2, 5)
    __slots__ = ("_beat_last", "_host_id", "_pace", "_window", "hello")

    def __init__(self, host_id: HostId, *, now: Millis) -> None:
        """``host_id``: as the peer's certificate says."""
        super().__init__(now)
        self._host_id = host_id
        self._beat_last = -1
        self._pace: Pace | None = None
        """The last that this host was told, in its welcome or since."""
        self._window = FactWindow(0)
        self.hello: Hello | None = None

    def welcome(self, welcome: Welcome, now: Millis) -> None:
        """Answer the hello; the session is established."""
        if self.closed is not None:
            return
        assert self.state is SessionState.GREETED and self.hello is not None
        self._window = FactWindow(welcome.fact_sequence_acknowledged)
        self._heard_at = self._pinged_at = now
        self._put(encode_message(welcome))
        self._establish(welcome.silence_ms)
        self._pace = Pace(beat_interval_ms=welcome.beat_interval_ms, silence_ms=welcome.silence_ms)

    def pace(self, pace: Pace) -> None:
        """From now on, where that is another than was told. A host that was to ask for signs more seldom than the new silence
        lasts is late at once: the timer takes that for a sleep of our own, so its silence begins anew."""
        if self.closed is not None or self._pace in (None, pace):
            return
        if self.hello is None or PACE_FEATURE not in self.hello.features:
            return
        self._pace = pace
        self._put(encode_message(pace))
        self._establish(pace.silence_ms)

    def refuse(self, code: str, message: str, field: str | None = None) -> None:
        self._refuse(Refused(message, code=code, field=field))

    def send_settings(self, settings: HostSettings) -> None:
        self._put(encode_message(Settings(settings=settings)))

    def send_order(self, order: Order) -> None:
        self._put(encode_message(GiveOrder(order=order)))

    def send_open_channel(self, request: OpenChannel) -> None:
        self._put(encode_message(request))

    def send_lease(self, order: LeaseOrder) -> None:
        """Only to a guardian whose hello has ``LEASE_FEATURE``."""
        self._put(encode_message(order))

    def send_witness(self, order: WitnessOrder) -> None:
        """Only to a process whose hello has the feature of that order."""
        self._put(encode_message(order))

    def send_power(self, word: PowerWord) -> None:
        """Only to an agent whose hello has the feature of its driver."""
        self._put(encode_message(word))

    def acknowledge(self, sequence: int) -> None:
        """All facts up to ``sequence`` are committed."""
        # The store may be ahead of this session: it then holds facts that an earlier session sent.
        sequence = min(sequence, self._window.last)
        if self.closed is None and sequence > self._window.acknowledged:
            self._window.acknowledge(sequence)
            self._put(encode_message(FactsAck(sequence=sequence)))

    def _on_hello(self, hello: Hello, size: int) -> Message | None:
        if hello.version_major != VERSION_MAJOR:
            raise version_refusal(hello.version_major)
        if hello.host_id != self._host_id:
            raise Refused(
                f"the hello is of host {hello.host_id}, the certificate of {self._host_id}",
                code="wire.refused.identity",
                field="host_id",
                fix="one identity directory per host; was it copied?",
            )
        numbers = (hello.fact_sequence_last, hello.term_seen, hello.settings_revision)
        if not all(0 <= number <= SEQUENCE_MAX for number in numbers) or not hello.boot:
            raise Refused("the hello makes no sense", code="wire.refused.malformed")
        self.hello = hello
        self.role = hello.role
        self.state = SessionState.GREETED
        return hello

    def _on_beat(self, beat: Beat, size: int) -> Message | None:
        assert self.hello is not None
        if beat.sequence <= self._beat_last or beat.boot != self.hello.boot:
            raise Refused(
                f"beat {beat.sequence} of boot {beat.boot[:64]} after {self._beat_last} "
                f"of {self.hello.boot[:64]}",
                code="wire.refused.sequence",
                field="sequence",
            )
        if self.role is not PeerRole.GUARDIAN:
            raise self._wrong_role(beat)
        self._beat_last = beat.sequence
        self._put(encode_beat_ack(beat.sequence))
        return beat

    def _on_lease(self, answer: LeaseAnswer, size: int) -> Message | None:
        assert self.hello is not None
        if self.role is not PeerRole.GUARDIAN:
            raise self._wrong_role(answer)
        if answer.boot != self.hello.boot:
            raise Refused(
                f"it speaks of boot {answer.boot[:64]} in a session of {self.hello.boot[:64]}",
                code="wire.refused.sequence",
                field="boot",
            )
        return answer

    def _on_probed(self, answer: HostProbed, size: int) -> Message | None:
        return answer

    def _on_looked(self, answer: DisksLooked, size: int) -> Message | None:
        if self.role is not PeerRole.AGENT:
            raise self._wrong_role(answer)
        return answer

    def _on_power(self, answer: PowerAttempted, size: int) -> Message | None:
        if self.role is not PeerRole.AGENT:
            raise self._wrong_role(answer)
        return answer

    def _on_facts(self, facts: Facts, size: int) -> Message | None:
        if self.role is not PeerRole.AGENT:
            raise self._wrong_role(facts)
        batch = facts.facts
        if not batch or len(batch) > FACTS_PER_FRAME_MAX:
            raise Refused(
                f"{len(batch)} facts in a frame",
                code="wire.refused.malformed",
                allowed=(f"1 to {FACTS_PER_FRAME_MAX}",),
            )
        self._check_sequences(batch, gap=facts.gap)
        window = self._window
        if batch[-1].sequence <= window.last:
            # Sent again after a break. What is committed is acknowledged again, or the host would
            # keep it for ever; what is still with the caller will be.
            if batch[-1].sequence <= window.acknowledged:
                self._put(encode_message(FactsAck(sequence=window.acknowledged)))
            return None
        known = max(0, window.last - batch[0].sequence + 1)
        if len(batch) - known > window.free:
            raise Refused(
                "more facts are under way than allowed",
                code="wire.refused.sequence",
                allowed=(f"{FACTS_UNACKNOWLEDGED_MAX} unacknowledged",),
            )
        window.add(batch[-1].sequence, count=len(batch) - known, size=size)
        return Facts(facts=batch[known:], gap=facts.gap) if known else facts

    def _check_sequences(self, batch: tuple[Fact, ...], *, gap: bool) -> None:
        first = batch[0].sequence
        expected = first if gap else min(first, self._window.last + 1)
        for fact in batch:
            if fact.sequence != expected or not 0 < expected <= SEQUENCE_MAX:
                raise Refused(
                    f"fact {fact.sequence} came where {expected} was due",
                    code="wire.refused.sequence",
                    field="sequence",
                    fix="the outbox has a gap; restart the agent, which repairs it",
                )
            if not (0 <= fact.monotonic_ms <= SEQUENCE_MAX and 0 <= fact.wall_ms <= SEQUENCE_MAX):
                raise Refused("a fact's time makes no sense", code="wire.refused.malformed")
            expected += 1

    _TABLE = {
        SessionState.CONNECTING: {Hello: _on_hello, **ENDINGS},
        SessionState.GREETED: ENDINGS,
        SessionState.ESTABLISHED: {
            Beat: _on_beat,
            Facts: _on_facts,
            SlotsRead: _on_lease,
            LeaseKept: _on_lease,
            HostProbed: _on_probed,
            DisksLooked: _on_looked,
            PowerAttempted: _on_power,
            **LIFE,
            **ENDINGS,
        },
    }
