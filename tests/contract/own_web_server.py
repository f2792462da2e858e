"""An HTTPS server on loopback which answers byte by byte as one test wants it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Request:
    """``headers``: names in lower case."""

    def __init__(self, line: str, headers: dict[str, str], body: bytes) -> None:
        self.line = line
        self.headers = headers
        self.body = body


Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""All of it, or what writes it and then hangs up."""

FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def status(code: int, headers: str = "", body: str = "no") -> bytes:
    return f"HTTP/1.1 {code} Because\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class WebServer:
    def __init__(self, answer: Answer = FINE) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self.ended = 0
        """Of the connections."""
        self.server_names: list[str | None] = []

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: self.server_names.append(name)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := (await reader.readline()).decode().strip():
                self.requests.append(await _request(line, reader))
                if not isinstance(self.answer, bytes):
                    await self.answer(writer)
                    return
                writer.write(self.answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended += 1
            writer.close()


async def _request(line: str, reader: asyncio.StreamReader) -> Request:
    headers = {}
    while text := (await reader.readline()).decode().strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(line, headers, body)
