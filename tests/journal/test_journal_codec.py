"""The bytes of a journal: everything comes back as it went in, and damage costs nothing that stands before it."""

import os
import subprocess
import sys
import typing
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_values import HEADER, Drawn, Sample, beginning, value_of, whole

from virtha.engine.events import BeatSeen, Decision, EngineEvent, HoldChanged, Stalled
from virtha.engine.journal import (
    FORMAT,
    MAGIC,
    FaultKind,
    SegmentReader,
    SegmentWriter,
    digest_of,
)
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.ids import BootId, HostId
from virtha.model.time import Millis

pytestmark = pytest.mark.req("X2")

SNAPSHOT = value_of(EngineSnapshot, Sample())
BEGINNING = beginning(SNAPSHOT)
exact = msgspec.msgpack.Encoder(order="deterministic").encode
"""Equal bytes: also True is not 1 then, and a word of an enumeration not another one's."""


@st.composite
def values(draw: st.DrawFn, kind: Any) -> Any:
    return value_of(kind, Drawn(draw))


def same(found: object, given: object) -> bool:
    return found == given and exact(found) == exact(given)


@pytest.mark.parametrize("kind", typing.get_args(EngineEvent), ids=lambda kind: kind.__name__)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(kind: Any, data: st.DataObject) -> None:
    events = tuple(data.draw(st.lists(values(kind), min_size=1, max_size=3)))
    reader = whole(BEGINNING + SegmentWriter().turn(Millis(7), events))
    (turn,) = reader.turns()
    assert turn.now == 7 and same(turn.events, events)
    assert turn.decision is None and turn.digest is None


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(decision=values(Decision))
def test_every_decision_comes_back_as_it_was(decision: Decision) -> None:
    writer = SegmentWriter()
    reader = whole(BEGINNING + writer.turn(Millis(7), ()) + writer.decided(decision))
    (turn,) = reader.turns()
    assert turn.decision is not None and same(turn.decision, decision)
    assert turn.digest == digest_of(decision) == digest_of(turn.decision)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(snapshot=values(EngineSnapshot))
def test_every_snapshot_comes_back_as_it_was(snapshot: EngineSnapshot) -> None:
    found = whole(beginning(snapshot)).snapshot
    assert found is not None and same(found, snapshot)


def beat(host: int, *, boot: str = "b1", alive: bool = True) -> BeatSeen:
    return BeatSeen(host_id=HostId(f"host-{host}"), boot=BootId(boot), agent_alive=alive)


@given(
    turns=st.lists(
        st.lists(
            st.one_of(
                st.builds(beat, st.integers(0, 3), boot=st.sampled_from(["b1", "b2"])),
                st.just(Stalled()),
                st.builds(HoldChanged, reason=st.sampled_from([None, "why"])),
            ),
            max_size=8,
        ),
        max_size=6,
    )
)
def test_beats_keep_their_place_among_the_others(turns: list[list[EngineEvent]]) -> None:
    writer = SegmentWriter()
    data = BEGINNING + b"".join(writer.turn(Millis(at), events) for at, events in enumerate(turns))
    assert [list(turn.events) for turn in whole(data).turns()] == turns


def test_a_beat_costs_one_number_after_its_first() -> None:
    writer = SegmentWriter()
    beats = [beat(number) for number in range(100)]
    first, second = writer.turn(Millis(1), beats), writer.turn(Millis(2), beats)
    assert len(first) > 100 * len("host-1b1")
    assert len(second) < 200


# Damage

TURNS = [(Millis(number), (beat(number), Stalled())) for number in range(4)]


def segment() -> tuple[bytes, list[int]]:
    """Four steps with their decisions, and where each record ends."""
    writer = SegmentWriter()
    data = BEGINNING
    ends = [len(data)]
    for now, events in TURNS:
        for part in (writer.turn(now, events), writer.decided(Decision(wake_at=now))):
            data += part
            ends.append(len(data))
    return data, ends


@pytest.mark.bad_input("truncated journal")
def test_a_segment_cut_anywhere_keeps_all_that_stands_before_the_cut() -> None:
    data, ends = segment()
    for cut in range(len(BEGINNING), len(data)):
        reader = SegmentReader(data[:cut])
        turns = list(reader.turns())
        records = max(index for index, end in enumerate(ends) if end <= cut)
        assert len(turns) == (records + 1) // 2
        assert [turn.decision is not None for turn in turns[:-1]] == [True] * (len(turns) - 1)
        if cut in ends:
            assert reader.fault is None
        else:
            assert reader.fault is not None and reader.fault.kind is FaultKind.TRUNCATED
            assert reader.fault.offset == ends[records]


@pytest.mark.parametrize("cut", [0, 1, len(MAGIC), len(MAGIC) + 5, len(BEGINNING) - 1])
def test_a_segment_cut_before_its_first_step_says_so(cut: int) -> None:
    reader = SegmentReader(BEGINNING[:cut])
    assert reader.fault is not None and reader.fault.kind is FaultKind.TRUNCATED
    assert reader.snapshot is None and list(reader.turns()) == []


