"""The fields of clusters' policies, as people write them (`policy.detection.dead_after`), read off the policy's own table."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from sqlalchemy import func

from virtha.model.policy.document import FIELD_TABLE
from virtha.model.policy.field import PolicyField, Unit
from virtha.search.vocabulary import Field, Kind
from virtha.store.search_source import (
    BOOLEAN,
    Rows,
    SearchField,
    Source,
    from_body,
    number_from_body,
    plain,
)


def policy_fields() -> tuple[SearchField, ...]:
    """Of numbers, truth values and words; lists are not searched."""
    return tuple(made for one in FIELD_TABLE.values() if (made := _field(one)) is not None)


def _field(one: PolicyField) -> SearchField | None:
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
    return SearchField(field=field, source=_source(one), stored=stored)


def _source(one: PolicyField) -> Callable[[Rows], Source]:
    """Documents stored before a field existed have its default."""
    is_word = issubclass(one.kind, str)
    read = from_body if is_word else number_from_body
    default = str(one.default) if is_word else int(one.default)

    def source(rows: Rows) -> Source:
        value: Any = read(rows["cluster"].body, "policy", one.section, one.name)
        return plain(func.coalesce(value, default))

    return source
