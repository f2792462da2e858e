"""The journal of one engine as bytes (X2): what it was told, when, and what it decided.

A segment is one file: a line of magic, then records of ``length u32, crc32 of the payload u32, crc32 of these eight
bytes u32, payload in msgpack``, all big-endian. The first record is the header, the second a snapshot of the engine, so
that each segment can be replayed alone; then, for each step, what went in (written before the step, so that one that
fails can be replayed) and what came out (written after it).

The beats of one turn stand in one run: a host's beat is written once per segment and named by its number from then on.

Reading never fails: what is damaged ends the segment with a ``Fault`` that says where, after all that stands before it.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from hashlib import blake2b

import msgspec

from virtha import __version__
from virtha.engine.events import BeatSeen, Decision, EngineEvent
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.errors import VirthaError
from virtha.model.ids import ClusterId, InstallationId, Term
from virtha.model.time import Millis, UtcMillis
from virtha.model.value import Value

FORMAT = 1
"""Raised when a program that knows only the one before would misread it. New fields with defaults and
new kinds of events don't raise it."""
MAGIC = b"virtha engine journal\n"
_HEAD = struct.Struct(">III")
_LENGTH_AND_SUM = struct.Struct(">II")
# Sets in order, so that the same segment is the same bytes under every hash seed.
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class Header(Value, frozen=True, kw_only=True, tag="header"):
    """Whose journal it is. ``created_at_ms`` is the server's wall clock, for people only."""

    format: int = FORMAT
    program: str
    """Version of virtha that wrote it."""
    installation_id: InstallationId
    cluster_id: ClusterId
    term: Term
    created_at_ms: UtcMillis
    number: int
    """Of the segment, counted up over the ring's whole life."""
    follows: bool
    """Nothing is missing between the segment before and this one."""


class BeatRun(Value, frozen=True, kw_only=True, tag="beats"):
    """Consecutive beats of one turn, by their number in the segment's table."""

    seen: tuple[int, ...]


class _TurnRecord(Value, frozen=True, kw_only=True, tag="turn", omit_defaults=True):
    now: Millis
    events: tuple[EngineEvent | BeatRun, ...] = ()
    beats: tuple[BeatSeen, ...] = ()
    """New in the table, in the order of their numbers."""


class _DecidedRecord(Value, frozen=True, kw_only=True, tag="decided", omit_defaults=True):
    digest: bytes
    wake_at: Millis | None = None
    decision: Decision | None = None
    """Absent when nothing but ``wake_at`` was decided."""


class _SnapshotRecord(Value, frozen=True, kw_only=True, tag="snapshot"):
    state: EngineSnapshot


class _Envelope(Value, frozen=True, kw_only=True):
    """What a header of any format has."""

    type: str
    format: int = 0
    program: str = "?"


_decode_envelope = msgspec.msgpack.Decoder(_Envelope).decode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_snapshot = msgspec.msgpack.Decoder(_SnapshotRecord).decode
_decode_step: msgspec.msgpack.Decoder[_TurnRecord | _DecidedRecord] = msgspec.msgpack.Decoder(
    _TurnRecord | _DecidedRecord
)


def digest_of(decision: Decision) -> bytes:
    """Eight bytes; the same for the same decision, whatever the process and its hash seed."""
    return blake2b(_encode(decision), digest_size=8).digest()


# Writing


class SegmentWriter:
    """Makes the bytes of one segment; keeping them is the ring's business. What it returned must be appended
    in that order and without gaps: a segment that lost a record is over."""

    def __init__(self) -> None:
        self._numbers: dict[BeatSeen, int] = {}

    def begin(self, header: Header, state: EngineSnapshot) -> bytes:
        return MAGIC + _record(header) + _record(_SnapshotRecord(state=state))

    def turn(self, now: Millis, events: Sequence[EngineEvent]) -> bytes:
        """What a step is about to be told."""
        items: list[EngineEvent | BeatRun] = []
        new: list[BeatSeen] = []
        run: list[int] = []
        for event in events:
            if isinstance(event, BeatSeen):
                number = self._numbers.get(event)
                if number is None:
                    number = self._numbers[event] = len(self._numbers)
                    new.append(event)
                run.append(number)
            else:
                if run:
                    items.append(BeatRun(seen=tuple(run)))
                    run = []
                items.append(event)
        if run:
            items.append(BeatRun(seen=tuple(run)))
        return _record(_TurnRecord(now=now, events=tuple(items), beats=tuple(new)))

    def decided(self, decision: Decision) -> bytes:
        says = bool(decision.intents or decision.commands or decision.notices)
        return _record(
            _DecidedRecord(
                digest=digest_of(decision),
                wake_at=decision.wake_at,
                decision=decision if says else None,
            )
        )


def _record(value: Value) -> bytes:
    payload = _encode(value)
    head = _LENGTH_AND_SUM.pack(len(payload), zlib.crc32(payload))
    return head + zlib.crc32(head).to_bytes(4, "big") + payload


# Reading


class FaultKind(StrEnum):
    FOREIGN = "foreign"
    """Not a journal of an engine."""
    NEWER = "newer"
    """Of a format that this version does not know."""
    TRUNCATED = "truncated"
    """It ends inside a record: a write that was cut short, or is under way."""
    DAMAGED = "damaged"
    """A checksum does not match."""
    UNREADABLE = "unreadable"
    """Whole, but this version can't make sense of it."""


