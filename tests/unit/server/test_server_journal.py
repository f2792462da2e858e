"""The ring of the engine's journal on a disk: bounded, private, readable while written, never in the leader's way."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtha.engine.configured import EngineHost
from virtha.engine.engine import Engine
from virtha.engine.events import HoldChanged, HostConfigured
from virtha.engine.journal import FaultKind, SegmentReader
from virtha.engine.records import ClusterRecord, EngineRecords
from virtha.engine.replay import Replay
from virtha.model.ids import ClusterId, HostId, InstallationId, Term
from virtha.model.policy import Policy
from virtha.model.time import Millis, UtcMillis
from virtha.server import journal as journal_module
from virtha.server.journal import RETRY_MS, EngineJournal, RingBounds, segment_paths

pytestmark = pytest.mark.req("X2")

SECONDS = 20.0
"""No test waits that long unless something is broken."""


class Leader:
    """A real engine and the turns around it."""

    def __init__(self, directory: Path, *, bounds: RingBounds | None = None, term: int = 1) -> None:
        self.directory = directory
        self.troubles: list[str] = []
        self.now = Millis(1_000)
        records = EngineRecords(cluster=ClusterRecord(term=Term(term)))
        self.engine = Engine(policy=Policy(), records=records, now=self.now)
        self.journal = EngineJournal(
            directory,
            installation_id=InstallationId("i"),
            cluster_id=ClusterId("c"),
            term=Term(term),
            bounds=bounds,
            on_trouble=self.troubles.append,
        )
        self.began = 0

    def turn(self, *, text: str = "") -> None:
        self.now = Millis(self.now + 1_000)
        number = self.now // 1_000
        host = EngineHost(host_id=HostId(f"h{number % 7}"), name=f"n{number}", number=number % 7)
        events = [HostConfigured(host=host), HoldChanged(reason=text or None)]
        if self.journal.wants_snapshot(self.now):
            self.journal.begin(self.engine.snapshot(), created_at_ms=UtcMillis(self.now))
            self.began += 1
        self.journal.turn(self.now, events)
        decision = self.engine.step(self.now, events)
        self.journal.decided(self.now, decision)

    def turns(self, count: int, *, text: str = "") -> None:
        for _ in range(count):
            self.turn(text=text)
        assert self.journal.flush(SECONDS)

    def segments(self) -> list[SegmentReader]:
        return [SegmentReader(path.read_bytes()) for path in segment_paths(self.directory)]


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Leader]:
    leader = Leader(tmp_path / "journal")
    yield leader
    leader.journal.close(SECONDS)


def replayed(reader: SegmentReader) -> int:
    """How many turns it has; all of them decided the same."""
    turns = list(Replay(reader).turns())
    assert reader.fault is None and not any(turn.difference or turn.failure for turn in turns)
    return len(turns)


def test_what_was_handed_over_is_read_back(leader: Leader) -> None:
    leader.turns(20)
    (reader,) = leader.segments()
    assert reader.header is not None
    assert (reader.header.cluster_id, reader.header.term, reader.header.number) == ("c", 1, 1)
    assert reader.header.created_at_ms == 2_000 and not reader.header.follows
    assert replayed(reader) == 20


def test_only_its_owner_reads_it(leader: Leader) -> None:
    previous = os.umask(0)
    try:
        leader.turns(1)
    finally:
        os.umask(previous)
    (path,) = segment_paths(leader.directory)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(leader.directory.stat().st_mode) == 0o700


def test_it_is_readable_while_it_is_written(leader: Leader) -> None:
    seen = 0
    for _ in range(10):
        leader.turns(3)
        (reader,) = leader.segments()
        assert replayed(reader) == seen + 3
        seen += 3


def test_the_ring_stays_within_its_bounds_and_each_segment_replays(tmp_path: Path) -> None:
    bounds = RingBounds(segment_bytes=8_000, ring_bytes=50_000, segments_max=5)
    leader = Leader(tmp_path, bounds=bounds)
    for _ in range(60):
        leader.turns(10, text="x" * 100)
        paths = segment_paths(tmp_path)
        assert len(paths) <= 5
        assert sum(path.stat().st_size for path in paths) <= 50_000 + 2_000
    assert leader.began > 8
    readers = leader.segments()
    numbers = [reader.header.number for reader in readers if reader.header is not None]
    assert numbers == list(range(leader.began - len(numbers) + 1, leader.began + 1))
    assert all(reader.header is not None and reader.header.follows for reader in readers)
    assert all(replayed(reader) > 5 for reader in readers)
    assert leader.journal.close(SECONDS) and leader.troubles == []


def test_a_segment_is_at_least_as_long_as_its_snapshot(tmp_path: Path) -> None:
    """Else a large cluster would write little but snapshots."""
    leader = Leader(tmp_path, bounds=RingBounds(segment_bytes=1))
    leader.turns(100)
    assert leader.began < 20
    leader.journal.close(SECONDS)


def test_the_next_leader_goes_on_with_the_numbers(tmp_path: Path) -> None:
    for term in (1, 2):
        leader = Leader(tmp_path, term=term)
        leader.turns(3)
        assert leader.journal.close(SECONDS)
    assert [path.name for path in segment_paths(tmp_path)] == [
        "00000001.journal",
        "00000002.journal",
    ]
    headers = [reader.header for reader in leader.segments()]
    assert [(one.term, one.follows) for one in headers if one is not None] == [
        (1, False),
        (2, False),
    ]


def test_files_that_are_no_segments_stay(tmp_path: Path) -> None:
    for name in ("notes.txt", "x.journal", ".journal", "12.journal.gz"):
        (tmp_path / name).write_text("mine")
    leader = Leader(tmp_path, bounds=RingBounds(segment_bytes=1, segments_max=1))
    leader.turns(30)
    leader.journal.close(SECONDS)
    assert {path.name for path in tmp_path.iterdir()} >= {"notes.txt", "x.journal", ".journal"}
    assert len(segment_paths(tmp_path)) == 1


# When the disk does not take it


class FullDisk:
    """Stands before os.write: after ``room`` bytes there is no space left, in the middle of a record."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self.refused = 0
        self._write = os.write
        monkeypatch.setattr(journal_module.os, "write", self.write)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.room <= 0:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return self._write(descriptor, part)


