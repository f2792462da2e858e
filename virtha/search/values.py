"""One value: the text that stands for it, and what it means for its field."""

import re
from datetime import date
from difflib import get_close_matches
from typing import assert_never

from virtha.model.errors import InvalidInput
from virtha.model.size import BYTES_MAX, parse_size_bytes
from virtha.model.time import format_duration_ms, format_utc, parse_duration_ms, parse_utc
from virtha.search.lexer import Kind as TokenKind
from virtha.search.lexer import Token, fault
from virtha.search.tree import (
    Ago,
    Day,
    DayName,
    Instant,
    Literal,
    Moment,
    NamedDay,
    Null,
    Number,
    Pattern,
    Word,
)
from virtha.search.vocabulary import Field, Kind

_NULL = "null"
_MIB = 1 << 20
_DIGITS = re.compile(r"-?[0-9]{1,19}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
AGO_MS_MAX = 100 * 366 * 86_400_000
"""A century: longer than any record is kept, and far from what a clock can't count."""
_INSTANT_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""
_TIMES = (
    "2026-01-31",
    "2026-01-31T12:00:00Z",
    "today",
    "yesterday",
    "a weekday",
    "-2h (two hours ago)",
)


def read_value(token: Token, field: Field) -> Literal:
    """Raises InvalidInput that points at the token."""
    if token.raw.lower() == _NULL and not _is_quoted_text(token, field):
        return _null(token, field)
    if field.kind is Kind.TEXT:
        return Pattern(parts=token.parts)
    if len(token.parts) > 1:
        fault(
            token.at,
            f"{field.name} takes no wildcards",
            allowed=field.own_words,
            fix="wildcards are for text",
        )
    (text,) = token.parts
    match field.kind:
        case Kind.NUMBER:
            return _number(token, text, field)
        case Kind.SIZE:
            return _size(token, text, field)
        case Kind.DURATION:
            return _duration(token, text, field)
        case Kind.WORD:
            return _word(token, text, field)
        case Kind.TIME:
            return _moment(token, text, field)
        case _:
            assert_never(field.kind)


def check_not_torn(value: Token, behind: Token, field: Field) -> None:
    """`memory > 4 GiB` would mean 4 MiB, and free text. Raises InvalidInput."""
    if field.kind not in (Kind.SIZE, Kind.DURATION, Kind.TIME):
        return
    if value.kind is not TokenKind.WORD or behind.kind is not TokenKind.WORD:
        return
    is_span = field.kind is Kind.DURATION or value.raw.startswith("-")
    whole = f"{value.raw}{'' if is_span else ' '}{behind.raw}"
    try:
        read_value(value._replace(raw=whole, parts=(whole,)), field)
    except InvalidInput:
        return
    fault(
        behind.at,
        f"is '{behind.shown}' part of the value before it?",
        fix=f'write "{whole}", or "{behind.raw}" to look for the word',
    )


def _is_quoted_text(token: Token, field: Field) -> bool:
    """Then `null` is the word; of anything else there is no such value."""
    return field.kind is Kind.TEXT and token.kind is TokenKind.QUOTED


def _null(token: Token, field: Field) -> Null:
    if field.nullable:
        return Null()
    fix = 'write "null" for the text' if field.kind is Kind.TEXT else ""
    fault(token.at, f"{field.name} always has a value", fix=fix)


def _number(token: Token, text: str, field: Field) -> Number:
    if not _DIGITS.fullmatch(text) or abs(int(text)) > BYTES_MAX:
        fault(
            token.at, f"'{token.shown}' is no number for {field.name}", allowed=("a whole number",)
        )
    return Number(number=int(text))


def _size(token: Token, text: str, field: Field) -> Number:
    try:
        found = parse_size_bytes(text + "MiB" if text.isdigit() else text, field=field.name)
    except InvalidInput as error:
        fault(token.at, error.message, allowed=error.allowed, fix=error.fix)
    return Number(number=found)


def _duration(token: Token, text: str, field: Field) -> Number:
    try:
        found = parse_duration_ms(text, field=field.name)
    except InvalidInput as error:
        fault(token.at, error.message, allowed=error.allowed, fix=error.fix)
    if found > BYTES_MAX:
        fault(token.at, f"'{token.shown}' is too long")
    return Number(number=found)


def _word(token: Token, text: str, field: Field) -> Word:
    found = field.words.get(text.lower())
    if found is None:
        near = get_close_matches(text.lower(), field.words, n=1)
        fault(
            token.at,
            f"'{token.shown}' is no value of {field.name}",
            allowed=field.own_words,
            fix=f"did you mean {near[0]}?" if near else "",
        )
    return Word(word=found)


def _moment(token: Token, text: str, field: Field) -> Moment:
    if text.lower() in tuple(DayName):
        return NamedDay(name=DayName(text.lower()))
    try:
        if text.startswith("-"):
            return _ago(text)
        if _DATE.fullmatch(text):
            return Day(date=date.fromisoformat(text).isoformat())
        if _TIME.fullmatch(text):
            at = parse_utc(text.upper(), field=field.name)
            if 0 <= at <= _INSTANT_MS_MAX:
                return Instant(at=at)
    except (InvalidInput, ValueError, OverflowError):
        pass  # told below, with its column
    fault(token.at, f"'{token.shown}' is no time for {field.name}", allowed=_TIMES)


def _ago(text: str) -> Ago:
    duration_ms = parse_duration_ms(text[1:], field="")
    if duration_ms > AGO_MS_MAX:
        raise OverflowError
    return Ago(duration_ms=duration_ms)


def show_value(value: Literal, field: Field | None) -> str:
    """As ``read_value`` reads it. ``field`` None: free text."""
    match value:
        case Pattern():
            return f'"{"*".join(_escaped(part) for part in value.parts)}"'
        case Number():
            return _number_shown(value.number, field)
        case Word():
            return value.word
        case Instant():
            return format_utc(value.at)
        case Day():
            return value.date
        case NamedDay():
            return value.name.value
        case Ago():
            return f"-{format_duration_ms(value.duration_ms)}"
        case Null():
            return _NULL
        case _:
            assert_never(value)


def _number_shown(number: int, field: Field | None) -> str:
    if field is not None and field.kind is Kind.DURATION:
        return f"{number}ms"
    return f"{number}B" if field is not None and field.kind is Kind.SIZE else str(number)


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace("*", "\\*").replace('"', '\\"')
