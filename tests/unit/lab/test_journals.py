"""A lab's journals are replayed before they go with it: by the real program, on journals as an engine wrote them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from journalled_play import confirmed_death

from virtha.engine.journal import SegmentReader, SegmentWriter
from virtha.lab import journals, lab, state
from virtha.lab.journals import Journals, Replayed, ServerJournals, read_replay, replayed_lab
from virtha.lab.lab import Lab
from virtha.model.errors import Failed
from virtha.model.time import Millis
from virtha.server.config import ServerPaths

pytestmark = pytest.mark.req("X2")


@pytest.fixture(scope="module")
def story() -> list[bytes]:
    """Two segments."""
    return confirmed_death()


@pytest.fixture
def made(tmp_path: Path) -> Lab:
    node = state.NodeState(name="s1", number=1, kind="server")
    state.write_state(state.LabState(id="vl1", directory=str(tmp_path), nodes=(node,)))
    return Lab.open(tmp_path)


@pytest.fixture
def ring(made: Lab) -> Path:
    directory = ServerPaths(made.server.root).journals / "c1"
    directory.mkdir(parents=True)
    return directory


def _put(ring: Path, number: int, segment: bytes) -> None:
    (ring / f"{number:08d}.journal").write_bytes(segment)


def _turns(segment: bytes) -> int:
    return sum(1 for _ in SegmentReader(segment).turns())


def _decided_otherwise(segment: bytes) -> bytes:
    """One turn of it has on record what no engine decides."""
    reader, writer = SegmentReader(segment), SegmentWriter()
    assert reader.header is not None and reader.snapshot is not None
    written = writer.begin(reader.header, reader.snapshot)
    for number, turn in enumerate(reader.turns()):
        assert turn.decision is not None
        decision = turn.decision
        if number == 0:
            decision = msgspec.structs.replace(decision, wake_at=Millis(1))
        written += writer.turn(turn.now, turn.events) + writer.decided(decision)
    return written


def test_all_segments_are_replayed_and_those_that_are_complete_once(
    made: Lab, ring: Path, story: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = story
    _put(ring, 1, first[: len(first) // 2])
    found = Journals(made)
    begun = found.replay()
    assert begun.is_the_same and 0 < begun.turns < _turns(first), "the server writes on meanwhile"
    _put(ring, 1, first)
    _put(ring, 2, second)
    whole = found.replay()
    assert whole == Replayed(turns=_turns(first) + _turns(second))
    assert whole.is_the_same and found.replayed == whole
    replayed: list[str] = []
    real = journals.replay_segment
    monkeypatch.setattr(
        journals, "replay_segment", lambda path, log: replayed.append(path.stem) or real(path, log)
    )
    (ring / "00000001.journal").unlink()
    assert found.replay() == whole, "it went out of the ring, and was replayed before"
    assert replayed == ["00000002"]


def test_a_server_that_is_in_no_lab_has_its_journals_replayed_where_its_disk_is(
    tmp_path: Path, story: list[bytes]
) -> None:
    """One ring per cluster."""
    for number, segment in enumerate(story, 1):
        ring = ServerPaths(tmp_path / "disk").journals / f"c{number}"
        ring.mkdir(parents=True)
        _put(ring, 1, segment)
    found = ServerJournals(tmp_path / "disk", tmp_path / "out").replay()
    assert found == Replayed(turns=sum(_turns(one) for one in story)) and found.is_the_same
    assert len(list((tmp_path / "out").iterdir())) == 2, "what each replay said is kept"
    assert not (tmp_path / "disk" / "replayed").exists()


def test_what_went_out_of_the_ring_unread_was_not_replayed(
    made: Lab, ring: Path, story: list[bytes]
) -> None:
    _put(ring, 2, story[1])
    found = Journals(made).replay()
    assert (found.turns, found.gone) == (_turns(story[1]), 1)
    assert not found.is_the_same


def test_a_turn_that_is_decided_otherwise_is_told(
    made: Lab, ring: Path, story: list[bytes]
) -> None:
    _put(ring, 1, _decided_otherwise(story[0]))
    _put(ring, 2, story[1])
    found = Journals(made).replay()
    assert found.differ == 1 and not found.is_the_same
    assert "1 of them decided differently" in str(found)


def test_a_lab_without_a_journal_shows_nothing(made: Lab) -> None:
    assert Journals(made).replay() == Replayed()
    assert not Replayed().is_the_same


@pytest.fixture
def downs(made: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each `down` whether it kept the files."""
    found: list[bool] = []
    monkeypatch.setattr(lab, "up", lambda *_, **__: made)
    monkeypatch.setattr(lab, "down", lambda *_, keep_files, **__: found.append(keep_files))
    return found


