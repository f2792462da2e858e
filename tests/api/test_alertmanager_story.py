"""From a host's word to a real Alertmanager: the real command line, a real server process, and an outage between them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from story import Story
from test_hindered_story import Place
from test_route_story import Mailbox, until

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from own_alertmanager import OwnAlertmanager

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root on the Unix socket needs root")


@pytest.fixture
def alertmanager() -> Iterator[OwnAlertmanager]:
    with OwnAlertmanager() as running:
        yield running


def names(alertmanager: OwnAlertmanager) -> list[str]:
    return [one["labels"]["alertname"] for one in alertmanager.active()]


def said(alertmanager: OwnAlertmanager) -> list[tuple[str, str]]:
    """What it told people in turn."""
    return [
        (alert["labels"]["alertname"], alert["status"])
        for note in alertmanager.told
        for alert in note["alerts"]
    ]


@pytest.mark.req("W7", "F4")
def test_what_a_host_tells_stands_there_until_it_is_over(
    story: Story, alertmanager: OwnAlertmanager
) -> None:
    place = Place(story, Mailbox())
    place.ok(
        *("receiver", "add", "alertmanager", "am1", "--url", alertmanager.url),
        "--private-addresses",
    )
    place.ok("route", "add", "am1", "--severity", "warning", "--solved", "--name", "alerts")
    crashed = place.of_vm("vm.crashed", cause="signal 9")
    until(lambda: names(alertmanager) == ["vm.crashed"])
    (alert,) = alertmanager.active()
    labels: dict[str, Any] = alert["labels"]
    assert (labels["vm"], labels["cluster"], labels["severity"]) == ("web1", "default", "error")
    assert labels["installation"]
    assert alert["annotations"]["summary"] == "QEMU of web1 died: signal 9"
    assert alert["annotations"]["event"] == str(crashed)
    until(lambda: place.fate(crashed, "alerts")["delivery_state"] == "sent")
    # It is away: that is told of it, and what happens meanwhile waits for it.
    alertmanager.stop()
    lost = place.of_host("host.libvirt.lost")
    until(lambda: story.events("notify.receiver_away") != [])
    (away,) = story.events("notify.receiver_away")
    assert away["fields"]["reason_code"] == "notify.unreachable"
    assert place.fate(lost, "alerts")["delivery_state"] != "sent"
    alertmanager.start()
    until(lambda: place.fate(lost, "alerts")["delivery_state"] == "sent")
    until(lambda: story.events("notify.receiver_back") != [])
    # What stood there before went with its process; the end of that is told all the same.
    assert names(alertmanager) == ["host.libvirt.lost"]
    place.of_vm("vm.restarted", took_ms="900")
    place.of_host("host.libvirt.back")
    until(lambda: names(alertmanager) == [])
    until(lambda: ("host.libvirt.lost", "resolved") in said(alertmanager))
    told = said(alertmanager)
    assert told[0] == ("vm.crashed", "firing")
    assert {name for name, _ in told} == {"vm.crashed", "host.libvirt.lost"}
