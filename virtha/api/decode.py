"""Bodies and queries into typed requests, with errors that name the real field."""

import re
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from virtha.model.errors import InvalidInput, VirthaError

T = TypeVar("T")
BODY_BYTES_MAX = 1 << 20
"""1 MiB: the largest request, an adoption of some thousands of named VMs, is a tenth of it."""
INTEGER_MAX = (1 << 63) - 1
"""What the databases hold."""

_PATH = re.compile(r"(?P<message>.*?)(?: - at `(?P<path>(?:key in )?\$?.*)`)?", re.DOTALL)
_NAMED = re.compile(
    r"Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def decode_body(raw: bytes, wanted: type[T]) -> T:
    """Raises InvalidInput naming the field, or what a request's own checks raise."""
    if len(raw.strip()) == 0:
        raw = b"{}"  # `POST …/start` without a body asks for the defaults
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"the body is no JSON: {error}", field="body", fix="send one JSON object"
        ) from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply", field="body") from None
    if not isinstance(value, dict):
        raise InvalidInput(
            f"the body is {_json_name(value)}, not an object",
            field="body",
            allowed=("one JSON object",),
        )
    _check_storable(value, "")
    _refuse_unknown(value, inspect.type_info(wanted), [])
    return _convert(value, wanted, strict=True)


def decode_query(pairs: list[tuple[str, str]], wanted: type[T]) -> T:
    """Each parameter at most once; text is read as the field's type (``limit=10``)."""
    found: dict[str, str] = {}
    for name, text in pairs:
        if name in found:
            raise InvalidInput("given twice", field=name, fix="give it once")
        found[name] = text
    _check_storable(found, "")
    query = _convert(found, wanted, strict=False)
    for name, text in found.items():
        if (
            getattr(query, name) is None
        ):  # `ha=null` is msgspec's idea of None, nobody's of a filter
            allowed = _allowed(_type_at(inspect.type_info(wanted), [name]))
            raise InvalidInput(f"'{text}' is no value", field=name, allowed=allowed)
    _check_storable(msgspec.to_builtins(query), "")  # a number only now
    return query


def _convert(value: dict[str, Any], wanted: type[T], *, strict: bool) -> T:
    try:
        return msgspec.convert(value, wanted, strict=strict)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, VirthaError):
            raise error.__cause__ from None
        raise explain(str(error), wanted) from None


def explain(text: str, wanted: type) -> InvalidInput:
    """msgspec's sentence as our error: the field's full path, what is allowed there, the nearest name."""
    match = _PATH.fullmatch(text)
    message, path = (match["message"], match["path"] or "") if match else (text, "")
    parts = _path_parts(path)
    named = _NAMED.fullmatch(message)
    here = _type_at(inspect.type_info(wanted), parts)
    if named is None:
        allowed = _allowed(here)
        return InvalidInput(
            _lower(message), field=_join(parts) or "body", allowed=allowed, fix=_fix_of(allowed)
        )
    name = named["name"]
    if named["kind"] == "contains unknown":
        return _unknown(name, here, parts)
    field, allowed = _join([*parts, name]), _allowed(_type_at(here, [name]))
    return InvalidInput("is required", field=field, allowed=allowed, fix=f"add {field}")


def _refuse_unknown(value: Any, kind: inspect.Type | None, parts: list[str]) -> None:
    """For values of the model, which ignore unknown fields for the wire's sake: what a user misspells
    in a policy must not be dropped in silence."""
    kind = _chosen(_plain(kind), value)
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(kind, inspect.StructType) and name == kind.tag_field:
                continue
            below = _inner(kind, name)
            if below is None and isinstance(kind, inspect.StructType):
                raise _unknown(name, kind, parts)
            _refuse_unknown(inner, below, [*parts, name])
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_unknown(inner, _inner(kind, "[]"), [*parts, f"[{index}]"])


