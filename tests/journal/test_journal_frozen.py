"""Journals that version 1 of the format wrote are read for ever, field by field."""

import json
from typing import Any

import pytest
from freeze_journal import DIRECTORY, kinds, missing, plain
from journal_values import Sample, beginning, value_of, whole

from virtha.engine.journal import SegmentReader, SegmentWriter
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.time import Millis

pytestmark = pytest.mark.req("X2")

NAMES = sorted(path.stem for path in DIRECTORY.glob("*.bin"))
BEGINNING = beginning(value_of(EngineSnapshot, Sample()))
TURN = SegmentWriter().turn(Millis(1), ())


def holds(found: Any, frozen: Any) -> bool:
    """Whether all that was written is there; fields that came later are there besides."""
    if isinstance(frozen, dict):
        return isinstance(found, dict) and all(
            key in found and holds(found[key], value) for key, value in frozen.items()
        )
    if isinstance(frozen, list):
        return len(found) == len(frozen) and all(map(holds, found, frozen))
    return bool(found == frozen)


def read(name: str) -> Any:
    data = (DIRECTORY / f"{name}.bin").read_bytes()
    word = name.partition("_")[0]
    if word == "snapshot":
        return whole(data).snapshot
    reader = whole(BEGINNING + (data if word == "event" else TURN + data))
    (turn,) = reader.turns()
    assert reader.fault is None, reader.fault
    if word == "event":
        (event,) = turn.events
        return event
    assert turn.decision is not None
    (one,) = (*turn.decision.intents, *turn.decision.commands, *turn.decision.notices)
    return one


@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_is_read(name: str) -> None:
    frozen = json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"))
    found = read(name)
    assert isinstance(found, kinds()[name])
    assert holds(plain(found), frozen)


def test_each_kind_is_frozen() -> None:
    assert missing() == [], "run `python tests/journal/freeze_journal.py --write`"


def test_no_kind_has_gone() -> None:
    assert set(NAMES) - set(kinds()) == set(), "old journals have it: keep reading it"


def test_one_of_each_makes_a_segment() -> None:
    """As one file, so that nothing depends on what stands beside it."""
    parts = [(DIRECTORY / "snapshot.bin").read_bytes()]
    events = [name for name in NAMES if name.startswith("event_") and name != "event_beat"]
    decisions = [name for name in NAMES if name.startswith(("intent_", "command_", "notice"))]
    parts += [(DIRECTORY / f"{name}.bin").read_bytes() for name in events]
    for name in decisions:
        parts += [TURN, (DIRECTORY / f"{name}.bin").read_bytes()]
    reader = SegmentReader(b"".join(parts))
    turns = list(reader.turns())
    assert reader.fault is None
    assert len(turns) == len(events) + len(decisions)