def test_a_lab_goes_when_its_journal_was_decided_the_same(
    made: Lab, ring: Path, story: list[bytes], downs: list[bool]
) -> None:
    with replayed_lab(made.directory, hosts=1) as found:
        for number, segment in enumerate(story, 1):
            _put(ring, number, segment)
    assert found.replayed is not None and found.replayed.turns > 0
    assert downs == [False]


def test_a_lab_whose_journal_differs_fails_and_its_files_stay(
    made: Lab, ring: Path, story: list[bytes], downs: list[bool]
) -> None:
    with pytest.raises(Failed, match="not decided the same"), replayed_lab(made.directory, hosts=1):
        _put(ring, 1, _decided_otherwise(story[0]))
    assert downs == [True]


def test_a_failure_is_told_as_it_is_and_the_journal_is_replayed_as_well(
    made: Lab, ring: Path, story: list[bytes], downs: list[bool]
) -> None:
    for segment, kept in ((story[0], False), (_decided_otherwise(story[0]), True)):
        with pytest.raises(ZeroDivisionError), replayed_lab(made.directory, hosts=1):
            _put(ring, 1, segment)
            raise ZeroDivisionError
        assert downs.pop() is kept


def test_an_interrupted_run_ends_soon(made: Lab, ring: Path, downs: list[bool]) -> None:
    with pytest.raises(KeyboardInterrupt), replayed_lab(made.directory, hosts=1) as found:
        raise KeyboardInterrupt
    with replayed_lab(made.directory, hosts=1) as found:
        found.leave_unread()
    assert downs == [False, False] and found.replayed is None


def test_what_was_not_built_is_taken_down(
    tmp_path: Path, downs: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(*_: object, **__: object) -> Lab:
        raise Failed("no network")

    monkeypatch.setattr(lab, "up", up)
    with pytest.raises(Failed, match="no network"), replayed_lab(tmp_path, hosts=1):
        pass
    assert downs == [False]


# What `virtha replay` says


def _segment(**fields: object) -> dict[str, object]:
    return {"file": "1.journal", "turns": 10, "differ": 0, "fault": None, "failure": "", **fields}


def _read(path: Path, *segments: dict[str, object]) -> Replayed:
    path.write_text(json.dumps({"version": "1", "segments": segments}))
    return read_replay(path, 0)


def test_a_replay_is_the_same_unless_a_turn_differs_or_a_segment_is_broken(tmp_path: Path) -> None:
    log = tmp_path / "replay.json"
    cut = {"kind": "truncated", "offset": 9, "detail": "…"}
    good = _read(log, _segment(), _segment(fault=cut))
    assert good == Replayed(turns=20, cut=1)
    assert good.is_the_same, "a kill -9 of the server cuts its last record short"
    assert not _read(log, _segment(differ=1)).is_the_same
    assert not _read(log, _segment(fault={**cut, "kind": "damaged"})).is_the_same
    assert not _read(log, _segment(failure="AssertionError")).is_the_same
    assert not _read(log).is_the_same, "nothing was replayed"
    log.write_text("virtha: no such file")
    with pytest.raises(Failed, match="can't be read"):
        read_replay(log, 1)
