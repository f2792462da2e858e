"""``follow``: linked objects are put into the answer in place of their links."""

from collections.abc import Awaitable, Callable, Sequence

from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.parameters import Follow
from virtha.api.ovirt.route import Reply
from virtha.api.ovirt.shape import Node, Scalar, Shape
from virtha.model.errors import InvalidInput, NotFound

Look = Callable[[str], Awaitable[Reply]]
"""What a GET of that path answers."""


async def follow_links(shape: Shape, nodes: Sequence[Node], wanted: Follow, look: Look) -> None:
    """Changes ``nodes``. Raises InvalidInput: the type has no such link. An object without it is left as it is."""
    for name, inner in wanted.items():
        known = next((it for it in (name, shape.field_of(name)) if it in shape.fields), None)
        of = shape.type_of(known) if known is not None else Scalar.TEXT
        if known is None or isinstance(of, Scalar):
            raise InvalidInput(
                f"a {shape.name} has no link '{name[:64]}'",
                field="follow",
                allowed=tuple(sorted(_followable(shape))),
            )
        for node in nodes:
            await _follow_one(node, known, SHAPES[of], inner, look)


def _followable(shape: Shape) -> list[str]:
    return [name for name in shape.fields if not isinstance(shape.type_of(name), Scalar)]


async def _follow_one(node: Node, name: str, of: Shape, inner: Follow, look: Look) -> None:
    rel = name.replace("_", "")
    links = {it: href for it, href in node.get("link", ()) if it.replace("_", "") == rel}
    if links:
        node[name] = list(await _nodes(look, next(iter(links.values()))))
        node["link"] = [(it, href) for it, href in node["link"] if it not in links]
    elif isinstance(node.get(name), dict) and "href" in node[name]:
        found = await _nodes(look, node[name]["href"])
        node[name] = found[0] if found else node[name]
    if inner and name in node:
        there = node[name] if isinstance(node[name], list) else [node[name]]
        await follow_links(of, there, inner, look)


async def _nodes(look: Look, href: str) -> Sequence[Node]:
    """What is gone meanwhile is nothing."""
    try:
        body = (await look(href)).body
    except NotFound:
        return ()
    if body is None:
        return ()
    return (body,) if isinstance(body, dict) else body
