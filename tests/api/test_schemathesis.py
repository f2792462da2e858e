"""The OpenAPI document tried out by schemathesis on a server with data: no fault of ours, no answer outside the schema."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import httpx
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
Answers = dict[tuple[str, str, int], int]
"""How many there were of each operation, made good or bad on purpose, and status."""
REFUSES = openapi_checks.negative_data_rejection
NOT_THEIRS = ("positive_data_acceptance", "not_a_server_error", "negative_data_rejection")
SIGNED_BY_OTHERS = (
    *("POST /v1/sessions", "POST /v1/join", "POST /v1/join/migration", "POST /v1/join/renew"),
    *("POST /v1/sign-ins", "POST /v1/sign-ins/finish"),
)
"""Whose 401 says nothing of the run's own sign-in."""
UNKNOWN_SHARE_MAX = 0.1
SOUND_ASKED_MIN = 20
LEADER = "tests/unit/server/test_answers_of_a_leader.py"
POWER = "tests/api/test_power_story.py"
PROVIDER = "tests/api/test_oidc_story.py"
NEVER_DONE = {
    # Nobody leads, and no server switches or asks:
    **dict.fromkeys(
        (
            "POST /v1/hosts/{ref}/maintenance",
            "POST /v1/hosts/{ref}/death-tickets",
            "POST /v1/hosts/{ref}/confirm-dead",
            "POST /v1/vms/{ref}/migrate",
            "POST /v1/vms/{ref}/cancel-migration",
            "GET /v1/vms/{ref}/screenshot",
            "GET /v1/vms/{ref}/console-log",
            "GET /v1/incidents/{id}",
            "POST /v1/vms/{ref}/free",
            "DELETE /v1/clusters/{ref}/brake",
        ),
        LEADER,
    ),
    # The played hosts find no VMs when they are scanned; what is ordered is done at once:
    "GET /v1/operations/{id}/foreign": LEADER,
    "POST /v1/operations/{id}/cancel": LEADER,
    # No server switches power:
    "POST /v1/hosts/{ref}/power": POWER,
    "POST /v1/hosts/{ref}/power/{key}/status": POWER,
    "POST /v1/hosts/{ref}/power/{key}/test": POWER,
    # They need a password, a provider, a join token or a certificate:
    "POST /v1/sessions": "tests/api/test_routes.py",
    "POST /v1/sign-ins": PROVIDER,
    "POST /v1/sign-ins/finish": PROVIDER,
    "POST /v1/join": "tests/api/test_routes.py",
    "POST /v1/join/migration": "tests/api/test_certificate_story.py",
    "POST /v1/join/renew": "tests/api/test_certificate_story.py",
    # No notifier runs, and there are none:
    "GET /v1/deliveries/{id}": "tests/api/test_notification_routes.py",
    "POST /v1/deliveries/{id}/retry": "tests/api/test_notification_routes.py",
    # No host says that a change waits for a restart; ids of sessions are no collection's that is looked through:
    "POST /v1/vms/{ref}/drop-pending": "tests/api/test_changes_told.py",
    "DELETE /v1/sessions/{id}": "tests/api/test_changes_told.py",
}
"""What no request can bring about in this installation, why, and which tests do: there, too, each answer is held against the document."""
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


WORDS_THAT_FIT = {
    ("WatchdogRequest", "model"): ["i6300esb"],
    ("WatchdogRequest", "action"): ["reset", "pause"],
}
"""Of texts that the document leaves open, for what fits depends on the machine: no text by chance would."""
NAME = "^[a-z]{3}[0-9]{1,3}$"
NUMBERED = ("/v1/events/{id}/fates",)
"""Any low number is one that is there."""


