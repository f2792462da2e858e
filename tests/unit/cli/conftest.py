"""Fixtures of the CLI's tests: a home of its own, servers that play the API, a way to run it."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fake_api import Api, Authority, Ran, Server, UnixServer, handler_of, serving

from virtha.cli import progress as progress_module
from virtha.cli import session as session_module
from virtha.cli.main import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets the settings of the one who runs it."""
    for name in ("VIRTHA_URL", "VIRTHA_TOKEN", "VIRTHA_AUTHORITY", "VIRTHA_ROOT", "NO_COLOR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "RETRY_S", 0.01)
    monkeypatch.setattr(session_module, "WATCH_S", 0.001)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The API on this machine's loopback; commands go there."""
    api = Api()
    server = Server(("127.0.0.1", 0), handler_of(api))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("VIRTHA_URL", api.url)
    for _ in serving(server):
        yield api


@pytest.fixture
def socket_api(home: Path) -> Iterator[Api]:
    """The API on the Unix socket of the installation below ``home``."""
    api = Api()
    path = home / "run" / "virtha" / "server.sock"
    path.parent.mkdir(parents=True)
    server = UnixServer(str(path), handler_of(api))
    server.daemon_threads = True
    for _ in serving(server):
        yield api


@pytest.fixture
def tls_api(tmp_path: Path) -> Iterator[Callable[[Authority], Api]]:
    """Starts an API over TLS with that authority's certificate; ends with the test."""
    running: list[Iterator[Any]] = []

    def start(authority: Authority) -> Api:
        api = Api()
        server = Server(("127.0.0.1", 0), handler_of(api))
        server.daemon_threads = True
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(authority.chain)
        api.url = f"https://localhost:{server.server_address[1]}"
        live = serving(server)
        next(live)
        running.append(live)
        return api

    yield start
    for live in running:
        next(live, None)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run one command line in this process."""

    def run(*argv: str) -> Ran:
        code = main(argv)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run
