"""Every command that a fix, a help text or a page names is one, with the options that it names."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from virtha.cli.main import NOUNS, load
from virtha.cli.options import option_flags

ROOT = Path(__file__).parents[3]
TOLD = {"virtha server is ready"}
"""Sentences that begin as a command does."""
COMMAND = re.compile(r"(?<![\w/.@-])virtha((?: [a-z][a-z-]+)+)((?: [^\s`'\"();|<>&]+)*)")


def texts() -> Iterator[Path]:
    yield from sorted((ROOT / "virtha").rglob("*.py"))
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield ROOT / "README.md"


def wrong(noun: str, words: list[str], rest: str) -> str:
    """What of it there is not; empty: all there is."""
    found: Any = load(noun)
    while isinstance(found, TyperGroup) and words:
        if words[0] not in found.commands:
            return words[0]
        found = found.commands[words.pop(0)]
    if found.context_settings.get("ignore_unknown_options"):
        return ""
    flags = {flag for param in found.params for flag in option_flags(param)}
    named = re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
    return next((option for option in named if option not in flags | {"--help"}), "")


@pytest.mark.req("X1")
def test_what_is_named_can_be_typed() -> None:
    seen, found = 0, []
    for path in texts():
        for match in COMMAND.finditer(path.read_text()):
            noun, *words = match[1].split()
            if noun not in NOUNS or any(match[0].startswith(told) for told in TOLD):
                continue
            seen += 1
            if missing := wrong(noun, words, match[2]):
                found.append(f"{path.relative_to(ROOT)}: {match[0]!r}: {missing}")
    assert found == []
    assert seen > 400, "the commands are no longer found in the texts"
