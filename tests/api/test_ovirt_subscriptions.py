"""oVirt's event subscriptions onto ours (W7)."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from ovirtsdk4 import reader
from test_notification_routes import add_mail
from test_ovirt_requests import send

from virtha.alerts.match import check_patterns, default_severity
from virtha.api.ovirt.subscriptions import EVENTS

Play = Callable[..., Any]
World = Any
pytestmark = pytest.mark.req("W7")


def test_each_event_of_ovirts_is_events_of_ours_and_no_two_are_alike() -> None:
    assert len(set(EVENTS.values())) == len(EVENTS)
    for codes in EVENTS.values():
        assert check_patterns(codes, default_severity(codes)) == codes


def test_a_user_is_subscribed_to_watchdog_events_by_mail(play: Play) -> None:
    async def story(world: World) -> None:
        users = (await world.ok("GET", "/v1/users"))["items"]
        user_id = next(one["id"] for one in users if one["name"] == "operator")
        path = f"/users/{user_id}/eventsubscriptions"
        body = "<event_subscription><event>watchdog_event</event></event_subscription>"
        nobody = await send(world, "POST", path, body)
        assert nobody.status_code == 409 and "virtha notify receiver add" in nobody.text
        await add_mail(world)
        without = await send(world, "POST", path, body)
        assert without.status_code == 400 and "operator has no e-mail address" in without.text
        await world.ok("PATCH", "/v1/users/operator", {"email": "ops@example.org"})
        made = await send(world, "POST", path, body)
        assert made.status_code == 201, made.text
        (one,) = (await world.ok("GET", "/v1/subscriptions"))["items"]
        assert one["user_name"] == "operator" and one["receiver_name"] == "mail1"
        assert "vm.watchdog.fired" in one["subscription"]["codes"]
        (listed,) = reader.Reader.read((await send(world, "GET", path)).text)
        assert listed.address == "ops@example.org" and listed.user.id == user_id
        again = await send(world, "POST", path, body)
        assert again.status_code == 409 and "already" in again.text
        for wrong, field in (
            ("<event>dwh_stopped</event>", "event"),
            ("<event>vm_failure</event><address>me@example.org</address>", "address"),
        ):
            text = f"<event_subscription>{wrong}</event_subscription>"
            refused = await send(world, "POST", path, text)
            assert refused.status_code == 400 and f"[{field}:" in refused.text, refused.text
        snmp = "<event>vm_failure</event><notification_method>snmp</notification_method>"
        text = f"<event_subscription>{snmp}</event_subscription>"
        assert (await send(world, "POST", path, text)).status_code == 409
        identifier = re.search(r'<event_subscription href="[^"]*" id="([^"]*)"', made.text)[1]
        assert (await send(world, "GET", f"{path}/{identifier}")).status_code == 200
        assert (
            await send(world, "DELETE", f"{path}/{identifier}", role="operator")
        ).status_code == 403
        assert (await send(world, "DELETE", f"{path}/{identifier}")).status_code == 200
        assert (await send(world, "GET", f"{path}/{identifier}")).status_code == 404
        assert (await world.ok("GET", "/v1/subscriptions"))["items"] == []

    play(story)
