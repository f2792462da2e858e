"""docs/architecture.md can be walked: every file that it names is there, and every name in it."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
# `rooms/file.py`, `file.py: name`
_NAMED = re.compile(r"`([a-z_/]+\.py)(?:: ([A-Za-z_]+))?`")


def files_called(name: str) -> list[Path]:
    """Below ``virtha/``, or from the repository's root; a bare name may be any room's."""
    if "/" in name:
        return [path for path in (ROOT / "virtha" / name, ROOT / name) if path.is_file()]
    return sorted((ROOT / "virtha").rglob(name))


def test_every_file_that_is_named_is_there() -> None:
    named = {found[1] for found in _NAMED.finditer(PAGE)}
    assert len(named) > 100, "they are found"
    assert sorted(name for name in named if not files_called(name)) == []


def test_every_name_is_in_its_file() -> None:
    named = {(found[1], found[2]) for found in _NAMED.finditer(PAGE) if found[2]}
    assert len(named) > 5, "they are found"
    missing = [
        f"{name}: {word}"
        for name, word in sorted(named)
        if not any(
            re.search(rf"\b(def|class) {word}\b|^{word}\b.*=", path.read_text(), re.MULTILINE)
            for path in files_called(name)
        )
    ]
    assert missing == []
