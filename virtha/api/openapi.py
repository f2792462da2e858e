"""The OpenAPI 3.1 document, from the route table and the types; nothing in it is written twice."""

import json
import sys
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec

from virtha import __version__
from virtha.api.entity_tags import IF_MATCH, IF_NONE_MATCH
from virtha.api.keyed import PATTERN, REPLAYED
from virtha.api.problems import MEDIA_TYPE, Problem, TooLarge, UnsupportedMediaType
from virtha.api.route import JSON, OPEN, NoQuery, Route
from virtha.api.times import document_times
from virtha.control.keyed_requests import FIELD
from virtha.model.errors import Failed, Unavailable, VirthaError

REF = "#/components/schemas/{name}"
PARAMETER_TEXT = {
    "ref": "Id or name.",
    "id": "Id.",
    "key": "Name of the setting.",
}
QUERY_TEXT = {
    "search": "In oVirt's search language: docs/guide/search.md, docs/reference/search.md.",
    "case_sensitive": "Whether text in the search is.",
}
Json = dict[str, Any]
_TAG: Json = {
    "description": "For If-Match, where the object has a revision, and for If-None-Match.",
    "schema": {"type": "string"},
}


def document(routes: Iterable[Route]) -> Json:
    table = list(routes)
    schemas, components = _schemas(table)
    paths: dict[str, Json] = {}
    for one in table:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "virtha",
            "version": __version__,
            "description": "High availability for virtual machines on plain KVM/libvirt hosts. "
            "Every error is a problem document (RFC 9457) with a stable `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                "Problem": {
                    "description": "A problem document; its `code` is stable.",
                    "content": {MEDIA_TYPE: {"schema": schemas[Problem]}},
                }
            },
            "securitySchemes": {
                "accessToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token that POST /v1/sessions answers with.",
                }
            },
        },
    }


def _schemas(table: list[Route]) -> tuple[dict[Any, Json], Json]:
    types: list[Any] = [Problem]
    for one in table:
        for kind in (one.body if one.has_body else None, one.answer):
            if kind is not None and kind not in types:
                types.append(kind)
    found, components = msgspec.json.schema_components(types, ref_template=REF)
    document_times(types, components)
    return dict(zip(types, found, strict=True)), dict(components)


def _operation(one: Route, schemas: dict[Any, Json]) -> Json:
    operation: Json = {
        "operationId": operation_id(one),
        "summary": one.summary,
        "tags": [one.path.split("/")[2] if one.path.startswith("/v1/") else "server"],
        "x-role": str(one.role),
        "security": [] if one.role == OPEN else [{"accessToken": []}],
        "responses": {str(one.status): _answer(one, schemas), **_not_modified(one), **_errors(one)},
    }
    parameters = [*_path_parameters(one), *_query_parameters(one), *_headers(one)]
    if parameters:
        operation["parameters"] = parameters
    if one.has_body:
        schema = schemas[one.body]
        operation["requestBody"] = {
            "required": _has_required(one.body),
            "content": {JSON: {"schema": schema}},
        }
    return operation


def operation_id(one: Route) -> str:
    words = one.path.removeprefix("/v1").replace("{", "").replace("}", "").replace(".", "-")
    return "-".join([one.method.lower(), *(word for word in words.split("/") if word)])


def _has_required(kind: Any) -> bool:
    return any(field.required for field in msgspec.structs.fields(kind))


def _path_parameters(one: Route) -> list[Json]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PARAMETER_TEXT.get(name, ""),
            "schema": {"type": "string", "minLength": 1},
        }
        for name in one.parameters
    ]


def _query_parameters(one: Route) -> list[Json]:
    if one.query is NoQuery:
        return []
    (schema,), components = msgspec.json.schema_components([one.query], ref_template=REF)
    own = components[schema["$ref"].rsplit("/", 1)[1]]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in own.get("required", ()),
            **({"description": QUERY_TEXT[name]} if name in QUERY_TEXT else {}),
            "schema": _resolved(_without_null(inner), components),
        }
        for name, inner in own["properties"].items()
    ]


def _resolved(schema: Json, components: Json) -> Json:
    if "$ref" in schema:
        target: Json = components[schema["$ref"].rsplit("/", 1)[1]]
        return {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def _without_null(schema: Json) -> Json:
    """A parameter is left out, never null: ``limit=null`` would be the text."""
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    if options:
        return {**rest, **(options[0] if len(options) == 1 else {"anyOf": options})}
    if schema.get("default", 0) is None:
        return rest
    return schema


def _headers(one: Route) -> list[Json]:
    found = []
    if one.conditional:
        told = "The ETag of the object as you know it; 412 if it has changed since."
        found.append(_header("If-Match", told, IF_MATCH))
    if one.tagged:
        told = "The ETag of the answer that you have; 304 if it would be the same again."
        found.append(_header("If-None-Match", told, IF_NONE_MATCH))
    if one.keyed:
        told = (
            "A new one for each request, for example a UUID. Repeated with the same one within a day, the request is "
            "answered again, not carried out again; 422 if it is another request."
        )
        found.append(_header(FIELD, told, PATTERN))
    return found


def _header(name: str, description: str, pattern: str) -> Json:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string", "pattern": pattern},
    }


def _answer(one: Route, schemas: dict[Any, Json]) -> Json:
    answer: Json = {"description": HTTPStatus(one.status).phrase}
    headers: Json = {}
    if one.status == HTTPStatus.ACCEPTED:
        headers["Location"] = {
            "description": "Where to follow the operation.",
            "schema": {"type": "string"},
        }
    if one.keyed:
        headers[REPLAYED] = {
            "description": "There, and true, where the request was carried out before.",
            "schema": {"type": "string", "const": "true"},
        }
    if one.tagged:
        headers["ETag"] = _TAG
    if headers:
        answer["headers"] = headers
    if one.media_type != JSON:
        answer["content"] = {one.media_type: {"schema": {"type": "string"}}}
    elif one.answer is not None:
        answer["content"] = {JSON: {"schema": schemas[one.answer]}}
    return answer


def _not_modified(one: Route) -> Json:
    if not one.tagged:
        return {}
    status = HTTPStatus.NOT_MODIFIED
    return {str(status.value): {"description": status.phrase, "headers": {"ETag": _TAG}}}


def _errors(one: Route) -> Json:
    problems: set[type[VirthaError]] = {*one.problems, Unavailable, Failed}
    if one.has_body:
        problems |= {TooLarge, UnsupportedMediaType}
    statuses = sorted({error.http_status for error in problems})
    return {str(status): {"$ref": "#/components/responses/Problem"} for status in statuses}


@cache
def document_json() -> str:
    from virtha.api.table import ROUTES  # the table serves this document: it imports us

    return json.dumps(document(ROUTES), indent=2, sort_keys=True) + "\n"


def main() -> int:
    """``python -m virtha.api.openapi``: the document on standard output."""
    sys.stdout.write(document_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
