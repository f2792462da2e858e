"""A template's watchdog by the native API: the VM's routes over again, with all that may be wrong beside what is right."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from filled_installation import VM, ObedientHosts
from test_problems import check

from virtha.api.route import Route
from virtha.api.table import ROUTES

Play = Callable[..., Any]
PATH = "/v1/templates/gold/watchdog"
RESET = {"model": "i6300esb", "action": "reset"}
PAUSE = {"model": "ib700", "action": "pause"}


class Place:
    """A cluster with a VM that has a card, and a template of it."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.hosts = ObedientHosts(world)

    async def done(self, path: str, body: Any) -> Any:
        operation = await self.world.ok("POST", path, body, role="operator")
        await self.hosts.obey()
        path = f"/v1/operations/{operation['id']}?wait_ms=10000"
        assert (await self.world.ok("GET", path))["state"] == "done"
        return operation

    async def card_of(self, kind: str, name: str) -> Any:
        return (await self.world.ok("GET", f"/v1/{kind}s/{name}"))[kind]["watchdog"]


async def _place(world: Any, **wanted: Any) -> Place:
    await world.ok("POST", "/v1/storage-domains", {"name": "ds1", "path": "/srv/ds1"})
    place = Place(world)
    await place.hosts.join("h1")
    await place.done("/v1/vms", {"name": "web1", **VM})
    await place.done("/v1/templates", {"name": "gold", "vm": "web1", **wanted})
    return place


def _revision(answer: Any) -> int:
    """Of what is shown, by its entity tag, which may say more."""
    return int(answer.headers["etag"].strip('"').split("-")[0])


def _alike(route: Route) -> dict[str, Any]:
    """All of it but whose it is, and its handler, which is made for each."""
    alike = {one.name: getattr(route, one.name) for one in fields(route) if one.name != "handler"}
    alike["path"] = route.path.replace("/templates/", "/vms/")
    alike["summary"] = route.summary.replace("a template", "a VM")
    return alike


@pytest.mark.req("W1")
def test_its_routes_are_the_vms() -> None:
    of_vms, of_templates = (
        [route for route in ROUTES if route.path == f"/v1/{kind}/{{ref}}/watchdog"]
        for kind in ("vms", "templates")
    )
    assert [route.method for route in of_vms] == ["GET", "POST", "PUT", "DELETE"]
    assert [_alike(route) for route in of_templates] == [_alike(route) for route in of_vms]
    assert {route.permission for route in of_templates} == {"view", "templates.operate"}


@pytest.mark.req("W1", "W5")
def test_it_is_given_shown_replaced_and_removed_and_vms_get_what_there_is(play: Play) -> None:
    async def story(world: Any) -> None:
        place = await _place(world)
        view = await world.call("GET", "/v1/templates/gold", role="viewer")
        shown = await world.call("GET", PATH, role="viewer")
        assert shown.json() == RESET and _revision(shown) == _revision(view)
        match = {"If-Match": shown.headers["etag"]}
        put = await world.call("PUT", PATH, PAUSE, role="operator", headers=match)
        assert (put.status_code, put.json()) == (200, PAUSE)
        ident = view.json()["template"]["id"]
        assert put.headers["location"] == f"/v1/templates/{ident}/watchdog"
        now = await world.call("GET", "/v1/templates/gold")
        assert _revision(put) == _revision(now) > _revision(view)
        await place.done("/v1/templates/gold/vms", {"name": "web2"})

        gone = await world.call("DELETE", PATH, role="operator")
        assert (gone.status_code, gone.content) == (204, b"")
        assert await place.card_of("template", "gold") is None
        await place.done("/v1/templates/gold/vms", {"name": "web3"})
        added = await world.call("POST", f"/v1/templates/{ident}/watchdog", RESET, role="operator")
        assert (added.status_code, added.json()) == (201, RESET)
        cards = [await place.card_of("vm", name) for name in ("web1", "web2", "web3")]
        assert cards == [RESET, PAUSE, None], "those that are made from it later get it"

    play(story)


@pytest.mark.req("W1", "W5")
@pytest.mark.parametrize(
    ("wanted", "has"), [({}, RESET), ({"watchdog": PAUSE}, PAUSE), ({"watchdog": None}, None)]
)
def test_it_is_made_with_the_vms_card_with_another_or_with_none(
    play: Play, wanted: dict[str, Any], has: Any
) -> None:
    async def story(world: Any) -> None:
        place = await _place(world, **wanted)
        assert await place.card_of("template", "gold") == has
        assert await place.card_of("vm", "web1") == RESET

    play(story)


