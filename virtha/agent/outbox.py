"""The outbox: facts on disk until the server has acknowledged them (ADR 2).

Append-only segments ``<first sequence>.seg``. A segment is an 8-byte header and records of
``length u32, crc32 u32, payload`` (big-endian), the payload a ``Fact`` in msgpack. One fsync per
batch, then the facts become visible to the link: nothing is sent that a power cut could take back.

**Sequences go on for ever.** ``high_water`` (a file apart) holds the highest number ever written, so
that a damaged or lost segment never makes a number come twice: the server would take the new fact
for the old one. After damage the numbers jump forward, and ``align`` closes gaps inside what is left.

**Bounds.** Above ``bytes_soft_max`` facts that a later one makes void (states, inventories, reports)
wait in memory, newest per subject, and progress is dropped; events, releases and outcomes are still
written. With no space left they wait in memory in order, at most ``WAITING_MAX`` of them; beyond
that the newest are counted and told as lost. Nothing else is ever dropped.
"""

import bisect
import errno
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog

from virtha.agent.files import Files
from virtha.model.facts import (
    Awaited,
    Fact,
    FactBody,
    Happened,
    HostReport,
    Inventory,
    Progress,
    RunsWith,
    StorageReport,
    VmReport,
)
from virtha.model.ids import BootId
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.sentinel.events import Told

MAGIC = b"VOB1"
SUPERSEDES = b"\x01\0\0\0"
"""Header flag: all older segments are void (their facts are in this one under new numbers)."""
PLAIN = b"\0\0\0\0"
HEADER_BYTES = 8
RECORD = struct.Struct(">II")
MARK = struct.Struct(">QI")
SEGMENT_BYTES_MAX = 4 << 20
FACT_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = (1 << 20) - 4_096
"""A frame of the protocol must hold it, with its envelope."""
RECENT_MAX = 4_096
"""Facts also kept in memory: what a link may have unacknowledged."""
WAITING_MAX = 10_000
DAMAGED_FILES_MAX = 8
RESERVE_BYTES = 4 << 20
"""Set aside on disk for the moment when it is full: that very news must still be written."""

_log = structlog.get_logger(__name__)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Fact)


class Damage(Value, frozen=True, kw_only=True):
    """What was found wrong at opening."""

    lost_bytes: int = 0
    promised: bool = False
    """Facts are gone that had been written in full (not just the torn end of a write)."""


class _Segment:
    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self.last = first - 1
        self.size = HEADER_BYTES


