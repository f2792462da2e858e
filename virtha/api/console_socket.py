"""`GET /v1/console?ticket=…` as a WebSocket: bytes between a user and a VM's console, through a channel to its host.

The ticket is the permission: browsers can't send headers with a WebSocket. Binary messages both ways (text is taken as
its UTF-8). What ends it is in the close frame: 1000 its user, 1001 this server stops, 4000 the rest, whose reason begins
with a code of the registry.
"""

import asyncio
from typing import Any

import structlog
from litestar import WebSocket, websocket
from litestar.handlers import WebsocketRouteHandler

from virtha.api.route import Services
from virtha.model.errors import Failed, Unauthenticated, Unavailable, VirthaError
from virtha.ports.channels import ByteStream

log = structlog.get_logger("virtha.api.console")
PATH = "/v1/console"
IDLE_S = 1_800.0
"""Nothing typed and nothing shown for that long ends it."""
SEND_DEADLINE_S = 30.0
CLOSED_BY_USER, CLOSED_STOPPING, CLOSED_ENDED = 1000, 1001, 4000
REASON_BYTES_MAX = 123
"""RFC 6455, 5.5: a control frame has 125 bytes, two of which are the number."""
Socket = WebSocket[Any, Any, Any]


def console_handler(services: Services) -> WebsocketRouteHandler:
    @websocket(PATH, name=f"WEBSOCKET {PATH}")
    async def handle(socket: Socket) -> None:
        offered = socket.scope.get("subprotocols") or []
        # Accepted before anything is known: only then a browser's page gets to see why it ended.
        await socket.accept(subprotocols="binary" if "binary" in offered else None)
        try:
            number, reason = await _serve(socket, services)
        except VirthaError as error:
            number, reason = CLOSED_ENDED, f"{error.code}: {error.message}"
        if services.stopping.is_set():
            number, reason = CLOSED_STOPPING, "the server is stopping"
        await _close(socket, number, reason)

    return handle


async def _serve(socket: Socket, services: Services) -> tuple[int, str]:
    tickets = socket.query_params.getall("ticket", [])
    if len(tickets) != 1:
        raise Unauthenticated("one ticket is needed", field="ticket")
    async with services.control.consoles.enter(str(tickets[0])) as stream:
        return await _relay(socket, stream, services.stopping)


async def _relay(socket: Socket, stream: ByteStream, stopping: asyncio.Event) -> tuple[int, str]:
    loop = asyncio.get_running_loop()
    moved_at = loop.time()

    async def to_host() -> None:
        nonlocal moved_at
        while True:
            message: dict[str, Any] = dict(await socket.receive())
            if message["type"] != "websocket.receive":
                return
            moved_at = loop.time()
            await stream.send(message.get("bytes") or (message.get("text") or "").encode())

    async def to_user() -> None:
        nonlocal moved_at
        while data := await stream.receive():
            async with asyncio.timeout(SEND_DEADLINE_S):
                await socket.send_bytes(data)
            moved_at = loop.time()
        raise Failed("the host closed the console")

    works = (to_host(), to_user(), stopping.wait())
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work) for work in works]
    try:
        done: set[asyncio.Task[Any]] = set()
        while not done:
            left_s = moved_at + IDLE_S - loop.time()
            if left_s <= 0:
                raise Unavailable(f"nothing happened for {IDLE_S / 60:.0f} minutes")
            done, _ = await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, VirthaError):
            raise result
        if isinstance(result, TimeoutError):
            raise Unavailable("what was sent was not read")
    return CLOSED_BY_USER, ""


async def _close(socket: Socket, number: int, reason: str) -> None:
    try:
        short = reason.encode()[:REASON_BYTES_MAX].decode("utf-8", "ignore")
        await socket.close(code=number, reason=short)
    except Exception as error:
        # Its user is gone already: each server says that in its own words.
        log.debug("console socket is closed already", error=str(error))
