"""Settings that this server shows and keeps no others of.

To drop one without a word would be to promise what nobody keeps: "protected from deletion", "loses what is written". What a
client read here and sends back passes; another value is refused by name.
"""

from typing import Any

from virtha.api.ovirt.shape import Node
from virtha.model.errors import Refused


def refuse_others(
    body: Node, shown: Node, *paths: str, within: str = "", fix: str = "leave it out"
) -> None:
    """``paths``: fields, inner ones behind dots. ``shown``: what it says of them; a field that it does not say is never kept,
    neither as true nor with something in it. ``within``: where the body stands in what was sent. Raises Refused."""
    for path in paths:
        said, present = _at(body, path), _at(shown, path)
        if said in (None, [], {}, present) or (present is None and said is False):
            continue
        kept = "not offered" if present is None else _text(present)
        raise Refused(f"another value is not kept: here it is {kept}", field=within + path, fix=fix)


def _at(node: Node, path: str) -> Any:
    value: Any = node
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
