"""Answers of the native API against its own OpenAPI document: status, kind, headers and body of each that a test's clients are given.

Stricter than a document is by itself: what a schema doesn't name may not be in an answer.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import httpx
import jsonschema_rs

from virtha.api.openapi import document_json

OURS = ("/v1/", "/healthz", "/metrics")
UNKNOWN_ROUTE = (404, 405)
Json = dict[str, Any]


class Answered(NamedTuple):
    """``route``: its name, as ``virtha/api/table.py`` has it."""

    route: str
    status: int


class Watch:
    """What was seen, and what was wrong with it."""

    def __init__(self) -> None:
        self.seen: Counter[Answered] = Counter()
        self.wrong: list[str] = []

    def look(self, answer: httpx.Response) -> None:
        """Of an answer that was read."""
        path = answer.request.url.path
        if not path.startswith(OURS) or answer.request.method == "OPTIONS":
            return  # what may be done there is HTTP's own question, of any path
        found = route_of(answer.request.method, path)
        problem = _problem_of(found, answer)
        if found is not None:
            self.seen[Answered(found.name, answer.status_code)] += 1
        if problem:
            asked = f"{answer.request.method} {answer.request.url}"
            self.wrong.append(f"{asked}: {answer.status_code} {problem}; {answer.text[:500]}")


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """All that clients of httpx in this process are answered: a test's own, those of apps without a socket, the command line's. What a request
    reads as it comes (``stream``) is not looked at."""
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def sent(self: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        answer = send(self, request, **more)
        if not more.get("stream"):
            watch.look(answer)
        return answer

    async def sent_async(
        self: httpx.AsyncClient, request: httpx.Request, **more: Any
    ) -> httpx.Response:
        answer = await send_async(self, request, **more)
        if not more.get("stream"):
            watch.look(answer)
        return answer

    with (
        patch.object(httpx.Client, "send", sent),
        patch.object(httpx.AsyncClient, "send", sent_async),
    ):
        yield


class _Operation(NamedTuple):
    name: str
    responses: Json


def _problem_of(found: _Operation | None, answer: httpx.Response) -> str:
    status = str(answer.status_code)
    if found is None:
        if answer.status_code not in UNKNOWN_ROUTE:
            return "of a route that the document doesn't know"
        return _body_problem("problem", answer)
    told = found.responses.get(status)
    if told is None:
        return "is a status that the document doesn't know there"
    if "$ref" in told:
        return _body_problem("problem", answer)
    missing = [
        name
        for name, header in told.get("headers", {}).items()
        if name not in answer.headers and header.get("required", False)
    ]
    if missing:
        return f"lacks {missing}"
    content = told.get("content")
    if content is None:
        return "has a body that the document doesn't know" if answer.content else ""
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind not in content:
        return f"is of kind {kind!r}, not of {sorted(content)}"
    if not kind.endswith("json"):
        return ""
    return _said_wrong(f"{found.name} {status}", answer)


def _body_problem(key: str, answer: httpx.Response) -> str:
    kind = answer.headers.get("content-type", "")
    if answer.request.method == "HEAD":
        return ""
    if kind != "application/problem+json":
        return f"is of kind {kind!r}, no problem document"
    return _said_wrong(key, answer)


def _said_wrong(key: str, answer: httpx.Response) -> str:
    try:
        body = json.loads(answer.content)
    except ValueError:
        return "is no JSON"
    return "; ".join(
        f"{list(error.instance_path)}: {error.message[:300]}"
        for error in list(_validator(key).iter_errors(body))[:3]
    )


def route_of(method: str, path: str) -> _Operation | None:
    """As OpenAPI has it: what is written out in a path goes before a parameter, whatever may be done there."""
    parts = path.strip("/").split("/")
    for template, operations in _operations().get(len(parts), ()):
        if all(
            want.startswith("{") or want == have for want, have in zip(template, parts, strict=True)
        ):
            return operations.get(method)
    return None


@cache
def _operations() -> dict[int, list[tuple[list[str], dict[str, _Operation]]]]:
    """By how many parts the path has."""
    found: dict[int, list[tuple[list[str], dict[str, _Operation]]]] = {}
    for path, methods in sorted(_document()["paths"].items(), key=lambda one: one[0].count("{")):
        parts = path.strip("/").split("/")
        operations = {
            method.upper(): _Operation(f"{method.upper()} {path}", told["responses"])
            for method, told in methods.items()
        }
        found.setdefault(len(parts), []).append((parts, operations))
    return found


@cache
def _validator(key: str) -> Any:
    """``key``: ``problem``, or a route's name and a status."""
    document = _document()
    if key == "problem":
        content = document["components"]["responses"]["Problem"]["content"]
    else:
        method, path, status = key.split(" ")
        content = document["paths"][path][method.lower()]["responses"][status]["content"]
    (schema,) = (one["schema"] for one in content.values())
    whole = {**schema, "components": document["components"]}
    return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)


@cache
def _document() -> Json:
    document: Json = json.loads(document_json())
    for schema in document["components"]["schemas"].values():
        if "properties" in schema and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    return document
