"""Where a field of the search language comes from: a column, or a column of a record that a key points to; and
text compared by wildcards, with nothing else in it taken for one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import JSON, Boolean, ColumnElement, FromClause, literal, select, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from virtha.search.tree import Pattern
from virtha.search.vocabulary import Field

BOOLEAN = {"true": True, "false": False}
"""What the database holds for these words."""
Condition = ColumnElement[bool]
Predicate = Callable[[ColumnElement[Any]], Condition]


@dataclass(frozen=True, kw_only=True)
class Source:
    """``where`` makes a condition on the row of one on the value; where there is no value it is not true."""

    where: Callable[[Predicate], Condition]
    order: ColumnElement[Any]
    """What a list sorted by it is ordered by."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The tables of one noun, under names of their own, so that it may stand in a search about itself."""

    tables: Mapping[str, FromClause]
    joined: FromClause

    def __getitem__(self, name: str) -> Any:
        """The columns of that table."""
        return self.tables[name].c


@dataclass(frozen=True, kw_only=True)
class SearchField:
    field: Field
    source: Callable[[Rows], Source]
    stored: Mapping[str, Any] | None = None
    """Of words: what the database holds for each; None: the word itself."""


def plain(column: ColumnElement[Any]) -> Source:
    return Source(where=lambda predicate: predicate(column), order=column)


def through(
    key: ColumnElement[Any], identity: ColumnElement[Any], value: ColumnElement[Any]
) -> Source:
    """``value`` of the record whose ``identity`` is ``key``; none where there is no such record."""
    return Source(
        where=lambda predicate: key.in_(select(identity).where(predicate(value))),
        order=select(value).where(identity == key).scalar_subquery(),
    )


def from_body(body: ColumnElement[Any], *path: str | int) -> ColumnElement[Any]:
    """A value of a record's JSON: for small tables, and for what is looked at few rows at a time."""
    found: ColumnElement[Any] = _in_body(body, path).as_string()
    return found


def number_from_body(body: ColumnElement[Any], *path: str) -> ColumnElement[Any]:
    found: ColumnElement[Any] = _in_body(body, path).as_integer()
    return found


def _in_body(body: ColumnElement[Any], path: tuple[str | int, ...]) -> Any:
    return type_coerce(body, JSON)[path if len(path) > 1 else path[0]]


class _MatchesExactly(FunctionElement[bool]):
    """Column, and the pattern as SQLite's GLOB has it and as the standard's LIKE has it: SQLite's own LIKE takes any case."""

    name = "matches_exactly"
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> Self:
        """As it is: "= 1" behind it would keep SQLite from its indexes."""
        return self


@compiles(_MatchesExactly, "sqlite")
def _by_glob(element: _MatchesExactly, compiler: Any, **keywords: Any) -> str:
    column, glob, _ = (compiler.process(one, **keywords) for one in element.clauses)
    return f"({column} GLOB {glob})"


@compiles(_MatchesExactly)
def _by_like(element: _MatchesExactly, compiler: Any, **keywords: Any) -> str:
    column, _, like = (compiler.process(one, **keywords) for one in element.clauses)
    return f"({column} LIKE {like} ESCAPE '\\')"


def matches(column: ColumnElement[Any], pattern: Pattern, *, case_sensitive: bool) -> Condition:
    """Of letters beyond ASCII the case always counts: SQLite knows no others."""
    like = "%".join(map(_like, pattern.parts))
    if not case_sensitive:
        return column.ilike(like, escape="\\")
    if len(pattern.parts) == 1:
        return column == pattern.parts[0]
    glob = "*".join(map(_glob, pattern.parts))
    return _MatchesExactly(column, literal(glob), literal(like))


def _glob(part: str) -> str:
    return "".join(f"[{one}]" if one in "*?[" else one for one in part)


def _like(part: str) -> str:
    return part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
