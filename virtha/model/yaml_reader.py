"""YAML text as a tree whose every part knows its place: for policies, inventories and whatever else
people write and we must answer with file, line and column.

Built from PyYAML's events, which carry the same marks as its composed nodes: in one pass, without
recursion, and with bounds on size and depth. Aliases, tags and several documents in one file are
refused: nothing that we read needs them, and each is a way to surprise a reader or a program.
"""

import re
from typing import Any

import yaml

from virtha.model.errors import InvalidInput
from virtha.model.value import Scalar as Plain
from virtha.model.value import Value

BYTES_MAX = 16 << 20
"""An inventory of 10,000 hosts and 200,000 VMs is about 10 MiB."""
DEPTH_MAX = 50

_INTEGER = re.compile(r"-?(0|[1-9]\d*)")
_FRACTION = re.compile(r"-?\d+\.\d+")
_TAG = "tag:yaml.org,2002:"
# The C parser is ten times faster where PyYAML was built with it; both make the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Position(Value, frozen=True, kw_only=True):
    """``line`` and ``column`` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class YamlScalar(Value, frozen=True, kw_only=True):
    """``value``: what it means; the bare text where that is not what people mean (YAML 1.1 reads
    ``1:30`` as 90 and ``010`` as 8). ``text``: as written."""

    value: Plain | float
    text: str
    at: Position


class YamlList(Value, frozen=True, kw_only=True):
    items: "tuple[YamlNode, ...]"
    at: Position


class YamlEntry(Value, frozen=True, kw_only=True):
    """``at``: where the key is."""

    key: str
    value: "YamlNode"
    at: Position


class YamlMap(Value, frozen=True, kw_only=True):
    """Keys are text, each once, in the order of the file."""

    entries: tuple[YamlEntry, ...]
    at: Position


YamlNode = YamlScalar | YamlList | YamlMap


def wrong(at: Position | None, message: str, **more: Any) -> InvalidInput:
    """An error whose text begins with the place."""
    return InvalidInput(f"{at}: {message}" if at is not None else message, **more)


def read_yaml(text: str, *, file: str, bytes_max: int = BYTES_MAX) -> YamlNode | None:
    """The one document of ``text``; None when there is nothing in it.

    ``file``: how positions name it. Raises InvalidInput with file, line and column.
    """
    start = Position(file=file, line=1, column=1)
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise wrong(start, "not valid YAML: half a character", fix="save it as UTF-8") from None
    if size_bytes > bytes_max:
        raise wrong(
            start, f"the document is larger than {bytes_max >> 20} MiB", fix="is it the right file?"
        )
    builder = _Builder(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        at = Position(file=file, line=line, column=1)
        raise wrong(at, "not valid YAML: it holds a control character", fix="take it out") from None
    except yaml.MarkedYAMLError as error:
        at = _position(file, error.problem_mark or error.context_mark)
        raise wrong(
            at,
            f"not valid YAML: {error.problem or error.context}",
            fix="look at the indentation and the quotes there",
        ) from None
    return builder.root


def _position(file: str, mark: Any) -> Position:
    return Position(file=file, line=mark.line + 1, column=mark.column + 1)


class _Open:
    """A list or map whose end has not come."""

    __slots__ = ("at", "children", "is_map")

    def __init__(self, at: Position, *, is_map: bool) -> None:
        self.at = at
        self.is_map = is_map
        self.children: list[YamlNode] = []

    def close(self) -> YamlNode:
        if not self.is_map:
            return YamlList(items=tuple(self.children), at=self.at)
        entries: dict[str, YamlEntry] = {}
        for key, value in zip(self.children[::2], self.children[1::2], strict=True):
            if not isinstance(key, YamlScalar):
                raise wrong(
                    key.at, "a key must be text, not a list or a section", fix="write a name"
                )
            if key.text in entries:
                raise wrong(
                    key.at,
                    f"'{key.text}' is given already in line {entries[key.text].at.line}",
                    fix="give it once",
                )
            entries[key.text] = YamlEntry(key=key.text, value=value, at=key.at)
        return YamlMap(entries=tuple(entries.values()), at=self.at)


class _Builder:
    """Folds events into the tree."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stack: list[_Open] = []
        self._documents = 0
        self.root: YamlNode | None = None

    def take(self, event: yaml.Event) -> None:
        at = _position(self._file, event.start_mark)
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise wrong(at, "there is a second document", fix="one document per file")
            case yaml.AliasEvent():
                raise wrong(at, f"aliases (*{event.anchor}) are not read", fix="write it out")
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._refuse_tag(event, at)
                if len(self._stack) == DEPTH_MAX:
                    raise wrong(
                        at, f"nested deeper than {DEPTH_MAX} levels", fix="write it flatter"
                    )
                self._stack.append(_Open(at, is_map=isinstance(event, yaml.MappingStartEvent)))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._add(self._stack.pop().close())
            case yaml.ScalarEvent():
                self._refuse_tag(event, at)
                self._add(YamlScalar(value=_meaning(event), text=event.value, at=at))
            case _:
                pass

    def _refuse_tag(self, event: Any, at: Position) -> None:
        if event.tag is not None:
            raise wrong(at, f"tags ({event.tag}) are not read", fix="leave the tag out")

    def _add(self, node: YamlNode) -> None:
        if self._stack:
            self._stack[-1].children.append(node)
        else:
            self.root = node


_resolver = yaml.resolver.Resolver()


def _meaning(event: yaml.ScalarEvent) -> Plain | float:
    text = str(event.value)
    if event.style:  # quoted, or a block: text and nothing else
        return text
    match _resolver.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG):  # type: ignore[no-untyped-call]  # PyYAML has no types here
        case "null":
            return None
        case "bool":
            return text.lower() in ("true", "yes", "on")
        case "int" if _INTEGER.fullmatch(text) and len(text) < 20:
            return int(text)
        case "float" if _FRACTION.fullmatch(text):
            return float(text)
        case _:
            return text
