"""Values and errors as text for a terminal. Imports nothing heavy: every command loads it."""

import json
import re
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


_OPTIONS = {
    "codes": "--code",
    "disks": "--disk",
    "expires_ms": "--expires",
    "memory_bytes": "--memory",
    "nics": "--nic",
    "secrets": "--secrets-stdin",
    "storage_domain": "--storage",
    "uses_max": "--uses",
}
"""Fields of the API whose option has another name."""
_SETTINGS = {"authority_pem": "--authority", "type": "TYPE", "version": "--snmp-version"}
"""The same, of a receiver's settings."""


def _as_typed(field: str) -> str:
    """A field of the API as the person wrote it: ``--memory``, ``--nic: nics[1].mac``."""
    if field.startswith("settings."):
        # A receiver's settings are options of their own.
        inner = field.removeprefix("settings.")
        return _SETTINGS.get(inner, "--" + inner.replace("_", "-"))
    if field.startswith("ceph."):
        return "--ceph-" + field.removeprefix("ceph.").removesuffix("s")
    first = re.split(r"[.\[]", field, maxsplit=1)[0]
    option = _OPTIONS.get(first)
    if option is None:
        return field
    return option if field == first else f"{option}: {field}"


def describe(error: VirthaError) -> str:
    """The error as a person reads it: what, what is allowed, what to do, and its code."""
    where = f"{clean(_as_typed(error.field))}: " if error.field else ""
    lines = [f"error: {where}" + "\n  ".join(clean(line) for line in error.message.splitlines())]
    if error.allowed:
        lines.append(f"  allowed: {clean(error.allowed)}")
    if error.fix:
        lines.append(f"  fix: {clean(error.fix)}")
    lines.append(f"  code: {clean(error.code)}")
    return "\n".join(lines)