@pytest.mark.bad_input("damaged journal")
def test_every_flipped_bit_is_found_where_it_is() -> None:
    data, ends = segment()
    for at in range(len(MAGIC), len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << (at % 8)
        reader = SegmentReader(bytes(damaged))
        turns = list(reader.turns())
        assert reader.fault is not None and reader.fault.kind is FaultKind.DAMAGED
        whole_records = [end for end in ends if end <= at]
        assert len(turns) == len(whole_records) // 2
        assert reader.fault.offset <= at
        if whole_records:
            assert reader.fault.offset == whole_records[-1]


def test_zeros_at_the_end_are_damage() -> None:
    """What a file system leaves of a file that grew when the power went."""
    data, _ = segment()
    reader = SegmentReader(data + bytes(4096))
    assert len(list(reader.turns())) == len(TURNS)
    assert reader.fault is not None
    assert (reader.fault.kind, reader.fault.offset) == (FaultKind.DAMAGED, len(data))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), prefix=st.sampled_from([b"", MAGIC, BEGINNING]))
def test_no_bytes_make_the_reader_fail(data: bytes, prefix: bytes) -> None:
    reader = SegmentReader(prefix + data)
    list(reader.turns())
    assert reader.fault is not None or prefix + data == BEGINNING


@pytest.mark.bad_input("foreign journal")
@pytest.mark.parametrize("data", [b"hello, world, this is text", b"\0" * 100, b"\x89PNG\r\n"])
def test_another_file_is_called_foreign(data: bytes) -> None:
    fault = SegmentReader(data).fault
    assert fault is not None and (fault.kind, fault.offset) == (FaultKind.FOREIGN, 0)


def record(payload: bytes) -> bytes:
    """With the right checksums, as a later version would write it."""
    head = len(payload).to_bytes(4, "big") + zlib.crc32(payload).to_bytes(4, "big")
    return head + zlib.crc32(head).to_bytes(4, "big") + payload


@pytest.mark.bad_input("newer journal")
def test_a_later_format_is_named_with_its_version() -> None:
    header = {"type": "header", "format": FORMAT + 1, "program": "9.4.0", "laid_out": ["anew"]}
    reader = SegmentReader(MAGIC + record(msgspec.msgpack.encode(header)))
    assert reader.fault is not None and reader.fault.kind is FaultKind.NEWER
    assert "format 2" in reader.fault.detail and "9.4.0" in reader.fault.detail
    assert reader.fault.offset == len(MAGIC)


@pytest.mark.parametrize(
    "payload",
    [
        {"type": "turn", "now": 1, "events": [{"type": "from_the_future"}]},
        {"type": "turn", "now": 1, "events": [{"type": "beats", "seen": [3]}]},
        {"type": "turn", "now": "noon"},
        {"type": "decided", "digest": b"12345678"},
        {"type": "decided"},
        {"type": "other"},
        {
            "type": "turn",
            "now": 1,
            "events": [
                {
                    "type": "host_configured",
                    "host": {"host_id": "h", "name": "h", "number": 1, "power": [{"feeds": []}]},
                }
            ],
        },
        {
            "type": "turn",
            "now": 1,
            "events": [
                {"type": "policy", "policy": {"detection": {"beat_interval_ms": 1 << 40}}},
            ],
        },
    ],
)
def test_a_whole_record_without_sense_ends_the_segment(payload: dict[str, Any]) -> None:
    good = SegmentWriter().turn(Millis(0), ())
    good += SegmentWriter().decided(Decision())
    reader = whole(BEGINNING + good + record(msgspec.msgpack.encode(payload)) + good)
    assert len(list(reader.turns())) == 1
    assert reader.fault is not None and reader.fault.kind is FaultKind.UNREADABLE
    assert reader.fault.offset == len(BEGINNING + good)
    assert f"written by virtha {HEADER.program}" in reader.fault.detail


def test_fields_of_a_later_version_are_left_out() -> None:
    later = {"type": "turn", "now": 5, "events": [{"type": "stalled", "deep": [1]}], "new": {}}
    (turn,) = whole(BEGINNING + record(msgspec.msgpack.encode(later))).turns()
    assert turn.events == (Stalled(),)


def test_the_same_bytes_under_every_hash_seed() -> None:
    program = (
        "import hashlib\n"
        "from freeze_journal import kinds, record\n"
        "from journal_values import Sample, value_of\n"
        "class Three(Sample):\n"
        "    def size(self, at_least): return 3\n"
        "parts = [record(name, value_of(kind, Three())) for name, kind in kinds().items()]\n"
        "print(hashlib.sha256(b''.join(parts)).hexdigest())\n"
    )
    here = str(Path(__file__).parent)
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": here},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(said) == 1 and len(said.pop()) == 65
