"""How oVirt's types are described: once each, and XML and JSON are written and read by that.

A value of a type is a ``Node``: a plain dictionary by field name. Beside its type's fields each may have ``id``, ``href``
(a path below the API's root), ``link`` (pairs of rel and href) and ``actions`` (their names).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Node = dict[str, Any]
TURN = 100
"""Nodes of a list that are made or written between two looks at what else the server has to do: some 10 ms for VMs."""


class Scalar(StrEnum):
    TEXT = "text"
    INTEGER = "integer"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    TIME = "time"
    """In nodes: milliseconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """``of``: a scalar, or the name of a type; None: the type that is called as the field. ``items``: a list, in an element
    of the field's name; of scalars, what each item is called."""

    of: Scalar | str | None
    many: bool = False
    item: str = ""


TEXT = Field(of=Scalar.TEXT)
INTEGER = Field(of=Scalar.INTEGER)
DECIMAL = Field(of=Scalar.DECIMAL)
BOOLEAN = Field(of=Scalar.BOOLEAN)
TIME = Field(of=Scalar.TIME)
ONE = Field(of=None)
"""One of the type that is called as the field."""


def one(name: str) -> Field:
    return Field(of=name)


def many(name: str) -> Field:
    return Field(of=name, many=True)


def texts(item: str) -> Field:
    return Field(of=Scalar.TEXT, many=True, item=item)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One type."""

    name: str
    plural: str
    fields: dict[str, Field]

    def field_of(self, rel: str) -> str | None:
        """The field that a link stands for (``diskattachments``: ``disk_attachments``)."""
        return next((name for name in self.fields if name.replace("_", "") == rel), None)

    def type_of(self, name: str) -> "Scalar | str":
        of = self.fields[name].of
        return name if of is None else of


def shape(name: str, plural: str, **fields: Field) -> Shape:
    """Every type of oVirt has a name, a description and a comment."""
    general = {"name": TEXT, "description": TEXT, "comment": TEXT}
    return Shape(name=name, plural=plural, fields={**general, **fields})
