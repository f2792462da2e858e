"""Joining against a real TLS server of a real authority."""

import errno
import json
import os
import ssl
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from virtha.agent import identity as identity_module
from virtha.agent.gate import gate_installed, hook_path
from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.join import join, token_fingerprint
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import LocalAuthority, client_context, create_authority, host_identity
from virtha.model.errors import (
    Conflict,
    Failed,
    InvalidInput,
    Refused,
    Unauthenticated,
    Unavailable,
    VirthaError,
)
from virtha.model.ids import HostId, InstallationId
from virtha.model.time import UtcMillis

pytestmark = pytest.mark.req("L6")

INSTALLATION = InstallationId("10000000-0000-4000-8000-000000000001")
HOST = HostId("20000000-0000-4000-8000-000000000001")
NOW = UtcMillis(1_760_000_000_000)


class Server:
    """`GET /v1/authority` and `POST /v1/join`, as the API has them."""

    def __init__(self, directory: Path) -> None:
        certificate, key = create_authority(INSTALLATION, now=NOW)
        self.authority = LocalAuthority(certificate, key, wall_ms=MachineClock().wall_ms)
        server_certificate, server_key = self.authority.issue_server_certificate(
            ("localhost", "127.0.0.1")
        )
        (directory / "server.crt").write_text(server_certificate)
        (directory / "server.key").write_text(server_key)
        self.asked: list[dict[str, str]] = []
        self.problem: tuple[int, dict[str, str]] | None = None
        self.change: Callable[[dict[str, object]], None] = lambda answer: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                return

            def do_GET(self) -> None:
                self._answer(200, {"certificate_pem": outer.authority.certificate_pem()})

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                outer.asked.append(body)
                if outer.problem is not None:
                    return self._answer(*outer.problem)
                answer = outer.sign(body)
                outer.change(answer)
                self._answer(201, answer)

            def _answer(self, status: int, content: object) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.crt", directory / "server.key")
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._http.server_address[1]}"

    @property
    def token(self) -> str:
        return f"virtha-join.t1.secretsecret.{self.authority.fingerprint()}"

    def sign(self, body: dict[str, str]) -> dict[str, object]:
        signed = self.authority.sign_host(body["csr_pem"], host_id=HOST)
        return {
            "host_id": HOST,
            "number": 3,
            "name": body["name"],
            "installation_id": INSTALLATION,
            "cluster": "main",
            "certificate_pem": signed.certificate_pem,
            "authority_pem": self.authority.certificate_pem(),
            "servers": ["192.0.2.1:8250", "192.0.2.2:8250"],
        }

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join(60)
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    made = Server(tmp_path / "server")
    yield made
    made.stop()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AgentPaths:
    monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(tmp_path / "hooks"))
    return AgentPaths(root=str(tmp_path / "root"))


