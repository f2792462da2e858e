"""The text of a search as tokens. What is a word depends on what stands before it: behind a relation all up to the
next blank or parenthesis is the value, as in oVirt (`name=a=b` looks for "a=b")."""

import re
import unicodedata
from enum import Enum, auto
from typing import NamedTuple, NoReturn

from virtha.model.errors import InvalidInput
from virtha.search.tree import Relation

LENGTH_MAX = 2_000
"""Characters. The longest that a person typed into oVirt's search bar fits some ten times over."""
WILDCARDS_MAX = 8
"""In one value: each may make the database try every place of a text."""
FIELD = "search"
_QUOTE = '"'
_RELATION = re.compile(r"!=|>=|<=|=|>|<")
RELATIONS = tuple(Relation)
_SHOWN_MAX = 40


class Kind(Enum):
    OPEN = auto()
    CLOSE = auto()
    RELATION = auto()
    WORD = auto()
    QUOTED = auto()
    END = auto()


class Token(NamedTuple):
    kind: Kind
    at: int
    """Where it begins; 0: the first character."""
    raw: str
    """As it was written, without its quotation marks."""
    parts: tuple[str, ...] = ("",)
    """Of words: what stands between the wildcards."""

    @property
    def shown(self) -> str:
        return self.raw if len(self.raw) <= _SHOWN_MAX else self.raw[:_SHOWN_MAX] + "…"


def fault(
    at: int, message: str, *, allowed: tuple[str, ...] = (), fix: str = "", field: str = FIELD
) -> NoReturn:
    """Raises InvalidInput that names the column, counted from 1."""
    raise InvalidInput(
        f"column {at + 1}: {message}",
        code="problem.search.syntax",
        field=field,
        allowed=allowed,
        fix=fix,
    )


def check_length(text: str) -> None:
    """Raises InvalidInput. For those who hand it on: what is longer fits into no address of a request."""
    if len(text) > LENGTH_MAX:
        fault(LENGTH_MAX, "the search is too long", allowed=(f"{LENGTH_MAX} characters",))


def tokens(text: str) -> tuple[Token, ...]:
    """The last is an END. Raises InvalidInput."""
    check_length(text)
    for at, character in enumerate(text):
        # What no database takes, and nobody can see.
        if unicodedata.category(character) in ("Cc", "Cs") and not character.isspace():
            fault(at, f"holds the control character U+{ord(character):04X}", fix="leave it out")
    found: list[Token] = []
    at = 0
    while (at := _next(text, at)) < len(text):
        behind_relation = bool(found) and found[-1].kind is Kind.RELATION
        token, at = _token(text, at, value=behind_relation)
        found.append(token)
    found.append(Token(Kind.END, len(text), ""))
    return tuple(found)


def _next(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _token(text: str, at: int, *, value: bool) -> tuple[Token, int]:
    """The token that begins here, and where it ends."""
    character = text[at]
    if character == "(":
        return Token(Kind.OPEN, at, character), at + 1
    if character == ")":
        return Token(Kind.CLOSE, at, character), at + 1
    if character == _QUOTE:
        return _quoted(text, at)
    relation = None if value else _RELATION.match(text, at)
    if relation is not None:
        return Token(Kind.RELATION, at, relation[0]), relation.end()
    return _bare(text, at, value=value)


def _quoted(text: str, at: int) -> tuple[Token, int]:
    end = at + 1
    while end < len(text) and text[end] != _QUOTE:
        end += 2 if text[end] == "\\" else 1
    if end >= len(text):
        fault(at, "the quotation mark is never closed", fix='end the value with "')
    inside = text[at + 1 : end]
    return Token(Kind.QUOTED, at, inside, _parts(inside, at + 1)), end + 1


def _bare(text: str, at: int, *, value: bool) -> tuple[Token, int]:
    if value and (doubled := _RELATION.match(text, at)):
        fault(
            at,
            f"'{doubled[0]}' stands behind a relation",
            allowed=RELATIONS,
            fix="put a value that begins so between quotation marks",
        )
    end = at
    while end < len(text) and not text[end].isspace() and text[end] not in "()":
        if text[end] == _QUOTE:
            if text[at:end].endswith(":"):
                break  # `Vms:"web 1"`
            fault(
                end,
                "a quotation mark inside a word",
                fix='put all of the value between quotation marks, or write \\"',
            )
        if not value and _RELATION.match(text, end):
            break
        end += 2 if text[end] == "\\" and end + 1 < len(text) and text[end + 1] in '\\*"' else 1
    raw = text[at:end]
    return Token(Kind.WORD, at, raw, _parts(raw, at)), end


def _parts(raw: str, at: int) -> tuple[str, ...]:
    """What stands between the wildcards; several wildcards in a row are one. A backslash takes the meaning from a
    wildcard, a quotation mark and a backslash; before anything else it is itself."""
    parts, part, index = [""], "", 0
    while index < len(raw):
        character = raw[index]
        if character == "\\" and raw[index + 1 : index + 2] in ("\\", "*", _QUOTE):
            index += 1
            part += raw[index]
        elif character == "*":
            if part or len(parts) == 1:
                parts[-1] = part
                parts.append("")
            part = ""
        else:
            part += character
        index += 1
    parts[-1] = part
    if len(parts) - 1 > WILDCARDS_MAX:
        fault(at, f"has {len(parts) - 1} wildcards", allowed=(f"at most {WILDCARDS_MAX}",))
    return tuple(parts)
