"""The lab's way to the product's REST API: over the server's Unix socket, as root, as any script may.

Answers are plain JSON on purpose: tests and benchmarks read what a user's program would read.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from virtha.model.errors import Failed, Unavailable

Json = dict[str, Any]


class Api:
    def __init__(self, server_socket: Path) -> None:
        self._socket = server_socket
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(server_socket)),
            base_url="http://localhost",
            timeout=30.0,
        )

    def __enter__(self) -> "Api":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request; any status comes back. Raises Unavailable when nobody answers."""
        self._require_listener()
        try:
            return self._client.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise Unavailable(f"the server does not answer at {self._socket}: {error}") from error

    def _require_listener(self) -> None:
        """httpx (0.28) leaks the descriptor of a Unix socket that refuses; ours is closed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5.0)
            try:
                probe.connect(str(self._socket))
            except OSError as error:
                raise Unavailable(
                    f"no server listens at {self._socket}: {error.strerror or error}"
                ) from error

    def get(self, path: str, **params: Any) -> Json:
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Json | None = None) -> Json:
        return self._json("POST", path, json={} if body is None else body)

    def _json(self, method: str, path: str, **arguments: Any) -> Json:
        answer = self.request(method, path, **arguments)
        if answer.status_code >= 400:
            raise Failed(f"{method} {path}: {answer.status_code}: {answer.text.strip()[:2000]}")
        found = answer.json()
        if not isinstance(found, dict):
            raise Failed(f"{method} {path}: the answer is no object")
        return found

    def operate(self, path: str, body: Json | None = None, *, timeout_s: float = 60.0) -> Json:
        """POST long work and wait for its end. Raises Failed with its message if it failed."""
        ended = self.finish(self.post(path, body), timeout_s=timeout_s)
        if ended["state"] not in ("done", "succeeded"):
            raise Failed(f"{path}: {ended['state']}: {ended.get('code')}: {ended.get('message')}")
        return ended

    def finish(self, operation: Json, *, timeout_s: float = 60.0) -> Json:
        """The operation as it is when it has ended, well or not."""
        deadline = time.monotonic() + timeout_s
        while not operation.get("ended"):
            if time.monotonic() > deadline:
                raise Failed(f"operation still runs after {timeout_s:g} s: {operation}")
            operation = self.get(f"/v1/operations/{operation['id']}", wait_ms=2000)
        return operation

    def vm(self, name: str) -> Json:
        return self.get(f"/v1/vms/{name}")

    def events(self, **filters: Any) -> list[Json]:
        """All events, oldest first."""
        found: list[Json] = []
        after: Any = None
        while True:
            params = {"order": "asc", "limit": 500, **filters}
            if after is not None:
                params["after"] = after
            page = self.get("/v1/events", **params)
            found += page["items"]
            after = page.get("next")
            if after is None:
                return found

    def stream(
        self,
        *,
        after: int | None = None,
        on_open: Callable[[], object] = lambda: None,
        silence_s: float = 30.0,
    ) -> Iterator[Json]:
        """Events as they come (SSE), each with its arrival on our monotonic clock as ``_seen``.

        ``silence_s`` is more than the server's keep-alive. Raises Unavailable when it breaks.
        """
        self._require_listener()
        params = {} if after is None else {"after": after}
        timeout = httpx.Timeout(30.0, read=silence_s)
        try:
            with self._client.stream(
                "GET", "/v1/events/stream", params=params, timeout=timeout
            ) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise Failed(f"event stream: {answer.status_code}: {answer.text[:500]}")
                data: list[str] = []
                for line in answer.iter_lines():
                    on_open()
                    if line.startswith("data:"):
                        data.append(line[5:].strip())
                    elif not line and data:
                        event = json.loads("\n".join(data))
                        data.clear()
                        yield {**event, "_seen": time.monotonic()}
        except httpx.TransportError as error:
            raise Unavailable(f"the event stream broke: {error}") from error
