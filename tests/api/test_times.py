"""Points in time: RFC 3339 in every answer and in the stream, and called that in the document."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_type_hints

import httpx
import pytest

from virtha.api.openapi import document_json
from virtha.api.stream import encode_event
from virtha.api.table import ROUTES
from virtha.api.times import encode
from virtha.control.access_views import SessionItem
from virtha.control.incident_views import IncidentLine, IncidentSummary
from virtha.control.routing_views import RouteFate
from virtha.control.views import ConsoleLogPart, CurrentSession, HostCertificate, Page, ReceiverView
from virtha.model.codes import Severity
from virtha.model.event import Event
from virtha.model.host import HostStatus
from virtha.model.ids import OperationId, Revision
from virtha.model.notification import Delivery, ReceiverStatus
from virtha.model.operation import Operation, OperationStep
from virtha.model.power_settings import PowerTest
from virtha.model.routing import Silence
from virtha.model.snapshot import Snapshot
from virtha.model.template import Template
from virtha.model.time import UtcMillis, parse_utc
from virtha.model.user import Role, Token
from virtha.model.vm import Reason, VmStatus

Play = Callable[..., Any]
SCHEMAS = json.loads(document_json())["components"]["schemas"]
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
MOMENT = UtcMillis(1_795_266_307_123)
SHOWN = "2026-11-21T13:05:07.123Z"
# A second time on purpose: the code finds them by their type.
PROVIDER = {"issuer": "https://op.example", "client_id": "virtha", "roles": {"a": "viewer"}}
TIMES = {
    Event: {"at", "host_at"},
    HostStatus: {"last_seen"},
    Operation: {"created", "ended"},
    OperationStep: {"started", "ended"},
    Reason: {"since"},
    Token: {"created", "expires"},
    VmStatus: {"since", "last_watchdog"},
    CurrentSession: {"created", "expires"},
    SessionItem: {"created", "expires"},
    Delivery: {"created", "next_at", "expires", "done_at"},
    ReceiverStatus: {"away_since", "accepted_at"},
    ReceiverView: {"oldest_pending"},
    ConsoleLogPart: {"written_at"},
    HostCertificate: {"not_after"},
    Snapshot: {"created"},
    Template: {"created"},
    PowerTest: {"at", "passed_at"},
    IncidentSummary: {"opened", "closed"},
    IncidentLine: {"at"},
    Silence: {"begins", "ends"},
    RouteFate: {"at"},
}


@pytest.mark.parametrize("kind", TIMES, ids=lambda kind: kind.__name__)
def test_the_document_calls_them_date_time(kind: type) -> None:
    hints = get_type_hints(kind)
    for name, schema in SCHEMAS[kind.__name__]["properties"].items():
        choices = schema.get("anyOf", [schema])
        formats = {one["format"] for one in choices if "format" in one}
        assert (formats == {"date-time"}) is (name in TIMES[kind]), name
        if name in TIMES[kind]:
            may_be_null = type(None) in get_args(hints[name])
            assert {one["type"] for one in choices} == {"string", *(["null"] * may_be_null)}
            assert schema.get("default") is None


def test_no_other_date_time_in_the_document() -> None:
    found = {
        name
        for name, schema in SCHEMAS.items()
        if '"date-time"' in json.dumps(schema.get("properties", {}))
    }
    assert found == {kind.__name__ for kind in TIMES} | {"SessionView", "BegunSignInView"}


def test_every_level_of_an_answer_is_converted_and_nothing_else() -> None:
    operation = Operation(
        id=OperationId("o-1"),
        kind="vm.start",
        subject="v-1",
        steps=(OperationStep(name="start", started=MOMENT), OperationStep(name="then")),
        fields={"delay_ms": 1_795_266_307_123},
        created=MOMENT,
    )
    page = json.loads(encode(Page(items=(operation,), revision=Revision(7)), Page[Operation]))
    (shown,) = page["items"]
    assert (shown["created"], shown["ended"]) == (SHOWN, None)
    assert [step["started"] for step in shown["steps"]] == [SHOWN, None]
    assert shown["fields"] == {"delay_ms": 1_795_266_307_123}
    assert page["revision"] == 7


def test_an_answer_without_times_is_msgspecs_own() -> None:
    assert encode({"a": [1]}, dict[str, Any]) == b'{"a":[1]}'


def test_a_host_with_a_broken_clock_spoils_no_list() -> None:
    for wrong, shown in (
        (1 << 62, "9999-12-31T23:59:59.999Z"),
        (-(1 << 62), "0001-01-01T00:00:00.000Z"),
    ):
        event = Event(
            code="vm.started", severity=Severity.INFO, message="", host_at=UtcMillis(wrong)
        )
        assert json.loads(encode(event, Event))["host_at"] == shown


def test_the_stream_says_what_the_list_says() -> None:
    event = Event(
        revision=Revision(3), code="vm.started", severity=Severity.INFO, message="", at=MOMENT
    )
    data = encode_event(event, "1a2b3c4d").split(b"data: ")[1].strip()
    assert data == encode(event, Event)
    assert json.loads(data)["at"] == SHOWN


def moments(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What looks like a point in time: by its shape, or as an integer of this century's size."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from moments(inner, f"{path}.{name}")
        case list():
            for inner in value:
                yield from moments(inner, f"{path}[]")
        case str() if RFC_3339.fullmatch(value):
            yield path, value
        case int() if 1_000_000_000_000 < value < 4_000_000_000_000:
            yield path, value


def test_no_answer_has_an_integer_where_a_time_should_be(play: Play) -> None:
    async def story(world: Any) -> None:
        before = world.clock.wall_ms()
        await world.ok("POST", "/v1/tokens", {})
        await world.ok("PUT", "/v1/sign-in-provider", PROVIDER)
        found: dict[str, Any] = {}
        for route in ROUTES:
            if route.method == "GET" and route.path.startswith("/v1/") and "{" not in route.path:
                if route.answer is None or route.path == "/v1/openapi.json":
                    continue
                found.update(moments(await world.ok("GET", route.path), route.path))
        assert {"/v1/events.items[].at", "/v1/tokens.items[].expires"} <= found.keys()
        assert "/v1/sessions/current.expires" in found
        assert [path for path, value in found.items() if not isinstance(value, str)] == []
        newest = parse_utc(found["/v1/tokens.items[].created"], field="created")
        assert before <= newest <= world.clock.wall_ms()

    play(story)


def who(world: Any, **headers: str) -> Any:
    """GET /v1/sessions/current as root on the Unix socket, as the server marks its connections."""

    async def by_socket(scope: Any, receive: Any, send: Any) -> None:
        await world.app({**scope, "state": {"virtha_peer_uid": 0}}, receive, send)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=by_socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://virtha") as client:
            return await client.get("/v1/sessions/current", headers=headers)

    return ask()


@pytest.mark.req("L6")
def test_who_am_i(play: Play) -> None:
    async def story(world: Any) -> None:
        session = await world.ok("GET", "/v1/sessions/current", role="operator")
        assert (session["user"], session["role"], session["by"]) == (
            "operator",
            "operator",
            "token",
        )
        lasts_ms = parse_utc(session["expires"], field="e") - parse_utc(
            session["created"], field="c"
        )
        assert lasts_ms == 12 * 3_600_000
        assert session["token_id"] == world.tokens["operator"].split(".")[1]
        assert world.tokens["operator"].split(".")[2] not in json.dumps(session)

        nothing = await world.call("GET", "/v1/sessions/current", role=None)
        assert nothing.status_code == 401

        changed = await world.ok("PATCH", "/v1/users/operator", {"role": "viewer"})
        assert changed["role"] == "viewer"
        assert (await world.ok("GET", "/v1/sessions/current", role="operator"))["role"] == "viewer"

        await world.ok("DELETE", "/v1/sessions/current", role="operator")
        gone = await world.call("GET", "/v1/sessions/current", role="operator")
        assert (gone.status_code, gone.json()["code"]) == (401, "problem.unauthenticated")

    play(story)


@pytest.mark.req("L6")
def test_who_am_i_on_the_socket(play: Play) -> None:
    async def story(world: Any) -> None:
        root = (await who(world)).json()
        assert (root["user"], root["role"], root["by"]) == ("root", Role.ADMINISTRATOR, "socket")
        assert (root["token_id"], root["created"], root["expires"]) == (None, None, None)
        # Root can try out what another may: the token wins.
        viewer = (await who(world, **world.headers("viewer"))).json()
        assert (viewer["user"], viewer["by"]) == ("viewer", "token")
        refused = await who(world, Authorization="Bearer virtha-access.a.b")
        assert refused.status_code == 401

    play(story)


@pytest.mark.req("L6")
def test_an_expired_sign_in_says_when_it_ended(play: Play) -> None:
    async def story(world: Any) -> None:
        session = await world.ok("GET", "/v1/sessions/current")
        world.clock.ahead_ms = 12 * 3_600_000
        answer = await world.call("GET", "/v1/sessions/current")
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (401, "problem.token.expired")
        assert session["expires"] in problem["detail"] and "virtha login" in problem["fix"]
        # Only to who has the secret: the id alone is told nothing.
        world.tokens["stranger"] = world.tokens["administrator"][:-4] + "AAAA"
        strange = await world.call("GET", "/v1/sessions/current", role="stranger")
        assert strange.json()["code"] == "problem.unauthenticated"

    play(story)
