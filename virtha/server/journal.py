"""The ring of files that keeps an engine's journal (X2): bounded, and never in the leader's way.

One directory per cluster; segments are files ``00000042.journal``, each of which can be replayed alone. The leader hands
over bytes and goes on: a thread of the ring's own writes them, so that a disk that is full or hangs holds up nothing.
What can't be written is dropped, told once, and the next segment says that something is missing before it.

Nothing is synced. The journal explains what was decided, nothing is decided from it: a process that is killed loses
what its thread had not written yet, a host that loses power what its kernel had not.
"""

import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from virtha import __version__
from virtha.engine.events import Decision, EngineEvent
from virtha.engine.journal import Header, SegmentWriter
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.ids import ClusterId, InstallationId, Term
from virtha.model.time import Millis, UtcMillis
from virtha.model.value import Value

SUFFIX = ".journal"
RETRY_MS = 60_000
"""After a write that failed: a snapshot is too much work to be made in vain at every turn."""
WAITING_BYTES_MAX = 256 << 20
"""Handed over and not written yet; beyond it the disk is taken for hung. Holds the snapshot of the largest
cluster that virtha is made for (10,000 hosts, 200,000 VMs: about 100 MiB)."""


class RingBounds(Value, frozen=True, kw_only=True):
    """A segment is over at ``segment_bytes``, or at twice its snapshot where that is more; the oldest go before the
    ring would grow beyond ``ring_bytes`` or ``segments_max``. The last one may end one turn later."""

    segment_bytes: int = 16 << 20
    ring_bytes: int = 512 << 20
    segments_max: int = 64

    def __post_init__(self) -> None:
        assert 0 < self.segment_bytes <= self.ring_bytes, "a segment larger than the ring"
        assert self.segments_max > 0, "a ring without segments"


class _Segment(Value, frozen=True, kw_only=True):
    """Bytes for the writing thread. ``first``: a new file begins with them."""

    number: int
    data: bytes
    first: bool
    follows: bool = False
    """Its header says that nothing is missing before it."""
    limit_bytes: int = 0


def segment_paths(directory: Path) -> list[Path]:
    """The ring's segments, oldest first. Other files are left out. Raises OSError."""
    found = [path for path in directory.iterdir() if _number(path) is not None]
    return sorted(found, key=lambda path: _number(path) or 0)


def _number(path: Path) -> int | None:
    stem = path.name.removesuffix(SUFFIX)
    if stem == path.name or not (stem.isascii() and stem.isdigit()):
        return None
    return int(stem)


