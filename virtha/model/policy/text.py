"""The policy as people write it: YAML with durations (``delay: 1.5s``), single assignments, differences.

A field whose name has ``_ms`` in it is a duration and loses that part: ``delay_ms_max`` is
``delay_max``. ``profile: fast`` stands for all fields that a profile decides; what else is given
counts over it, wherever in the file it stands.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import yaml

from virtha.model.errors import InvalidInput
from virtha.model.policy.document import FIELD_TABLE, Policy
from virtha.model.policy.field import Unit, allowed_of
from virtha.model.policy.names import is_duration, short_name, shown_path
from virtha.model.policy.profiles import PROFILE_FIELDS, PROFILES, Profile
from virtha.model.policy.rule import BrokenRule
from virtha.model.time import format_duration_ms, parse_duration_ms
from virtha.model.value import Value
from virtha.model.yaml_reader import Position, YamlList, YamlMap, YamlNode, YamlScalar, read_yaml

BYTES_MAX = 1 << 20
PROFILE_KEY = "profile"
Document = dict[str, Any]
"""The policy as in the API's JSON."""


class Change(Value, frozen=True, kw_only=True):
    """One value that was given. ``path`` is the model's (`restart.delay_ms`)."""

    path: str
    value: Any
    at: Position | None = None


class Difference(Value, frozen=True, kw_only=True):
    """One field that two policies differ in; texts as people write them."""

    path: str
    shown: str
    before: str
    after: str


def policy_to_yaml(document: Document) -> str:
    """The API's policy document as people write it. Takes fields that this version doesn't know."""
    return yaml.safe_dump(_readable(document), sort_keys=False, allow_unicode=True)


def _readable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_readable(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        short_name(key): format_duration_ms(inner)
        if is_duration(key) and type(inner) is int
        else _readable(inner)
        for key, inner in value.items()
    }


def differences(before: Policy, after: Policy) -> tuple[Difference, ...]:
    return tuple(
        Difference(
            path=path,
            shown=field.shown,
            before=field.text(before.read(path)),
            after=field.text(after.read(path)),
        )
        for path, field in FIELD_TABLE.items()
        if before.read(path) != after.read(path)
    )


def policy_of(document: Document) -> Policy:
    """The document as a policy. Raises InvalidInput naming the field, BrokenRule naming several."""
    try:
        return msgspec.convert(document, Policy)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise error.__cause__ from None
        raise InvalidInput(
            str(error), field="policy", fix="see docs/reference/policy.md for every field"
        ) from None


def document_of(policy: Policy) -> Document:
    """As the API has it."""
    return dict(_plain(policy))


def _plain(value: Any) -> Any:
    """As it is after a way through JSON: lists, not tuples."""
    return msgspec.json.decode(msgspec.json.encode(value))


def read_policy(text: str, *, file: str) -> Policy:
    """A whole policy out of a file; what it leaves out is as in its profile, or in ``balanced``."""
    return policy_of(apply_changes({}, changes_from_yaml(text, file=file)))


def changes_from_yaml(text: str, *, file: str) -> list[Change]:
    """Every value of the document. Raises InvalidInput naming place and field."""
    root = read_yaml(text, file=file, bytes_max=BYTES_MAX)
    if root is None or (isinstance(root, YamlScalar) and root.value is None):
        raise InvalidInput(f"{file}: the document is empty", field="policy", allowed=_names(Policy))
    return changes_from_node(root)


def changes_from_node(root: YamlNode) -> list[Change]:
    """The same of a policy that is a part of another document."""
    if not isinstance(root, YamlMap):
        raise _wrong(root.at, "this must be sections with fields", "", _names(Policy))
    changes: list[Change] = []
    for entry in root.entries:
        if entry.key == PROFILE_KEY:
            changes[:0] = _profile_changes(
                _value(entry.value, Profile, PROFILE_KEY, entry.key), entry.at
            )
            continue
        section = _field_name(entry.key, Policy, "", entry.at)
        kind = get_type_hints(Policy)[section]
        if not isinstance(entry.value, YamlMap):
            raise _wrong(entry.value.at, "this is a section, not a value", section, _names(kind))
        changes += _fields(entry.value, kind, section)
    return changes


