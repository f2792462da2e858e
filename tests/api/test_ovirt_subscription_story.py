"""A subscription that oVirt's own client makes leads to a mail, and none to none: real server process, real mail server."""

import json
import re
from collections.abc import Iterator
from typing import Any

import ovirtsdk4 as sdk
import pytest
from ovirtsdk4 import types
from story import Story
from test_hindered_story import Place, mailing
from test_ovirt_sdk_story import connect
from test_route_story import until

pytestmark = pytest.mark.req("W3", "W7")
XML = {"Content-Type": "application/xml"}


@pytest.fixture
def place(story: Story) -> Iterator[Place]:
    """Beside eve's subscriptions there is a route that tells ops the same. What an event leads to is queued in one step for all
    routes: once ops has the mail, one for eve is there, or never will be."""
    with mailing(story) as made:
        story.ok("user", "edit", "eve", "--email", "eve@example.org")
        yield made


@pytest.fixture
def connection(story: Story) -> Iterator[sdk.Connection]:
    made = connect(story)
    try:
        yield made
    finally:
        made.close()


def user(connection: sdk.Connection) -> Any:
    """eve, to the SDK."""
    users = connection.system_service().users_service()
    (eve,) = users.list(search="name=eve")
    return users.user_service(eve.id)


def tell_ops(place: Place, *codes: str) -> None:
    named = [word for code in codes for word in ("--code", code)]
    place.ok("route", "add", "mail1", "--name", "z-ops", "--address", "ops@example.org", *named)


def got(place: Place, address: str) -> list[str]:
    return [mail["X-Virtha-Code"] for mail in place.box.mails if mail["To"] == address]


def queued(place: Place, address: str) -> list[int]:
    """The events of all messages to it, whatever became of them."""
    every = [one["delivery"] for one in json.loads(place.ok("list", "-o", "json"))]
    return sorted(int(one["event_revision"]) for one in every if one["address"] == address)


def test_what_the_sdk_subscribes_to_comes_by_mail_until_it_is_removed(
    place: Place, connection: sdk.Connection
) -> None:
    tell_ops(place, "vm.crashed", "vm.agent.lost")
    before = place.of_vm("vm.crashed", cause="signal 9")
    until(lambda: got(place, "ops@example.org") == ["vm.crashed"])
    subscriptions = user(connection).event_subscriptions_service()
    wanted = types.EventSubscription(
        event=types.NotifiableEvent.HA_VM_FAILED, notification_method=types.NotificationMethod.SMTP
    )
    made = subscriptions.add(wanted)
    # What it names comes, what it doesn't name and what was before it doesn't.
    crashed = place.of_vm("vm.crashed", cause="signal 11")
    place.of_vm("vm.agent.lost")
    until(lambda: len(got(place, "ops@example.org")) == 3)
    until(lambda: got(place, "eve@example.org") == ["vm.crashed"])
    (mail,) = [one for one in place.box.mails if one["To"] == "eve@example.org"]
    assert mail["X-Virtha-Event"] == str(crashed) != str(before)
    assert "QEMU of web1 died: signal 11" in mail["Subject"]
    assert mail["X-Virtha-Kind"] == "problem"
    (route,) = [
        one
        for one in json.loads(place.ok("why", str(crashed), "-o", "json"))["routes"]
        if one["subscription_id"] == made.id
    ]
    assert (route["state"], route["delivery_state"]) == ("told", "sent")
    # Removed by the SDK: ops' mail comes, and nothing for eve was ever queued.
    subscriptions.event_subscription_service(made.id).remove()
    assert subscriptions.list() == []
    last = place.of_vm("vm.crashed", cause="signal 6")
    until(lambda: len(got(place, "ops@example.org")) == 4)
    assert place.fate(last, "z-ops")["state"] == "told"
    assert got(place, "eve@example.org") == ["vm.crashed"]
    assert queued(place, "eve@example.org") == [crashed]
    # Made anew it is a subscription like the first.
    subscriptions.add(wanted)
    place.of_vm("vm.panicked")
    until(lambda: got(place, "eve@example.org") == ["vm.crashed", "vm.panicked"])


@pytest.mark.req("W7", "W9")
def test_a_watchdog_event_comes_by_mail_though_the_sdk_has_no_word_for_it(
    place: Place, connection: sdk.Connection, story: Story
) -> None:
    """oVirt's own enumeration lacks ``watchdog_event``, so it is written as XML; and it is removed as XML."""
    tell_ops(place, "vm.watchdog.fired")
    eve = user(connection).get()
    path = f"/ovirt-engine/api/users/{eve.id}/eventsubscriptions"
    with story.rest() as client:
        body = "<event_subscription><event>watchdog_event</event></event_subscription>"
        made = client.post(path, content=body, headers=XML)
        assert made.status_code == 201, made.text
        found = re.search(r'<event_subscription href="([^"]*)"', made.text)
        assert found is not None, made.text
        fired = place.of_vm("vm.watchdog.fired", action="reset")
        until(lambda: got(place, "eve@example.org") == ["vm.watchdog.fired"])
        (mail,) = [one for one in place.box.mails if one["To"] == "eve@example.org"]
        assert "Watchdog of web1 fired, action reset" in mail["Subject"]
        until(lambda: len(got(place, "ops@example.org")) == 1)
        assert client.delete(found[1], headers=XML).status_code == 200
        later = place.of_vm("vm.watchdog.fired", action="poweroff")
        until(lambda: len(got(place, "ops@example.org")) == 2)
    assert got(place, "eve@example.org") == ["vm.watchdog.fired"]
    to_eve = queued(place, "eve@example.org")
    assert fired in to_eve and later not in to_eve
