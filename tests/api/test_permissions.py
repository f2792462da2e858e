"""Who may do what: every route with every role, from the table that the router is made of."""

from collections.abc import Callable
from typing import Any

import pytest
from two_clusters import SIDES, add_user, fill, path_of

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
    "PUT /v1/templates",
    "DELETE /v1/templates",
    "POST /v1/hosts/{ref}/",
    "GET /v1/vms/{ref}/console-log",
    "GET /v1/vms/{ref}/screenshot",
    "POST /v1/operations/{id}/cancel",
    "POST /v1/silences",
    "PUT /v1/hold",
    "DELETE /v1/hold",
    "DELETE /v1/clusters/{ref}/brake",
)
VIEWERS_OWN = (
    "DELETE /v1/sessions/current",
    "POST /v1/sessions/tokens",
    "DELETE /v1/sessions/{id}",
)
# Of what a cluster's own people may do there: the permission, by the beginning of the route's name. The longest counts.
IN_CLUSTERS = {
    "POST /v1/vms": "vms.operate",
    "PATCH /v1/vms": "vms.operate",
    "PUT /v1/vms": "vms.operate",
    "DELETE /v1/vms": "vms.operate",
    "POST /v1/templates/{ref}/vms": "vms.operate",
    "GET /v1/vms/{ref}/console-log": "consoles.operate",
    "GET /v1/vms/{ref}/screenshot": "consoles.operate",
    "POST /v1/vms/{ref}/console-tickets": "consoles.operate",
    "POST /v1/templates": "templates.operate",
    "PUT /v1/templates": "templates.operate",
    "DELETE /v1/templates": "templates.operate",
    "POST /v1/hosts/{ref}/": "hosts.operate",
    "POST /v1/hosts/{ref}/death-tickets": "deaths.operate",
    "POST /v1/hosts/{ref}/confirm-dead": "deaths.operate",
    "DELETE /v1/hosts": "hosts.administer",
    "PUT /v1/hosts": "hosts.administer",
    "POST /v1/operations/{id}/cancel": "operations.operate",
    "POST /v1/clusters": "clusters.administer",
    "PATCH /v1/clusters": "clusters.administer",
    "PUT /v1/clusters": "clusters.administer",
    "DELETE /v1/clusters": "clusters.administer",
    "DELETE /v1/clusters/{ref}/brake": "hosts.operate",
    "POST /v1/storage-domains": "storage-domains.administer",
    "DELETE /v1/storage-domains": "storage-domains.administer",
    "GET /v1/tokens": "tokens.administer",
    "POST /v1/tokens": "tokens.administer",
    "DELETE /v1/tokens": "tokens.administer",
}
# Of no cluster: for who has a role in all of them.
OF_THE_INSTALLATION = (
    *("/v1/hold", "/v1/settings", "/v1/users", "/v1/roles", "/v1/sign-in-provider"),
    *("/v1/receivers", "/v1/subscriptions", "/v1/deliveries"),
    *("/v1/silences", "/v1/inhibitions", "/v1/events/{id}/fates"),
)
ROLES = (Role.VIEWER, Role.OPERATOR, Role.ADMINISTRATOR)


def expected_role(route: Route) -> Role | str:
    if route.name in OPEN_ROUTES:
        return OPEN
    if route.path.startswith(("/v1/users", "/v1/tokens", "/v1/sign-in-provider")):
        return Role.ADMINISTRATOR
    if route.name.startswith(OPERATOR_PREFIXES):
        return Role.OPERATOR
    if route.method == "GET" or route.name in VIEWERS_OWN:
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
            for role in (None, *ROLES):
                if route.name == "DELETE /v1/sessions/current" and role is not None:
                    continue  # it would end the session; test_routes tries it
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


def expected_permission(route: Route) -> str:
    """Of a route of things that belong to clusters."""
    fitting = [begin for begin in IN_CLUSTERS if route.name.startswith(begin)]
    return IN_CLUSTERS[max(fitting, key=len)] if fitting else "view"


CALLERS = {
    "sees": ((), "viewer"),
    "operates": ((), "operator"),
    "administers": ((), "administrator"),
    "does-vms": (("vms.operate",), None),
    "does-consoles": (("consoles.operate",), None),
    "does-the-rest": (
        ("templates.operate", "operations.operate", "deaths.operate", "tokens.administer"),
        None,
    ),
}
"""All in one cluster of two: the permissions of a role of their own, or a fixed role."""
OPERATES = {f"{area}.operate" for area in ("vms", "consoles", "templates", "hosts", "deaths")}
OPERATES |= {"operations.operate"}
ADMINISTERS = {f"{area}.administer" for area in ("clusters", "hosts", "storage-domains", "tokens")}
OF_FIXED = {"viewer": set(), "operator": OPERATES, "administrator": OPERATES | ADMINISTERS}


def expected_status(route: Route, permissions: set[str], side: str) -> int:
    """Of a request with a parameter that there is not: 400 for those who are let in so far."""
    if route.path.startswith(OF_THE_INSTALLATION):
        return 403
    wanted = expected_permission(route)
    if wanted == "view":
        return 400  # what is looked at is another test's business: test_clusters_apart.py
    if wanted not in permissions:
        return 403
    is_named = route.parameters and "/tokens" not in route.path
    return 404 if side == "sueden" and is_named else 400


@pytest.mark.bad_input("role that may not in that cluster")
def test_every_route_with_every_kind_of_caller_in_their_cluster_and_in_another(
    play: Callable[..., Any],
) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        for name, (permissions, role) in CALLERS.items():
            if role is None:
                await world.ok("POST", "/v1/roles", {"name": name, "permissions": permissions})
            await add_user(world, name, (role or name, "norden"))
        wrong = []
        for route in ROUTES:
            if route.role == OPEN:
                continue
            for name, (permissions, role) in CALLERS.items():
                may = set(permissions) if role is None else OF_FIXED[role]
                for side in SIDES:
                    path = path_of(route.path, side)
                    answer = await world.call(route.method, f"{path}?nonsense=1", role=name)
                    expected = expected_status(route, may, side)
                    if "/tokens/{id}" in route.path and expected == 400:
                        expected = 404  # of an id that is nothing
                    if answer.status_code != expected:
                        wrong.append((route.name, name, side, answer.status_code, expected))
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
    for path in ("/v1/vms/{ref}/watchdog", "/v1/templates/{ref}/watchdog"):
        methods = {route.method for route in ROUTES if route.path == path}
        assert methods == {"GET", "POST", "PUT", "DELETE"}
