"""The frozen records of journal format 1: what stands in `v1` is read for ever.

`python tests/journal/freeze_journal.py` says which kinds have no file; with `--write` it writes those. Files that are
there are never written again: they are what some version has written into somebody's journal.
"""

import json
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec
from journal_values import Sample, beginning, value_of

from virtha.engine.events import Command, Decision, EngineEvent, Intent, Notice
from virtha.engine.journal import SegmentWriter
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.time import Millis

DIRECTORY = Path(__file__).parent / "v1"
NOW = Millis(1_700_000_000_000)


def tag_of(kind: type) -> str:
    return str(kind.__struct_config__.tag)


def kinds() -> dict[str, Any]:
    """Everything that a record may hold, by the name of its file."""
    found: dict[str, Any] = {"snapshot": EngineSnapshot, "notice": Notice}
    for word, union in (("event", EngineEvent), ("intent", Intent), ("command", Command)):
        found |= {f"{word}_{tag_of(kind)}": kind for kind in typing.get_args(union)}
    return found


def record(name: str, value: Any) -> bytes:
    """As it stands in a segment; the snapshot with the segment's beginning."""
    writer = SegmentWriter()
    match name.partition("_")[0]:
        case "snapshot":
            return beginning(value)
        case "event":
            return writer.turn(NOW, (value,))
        case "intent":
            return writer.decided(Decision(intents=(value,), wake_at=NOW))
        case "command":
            return writer.decided(Decision(commands=(value,), wake_at=NOW))
        case _:
            return writer.decided(Decision(notices=(value,), wake_at=NOW))


def plain(value: Any) -> Any:
    return msgspec.to_builtins(value, order="deterministic")


def missing() -> list[str]:
    return [name for name in kinds() if not (DIRECTORY / f"{name}.bin").is_file()]


def main(arguments: list[str]) -> int:
    names = missing()
    for name in names:
        if "--write" in arguments:
            value = value_of(kinds()[name], Sample())
            (DIRECTORY / f"{name}.bin").write_bytes(record(name, value))
            text = json.dumps(plain(value), indent=1, sort_keys=True) + "\n"
            (DIRECTORY / f"{name}.json").write_text(text, encoding="utf-8")
        print(name)
    return 1 if names and "--write" not in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
