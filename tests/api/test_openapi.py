"""The document says what the route table says; tests/api/test_schemathesis.py tries it out."""

import json
from collections.abc import Callable
from typing import Any

from virtha.api.openapi import document, document_json, operation_id
from virtha.api.table import ROUTES

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


def test_lists_that_are_asked_of_one_thing_say_that_it_may_not_exist() -> None:
    named = {"cluster", "host", "vm", "receiver", "subscription"}
    asked = [route for route in ROUTES if named & {*route.query.__struct_fields__}]
    assert len(asked) >= 4
    for route in asked:
        assert "404" in DOCUMENT["paths"][route.path]["get"]["responses"], route.name
