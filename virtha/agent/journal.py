"""The sentinel's decision journal: what it was told, when, and what it decided (X2).

Two segments in a ring: ``current.journal`` and the one before, ``previous.journal``. A segment
begins with a header (format, program version, boot, the records that the sentinel began from) and
goes on with (now, events, decision). Records are ``length u32, crc32 u32, msgpack``. Not synced: it
explains, nothing is decided from it.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
import structlog

from virtha import __version__
from virtha.model.ids import BootId
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.sentinel.events import (
    Command,
    Decision,
    Intent,
    SentinelEvent,
    SentinelRecords,
)
from virtha.sentinel.sentinel import Sentinel

FORMAT = 1
SEGMENT_BYTES_MAX = 8 << 20
RECORD_BYTES_MAX = 16 << 20
_RECORD = struct.Struct(">II")
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for union in (SentinelEvent, Intent, Command) for kind in get_args(union)
}

_log = structlog.get_logger(__name__)


class _Header(Value, frozen=True, kw_only=True):
    format: int
    version: str
    boot: BootId
    now: Millis
    from_start: bool
    """False: the sentinel had run before, so the first steps of a replay may differ."""
    records: SentinelRecords


class _Entry(Value, frozen=True, kw_only=True):
    now: Millis
    events: tuple[tuple[str, msgspec.Raw], ...]
    decision: msgspec.Raw
    """As bytes: a later version may not be able to decode it, but it can compare."""


class Difference(Value, frozen=True, kw_only=True):
    """One step that this version decides differently; both as JSON text."""

    now: Millis
    recorded: str
    replayed: str


class Journal:
    """Appends; a write that fails is told once and never stops the sentinel."""

    def __init__(self, directory: Path, *, boot: BootId) -> None:
        self._directory = directory
        self._boot = boot
        self._size = 0
        self._failed = False

    @property
    def current(self) -> Path:
        return self._directory / "current.journal"

    def begin(self, now: Millis, records: SentinelRecords, *, from_start: bool) -> None:
        """Start a new segment; the present one becomes the one before."""
        header = _Header(
            format=FORMAT,
            version=__version__,
            boot=self._boot,
            now=now,
            from_start=from_start,
            records=records,
        )
        try:
            if self.current.exists():
                self.current.replace(self._directory / "previous.journal")
            self._size = 0
            self._append(msgspec.msgpack.encode(header))
        except OSError as error:
            self._tell(error)

    def add(self, now: Millis, events: Sequence[SentinelEvent], decision: Decision) -> None:
        entry = _Entry(
            now=now,
            events=tuple(
                (type(event).__name__, msgspec.Raw(msgspec.msgpack.encode(event)))
                for event in events
            ),
            decision=msgspec.Raw(msgspec.msgpack.encode(_comparable(decision))),
        )
        try:
            self._append(msgspec.msgpack.encode(entry))
        except OSError as error:
            self._tell(error)

    @property
    def is_full(self) -> bool:
        return self._size > SEGMENT_BYTES_MAX

    def _append(self, payload: bytes) -> None:
        data = _RECORD.pack(len(payload), zlib.crc32(payload)) + payload
        with self.current.open("ab") as file:
            file.write(data)
        self._size += len(data)
        self._failed = False

    def _tell(self, error: OSError) -> None:
        if not self._failed:
            _log.error("the decision journal can't be written", error=str(error))
        self._failed = True


def _comparable(decision: Decision) -> dict[str, Any]:
    """With the names of intents and commands, which are untagged."""
    return {
        "intents": [(type(i).__name__, i) for i in decision.intents],
        "commands": [(type(c).__name__, c) for c in decision.commands],
        "notices": decision.notices,
        "wake_at": decision.wake_at,
    }


def _read(path: Path) -> Iterator[bytes]:
    """The readable prefix of a segment."""
    data = path.read_bytes()
    at = 0
    while at + _RECORD.size <= len(data):
        length, checksum = _RECORD.unpack_from(data, at)
        payload = data[at + _RECORD.size : at + _RECORD.size + length]
        if length > RECORD_BYTES_MAX or len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
        at += _RECORD.size + length


def replay(path: Path) -> Iterator[Difference]:
    """Run a segment through this version's sentinel; yields the steps that it decides differently.

    Raises ValueError when ``path`` is no journal of a format that this version knows.
    """
    payloads = _read(path)
    try:
        header = msgspec.msgpack.decode(next(payloads), type=_Header)
    except (StopIteration, msgspec.MsgspecError) as error:
        raise ValueError(f"{path} is no decision journal") from error
    if header.format != FORMAT:
        raise ValueError(f"{path} has format {header.format}; this version knows {FORMAT}")
    sentinel = Sentinel(boot=header.boot, records=header.records, now=header.now)
    for payload in payloads:
        entry = msgspec.msgpack.decode(payload, type=_Entry)
        events = [msgspec.msgpack.decode(raw, type=_KINDS[name]) for name, raw in entry.events]
        decision = sentinel.step(entry.now, events)
        recorded = msgspec.msgpack.decode(entry.decision)
        replayed = msgspec.msgpack.decode(msgspec.msgpack.encode(_comparable(decision)))
        if recorded != replayed:
            yield Difference(
                now=entry.now,
                recorded=msgspec.json.encode(recorded).decode(),
                replayed=msgspec.json.encode(replayed).decode(),
            )
