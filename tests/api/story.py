"""An installation as users and hosts have it: server process, command line, a host with live sessions."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from played_host import JoinedHost, PlayedHost, join_host
from server_process import PASSWORD, Done, Server, command, initialise, serving, sign_in

VIEWER_PASSWORD = "only-looks-around"
WAIT_S = 60.0


class Story:
    """A server process with h1 connected, h2 joined but never seen, and VM web1 made by commands."""

    host: PlayedHost

    def __init__(self, directory: Path, server: Server, fingerprint: str) -> None:
        self.directory = directory
        self.server = server
        self.fingerprint = fingerprint
        self.url = server.ready["url"]
        self._access = ""

    def run(self, *words: str, user: str = "admin", **more: Any) -> Done:
        """One command of a signed-in user."""
        return command(*words, XDG_CONFIG_HOME=str(self.directory / user), **more)

    def ok(self, *words: str, **more: Any) -> str:
        done = self.run(*words, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sign_in(self, user: str, password: str) -> Done:
        words = ("login", self.url, "--user", user, "--password-stdin")
        given = (*words, "--fingerprint", self.fingerprint)
        return self.run(*given, user=user, stdin=password + "\n")

    @contextlib.contextmanager
    def rest(self) -> Iterator[httpx.Client]:
        """As the administrator."""
        with self.server.rest() as client:
            if not self._access:
                self._access = sign_in(client).json()["token"]
            client.headers["Authorization"] = f"Bearer {self._access}"
            yield client

    def state(self) -> dict[str, Any]:
        """All that a refused request must leave alone; what only time changes is left out."""

        def strip(item: dict[str, Any]) -> dict[str, Any]:
            moving = ("status", "agent_connected", "beating", "verdict", "engine", "engine_text")
            return {name: value for name, value in item.items() if name not in moving}

        with self.rest() as client:
            found: dict[str, Any] = {
                name: [strip(item) for item in client.get(f"/v1/{name}?limit=1000").json()["items"]]
                for name in (
                    *("vms", "templates", "hosts", "clusters", "storage-domains"),
                    *("users", "tokens"),
                )
            }
            vms = client.get("/v1/vms").json()["items"]
            found["vm states"] = [item["status"]["state"] for item in vms]
            found["operations"] = len(client.get("/v1/operations?limit=1000").json()["items"])
            found["settings"] = client.get("/v1/settings").json()["items"]
            policy = client.get("/v1/clusters/default/policy").json()
            found["policy"] = policy
        return found

    def events(self, code: str) -> list[dict[str, Any]]:
        with self.rest() as client:
            items: list[dict[str, Any]] = client.get(
                "/v1/events", params={"code": code, "limit": 1000}
            ).json()["items"]
        return items

    def token(self, *words: str) -> str:
        return self.ok("token", "create", "-q", *words).strip()


def join_new(story: Story, name: str) -> JoinedHost:
    return join_host(story.directory / name, story.url, story.token(), name)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refused(done: Done, code: int, problem: str, *told: str) -> None:
    assert done.returncode == code, (done.returncode, done.stderr)
    assert f"code: {problem}" in done.stderr
    for words in told:
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def telling(directory: Path, *, prefix: tuple[str, ...] = ()) -> Iterator[Story]:
    """The installation that each story begins with. ``prefix``: what the server is started by."""
    root = directory / "server"
    root.mkdir()
    made = initialise(root)
    with serving(root, prefix=prefix) as server:
        told = Story(directory, server, made["authority_fingerprint"])
        assert told.sign_in("admin", PASSWORD).returncode == 0
        told.ok(
            *("user", "create", "eve", "--role", "viewer", "--password-stdin"),
            stdin=VIEWER_PASSWORD + "\n",
        )
        assert told.sign_in("eve", VIEWER_PASSWORD).returncode == 0
        host = told.host = PlayedHost(join_new(told, "h1"), server.ready["gateway"])
        try:
            host.wait_until_usable()
            join_new(told, "h2")
            told.ok("storage", "add", "ds1", "--path", "/srv/ds1", "--no-wait")
            # Its order is there before the host has told what lies on it.
            wait_until(lambda: '"tiny"' in told.ok("storage", "show", "ds1", "-o", "json"))
            host.wait_acknowledged(host.outbox.last_sequence)
            told.ok("vm", "create", "web1", "--image", "tiny", "--watchdog", "i6300esb:reset")
            yield told
        finally:
            host.close()


def seconds(at: Any) -> float:
    """A time of the API, in milliseconds or as RFC 3339, in seconds since 1970."""
    return at / 1_000 if isinstance(at, int) else datetime.fromisoformat(at).timestamp()
