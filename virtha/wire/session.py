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

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, ClassVar

from virtha.model.errors import Refused, VirthaError
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.wire.codec import (
    HEADER,
    FrameReader,
    decode_payload,
    encode_message,
    encode_ping,
    encode_pong,
)
from virtha.wire.messages import (
    FRAME_BYTES_MAX,
    Bye,
    Message,
    PeerRole,
    Ping,
    Pong,
    Refuse,
)

HELLO_DEADLINE_MS = 10_000
"""From the connection to the established session, for either side."""
PARTIAL_FRAME_DEADLINE_MS = 30_000
"""A frame's bytes may trickle (1 MiB over a slow line), but not for ever."""
SEND_BUFFER_BYTES_HIGH = 256 * 1024
"""Facts wait in the outbox, not in memory, while more than this waits to be sent."""
SEND_BUFFER_BYTES_MAX = 4 * FRAME_BYTES_MAX
"""A peer for which more than this waits is closed with `wire.closed.overload`."""
SEQUENCE_MAX = (1 << 62) - 1
PACE_MS_MAX = 3_600_000
"""Of the times that a server tells: an hour."""
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
        "timing",
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
        self.timing = 0
        """Grows when other times hold from now on: ``next_timer`` may have come nearer."""
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
        self.timing += 1
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


ENDINGS: dict[type[Message], Handler] = {Bye: Session._on_bye, Refuse: Session._on_refuse}
LIFE: dict[type[Message], Handler] = {Ping: Session._on_ping, Pong: Session._on_pong}
