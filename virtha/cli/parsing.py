"""What people write for disks, cards and other compound things: ``key=value,key=value``."""

from difflib import get_close_matches
from typing import Any

import typer

from virtha.cli.text import clean
from virtha.model.errors import InvalidInput
from virtha.model.size import parse_size_bytes


def parse_pairs(text: str, *, field: str, keys: tuple[str, ...]) -> dict[str, str]:
    """Read ``name=data,size=1GiB``. Raises InvalidInput naming ``field`` and the keys there are."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not value:
            raise InvalidInput(
                f"'{part}' is not KEY=VALUE",
                field=field,
                allowed=keys,
                fix="write KEY=VALUE,KEY=VALUE",
            )
        if key not in keys:
            near = get_close_matches(key, keys, 1)
            raise InvalidInput(
                f"'{key}' is no key here",
                field=field,
                allowed=keys,
                fix=f"did you mean '{near[0]}'?" if near else "",
            )
        if key in found:
            raise InvalidInput(f"'{key}' is given twice", field=field)
        found[key] = value.strip()
    return found


def parse_disk(text: str) -> dict[str, Any]:
    """``name=data,size=1GiB`` as the API's disk request."""
    pairs = parse_pairs(text, field="--disk", keys=("name", "size", "path", "format", "image"))
    disk: dict[str, Any] = {k: v for k, v in pairs.items() if k != "size"}
    if "size" in pairs:
        disk["size_bytes"] = parse_size_bytes(pairs["size"], field="--disk size")
    if not {"size", "path", "image"} & pairs.keys():
        raise InvalidInput(
            "nothing says what is on it",
            field="--disk",
            fix="give size=1GiB for an empty one, image=NAME for a copy, or path=… for one that exists",
        )
    return disk


def parse_nic(text: str) -> dict[str, Any]:
    """``bridge=br0`` (or just ``br0``) as the API's network card request."""
    if "=" not in text:
        text = f"bridge={text}"
    pairs = parse_pairs(text, field="--nic", keys=("bridge", "mac", "model", "name"))
    if "bridge" not in pairs:
        raise InvalidInput("the bridge is missing", field="--nic", fix="write bridge=br0")
    return dict(pairs)


def parse_size(text: str | None, *, field: str) -> int | None:
    return None if text is None else parse_size_bytes(text, field=field)


def confirm(question: str, *, yes: bool, stdin_is_terminal: bool) -> None:
    """Ask before something that can't be undone. Raises InvalidInput where nobody can answer."""
    if yes:
        return
    if not stdin_is_terminal:
        raise InvalidInput(
            f"{question} Nobody is here to answer", field="--yes", fix="give --yes to do it"
        )
    if not typer.confirm(question, err=True):
        typer.echo("nothing was done", err=True)
        raise typer.Exit(1)


def confirm_by_name(
    warning: str, *, name: str, certain: bool, flag: str, stdin_is_terminal: bool
) -> None:
    """Before a word that virtha can't check and acts upon: show what it leads to if it is wrong, and
    have the thing's name typed. ``certain``: ``flag`` was given in its place. Raises InvalidInput where
    nobody can answer, or another name is typed."""
    typer.echo(clean(warning), err=True)
    if certain:
        return
    if not stdin_is_terminal:
        raise InvalidInput(
            "nobody is here to type the name", field=flag, fix=f"look first, then give {flag}"
        )
    typed = str(typer.prompt(f"Type the name, {name}, to go on", err=True))
    if typed.strip() != name:
        raise InvalidInput(
            f"'{typed}' is not {name}; nothing was done", field="name", fix=f"type {name}"
        )


_QUIET_FIX = "write for example 22:00-07:00, or 'mon-fri 18:00-08:00 Europe/Berlin'"
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def parse_label(text: str) -> tuple[str, str]:
    """``FIELD=VALUE`` of an event. Raises InvalidInput."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value:
        raise InvalidInput(
            f"'{text[:100]}' is not FIELD=VALUE",
            field="--label",
            fix="write for example domain=ds1",
        )
    return name.strip(), value


def parse_quiet_hours(text: str) -> dict[str, Any]:
    """``[DAYS ]HH:MM-HH:MM[ ZONE]``, days as ``mon-fri`` or ``sat,sun``, as the API's quiet hours. Raises InvalidInput."""
    words = text.split()
    days = list(_DAYS)
    if words and not words[0][0].isdigit():
        days = _days(words.pop(0))
    begins, dash, ends = words[0].partition("-") if words else ("", "", "")
    if not dash or not begins or not ends or len(words) > 2:
        raise InvalidInput(
            f"'{text[:100]}' is no span of quiet hours",
            field="--quiet-hours",
            fix=_QUIET_FIX,
        )
    zone = words[1] if len(words) > 1 else "UTC"
    return {"begins": begins, "ends": ends, "days": days, "zone": zone}


def _days(text: str) -> list[str]:
    found: list[str] = []
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise InvalidInput(
                f"'{part[:30]}' names no days",
                field="--quiet-hours",
                allowed=_DAYS,
                fix=_QUIET_FIX,
            )
        begin = _DAYS.index(first)
        count = (_DAYS.index(last) - begin) % len(_DAYS) + 1 if dash else 1
        found += [_DAYS[(begin + one) % len(_DAYS)] for one in range(count)]
    return list(dict.fromkeys(found))