@pytest.mark.bad_input("full disk")
def test_a_full_disk_stops_nothing_and_is_told_once(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader.turns(10)
    disk = FullDisk(monkeypatch, room=100)
    leader.turns(200)  # more than RETRY_MS of the leader's time
    assert leader.now > 1_000 + 2 * RETRY_MS
    assert len(leader.troubles) == 1 and "No space left" in leader.troubles[0]
    assert disk.refused < 10, "it was tried at every turn"
    first = leader.segments()[0]
    assert replayed(first) >= 10  # and no half record after it

    disk.room = 10_000_000
    leader.turns(100)
    last = leader.segments()[-1]
    assert last.header is not None and not last.header.follows
    assert replayed(last) > 30
    disk.room = 0
    leader.turns(5)
    assert len(leader.troubles) == 2, "it was well again in between"


def test_a_segment_does_not_say_that_it_follows_one_that_was_lost(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the end of one segment and the beginning of the next wait for it."""
    leader.turns(3)
    gate = threading.Event()
    real = os.write

    def late(descriptor: int, data: memoryview) -> int:
        assert gate.wait(SECONDS)
        if len(leader.troubles) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(journal_module.os, "write", late)
    leader.turn()
    leader.journal.begin(leader.engine.snapshot(), created_at_ms=UtcMillis(1))
    gate.set()
    leader.turns(3)
    assert [path.name for path in segment_paths(leader.directory)] == ["00000001.journal"]
    leader.turns(80)
    first, last = leader.segments()
    assert replayed(first) == 3
    assert last.header is not None and not last.header.follows and replayed(last) > 5


def test_a_disk_that_hangs_holds_up_nobody(leader: Leader, monkeypatch: pytest.MonkeyPatch) -> None:
    leader.turns(2)
    hangs = threading.Event()
    real = os.write

    def hang(descriptor: int, data: memoryview) -> int:
        assert hangs.wait(SECONDS)
        return real(descriptor, data)

    monkeypatch.setattr(journal_module.os, "write", hang)
    monkeypatch.setattr(journal_module, "WAITING_BYTES_MAX", 20_000)
    for _ in range(300):
        leader.turn()
    assert len(leader.troubles) == 1 and "wait for the disk" in leader.troubles[0]
    assert not leader.journal.flush(0.01)
    hangs.set()
    leader.turns(100)
    readers = leader.segments()
    assert sum(replayed(reader) for reader in readers) < 402
    assert readers[-1].header is not None and not readers[-1].header.follows


def test_a_directory_that_can_not_be_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    leader = Leader(tmp_path / "file" / "journal")
    leader.turns(200)
    assert len(leader.troubles) == 1 and "Not a directory" in leader.troubles[0]
    assert leader.journal.close(SECONDS)


def test_a_snapshot_larger_than_the_ring_is_told_and_harms_no_segment(tmp_path: Path) -> None:
    leader = Leader(tmp_path)
    leader.turns(5)
    assert leader.journal.close(SECONDS)
    small = Leader(tmp_path, bounds=RingBounds(segment_bytes=100, ring_bytes=200))
    small.turns(5)
    assert len(small.troubles) == 1 and "more than the ring" in small.troubles[0]
    assert small.journal.close(SECONDS)
    assert replayed(small.segments()[0]) == 5


def test_a_file_in_the_way_is_never_overwritten(tmp_path: Path) -> None:
    """As of a second leader on the same directory: one of them writes another number."""
    one, other = Leader(tmp_path), Leader(tmp_path)
    one.turns(2)
    other.turns(2)
    assert len(other.troubles) == 1 and "File exists" in other.troubles[0]
    assert replayed(one.segments()[0]) == 2
    other.turns(120)
    assert [path.name for path in segment_paths(tmp_path)] == [
        "00000001.journal",
        "00000002.journal",
    ]
    assert one.journal.close(SECONDS) and other.journal.close(SECONDS)


def test_a_leader_that_was_killed_leaves_a_tail_that_is_told(leader: Leader) -> None:
    leader.turns(4)
    (path,) = segment_paths(leader.directory)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 3)
    reader = SegmentReader(path.read_bytes())
    turns = list(reader.turns())
    assert len(turns) == 4 and turns[-1].decision is None
    assert reader.fault is not None and reader.fault.kind is FaultKind.TRUNCATED


@pytest.mark.parametrize("bounds", [(0, 10, 1), (11, 10, 1), (5, 10, 0)])
def test_bounds_without_sense_are_refused(bounds: tuple[int, int, int]) -> None:
    with pytest.raises(AssertionError):
        RingBounds(segment_bytes=bounds[0], ring_bytes=bounds[1], segments_max=bounds[2])
