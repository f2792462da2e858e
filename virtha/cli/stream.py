"""Server-sent events, as the WHATWG HTML standard section 9.2.6 parses them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class ServerEvent(NamedTuple):
    """``id`` is the last one that the stream has sent; empty if none."""

    id: str
    event: str
    data: str


def parse_events(lines: Iterable[str]) -> Iterator[ServerEvent]:
    """Whole events only: what a broken stream left half-sent comes again after a reconnect."""
    last_id, event, data = "", "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield ServerEvent(last_id, event or "message", "\n".join(data))
            event, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                data.append(value)
            case "event":
                event = value
            case "id":
                if "\0" not in value:
                    last_id = value
            case _:
                # Comments (an empty name) keep the connection alive; `retry` is our own decision.
                continue
