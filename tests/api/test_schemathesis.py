"""The OpenAPI document tried out by schemathesis on a server with data: no fault of ours, no answer outside the schema."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from filled_installation import References, Served, serving
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks

from virtha.api.openapi import document_json
from virtha.api.route import Route
from virtha.api.table import ROUTES

EXAMPLES_PER_MODE = 4
WHOLE_RUN_S = int(os.environ.get("VIRTHA_SCHEMATHESIS_S", "0"))
"""How long the whole of schemathesis looks for faults; 0: it doesn't."""
NEVER_ENDS = "GET /v1/events/stream"
ENDS_THE_TEST = "DELETE /v1/sessions/current"
"""It signs the test out. tests/api/test_routes.py tries it."""
FUZZED = [route for route in ROUTES if route.name not in (NEVER_ENDS, ENDS_THE_TEST)]
UNAVAILABLE_HERE = (
    "POST /v1/sign-ins",
    "POST /v1/sign-ins/finish",
    "POST /v1/hosts/{ref}/maintenance",
    "POST /v1/hosts/{ref}/death-tickets",
    "POST /v1/hosts/{ref}/confirm-dead",
    "POST /v1/vms/{ref}/migrate",
    "POST /v1/vms/{ref}/cancel-migration",
    "GET /v1/vms/{ref}/screenshot",
    "GET /v1/vms/{ref}/console-log",
)
"""No engine leads in this installation, no agent is asked for pictures, no provider for sign-ins: 503 is the right
answer."""


@schemathesis.check
def no_fault_of_ours(ctx: Any, response: Any, case: Any) -> None:
    """Registered, so that the command that makes the whole run knows it as well."""
    if case.operation.label in UNAVAILABLE_HERE and response.status_code == 503:
        return
    schemathesis.checks.not_a_server_error(ctx, response, case)


CHECKS = [
    no_fault_of_ours,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]
REFUSES = openapi_checks.negative_data_rejection
NAMED_IN_BODIES = {
    "cluster": "clusters",
    "host": "hosts",
    "vm": "vms",
    "storage_domain": "storage-domains",
    "receiver": "receivers",
    "user": "users",
    "image": "images",
    "bridge": "bridges",
}


def with_references(document: dict[str, Any], there: References) -> dict[str, Any]:
    """The document whose references are, half of the time, to something that is there."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for path, methods in copy["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                collection = _collection(path, parameter)
                parameter["schema"] = _often(parameter["schema"], there.get(collection, []))
    for schema in copy["components"]["schemas"].values():
        for name, inner in schema.get("properties", {}).items():
            if name in NAMED_IN_BODIES:
                schema["properties"][name] = _often(inner, there.get(NAMED_IN_BODIES[name], []))
    return copy


def _collection(path: str, parameter: dict[str, Any]) -> str:
    """Where the thing is that a parameter names: `disks` of /v1/vms/{ref}/disks/{disk}."""
    name = parameter["name"]
    if parameter["in"] == "path":
        return path.partition(f"/{{{name}}}")[0].rsplit("/", 1)[1]
    return NAMED_IN_BODIES.get(name, "")


def _often(schema: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "enum": names}, schema]} if names else schema


def without_sign_in(document: dict[str, Any]) -> dict[str, Any]:
    """Or the headers would be 'made wrong' as well, which the test's own token then puts right."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    del copy["components"]["securitySchemes"]
    for methods in copy["paths"].values():
        for operation in methods.values():
            del operation["security"]
    return copy


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, open_installation: Callable[..., Any]
) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("filled"), open_installation) as served:
        there = served.fill()
        # No engine leads here, and no notifier runs: there are no incidents and no deliveries.
        assert {name for name, found in there.items() if not found} == {"incidents", "deliveries"}
        yield served


@pytest.fixture(scope="module")
def schemas(server: Served) -> dict[GenerationMode, Any]:
    document = without_sign_in(json.loads(document_json()))
    return {
        GenerationMode.POSITIVE: schemathesis.openapi.from_dict(
            with_references(document, server.fill())
        ),
        GenerationMode.NEGATIVE: schemathesis.openapi.from_dict(document),
    }


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("route", FUZZED, ids=lambda route: route.name)
def test_no_answer_that_the_document_does_not_know(
    server: Served, schemas: dict[GenerationMode, Any], route: Route, mode: GenerationMode
) -> None:
    """Bounded, seeded examples of good and of bad requests. Each answer's status, type and schema must be
    declared, a bad request must be refused, and nothing may be a fault of ours."""
    if mode is GenerationMode.POSITIVE:
        server.fill()
    operation = schemas[mode][route.path][route.method]
    checks = [*CHECKS, *([REFUSES] if mode is GenerationMode.NEGATIVE else [])]

    @hypothesis.seed(20_260_101)
    @hypothesis.settings(
        max_examples=EXAMPLES_PER_MODE,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=server.url, headers=server.headers, checks=checks)

    try:
        attempt()
    except hypothesis.errors.Unsatisfiable:
        # There is no way to make a bad request of a route without parameters and body.
        assert mode is GenerationMode.NEGATIVE


@pytest.mark.parametrize("phases", ["coverage,fuzzing", "stateful"])
@pytest.mark.skipif(
    WHOLE_RUN_S == 0, reason="`make verify` runs it: VIRTHA_SCHEMATHESIS_S says how long"
)
@pytest.mark.timeout(WHOLE_RUN_S + 1_800)
def test_the_whole_of_schemathesis_finds_no_fault(
    server: Served, tmp_path: Path, phases: str
) -> None:
    """Boundary values and new random requests; then sequences of requests that use each other's answers. With all
    its checks but one."""
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(with_references(json.loads(document_json()), server.fill())))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(document)),
            *("--url", server.url, "--header", f"Authorization: {server.headers['Authorization']}"),
            *("--exclude-path", "/v1/events/stream", "--exclude-name", ENDS_THE_TEST),
            # A schema says what shape a request has, not that the VM that it names is down just now.
            # `not_a_server_error` knows nothing of engines; ours stands in its place.
            *("--checks", "all"),
            *("--exclude-checks", "positive_data_acceptance,not_a_server_error"),
            *(
                "--phases",
                phases,
                "--max-time",
                str(WHOLE_RUN_S // 2),
                "--continue-on-failure",
                "--no-shrink",
            ),
            *("--suppress-health-check", "all", "--warnings", "off"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": Path(__file__).stem,
            "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parent.parent}",
        },
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
