"""The fields of policies, as people write them (`policy.detection.dead_after`), read off the policy's own table."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func

from virtha.model.policy.document import FIELD_TABLE
from virtha.model.policy.field import PolicyField, Unit
from virtha.search.vocabulary import Field, Kind
from virtha.store.schema import cluster
from virtha.store.search_source import (
    BOOLEAN,
    Rows,
    SearchField,
    Source,
    from_body,
    number_from_body,
    plain,
    through,
)

Value = Callable[[ColumnElement[Any]], ColumnElement[Any]]
"""A cluster's body -> what its policy says."""


def policy_fields() -> tuple[SearchField, ...]:
    """Of clusters: of numbers, truth values and words; lists are not searched."""
    return _fields(lambda rows, value: plain(value(rows["cluster"].body)))


def policy_of_cluster_fields(table: str, described_by: str) -> tuple[SearchField, ...]:
    """Of what belongs to a cluster, by the policy that applies to it. Not to be sorted by: that would read each row's policy."""

    def of_cluster(rows: Rows, value: Value) -> Source:
        of = cluster.alias()
        return through(rows[table].cluster_id, of.c.id, value(of.c.body))

    return tuple(
        replace(one, field=replace(one.field, sortable=False, described_by=described_by))
        for one in _fields(of_cluster)
    )


def _fields(where: Callable[[Rows, Value], Source]) -> tuple[SearchField, ...]:
    return tuple(made for one in FIELD_TABLE.values() if (made := _field(one, where)) is not None)


def _field(one: PolicyField, where: Callable[[Rows, Value], Source]) -> SearchField | None:
    kind, words = Kind.WORD, dict[str, str]()
    if one.kind is bool:
        words = {word: word for word in BOOLEAN}
    elif one.kind is int:
        kind = Kind.DURATION if one.about.unit is Unit.MILLISECONDS else Kind.NUMBER
    elif isinstance(one.kind, type) and issubclass(one.kind, StrEnum):
        words = {word.value: word.value for word in one.kind}
    else:
        return None
    field = Field(name=f"policy.{one.shown}", kind=kind, help=one.about.meaning, words=words)
    stored = BOOLEAN if one.kind is bool else None
    value = _value(one)
    return SearchField(field=field, source=lambda rows: where(rows, value), stored=stored)


def _value(one: PolicyField) -> Value:
    """Documents stored before a field existed have its default."""
    is_word = issubclass(one.kind, str)
    read = from_body if is_word else number_from_body
    default = str(one.default) if is_word else int(one.default)
    return lambda body: func.coalesce(read(body, "policy", one.section, one.name), default)