def _fields(node: YamlMap, kind: type, section: str) -> list[Change]:
    found: dict[str, Change] = {}
    for entry in node.entries:
        name = _field_name(entry.key, kind, section, entry.at)
        path = f"{section}.{name}"
        if name in found:
            first = found[name].at
            line = first.line if first else 0
            raise _wrong(entry.at, f"given already in line {line}", path, fix="give it once")
        value = _value(entry.value, FIELD_TABLE[path].kind, path, entry.key)
        found[name] = Change(path=path, value=value, at=entry.value.at)
    return list(found.values())


def _profile_changes(profile: str, at: Position | None) -> list[Change]:
    sample = PROFILES[Profile(profile)]
    return [Change(path=path, value=sample.read(path), at=at) for path in PROFILE_FIELDS]


def changes_from_assignment(text: str) -> list[Change]:
    """``restart.delay=1.5s``, or ``profile=fast``. Raises InvalidInput naming the field."""
    dotted, equals, value = text.partition("=")
    dotted = dotted.strip()
    if not equals:
        raise InvalidInput(
            f"'{text}' is not FIELD=VALUE", field="policy", fix="write restart.delay=1.5s"
        )
    try:
        node = read_yaml(value, file=dotted)
    except InvalidInput as error:
        raise InvalidInput(
            f"'{value}' is no value", field=dotted, fix="write restart.delay=1.5s"
        ) from error
    if node is None:
        node = YamlScalar(value=None, text="", at=Position(file=dotted, line=1, column=1))
    if dotted == PROFILE_KEY:
        return _profile_changes(_value(node, Profile, PROFILE_KEY, dotted, located=False), None)
    section, dot, name = dotted.partition(".")
    section = _field_name(section, Policy, "", None)
    kind = get_type_hints(Policy)[section]
    if not dot:
        raise _wrong(None, "this is a section, not a value", section, _names(kind))
    name, dot, _ = name.partition(".")
    path = f"{section}.{_field_name(name, kind, section, None)}"
    if dot:
        raise _wrong(None, "there is nothing below it", path, fix=f"write {shown_path(path)}=…")
    return [
        Change(path=path, value=_value(node, FIELD_TABLE[path].kind, path, name, located=False))
    ]


def apply_changes(document: Document, changes: Iterable[Change]) -> Document:
    """``document`` with the changes, checked as a whole. Raises InvalidInput naming the place of the
    value that is wrong, or of one of those that don't go together."""
    merged: Document = _plain(document)
    places: dict[str, Position | None] = {}
    for change in changes:
        section, _, name = change.path.partition(".")
        merged.setdefault(section, {})[name] = _plain(change.value)
        places[change.path] = change.at
    try:
        policy_of(merged)
    except InvalidInput as error:
        fields = error.fields if isinstance(error, BrokenRule) else (error.field or "",)
        given = [path for path in fields if path in places]
        named = given[0] if given else fields[0]
        raise InvalidInput(
            f"{places[named]}: {error.message}" if places.get(named) else error.message,
            code=error.code,
            field=shown_path(named) or None,
            allowed=error.allowed,
            fix=error.fix,
        ) from None
    return merged


def _names(kind: type[Value]) -> tuple[str, ...]:
    return tuple(short_name(name) for name in kind.__struct_fields__)


def _field_name(given: str, kind: type[Value], path: str, at: Position | None) -> str:
    for name in kind.__struct_fields__:
        if given in (name, short_name(name)):
            return str(name)
    names = (*_names(kind), *((PROFILE_KEY,) if kind is Policy else ()))
    raise _wrong(
        at,
        f"there is no '{given}'",
        f"{path}.{given}" if path else given,
        names,
        fix=_elsewhere(given) or _nearest(given, names),
    )