@pytest.mark.req("W1", "W2")
@pytest.mark.bad_input(
    "second watchdog", "missing action", "unknown field", "watchdog of a template that takes none"
)
def test_a_card_that_can_not_be_is_refused_and_nothing_changes(play: Play) -> None:
    async def story(world: Any) -> None:
        place = await _place(world)

        async def send(method: str, body: Any = None, path: str = PATH, **more: Any) -> Any:
            return await world.call(method, path, body, role="operator", **more)

        before = await world.call("GET", "/v1/templates/gold")
        for method in ("POST", "PUT"):
            for body, code, field in (
                (RESET | {"model": "tardis"}, "problem.watchdog.model", "watchdog.model"),
                # diag288 is for s390x; itco fits q35, but these hosts' libvirt takes none.
                (RESET | {"model": "diag288"}, "problem.watchdog.model", "watchdog.model"),
                (RESET | {"model": "itco"}, "problem.watchdog.model", "watchdog.model"),
                ({"action": "reset"}, "problem.watchdog.model", "watchdog.model"),
                (RESET | {"action": "dance"}, "problem.watchdog.action", "watchdog.action"),
                ({"model": "i6300esb"}, "problem.watchdog.action", "watchdog.action"),
                (RESET | {"actoin": "reset"}, "problem.unknown_field", "actoin"),
                (RESET | {"model": 3}, "problem.invalid", "model"),
                ([RESET, RESET], "problem.invalid", "body"),
                (None, "problem.invalid", "body"),
            ):
                if method == "POST" and (code.startswith("problem.watchdog") or not body):
                    continue  # it has one: that is said first
                problem = check(await send(method, body), 400, code, field)
                if field == "watchdog.model":
                    assert problem["allowed"] == ["i6300esb", "ib700"]
        second = check(await send("POST", PAUSE), 409, "problem.watchdog.second", "watchdog")
        assert "gold has watchdog i6300esb:reset" in second["detail"]
        stale = {"If-Match": '"1"'}
        for method, body in (("POST", RESET), ("PUT", PAUSE), ("DELETE", None)):
            check(await send(method, body, headers=stale), 412, "problem.stale", "If-Match")
        for method, body in (("GET", None), ("POST", RESET), ("PUT", RESET), ("DELETE", None)):
            wrong = await send(method, body, "/v1/templates/glod/watchdog")
            assert "gold" in check(wrong, 404, "problem.not_found")["fix"]
        after = await world.call("GET", "/v1/templates/gold")
        assert after.content == before.content and after.headers["etag"] == before.headers["etag"]

        await world.ok("DELETE", PATH)
        for method in ("GET", "DELETE"):
            check(await send(method), 404, "problem.not_found")
        wrong = RESET | {"model": "diag288"}
        check(await send("POST", wrong), 400, "problem.watchdog.model", "watchdog.model")
        assert await place.card_of("template", "gold") is None
        wanted = {"name": "silver", "vm": "web1", "watchdog": wrong}
        made = await send("POST", wanted, "/v1/templates")
        check(made, 400, "problem.watchdog.model", "watchdog.model")
        check(await send("GET", path="/v1/templates/silver"), 404, "problem.not_found")

    play(story)


@pytest.mark.req("W2")
@pytest.mark.bad_input("model that does not fit the machine")
def test_the_card_must_fit_the_templates_machine(play: Play) -> None:
    async def story(world: Any) -> None:
        place = await _place(world)
        await place.done("/v1/vms", {"name": "old1", **VM, "machine": "pc"})
        await place.done("/v1/templates", {"name": "old", "vm": "old1"})
        path = "/v1/templates/old/watchdog"
        wrong = await world.call("PUT", path, RESET | {"model": "itco"}, role="operator")
        problem = check(wrong, 400, "problem.watchdog.model", "watchdog.model")
        assert "machine type pc" in problem["detail"]
        assert (await world.call("PUT", path, PAUSE, role="operator")).status_code == 200

    play(story)


@pytest.mark.req("W1")
@pytest.mark.bad_input("watchdog of a template that takes none")
def test_one_that_is_not_ready_keeps_its_card(play: Play) -> None:
    async def story(world: Any) -> None:
        place = await _place(world)

        async def is_kept() -> None:
            path = "/v1/templates/silver/watchdog"
            for method, body in (("POST", RESET), ("PUT", PAUSE), ("DELETE", None)):
                answer = await world.call(method, path, body, role="operator")
                check(answer, 409, "problem.template.state", "template")
            assert await place.card_of("template", "silver") == RESET

        wanted = {"name": "silver", "vm": "web1"}
        making = await world.ok("POST", "/v1/templates", wanted, role="operator")
        await is_kept()
        await place.hosts.obey()
        path = f"/v1/operations/{making['id']}?wait_ms=10000"
        assert (await world.ok("GET", path))["state"] == "done"
        await world.ok("DELETE", "/v1/templates/silver", role="operator")
        await is_kept()

    play(story)
