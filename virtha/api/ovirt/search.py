"""``search``: the seam for the search language. Until its parser is here: ``FIELD = VALUE`` with ``*``, ``and``, ``page N``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from virtha.api.ovirt.parameters import Parameters
from virtha.model.errors import InvalidInput

T = TypeVar("T")
PAGE_SIZE = 100
"""oVirt's SearchResultsLimit: of ``page N`` without ``max``."""
_OBJECT = re.compile(r"\s*[A-Za-z]+\s*:")
_TERM = re.compile(r'\s*([A-Za-z_.]+)\s*(!=|=)\s*("[^"]*"|[^\s"]+)')
_AND = re.compile(r"\s+and\b", re.IGNORECASE)
_SORT = re.compile(r"\s*\bsortby\s+name(\s+asc)?\b", re.IGNORECASE)
_PAGE = re.compile(r"\s*\bpage\s+([0-9]{1,9})\s*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Term:
    field: str
    equal: bool
    value: str


@dataclass(frozen=True, kw_only=True)
class Search:
    terms: tuple[_Term, ...] = ()
    page: int | None = None


def parse_search(text: str) -> Search:
    """Raises InvalidInput, which points at the column."""
    page, rest = None, text
    paged = _PAGE.search(rest)
    if paged:
        page, rest = int(paged[1]), rest[: paged.start()]
    sorted_by = _SORT.search(rest)
    if sorted_by and sorted_by.end() == len(rest.rstrip()):
        rest = rest[: sorted_by.start()]  # names in their order is how all lists come
    begins = _OBJECT.match(rest)
    at = begins.end() if begins else 0
    terms: list[_Term] = []
    while rest[at:].strip():
        if terms:
            joined = _AND.match(rest, at)
            if joined is None:
                raise _not_understood(rest, at)
            at = joined.end()
        found = _TERM.match(rest, at)
        if found is None:
            raise _not_understood(rest, at)
        field, relation, value = found.groups()
        terms.append(_Term(field=field.lower(), equal=relation == "=", value=value.strip('"')))
        at = found.end()
    return Search(terms=tuple(terms), page=page)


def _not_understood(text: str, at: int) -> InvalidInput:
    column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
    return InvalidInput(
        f"not understood from column {column} on: '{text[at:].strip()[:64]}'",
        field="search",
        allowed=("FIELD = VALUE, with * for any text, and between terms, page N at the end",),
    )


def select(
    rows: Sequence[tuple[Mapping[str, str], T]], search: Search, parameters: Parameters
) -> list[T]:
    """``rows``: what each can be found by, and itself. Raises InvalidInput: there is no such field."""
    found = [
        item
        for words, item in rows
        if all(_matches(words, one, parameters) for one in search.terms)
    ]
    if search.page is not None:
        size = parameters.max or PAGE_SIZE
        begin = max(search.page - 1, 0) * size
        return found[begin : begin + size]
    return found if parameters.max is None else found[: parameters.max]


def _matches(words: Mapping[str, str], term: _Term, parameters: Parameters) -> bool:
    there = words.get(term.field)
    if there is None:
        raise InvalidInput(
            f"there is no field '{term.field[:64]}'", field="search", allowed=tuple(words)
        )
    wanted = term.value
    if not parameters.case_sensitive:
        there, wanted = there.lower(), wanted.lower()
    return _fits(there, wanted.split("*")) is term.equal


def _fits(text: str, parts: list[str]) -> bool:
    """Whether the parts come one after the other; each at its first place, so that a flood of wildcards costs nothing."""
    if len(parts) == 1:
        return text == parts[0]
    first, *middle, last = parts
    if len(first) + len(last) > len(text) or not text.startswith(first):
        return False
    if not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
