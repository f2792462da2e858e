"""A channel: bytes of a console between a host and the server, on a connection of its own, without I/O.

The same frames, pings and endings as a session (see ``session``), but no beats, facts or orders. Bytes flow by
credit: a peer sends no more than ``CHANNEL_WINDOW_BYTES`` beyond what was taken from it, so that a viewer who
reads nothing costs that much memory and no more, while pings still get through.
"""

from virtha.model.errors import Refused
from virtha.model.time import Millis
from virtha.wire.codec import encode_message
from virtha.wire.messages import (
    CHANNEL_DATA_BYTES_MAX,
    CHANNEL_WINDOW_BYTES,
    Attach,
    Attached,
    ChannelCredit,
    ChannelData,
    Message,
)
from virtha.wire.session import ENDINGS, LIFE, PACE_MS_MAX, Handler, Session, SessionState

SILENCE_MS = 10_000


class ChannelSession(Session):
    """What both ends share. Messages for the caller: ChannelData, ChannelCredit (``sendable`` has grown)."""

    _PING_AFTER = (1, 3)
    __slots__ = ("_expected", "_taken", "said_all", "sendable")

    def __init__(self, now: Millis) -> None:
        super().__init__(now)
        self.sendable = CHANNEL_WINDOW_BYTES
        """Bytes that may be sent now."""
        self.said_all = False
        """This end has sent its last data."""
        self._expected = CHANNEL_WINDOW_BYTES
        self._taken = 0

    def send(self, data: bytes) -> int:
        """Send the beginning of ``data``; returns how much. 0: wait for credit, or the channel is over."""
        assert not self.said_all
        count = min(len(data), self.sendable, CHANNEL_DATA_BYTES_MAX)
        if count == 0 or self.state is not SessionState.ESTABLISHED:
            return 0
        self.sendable -= count
        self._put(encode_message(ChannelData(data=data[:count])))
        return count

    def say_all(self) -> None:
        """There is nothing more to send."""
        if self.state is SessionState.ESTABLISHED and not self.said_all:
            self.said_all = True
            self._put(encode_message(ChannelData(data=b"")))

    def taken(self, count: int) -> None:
        """Bytes that came in have reached whoever they were for."""
        self._taken += count
        if self._taken >= CHANNEL_WINDOW_BYTES // 4 and self.state is SessionState.ESTABLISHED:
            self._expected += self._taken
            self._put(encode_message(ChannelCredit(size=self._taken)))
            self._taken = 0

    def refuse(self, code: str, message: str, field: str | None = None) -> None:
        self._refuse(Refused(message, code=code, field=field))

    def _on_data(self, message: ChannelData, size: int) -> Message | None:
        self._expected -= len(message.data)
        if self._expected < 0 or len(message.data) > CHANNEL_DATA_BYTES_MAX:
            raise Refused(
                "more bytes than were asked for",
                code="wire.refused.unexpected",
                allowed=(f"{CHANNEL_WINDOW_BYTES} that were not taken yet",),
            )
        return message

    def _on_credit(self, message: ChannelCredit, size: int) -> Message | None:
        if not 0 < message.size <= CHANNEL_WINDOW_BYTES - self.sendable:
            raise Refused(
                f"credit for {message.size} bytes, {CHANNEL_WINDOW_BYTES - self.sendable} were sent",
                code="wire.refused.sequence",
            )
        self.sendable += message.size
        return message


_FLOW: dict[type[Message], Handler] = {
    ChannelData: ChannelSession._on_data,
    ChannelCredit: ChannelSession._on_credit,
}


class HostChannelSession(ChannelSession):
    """The host's end: attaches at once, may send after ``Attached``, which the caller gets to see."""

    __slots__ = ()

    def __init__(self, channel: str, now: Millis) -> None:
        super().__init__(now)
        self._put(encode_message(Attach(channel=channel)))

    def _on_attached(self, message: Attached, size: int) -> Message | None:
        if not 0 < message.silence_ms <= PACE_MS_MAX:
            raise Refused("the answer makes no sense", code="wire.refused.malformed")
        self._establish(message.silence_ms)
        return message

    _TABLE = {
        SessionState.CONNECTING: {Attached: _on_attached, **ENDINGS},
        SessionState.ESTABLISHED: {**_FLOW, **LIFE, **ENDINGS},
    }


class ServerChannelSession(ChannelSession):
    """The server's end. The caller answers Attach by ``accept`` or ``refuse``."""

    __slots__ = ()

    def accept(self, now: Millis) -> None:
        if self.closed is None:
            assert self.state is SessionState.GREETED
            self._heard_at = self._pinged_at = now
            self._put(encode_message(Attached(silence_ms=SILENCE_MS)))
            self._establish(SILENCE_MS)

    def _on_attach(self, message: Attach, size: int) -> Message | None:
        self.state = SessionState.GREETED
        return message

    _TABLE = {
        SessionState.CONNECTING: {Attach: _on_attach, **ENDINGS},
        SessionState.GREETED: ENDINGS,
        SessionState.ESTABLISHED: {**_FLOW, **LIFE, **ENDINGS},
    }