class Outbox:
    """Implements ``virtha.wire.host_session.OutboxView``. One writer thread; any thread may read."""

    def __init__(
        self,
        directory: Path,
        *,
        boot: BootId,
        clock: Clock,
        files: Files,
        host_name: str = "",
        bytes_soft_max: int = 64 << 20,
        awaits_hello: bool = False,
    ) -> None:
        """``awaits_hello``: an outbox that knows no number at all (new, or its directory was lost)
        keeps facts in memory until ``align``. Numbered from 1 they might be those that the server
        has, and would be taken for known ones."""
        self._directory = directory
        self._boot = boot
        self._clock = clock
        self._files = files
        self._host_name = host_name
        self._bytes_soft_max = bytes_soft_max
        self._lock = threading.Lock()
        self._writing = threading.RLock()
        """Held by whoever changes segments: the disk thread, or the event loop at hello."""
        self._segments: list[_Segment] = []
        self._recent: deque[Fact] = deque(maxlen=RECENT_MAX)
        self._descriptor: int | None = None
        self._mark_descriptor: int | None = None
        self._waiting: deque[FactBody] = deque()
        self._latest: dict[str, FactBody] = {}
        self._lost_count = 0
        self._full_told = False
        self._last = 0
        self._acknowledged = 0
        self._has_gap = False
        self._awaits_hello = awaits_hello
        self.damage = Damage()

    # Opening

    def open(self) -> None:
        """Read what is there; damaged bytes are set aside and told as a fact."""
        self._directory.mkdir(parents=True, exist_ok=True)
        high_water, self._acknowledged = self._read_mark()
        lost_bytes, corrupt, missing = 0, False, False
        due: int | None = None
        for path in sorted(self._directory.glob("*.seg")):
            first = int(path.stem) if path.stem.isdecimal() else due or 0
            lost, is_corrupt, supersedes = self._open_segment(path)
            lost_bytes += lost
            corrupt = is_corrupt or (corrupt and not supersedes)
            # A segment is begun only after the one before it was whole: what lies between is gone.
            gap = due is not None and first > max(due, self._acknowledged + 1)
            missing = not supersedes and (missing or gap)
            held = self._segments and self._segments[-1].path == path
            due = self._segments[-1].last + 1 if held else first
        readable = max((s.last for s in self._segments), default=0)
        self._last = max(readable, high_water)
        self._awaits_hello = self._awaits_hello and self._last == 0
        self._has_gap = not self._contiguous() or (bool(self._segments) and readable < self._last)
        self._open_mark()
        self._make_reserve()
        promised = (
            corrupt
            or (missing and not self._damage_is_told())
            or (high_water > readable and high_water > self._acknowledged)
        )
        self.damage = Damage(lost_bytes=lost_bytes, promised=promised)
        if promised:
            self.append(
                [
                    Happened(
                        code="host.outbox.truncated",
                        fields={"name": self._host_name, "lost": lost_bytes},
                    )
                ]
            )

    def _damage_is_told(self) -> bool:
        """By an agent before this one, to a server that has not heard it yet: ``align`` has not been."""
        return any(
            isinstance(fact.body, Happened) and fact.body.code == "host.outbox.truncated"
            for fact in self._recent
            if fact.sequence > self._acknowledged
        )

    def _read_mark(self) -> tuple[int, int]:
        """(highest sequence ever written, last acknowledged one); zeros when it can't be read."""
        try:
            data = (self._directory / "high_water").read_bytes()
        except OSError:
            return 0, 0
        values = []
        for start in (0, MARK.size):
            part = data[start : start + MARK.size]
            if len(part) != MARK.size:
                values.append(0)
                continue
            value, checksum = MARK.unpack(part)
            values.append(value if zlib.crc32(part[:8]) == checksum else 0)
        return values[0], values[1]

    def _open_mark(self) -> None:
        path = self._directory / "high_water"
        try:
            self._mark_descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            # Not an inode left. Without the mark a later damage might go unnoticed; without an agent
            # no VM is restarted.
            _log.error("the outbox's mark can't be made", error=str(error))
        self._write_mark(0, self._last)

    def _write_mark(self, slot: int, value: int) -> None:
        """Not synced: it only has to outlive this process; for a power cut the segments are synced."""
        if self._mark_descriptor is None:
            return
        data = struct.pack(">Q", value)
        try:
            os.pwrite(self._mark_descriptor, data + struct.pack(">I", zlib.crc32(data)), slot * 12)
        except OSError as error:
            # On a full disk, where the file is new or is written elsewhere each time. The facts are on
            # disk: taken for a failed write of theirs, they would be written, and told, twice.
            _log.error("the outbox's mark can't be written", error=str(error))

    def _open_segment(self, path: Path) -> tuple[int, bool, bool]:
        """Adds it to the segments; (bytes set aside, whether they had once been whole, whether older
        segments are void)."""
        data = path.read_bytes()
        if data[:4] != MAGIC or len(data) < HEADER_BYTES:
            self._set_aside(path, data)
            path.unlink()
            # Shorter than its header: created, and then the power went. Nothing was in it.
            return len(data), len(data) >= HEADER_BYTES, False
        supersedes = data[4:HEADER_BYTES] == SUPERSEDES
        if supersedes:
            for old in self._segments:
                old.path.unlink(missing_ok=True)
            self._segments.clear()
            self._recent.clear()
        facts, end, corrupt = read_records(data)
        segment = _Segment(path, facts[0].sequence if facts else 0)
        segment.last = facts[-1].sequence if facts else -1
        segment.size = end
        lost = len(data) - end
        if lost:
            self._set_aside(path, data[end:])
            os.truncate(path, end)
        if facts:
            self._segments.append(segment)
            self._recent.extend(facts)
        else:
            path.unlink()
        return lost, corrupt, supersedes

    def _set_aside(self, path: Path, data: bytes) -> None:
        if not data:
            return
        damaged = self._directory / "damaged"
        target = damaged / f"{path.name}.{self._clock.wall_ms()}"
        try:
            damaged.mkdir(exist_ok=True)
            self._files.write_atomic(target, data)
        except OSError as error:
            _log.error(
                "damaged outbox bytes can't be set aside", path=str(target), error=str(error)
            )
            return
        for old in sorted(damaged.iterdir(), key=lambda p: p.stat().st_mtime)[:-DAMAGED_FILES_MAX]:
            old.unlink(missing_ok=True)

    def _contiguous(self) -> bool:
        return all(
            after.first == before.last + 1
            for before, after in zip(self._segments, self._segments[1:], strict=False)
        ) and all(
            after.sequence == before.sequence + 1
            for before, after in zip(list(self._recent), list(self._recent)[1:], strict=False)
        )

    # Reading (the link)

    @property
    def last_sequence(self) -> int:
        return self._last

    @property
    def first_sequence(self) -> int:
        with self._lock:
            for segment in self._segments:
                if segment.last > self._acknowledged:
                    return max(segment.first, self._acknowledged + 1)
            return self._last + 1

    def facts_after(self, sequence: int, limit: int) -> tuple[Fact, ...]:
        with self._lock:
            recent = tuple(self._recent)
            segments = list(self._segments)
        if not recent or not segments:
            return ()
        if sequence + 1 >= recent[0].sequence or segments[0].first == recent[0].sequence:
            start = bisect.bisect_right(recent, sequence, key=lambda fact: fact.sequence)
            return recent[start : start + limit]
        for segment in segments:
            if segment.last <= sequence:
                continue
            facts, _, _ = read_records(segment.path.read_bytes())
            found = [fact for fact in facts if fact.sequence > sequence]
            if found:
                return tuple(found[:limit])
        return ()

    def holds(self, body: FactBody) -> bool:
        """Whether the very same is on its way already, not acknowledged yet."""
        with self._lock:
            recent = tuple(self._recent)
        return any(fact.sequence > self._acknowledged and fact.body == body for fact in recent)

    def told(self) -> tuple[Told, ...]:
        """The events of this boot that are still here, acknowledged or not, oldest first: what an
        agent that died between telling and recording must not tell again."""
        with self._lock:
            recent = tuple(self._recent)
        return tuple(
            Told(at_ms=fact.monotonic_ms, happened=fact.body)
            for fact in recent
            if fact.boot == self._boot and isinstance(fact.body, Happened)
        )

    def on_facts_acknowledged(self, sequence: int) -> None:
        """The server has committed all up to ``sequence``: whole segments below are deleted."""
        with self._lock:
            if sequence <= self._acknowledged:
                return
            self._acknowledged = sequence
            self._write_mark(1, sequence)
            while self._segments and self._segments[0].last <= sequence:
                if len(self._segments) == 1:
                    break  # the writer's own; it goes when the writer has begun another
                self._segments.pop(0).path.unlink(missing_ok=True)

    def align(self, acknowledged: int) -> None:
        """At hello: continue after the server's number, and close gaps that damage has left.

        The server never recorded anything above ``acknowledged``, so the facts left here may take
        new numbers; they get ones that were never used by anybody.
        """
        self.on_facts_acknowledged(acknowledged)
        with self._writing, self._lock:
            self._awaits_hello = False
            if acknowledged <= self._last and not self._has_gap:
                return
            pending = [f for s in self._segments for f in read_records(s.path.read_bytes())[0]]
            # If the server is ahead of all that we know of, its numbers above ours are facts of this
            # host that we lost; those that we have are newer and not among them.
            if acknowledged <= self._last:
                pending = [fact for fact in pending if fact.sequence > acknowledged]
            start = max(self._last, acknowledged) + 1
            self._replace(start, pending)
            self._has_gap = False

    def _replace(self, start: int, pending: list[Fact]) -> None:
        self._close_segment()
        renumbered = [
            msgspec.structs.replace(fact, sequence=start + index)
            for index, fact in enumerate(pending)
        ]
        old = self._segments
        self._segments = []
        self._recent.clear()
        if renumbered:
            path = self._directory / f"{start:020d}.seg"
            data = MAGIC + SUPERSEDES + b"".join(_record(fact) for fact in renumbered)
            self._files.write_atomic(path, data)
            segment = _Segment(path, start)
            segment.last = renumbered[-1].sequence
            segment.size = len(data)
            self._segments = [segment]
            self._recent.extend(renumbered)
        for gone in old:
            gone.path.unlink(missing_ok=True)
        self._last = start + len(renumbered) - 1
        self._write_mark(0, self._last)

    # Writing (one thread)

    @property
    def bytes_used(self) -> int:
        with self._lock:
            return sum(segment.size for segment in self._segments)

    @property
    def waiting(self) -> int:
        """Facts that wait in memory for room."""
        return len(self._waiting) + len(self._latest)

    def append(self, bodies: Iterable[FactBody]) -> bool:
        """Write facts durably, in order. False: no room, they wait in memory (``append(())`` retries)."""
        with self._writing:
            return self._append(bodies)

    def _append(self, bodies: Iterable[FactBody]) -> bool:
        crowded = self.bytes_used > self._bytes_soft_max
        for body in bodies:
            if (crowded or self._full_told) and (key := superseded_by_key(body)) is not None:
                if key:
                    self._latest.pop(key, None)
                    self._latest[key] = body
            elif len(self._waiting) < WAITING_MAX:
                self._waiting.append(body)
            else:
                self._lost_count += 1
        if not crowded and self._latest:
            self._waiting.extend(self._latest.values())
            self._latest.clear()
        return self._flush()

    def _flush(self) -> bool:
        if not self._waiting:
            return True
        if self._awaits_hello:
            return False
        try:
            self._write_batch(list(self._waiting))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise
            return self._on_full(error)
        self._waiting.clear()
        if self._full_told:
            self._full_told = False
            self._make_reserve()
            if self._lost_count:
                lost, self._lost_count = self._lost_count, 0
                return self._append(
                    [
                        Happened(
                            code="host.outbox.truncated",
                            fields={"name": self._host_name, "lost": lost},
                        )
                    ]
                )
        return True

    def _on_full(self, error: OSError) -> bool:
        _log.error("the outbox can't be written", error=str(error), waiting=len(self._waiting))
        if self._full_told:
            return False
        self._full_told = True
        self._waiting.append(Happened(code="host.disk.full", fields={"name": self._host_name}))
        # The reserve is there for this batch: the news that the disk is full, and what led to it.
        (self._directory / "reserve").unlink(missing_ok=True)
        try:
            self._write_batch(list(self._waiting))
        except OSError:
            return False
        self._waiting.clear()
        return True

    def _write_batch(self, bodies: list[FactBody]) -> None:
        wall_ms, monotonic_ms = self._clock.wall_ms(), self._clock.monotonic_ms()
        facts = [
            Fact(
                sequence=self._last + 1 + index,
                boot=self._boot,
                monotonic_ms=monotonic_ms,
                wall_ms=wall_ms,
                body=_sendable(body, self._host_name),
            )
            for index, body in enumerate(bodies)
        ]
        data = b"".join(_record(fact) for fact in facts)
        segment = self._writable_segment(facts[0].sequence)
        assert self._descriptor is not None
        try:
            self._files.write(self._descriptor, data)
            self._files.sync(self._descriptor)
        except OSError:
            # Take the half-written batch out again, or the next one would follow a torn record.
            self._discard_tail(segment)
            raise
        with self._lock:
            segment.last = facts[-1].sequence
            segment.size += len(data)
            self._last = segment.last
            self._recent.extend(facts)
            self._write_mark(0, self._last)

    def _discard_tail(self, segment: _Segment) -> None:
        try:
            os.truncate(segment.path, segment.size)
        except OSError as error:
            _log.error("outbox segment left with a torn end", error=str(error))
        self._close_segment()

    def _writable_segment(self, first: int) -> _Segment:
        newest = self._segments[-1] if self._segments else None
        if self._descriptor is not None and newest and newest.size < SEGMENT_BYTES_MAX:
            return newest
        self._close_segment()
        segment = _Segment(self._directory / f"{first:020d}.seg", first)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(segment.path, flags, 0o600)
        try:
            self._files.write(descriptor, MAGIC + PLAIN)
            self._files.sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            segment.path.unlink(missing_ok=True)
            raise
        self._descriptor = descriptor
        with self._lock:
            self._segments.append(segment)
            while len(self._segments) > 1 and self._segments[0].last <= self._acknowledged:
                self._segments.pop(0).path.unlink(missing_ok=True)
        return segment

    def _close_segment(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _make_reserve(self) -> None:
        path = self._directory / "reserve"
        try:
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            _log.warning("no room for the outbox's reserve", error=str(error))
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self._close_segment()
        if self._mark_descriptor is not None:
            os.close(self._mark_descriptor)
            self._mark_descriptor = None


def superseded_by_key(body: FactBody) -> str | None:
    """None: must never be dropped. A later fact of the same key makes it void; '' : simply dropped."""
    match body:
        case VmReport() | Awaited():
            return f"vm {body.vm_id}"
        case RunsWith():
            return f"runs with {body.vm_id}"
        case Inventory():
            return "inventory"
        case HostReport():
            return "host"
        case StorageReport():
            return f"storage {body.storage_domain_id}"
        case Progress():
            return ""
        case _:
            return None


def _sendable(body: FactBody, host_name: str) -> FactBody:
    """One that fits no frame would block all that follow: say so in its place."""
    size = len(_encoder.encode(body))
    if size <= BODY_BYTES_MAX:
        return body
    return Happened(
        code="host.fact.too_large",
        fields={"name": host_name, "kind": type(body).__name__, "size": size},
    )


def _record(fact: Fact) -> bytes:
    payload = _encoder.encode(fact)
    return RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def read_records(data: bytes) -> tuple[list[Fact], int, bool]:
    """(facts of the readable prefix, where it ends, whether what follows is more than a torn write)."""
    facts: list[Fact] = []
    at = HEADER_BYTES
    while at < len(data):
        if len(data) - at < RECORD.size:
            return facts, at, False
        length, checksum = RECORD.unpack_from(data, at)
        payload = data[at + RECORD.size : at + RECORD.size + length]
        if length > FACT_BYTES_MAX:
            return facts, at, True
        if len(payload) < length:
            return facts, at, False
        try:
            if zlib.crc32(payload) != checksum:
                raise ValueError("checksum")
            facts.append(_decoder.decode(payload))
        except (ValueError, msgspec.MsgspecError):
            return facts, at, True
        at += RECORD.size + length
    return facts, at, False
