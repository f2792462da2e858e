"""Receivers, subscriptions and deliveries as a client meets them: secrets go in and never come out."""

from collections.abc import Callable
from typing import Any

import pytest

Play = Callable[..., Any]
MAIL = {"type": "mail", "host": "mail.example.org", "sender": "virtha@example.org"}
SECRET = "correct-horse-battery-staple"


async def add_mail(world: Any, **more: Any) -> Any:
    body = {
        "name": "mail1",
        "settings": {**MAIL, "user": "virtha"},
        "secrets": {"password": SECRET},
    }
    return await world.ok("POST", "/v1/receivers", {**body, **more})


@pytest.mark.req("W7", "F4")
def test_a_receiver_from_creation_to_removal(play: Play) -> None:
    async def story(world: Any) -> None:
        made = await add_mail(world)
        assert made["receiver"]["secrets"] == ["password"] and made["kind"] == "mail"
        answer = await world.call("GET", "/v1/receivers/mail1", role="viewer")
        assert answer.headers["ETag"].startswith(f'"{made["receiver"]["revision"]}-')
        changed = await world.ok(
            "PATCH",
            "/v1/receivers/mail1",
            {"settings": {**MAIL, "user": "virtha", "port": 465, "security": "tls"}},
            headers={"If-Match": answer.headers["ETag"]},
        )
        assert changed["receiver"]["settings"]["port"] == 465
        stale = await world.call(
            "PATCH",
            "/v1/receivers/mail1",
            {"enabled": False},
            headers={"If-Match": answer.headers["ETag"]},
        )
        assert stale.status_code == 412
        subscription = await world.ok(
            "POST",
            "/v1/subscriptions",
            {"receiver": "mail1", "address": "ops@example.org", "codes": ["vm.watchdog.*"]},
        )
        assert subscription["subscription"]["name"] == "mail1-1"
        used = await world.call("DELETE", "/v1/receivers/mail1")
        assert used.status_code == 422 and "mail1-1" in used.json()["detail"]
        assert (await world.ok("GET", "/v1/receivers"))["items"][0]["subscriptions"] == ["mail1-1"]
        await world.ok("DELETE", "/v1/subscriptions/mail1-1")
        await world.ok("DELETE", "/v1/receivers/mail1")
        assert (await world.ok("GET", "/v1/receivers"))["items"] == []

    play(story)


@pytest.mark.req("W7")
def test_no_secret_comes_out_again(play: Play) -> None:
    async def story(world: Any) -> None:
        await add_mail(world)
        await world.ok("POST", "/v1/receivers/mail1/test", {"address": "me@example.org"})
        await world.ok("PATCH", "/v1/receivers/mail1", {"secrets": {"password": SECRET + "2"}})
        said = []
        for body in (
            {"name": "mail1", "settings": MAIL, "secrets": {"password": SECRET}},
            {"name": "m2", "settings": MAIL, "secrets": {"password": SECRET}},
            {"name": "m3", "settings": {**MAIL, "user": "x"}, "secrets": {"passwort": SECRET}},
            {
                "name": "m4",
                "settings": {**MAIL, "user": "x"},
                "secrets": {"password": SECRET + "\n"},
            },
            {
                "name": "m5",
                "settings": {"type": "webhook", "url": f"https://u:{SECRET}@h.example.org/"},
            },
        ):
            answer = await world.call("POST", "/v1/receivers", body)
            assert answer.status_code in (400, 409), answer.text
            said.append(answer.text)
        for path in ("/v1/receivers", "/v1/receivers/mail1", "/v1/deliveries", "/v1/events"):
            said.append((await world.call("GET", path)).text)
        assert SECRET not in "".join(said)
        raw = world.store.database.read_bytes()
        raw += world.store.database.with_name(world.store.database.name + "-wal").read_bytes()
        assert SECRET.encode() not in raw

    play(story)


@pytest.mark.req("W7")
def test_a_test_says_how_it_fared_and_is_in_the_list(play: Play) -> None:
    async def story(world: Any) -> None:
        await add_mail(world)
        good = await world.ok("POST", "/v1/receivers/mail1/test", {"address": "me@example.org"})
        assert (good["outcome"], good["detail"]) == ("accepted", "250 yes")
        assert good["delivery"]["state"] == "sent" and good["delivery"]["test"]
        bad = await world.ok("POST", "/v1/receivers/mail1/test", {"address": "me@refused.example"})
        assert (bad["outcome"], bad["delivery"]["state"]) == ("never", "refused")
        (refused,) = (await world.ok("GET", "/v1/deliveries?state=refused", role="viewer"))["items"]
        assert refused["receiver_name"] == "mail1"
        assert refused["event"]["code"] == "notify.test_asked"
        ident = refused["delivery"]["id"]
        assert await world.ok("GET", f"/v1/deliveries/{ident}", role="viewer") == refused
        again = await world.ok("POST", f"/v1/deliveries/{ident}/retry")
        assert again["delivery"]["state"] == "pending"
        page = await world.ok("GET", "/v1/deliveries?limit=1")
        assert page["items"][0]["delivery"]["id"] == ident
        rest = await world.ok("GET", f"/v1/deliveries?limit=1&after={page['next']}")
        assert rest["items"][0]["delivery"]["id"] == good["delivery"]["id"]
        sent = await world.call("POST", f"/v1/deliveries/{good['delivery']['id']}/retry")
        assert sent.status_code == 422

    play(story)