class EngineJournal:
    """One leader's journal. Made, it lists its directory once; from then on it never waits for the disk. In each turn: ``begin`` if ``wants_snapshot``, then ``turn``, the step, ``decided``.

    Not for two threads at once; its own thread is its own business.
    """

    def __init__(
        self,
        directory: Path,
        *,
        installation_id: InstallationId,
        cluster_id: ClusterId,
        term: Term,
        bounds: RingBounds | None = None,
        on_trouble: Callable[[str], None] = lambda trouble: None,
    ) -> None:
        """``on_trouble`` is called once until something could be written again, in whichever thread finds it."""
        self._installation_id = installation_id
        self._cluster_id = cluster_id
        self._term = term
        self._bounds = bounds or RingBounds()
        self._files = _Files(directory, self._bounds, on_trouble)
        self._writer = SegmentWriter()
        self._number: int | None = None
        """Of the open segment; None: there is none."""
        self._written_bytes = 0
        self._limit_bytes = 0
        self._whole = False
        """The segment before was handed over to its end."""
        self._retry_at_ms = 0

    def wants_snapshot(self, now: Millis) -> bool:
        """Whether a segment should begin, which costs as much as the cluster is large."""
        if self._number is not None and self._files.broke(self._number):
            self._give_up(now)
        if self._number is None:
            return now >= self._retry_at_ms
        return self._written_bytes >= self._limit_bytes

    def begin(self, state: EngineSnapshot, *, created_at_ms: UtcMillis) -> None:
        """The next segment. ``state``: of the engine right before the next turn."""
        number = self._files.next_number()
        follows = self._whole and self._number is not None
        header = Header(
            program=__version__,
            installation_id=self._installation_id,
            cluster_id=self._cluster_id,
            term=self._term,
            created_at_ms=created_at_ms,
            number=number,
            follows=follows,
        )
        self._writer = SegmentWriter()
        data = self._writer.begin(header, state)
        self._limit_bytes = min(
            max(self._bounds.segment_bytes, 2 * len(data)), self._bounds.ring_bytes
        )
        self._written_bytes = 0
        self._number = number
        self._whole = True
        self._hand_over(data, now=state.now, first=True, follows=follows)

    def turn(self, now: Millis, events: Sequence[EngineEvent]) -> None:
        """Before the step."""
        if self._number is not None:
            self._hand_over(self._writer.turn(now, events), now=now)

    def decided(self, now: Millis, decision: Decision) -> None:
        """After it."""
        if self._number is not None:
            self._hand_over(self._writer.decided(decision), now=now)

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was handed over is with the kernel; False: not within that time."""
        return self._files.flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """The leader ends. Waits for the disk no longer than that; False: something was not written."""
        return self._files.close(timeout_s)

    def _hand_over(
        self, data: bytes, *, now: Millis, first: bool = False, follows: bool = False
    ) -> None:
        assert self._number is not None
        segment = _Segment(
            number=self._number,
            data=data,
            first=first,
            follows=follows,
            limit_bytes=self._limit_bytes,
        )
        if self._files.put(segment):
            self._written_bytes += len(data)
        else:
            self._give_up(now)

    def _give_up(self, now: Millis) -> None:
        """The segment lost a record, so nothing more belongs into it."""
        self._number = None
        self._whole = False
        self._retry_at_ms = now + RETRY_MS


class _Files:
    """The directory and its thread."""

    def __init__(
        self, directory: Path, bounds: RingBounds, on_trouble: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._bounds = bounds
        self._on_trouble = on_trouble
        self._queue: queue.SimpleQueue[_Segment | threading.Event | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._broken: int | None = None
        """Number of the last segment that could not be written."""
        self._told = False
        self._last_number = self._last_in_use()
        self._file: int | None = None
        self._file_bytes = 0
        self._thread = threading.Thread(target=self._run, name="engine-journal", daemon=True)
        self._thread.start()

    def _last_in_use(self) -> int:
        try:
            return max((_number(path) or 0 for path in segment_paths(self._directory)), default=0)
        except FileNotFoundError:
            return 0
        except OSError as error:
            self._tell(str(error))
            return 0

    # Called by the leader; never waits for the disk

    def next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def put(self, segment: _Segment) -> bool:
        with self._lock:
            if self._broken == segment.number:
                return False
            waiting = self._waiting_bytes
            hung = waiting + len(segment.data) > WAITING_BYTES_MAX
            if not hung:
                self._waiting_bytes += len(segment.data)
        if hung:
            self._tell(f"{waiting} bytes wait for the disk")
            return False
        self._queue.put(segment)
        return True

    def broke(self, number: int) -> bool:
        with self._lock:
            return self._broken == number

    def flush(self, timeout_s: float) -> bool:
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        flushed = self.flush(timeout_s)
        self._queue.put(None)
        if flushed:
            self._thread.join(timeout_s)
        return flushed and not self._thread.is_alive()

    # The thread

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                self._close_file()
                return
            if isinstance(item, threading.Event):
                item.set()
                continue
            with self._lock:
                self._waiting_bytes -= len(item.data)
                # One that was handed over before the end of the one before it was found to be lost says what is
                # not so: it is not written either.
                if item.follows and self._broken == item.number - 1:
                    self._broken = item.number
                broken = self._broken == item.number
            if broken:
                continue
            try:
                self._write(item)
            except OSError as error:
                self._fail(item, error)

    def _write(self, item: _Segment) -> None:
        if item.first:
            self._close_file()
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._prune(item)
            path = self._directory / f"{item.number:08d}{SUFFIX}"
            flags = (
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            )
            self._file = os.open(path, flags, 0o600)
            self._file_bytes = 0
        assert self._file is not None, "a segment that was never begun"
        view = memoryview(item.data)
        while view:
            view = view[os.write(self._file, view) :]
        self._file_bytes += len(item.data)
        with self._lock:
            self._told = False

    def _prune(self, item: _Segment) -> None:
        """Room for the new segment as large as it may get."""
        if item.limit_bytes < len(item.data):
            raise OSError(
                errno.EFBIG, f"a snapshot of {len(item.data)} bytes is more than the ring"
            )
        paths = segment_paths(self._directory)
        sizes = [path.stat().st_size for path in paths]
        while paths and (
            len(paths) >= self._bounds.segments_max
            or sum(sizes) + item.limit_bytes > self._bounds.ring_bytes
        ):
            paths.pop(0).unlink(missing_ok=True)
            sizes.pop(0)

    def _fail(self, item: _Segment, error: OSError) -> None:
        if self._file is not None:
            # Half a record would look like a leader that was killed; the reader stops before it all the same.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._file_bytes)
            self._close_file()
        with self._lock:
            self._broken = item.number
        self._tell(str(error))

    def _tell(self, why: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._on_trouble(f"the engine's journal in {self._directory} can't be written: {why}")

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
