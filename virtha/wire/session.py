"""One session between a host and a server, without I/O: bytes and time in, messages and bytes out.

The caller moves bytes and time; both ends have the same shape::

    for message in session.receive_data(data, now): ...
    transport.write(session.data_to_send())
    if session.closed: ...                       # what ended it; nothing is sent or taken any more
    session.next_timer() / session.handle_timer(now)

States: ``CONNECTING`` (host: hello is sent; server: waits for it), ``GREETED`` (server: hello is with
the caller, who answers by ``welcome`` or ``refuse``), ``ESTABLISHED``, ``CLOSED``. What may come in
which state is each class's ``_TABLE``; anything else ends the session. Events are the peer's messages
themselves, checked; pings, and facts that were known already, are dealt with here.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from virtha.model.errors import Refused, VirthaError
from virtha.model.facts import Fact
from virtha.model.ids import HostId, InstallationId
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.wire.codec import (
    HEADER,
    FrameReader,
    decode_payload,
    encode_beat_ack,
    encode_facts,
    encode_message,
    encode_ping,
    encode_pong,
    version_refusal,
)
from virtha.wire.messages import (
    FACTS_PER_FRAME_MAX,
    FACTS_UNACKNOWLEDGED_MAX,
    FRAME_BYTES_MAX,
    VERSION_MAJOR,
    Beat,
    BeatAck,
    Bye,
    Facts,
    FactsAck,
    GiveOrder,
    Hello,
    Message,
    PeerRole,
    Ping,
    Pong,
    Refuse,
    Settings,
    Welcome,
)
from virtha.wire.window import FactWindow

HELLO_DEADLINE_MS = 10_000
"""From the connection to the established session, for either side."""
PARTIAL_FRAME_DEADLINE_MS = 30_000
"""A frame's bytes may trickle (1 MiB over a slow line), but not for ever."""
SEND_BUFFER_BYTES_HIGH = 256 * 1024
"""Facts wait in the outbox, not in memory, while more than this waits to be sent."""
SEND_BUFFER_BYTES_MAX = 4 * FRAME_BYTES_MAX
"""A peer for which more than this waits is closed with `wire.closed.overload`."""
SEQUENCE_MAX = (1 << 62) - 1
"""Stores keep 63 bits."""
_TEXT_MAX = 500
_LENGTH = HEADER.unpack_from


class SessionState(StrEnum):
    CONNECTING = "connecting"
    GREETED = "greeted"
    ESTABLISHED = "established"
    CLOSED = "closed"


class Closed(Value, frozen=True, kw_only=True):
    """Why a session ended. ``by_peer``: the other side said so."""

    code: str
    message: str = ""
    by_peer: bool = False


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


Handler = Callable[[Any, Any, int], Message | None]
"""(session, message, its size in bytes) -> what the caller gets to see of it."""


