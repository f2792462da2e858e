"""Who may do what: every route with every role, from the table that the router is made of."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.api.route import OPEN, Route, check_table
from virtha.api.table import ROUTES
from virtha.model.user import Role

# What the brief's table says, written down a second time on purpose: the route table can't vouch for itself.
OPEN_ROUTES = {
    "GET /healthz",
    "GET /metrics",
    "GET /v1/openapi.json",
    "GET /v1/authority",
    "POST /v1/sessions",
    "POST /v1/sign-ins",
    "POST /v1/sign-ins/finish",
    "POST /v1/join",
    "POST /v1/join/migration",
    "POST /v1/join/renew",
}
OPERATOR_PREFIXES = (
    "POST /v1/vms",
    "PATCH /v1/vms",
    "PUT /v1/vms",
    "DELETE /v1/vms",
    "POST /v1/templates",
    "DELETE /v1/templates",
    "POST /v1/hosts/{ref}/",
    "GET /v1/vms/{ref}/console-log",
    "GET /v1/vms/{ref}/screenshot",
    "POST /v1/operations/{id}/cancel",
    "POST /v1/silences",
    "PUT /v1/hold",
    "DELETE /v1/hold",
)


def expected_role(route: Route) -> Role | str:
    if route.name in OPEN_ROUTES:
        return OPEN
    if route.path.startswith(("/v1/users", "/v1/tokens", "/v1/sign-in-provider")):
        return Role.ADMINISTRATOR
    if route.name.startswith(OPERATOR_PREFIXES):
        return Role.OPERATOR
    if route.method == "GET" or route.name == "DELETE /v1/sessions/current":
        return Role.VIEWER
    return Role.ADMINISTRATOR


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_table_says_what_was_agreed(route: Route) -> None:
    assert route.role == expected_role(route)


@pytest.mark.req("L6")
@pytest.mark.bad_input("role that may not")
def test_every_route_refuses_exactly_those_below_its_role(play: Callable[..., Any]) -> None:
    """Refused: 401 or 403. Allowed: anything else, for the references here name nothing."""

    async def story(world: Any) -> None:
        wrong = []
        for route in ROUTES:
            path = route.path.replace("{ref}", "nothing").replace("{id}", "nothing")
            path = path.replace("{key}", "nothing")
            if route.media_type == "text/event-stream":
                path += "?host=nothing"  # refused before the stream begins
            for role in (None, *Role):
                if route.name == "DELETE /v1/sessions/current" and role is not None:
                    continue  # it would end the session; test_sessions tries it
                answer = await world.call(route.method, path, role=role)
                if route.role == OPEN:
                    allowed = True
                else:
                    allowed = role is not None and role.may(Role(route.role))
                barred = answer.status_code == 403 or (
                    answer.status_code == 401 and route.role != OPEN
                )
                if barred is allowed or (
                    role is None and not allowed and answer.status_code != 401
                ):
                    wrong.append((route.name, role, answer.status_code))
        assert wrong == []

    play(story)


def test_no_route_without_a_role() -> None:
    async def handler(_call: Any) -> Any: ...

    with pytest.raises(TypeError):
        Route(method="GET", path="/x", summary="", handler=handler)
    with pytest.raises(AssertionError):
        Route(method="GET", path="/x", role=None, summary="", handler=handler)
    with pytest.raises(AssertionError):
        check_table((ROUTES[0], ROUTES[0]))


def test_there_is_a_route_for_each_row_of_the_brief() -> None:
    paths = {route.path for route in ROUTES}
    actions = ["start", "shutdown", "power-off", "reboot", "reset", "pause", "resume", "release"]
    assert {f"/v1/vms/{{ref}}/{action}" for action in actions} <= paths
    assert {"/v1/status", "/v1/capabilities", "/v1/codes", "/v1/events/stream"} <= paths
    methods = {route.method for route in ROUTES if route.path == "/v1/vms/{ref}/watchdog"}
    assert methods == {"GET", "POST", "PUT", "DELETE"}
