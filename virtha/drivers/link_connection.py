"""One connection of the link: TLS 1.3 and a wire session on a plain TCP transport of asyncio.

TLS runs here, through ``ssl.MemoryBIO``, not in asyncio's own TLS protocol, for three reasons:

- asyncio drops the alert when a handshake fails, so a host whose certificate is of another authority
  would see a lost connection and never the reason;
- asyncio keeps a 256 KiB read buffer for each TLS connection: 10,000 hosts would take 2.5 GB;
- a beat passes through one layer instead of two.

All connections of a loop share one read buffer: its content goes into the connection's BIO at once.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import cast
from weakref import WeakKeyDictionary

from virtha.model.errors import VirthaError
from virtha.model.time import Millis
from virtha.wire.messages import Message
from virtha.wire.session import Closed, Session

HANDSHAKE_DEADLINE_S = 10.0
ENDING_GRACE_S = 1.0
"""How long the peer may take to read our last words before the connection is cut."""
USER_TIMEOUT_MS = 10_000
"""TCP_USER_TIMEOUT: unacknowledged data older than this breaks the connection, where the default is
about 15 minutes. The session's own silence limit is shorter; this is for a process that is stopped."""
WRITE_BUFFER_BYTES_HIGH = 64 * 1024
WRITE_BUFFER_BYTES_LOW = 16 * 1024
_RECORD_BYTES = 16 * 1024
_READ_BUFFER_BYTES = 64 * 1024
_read_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


def monotonic_ms() -> Millis:
    """CLOCK_BOOTTIME, as ``virtha.ports.clock.Clock`` counts: it goes on during suspend."""
    return Millis(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)