class Session:
    """What both ends share: frames, dead-peer detection, bounds, closing."""

    __slots__ = (
        "_deadline_at",
        "_heard_at",
        "_nonce",
        "_partial_since",
        "_paused_since",
        "_ping_after_ms",
        "_pinged_at",
        "_reader",
        "_silence_ms",
        "closed",
        "holds_back",
        "role",
        "state",
        "unsent",
    )
    _TABLE: ClassVar[Mapping[SessionState, Mapping[type[Message], Handler]]]
    _PING_AFTER: ClassVar[tuple[int, int]]
    """Which part of the silence that ends a session. The host asks first, and its question tells the server that it lives: if both
    asked at the same moment, every idle session would carry twice the frames."""

    def __init__(self, now: Millis) -> None:
        self.state = SessionState.CONNECTING
        self.closed: Closed | None = None
        self.role: PeerRole | None = None
        self.holds_back = False
        """The last ``data_to_send`` left facts in the outbox."""
        self._reader = FrameReader()
        self.unsent = bytearray()
        """Only to be looked at: ``data_to_send`` takes it."""
        self._heard_at = now
        self._pinged_at = now
        self._deadline_at = now + HELLO_DEADLINE_MS
        self._silence_ms = self._ping_after_ms = HELLO_DEADLINE_MS
        self._partial_since: int | None = None
        self._paused_since: int | None = None
        self._nonce = 0

    # Bytes

    def receive_data(self, data: bytes, now: Millis) -> tuple[Message, ...]:
        """Take what came in; returns the messages for the caller, in order.

        Never raises for what a peer sends: a bad peer is answered, and ``closed`` says why.
        """
        if self.closed is not None:
            return ()
        self._heard_at = now
        size = len(data) - HEADER.size
        whole = 0 < size <= FRAME_BYTES_MAX and _LENGTH(data) == (size,)
        if self._reader.holds_partial_frame or not whole:
            return self._receive_frames(data, now)
        # One whole frame is the common case: a beat, its acknowledgement, a ping.
        self._partial_since = None
        try:
            message = decode_payload(data[HEADER.size :])
            handler = self._TABLE[self.state].get(type(message), Session._take)
            event = handler(self, message, size)
        except Refused as refused:
            self._refuse(refused)
            return ()
        return () if event is None else (event,)

    def _receive_frames(self, data: bytes, now: Millis) -> tuple[Message, ...]:
        payloads, error = self._reader.feed(data)
        events: list[Message] = []
        for payload in payloads:
            try:
                event = self._take(decode_payload(payload), len(payload))
                if event is not None:
                    events.append(event)
            except Refused as refused:
                self._refuse(refused)
            if self.state is SessionState.CLOSED:
                return tuple(events)
        if error is not None:
            self._refuse(error)
        if not self._reader.holds_partial_frame:
            self._partial_since = None
        elif payloads or self._partial_since is None:
            self._partial_since = now
        return tuple(events)

    def data_to_send(self) -> bytes:
        """All that waits to be sent. Call it again until it is empty, while the transport takes it."""
        if not self.unsent:
            return b""
        data = bytes(self.unsent)
        self.unsent.clear()
        return data

    def set_writable(self, writable: bool, now: Millis) -> None:
        """The transport's buffer is full, or has room again."""
        if writable:
            self._paused_since = None
        elif self._paused_since is None:
            self._paused_since = now

    # Time

    @property
    def heard_at(self) -> Millis:
        """When the last byte came in."""
        return Millis(self._heard_at)

    def next_timer(self) -> Millis | None:
        """When ``handle_timer`` is due at the latest; may move on with every call."""
        if self.closed is not None:
            return None
        if self.state is not SessionState.ESTABLISHED:
            return Millis(self._deadline_at)
        heard_at, pinged_at, silence_ms = self._heard_at, self._pinged_at, self._silence_ms
        ping_at = (heard_at if heard_at > pinged_at else pinged_at) + self._ping_after_ms
        if self._partial_since is None and self._paused_since is None:
            silent_at = heard_at + silence_ms
            return ping_at if ping_at < silent_at else silent_at  # type: ignore[return-value]  # sums of times; asked too often to be wrapped
        return Millis(min(ping_at, *self._ends()))

    def handle_timer(self, now: Millis) -> None:
        due = self.next_timer()
        if due is None or now < due:
            return
        if self.state is not SessionState.ESTABLISHED:
            self._close_with_bye("wire.closed.silent", "no session was agreed on in time")
            return
        if now - due > self._silence_ms // 3:
            # We ourselves stood still (a stopped process, a suspended machine): what the peer sent
            # meanwhile may lie unread, so its silence begins now.
            self._heard_at = now
            self._partial_since = self._partial_since and now
            self._paused_since = self._paused_since and now
        silent_at, partial_at, stalled_at = self._ends()
        if now >= silent_at:
            self._close_with_bye(
                "wire.closed.silent", f"nothing heard for {now - self._heard_at} ms"
            )
        elif now >= partial_at:
            self._close_with_bye("wire.closed.silent", "a frame was begun and never finished")
        elif now >= stalled_at:
            self._close_with_bye("wire.closed.overload", "the peer does not read")
        elif now >= max(self._heard_at, self._pinged_at) + self._ping_after_ms:
            self._pinged_at = now
            self._nonce += 1
            self._put(encode_ping(self._nonce))

    def _ends(self) -> tuple[int, int, int]:
        """When silence, an unfinished frame, and a peer that does not read end the session."""
        never = self._heard_at + self._silence_ms
        partial, paused = self._partial_since, self._paused_since
        return (
            never,
            never if partial is None else partial + PARTIAL_FRAME_DEADLINE_MS,
            never if paused is None else paused + 2 * self._silence_ms,
        )

    # Ending

    def close(self, code: str = "wire.closed.shutdown", message: str = "") -> None:
        """Say goodbye and end the session; the goodbye still waits in ``data_to_send``."""
        self._close_with_bye(code, message)

    def connection_lost(self, message: str, code: str = "wire.closed.lost") -> None:
        """The transport is gone; nothing can be sent any more."""
        self._end(Closed(code=code, message=message))
        self.unsent.clear()

    def _close_with_bye(self, code: str, message: str) -> None:
        if self.closed is None:
            self.unsent += encode_message(Bye(code=code))
            self._end(Closed(code=code, message=message))

    def _refuse(self, error: VirthaError) -> None:
        if self.closed is None:
            text = str(error)[:_TEXT_MAX]
            self.unsent += encode_message(Refuse(code=error.code, message=text, field=error.field))
            self._end(Closed(code=error.code, message=text))

    def _end(self, closed: Closed) -> None:
        if self.closed is None:
            self.closed = closed
            self.state = SessionState.CLOSED

    # Inside

    def _establish(self, silence_ms: int) -> None:
        self.state = SessionState.ESTABLISHED
        self._silence_ms = silence_ms
        self._ping_after_ms = silence_ms * self._PING_AFTER[0] // self._PING_AFTER[1]

    def _put(self, frame: bytes) -> None:
        if self.closed is not None:
            return
        self.unsent += frame
        if len(self.unsent) > SEND_BUFFER_BYTES_MAX:
            # Nothing of it will be read; the goodbye takes the place of what waits.
            self.unsent.clear()
            self._close_with_bye("wire.closed.overload", "the peer does not read")

    def _take(self, message: Message, size: int) -> Message | None:
        try:
            handler = self._TABLE[self.state][type(message)]
        except KeyError:
            raise Refused(
                f"a {message.__struct_config__.tag} message is not allowed while {self.state}",
                code="wire.refused.unexpected",
            ) from None
        return handler(self, message, size)

    def _on_ping(self, ping: Ping, size: int) -> Message | None:
        self._put(encode_pong(ping.nonce))
        return None

    def _on_pong(self, pong: Pong, size: int) -> Message | None:
        return None  # that it came is all it says

    def _on_bye(self, bye: Bye, size: int) -> Message | None:
        self._end(Closed(code=bye.code[:_TEXT_MAX], message="the peer said goodbye", by_peer=True))
        return None

    def _on_refuse(self, refuse: Refuse, size: int) -> Message | None:
        self._end(
            Closed(code=refuse.code[:_TEXT_MAX], message=refuse.message[:_TEXT_MAX], by_peer=True)
        )
        return None

    def _wrong_role(self, message: Message) -> Refused:
        return Refused(
            f"a {message.__struct_config__.tag} message is not for a session of the {self.role}",
            code="wire.refused.unexpected",
        )


