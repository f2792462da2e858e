"""Nodes to JSON and back: the same tree as the XML, scalars as text, as oVirt writes them."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.scalars import from_text, to_text
from virtha.api.ovirt.shape import TURN, Field, Node, Scalar, Shape
from virtha.model.errors import InvalidInput

DEPTH_MAX = 64
"""A list is two levels here, where it is one in XML."""


def encode_one(shape: Shape, node: Node, base: str) -> bytes:
    return msgspec.json.encode(_written(shape, node, base))


def encode_many(shape: Shape, nodes: Sequence[Node], base: str) -> Iterator[bytes]:
    """Part by part, each the work of some milliseconds."""
    yield f'{{"{shape.name}":['.encode()
    for begin in range(0, len(nodes), TURN):
        turn = [_written(shape, node, base) for node in nodes[begin : begin + TURN]]
        yield (b"," if begin else b"") + msgspec.json.encode(turn)[1:-1]
    yield b"]}"


def _written(shape: Shape, node: Node, base: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if "actions" in node:
        href = base + node["href"]
        out["actions"] = {"link": [{"href": f"{href}/{it}", "rel": it} for it in node["actions"]]}
    if node.get("link"):
        out["link"] = [{"href": base + href, "rel": rel} for rel, href in node["link"]]
    for name, value in node.items():
        if name == "href":
            out[name] = base + value
        elif name == "id":
            out[name] = str(value)
        elif name not in ("link", "actions") and value is not None:
            out[name] = _written_field(shape, name, value, base)
    return out


def _written_field(shape: Shape, name: str, value: Any, base: str) -> Any:
    field, of = shape.fields[name], shape.type_of(name)
    if isinstance(of, Scalar):
        if not field.many:
            return to_text(of, value)
        return {field.item: [to_text(of, item) for item in value]}
    inner = SHAPES[of]
    if not field.many:
        return _written(inner, value, base)
    return {inner.name: [_written(inner, item, base) for item in value]}


def decode(raw: bytes, shape: Shape) -> Node:
    """Unknown members are ignored. Raises InvalidInput, which names the field."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is no JSON: {error}", field="body") from None
    except RecursionError:
        raise InvalidInput("the body is nested too deeply", field="body") from None
    return _read(value, shape, shape.name, 1)


def _read(value: Any, shape: Shape, field: str, depth: int) -> Node:
    if not isinstance(value, dict):
        raise InvalidInput("is no object", field=field)
    if depth > DEPTH_MAX:
        raise InvalidInput("the body is nested too deeply", field="body")
    node: Node = {}
    for name, inner in value.items():
        known = shape.fields.get(name)
        if inner is None:
            continue
        if name in ("id", "href"):
            node[name] = _scalar(Scalar.TEXT, inner, f"{field}.{name}")
        elif known is not None:
            node[name] = _read_field(inner, name, known, shape, f"{field}.{name}", depth)
    return node


def _read_field(value: Any, name: str, known: Field, shape: Shape, field: str, depth: int) -> Any:
    of = shape.type_of(name)
    if not known.many:
        if isinstance(of, Scalar):
            return _scalar(of, value, field)
        return _read(value, SHAPES[of], field, depth + 1)
    item = known.item if isinstance(of, Scalar) else SHAPES[of].name
    if isinstance(value, dict):
        value = value.get(item, [])
    items = value if isinstance(value, list) else [value]
    if isinstance(of, Scalar):
        return [_scalar(of, one, f"{field}.{item}") for one in items]
    return [_read(one, SHAPES[of], f"{field}.{item}", depth + 1) for one in items]


def _scalar(kind: Scalar, value: Any, field: str) -> Any:
    match value:
        case bool():
            return from_text(kind, "true" if value else "false", field=field)
        case str() | int() | float():
            return from_text(kind, str(value), field=field)
        case _:
            raise InvalidInput("is no plain value", field=field)
