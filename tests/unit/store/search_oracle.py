"""What a search finds, told a second time: over rows of plain Python values, with nothing of SQL, and no care for cost."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from virtha.search.tree import (
    Ago,
    And,
    Compare,
    Day,
    DayName,
    FreeText,
    Instant,
    NamedDay,
    Node,
    Null,
    Number,
    Or,
    Pattern,
    Query,
    Relation,
    Word,
)
from virtha.search.vocabulary import Noun

DAY = timedelta(days=1)


@dataclass
class Row:
    """One object: its fields' values (of words: the word), and the objects that belong to it."""

    values: dict[str, Any]
    related: dict[str, list["Row"]] = field(default_factory=dict)


@dataclass
class Oracle:
    vocabulary: Mapping[str, Noun]
    now_ms: int
    case_sensitive: bool

    def found(self, query: Query, rows: list[Row], *, name: str) -> list[Row]:
        """In their order. ``name``: the field that lists are in the order of."""
        kept = [
            row for row in rows if query.where is None or self._holds(query.where, query.noun, row)
        ]
        kept.sort(key=lambda row: row.values[name])
        if query.sort is not None:
            by = query.sort.field

            def rank(row: Row) -> tuple[bool, Any]:
                value = row.values[by]
                return (value is not None, self._stored(query.noun, by, value))

            there = sorted(kept, key=rank, reverse=query.sort.descending)
            return there
        return kept

    def _stored(self, noun: str, by: str, value: Any) -> Any:
        words = self.vocabulary[noun].fields[by]
        if value is None:
            return ""
        return words.own_words.index(value) if words.ordered else value

    def _holds(self, node: Node, noun: str, row: Row) -> bool:
        if isinstance(node, And):
            return all(self._holds(term, noun, row) for term in node.terms)
        if isinstance(node, Or):
            return any(self._holds(term, noun, row) for term in node.terms)
        if node.related is None:
            return self._leaf(node, noun, row)
        others = row.related.get(node.related, [])
        return any(self._leaf(node, node.related, other) for other in others)

    def _leaf(self, node: Compare | FreeText, noun: str, row: Row) -> bool:
        if isinstance(node, FreeText):
            fields = self.vocabulary[noun].fields.values()
            texts = [row.values[one.name] for one in fields if one.free]
            there = any(text is not None and self._fits(node.pattern, text) for text in texts)
            return there is (node.relation is Relation.EQUAL)
        held = row.values[node.field]
        if node.relation is Relation.UNEQUAL:
            return not self._equal(node, noun, held)
        if node.relation is Relation.EQUAL:
            return self._equal(node, noun, held)
        return held is not None and self._in_order(node, noun, held)

    def _equal(self, node: Compare, noun: str, held: Any) -> bool:
        match node.value:
            case Null():
                return held is None
            case _ if held is None:
                return False
            case Pattern():
                return self._fits(node.value, held)
            case Number():
                return bool(held == node.value.number)
            case Word():
                return bool(held == node.value.word)
            case moment:
                start = self._start(moment)
                whole = DAY if isinstance(moment, Day | NamedDay) else timedelta(milliseconds=1)
                return start <= _time(held) < start + whole

    def _in_order(self, node: Compare, noun: str, held: Any) -> bool:
        left: Any
        right: Any
        match node.value:
            case Number():
                left, right = held, node.value.number
            case Word():
                words = self.vocabulary[noun].fields[node.field].own_words
                left, right = words.index(held), words.index(node.value.word)
            case Instant() | Day() | NamedDay() | Ago():
                left, right = _time(held), self._start(node.value)
            case _:
                raise AssertionError(node)
        signs = {
            Relation.ABOVE: left > right,
            Relation.BELOW: left < right,
            Relation.AT_LEAST: left >= right,
            Relation.AT_MOST: left <= right,
        }
        return bool(signs[node.relation])

    def _fits(self, pattern: Pattern, text: str) -> bool:
        wanted = ".*".join(re.escape(self._folded(part)) for part in pattern.parts)
        return re.fullmatch(wanted, self._folded(text), re.DOTALL) is not None

    def _folded(self, text: str) -> str:
        if self.case_sensitive:
            return text
        return "".join(chr(ord(one) + 32) if "A" <= one <= "Z" else one for one in text)

    def _start(self, moment: Any) -> datetime:
        now = _time(self.now_ms)
        today = datetime(now.year, now.month, now.day, tzinfo=UTC)
        match moment:
            case Instant():
                return _time(moment.at)
            case Ago():
                return now - timedelta(milliseconds=moment.duration_ms)
            case Day():
                return datetime.fromisoformat(moment.date).replace(tzinfo=UTC)
            case NamedDay(name=DayName.TODAY):
                return today
            case NamedDay(name=DayName.YESTERDAY):
                return today - DAY
            case NamedDay():
                past = today - DAY
                while past.strftime("%A").lower() != moment.name:
                    past -= DAY
                return past
            case _:
                raise AssertionError(moment)


def _time(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
