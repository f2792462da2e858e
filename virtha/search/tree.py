"""What a search says, as frozen values: every name is known, every value is of its field's kind.

A ``related`` condition speaks of objects that belong to the one sought, each by itself: `Hosts: Vms.status = down`
finds a host when one of its VMs is down.
"""

from enum import StrEnum
from typing import Union

from virtha.model.time import UtcMillis
from virtha.model.value import Value


class Relation(StrEnum):
    EQUAL = "="
    UNEQUAL = "!="
    """Finds exactly what ``=`` doesn't, also where there is no value."""
    ABOVE = ">"
    BELOW = "<"
    AT_LEAST = ">="
    AT_MOST = "<="


class DayName(StrEnum):
    """Days in UTC, seen from now. A weekday is the last one before today."""

    TODAY = "today"
    YESTERDAY = "yesterday"
    MONDAY = "monday"
    TUESDAY = "tuesday"
    WEDNESDAY = "wednesday"
    THURSDAY = "thursday"
    FRIDAY = "friday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"


class Pattern(Value, frozen=True, kw_only=True, tag="pattern"):
    """Text with anything between its parts: ``web*`` is ("web", ""), ``web`` is ("web",). No part in the
    middle is empty."""

    parts: tuple[str, ...]


class Number(Value, frozen=True, kw_only=True, tag="number"):
    """A count; bytes where the field is a size, milliseconds where it is a duration."""

    number: int


class Word(Value, frozen=True, kw_only=True, tag="word"):
    """One of the field's own words, never an alias."""

    word: str


class Instant(Value, frozen=True, kw_only=True, tag="instant"):
    at: UtcMillis


class Day(Value, frozen=True, kw_only=True, tag="day"):
    """A day in UTC."""

    date: str
    """2026-01-31"""


class NamedDay(Value, frozen=True, kw_only=True, tag="named_day"):
    name: DayName


class Ago(Value, frozen=True, kw_only=True, tag="ago"):
    """So long before now."""

    duration_ms: int


class Null(Value, frozen=True, kw_only=True, tag="null"):
    """No value."""


Moment = Instant | Day | NamedDay | Ago
Literal = Pattern | Number | Word | Instant | Day | NamedDay | Ago | Null


class Compare(Value, frozen=True, kw_only=True, tag="compare"):
    field: str
    relation: Relation
    value: Literal
    related: str | None = None
    """The noun whose field it is; None: the one that is sought."""


class FreeText(Value, frozen=True, kw_only=True, tag="free_text"):
    """Stands somewhere in one of the fields that free text looks at."""

    pattern: Pattern
    relation: Relation = Relation.EQUAL
    related: str | None = None


class And(Value, frozen=True, kw_only=True, tag="and"):
    """Of two or more."""

    terms: "tuple[Node, ...]"


class Or(Value, frozen=True, kw_only=True, tag="or"):
    """Of two or more."""

    terms: "tuple[Node, ...]"


Node = Union[Compare, FreeText, And, Or]  # noqa: UP007  (msgspec resolves the name in And and Or)


class Sort(Value, frozen=True, kw_only=True):
    field: str
    descending: bool = False


class Query(Value, frozen=True, kw_only=True):
    noun: str
    where: Node | None = None
    """None: all."""
    sort: Sort | None = None
    page: int | None = None
    """From 1; None: the first, to be followed by its cursor."""