def _chosen(kind: inspect.Type | None, value: Any) -> inspect.Type | None:
    """Of several kinds of object told apart by a tag: the one that ``value`` says it is."""
    if isinstance(kind, inspect.UnionType) and isinstance(value, dict):
        structs = (one for one in kind.types if isinstance(one, inspect.StructType))
        for one in structs:
            if one.tag_field is not None and value.get(one.tag_field) == one.tag:
                return one
    return kind


def _unknown(name: str, kind: inspect.Type | None, parts: list[str]) -> InvalidInput:
    names = _field_names(kind)
    nearest = get_close_matches(name, names, n=1)
    return InvalidInput(
        "there is no such field",
        code="problem.unknown_field",
        field=_join([*parts, name]),
        allowed=names,
        fix=f"did you mean {nearest[0]}?" if nearest else "leave it out",
    )


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _fix_of(allowed: tuple[str, ...]) -> str:
    return "write one of the allowed values" if len(allowed) > 1 else ""


def _path_parts(path: str) -> list[str]:
    """``$.disks[0].name`` -> ["disks", "[0]", "name"]; msgspec writes ``[...]`` for dict values."""
    return re.findall(r"\[[^\]]*\]|[^.\[\]$]+", path.removeprefix("key in "))


def _join(parts: list[str]) -> str:
    out = ""
    for part in parts:
        out += part if part.startswith("[") or not out else f".{part}"
    return out


def _type_at(kind: inspect.Type | None, parts: list[str]) -> inspect.Type | None:
    for part in parts:
        kind = _inner(_plain(kind), part)
    return _plain(kind)


def _plain(kind: inspect.Type | None) -> inspect.Type | None:
    """Without Metadata and without ``| None``."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        rest = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return _plain(rest[0]) if len(rest) == 1 else kind
    return kind


def _inner(kind: inspect.Type | None, part: str) -> inspect.Type | None:
    if isinstance(kind, inspect.StructType):
        return next((f.type for f in kind.fields if f.encode_name == part), None)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        return kind.item_type
    if isinstance(kind, inspect.DictType):
        return kind.value_type
    if isinstance(kind, inspect.UnionType):
        return _inner_of_several(kind, part)
    return None


def _inner_of_several(kind: inspect.UnionType, part: str) -> inspect.Type | None:
    """Of objects told apart by a tag: the tag itself, or a field that only one of them has."""
    structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
    if structs and all(one.tag_field == part for one in structs):
        return inspect.LiteralType(tuple(str(one.tag) for one in structs))
    found = [inner for one in structs if (inner := _inner(one, part)) is not None]
    return found[0] if len(found) == 1 else None


def _allowed(kind: inspect.Type | None) -> tuple[str, ...]:
    if isinstance(kind, inspect.EnumType):
        return tuple(str(member.value) for member in kind.cls)
    if isinstance(kind, inspect.LiteralType):
        return tuple(str(value) for value in kind.values)
    if isinstance(kind, inspect.BoolType):
        return ("true", "false")
    if isinstance(kind, inspect.UnionType):
        return tuple(
            f"{one.tag_field} {one.tag}"
            for one in kind.types
            if isinstance(one, inspect.StructType) and one.tag is not None
        )
    return ()


def _field_names(kind: inspect.Type | None) -> tuple[str, ...]:
    if isinstance(kind, inspect.StructType):
        return tuple(field.encode_name for field in kind.fields)
    return ()


def _check_storable(value: Any, field: str) -> None:
    """Refuse what parses as JSON but fits no database and no domain XML.

    A NUL in a description would otherwise surface as libvirt's XML error minutes later, an integer
    of 70 bits as an overflow inside the store.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            if _CONTROL.search(name):
                raise InvalidInput("a name holds control characters", field=field or "body")
            _check_storable(inner, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_storable(inner, f"{field}[{index}]")
    elif isinstance(value, str):
        if _CONTROL.search(value):
            raise InvalidInput(
                "holds control characters", field=field, fix="use printable characters"
            )
    elif isinstance(value, int) and abs(value) > INTEGER_MAX:
        raise InvalidInput(
            "the number is too large", field=field, allowed=(f"up to {INTEGER_MAX}",)
        )


def _json_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a number"
