"""Setting up the provider of sign-ins over the API: what is refused, what is kept, what is never shown."""

from collections.abc import Callable
from typing import Any

import pytest
from test_problems import check

Play = Callable[..., Any]
PATH = "/v1/sign-in-provider"
RIGHT = {
    "issuer": "https://op.example/realms/one",
    "client_id": "virtha",
    "client_secret": "a secret",
    "roles": {"vm-admins": "administrator"},
}
TOO_LONG = "x" * 501


def test_it_is_set_up_changed_and_forgotten(play: Play) -> None:
    async def story(world: Any) -> None:
        check(await world.call("GET", PATH), 404, "problem.sign_in.none", None)
        check(await world.call("DELETE", PATH), 404, "problem.sign_in.none", None)
        for role in ("viewer", "operator"):
            assert (await world.call("GET", PATH, role=role)).status_code == 403
        for condition in ("*", '"7"'):
            absent = await world.call("PUT", PATH, RIGHT, headers={"If-Match": condition})
            check(absent, 412, "problem.stale", "If-Match")
        check(await world.call("GET", PATH), 404, "problem.sign_in.none", None)
        put = await world.call("PUT", PATH, RIGHT)
        assert put.status_code == 200, put.text
        shown = await world.call("GET", PATH)
        assert shown.json() == put.json()
        assert shown.headers["etag"].startswith(put.headers["etag"][:-1] + "-")
        assert shown.json()["has_secret"] and "a secret" not in shown.text
        assert shown.json()["provider"]["scopes"] == ["openid", "profile", "email"]
        kept = {name: value for name, value in RIGHT.items() if name != "client_secret"}
        changed = await world.ok("PUT", PATH, {**kept, "roles_claim": "roles"})
        assert changed["has_secret"]
        stale = {"If-Match": put.headers["etag"]}
        answer = await world.call("PUT", PATH, RIGHT, headers=stale)
        check(answer, 412, "problem.stale", "If-Match")
        without = await world.ok("PUT", PATH, {**RIGHT, "client_secret": None})
        assert not without["has_secret"]
        moved = await world.ok("PUT", PATH, {**kept, "issuer": "https://other.example"})
        assert moved["provider"]["issuer"] == "https://other.example"
        events = await world.ok("GET", "/v1/events?code=sign_in_provider.*")
        assert len(events["items"]) == 4 and "a secret" not in str(events)
        assert (await world.call("DELETE", PATH)).status_code == 204
        check(await world.call("GET", PATH), 404, "problem.sign_in.none", None)
        begun = await world.call(
            "POST", "/v1/sign-ins", {"redirect_uri": "http://127.0.0.1:1/"}, role=None
        )
        check(begun, 404, "problem.sign_in.none", None)

    play(story)


@pytest.mark.bad_input("settings of a provider of sign-ins that are none", story=True)
def test_settings_that_can_not_be_are_refused_by_field(play: Play) -> None:
    async def story(world: Any) -> None:
        for change, field in (
            ({"issuer": "http://op.example"}, "issuer"),
            ({"issuer": "op.example"}, "issuer"),
            ({"issuer": "https://op.example?x=1"}, "issuer"),
            ({"issuer": "https://op.example/" + "x" * 2_000}, "issuer"),
            ({"issuer": "https://größe.example"}, "issuer"),
            ({"client_id": ""}, "client_id"),
            ({"client_id": TOO_LONG}, "client_id"),
            ({"client_secret": ""}, "client_secret"),
            ({"name_claim": ""}, "name_claim"),
            ({"roles_claim": TOO_LONG}, "roles_claim"),
            ({"scopes": ["profile"]}, "scopes"),
            ({"scopes": ["openid", "a b"]}, "scopes[1]"),
            ({"scopes": ["openid"] * 201}, "scopes"),
            ({"roles": {}}, "roles"),
            ({"roles": {"": "viewer"}}, "roles"),
            ({"redirect_uris": ["http://ui.example/"]}, "redirect_uris[0]"),
            ({"authority_pem": "none"}, "authority_pem"),
        ):
            answer = await world.call("PUT", PATH, {**RIGHT, **change})
            check(answer, 400, "problem.invalid", field)
        wrong = await world.call("PUT", PATH, {**RIGHT, "roles": {"x": "root"}})
        assert wrong.status_code == 400 and "viewer" in wrong.json()["allowed"]
        check(await world.call("GET", PATH), 404, "problem.sign_in.none", None)

    play(story)


def test_a_secret_goes_to_no_other_issuer_than_it_was_given_for(play: Play) -> None:
    async def story(world: Any) -> None:
        await world.ok("PUT", PATH, RIGHT)
        kept = {name: value for name, value in RIGHT.items() if name != "client_secret"}
        answer = await world.call("PUT", PATH, {**kept, "issuer": "https://evil.example"})
        check(answer, 400, "problem.invalid", "client_secret")
        assert (await world.ok("GET", PATH))["provider"]["issuer"] == RIGHT["issuer"]
        again = await world.ok("PUT", PATH, {**RIGHT, "issuer": "https://other.example"})
        assert again["has_secret"]

    play(story)
