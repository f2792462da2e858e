"""Pages of lists: all of it, each once, in one order; and cursors that are none, or another list's."""

import base64
from collections.abc import Callable
from typing import Any, get_origin

import msgspec
import pytest
from test_problems import check

from virtha.api.openapi import document
from virtha.api.table import ROUTES
from virtha.control.views import Page

Play = Callable[..., Any]
LISTS = [route for route in ROUTES if get_origin(route.answer) is Page]
_NAMES = [f"c{number}" for number in range(5)]


@pytest.mark.parametrize("route", LISTS, ids=lambda route: route.name)
def test_every_list_comes_in_pages(route: Any) -> None:
    fields = {field.name for field in msgspec.structs.fields(route.query)}
    assert {"limit", "after"} <= fields
    parameters = document(ROUTES)["paths"][route.path]["get"]["parameters"]
    assert {"limit", "after"} <= {one["name"] for one in parameters}


async def _walk(world: Any, path: str, limit: int) -> list[Any]:
    """All items of a list, page by page."""
    found: list[Any] = []
    joint = "&" if "?" in path else "?"
    after = ""
    while True:
        page = await world.ok("GET", f"{path}{joint}limit={limit}{after}")
        assert len(page["items"]) <= limit
        found += page["items"]
        if page["next"] is None:
            return found
        after = f"&after={page['next']}"


async def _make_clusters(world: Any) -> None:
    for name in _NAMES:
        await world.ok("POST", "/v1/clusters", {"name": name})


def test_a_list_page_by_page_is_the_list(play: Play) -> None:
    async def story(world: Any) -> None:
        await _make_clusters(world)
        for path in (
            "/v1/clusters",
            "/v1/clusters?search=name%20%3D%20c*%20sortby%20name%20desc",
            "/v1/users",
            "/v1/settings",
            "/v1/events",
            "/v1/events?order=asc",
        ):
            joint = "&" if "?" in path else "?"
            whole = (await world.ok("GET", f"{path}{joint}limit=1000"))["items"]
            assert len(whole) >= 3
            for limit in (1, 2, len(whole) - 1, len(whole)):
                assert await _walk(world, path, limit) == whole, (path, limit)
        codes = (await world.ok("GET", "/v1/codes"))["items"]
        assert len(codes) > 500, "without limit all of it"
        assert await _walk(world, "/v1/codes", 300) == codes
        assert await _walk(world, "/v1/clusters/default/power", 1) == []

    play(story)


def test_what_is_made_and_deleted_meanwhile_moves_nothing_else(play: Play) -> None:
    async def story(world: Any) -> None:
        await _make_clusters(world)
        page = await world.ok("GET", "/v1/clusters?limit=3")
        assert [one["name"] for one in page["items"]] == ["c0", "c1", "c2"]
        assert (await world.call("DELETE", "/v1/clusters/c2")).status_code == 204
        await world.ok("POST", "/v1/clusters", {"name": "a"})
        rest = await world.ok("GET", f"/v1/clusters?limit=2&after={page['next']}")
        assert [one["name"] for one in rest["items"]] == ["c3", "c4"]

    play(story)


@pytest.mark.bad_input("cursor of another list", story=True)
def test_a_cursor_of_another_list_or_search_and_a_huge_page_are_refused(play: Play) -> None:
    async def story(world: Any) -> None:
        await _make_clusters(world)
        cursors = {
            path: (await world.ok("GET", f"{path}limit=1"))["next"]
            for path in (
                "/v1/clusters?",
                "/v1/clusters?search=name%3Dc*&",
                "/v1/users?",
                "/v1/codes?",
            )
        }
        assert None not in cursors.values()
        for path in cursors:
            for of, cursor in cursors.items():
                answer = await world.call("GET", f"{path}limit=2&after={cursor}")
                if of == path:
                    assert answer.status_code == 200, answer.text
                else:
                    problem = check(answer, 400, "problem.invalid", "after")
                    assert "this list" in problem["detail"] and problem["fix"]
        good = cursors["/v1/clusters?"]
        for bad in (
            "c2",
            "%00",
            "A",
            good[:8],
            good[:-3],
            good + "=",
            good[:-2] + "%C3%A9",
            "A" * 9_000,
        ):
            check(
                await world.call("GET", f"/v1/clusters?after={bad}"),
                400,
                "problem.invalid",
                "after",
            )
        no_text = base64.urlsafe_b64encode(b"\xff" * 12).decode()
        for path in ("/v1/clusters", "/v1/codes"):
            answer = await world.call("GET", f"{path}?after={no_text}")
            check(answer, 400, "problem.invalid", "after")
            for limit in ("0", "-1", "1001", "9" * 30, "many"):
                answer = await world.call("GET", f"{path}?limit={limit}")
                check(answer, 400, "problem.invalid", "limit")
        await world.ok("GET", "/v1/events?limit=1")
        check(await world.call("GET", f"/v1/events?after={good}"), 400, "problem.invalid", "after")

    play(story)


def test_a_whole_lists_page_that_lost_its_last_item_is_gone(play: Play) -> None:
    async def story(world: Any) -> None:
        path = "/v1/clusters/default/power"
        syntax = "$IPMI_EXEC $IPMI_ACTION $IPMI_HOST"
        body = {"settings": {"driver": "command", "executable": "/bin/true", "syntax": syntax}}
        for name in ("a", "b", "c"):
            answer = await world.call("PUT", f"{path}/{name}", body)
            assert answer.status_code == 200, answer.text
        page = await world.ok("GET", f"{path}?limit=2")
        assert [one["power"]["name"] for one in page["items"]] == ["a", "b"]
        assert (await world.call("DELETE", f"{path}/a")).status_code == 204
        rest = await world.ok("GET", f"{path}?after={page['next']}")
        assert [one["power"]["name"] for one in rest["items"]] == ["c"]
        assert (await world.call("DELETE", f"{path}/b")).status_code == 204
        problem = check(
            await world.call("GET", f"{path}?after={page['next']}"), 410, "problem.gone", "after"
        )
        assert problem["fix"]

    play(story)
