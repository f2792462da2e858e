"""What passes between a source's migration and its target's libvirt, and what is held back (ADR 14). No I/O.

libvirt's own client, when the target's answer to *finish* is an error or never comes, lets the source run on, "although
it could in fact be running on the destination" (its words). So nothing but a success is let through once *finish* went
up: whoever waits for it waits for ever, and the source stands still until its process is ended.

The wire format is libvirt's (``virnetprotocol.x``, ``remote_protocol.x``): a length that counts itself, six numbers, a
body. Procedures keep their numbers for ever. One that is newer than what is known here is refused before anything is
sent: it may be another *finish*.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum

from virtha.model.value import Value

PACKET_BYTES_MAX = 32 << 20
"""libvirt's own limit (VIR_NET_MESSAGE_MAX + its length)."""
HEADER = struct.Struct(">IIIIiIi")
PROGRAM, KEEPALIVE = 0x20008086, 0x6B656570
PREPARE = frozenset({214, 303})
"""DOMAIN_MIGRATE_PREPARE3 and …PREPARE3_PARAMS."""
FINISH = frozenset({217, 306})
"""DOMAIN_MIGRATE_FINISH3 and …FINISH3_PARAMS: both end with ``int cancelled``."""
NEVER = frozenset({61, 63, 108, 109, 215, 304, 364})
"""Older migrations, tunnelled ones and post-copy."""
KNOWN_MAX = 460
"""None of libvirt 11's is above, and none above 364 concerns migrations."""
CALL, REPLY, CALL_WITH_FDS, REPLY_WITH_FDS = 0, 1, 4, 5
STATUS_OK = 0


class ProtocolBroken(Exception):
    """What comes is no libvirt, or does what is not foreseen."""


class Packet(Value, frozen=True, kw_only=True):
    data: bytes
    program: int
    procedure: int
    kind: int
    serial: int
    status: int


class Passage(StrEnum):
    GO_ON = "go_on"
    HOLD_BACK = "hold_back"


class Packets:
    """Cuts a stream into packets. Raises ProtocolBroken."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        self._buffer += data
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if not HEADER.size <= length <= PACKET_BYTES_MAX:
                raise ProtocolBroken(f"a packet of {length} bytes")
            if len(self._buffer) < length:
                return
            data = bytes(self._buffer[:length])
            del self._buffer[:length]
            _, program, _, procedure, kind, serial, status = HEADER.unpack_from(data)
            yield Packet(
                data=data,
                program=program,
                procedure=procedure,
                kind=kind,
                serial=serial,
                status=status,
            )


class AnswerFilter:
    """One migration's passage. ``up``: towards the target; ``down``: its answers."""

    def __init__(self) -> None:
        self._finish_serial: int | None = None
        self.prepared = False
        """The target has made what the copy comes into."""
        self.answered = False
        """The target said that it runs there."""

    @property
    def waits(self) -> bool:
        """The word to run went up, or is about to, and nobody knows what came of it."""
        return self._finish_serial is not None and not self.answered

    @property
    def word_given(self) -> bool:
        return self._finish_serial is not None

    def up(self, packet: Packet) -> None:
        """Called before any byte of it is sent. Raises ProtocolBroken: it must not be sent."""
        if packet.program == KEEPALIVE:
            return
        if packet.program != PROGRAM or packet.kind not in (CALL, REPLY):
            raise ProtocolBroken(f"program {packet.program:#x}, kind {packet.kind}")
        if packet.procedure in NEVER or packet.procedure > KNOWN_MAX:
            raise ProtocolBroken(f"procedure {packet.procedure} is not foreseen")
        if packet.procedure in FINISH and packet.kind == CALL:
            self._finish(packet)

    def _finish(self, packet: Packet) -> None:
        if len(packet.data) < HEADER.size + 4:
            raise ProtocolBroken("a finish without arguments")
        if self._finish_serial is not None:
            raise ProtocolBroken("finish is called twice")
        if self.gives_word(packet):
            self._finish_serial = packet.serial

    def gives_word(self, packet: Packet) -> bool:
        """Whether it is the word to run: *finish* that does not cancel."""
        is_finish = packet.program == PROGRAM and packet.procedure in FINISH and packet.kind == CALL
        return is_finish and packet.data[-4:] == b"\0\0\0\0"

    def down(self, packet: Packet) -> Passage:
        is_reply = packet.program == PROGRAM and packet.kind in (REPLY, REPLY_WITH_FDS)
        if is_reply and packet.procedure in PREPARE and packet.status == STATUS_OK:
            self.prepared = True
        is_answer = (
            is_reply
            and packet.procedure in FINISH
            and self._finish_serial is not None
            and packet.serial == self._finish_serial
        )
        if not is_answer:
            return Passage.GO_ON
        if packet.status != STATUS_OK:
            return Passage.HOLD_BACK
        self.answered = True
        return Passage.GO_ON
