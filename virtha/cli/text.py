"""Values and errors as text for a terminal. Imports nothing heavy: every command loads it."""

import json
from typing import Any

from virtha.model.errors import VirthaError


def clean(value: Any) -> str:
    """One cell as text. Control characters go: a guest or a foreign domain may have named it, and
    an escape sequence would drive the reader's terminal."""
    match value:
        case None:
            text = ""
        case True:
            text = "yes"
        case False:
            text = "no"
        case list() | tuple():
            text = ", ".join(clean(part) for part in value)
        case dict():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return "".join(ch if ch.isprintable() else " " if ch in "\n\t\r" else "?" for ch in text)


def describe(error: VirthaError) -> str:
    """The error as a person reads it: what, what is allowed, what to do, and its code."""
    where = f"{clean(error.field)}: " if error.field else ""
    lines = [f"error: {where}" + "\n  ".join(clean(line) for line in error.message.splitlines())]
    if error.allowed:
        lines.append(f"  allowed: {clean(error.allowed)}")
    if error.fix:
        lines.append(f"  fix: {clean(error.fix)}")
    lines.append(f"  code: {clean(error.code)}")
    return "\n".join(lines)