def test_a_host_joins(server: Server, paths: AgentPaths) -> None:
    joined = join(paths, server.url, server.token, name="h1")
    assert joined.gate_is_new
    assert gate_installed(paths) is None
    identity = load_identity(paths)
    assert (identity.host_id, identity.number, identity.name) == (HOST, 3, "h1")
    credentials = load_credentials(paths, identity)
    assert isinstance(credentials, HostCredentials)
    assert host_identity(credentials.certificate_pem).host_id == HOST
    # Key and certificate belong together, or this raises.
    client_context(credentials.authority_pem, credentials.certificate_pem, credentials.key_pem)
    assert stat.S_IMODE((paths.identity / "host.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.identity.stat().st_mode) == 0o700
    assert "host=192.0.2.1:8250,192.0.2.2:8250" in paths.properties.read_text()
    assert f"guid={HOST}" in paths.properties.read_text()
    # The key never left this host.
    assert "PRIVATE" not in json.dumps(server.asked)
    assert not (paths.state / "identity.joining").exists()


def test_an_administrators_properties_stay(server: Server, paths: AgentPaths) -> None:
    paths.properties.parent.mkdir(parents=True)
    paths.properties.write_text("# mine\nhost=manager.example.org\nworkers=7")
    join(paths, server.url, server.token, name="h1")
    text = paths.properties.read_text()
    assert text.startswith("# mine\nhost=manager.example.org\nworkers=7\n")
    assert "192.0.2.1" not in text


def test_a_second_join_is_refused_unless_forced(server: Server, paths: AgentPaths) -> None:
    join(paths, server.url, server.token, name="h1")
    key = (paths.identity / "host.key").read_text()
    with pytest.raises(Conflict, match="joined an installation already"):
        join(paths, server.url, server.token, name="h1")
    assert len(server.asked) == 1
    assert (paths.identity / "host.key").read_text() == key
    again = join(paths, server.url, server.token, name="h2", force=True)
    assert not again.gate_is_new
    assert (paths.identity / "host.key").read_text() != key
    assert load_identity(paths).name == "h2"


def other_token(server: Server) -> str:
    return f"virtha-join.t1.secretsecret.{'0' * 64}"


BAD = {
    "wrong authority": (other_token, Refused, "problem.authority.wrong", None),
    "expired": (
        lambda server: server.token,
        Unauthenticated,
        "problem.token.expired",
        (401, {"code": "problem.token.expired", "detail": "The token has expired"}),
    ),
    "used": (
        lambda server: server.token,
        Unauthenticated,
        "problem.token.used",
        (401, {"code": "problem.token.used", "detail": "used already"}),
    ),
    "name taken": (
        lambda server: server.token,
        Conflict,
        "problem.name_taken",
        (409, {"code": "problem.name_taken", "detail": "h1 is taken", "field": "name"}),
    ),
    "server error": (
        lambda server: server.token,
        Failed,
        "problem.failed",
        (500, {"code": "problem.failed", "detail": "boom"}),
    ),
}


def untouched(paths: AgentPaths) -> bool:
    return (
        not paths.properties.exists()
        and not (paths.identity / "identity.json").exists()
        and not hook_path(paths).exists()
    )


@pytest.mark.parametrize(("token", "kind", "code", "problem"), BAD.values(), ids=BAD.keys())
@pytest.mark.bad_input("expired token", "used token", "wrong authority")
def test_a_refused_host_is_as_it_was(
    server: Server,
    paths: AgentPaths,
    token: Callable[[Server], str],
    kind: type[VirthaError],
    code: str,
    problem: tuple[int, dict[str, str]] | None,
) -> None:
    server.problem = problem
    with pytest.raises(kind) as caught:
        join(paths, server.url, token(server), name="h1")
    assert caught.value.code == code
    assert untouched(paths)
    # To a server that isn't ours the token's secret is never sent.
    assert bool(server.asked) == (problem is not None)


@pytest.mark.parametrize(
    "change",
    [
        {"certificate_pem": "hello"},
        {"authority_pem": create_authority(INSTALLATION, now=NOW)[0]},
        {"host_id": "20000000-0000-4000-8000-00000000000f"},
        {"servers": 5},
    ],
)
def test_an_answer_that_does_not_fit_is_refused(
    server: Server, paths: AgentPaths, change: dict[str, object]
) -> None:
    server.change = lambda answer: answer.update(change)
    with pytest.raises(VirthaError):
        join(paths, server.url, server.token, name="h1")
    assert untouched(paths)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "hello",
        "virtha-access.a.bbbbbbbbbb",
        "virtha-join.t1.secret." + "g" * 64,
        "virtha-join..x.",
    ],
)
def test_what_is_no_token_is_said_so(token: str) -> None:
    with pytest.raises(InvalidInput, match="no join token"):
        token_fingerprint(token)


@pytest.mark.parametrize("url", ["http://manager", "ftp://x", "https://", "https://a/b", ""])
def test_what_is_no_address_is_said_so(paths: AgentPaths, url: str) -> None:
    token = f"virtha-join.t1.secretsecret.{'0' * 64}"
    with pytest.raises(InvalidInput, match="no address of a server"):
        join(paths, url, token, name="h1")


def test_a_bad_name_is_refused_before_anything_is_asked(server: Server, paths: AgentPaths) -> None:
    with pytest.raises(InvalidInput, match="no host name"):
        join(paths, server.url, server.token, name="a b")
    assert server.asked == []


def test_a_server_that_is_not_there(paths: AgentPaths) -> None:
    token = f"virtha-join.t1.secretsecret.{'0' * 64}"
    with pytest.raises(Unavailable):
        join(paths, "https://127.0.0.1:1", token, name="h1")
    assert untouched(paths)


def test_a_host_that_has_not_joined_says_what_to_do(paths: AgentPaths) -> None:
    with pytest.raises(Failed, match="has not joined"):
        load_identity(paths)


@pytest.mark.bad_input("program as another user")
def test_an_identity_that_a_user_may_not_read_is_not_to_be_made_anew(
    paths: AgentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is only root's is in order; joining again would throw it away."""

    def refuse(path: Path, _bytes_max: int) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(identity_module, "read_bounded", refuse)
    with pytest.raises(Failed, match="can't be read: Permission denied") as told:
        load_identity(paths)
    assert told.value.fix == "run it as root"
    monkeypatch.setattr(identity_module, "read_bounded", lambda *_: b"{")
    with pytest.raises(Failed) as told:
        load_identity(paths)
    assert told.value.fix == "join again with --force"