_ENDINGS: dict[type[Message], Handler] = {Bye: Session._on_bye, Refuse: Session._on_refuse}
_LIFE: dict[type[Message], Handler] = {Ping: Session._on_ping, Pong: Session._on_pong}


class HostSession(Session):
    """The host's end. Sends its hello at once; after the welcome facts flow from the outbox.

    Messages for the caller: Welcome, Settings, GiveOrder, FactsAck, BeatAck.
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
        if not 0 < welcome.beat_interval_ms <= welcome.silence_ms <= 3_600_000 or not (
            0 <= welcome.fact_sequence_acknowledged <= SEQUENCE_MAX
        ):
            raise Refused("the welcome makes no sense", code="wire.refused.malformed")

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

    def _for_agent(self, message: Settings | GiveOrder, size: int) -> Message | None:
        if self.role is not PeerRole.AGENT:
            raise self._wrong_role(message)
        return message

    def _for_guardian(self, message: BeatAck, size: int) -> Message | None:
        if self.role is not PeerRole.GUARDIAN:
            raise self._wrong_role(message)
        return message

    _TABLE = {
        SessionState.CONNECTING: {Welcome: _on_welcome, **_ENDINGS},
        SessionState.ESTABLISHED: {
            BeatAck: _for_guardian,
            FactsAck: _on_facts_ack,
            Settings: _for_agent,
            GiveOrder: _for_agent,
            **_LIFE,
            **_ENDINGS,
        },
    }


class ServerSession(Session):
    """The server's end. Messages for the caller: Hello (answer it), Beat, Facts (only new ones)."""

    _PING_AFTER = (2, 5)
    __slots__ = ("_beat_last", "_host_id", "_window", "hello")

    def __init__(self, host_id: HostId, *, now: Millis) -> None:
        """``host_id``: as the peer's certificate says."""
        super().__init__(now)
        self._host_id = host_id
        self._beat_last = -1
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

    def refuse(self, code: str, message: str, field: str | None = None) -> None:
        self._refuse(Refused(message, code=code, field=field))

    def send_settings(self, settings: HostSettings) -> None:
        self._put(encode_message(Settings(settings=settings)))

    def send_order(self, order: Order) -> None:
        self._put(encode_message(GiveOrder(order=order)))

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
        SessionState.CONNECTING: {Hello: _on_hello, **_ENDINGS},
        SessionState.GREETED: _ENDINGS,
        SessionState.ESTABLISHED: {Beat: _on_beat, Facts: _on_facts, **_LIFE, **_ENDINGS},
    }
