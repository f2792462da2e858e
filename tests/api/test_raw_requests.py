"""Requests as bytes, on a real uvicorn: whatever refuses them, it is a problem document."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_stream import DEADLINE_S, make_events, served

from virtha.api.problems import Problem
from virtha.server import listeners

Play = Callable[..., Any]
_JSON = "Content-Type: application/json\r\n"
_CHUNK = b"40000\r\n" + b"a" * 0x40000 + b"\r\n"
REFUSED: dict[str, tuple[int, str, bytes]] = {
    # status, first line with further headers, and what follows the head
    "no TLS here": (400, "\x16\x03\x01\x02 / \r\n", b""),
    "a method that is none": (400, "BREW /v1/clusters HTTP/1.1\r\n", b""),
    "an address of 70 kB": (400, f"GET /v1/vms?search={'a' * 70_000} HTTP/1.1\r\n", b""),
    "a length that is none": (400, "POST /v1/clusters HTTP/1.1\r\nContent-Length: x\r\n", b""),
    "a method that nothing takes": (405, "TRACE /v1/clusters HTTP/1.1\r\n", b""),
    "options of nothing": (404, "OPTIONS /nothing HTTP/1.1\r\n", b""),
    "bytes that are no text in the path": (404, "GET /v1/vms/%FF%FE HTTP/1.1\r\n", b""),
    "a NUL in the path": (404, "GET /v1/vms/%00 HTTP/1.1\r\n", b""),
    "a way out of the path": (404, "GET /v1/../healthz HTTP/1.1\r\n", b""),
    "bytes that are no text in the query": (400, "GET /v1/vms?limit=%FF HTTP/1.1\r\n", b""),
    "a length of 93 GiB": (
        413,
        f"POST /v1/clusters HTTP/1.1\r\n{_JSON}Content-Length: 99999999999\r\n",
        b"",
    ),
    "chunks without end": (
        413,
        f"POST /v1/clusters HTTP/1.1\r\n{_JSON}Transfer-Encoding: chunked\r\n",
        5 * _CHUNK,
    ),
    "a body that is compressed": (
        400,
        f"POST /v1/clusters HTTP/1.1\r\n{_JSON}Content-Encoding: gzip\r\nContent-Length: 4\r\n",
        b"\x1f\x8b\x08\x00",
    ),
    "a type of the body that is none": (
        415,
        "POST /v1/clusters HTTP/1.1\r\nContent-Type: ;;=\r\nContent-Length: 2\r\n",
        b"{}",
    ),
}


def answered(path: Path, said: bytes) -> bytes:
    """Also by a server that hangs up without having read all."""
    got = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE_S)
        sock.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(said)
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65_536):
                got += chunk
    return got


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_refuses_a_request_it_is_a_problem(play: Play, tmp_path: Path, name: str) -> None:
    status, head, rest = REFUSED[name]

    async def story(world: Any) -> None:
        token = f"Authorization: Bearer {world.tokens['administrator']}\r\n"
        said = f"{head}Host: virtha\r\nConnection: close\r\n{token}\r\n".encode() + rest
        async with served(world, tmp_path):
            got = await asyncio.to_thread(answered, tmp_path / "s.sock", said)
        top, _, body = got.partition(b"\r\n\r\n")
        first, *headers = top.decode().lower().split("\r\n")
        assert first.startswith(f"http/1.1 {status} "), first
        assert "content-type: application/problem+json" in headers
        problem = msgspec.json.decode(body, type=Problem)
        assert problem.status == status and problem.code.startswith("problem.")
        assert problem.detail

    play(story)


def test_one_connection_too_many_is_a_problem_and_the_others_go_on(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "CONNECTIONS_MAX", 3)
    asked = b"GET /healthz HTTP/1.1\r\nHost: virtha\r\nConnection: close\r\n\r\n"

    async def story(world: Any) -> None:
        async with served(world, tmp_path) as (client, _):
            path = tmp_path / "s.sock"
            async with client.stream("GET", "/v1/events/stream") as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "retry: 1000"
                assert (await asyncio.to_thread(answered, path, asked)).startswith(b"HTTP/1.1 200")
                with socket.socket(socket.AF_UNIX) as idle:
                    await asyncio.to_thread(idle.connect, str(path))
                    refused = await _until_refused(path, asked)
                    head, _, body = refused.lower().partition(b"\r\n\r\n")
                    assert b"content-type: application/problem+json" in head
                    assert b"retry-after: 1" in head
                    problem = msgspec.json.decode(body, type=Problem)
                    assert (problem.status, problem.code) == (503, "problem.unavailable")
                await make_events(world, 1)
                assert [line async for line in _first(lines, "event: ")] == [
                    "event: cluster.created"
                ]

    play(story)


async def _until_refused(path: Path, asked: bytes) -> bytes:
    """The server may not have heard yet of the connection before ours."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            got = await asyncio.to_thread(answered, path, asked)
            if got.startswith(b"HTTP/1.1 503"):
                return got


async def _first(lines: AsyncIterator[str], start: str) -> AsyncIterator[str]:
    async for line in lines:
        if line.startswith(start):
            yield line
            return
