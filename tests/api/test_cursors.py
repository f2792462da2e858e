"""Cursors by themselves: each is of one list and one search, and says its place and nothing else."""

from typing import Any

import pytest

from virtha.api.cursors import paged, placed
from virtha.api.route import Answer, PartQuery, Route
from virtha.api.table import ROUTES
from virtha.control.requests import EventQuery, PageQuery, SearchQuery
from virtha.control.views import Page
from virtha.model.errors import Gone, InvalidInput
from virtha.model.ids import Revision

BY_NAME = {route.name: route for route in ROUTES}
CLUSTERS, USERS = BY_NAME["GET /v1/clusters"], BY_NAME["GET /v1/users"]
SNAPSHOTS, CODES = BY_NAME["GET /v1/vms/{ref}/snapshots"], BY_NAME["GET /v1/codes"]


class Item:
    def __init__(self, key: str) -> None:
        self.id = self.name = key


ITEMS: tuple[Any, ...] = tuple(Item(str(number)) for number in range(5))


def next_of(one: Route, query: Any, place: str | None, path: dict[str, str] | None = None) -> Any:
    page: Page[Any] = Page(items=(), revision=Revision(1), next=place)
    return paged(one, path or {}, query, Answer(body=page)).body.next


@pytest.mark.parametrize("place", ["web1", "é\U0001f600", "", "a" * 1_000, "eyJ4IjoxfQ"])
def test_a_place_comes_back_as_it_was(place: str) -> None:
    cursor = next_of(CLUSTERS, SearchQuery(limit=7), place)
    assert cursor.isascii() and not set(cursor) & set("=&+/% ")
    found = placed(CLUSTERS, {}, SearchQuery(limit=9, after=cursor))
    assert found == SearchQuery(limit=9, after=place)
    assert next_of(CLUSTERS, SearchQuery(after=place), None) is None


@pytest.mark.bad_input("cursor of another list")
def test_a_cursor_fits_one_list_and_one_search() -> None:
    cursor = next_of(CLUSTERS, SearchQuery(search="name = a*"), "a1")
    for one, query in (
        (CLUSTERS, SearchQuery(after=cursor)),
        (CLUSTERS, SearchQuery(search="name = b*", after=cursor)),
        (CLUSTERS, SearchQuery(search="name = a*", case_sensitive=False, after=cursor)),
        (USERS, SearchQuery(search="name = a*", after=cursor)),
    ):
        with pytest.raises(InvalidInput) as caught:
            placed(one, {}, query)
        assert caught.value.field == "after" and caught.value.fix


def read(cursor: str) -> Any:
    return placed(CLUSTERS, {}, SearchQuery(after=cursor))


@pytest.mark.bad_input("cursor of another list")
def test_a_cursor_that_is_cut_or_changed_is_none() -> None:
    cursor = next_of(CLUSTERS, SearchQuery(), "web1")
    for length in range(len(cursor)):
        with pytest.raises(InvalidInput):
            read(cursor[:length])
    for at in range(len(cursor)):
        for other in "A_-=+é ":
            if cursor[at] != other:
                with pytest.raises(InvalidInput):
                    read(cursor[:at] + other + cursor[at + 1 :])
    with pytest.raises(InvalidInput):
        read("A" * 100_000)


@pytest.mark.bad_input("cursor of another list")
def test_a_cursor_below_one_object_is_not_anothers() -> None:
    path = {"ref": "web1"}
    page: Page[Any] = Page(items=ITEMS, revision=Revision(1))
    cursor = paged(SNAPSHOTS, path, PartQuery(limit=1), Answer(body=page)).body.next
    assert placed(SNAPSHOTS, path, PartQuery(after=cursor)).after == "0"
    with pytest.raises(InvalidInput):
        placed(SNAPSHOTS, {"ref": "web2"}, PartQuery(after=cursor))


def test_a_whole_list_is_cut_behind_the_last_items_key() -> None:
    page: Page[Any] = Page(items=ITEMS, revision=Revision(1))

    def part(limit: int | None, after: str | None) -> Page[Any]:
        found: Page[Any] = paged(
            CODES, {}, PartQuery(limit=limit, after=after), Answer(body=page)
        ).body
        return found

    assert part(None, None) == page
    assert [one.name for one in part(2, "1").items] == ["2", "3"]
    assert part(2, "2").next is None and part(2, "4").items == ()
    with pytest.raises(Gone):
        part(2, "7")
    for limit in (0, -1, 1_001):
        with pytest.raises(InvalidInput) as caught:
            part(limit, None)
        assert caught.value.field == "limit"


def test_what_is_no_cursor_is_left_alone() -> None:
    events = BY_NAME["GET /v1/events"]
    assert placed(events, {}, EventQuery(after=7)) == EventQuery(after=7)
    assert next_of(events, EventQuery(), "7") == "7", "a revision, which is public"
    assert placed(CLUSTERS, {}, PageQuery()) == PageQuery()
