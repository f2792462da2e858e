"""A real `virtha server` as a process on loopback ports, and its commands run here."""

import contextlib
import io
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from virtha.cli.main import main

START_DEADLINE_S = 200.0
PASSWORD = "correct horse battery"


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTHA_")}
    return {**kept, **more}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, stdin: str = "", **env: str) -> Done:
    """A command that ends by itself, run here: a process of its own would cost 2 s of imports."""
    out, err = io.StringIO(), io.StringIO()
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch("sys.stdin", given),
        unittest.mock.patch.dict(os.environ, environment(**env), clear=True),
    ):
        code = main(arguments)
    return Done(code, out.getvalue(), err.getvalue())


def virtha(root: Path, *words: str, stdin: str = "") -> Done:
    """`virtha server …` of the installation below ``root``."""
    return command("server", *words, "--root", str(root), stdin=stdin)


def run_until_it_fails(root: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`virtha server` that must refuse to run, as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "virtha.cli.main", "server", "--root", str(root)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(**env),
    )


def initialise(root: Path, *words: str) -> dict[str, Any]:
    done = virtha(
        root,
        "init",
        "--json",
        "--password-stdin",
        "--listen=127.0.0.1:0",
        "--gateway-listen=127.0.0.1:0",
        *words,
        stdin=PASSWORD + "\n",
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class Server:
    """One server process; ends with the test, however that ends."""

    def __init__(self, root: Path, *, prefix: tuple[str, ...] = (), **env: str) -> None:
        """``prefix``: a program that ends by becoming the one whose words follow."""
        self.root = root
        self.log = (root / "server.log").open("ab")
        self.process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                "-m",
                "virtha.cli.main",
                "server",
                "run",
                "--json",
                "--root",
                str(root),
            ],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment(**env),
        )
        self.ready = self._wait_until_ready()

    def _wait_until_ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_DEADLINE_S, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        assert line, (self.root / "server.log").read_text()
        ready: dict[str, Any] = json.loads(line)
        return ready

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """(exit code, seconds it took)."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=200)
        return code, time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()

    @contextlib.contextmanager
    def rest(self, **headers: str) -> Iterator[httpx.Client]:
        """Over TLS, trusting the installation's own authority only."""
        trust = ssl.create_default_context(
            cadata=(self.root / "var/lib/virtha/server/authority/authority.crt").read_text()
        )
        with httpx.Client(
            base_url=self.ready["url"], verify=trust, headers=headers, timeout=200, trust_env=False
        ) as client:
            yield client

    @contextlib.contextmanager
    def local(self) -> Iterator[httpx.Client]:
        transport = httpx.HTTPTransport(uds=self.ready["socket"])
        with httpx.Client(transport=transport, base_url="http://virtha", timeout=200) as client:
            yield client


@contextlib.contextmanager
def serving(root: Path, *, prefix: tuple[str, ...] = (), **env: str) -> Iterator[Server]:
    server = Server(root, prefix=prefix, **env)
    try:
        yield server
    finally:
        server.close()


def sign_in(client: httpx.Client, password: str = PASSWORD) -> httpx.Response:
    return client.post("/v1/sessions", json={"user": "admin", "password": password})
