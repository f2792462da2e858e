"""The REST listeners: uvicorn on TLS and on the Unix socket, with the peer's uid from the kernel."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from virtha.api.app import PEER_UID
from virtha.api.problems import MEDIA_TYPE, encode_problem, headers_of, problem_of
from virtha.model.errors import Failed, InvalidInput, Unavailable, VirthaError
from virtha.server.config import split_address

log = structlog.get_logger("virtha.server")
CONNECTIONS_MAX = 1_000
"""Per listener; one more is answered with 503."""
STOP_GRACE_S = 1
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT = 20, 10, 4
"""A peer that answers nothing for a minute is gone."""
WEBSOCKET_BYTES_MAX = 1 << 20
"""Of one message; what people type and paste."""
_UCRED = struct.Struct("3i")


class ProblemProtocol(HttpToolsProtocol):
    """What never reaches the application is a problem document all the same: what is no HTTP, and one connection too many."""

    def __init__(self, config: uvicorn.Config, *more: Any, **named: Any) -> None:
        super().__init__(config, *more, **named)
        self._application = self.app

    def on_headers_complete(self) -> None:
        full = max(len(self.connections), len(self.tasks)) >= CONNECTIONS_MAX
        if full:
            log.warning("too many connections: a request is refused", at_once=CONNECTIONS_MAX)
        self.app = _full if full else self._application
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        error = InvalidInput(
            "is no HTTP that this server speaks, or its address and headers are too large",
            field="request",
            allowed=("HTTP/1.0 or 1.1, with up to 64 KiB before the body",),
        )
        headers, body = _answer(error)
        head = b"\r\n".join(b"%s: %s" % pair for pair in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%s\r\n\r\n%s" % (head, body))
        self.transport.close()


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    error = Unavailable(
        "the server has too many connections",
        fix="come again in a moment; close those that you need no more",
    )
    headers, body = _answer(error)
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _answer(error: VirthaError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of a problem whose connection ends with it."""
    body = encode_problem(problem_of(error))
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "connection": "close",
        **headers_of(error),
    }
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()], body


class PeerCredentialProtocol(ProblemProtocol):
    """HTTP on the Unix socket. The uid comes from SO_PEERCRED, never from a header."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.app_state = {**self.app_state, PEER_UID: peer_uid(transport)}


def peer_uid(transport: asyncio.BaseTransport) -> int | None:
    """None if the kernel doesn't say; then the peer is a stranger like any other."""
    wrapped: Any = transport.get_extra_info("socket")
    if wrapped is None:
        return None
    # uvloop hands out a look-alike without getsockopt; a duplicate of the descriptor is a real socket.
    with contextlib.closing(socket.socket(fileno=os.dup(wrapped.fileno()))) as real:
        if real.family != socket.AF_UNIX:
            return None
        raw = real.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(raw)
    return int(uid)


class Listener(uvicorn.Server):
    """uvicorn without its signal handlers: the server's own loop decides when to stop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_stopped(self, sock: socket.socket) -> None:
        await self.serve(sockets=[sock])

    def stop(self) -> None:
        self.should_exit = True


def tls_listener(app: ASGIApp, context: ssl.SSLContext, *, proxies: Sequence[str] = ()) -> Listener:
    """``proxies``: whose ``X-Forwarded-For`` is believed; nobody else's, or everybody could say where they come from."""
    behind = believing(app, proxies) if proxies else app
    return Listener(uvicorn_config(behind, ssl_context_factory=lambda _config, _default: context))


def believing(app: ASGIApp, proxies: Sequence[str]) -> ASGIApp:
    """As who sent a request to the proxy nearest to us that is none of these."""
    networks = [ip_network(one) for one in proxies]
    # Where the server listens on [::], that is how the kernel writes an address of IPv4.
    mapped = [
        f"::ffff:{one.network_address}/{96 + one.prefixlen}"
        for one in networks
        if isinstance(one, IPv4Network)
    ]
    return ProxyHeadersMiddleware(app, [*(str(one) for one in networks), *mapped])  # type: ignore[arg-type,return-value]  # its types name uvicorn's own of the same shape


def unix_listener(app: ASGIApp) -> Listener:
    return Listener(uvicorn_config(app, http=PeerCredentialProtocol))


def uvicorn_config(app: ASGIApp, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        **{"http": ProblemProtocol, **more},
        loop="none",
        ws="wsproto",  # for consoles only
        ws_max_size=WEBSOCKET_BYTES_MAX,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # or X-Forwarded-For would name the client, whoever sends it
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_GRACE_S,
    )


def bind_tcp(address: str, *, field: str) -> socket.socket:
    """Raises Failed naming the setting, when the port is taken or the address isn't ours."""
    host, port = split_address(address, field=field)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise Failed(f"can't listen on {address}: {error.strerror}", field=field) from None
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _keep_alive(sock)
        sock.bind(target)
        sock.listen(512)
    except OSError as error:
        sock.close()
        fix = "change it in server.toml"
        if error.errno == errno.EADDRINUSE:
            fix = f"find who has it with `ss -ltnp 'sport = :{port}'`, or change it in server.toml"
        raise Failed(
            f"can't listen on {address}: {os.strerror(error.errno or 0)}", field=field, fix=fix
        ) from None
    sock.setblocking(False)
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Also of all that it accepts (tcp(7)): a user whose machine has vanished must not keep a VM's console."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def bind_unix(path: Path) -> socket.socket:
    """The socket is open to all: who the peer is decides, and others than root need a token.

    The caller holds the server's lock, so that a socket file that is there is a dead server's.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Failed(f"{path} is there and is no socket", fix="move it away")
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise Failed(f"can't listen on {path}: {error}", field="socket") from None
    sock.setblocking(False)
    return sock


def address_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
