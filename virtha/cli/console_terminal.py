"""`virtha vm console`: this terminal as the VM's serial terminal, over a WebSocket."""

import contextlib
import os
import selectors
import socket
import ssl
import sys
import termios
import tty
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import typer
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError

from virtha.cli.client import CONNECT_S, Target, pinned_context, ref
from virtha.cli.options import options
from virtha.cli.output import note
from virtha.cli.session import connected
from virtha.model.errors import Failed, InvalidInput, Unavailable

LEAVE = b"\x1d"
"""Ctrl-], as in virsh and telnet."""
READ_BYTES = 64 << 10


def console(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="VM", help="Name or id."),
) -> None:
    """Be a VM's serial terminal until Ctrl-] is typed."""
    if not sys.stdin.isatty():
        raise InvalidInput(
            "this is no terminal",
            field="VM",
            fix="read what it shows with: virtha vm console-log --follow",
        )
    with connected(ctx) as client:
        made = client.post(f"/v1/vms/{ref(name, field='VM')}/console-tickets", {"kind": "serial"})
        target = client.target
    note(options(ctx), f"connected to {name}; Ctrl-] ends it")
    with _dialled(target) as sock, _raw_terminal():
        ended = relay(sock, made["ticket"], sys.stdin.fileno(), sys.stdout.fileno())
    typer.echo("", err=True)
    if ended:
        raise Unavailable(f"the console ended: {ended}")


def relay(sock: socket.socket, ticket: str, source: int, sink: int) -> str:
    """Bytes both ways until Ctrl-] or the other end's goodbye, whose reason is returned."""
    connection = WSConnection(ConnectionType.CLIENT)
    sock.sendall(
        connection.send(Request(host="virtha", target=f"/v1/console?ticket={quote(ticket)}"))
    )
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while True:
            if connection.state is ConnectionState.OPEN and source not in selector.get_map():
                # Not before: what is typed during the handshake waits in the terminal.
                selector.register(source, selectors.EVENT_READ)
            # TLS may hold bytes that the selector can't see.
            waiting = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            ready = {key.fd for key, _ in selector.select(0 if waiting else None)}
            if waiting or sock.fileno() in ready:
                ended = _take(connection, sock, sink)
                if ended is not None:
                    return ended
            if source in ready:
                typed = os.read(source, READ_BYTES)
                before, leave, _ = typed.partition(LEAVE)
                if before:
                    sock.sendall(connection.send(BytesMessage(data=before)))
                if leave or not typed:
                    sock.sendall(connection.send(CloseConnection(code=1000)))
                    return ""


def _take(connection: WSConnection, sock: socket.socket, sink: int) -> str | None:
    """Whatever came in; the reason if that was the end."""
    data = sock.recv(READ_BYTES)
    connection.receive_data(data or None)
    for event in connection.events():
        match event:
            case BytesMessage(data=shown):
                _write(sink, bytes(shown))
            case TextMessage(data=text):
                _write(sink, str(text).encode())
            case Ping():
                sock.sendall(connection.send(event.response()))
            case RejectConnection(status_code=status):
                return f"the server refused it (HTTP {status})"
            case CloseConnection(code=code, reason=reason):
                with contextlib.suppress(LocalProtocolError, OSError):
                    sock.sendall(connection.send(event.response()))
                return "" if code == 1000 else reason or f"closed ({code})"
            case AcceptConnection():
                pass
    return None if data else "the connection broke"


def _write(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


@contextlib.contextmanager
def _dialled(target: Target) -> Iterator[socket.socket]:
    try:
        if target.socket is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(str(target.socket))
        else:
            parts = urlsplit(target.url)
            sock = socket.create_connection(
                (parts.hostname or "", parts.port or 443), timeout=CONNECT_S
            )
            if parts.scheme == "https":
                context = pinned_context(target.authority_pem)
                sock = context.wrap_socket(sock, server_hostname=parts.hostname)
            sock.settimeout(None)
    except OSError as exc:
        raise Unavailable(f"can't connect to {target.place}: {exc}") from exc
    with sock:
        yield sock


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    descriptor = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(descriptor)
    except termios.error as exc:
        raise Failed(f"can't set the terminal: {exc}") from exc
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
