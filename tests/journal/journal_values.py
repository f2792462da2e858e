"""Values of every type that a journal holds, built from the types themselves: a kind that is added tomorrow is
covered tomorrow."""

from collections.abc import Sequence
from itertools import count
from typing import Any, Protocol

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from virtha.engine.journal import Header, SegmentReader, SegmentWriter
from virtha.engine.snapshot import EngineSnapshot
from virtha.model.ids import ClusterId, InstallationId, Term
from virtha.model.policy import Policy
from virtha.model.policy.profiles import PROFILES
from virtha.model.power import PowerLevel
from virtha.model.time import UtcMillis


class Source(Protocol):
    """Where the values come from."""

    def integer(self) -> int: ...
    def text(self, hint: str) -> str: ...
    def choice(self, options: Sequence[Any]) -> Any: ...
    def size(self, at_least: int) -> int: ...


class Drawn:
    """Hypothesis's."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self) -> int:
        return self._draw(st.integers(-(1 << 63), (1 << 64) - 1))

    def text(self, hint: str) -> str:
        return self._draw(st.text(max_size=20))

    def choice(self, options: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(options))

    def size(self, at_least: int) -> int:
        return self._draw(st.integers(at_least, 2))


class Sample:
    """One fixed value of each type: every field filled, no two numbers alike."""

    def __init__(self) -> None:
        self._numbers = count(1_000)

    def integer(self) -> int:
        return next(self._numbers)

    def text(self, hint: str) -> str:
        return f"{hint}-{next(self._numbers)}"

    def choice(self, options: Sequence[Any]) -> Any:
        filled = [one for one in options if not isinstance(one, inspect.NoneType)]
        return filled[0] if isinstance(filled[0], inspect.Type) else filled[-1]

    def size(self, at_least: int) -> int:
        return 1


def value_of(kind: Any, source: Source) -> Any:
    """A value of that type: struct, union, or anything that a field may be."""
    return _value(inspect.type_info(kind), source, "value")


def _value(info: inspect.Type, source: Source, hint: str) -> Any:
    match info:
        case inspect.NoneType():
            return None
        case inspect.BoolType():
            return source.choice([False, True])
        case inspect.IntType():
            return source.integer()
        case inspect.StrType():
            return source.text(hint)
        case inspect.EnumType():
            return source.choice(list(info.cls))
        case inspect.UnionType():
            return _value(source.choice(info.types), source, hint)
        case inspect.StructType():
            return _struct(info, source)
        case inspect.NamedTupleType():
            return info.cls(*(_value(field.type, source, field.name) for field in info.fields))
        case inspect.VarTupleType():
            return tuple(_several(info.item_type, source, hint))
        case inspect.TupleType():
            return tuple(_value(one, source, hint) for one in info.item_types)
        case inspect.FrozenSetType():
            return frozenset(_several(info.item_type, source, hint))
        case inspect.DictType():
            keys = _several(info.key_type, source, hint)
            return {key: _value(info.value_type, source, hint) for key in keys}
        case _:
            raise AssertionError(f"no way to build {info} is known: say how")


def _several(info: inspect.Type, source: Source, hint: str, *, at_least: int = 0) -> list[Any]:
    return [_value(info, source, hint) for _ in range(source.size(at_least))]


def _struct(info: inspect.StructType, source: Source) -> msgspec.Struct:
    if info.cls is Policy:
        chosen: Policy = source.choice(list(PROFILES.values()))  # any numbers would be refused
        return chosen
    fields: dict[str, Any] = {}
    for field in info.fields:
        if info.cls is PowerLevel:
            assert isinstance(field.type, inspect.VarTupleType)
            fields[field.name] = tuple(
                _several(field.type.item_type, source, field.name, at_least=1)
            )
        else:
            fields[field.name] = _value(field.type, source, field.name)
    made: msgspec.Struct = info.cls(**fields)
    return made


HEADER = Header(
    program="0.1.0",
    installation_id=InstallationId("0b2f5f0e-4444-4a7a-9d55-000000000004"),
    cluster_id=ClusterId("0b2f5f0e-5555-4a7a-9d55-000000000005"),
    term=Term(5),
    created_at_ms=UtcMillis(1_700_000_000_000),
    number=42,
    follows=True,
)


def beginning(snapshot: EngineSnapshot) -> bytes:
    return SegmentWriter().begin(HEADER, snapshot)


def whole(segment: bytes) -> SegmentReader:
    """A reader of a segment in which nothing may be wrong at its beginning."""
    reader = SegmentReader(segment)
    assert reader.fault is None and reader.header == HEADER, reader.fault
    return reader
