"""Reads one section of a YAML document key by key, each value as the kind that it must be.

Every error names file, line and column, the field, what is allowed, and the key that was probably meant.
"""

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from enum import StrEnum
from typing import TypeVar

from virtha.model.errors import InvalidInput
from virtha.model.size import parse_size_bytes
from virtha.model.time import parse_duration_ms
from virtha.model.yaml_reader import Position, YamlList, YamlMap, YamlNode, YamlScalar, wrong

_Kind = TypeVar("_Kind", bound=StrEnum)

NAME_LENGTH_MAX = 63
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
"""As the server's names, so that an inventory can be copied from one."""


def nearest(given: str, names: Sequence[str]) -> str:
    near = get_close_matches(given, names, 1)
    return f"did you mean '{near[0]}'?" if near else ""


def read_name(text: str, *, field: str, at: Position) -> str:
    if len(text) > NAME_LENGTH_MAX or not _NAME.fullmatch(text):
        raise wrong(
            at,
            f"'{text}' is no name",
            field=field,
            allowed=(f"1 to {NAME_LENGTH_MAX} letters, digits and . _ - inside",),
        )
    return text


class Section:
    """``path``: how errors name it (``hosts``). Raises InvalidInput for a key that is not among ``keys``."""

    def __init__(self, node: YamlNode, path: str, keys: Sequence[str]) -> None:
        self.at = node.at
        self._path = path
        if not isinstance(node, YamlMap):
            raise wrong(node.at, "this must be fields with values", field=path, allowed=tuple(keys))
        for entry in node.entries:
            if entry.key not in keys:
                raise wrong(
                    entry.at,
                    f"there is no '{entry.key}'",
                    field=self.field(entry.key),
                    allowed=tuple(keys),
                    fix=nearest(entry.key, keys),
                )
        self._values = {entry.key: entry.value for entry in node.entries}

    def field(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def place(self, key: str) -> Position:
        """Of its value; of the section where it was left out."""
        found = self._values.get(key)
        return self.at if found is None else found.at

    def node(self, key: str) -> YamlNode | None:
        """None: left out, or nothing was written behind it."""
        found = self._values.get(key)
        empty = isinstance(found, YamlScalar) and found.value is None
        return None if empty else found

    def needed(self, key: str, fix: str = "") -> YamlNode:
        found = self.node(key)
        if found is None:
            raise wrong(
                self.place(key),
                f"'{key}' is missing",
                field=self.field(key),
                fix=fix or f"write {key}: …",
            )
        return found

    def error(self, key: str, message: str, *, fix: str = "") -> InvalidInput:
        return wrong(self.place(key), message, field=self.field(key), fix=fix)

    # One value

    def scalar(self, key: str, fix: str = "") -> YamlScalar:
        return self._one(key, self.needed(key, fix))

    def _one(self, key: str, node: YamlNode) -> YamlScalar:
        if not isinstance(node, YamlScalar):
            raise wrong(
                node.at, "this is one value, not a list or a section", field=self.field(key)
            )
        return node

    def name(self, key: str, default: str | None = None) -> str:
        if default is not None and self.node(key) is None:
            return default
        found = self.scalar(key)
        return read_name(found.text, field=self.field(key), at=found.at)

    def flag(self, key: str, default: bool) -> bool:
        if self.node(key) is None:
            return default
        found = self.scalar(key)
        if not isinstance(found.value, bool):
            raise wrong(
                found.at,
                f"'{found.text}' does not fit here",
                field=self.field(key),
                allowed=("yes", "no"),
            )
        return found.value

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        if default is not None and self.node(key) is None:
            return default
        found = self.scalar(key)
        if type(found.value) is not int or not least <= found.value <= most:
            raise wrong(
                found.at,
                f"'{found.text}' does not fit here",
                field=self.field(key),
                allowed=(f"{least} to {most}",),
            )
        return found.value

    def size_bytes(self, key: str, default: int | None = None) -> int:
        if default is not None and self.node(key) is None:
            return default
        found = self.scalar(key, fix=f"write for example {key}: 16GiB")
        try:
            size = parse_size_bytes(found.text, field=self.field(key))
        except InvalidInput as error:
            raise _placed(found.at, error) from None
        if size == 0 and default != 0:
            raise wrong(found.at, "it can't be zero", field=self.field(key))
        return size

    def duration_ms(self, key: str, default: int) -> int:
        if self.node(key) is None:
            return default
        found = self.scalar(key)
        try:
            return parse_duration_ms(found.text, field=self.field(key))
        except InvalidInput as error:
            raise _placed(found.at, error) from None

    def choice(self, key: str, kind: type[_Kind], default: _Kind) -> _Kind:
        if self.node(key) is None:
            return default
        found = self.scalar(key)
        names = tuple(str(one) for one in kind)
        if found.text not in names:
            raise wrong(
                found.at,
                f"'{found.text}' does not fit here",
                field=self.field(key),
                allowed=names,
                fix=nearest(found.text, names),
            )
        return kind(found.text)

    # Lists

    def items(self, key: str) -> tuple[YamlNode, ...]:
        """A list, or one thing without the brackets."""
        found = self.node(key)
        if found is None:
            return ()
        return found.items if isinstance(found, YamlList) else (found,)

    def texts(self, key: str) -> tuple[YamlScalar, ...]:
        return tuple(self._one(key, item) for item in self.items(key))

    def names(self, key: str) -> tuple[str, ...]:
        """Each once."""
        return tuple(
            dict.fromkeys(
                read_name(one.text, field=self.field(key), at=one.at) for one in self.texts(key)
            )
        )

    def known(self, key: str, what: str, there: Collection[str]) -> tuple[str, ...]:
        """Names that must be among ``there``. Raises InvalidInput that says which there are."""
        for one in self.texts(key):
            if one.text not in there:
                raise unknown(one.at, self.field(key), what, one.text, there)
        return self.names(key)


SHOWN = 12
"""How many of the names that there are an error lists: of ten thousand hosts nobody reads all."""


def unknown(
    at: Position, field: str, what: str, given: str, there: Collection[str]
) -> InvalidInput:
    names = list(there)
    shown = [*names[:SHOWN], *([f"… {len(names) - SHOWN} more"] if len(names) > SHOWN else [])]
    return wrong(
        at,
        f"there is no {what} '{given}'",
        field=field,
        allowed=tuple(shown) or ("none is in this inventory",),
        fix=nearest(given, names),
    )


def _placed(at: Position, error: InvalidInput) -> InvalidInput:
    return wrong(at, error.message, field=error.field, allowed=error.allowed, fix=error.fix)
