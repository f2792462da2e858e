"""The policy as people write it: YAML with durations (`delay: 1.5s`), errors with line and field.

Reads PyYAML's nodes, not its values, because only nodes know their lines. A field whose name in the
model has ``_ms`` in it is a duration and loses that part here: ``delay_ms_max`` is ``delay_max``.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from virtha.model.errors import InvalidInput
from virtha.model.policy import Policy
from virtha.model.time import format_duration_ms, parse_duration_ms

BYTES_MAX = 1 << 20


def short_name(field: str) -> str:
    """``delay_ms_max`` -> ``delay_max``; the same for what is no duration."""
    return "_".join(part for part in field.split("_") if part != "ms")


def policy_to_yaml(policy: dict[str, Any]) -> str:
    """The API's policy document as people write it."""
    return yaml.safe_dump(_readable(policy), sort_keys=False, allow_unicode=True)


def _readable(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        short_name(key): format_duration_ms(inner)
        if "ms" in key.split("_") and type(inner) is int
        else _readable(inner)
        for key, inner in value.items()
    }


class Change(msgspec.Struct, frozen=True):
    """One value that was given. ``path`` is the model's (`restart.delay_ms`), ``line`` 0 if none."""

    path: tuple[str, ...]
    value: Any
    line: int = 0


def changes_from_yaml(text: str) -> list[Change]:
    """Every value of the document. Raises InvalidInput naming line and field."""
    if len(text.encode()) > BYTES_MAX:
        raise InvalidInput("the document is larger than 1 MiB", field="policy")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(exc, "problem", None) or "it can't be read"
        raise InvalidInput(f"{where}not valid YAML: {problem}", field="policy") from exc
    except RecursionError:
        raise InvalidInput("nested too deeply", field="policy") from None
    if root is None:
        raise InvalidInput("the document is empty", field="policy", allowed=_names(Policy))
    return list(_walk(root, Policy, ()))


def change_from_assignment(text: str) -> Change:
    """``restart.delay=1.5s`` as one change. Raises InvalidInput naming the field."""
    dotted, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(
            f"'{text}' is not FIELD=VALUE", field="policy", fix="write restart.delay=1.5s"
        )
    node = _one_value(value, dotted)
    kind: Any = Policy
    path: tuple[str, ...] = ()
    for part in dotted.split("."):
        if not _is_section(kind):
            raise _wrong("there is nothing below it", path, 0)
        name = _field_name(part, kind, path, line=0)
        path, kind = (*path, name), _fields(kind)[name]
    if _is_section(kind):
        raise _wrong("this is a section, not a value", path, 0, allowed=_names(kind))
    return Change(path=path, value=_scalar(node, kind, path, line=0))


def _one_value(text: str, dotted: str) -> yaml.Node:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader) or yaml.ScalarNode(
            "tag:yaml.org,2002:null", ""
        )
    except yaml.YAMLError as exc:
        raise InvalidInput(f"'{text}' is no value", field=dotted) from exc


def apply_changes(policy: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
    """``policy`` with the changes, checked as a whole. Raises InvalidInput naming line and field."""
    merged: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(policy))
    lines: dict[str, int] = {}
    for change in changes:
        place = merged
        for part in change.path[:-1]:
            place = place.setdefault(part, {})
        place[change.path[-1]] = change.value
        lines[".".join(change.path)] = change.line
    try:
        msgspec.convert(merged, Policy)
    except InvalidInput as exc:
        raise _with_line(exc, lines.get(exc.field or "", 0)) from exc
    except msgspec.ValidationError as exc:
        if isinstance(exc.__cause__, InvalidInput):
            wrong = exc.__cause__
            raise _with_line(wrong, lines.get(wrong.field or "", 0)) from exc
        raise InvalidInput(str(exc), field="policy") from exc
    return merged


def _with_line(error: InvalidInput, line: int) -> InvalidInput:
    where = f"line {line}: " if line else ""
    return InvalidInput(
        where + error.message,
        code=error.code,
        field=_shown(error.field or "") or None,
        allowed=error.allowed,
        fix=error.fix,
    )


def _shown(path: str) -> str:
    """`restart.delay_ms` as people write it: `restart.delay`."""
    return ".".join(short_name(part) for part in path.split("."))


def _fields(kind: Any) -> dict[str, Any]:
    """Field names and types of a section of the policy."""
    return get_type_hints(kind)


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(short_name(name) for name in _fields(kind))


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _field_name(given: str, kind: Any, path: tuple[str, ...], *, line: int) -> str:
    for name in _fields(kind):
        if given in (name, short_name(name)):
            return name
    near = get_close_matches(given, _names(kind), 1)
    raise _wrong(
        f"there is no '{given}'",
        (*path, given),
        line,
        allowed=_names(kind),
        fix=f"did you mean '{near[0]}'?" if near else "",
    )


def _wrong(
    message: str, path: tuple[str, ...], line: int, *, allowed: tuple[str, ...] = (), fix: str = ""
) -> InvalidInput:
    where = f"line {line}: " if line else ""
    return InvalidInput(
        where + message, field=_shown(".".join(path)) or "policy", allowed=allowed, fix=fix
    )


def _walk(node: yaml.Node, kind: Any, path: tuple[str, ...]) -> Iterator[Change]:
    line = node.start_mark.line + 1 if node.start_mark else 0
    if not _is_section(kind):
        yield Change(path=path, value=_scalar(node, kind, path, line), line=line)
        return
    if not isinstance(node, yaml.MappingNode):
        raise _wrong("this is a section, not a value", path, line, allowed=_names(kind))
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        name = _field_name(str(key_node.value), kind, path, line=key_line)
        if name in seen:
            raise _wrong(f"given already in line {seen[name]}", (*path, name), key_line)
        seen[name] = key_line
        yield from _walk(value_node, _fields(kind)[name], (*path, name))


def _scalar(node: yaml.Node, kind: Any, path: tuple[str, ...], line: int) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong("this is one value, not a list or a section", path, line)
    text = str(node.value)
    value = _constructed(node, text)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    if "ms" in path[-1].split("_") and int in kinds:
        return _duration(text, value, path, line)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        names = {bool: ("true", "false"), int: ("a whole number",), str: ("text",)}
        allowed = tuple(word for one in kinds for word in names.get(one, ()))
        raise _wrong(f"'{text}' does not fit here", path, line, allowed=allowed) from None


def _constructed(node: yaml.ScalarNode, text: str) -> Any:
    """What YAML makes of it; the bare text where that is no value, or not the one that people mean
    (YAML 1.1 reads ``1:30`` as 90 and ``010`` as 8)."""
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError):
        return text
    return text if type(value) is int and not re.fullmatch(r"-?(0|[1-9]\d*)", text) else value


def _duration(text: str, value: Any, path: tuple[str, ...], line: int) -> int:
    """A bare number is milliseconds, as in the API's document."""
    if type(value) is int:
        return value
    try:
        return parse_duration_ms(text, field=".".join(path))
    except InvalidInput as exc:
        raise _with_line(exc, line) from None