def with_references(document: dict[str, Any], there: References) -> dict[str, Any]:
    """The document whose references are, half of the time, to something that is there."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for path, methods in copy["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                collection = collection_of(path, parameter)
                parameter["schema"] = _often(parameter["schema"], there.get(collection, []))
    for schema in copy["components"]["schemas"].values():
        for name, inner in schema.get("properties", {}).items():
            if name in NAMED_IN_BODIES:
                schema["properties"][name] = _often(inner, there.get(NAMED_IN_BODIES[name], []))
    return copy


def with_good_values(document: dict[str, Any], there: References) -> dict[str, Any]:
    """As ``with_references``, but a path names nothing else, and new names are such as may be given, half of the time: most of
    what is asked for by chance is else refused at the first thing that it names."""
    copy = with_references(document, there)
    for path, methods in copy["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", []):
                found = there.get(collection_of(path, parameter), [])
                if parameter["in"] == "path" and found and path not in NUMBERED:
                    parameter["schema"] = {"type": "string", "enum": found}
    for (schema, field), words in WORDS_THAT_FIT.items():
        properties = copy["components"]["schemas"][schema]["properties"]
        properties[field] = _often(properties[field], words)
    for schema in copy["components"]["schemas"].values():
        name = schema.get("properties", {}).get("name")
        if name == {"type": "string"}:
            schema["properties"]["name"] = {"anyOf": [{"type": "string", "pattern": NAME}, name]}
    return copy


def collection_of(path: str, parameter: dict[str, Any]) -> str:
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


@pytest.mark.parametrize(("name", "where"), NEVER_DONE.items())
def test_what_can_not_be_done_here_is_done_elsewhere(
    request: pytest.FixtureRequest, name: str, where: str
) -> None:
    text = (request.config.rootpath / where).read_text()
    fixed = [part for part in re.split(r"\{\w+\}", name.partition(" ")[2]) if part != "/v1/"]
    assert all(part.rstrip("/") in text for part in fixed), fixed


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


def run_whole(server: Served, document: Path, phases: str) -> tuple[int, str, Answers]:
    """Its exit code, what it says, and its answers. While it runs it asks to be signed in and for what it deleted."""
    ours, theirs = Pipe()
    output = document.with_name("output")
    answers: Answers = {}
    with (
        output.open("wb") as file,
        subprocess.Popen(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", str(document)),
                *("--url", server.url, "--exclude-path", "/v1/events/stream"),
                # A schema says what shape a request has, not that the VM that it names is down just now.
                # `not_a_server_error` knows nothing of engines, `negative_data_rejection` nothing of what is made while
                # the run goes on; ours stand in their places.
                *("--checks", "all"),
                *("--exclude-checks", ",".join(NOT_THEIRS)),
                *("--phases", phases, "--max-time", str(WHOLE_RUN_S // 2)),
                # How soon an answer comes is `bench/api`'s matter; that one comes is this one's.
                *("--request-timeout", "60"),
                *("--continue-on-failure", "--no-shrink"),
                *("--suppress-health-check", "all", "--warnings", "off"),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=document.parent,
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                "SCHEMATHESIS_HOOKS": "whole_run_hooks",
                "VIRTHA_WHOLE_RUN_PIPE": str(theirs.fileno()),
                "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parent.parent}",
            },
        ) as run,
    ):
        theirs.close()
        with contextlib.suppress(EOFError):
            while True:
                what, told = ours.recv()
                match what:
                    case "sign in":
                        server.sign_in()
                        ours.send(server.headers["Authorization"])
                    case "fill":
                        ours.send(server.fill())
                    case "counted":
                        answers.update(told)
    return run.returncode, output.read_text(), answers


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
    document.write_text(json.dumps(with_good_values(json.loads(document_json()), server.fill())))
    code, told, answers = run_whole(server, document, phases)
    assert code == 0, told[-20_000:]
    server.sign_in()
    current = httpx.get(f"{server.url}/v1/sessions/current", headers=server.headers)
    assert current.status_code == 200, current.text
    check_reached(answers)


def check_reached(answers: Answers) -> None:
    """A run whose requests are all refused, for want of a sign-in or of what they are about, finds no fault either."""
    by_status: dict[str, Counter[int]] = defaultdict(Counter)
    all_good: Counter[int] = Counter()
    done = {name for name, _, status in answers if status < 300}
    for (name, mode, status), count in answers.items():
        if mode == "sound":
            by_status[name][status] += count
        if mode != "negative" and name not in SIGNED_BY_OTHERS:
            all_good[status] += count
    print(f"{sum(answers.values())} requests; good ones: {sorted(all_good.items())}")
    assert all_good[401] <= all_good.total() * UNKNOWN_SHARE_MAX, all_good
    never = {
        name: dict(statuses)
        for name, statuses in by_status.items()
        if statuses.total() >= SOUND_ASKED_MIN and name not in done and name not in NEVER_DONE
    }
    assert never == {}
