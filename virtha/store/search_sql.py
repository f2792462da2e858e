"""One translation of a search to SQL. All that a user wrote goes in as a bound parameter.

No condition is ever unknown: where a field has no value, only ``= null`` and ``!=`` hold.
"""

from typing import Any, assert_never

from sqlalchemy import and_, false, func, not_, or_

from virtha.model.time import UtcMillis
from virtha.search.moments import resolve
from virtha.search.tree import (
    Ago,
    And,
    Compare,
    Day,
    FreeText,
    Instant,
    Literal,
    NamedDay,
    Node,
    Null,
    Number,
    Or,
    Pattern,
    Relation,
    Word,
)
from virtha.store.search_fields import SEARCHED, Searched
from virtha.store.search_source import Condition, Predicate, Rows, SearchField, matches


class Translation:
    """Of searches for one noun. ``now``: the server's wall clock, for `today` and `-2h`."""

    def __init__(self, searched: Searched, *, now: UtcMillis, case_sensitive: bool) -> None:
        self._searched = searched
        self._now = now
        self._case_sensitive = case_sensitive

    def condition(self, node: Node, rows: Rows) -> Condition:
        return self._condition(node, self._searched, rows)

    def _condition(self, node: Node, searched: Searched, rows: Rows) -> Condition:
        match node:
            case And():
                return and_(*(self._condition(term, searched, rows) for term in node.terms))
            case Or():
                return or_(*(self._condition(term, searched, rows) for term in node.terms))
            case Compare() | FreeText():
                return self._leaf(node, searched, rows)
            case _:
                assert_never(node)

    def _leaf(self, node: Compare | FreeText, searched: Searched, rows: Rows) -> Condition:
        if node.related is None:
            return self._of(node, searched, rows)
        other = SEARCHED[node.related]
        others = other.rows()
        return searched.links[node.related](rows, others, self._of(node, other, others))

    def _of(self, node: Compare | FreeText, searched: Searched, rows: Rows) -> Condition:
        """The condition on a row of the noun whose fields it names."""
        if isinstance(node, Compare):
            found = searched.field(node.field)
            return self._compare(found, node.relation, node.value, rows)
        looked_at = (one for one in searched.fields if one.field.free)
        anywhere = or_(
            *(self._compare(one, Relation.EQUAL, node.pattern, rows) for one in looked_at)
        )
        return anywhere if node.relation is Relation.EQUAL else _none_of(anywhere)

    def _compare(
        self, found: SearchField, relation: Relation, value: Literal, rows: Rows
    ) -> Condition:
        source = found.source(rows)
        if isinstance(value, Null):
            there = source.where(lambda column: column.is_not(None))
            return there if relation is Relation.UNEQUAL else _none_of(there)
        if relation is Relation.UNEQUAL:
            return _none_of(source.where(self._holds(found, Relation.EQUAL, value)))
        return source.where(self._holds(found, relation, value))

    def _holds(self, found: SearchField, relation: Relation, value: Literal) -> Predicate:
        match value:
            case Pattern():
                pattern = value
                return lambda column: matches(column, pattern, case_sensitive=self._case_sensitive)
            case Number():
                return _ordered(relation, value.number)
            case Word():
                stored = value.word if found.stored is None else found.stored[value.word]
                return _ordered(relation, stored)
            case Instant() | Day() | NamedDay() | Ago():
                start, end = resolve(value, self._now)
                if relation is Relation.EQUAL:
                    return lambda column: and_(column >= start, column < end)
                return _ordered(relation, start)
            case Null():
                raise AssertionError("it is told by where a value is, not by a comparison")
            case _:
                assert_never(value)


def _none_of(condition: Condition) -> Condition:
    """Also where the condition is unknown to the database."""
    return not_(func.coalesce(condition, false()))


def _ordered(relation: Relation, value: Any) -> Predicate:
    match relation:
        case Relation.EQUAL:
            return lambda column: column == value
        case Relation.ABOVE:
            return lambda column: column > value
        case Relation.BELOW:
            return lambda column: column < value
        case Relation.AT_LEAST:
            return lambda column: column >= value
        case Relation.AT_MOST:
            return lambda column: column <= value
        case Relation.UNEQUAL:
            raise AssertionError("it is the opposite of EQUAL, and told by that")
        case _:
            assert_never(relation)