class Fault(Value, frozen=True, kw_only=True):
    """Where a segment's readable part ends before its file does. ``offset``: first byte that is not read."""

    kind: FaultKind
    offset: int
    detail: str


class RecordedTurn(Value, frozen=True, kw_only=True):
    """One step as it was journalled. ``offset``: of its input record."""

    offset: int
    now: Millis
    events: tuple[EngineEvent, ...]
    digest: bytes | None = None
    """None: the step never ended, or its end was not written any more."""
    decision: Decision | None = None


class SegmentReader:
    """One segment. Either ``header`` and ``snapshot`` are there, or ``fault`` says why not.

    ``turns`` gives the steps once; after it, ``fault`` says why it ended before the file did, if it did.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._beats: list[BeatSeen] = []
        self.header: Header | None = None
        self.snapshot: EngineSnapshot | None = None
        self.fault: Fault | None = None
        self._begin()

    @property
    def share(self) -> float:
        """How much of it has been read, from 0 to 1."""
        return self._at / max(1, len(self._data))

    def turns(self) -> Iterator[RecordedTurn]:
        if self.snapshot is None:
            return
        pending: RecordedTurn | None = None
        while (payload := self._next()) is not None:
            offset, body = payload
            try:
                record = _decode_step.decode(body)
                if isinstance(record, _TurnRecord):
                    if pending is not None:
                        yield pending
                    pending = self._turn(record, offset)
                    continue
                if pending is None:
                    raise ValueError("a decision without its step")
            except _UNREADABLE as error:
                self._unreadable(offset, error)
                break
            yield _complete(pending, record)
            pending = None
        if pending is not None:
            yield pending

    def _begin(self) -> None:
        if bytes(self._data[: len(MAGIC)]) != MAGIC[: len(self._data)]:
            detail = "it does not begin as a journal of an engine does"
            self.fault = Fault(kind=FaultKind.FOREIGN, offset=0, detail=detail)
            return
        if len(self._data) < len(MAGIC):
            self._cut(f"{len(self._data)} bytes of its first line are there")
            return
        self._at = len(MAGIC)
        offset = self._at
        try:
            header = self._next()
            if header is not None and self._known_format(*header):
                self.header = _decode_header(header[1])
                offset = self._at
                state = self._next()
                if state is not None:
                    self.snapshot = _decode_snapshot(state[1]).state
        except _UNREADABLE as error:
            self._unreadable(offset, error)
        if self.snapshot is None and self.fault is None:
            self._cut("it ends before its snapshot")

    def _known_format(self, offset: int, payload: memoryview) -> bool:
        envelope = _decode_envelope(payload)
        if envelope.format <= FORMAT:
            return True
        self._at = offset
        detail = (
            f"it has format {envelope.format}, written by virtha {envelope.program}; "
            f"this version, {__version__}, knows {FORMAT}"
        )
        self.fault = Fault(kind=FaultKind.NEWER, offset=offset, detail=detail)
        return False

    def _turn(self, record: _TurnRecord, offset: int) -> RecordedTurn:
        self._beats += record.beats
        events: list[EngineEvent] = []
        for item in record.events:
            if isinstance(item, BeatRun):
                for number in item.seen:
                    if not 0 <= number < len(self._beats):
                        raise ValueError(f"beat {number} of {len(self._beats)}")
                    events.append(self._beats[number])
            else:
                events.append(item)
        return RecordedTurn(offset=offset, now=record.now, events=tuple(events))

    def _next(self) -> tuple[int, memoryview] | None:
        """Offset and payload of the next record; None at the end, whole or not."""
        at, data = self._at, self._data
        left = len(data) - at
        if not left or self.fault is not None:
            return None
        if left < _HEAD.size:
            self._cut(f"{left} bytes of a record's head are there")
            return None
        length, payload_sum, head_sum = _HEAD.unpack_from(data, at)
        if zlib.crc32(data[at : at + _LENGTH_AND_SUM.size]) != head_sum:
            self._damaged("the head of a record")
            return None
        start = at + _HEAD.size
        if left - _HEAD.size < length:
            self._cut(f"{left - _HEAD.size} of a record's {length} bytes are there")
            return None
        payload = data[start : start + length]
        if zlib.crc32(payload) != payload_sum:
            self._damaged(f"a record of {length} bytes")
            return None
        self._at = start + length
        return at, payload

    def _cut(self, detail: str) -> None:
        self.fault = Fault(kind=FaultKind.TRUNCATED, offset=self._at, detail=detail)

    def _damaged(self, what: str) -> None:
        detail = f"the checksum of {what} does not match"
        self.fault = Fault(kind=FaultKind.DAMAGED, offset=self._at, detail=detail)

    def _unreadable(self, offset: int, error: BaseException) -> None:
        self._at = offset
        program = "?" if self.header is None else self.header.program
        detail = f"{error}; written by virtha {program}, this is {__version__}"
        self.fault = Fault(kind=FaultKind.UNREADABLE, offset=offset, detail=detail)


# msgspec's own errors, values that check themselves, and what only a forged record can nest or assert.
_UNREADABLE = (ValueError, VirthaError, AssertionError, RecursionError)


def _complete(turn: RecordedTurn, record: _DecidedRecord) -> RecordedTurn:
    return msgspec.structs.replace(
        turn,
        digest=record.digest,
        decision=record.decision
        if record.decision is not None
        else Decision(wake_at=record.wake_at),
    )
