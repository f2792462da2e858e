"""What an event tells of a change: what differs and no more, JSON however long it is, and nothing that is to stay unknown."""

from typing import Any

import pytest
from msgspec import json

from virtha.control.history import CHANGE_LENGTH_MAX, HIDDEN, changes_between, secrets_changed
from virtha.model.ids import ReceiverId, Revision, SubscriptionId
from virtha.model.notification import MailSettings, Receiver, Subscription
from virtha.model.power_settings import PowerSettings


def route(**more: Any) -> Subscription:
    return Subscription(
        **{"id": SubscriptionId("s"), "name": "all", "receiver_id": ReceiverId("r"), **more}
    )


def told(*given: Any, **more: Any) -> tuple[Any, Any]:
    found = changes_between(*given, **more)
    texts = [found.get("before"), found.get("after")]
    assert all(text is None or len(text) <= CHANGE_LENGTH_MAX for text in texts)
    before, after = (None if text is None else json.decode(text) for text in texts)
    return before, after


@pytest.mark.parametrize(
    ("before", "after", "lost", "made"),
    [
        (route(revision=Revision(1)), route(revision=Revision(2)), {}, {}),
        (
            route(),
            route(codes=("vm.*",), address="eve@example.org"),
            {"codes": [], "address": None},
            {"codes": ["vm.*"], "address": "eve@example.org"},
        ),
        (
            route(labels={"vm": "web1", "disk": "a"}),
            route(labels={"vm": "web2", "nic": "b"}),
            {"labels": {"vm": "web1", "disk": "a"}},
            {"labels": {"vm": "web2", "nic": "b"}},
        ),
        (
            route(labels={"vm": "web1", "disk": "a"}),
            route(labels={"vm": "web1"}),
            {"labels": {"disk": "a"}},
            {"labels": {}},
        ),
        (
            PowerSettings(parameters={"a": "1"}),
            PowerSettings(),
            {"parameters": {"a": "1"}},
            {"parameters": None},
        ),
        (
            PowerSettings(),
            PowerSettings(parameters={"a": "1"}),
            {"parameters": None},
            {"parameters": {"a": "1"}},
        ),
        (None, PowerSettings(port=1), None, {"port": 1}),
        (PowerSettings(port=1), None, {"port": 1}, None),
    ],
)
def test_what_differs_is_told_and_no_more(before: Any, after: Any, lost: Any, made: Any) -> None:
    assert told(before, after) == (lost, made)


def test_what_is_hidden_is_told_by_name_where_it_differs() -> None:
    before = PowerSettings(parameters={"pin": "1234", "plain": "1", "same": "kept"})
    after = PowerSettings(parameters={"pin": "5678", "plain": "2", "same": "kept"})
    hidden = {"parameters.pin", "parameters.same"}
    lost, made = told(before, after, hidden=hidden)
    assert lost == {"parameters": {"pin": HIDDEN, "plain": "1"}}
    assert made == {"parameters": {"pin": HIDDEN, "plain": "2"}}
    _, made = told(None, after, hidden=hidden)
    assert made == {"parameters": {"pin": HIDDEN, "plain": "2", "same": HIDDEN}}
    assert secrets_changed({"password", "community"}) == {"secrets_changed": "community, password"}
    assert secrets_changed(()) == {}


def test_what_is_too_long_is_cut_and_still_differs() -> None:
    """Two bundles of certificates that begin alike; beside them what is short stays whole."""

    def receiver(last: str, sender: str) -> Receiver:
        settings = MailSettings(host="mail", sender=sender, authority_pem="x" * 150_000 + last)
        return Receiver(id=ReceiverId("r"), name="mail", settings=settings)

    lost, made = told(receiver("a", "one@example.org"), receiver("b", "two@example.org"))
    assert (lost["settings"]["sender"], made["settings"]["sender"]) == (
        "one@example.org",
        "two@example.org",
    )
    texts = [each["settings"]["authority_pem"] for each in (lost, made)]
    assert texts[0] != texts[1] and all("150001 characters" in text for text in texts)


@pytest.mark.parametrize("many", [30, 100, 5_000])
def test_however_much_there_is_it_stays_json(many: int) -> None:
    codes = tuple(f"vm.watchdog.number{number}" for number in range(many))
    labels = {f"label{number}": "ü\"\\'" * 50 for number in range(many)}
    _, made = told(route(), route(codes=codes, labels=labels))
    assert set(made) == {"codes", "labels"} or set(made) == {"…"}
    _, one_more = told(route(), route(codes=(*codes, "x"), labels=labels))
    assert made != one_more
