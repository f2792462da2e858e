"""Requests with an Idempotency-Key as clients meet them."""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import pytest
from test_problems import check

from virtha.api.keyed import REPLAYED
from virtha.api.table import ROUTES
from virtha.control.clusters import Clusters
from virtha.model.errors import Unavailable

Play = Callable[..., Any]
KEY = "c0ffee00-0000-4000-8000-000000000001"
HEADERS = {"Idempotency-Key": KEY}
_USER = {"password": "may-do-everything", "role": "administrator"}
_SECRETS = {"secret", "token", "ticket"}


def test_a_creation_that_is_repeated_is_answered_again(play: Play) -> None:
    async def story(world: Any) -> None:
        body = {"name": "east", "description": "x"}
        made = await world.call("POST", "/v1/clusters", body, headers=HEADERS)
        assert made.status_code == 201 and REPLAYED.lower() not in made.headers
        again = await world.call(
            "POST",
            "/v1/clusters",
            raw=b'{ "description": "x", "name": "east" }',
            headers={"Idempotency-Key": f'"{KEY}"'},
        )
        assert (again.status_code, again.content) == (201, made.content)
        assert again.headers[REPLAYED] == "true"
        for name in ("etag", "location", "content-type"):
            assert again.headers[name] == made.headers[name]
        # Without a key, and with another's, it is a request of its own.
        check(await world.call("POST", "/v1/clusters", body), 409, "problem.name_taken", "name")
        other = {"Idempotency-Key": KEY + "2"}
        answer = await world.call("POST", "/v1/clusters", body, headers=other)
        check(answer, 409, "problem.name_taken")
        assert (await world.call("DELETE", "/v1/clusters/east")).status_code == 204
        answer = await world.call("POST", "/v1/clusters", body, headers=other)
        assert answer.status_code == 201, "what was refused leaves its key free"

    play(story)


@pytest.mark.bad_input("key of another request", story=True)
def test_a_key_that_is_none_or_anothers_is_refused(play: Play) -> None:
    async def story(world: Any) -> None:
        made = await world.call("POST", "/v1/clusters", {"name": "east"}, headers=HEADERS)
        assert made.status_code == 201
        for path, body in (
            ("/v1/clusters", {"name": "west"}),
            ("/v1/clusters?x=1", {"name": "east"}),
            ("/v1/storage-domains", {"name": "east", "path": "/srv"}),
        ):
            answer = await world.call("POST", path, body, headers=HEADERS)
            assert answer.status_code in (400, 422), answer.text
            assert answer.json()["field"] in ("Idempotency-Key", "x")
        answer = await world.call("POST", "/v1/clusters", {"name": "west"}, headers=HEADERS)
        check(answer, 422, "problem.key.reused", "Idempotency-Key")
        for bad in ("", "short", "a" * 256, "with blanks in the middle", '"' * 20, "é" * 20):
            answer = await world.call(
                "POST",
                "/v1/clusters",
                {"name": "west"},
                headers={"Idempotency-Key": bad.encode() if bad.startswith("é") else bad},
            )
            check(answer, 400, "problem.invalid", "Idempotency-Key")
        answer = await world.call("POST", "/v1/tokens", {"expires_ms": 60_000}, headers=HEADERS)
        check(answer, 400, "problem.invalid", "Idempotency-Key")
        names = [one["name"] for one in (await world.ok("GET", "/v1/clusters"))["items"]]
        assert names == ["default", "east"]

    play(story)


def test_a_key_changes_nothing_of_who_may_and_of_what_may_be_repeated_anyway(play: Play) -> None:
    async def story(world: Any) -> None:
        body = {"name": "east"}
        answer = await world.call("POST", "/v1/clusters", body, role="viewer", headers=HEADERS)
        check(answer, 403, "problem.forbidden")
        assert (await world.call("POST", "/v1/clusters", body, headers=HEADERS)).status_code == 201
        answer = await world.call("POST", "/v1/clusters", body, role="viewer", headers=HEADERS)
        check(answer, 403, "problem.forbidden")
        for _ in range(2):
            changed = await world.call(
                "PATCH", "/v1/clusters/east", {"description": "y"}, headers=HEADERS
            )
            assert changed.status_code == 200 and REPLAYED.lower() not in changed.headers
        assert (await world.call("GET", "/v1/clusters", headers=HEADERS)).status_code == 200

    play(story)


def test_of_two_at_the_same_moment_one_is_carried_out(play: Play) -> None:
    async def story(world: Any) -> None:
        both = await asyncio.gather(
            *(
                world.call("POST", "/v1/clusters", {"name": name}, headers=HEADERS)
                for name in ("east", "west")
            )
        )
        made = [answer for answer in both if answer.status_code == 201]
        (other,) = [answer for answer in both if answer.status_code != 201]
        assert len(made) == 1
        assert (other.status_code, other.json()["code"]) in (
            (409, "problem.key.under_way"),
            (422, "problem.key.reused"),
        )
        assert other.json()["field"] == "Idempotency-Key"
        names = [one["name"] for one in (await world.ok("GET", "/v1/clusters"))["items"]]
        assert names == ["default", made[0].json()["name"]]

    play(story)


def test_keys_are_each_users_own(play: Play) -> None:
    async def story(world: Any) -> None:
        await world.ok("POST", "/v1/users", {**_USER, "name": "ann"})
        world.tokens["ann"] = (
            await world.ok("POST", "/v1/sessions", {"user": "ann", "password": _USER["password"]})
        )["token"]
        for role, name in (("administrator", "east"), ("ann", "west")):
            answer = await world.call(
                "POST", "/v1/clusters", {"name": name}, role=role, headers=HEADERS
            )
            assert answer.status_code == 201, answer.text
            assert answer.json()["name"] == name and REPLAYED.lower() not in answer.headers

    play(story)


def test_what_was_refused_when_a_part_was_done_is_refused_again(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Clusters.create

    async def in_part(*arguments: Any) -> NoReturn:
        await create(*arguments)
        raise Unavailable("nobody answered in time")

    async def story(world: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Clusters, "create", in_part)
            first = await world.call("POST", "/v1/clusters", {"name": "east"}, headers=HEADERS)
        again = await world.call("POST", "/v1/clusters", {"name": "east"}, headers=HEADERS)
        for answer in (first, again):
            check(answer, 503, "problem.unavailable")
        assert again.content == first.content and again.headers[REPLAYED] == "true"

    play(story)


def test_no_answer_with_a_secret_is_kept() -> None:
    keyed = {route.name: route for route in ROUTES if route.keyed}
    assert {"POST /v1/vms", "POST /v1/clusters", "POST /v1/vms/{ref}/start"} <= keyed.keys()
    for name, route in keyed.items():
        fields = {field.name for field in msgspec.structs.fields(route.answer)}
        assert not fields & _SECRETS, name
    assert {"POST /v1/tokens", "POST /v1/sessions", "POST /v1/join"}.isdisjoint(keyed)
