"""Commands that the documentation and our own messages name: each exists, and takes the options that are named with it."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from virtha.cli.main import NOUNS, command, load

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/guide").glob("*.md")]
)
_QUOTED = re.compile(r"`(virtha [^`\n]+)`")
_TYPED = re.compile(r"^(?: {4})?(virtha .+)$", re.MULTILINE)
_ADVISED = re.compile(
    rf"(?:'(?=virtha [a-z])|(?:`|: )(?=virtha (?:{'|'.join(NOUNS)})\b))(virtha [^'`;,()]*)"
)
_ENDS = re.compile(r"\s#\s|[;|<>]|&&|\\$|…")


def problem(line: str) -> str | None:
    """What is wrong with a command line that begins with ``virtha``; None: nothing, or it names no verb."""
    text = _ENDS.split(line)[0].strip().rstrip(".,")
    try:
        words = shlex.split(text)[1:]
    except ValueError:
        words = text.split()[1:]
    if not words or words[0].startswith("-"):
        return None
    if words[0] not in NOUNS:
        return f"there is no command '{words[0]}'"
    found: Any = load(words.pop(0))
    flags = _flags(found)
    while isinstance(found, TyperGroup) and words and re.fullmatch("[a-z][a-z-]*", words[0]):
        if words[0] not in found.commands:
            return f"{found.name} has no verb '{words[0]}'"
        found = found.commands[words.pop(0)]
        flags |= _flags(found)
    if "--" in words:
        words = words[: words.index("--")]
    wrong = [word for word in words if word.startswith("-") and word.partition("=")[0] not in flags]
    return f"{found.name} takes no {wrong[0]}" if wrong else None


def _flags(found: Any) -> set[str]:
    named = (*found.params, *command().params)
    return {"--help", *(flag for param in named for flag in (*param.opts, *param.secondary_opts))}


def lines_of(page: Path) -> Iterator[tuple[int, str]]:
    text = page.read_text()
    for pattern in (_QUOTED, _TYPED):
        for found in pattern.finditer(text):
            prose = pattern is _TYPED and found[1].split()[1] not in NOUNS
            if not prose:
                yield text.count("\n", 0, found.start()) + 1, found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_can_be_typed(page: Path) -> None:
    wrong = [
        f"{page.name}:{number}: {line}: {why}"
        for number, line in lines_of(page)
        if (why := problem(line)) is not None
    ]
    assert wrong == []


def test_what_our_messages_advise_can_be_typed() -> None:
    """In single quotes each is a command; elsewhere a word that is no noun of ours is taken for prose."""
    wrong, seen = [], 0
    for path in sorted((ROOT / "virtha").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            for found in _ADVISED.finditer(node.value):
                seen += 1
                if (why := problem(found[1])) is not None:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {found[1]}: {why}")
    assert wrong == []
    assert seen > 100, "they are found"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("virtha vm strat web1", "vm has no verb 'strat'"),
        ("virtha vm start web1 --on h1", "start takes no --on"),
        ("virtha shutdown", "there is no command 'shutdown'"),
        ("virtha vm start web1 --host h1  # there", None),
        ("virtha lab exec h1 -- virsh list --all", None),
    ],
)
def test_what_is_wrong_is_found(line: str, why: str | None) -> None:
    assert problem(line) == why
