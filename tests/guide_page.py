"""A page of the guide as a list of what its reader does: its fenced blocks, in order.

```` ```sh MACHINE ```` is typed there; ```` ```text ```` after it is what is seen then. A page whose blocks are of another
kind can't be read here, so that none of it escapes its test. In what is seen, ``…`` stands for any text of one line,
and a line ``…`` for any lines.
"""

import re
from dataclasses import dataclass
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[1] / "docs/guide"
_FENCE = re.compile(r"^```(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    section: str
    """The heading that it stands below."""
    machine: str
    lines: str
    seen: str
    """Empty: the page doesn't show it."""
    line: int
    """Of the page."""


def read_page(name: str) -> list[Block]:
    """Raises AssertionError that names the line which is no block of a known kind."""
    return parse_page((GUIDE / name).read_text(), name)


def parse_page(text: str, name: str) -> list[Block]:
    blocks: list[Block] = []
    section, fence, lines = "", None, []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}:{number}: {line}"
        if fence is not None:
            if line != "```":
                lines.append(line)
                continue
            kind, _, machine = fence.partition(" ")
            content = "\n".join(lines)
            if kind == "sh" and machine:
                blocks.append(Block(section, machine, content, "", number))
            else:
                assert kind == "text" and not machine and blocks, f"{where}: sh MACHINE, or text"
                last = blocks.pop()
                assert not last.seen, f"{where}: what was typed?"
                blocks.append(Block(last.section, last.machine, last.lines, content, last.line))
            fence, lines = None, []
        elif line.startswith("```"):
            fence = line[3:]
        elif line.startswith("#"):
            section = line.lstrip("# ")
        else:
            assert not re.match(r"^( {4}|\t)\S", line), f"{where}: a command without a machine"
    assert fence is None, f"{name}: a block has no end"
    return blocks


def pattern(seen: str) -> re.Pattern[str]:
    """What the page shows, as an expression that finds it; blanks at ends and widths of columns don't count."""
    parts = []
    for line in seen.splitlines():
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        words = [re.escape(word).replace("…", r"[^\n]*?") for word in line.split()]
        parts.append(r"[ \t]*" + r"[ \t]+".join(words) + r"[ \t]*\n")
    return re.compile("".join(parts))


def is_seen(seen: str, said: str) -> bool:
    return pattern(seen).search(f"{said}\n") is not None
