"""Searches through what oVirt lists and no table has: data centers, networks, disks. In the language of all lists
(docs/guide/search.md), over what each can be found by."""

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import TypeVar, assert_never

from virtha.api.ovirt.parameters import Parameters
from virtha.search import Field, Kind, Noun, Query, parse
from virtha.search.tree import And, Compare, FreeText, Node, Null, Or, Pattern, Relation, Word

T = TypeVar("T")
PAGE_SIZE = 100
"""oVirt's SearchResultsLimit: of ``page N`` without ``max``."""


class Anything(Enum):
    FITS = auto()
    """Every condition on that field holds."""


Words = Mapping[str, str | Anything]
"""By field, what one can be found by. A field that is not there has no value."""


def noun(name: str, *aliases: str, fields: tuple[str, ...]) -> Noun:
    """One that is found by text alone, free text in all of it."""
    known = {
        field: Field(name=field, kind=Kind.TEXT, help=f"its {field}", free=True) for field in fields
    }
    return Noun(name=name, aliases=aliases, fields=known)


def select(of: Noun, rows: Sequence[tuple[Words, T]], parameters: Parameters) -> list[T]:
    """``rows``: what each can be found by, and itself. Raises InvalidInput, which points at the column."""
    query = parse(parameters.search, {of.name: of}, of.name)
    chosen = [row for row in rows if fits(query, row[0], parameters)]
    if query.sort is not None:
        field = query.sort.field
        chosen.sort(key=lambda row: str(row[0].get(field, "")), reverse=query.sort.descending)
    found = [item for _, item in chosen]
    if query.page is not None:
        begin = (query.page - 1) * page_size(parameters)
        return found[begin : begin + page_size(parameters)]
    return found[: parameters.max]


def page_size(parameters: Parameters) -> int:
    return PAGE_SIZE if parameters.max is None else parameters.max


def fits(query: Query, words: Words, parameters: Parameters) -> bool:
    return query.where is None or _holds(query.where, words, parameters.case_sensitive)


def _holds(node: Node, words: Words, case_sensitive: bool) -> bool:
    match node:
        case And():
            return all(_holds(term, words, case_sensitive) for term in node.terms)
        case Or():
            return any(_holds(term, words, case_sensitive) for term in node.terms)
        case Compare():
            return _compare(node, words, case_sensitive)
        case FreeText():
            looked_at = words.values() if node.related is None else ()
            found = any(_equal(text, node.pattern, case_sensitive) for text in looked_at)
            return found is (node.relation is Relation.EQUAL)
        case _:
            assert_never(node)


def _compare(node: Compare, words: Words, case_sensitive: bool) -> bool:
    """Without a value only ``!=`` and ``= null`` hold."""
    there = words.get(node.field) if node.related is None else None
    if there is Anything.FITS:
        return True
    equal = there is None if isinstance(node.value, Null) else False
    if isinstance(node.value, Pattern) and there is not None:
        equal = _equal(there, node.value, case_sensitive)
    if isinstance(node.value, Word):
        equal = there == node.value.word
    if node.relation is Relation.UNEQUAL:
        return not equal
    return node.relation is Relation.EQUAL and equal


def _equal(text: str | Anything, pattern: Pattern, case_sensitive: bool) -> bool:
    if text is Anything.FITS:
        return False
    parts = pattern.parts
    if not case_sensitive:
        text, parts = text.lower(), tuple(part.lower() for part in parts)
    return _matches(text, parts)


def _matches(text: str, parts: Sequence[str]) -> bool:
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
