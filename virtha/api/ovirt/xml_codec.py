"""Nodes to XML and back. What comes from outside is bounded before anything is made of it."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.scalars import from_text, to_text
from virtha.api.ovirt.shape import TURN, Field, Node, Scalar, Shape
from virtha.model.errors import InvalidInput

DEPTH_MAX = 32
"""oVirt's own deepest request, a VM with its initialization, is not half as deep."""
ELEMENTS_MAX = 20_000
HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""XML 1.0, production 2: everything else can't be written, not even as a reference."""
_PLAIN = re.compile(r"[A-Za-z0-9 ./:_-]*")
"""Most of what is written; it goes in as it is."""
_ATTRIBUTES = ("href", "id")


# Writing


def encode_one(shape: Shape, node: Node, base: str) -> bytes:
    """``base``: the path of the API's root, which goes before every href."""
    out = [HEAD]
    _write(out, shape, node, base)
    return "".join(out).encode()


def encode_many(shape: Shape, nodes: Sequence[Node], base: str) -> Iterator[bytes]:
    """Part by part, each the work of some milliseconds."""
    yield f"{HEAD}<{shape.plural}>".encode()
    for begin in range(0, len(nodes), TURN):
        out: list[str] = []
        for node in nodes[begin : begin + TURN]:
            _write(out, shape, node, base)
        yield "".join(out).encode()
    yield f"</{shape.plural}>".encode()


def _escape(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return html.escape(_NOT_XML.sub("�", text))


def _write(out: list[str], shape: Shape, node: Node, base: str, tag: str | None = None) -> None:
    tag = tag or shape.name
    out.append(f"<{tag}")
    for name in _ATTRIBUTES:
        if name in node:
            text = base + node[name] if name == "href" else str(node[name])
            out.append(f' {name}="{_escape(text)}"')
    out.append(">")
    _write_links(out, node, base)
    for name, value in node.items():
        if name not in (*_ATTRIBUTES, "link", "actions") and value is not None:
            _write_field(out, shape, name, value, base)
    out.append(f"</{tag}>")


def _write_links(out: list[str], node: Node, base: str) -> None:
    if "actions" in node:
        links = ((action, f"{node['href']}/{action}") for action in node["actions"])
        out.append("<actions>")
        out.extend(_link(rel, base + href) for rel, href in links)
        out.append("</actions>")
    out.extend(_link(rel, base + href) for rel, href in node.get("link", ()))


def _link(rel: str, href: str) -> str:
    return f'<link href="{_escape(href)}" rel="{_escape(rel)}"/>'


def _write_field(out: list[str], shape: Shape, name: str, value: Any, base: str) -> None:
    field, of = shape.fields[name], shape.type_of(name)
    if not field.many:
        _write_item(out, of, value, base, tag=name)
        return
    out.append(f"<{name}>")
    for item in value:
        _write_item(out, of, item, base, tag=field.item or None)
    out.append(f"</{name}>")


def _write_item(
    out: list[str], of: Scalar | str, value: Any, base: str, *, tag: str | None
) -> None:
    if isinstance(of, Scalar):
        out.append(f"<{tag}>{_escape(to_text(of, value))}</{tag}>")
    else:
        _write(out, SHAPES[of], value, base, tag)


# Reading


class _Element:
    """One element as it came: no more than what reading by a shape needs."""

    __slots__ = ("_parts", "attributes", "children", "tag")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[_Element] = []
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        self._parts.append(text)

    @property
    def text(self) -> str:
        return "".join(self._parts)


class _BoundedTree:
    """Target of the parser. Raises InvalidInput as soon as a bound is passed, not when all was read."""

    def __init__(self) -> None:
        self._open: list[_Element] = []
        self._root: _Element | None = None
        self._count = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._open) >= DEPTH_MAX:
            raise InvalidInput(
                "the body is nested too deeply", field="body", allowed=(f"{DEPTH_MAX} levels",)
            )
        if self._count > ELEMENTS_MAX:
            raise InvalidInput(
                "the body has too many elements", field="body", allowed=(f"up to {ELEMENTS_MAX}",)
            )
        made = _Element(tag, attributes)
        if self._open:
            self._open[-1].children.append(made)
        else:
            self._root = made
        self._open.append(made)

    def end(self, _tag: str) -> None:
        self._open.pop()

    def data(self, text: str) -> None:
        self._open[-1].add(text)

    def close(self) -> _Element | None:
        return self._root


def decode(raw: bytes, shape: Shape) -> Node:
    """Unknown elements are ignored, as oVirt does. Raises InvalidInput, which names the field."""
    parser = DefusedXMLParser(target=_BoundedTree(), forbid_dtd=True)
    try:
        parser.feed(raw)
        # Typed as the usual target's answer, it is ours.
        root: _Element | None = parser.close()  # type: ignore[assignment]
    except DefusedXmlException:
        raise InvalidInput(
            "the body declares a document type or entities, which are not read",
            field="body",
            fix="send plain elements",
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise InvalidInput(f"the body is no XML: {error}", field="body") from None
    if root is None or root.tag != shape.name:
        told = root.tag[:64] if root is not None else "nothing"
        raise InvalidInput(f"the body is <{told}>", field="body", allowed=(f"<{shape.name}>",))
    return _read(root, shape, shape.name)


def _read(element: _Element, shape: Shape, field: str) -> Node:
    node: Node = {name: text for name, text in element.attributes.items() if name in _ATTRIBUTES}
    for child in element.children:
        known = shape.fields.get(child.tag)
        if child.tag in _ATTRIBUTES:
            node[child.tag] = child.text.strip()
        elif known is not None:
            node[child.tag] = _read_field(child, known, shape, f"{field}.{child.tag}")
    return node


def _read_field(element: _Element, known: Field, shape: Shape, field: str) -> Any:
    of = shape.type_of(element.tag)
    if isinstance(of, Scalar):
        if not known.many:
            return from_text(of, element.text, field=field)
        items = [one for one in element.children if one.tag == known.item]
        return [from_text(of, one.text, field=f"{field}.{one.tag}") for one in items]
    inner = SHAPES[of]
    if not known.many:
        return _read(element, inner, field)
    items = [one for one in element.children if one.tag == inner.name]
    return [_read(one, inner, f"{field}.{one.tag}") for one in items]
