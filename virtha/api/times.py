"""Points in time as the API shows them: whole milliseconds inside, RFC 3339 text outside.

The one place of it: JSON, event stream and OpenAPI document all come through here. What is a point in
time is read from the types: a struct's field of type ``UtcMillis`` (also ``UtcMillis | None``).
"""

from collections.abc import Callable, Iterator
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from virtha.model.time import UtcMillis, format_utc

Patch = Callable[[Any], None]
SCHEMA: dict[str, Any] = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
    "examples": ["2026-01-31T12:00:00.000Z"],
}


def encode(value: Any, kind: Any) -> bytes:
    """``value``, which is of the type ``kind``, as JSON."""
    patch = _patch_of(kind)
    if patch is None:
        return msgspec.json.encode(value)
    plain = msgspec.to_builtins(value)
    patch(plain)
    return msgspec.json.encode(plain)


def time_fields(struct: type) -> tuple[str, ...]:
    """The JSON names of a struct's fields that are points in time."""
    struct = get_origin(struct) or struct  # a ``Page[Event]`` is made from ``Page``
    hints = get_type_hints(struct)
    return tuple(
        field.encode_name
        for field in msgspec.structs.fields(struct)
        if {*(get_args(hints[field.name]) or (hints[field.name],))} - {NoneType} == {UtcMillis}
    )


def document_times(kinds: list[Any], components: dict[str, Any]) -> None:
    """Correct the JSON schemas of ``kinds``: msgspec sees in a point in time the integer that it is."""
    for struct in sorted({*_structs(kinds)}, key=lambda struct: struct.__name__):
        for name in time_fields(struct):
            properties = components[struct.__name__]["properties"]
            nullable = "anyOf" in properties[name]
            properties[name] = (
                {"anyOf": [SCHEMA, {"type": "null"}], "default": None} if nullable else SCHEMA
            )


@cache
def _patch_of(kind: Any) -> Patch | None:
    return _make_patch(inspect.type_info(kind))


def _make_patch(kind: inspect.Type) -> Patch | None:
    """What turns the points in time of one plain value into text, in place; None: there are none."""
    if isinstance(kind, inspect.StructType):
        return _struct_patch(kind)
    parts = [patch for part in _parts(kind) if (patch := _make_patch(part)) is not None]
    if not parts:
        return None
    (patch,) = parts  # `Thing | None`; no answer has a union of two kinds of object
    match kind:
        case inspect.UnionType():
            return lambda value: None if value is None else patch(value)
        case inspect.DictType():
            return lambda value: _each(value.values(), patch)
        case _:
            return lambda value: _each(value, patch)


def _struct_patch(kind: inspect.StructType) -> Patch | None:
    times = time_fields(kind.cls)
    below = [
        (field.encode_name, patch)
        for field in kind.fields
        if (patch := _make_patch(field.type)) is not None
    ]
    if not times and not below:
        return None

    def patch_struct(value: dict[str, Any]) -> None:
        for name in times:
            if value[name] is not None:
                value[name] = format_utc(value[name])
        for name, patch in below:
            patch(value[name])

    return patch_struct


def _each(values: Any, patch: Patch) -> None:
    for value in values:
        patch(value)


def _parts(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    match kind:
        case inspect.UnionType():
            return kind.types
        case inspect.ListType() | inspect.VarTupleType():
            return (kind.item_type,)
        case inspect.DictType():
            return (kind.value_type,)
        case inspect.Metadata():
            return (kind.type,)
        case inspect.StructType():
            return tuple(field.type for field in kind.fields)
        case _:
            return ()


def _structs(kinds: list[Any]) -> Iterator[type]:
    todo: list[inspect.Type] = [*inspect.multi_type_info(kinds)]
    while todo:
        kind = todo.pop()
        if isinstance(kind, inspect.StructType):
            yield kind.cls
        todo.extend(_parts(kind))
