"""The event stream (SSE): resumable by revision, pulled from the store, so that nothing piles up.

The stream keeps no queue: the next event is asked for when the connection has taken the one before. A
reader that takes nothing for ``SEND_DEADLINE_S`` is cut off and resumes from its Last-Event-ID.
Nothing can be lost or doubled: an event's id is its revision and the database's timeline. Each keep-alive says the id up to which a
reader has all that it asked for, so that one for whom nothing happens doesn't fall behind what is kept.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import structlog
from litestar.types import Receive, Scope, Send

from virtha.api.metrics import Metrics
from virtha.api.times import encode
from virtha.control.events import StreamPlace
from virtha.model.errors import InvalidInput, VirthaError
from virtha.model.event import Event

log = structlog.get_logger("virtha.api.stream")
KEEP_ALIVE_S = 10.0
"""Proxies commonly cut a connection that was silent for 30 to 60 s."""
SEND_DEADLINE_S = 30.0
RETRY_MS = 1_000
_ID = re.compile(r"(?P<revision>[0-9]{1,18})(?:-(?P<timeline>[0-9a-f]{8}))?")
MEDIA_TYPE = "text/event-stream"


def read_id(header: str | None) -> tuple[int, str | None] | None:
    """Revision and timeline of Last-Event-ID; a bare revision is taken too. Raises InvalidInput."""
    if header is None or not header.strip():
        return None
    found = _ID.fullmatch(header.strip())
    if found is None:
        raise InvalidInput(
            f"'{header.strip()[:64]}' is no id of an event",
            field="Last-Event-ID",
            allowed=("the id of an event of the stream", "a revision"),
        )
    return int(found["revision"]), found["timeline"]


def encode_event(event: Event, timeline: str) -> bytes:
    """One SSE message; JSON has no raw line breaks, so one data line is enough."""
    data = encode(event, Event)
    head = f"id: {event.revision}-{timeline}\nevent: {event.code}\n".encode()
    return b"%sdata: %s\n\n" % (head, data)


def _keep_alive(place: StreamPlace) -> bytes:
    """Without data it is no event, and its id is kept all the same (HTML standard, 9.2.6)."""
    return f": keep-alive\nid: {place.revision}-{place.timeline}\n\n".encode()


async def event_chunks(
    events: AsyncIterator[Event],
    still_allowed: Callable[[], Awaitable[None]],
    place: StreamPlace,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncGenerator[bytes, None]:
    """The stream in chunks, for as long as ``events`` goes on, which move ``place``.

    ``still_allowed`` raises when the reader's token has ended; it is asked with each keep-alive and
    at least as often while events flow.
    """
    yield f"retry: {RETRY_MS}\nid: {place.revision}-{place.timeline}\n\n".encode()
    loop = asyncio.get_running_loop()
    check_at = loop.time() + keep_alive_s
    coming: asyncio.Future[Event] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming}, timeout=max(0.0, check_at - loop.time()))
            if coming.done():
                event, coming = coming.result(), None
                yield encode_event(event, place.timeline)
            if loop.time() >= check_at:
                # Before anything is awaited: the next event, which moves the place, may come meanwhile.
                alive = _keep_alive(place)
                await still_allowed()
                check_at = loop.time() + keep_alive_s
                yield alive
    except StopAsyncIteration:
        return
    except VirthaError as error:
        # The status line went out long ago: say it as a comment, end, let the reader come again.
        log.info("event stream ended", code=error.code, detail=error.message)
        yield b": ended, %s\n\n" % error.code.encode()
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


class EventStreamResponse:
    """ASGI: sends chunks until the reader leaves, is too slow, or the server stops."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        stopping: asyncio.Event,
        metrics: Metrics,
    ) -> None:
        self._chunks = chunks
        self._headers = {**headers, "Content-Type": MEDIA_TYPE, "X-Accel-Buffering": "no"}
        self._stopping = stopping
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (name.lower().encode(), value.encode()) for name, value in self._headers.items()
                ],
            }
        )
        self._metrics.streams.inc()
        sender = asyncio.create_task(self._send_all(send), name="event-stream-sender")
        others = [
            asyncio.create_task(_until_gone(receive), name="event-stream-reader-gone"),
            asyncio.create_task(self._stopping.wait(), name="event-stream-stopping"),
        ]
        try:
            await asyncio.wait([sender, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sender, *others):
                task.cancel()
            results = await asyncio.gather(sender, *others, return_exceptions=True)
            self._metrics.streams.dec()
        if isinstance(results[0], Exception):
            raise results[0]
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                try:
                    async with asyncio.timeout(SEND_DEADLINE_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except TimeoutError:
                    self._metrics.streams_dropped.inc()
                    log.warning("event stream cut off: its reader takes nothing")
                    return


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