def _nearest(given: str, names: Iterable[str]) -> str:
    near = get_close_matches(given, list(names), 1)
    return f"did you mean '{near[0]}'?" if near else ""


def _elsewhere(given: str) -> str:
    """A field that exists in another section is a field in the wrong place."""
    for field in FIELD_TABLE.values():
        if given in (field.name, short_name(field.name)):
            return f"there is {field.shown}"
    return ""


def _wrong(
    at: Position | None, message: str, path: str, allowed: tuple[str, ...] = (), *, fix: str = ""
) -> InvalidInput:
    return InvalidInput(
        f"{at}: {message}" if at else message,
        field=shown_path(path) or "policy",
        allowed=allowed,
        fix=fix,
    )


def _value(node: YamlNode, kind: Any, path: str, given: str, *, located: bool = True) -> Any:
    """The node as a builtin value of ``kind``. ``given``: the field's name as it was written, which may
    say the unit (``delay_ms``) or not. Not ``located``: it was no file, errors name no place."""
    at = node.at if located else None
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        if not isinstance(node, YamlList):
            raise _wrong(at, "this is a list", path, allowed_of(kind), fix="write [ ] around it")
        inner = get_args(kind)[0]
        return [_value(item, inner, path, given, located=located) for item in node.items]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _record(node, kind, path, located=located)
    if not isinstance(node, YamlScalar):
        raise _wrong(at, "this is one value, not a list or a section", path, allowed_of(kind))
    if kind is int and is_duration(path):
        if type(node.value) is int and is_duration(given):
            return node.value  # `delay_ms: 1500`, as in the API's document
        return _duration(node, path, at)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        if node.text in tuple(kind):
            return kind(node.text)
        names = allowed_of(kind)
        raise _wrong(
            at, f"'{node.text}' does not fit here", path, names, fix=_nearest(node.text, names)
        )
    if kind is str and node.value is not None:
        return node.text
    if _is_percent(path) and re.fullmatch(r"\d{1,9}%", node.text):
        return int(node.text[:-1])  # as it is shown
    if type(node.value) is not kind:
        raise _wrong(at, f"'{node.text}' does not fit here", path, _allowed_at(path, kind))
    return node.value


def _is_percent(path: str) -> bool:
    return path in FIELD_TABLE and FIELD_TABLE[path].about.unit is Unit.PERCENT


def _allowed_at(path: str, kind: Any) -> tuple[str, ...]:
    return FIELD_TABLE[path].allowed if path in FIELD_TABLE else allowed_of(kind)


def _record(node: YamlNode, kind: type, path: str, *, located: bool) -> Document:
    at = node.at if located else None
    if not isinstance(node, YamlMap):
        raise _wrong(at, "this must be entries with fields", path, allowed_of(kind))
    hints = get_type_hints(kind)
    made: Document = {}
    for entry in node.entries:
        key_at = entry.at if located else None
        name = _field_name(entry.key, kind, path, key_at)
        made[name] = _value(entry.value, hints[name], f"{path}.{name}", entry.key, located=located)
    try:
        return dict(_plain(msgspec.convert(made, kind)))
    except InvalidInput as error:
        raise _wrong(at, error.message, path, error.allowed) from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidInput):
            raise _wrong(at, error.__cause__.message, path, error.__cause__.allowed) from None
        raise _wrong(at, str(error).lower(), path, allowed_of(kind)) from None


def _duration(node: YamlScalar, path: str, at: Position | None) -> int:
    """With its unit: the 5 of `delay: 5` may mean seconds to the one who wrote it."""
    try:
        return parse_duration_ms(node.text, field=path)
    except InvalidInput as error:
        raise _wrong(at, error.message, path, error.allowed, fix=error.fix) from None
