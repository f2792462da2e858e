"""A small real HTTP server that plays the API, over TCP, TLS and a Unix socket."""

import datetime
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from virtha.api.times import encode

DEATH_TICKET: dict[str, Any] = {
    "ticket": "t1",
    "host_id": "id-of-h1",
    "host": "h1",
    "boot": "b1",
    "incident": 3,
    "vms": ["web1", "web2"],
    "valid_ms": 600_000,
}
"""Of a dead host with two VMs."""


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Answer(NamedTuple):
    """``raw`` is sent as it is; ``cut`` closes the connection after it, as a killed server does."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = {}
    raw: bytes | None = None
    cut: bool = False
    hang: threading.Event | None = None


class Api:
    """Routes by (method, path); a list of answers is given one by one, its last for ever."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Any] = {}
        self.asked: list[Asked] = []
        self.url = ""

    def on(self, method: str, path: str, *answers: Any) -> None:
        self.routes[method, path] = list(answers)

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        queue = self.routes.get((asked.method, asked.path))
        if queue is None:
            problem = {"title": "No such thing", "status": 404, "code": "problem.not_found"}
            return Answer({**problem, "detail": f"no route {asked.path}"}, status=404)
        found = queue.pop(0) if len(queue) > 1 else queue[0]
        if callable(found):
            found = found(asked)
        return found if isinstance(found, Answer) else Answer(found)

    def calls(self, method: str = "", path: str = "") -> list[Asked]:
        return [a for a in self.asked if method in ("", a.method) and path in ("", a.path)]


def handler_of(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def address_string(self) -> str:
            return "test"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = Asked(
                method=self.command,
                path=parts.path,
                query=dict(parse_qsl(parts.query)),
                headers={key.lower(): value for key, value in self.headers.items()},
                body=json.loads(raw) if raw else None,
            )
            answer = api.answer(asked)
            if answer.hang is not None:
                answer.hang.wait(60)
                self.close_connection = True
                return
            if answer.cut:
                if answer.raw:
                    self.wfile.write(answer.raw)
                self.close_connection = True
                return
            content = answer.raw
            if content is None:
                content = b"" if answer.body is None else encode(answer.body, type(answer.body))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    return Handler


class UnixServer(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "unix", 0


class Server(ThreadingHTTPServer):
    context: ssl.SSLContext | None = None

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.context is not None:
            # The handshake runs in the handler's thread, at the first read.
            connection = self.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that refuses our certificate is what some tests are about


def serving(server: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Authority(NamedTuple):
    certificate_pem: str
    fingerprint: str
    chain: Path


def make_authority(folder: Path, names: tuple[str, ...] = ("localhost",)) -> Authority:
    """An authority of its own with one server certificate; ``chain``: certificate and key."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    period = (now - datetime.timedelta(hours=1), now + datetime.timedelta(hours=1))
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "virtha authority")])

    def builder(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(period[0])
            .not_valid_after(period[1])
        )

    root = (
        builder(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = folder / "server.pem"
    chain.write_bytes(leaf.public_bytes(pem) + private)
    return Authority(
        root.public_bytes(pem).decode(), root.fingerprint(hashes.SHA256()).hex(), chain
    )


class Ran(NamedTuple):
    code: int
    out: str
    err: str
