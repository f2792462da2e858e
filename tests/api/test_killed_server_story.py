"""A server that is killed, and what its clients find when it is back: requests with a key, the event stream."""

import contextlib
import http.client
import itertools
import json
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import initialise, serving, virtha
from story import wait_until

from virtha.api.keyed import REPLAYED

KILLED_BEFORE_ITS_ANSWER = Path(__file__).with_name("killed_before_its_answer.py")
KEY = {"Idempotency-Key": "5f0c1c52-0b6e-4a43-9d2e-3f1a7b1f6c11"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("killed")
    initialise(made)
    return made


def test_a_keyed_request_that_lost_its_answer_is_not_carried_out_again(root: Path) -> None:
    body = {"name": "east"}
    prefix = (sys.executable, str(KILLED_BEFORE_ITS_ANSWER))
    with serving(root, prefix=prefix) as server, server.local() as client:
        with pytest.raises(httpx.TransportError):
            client.post("/v1/clusters", json=body, headers=KEY)
        assert server.process.wait(timeout=200) == -9
    with serving(root) as server, server.local() as client:
        for _ in range(2):
            answer = client.post("/v1/clusters", json=body, headers=KEY)
            assert answer.status_code == 409, answer.text
            assert answer.json()["code"] == "problem.key.answer_lost"
        assert [one["name"] for one in client.get("/v1/clusters").json()["items"]] == [
            "default",
            "east",
        ]
        other = {"Idempotency-Key": KEY["Idempotency-Key"] + "-2"}
        made = client.post("/v1/clusters", json={"name": "west"}, headers=other)
        assert made.status_code == 201
    with serving(root) as server, server.local() as client:
        again = client.post("/v1/clusters", json={"name": "west"}, headers=other)
        assert (again.status_code, json.loads(again.content)) == (201, made.json())
        assert again.headers[REPLAYED] == "true", "kept over a restart"


class LocalConnection(http.client.HTTPConnection):
    """To the server's socket. httpx leaves a socket open that it could not connect."""

    def __init__(self, path: str) -> None:
        super().__init__("virtha", timeout=200)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Reader:
    """Follows the events as a browser does: comes again with the last id that it was told, whatever became of the server."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._last_id = ""
        self.events: list[dict[str, Any]] = []
        self.connections = 0

    def follow(self, until: threading.Event) -> None:
        """A stream that breaks is followed anew, until ``until`` is set."""
        while not until.is_set():
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(LocalConnection(self._path)) as connection,
            ):
                self._follow_one(connection)
            until.wait(0.05)

    def _follow_one(self, connection: LocalConnection) -> None:
        headers = {"Last-Event-ID": self._last_id} if self._last_id else {}
        connection.request("GET", "/v1/events/stream?after=0", headers=headers)
        answer = connection.getresponse()
        if answer.status == 503:
            return
        assert answer.status == 200, answer.read()
        self.connections += 1
        for said in _said(answer):
            self._last_id = said.get("id", self._last_id)
            if "data" in said:
                self.events.append(json.loads(said["data"]))


def _said(lines: Iterable[bytes]) -> Iterator[dict[str, str]]:
    """What stands between two empty lines; what is cut off is nothing."""
    said: dict[str, str] = {}
    for raw in lines:
        line = raw.decode()
        if line == "\n":
            yield said
            said = {}
        name, _, value = line.rstrip("\n").partition(": ")
        said[name] = value


def test_events_are_followed_over_killed_servers_without_a_gap_or_a_double(root: Path) -> None:
    """kill -9 amid events, twice, and a stop; what the reader has at the end is the log."""
    ended = threading.Event()
    numbers = itertools.count()

    def write(client: httpx.Client, count: int | None) -> None:
        with contextlib.suppress(httpx.TransportError):
            for _ in range(count) if count is not None else itertools.count():
                made = client.post("/v1/clusters", json={"name": f"n{next(numbers)}"})
                assert made.status_code == 201, made.text

    with serving(root) as server:
        reader = Reader(server.ready["socket"])
        thread = threading.Thread(target=reader.follow, args=(ended,))
        thread.start()
        server.stop()
    try:
        for _ in range(2):
            with serving(root) as server, server.local() as client:
                has = len(reader.events)
                writer = threading.Thread(target=write, args=(client, None))
                writer.start()
                wait_until(lambda has=has: len(reader.events) > has + 20)
                server.process.kill()
                writer.join(timeout=200)
        with serving(root) as server, server.local() as client:
            write(client, 5)
            listed: list[dict[str, Any]] = []
            page: dict[str, Any] = {"next": 0}
            while page["next"] is not None:
                query = {"after": page["next"], "order": "asc", "limit": 1000}
                page = client.get("/v1/events", params=query).json()
                listed += page["items"]
            wait_until(lambda: len(reader.events) >= len(listed))
            assert reader.connections >= 3
            assert reader.events[: len(listed)] == listed
            ended.set()
            server.stop()
    finally:
        ended.set()
        thread.join(timeout=200)


def test_a_reader_of_before_a_restore_is_sent_away(root: Path, tmp_path: Path) -> None:
    """The same numbers mean other events now: to go on would leave a gap that nobody sees."""
    file = tmp_path / "backup.tar.gz"
    with serving(root) as server, server.local() as client:
        done = virtha(root, "backup", str(file))
        assert done.returncode == 0, done.stderr
        with client.stream("GET", "/v1/events/stream") as answer:
            lines = answer.iter_lines()
            last_id = next(line for line in lines if line.startswith("id: ")).removeprefix("id: ")
        server.stop()
    done = virtha(root, "restore", str(file), "--force")
    assert done.returncode == 0, done.stderr
    with serving(root) as server, server.local() as client:
        for number in range(3):  # beyond what it was at, as time goes by
            made = client.post("/v1/clusters", json={"name": f"restored{number}"})
            assert made.status_code == 201
        headers = {"Last-Event-ID": last_id}
        answer = client.get("/v1/events/stream", headers=headers)
        assert answer.status_code == 410, answer.text
        problem = answer.json()
        assert (problem["code"], problem["field"]) == ("problem.gone", "Last-Event-ID")
        assert "restored" in problem["detail"] and problem["fix"]
