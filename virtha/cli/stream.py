"""Server-sent events, as the WHATWG HTML standard section 9.2.6 parses them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from virtha.model.errors import Failed

LINE_BYTES_MAX = 1 << 22
"""4 MiB: far above any event; a stream that sends no line end must not fill the memory."""


class ServerEvent(NamedTuple):
    """``id`` is the last one that the stream has sent; empty if none."""

    id: str
    event: str
    data: str


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines ended by LF, CR or CRLF and by nothing else, however the chunks are cut.

    What is left without an end at the end is dropped. Raises Failed at a line above the limit.
    """
    rest = b""
    after_return = False
    for chunk in chunks:
        if after_return and chunk:
            # The LF of a CRLF that two chunks had between them.
            chunk, after_return = chunk.removeprefix(b"\n"), False
        after_return = after_return or chunk.endswith(b"\r")
        *lines, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise Failed(f"the event stream has a line longer than {LINE_BYTES_MAX} bytes")
        for line in lines:
            yield line.decode(errors="replace")


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