@pytest.mark.req("W7")
def test_a_password_is_not_led_to_another_server(play: Play) -> None:
    async def story(world: Any) -> None:
        await add_mail(world)
        elsewhere = {**MAIL, "user": "virtha", "host": "mine.example.net"}
        answer = await world.call("PATCH", "/v1/receivers/mail1", {"settings": elsewhere})
        assert (answer.status_code, answer.json()["field"]) == (400, "secrets.password")
        anew = {"settings": elsewhere, "secrets": {"password": "for-the-other-one"}}
        await world.ok("PATCH", "/v1/receivers/mail1", anew)

    play(story)


def test_a_users_address_and_the_subscription_that_ends_with_the_user(play: Play) -> None:
    async def story(world: Any) -> None:
        await add_mail(world)
        body = {"name": "eve", "password": "long enough to do", "email": "eve@example.org"}
        assert (await world.ok("POST", "/v1/users", body))["email"] == "eve@example.org"
        made = await world.ok("POST", "/v1/subscriptions", {"receiver": "mail1", "user": "eve"})
        assert made["user_name"] == "eve"
        await world.ok("DELETE", "/v1/users/eve")
        assert (await world.ok("GET", "/v1/subscriptions"))["items"] == []

    play(story)


BAD_RECEIVERS = [
    ({"name": ""}, "name"),
    ({"settings": {**MAIL, "port": 0}}, "settings.port"),
    ({"settings": {**MAIL, "port": 70_000}}, "settings.port"),
    ({"settings": {**MAIL, "hots": "x"}}, "settings.hots"),
    ({"settings": {"host": "x"}}, "settings.type"),
    ({"settings": {**MAIL, "type": "fax"}}, "settings.type"),
    ({"settings": {**MAIL, "security": "ssl"}}, "settings.security"),
    ({"settings": {**MAIL, "sender": "a@b.example\nBcc: all@b.example"}}, "settings.sender"),
    ({"settings": {**MAIL, "user": "x"}, "secrets": {}}, "secrets.password"),
    ({"settings": {**MAIL, "host": "https://mail"}}, "settings.host"),
    ({"settings": {**MAIL, "authority_pem": "x"}}, "settings.authority_pem"),
]


@pytest.mark.bad_input("address with a line break", story=True)
@pytest.mark.parametrize(("wrong", "field"), BAD_RECEIVERS, ids=lambda value: str(value)[:40])
def test_bad_receivers_name_the_field_and_make_nothing(
    wrong: dict[str, Any], field: str, play: Play
) -> None:
    async def story(world: Any) -> None:
        body = {"name": "mail1", "settings": MAIL, **wrong}
        answer = await world.call("POST", "/v1/receivers", body)
        assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
        assert answer.json()["fix"] or answer.json()["allowed"]
        assert (await world.ok("GET", "/v1/receivers"))["items"] == []

    play(story)


BAD_SUBSCRIPTIONS = [
    ({"receiver": "mail2"}, 404, "receiver", "did you mean mail1"),
    ({"address": None}, 400, "address", "give an address or a user"),
    ({"address": "nobody"}, 400, "address", "no @"),
    ({"address": "x" * 250 + "@example.org"}, 400, "address", "254"),
    ({"address": "a@b.example\r\nBcc: c@b.example"}, 400, "address", "line break"),
    ({"address": "Ops <a@b.example>"}, 400, "address", "bare address"),
    ({"codes": ["vm.wachdog.*"]}, 400, "codes[0]", "did you mean vm.watchdog.*"),
    ({"codes": ["host.rebootd"]}, 400, "codes[0]", "did you mean host.rebooted"),
    ({"host": "h9"}, 404, "host", "host list"),
    ({"vm": "web9"}, 404, "vm", "vm list"),
    ({"cluster": "defualt"}, 404, "cluster", "did you mean default"),
    ({"user": "nobody", "address": None}, 404, "user", "user list"),
    ({"user": "administrator", "address": None}, 400, "user", "--email"),
    ({"name": "taken"}, 409, "name", "another name"),
    ({"severity": "loud"}, 400, "severity", "info"),
]


@pytest.mark.bad_input("address with a line break")
@pytest.mark.parametrize(
    ("wrong", "status", "field", "says"), BAD_SUBSCRIPTIONS, ids=lambda value: str(value)[:40]
)
def test_bad_subscriptions_name_the_field_and_make_nothing(
    wrong: dict[str, Any], status: int, field: str, says: str, play: Play
) -> None:
    async def story(world: Any) -> None:
        await add_mail(world)
        good = {"receiver": "mail1", "name": "taken", "address": "a@example.org"}
        await world.ok("POST", "/v1/subscriptions", good)
        body = {key: value for key, value in {**good, "name": "new", **wrong}.items() if value}
        answer = await world.call("POST", "/v1/subscriptions", body)
        told = answer.json()
        assert (answer.status_code, told["field"]) == (status, field), answer.text
        assert says in str(told), answer.text
        assert len((await world.ok("GET", "/v1/subscriptions"))["items"]) == 1

    play(story)