def _set_socket_options(transport: asyncio.Transport) -> None:
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def explain_tls(error: ssl.SSLError) -> str:
    """Why a handshake failed, for people, as either side sees it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (9, 10):  # X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED
            return (
                f"the peer's certificate is not valid now ({error.verify_message}); "
                "check this machine's clock, else the certificate must be renewed"
            )
        return (
            f"the peer's certificate is not of our authority ({error.verify_message}): "
            "it belongs to another installation"
        )
    reason = (error.reason or str(error)).upper()
    if "UNKNOWN_CA" in reason:
        return (
            "the peer refuses our certificate: it is not of its authority. This host has joined "
            "another installation, or the server was set up anew; join it again"
        )
    if "CERTIFICATE_EXPIRED" in reason:
        return "the peer refuses our certificate as out of date; check both clocks, else renew it"
    if "CERTIFICATE_REQUIRED" in reason or "PEER_DID_NOT_RETURN" in reason:
        return "a certificate is required and none was shown"
    if "CERTIFICATE" in reason:
        return f"the peer refuses our certificate ({reason.lower().replace('_', ' ')})"
    return f"TLS failed ({reason.lower().replace('_', ' ')}); is this the right port?"


class Connection(asyncio.BufferedProtocol):
    """Base of both sides. Subclasses make the session when TLS is ready and take its messages.

    ``_ended`` is called exactly once, whatever ends the connection; ``session`` is None when it ended
    before TLS was ready.
    """

    __slots__ = (
        "_armed_for",
        "_clock",
        "_ending",
        "_incoming",
        "_loop",
        "_outgoing",
        "_paused",
        "_peer",
        "_read_buffer",
        "_ready",
        "_timer",
        "_tls",
        "_transport",
        "session",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        clock: Callable[[], Millis] = monotonic_ms,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._read_buffer = _read_buffers.setdefault(
            loop, memoryview(bytearray(_READ_BUFFER_BYTES))
        )
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: int | None = None
        self._ready = False
        self._paused = False
        self._ending = False
        self.session: Session | None = None

    # For subclasses

    def _tls_ready(self, peer_certificate: bytes) -> Session:
        """Check the peer and begin the session. Raises VirthaError to refuse it."""
        raise NotImplementedError

    def _message(self, message: Message, now: Millis) -> None:
        raise NotImplementedError

    def _ended(self, closed: Closed) -> None:
        raise NotImplementedError

    # For the owner

    @property
    def peer(self) -> str:
        """``address:port`` of the other end."""
        return self._peer

    @property
    def local_address(self) -> str | None:
        """Ours; None: it is not made, or gone."""
        name = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return str(name[0]) if name else None

    def clock_ms(self) -> Millis:
        return self._clock()

    def flush(self) -> None:
        """Send what the session has to say, and end the connection if it is over."""
        session = self.session
        if session is None:
            return
        transport = cast("asyncio.Transport", self._transport)
        while not self._paused and (data := session.data_to_send()):
            self._write(transport, data)
        if session.closed is not None:
            if not self._ending:
                self._say_last_words(session, session.closed)
        elif session.timing != self._armed_for:
            self._arm_timer()

    def close(self, code: str, message: str = "") -> None:
        if self.session is not None:
            self.session.close(code, message)
            self.flush()
        else:
            self._end(Closed(code=code, message=message))
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES_HIGH, WRITE_BUFFER_BYTES_LOW)
        _set_socket_options(self._transport)
        host, port, *_ = transport.get_extra_info("peername") or ("?", 0)
        self._peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._timer = self._loop.call_later(HANDSHAKE_DEADLINE_S, self._handshake_late)
        self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_buffer

    def buffer_updated(self, size: int) -> None:
        if self._ending:
            return
        self._incoming.write(self._read_buffer[:size])
        if self._ready or self._shake_hands():
            try:
                self._read()
            except ssl.SSLError as error:
                self._tls_failed(error)

    def pause_writing(self) -> None:
        self._paused = True
        if self.session is not None:
            self.session.set_writable(False, self._clock())

    def resume_writing(self) -> None:
        self._paused = False
        if self.session is not None:
            self.session.set_writable(True, self._clock())
            self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        text = f"the connection broke: {error}" if error else "the peer closed the connection"
        if self.session is not None:
            self.session.connection_lost(text)
        self._end(Closed(code="wire.closed.lost", message=text))
        self._transport = None

    # TLS

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._write_records()
            return False
        except ssl.SSLError as error:
            self._tls_failed(error)
            return False
        self._write_records()
        self._ready = True
        self._begin_session()
        return not self._ending

    def _begin_session(self) -> None:
        cast("asyncio.TimerHandle", self._timer).cancel()
        self._timer = None
        try:
            self.session = self._tls_ready(self._tls.getpeercert(binary_form=True) or b"")
        except VirthaError as error:
            self._say_last_words(None, Closed(code=error.code, message=str(error)))
            return
        self.flush()

    def _read(self) -> None:
        session = cast("Session", self.session)
        tls, incoming = self._tls, self._incoming
        while True:
            try:
                data = tls.read(_RECORD_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                session.connection_lost("the peer closed the connection")
                break
            now = self._clock()
            for message in session.receive_data(data, now):
                self._message(message, now)
            # A further read of nothing would raise, and raising costs more than the beat itself.
            if not incoming.pending and not tls.pending():
                break
        if self._outgoing.pending:  # a key update wants its answer
            self._write_records()
        self.flush()

    def _write(self, transport: asyncio.Transport, data: bytes) -> None:
        written = self._tls.write(data)
        while written < len(data):
            data = data[written:]
            written = self._tls.write(data)
        transport.write(self._outgoing.read())

    def _write_records(self) -> None:
        if self._outgoing.pending and self._transport is not None:
            self._transport.write(self._outgoing.read())

    def _tls_failed(self, error: ssl.SSLError) -> None:
        closed = Closed(code="wire.refused.certificate", message=explain_tls(error))
        if self.session is not None:
            self.session.connection_lost(closed.message, closed.code)
        self._write_records()  # the alert: it tells the peer why
        self._say_last_words(self.session, closed)

    # Time

    def _arm_timer(self) -> None:
        """At each change of state, and when the timer fires. In between the session's timer only moves
        on (with every beat), or to a moment after the next ping's."""
        session = self.session
        if session is None or self._ending:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._armed_for = session.timing
        due = session.next_timer()
        if due is not None:
            delay_s = max(0, due - self._clock() + 1) / 1_000
            self._timer = self._loop.call_later(delay_s, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self.session is not None:
            self.session.handle_timer(self._clock())
            self.flush()
            self._arm_timer()

    def _handshake_late(self) -> None:
        self._end(Closed(code="wire.closed.silent", message="no TLS handshake in time"))
        self.abort()

    # Ending

    def _say_last_words(self, session: Session | None, closed: Closed) -> None:
        """End our side now; give the peer a moment to read why.

        Closing a socket at once while the peer still sends makes the kernel answer with a reset, which
        may throw away the refusal before the peer has read it. So its data are read and dropped
        until it closes, for a second at most.
        """
        if self._ending:
            return
        self._ending = True
        transport = cast("asyncio.Transport", self._transport)
        if session is not None and (data := session.data_to_send()):
            self._write(transport, data)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if closed.by_peer or transport.is_closing():
            transport.close()
        elif transport.can_write_eof():
            transport.write_eof()
        self._timer = self._loop.call_later(ENDING_GRACE_S, self.abort)
        self._ended(closed)

    def _end(self, closed: Closed) -> None:
        if not self._ending:
            self._ending = True
            session_closed = self.session.closed if self.session is not None else None
            self._ended(session_closed or closed)
