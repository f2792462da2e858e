"""Debian's Alertmanager on a loopback port of its own, without a cluster; whom it tells is a receiver of the test's."""

import asyncio
import json
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from free_port import free_port

from virtha.drivers.pki import LocalAuthority

START_S = 60.0
USER = "virtha"
PASSWORD = "alert-Pass/phrase"
_PASSWORD_HASH = "$2b$04$abcdefghijklmnopqrstuufNUj7keBEhuxiW2GS7ht2oYFOVhDVgy"
"""The same by bcrypt, as cheap as that gets."""
EACH_ALONE = ("...",)
"""Alertmanager's word for: grouped by all labels."""


class OwnAlertmanager:
    """``signer``: it speaks TLS with a certificate of theirs, and wants ``USER`` and ``PASSWORD``; without, plain HTTP from anybody.
    ``group_by``: labels; none: all that it tells goes together."""

    def __init__(
        self, *, signer: LocalAuthority | None = None, group_by: Sequence[str] = EACH_ALONE
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="vt-alertmanager-")
        self._signer = signer
        self._group_by = group_by
        self._process: subprocess.Popen[bytes] | None = None
        self._people = _People()
        self.port = free_port()

    def __enter__(self) -> "OwnAlertmanager":
        self._people.start()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._people.stop()
        self._directory.cleanup()

    @property
    def url(self) -> str:
        return f"{'http' if self._signer is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def told(self) -> list[dict[str, Any]]:
        """Each message that it sent to people, as its webhooks have it."""
        return list(self._people.told)

    def start(self) -> None:
        directory = Path(self._directory.name)
        configuration, web = directory / "alertmanager.yml", directory / "web.yml"
        configuration.write_text(json.dumps(self._configuration()))
        web.write_text(json.dumps(self._web(directory)))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus-alertmanager",
                    f"--config.file={configuration}",
                    f"--web.config.file={web}",
                    f"--storage.path={directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
            )
        self._until_ready()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def get(self, path: str) -> httpx.Response:
        trust: ssl.SSLContext | bool = True
        if self._signer is not None:
            trust = ssl.create_default_context(cadata=self._signer.certificate_pem())
        with httpx.Client(
            base_url=self.url, verify=trust, auth=(USER, PASSWORD), trust_env=False, timeout=60
        ) as client:
            return client.get(path)

    def active(self) -> list[dict[str, Any]]:
        """The alerts that stand, in the order of their names."""
        answer = self.get("/api/v2/alerts?active=true")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        assert {one["status"]["state"] for one in found} <= {"active", "unprocessed"}
        return sorted(found, key=lambda one: sorted(one["labels"].items()))

    async def until_active(self, *names: str) -> list[dict[str, Any]]:
        """The alerts, once exactly those of these names stand."""
        await self.until(lambda: _names(self.active()) == sorted(names))
        return self.active()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(START_S):
            while not condition():
                await asyncio.sleep(0.02)

    @property
    def _log(self) -> Path:
        return Path(self._directory.name) / "log"

    def _configuration(self) -> dict[str, Any]:
        """JSON is YAML."""
        return {
            "route": {
                "receiver": "people",
                "group_by": [*self._group_by],
                "group_wait": "0s",
                "group_interval": "200ms",
                "repeat_interval": "1d",
            },
            "receivers": [{"name": "people", "webhook_configs": [{"url": self._people.url}]}],
        }

    def _web(self, directory: Path) -> dict[str, Any]:
        if self._signer is None:
            return {}
        certificate, key = self._signer.issue_server_certificate(("127.0.0.1",))
        (directory / "crt").write_text(certificate)
        (directory / "key").write_text(key)
        tls = {"cert_file": str(directory / "crt"), "key_file": str(directory / "key")}
        return {"tls_server_config": tls, "basic_auth_users": {USER: _PASSWORD_HASH}}

    def _until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return self.get("/-/ready").status_code == 200
        except httpx.ConnectError:
            return False


def _names(alerts: list[dict[str, Any]]) -> list[str]:
    return sorted(one["labels"]["alertname"] for one in alerts)


class _People:
    """Keeps what it is told by HTTP."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
