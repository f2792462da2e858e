"""The document is right about the server: written from the table, then tried out by schemathesis."""

import asyncio
import concurrent.futures
import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks

from virtha.api.openapi import document, document_json, operation_id
from virtha.api.route import JSON, Route
from virtha.api.table import ROUTES
from virtha.server.listeners import Listener, address_of, bind_tcp, uvicorn_config

DOCUMENT = json.loads(document_json())


def test_one_operation_per_route_with_its_role() -> None:
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }
    assert operations.keys() == {route.name for route in ROUTES}
    for route in ROUTES:
        assert operations[route.name]["x-role"] == route.role
    ids = [operation_id(route) for route in ROUTES]
    assert len(set(ids)) == len(ids)


def test_errors_are_what_the_server_sends() -> None:
    responses = DOCUMENT["paths"]["/v1/vms"]["post"]["responses"]
    assert {"400", "401", "403", "409", "413", "415", "422", "500", "503"} <= responses.keys()
    assert responses["409"] == {"$ref": "#/components/responses/Problem"}
    problem = DOCUMENT["components"]["responses"]["Problem"]
    assert list(problem["content"]) == ["application/problem+json"]
    assert "code" in DOCUMENT["components"]["schemas"]["Problem"]["required"]


def test_streams_and_text_are_not_called_json() -> None:
    paths = DOCUMENT["paths"]
    stream = paths["/v1/events/stream"]["get"]["responses"]["200"]
    assert list(stream["content"]) == ["text/event-stream"]
    metrics = paths["/metrics"]["get"]["responses"]["200"]
    assert list(metrics["content"]) == ["text/plain"]


def test_every_reference_leads_somewhere() -> None:
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                found.append(node["$ref"])
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(DOCUMENT)
    assert found
    for ref in found:
        node = DOCUMENT
        for part in ref.removeprefix("#/").split("/"):
            node = node[part]


def test_the_document_is_the_same_each_time() -> None:
    assert json.dumps(document(ROUTES), sort_keys=True) == json.dumps(DOCUMENT, sort_keys=True)


def test_the_server_serves_it(play: Callable[..., Any]) -> None:
    async def story(world: Any) -> None:
        assert await world.ok("GET", "/v1/openapi.json", role=None) == DOCUMENT

    play(story)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, open_installation: Callable[..., Any]
) -> Iterator[tuple[str, dict[str, str]]]:
    """One installation behind a real uvicorn in a thread: (base URL, headers of the administrator)."""
    ready: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    async def main() -> None:
        async with open_installation(tmp_path_factory.mktemp("fuzz")) as world:
            sock = bind_tcp("127.0.0.1:0", field="listen")
            listener = Listener(uvicorn_config(world.app))
            task = asyncio.create_task(listener.run_until_stopped(sock))
            await listener.accepting.wait()
            ready.put((f"http://{address_of(sock)}", world.headers("administrator")))
            await asyncio.to_thread(stop.wait)
            listener.stop()
            await task

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, main())
        try:
            yield ready.get(timeout=200)
        finally:
            stop.set()
            done.result(timeout=200)


FUZZED = [
    route
    for route in ROUTES
    # A stream never ends, and the end of the session would end the test.
    if route.media_type == JSON and route.name != "DELETE /v1/sessions/current"
]
EXAMPLES_PER_MODE = 4


def without_sign_in(document: dict[str, Any]) -> dict[str, Any]:
    """Or the headers would be 'made wrong' as well, which the test's own token then puts right."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    del copy["components"]["securitySchemes"]
    for methods in copy["paths"].values():
        for operation in methods.values():
            del operation["security"]
    return copy


SCHEMA = schemathesis.openapi.from_dict(without_sign_in(DOCUMENT))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]
REFUSES = openapi_checks.negative_data_rejection


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("route", FUZZED, ids=lambda route: route.name)
def test_no_answer_that_the_document_does_not_know(
    server: tuple[str, dict[str, str]], route: Route, mode: GenerationMode
) -> None:
    """Schemathesis: bounded, seeded examples of good and of bad requests. Each answer's status, type and
    schema must be declared, a bad request must be refused, and nothing may be a fault of ours."""
    url, headers = server
    checks = [*CHECKS, *([REFUSES] if mode is GenerationMode.NEGATIVE else [])]

    @hypothesis.seed(20_260_101)
    @hypothesis.settings(
        max_examples=EXAMPLES_PER_MODE,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=SCHEMA[route.path][route.method].as_strategy(generation_mode=mode))
    def attempt(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=url, headers=headers, checks=checks)

    try:
        attempt()
    except hypothesis.errors.Unsatisfiable:
        # There is no way to make a bad request of a route without parameters and body.
        assert mode is GenerationMode.NEGATIVE
