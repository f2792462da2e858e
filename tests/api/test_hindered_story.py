"""What a route keeps back, tells again, and doesn't tell twice: a real host's word, a real server process, a real mail server."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from free_port import free_port
from story import Story
from test_route_story import Mailbox, until

from virtha.model.facts import Happened
from virtha.model.ids import VmId

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root on the Unix socket needs root")


class Place:
    """The story's server with a mail receiver; its host tells what it is made to."""

    def __init__(self, story: Story, box: Mailbox) -> None:
        self.story = story
        self.box = box
        self.vm_id = VmId(json.loads(story.ok("vm", "show", "web1", "-o", "json"))["vm"]["id"])

    def ok(self, *words: str) -> str:
        return self.story.ok("notify", *words)

    def of_host(self, code: str) -> int:
        return self._tell(Happened(code=code))

    def of_vm(self, code: str, **fields: str) -> int:
        return self._tell(Happened(code=code, vm_id=self.vm_id, fields=fields))

    def _tell(self, body: Happened) -> int:
        """Returns the event's number."""
        host = self.story.host
        host.wait_acknowledged(host.tell(body))
        return max(int(one["revision"]) for one in self.story.events(body.code))

    def fate(self, event: int, route: str) -> dict[str, Any]:
        """Once it has one."""
        found: list[dict[str, Any]] = []

        def known() -> bool:
            routes = json.loads(self.ok("why", str(event), "-o", "json"))["routes"]
            found[:] = [one for one in routes if one["subscription"] == route and one["state"]]
            return bool(found)

        until(known)
        return found[0]

    def mails(self) -> list[tuple[str, str]]:
        """Code and kind of each."""
        return [(mail["X-Virtha-Code"], mail["X-Virtha-Kind"]) for mail in self.box.mails]

    def mailed(self, *wanted: tuple[str, str]) -> None:
        until(lambda: len(self.box.mails) >= len(wanted))
        assert self.mails() == [*wanted]


@contextmanager
def mailing(story: Story) -> Iterator[Place]:
    """``mail1`` is a mail server that takes all, until the end of the test."""
    box, port = Mailbox(), free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        made = Place(story, box)
        made.ok(
            *("receiver", "add", "mail", "mail1", "--host", "127.0.0.1", "--port", str(port)),
            *("--security", "none", "--sender", "virtha@example.org"),
        )
        yield made
        for one in json.loads(made.ok("inhibition", "list", "-o", "json")):
            made.ok("inhibition", "remove", one["inhibition"]["name"], "--yes")
        for one in json.loads(made.ok("route", "list", "-o", "json")):
            made.ok("route", "remove", one["subscription"]["name"], "--yes")
        made.ok("receiver", "remove", "mail1", "--yes")
    finally:
        controller.stop()


@pytest.fixture
def place(story: Story) -> Iterator[Place]:
    with mailing(story) as made:
        yield made


def text_of(mail: Any) -> str:
    (plain,) = [one for one in mail.walk() if one.get_content_type() == "text/plain"]
    return str(plain.get_payload(decode=True).decode())


LOST = ("host.libvirt.lost", "problem")
BACK = ("host.libvirt.back", "solved")


@pytest.mark.req("W7", "F4")
def test_a_rule_holds_back_and_is_named_a_repeat_comes_and_the_same_again_does_not(
    place: Place,
) -> None:
    place.ok(
        *("route", "add", "mail1", "--name", "calm", "--address", "ops@example.org", "--solved"),
        *("--code", "host.libvirt.lost", "--code", "vm.agent.lost"),  # their ends only as such
        *("--repeat", "1m", "--same-again", "10m"),
    )
    place.ok(
        *("inhibition", "add", "libvirt-down", "--same", "host"),
        *("--source", "host.libvirt.lost", "--target", "vm.agent.lost"),
    )
    source = place.of_host("host.libvirt.lost")
    place.mailed(LOST)
    assert place.fate(source, "calm")["state"] == "told"
    # The rule, by name, in words and as JSON.
    target = place.of_vm("vm.agent.lost")
    fate = place.fate(target, "calm")
    assert (fate["state"], fate["code"]) == ("parked", "notify.why.inhibited")
    assert "libvirt-down" in fate["by_text"]
    shown = place.ok("why", str(target))
    assert "calm" in shown and "parked" in shown and "libvirt-down" in shown
    # The same of the same host within its time: it is counted, and told by nobody.
    again = place.of_host("host.libvirt.lost")
    fate = place.fate(again, "calm")
    assert (fate["state"], fate["code"]) == ("spared", "notify.why.same_again")
    assert fate["by"] == str(source)
    # The repeat is of the problem that goes on, and says that it came again; what the rule holds back is not in it.
    place.mailed(LOST, LOST)
    first, repeat = place.box.mails
    assert "Times again:" not in text_of(first)
    assert re.search(r"^Times again: +1\s*$", text_of(repeat), re.MULTILINE), text_of(repeat)
    assert repeat["Subject"].endswith("Still: libvirt on h1 does not answer")
    assert first["X-Virtha-Event"] == repeat["X-Virtha-Event"] == str(source)
    assert first["X-Virtha-Delivery"] != repeat["X-Virtha-Delivery"]
    assert place.fate(again, "calm")["state"] == "spared"
    assert place.fate(target, "calm")["state"] == "parked"
    # It ends before its source: nobody hears of it, nor of its end.
    end = place.of_vm("vm.agent.connected")
    until(lambda: place.fate(target, "calm")["state"] == "spared")
    place.of_host("host.libvirt.back")
    place.mailed(LOST, LOST, BACK)
    assert place.fate(target, "calm")["code"] == "notify.why.solved_untold"
    assert place.fate(target, "calm")["delivery_id"] is None
    assert json.loads(place.ok("why", str(end), "-o", "json"))["routes"][0]["state"] is None
