"""``follow``: linked objects are put into the answer in place of their links."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence

from virtha.api.ovirt.catalogue import SHAPES
from virtha.api.ovirt.parameters import Follow
from virtha.api.ovirt.route import Reply
from virtha.api.ovirt.shape import Node, Scalar, Shape
from virtha.model.errors import InvalidInput, NotFound

Look = Callable[[str], Awaitable[Reply]]
"""What a GET of that path answers."""
NODES_MAX = 100_000
"""Brought into one answer: the cards, disks and watchdogs of 20,000 VMs; not all disks once for each of them."""


class Links:
    """Of one answer. Each path is looked at once: a list of VMs mostly has one cluster."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._seen: dict[str, Sequence[Node]] = {}
        self._count = 0

    async def follow(self, shape: Shape, nodes: Sequence[Node], wanted: Follow) -> None:
        """Changes ``nodes``. Raises InvalidInput: the type has no such link, or there is too much behind it. An object without
        it is left as it is."""
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
                await self._follow_one(node, known, SHAPES[of], inner)

    async def _follow_one(self, node: Node, name: str, of: Shape, inner: Follow) -> None:
        rel = name.replace("_", "")
        links = {it: href for it, href in node.get("link", ()) if it.replace("_", "") == rel}
        if links:
            node[name] = await self._nodes(next(iter(links.values())))
            node["link"] = [(it, href) for it, href in node["link"] if it not in links]
        elif isinstance(node.get(name), dict) and "href" in node[name]:
            found = await self._nodes(node[name]["href"])
            node[name] = found[0] if found else node[name]
        if inner and name in node:
            there = node[name] if isinstance(node[name], list) else [node[name]]
            await self.follow(of, there, inner)

    async def _nodes(self, href: str) -> list[Node]:
        """Copies: what is put into one of them is not in the others."""
        seen = self._seen.get(href)
        if seen is None:
            await asyncio.sleep(0)  # it may all be known already, and nothing waited for
            seen = self._seen[href] = await self._looked(href)
        self._count += len(seen)
        if self._count > NODES_MAX:
            raise InvalidInput(
                f"brings in more than {NODES_MAX} objects",
                field="follow",
                fix="follow fewer links, or ask for fewer objects with max",
            )
        return copy.deepcopy(list(seen))

    async def _looked(self, href: str) -> Sequence[Node]:
        """What is gone meanwhile is nothing."""
        try:
            body = (await self._look(href)).body
        except NotFound:
            return ()
        if body is None:
            return ()
        return (body,) if isinstance(body, dict) else tuple(body)


def _followable(shape: Shape) -> list[str]:
    return [name for name in shape.fields if not isinstance(shape.type_of(name), Scalar)]
