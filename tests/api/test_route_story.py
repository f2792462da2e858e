"""Routes as people use them: the real command line, a real server process, a real mail server; and what they get wrong."""

import json
import os
import time
from collections.abc import Callable, Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from free_port import free_port
from server_process import Done, Server, command, initialise, serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root on the Unix socket needs root")
WAIT_S = 90.0


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"


class Place:
    """A server with a mail receiver, and the commands of an operator."""

    def __init__(self, root: Path, server: Server, box: Mailbox) -> None:
        self.root = root
        self.server = server
        self.box = box

    def run(self, *words: str) -> Done:
        return command("notify", *words, "--root", str(self.root))

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def hold(self, reason: str | None) -> int:
        """Sets or lifts it. Returns the event's number."""
        with self.server.local() as client:
            if reason is None:
                answer = client.request("DELETE", "/v1/hold")
            else:
                answer = client.request("PUT", "/v1/hold", json={"reason": reason})
            assert answer.status_code < 300, answer.text
            found = client.get("/v1/events?code=hold.*&limit=1").json()["items"]
        return int(found[0]["revision"])

    def fate(self, event: int, route: str) -> dict[str, Any]:
        routes = json.loads(self.ok("why", str(event), "-o", "json"))["routes"]
        (found,) = [one for one in routes if one["subscription"] == route]
        return dict(found)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    initialise(tmp_path)
    box, port = Mailbox(), free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port)
    controller.start()
    try:
        with serving(tmp_path) as server:
            made = Place(tmp_path, server, box)
            made.ok(
                *("receiver", "add", "mail", "mail1", "--host", "127.0.0.1", "--port", str(port)),
                *("--security", "none", "--sender", "virtha@example.org"),
            )
            yield made
    finally:
        controller.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


TO_OPS = ("--address", "ops@example.org")


@pytest.mark.req("W7", "F4", "X1")
def test_grouped_silenced_and_explained(place: Place) -> None:
    place.ok(
        *("route", "add", "mail1", *TO_OPS, "--name", "calm", "--code", "hold.*"),
        *("--group", "cause", "--group-wait", "1s"),
    )
    first = place.hold("first")
    second = place.hold("second")
    until(lambda: len(place.box.mails) == 1)
    (mail,) = place.box.mails
    assert "(and 1 more event)" in mail["Subject"] and mail["X-Virtha-Kind"] == "problem"
    until(lambda: place.fate(first, "calm")["delivery_state"] == "sent")
    assert place.fate(second, "calm")["code"] == "notify.why.told"
    lifted = place.hold(None)
    until(lambda: len(place.box.mails) == 2)
    assert place.box.mails[1]["X-Virtha-Kind"] == "solved"
    assert place.box.mails[1]["References"] == mail["References"], "one thread"
    assert place.fate(lifted, "calm")["state"] == "told"
    place.ok("silence", "add", "maintenance", "--for", "2h", "--code", "hold.*")
    silenced = place.hold("third")
    until(lambda: place.fate(silenced, "calm")["state"] == "parked")
    assert place.fate(silenced, "calm")["by_text"].endswith(": maintenance")
    shown = place.ok("why", str(silenced))
    assert "calm" in shown and "a silence fits" in shown and "maintenance" in shown
    ident = json.loads(place.ok("silence", "list", "-o", "json"))[0]["silence"]["id"]
    place.ok("silence", "end", ident)
    until(lambda: len(place.box.mails) == 3)
    assert "third" in place.box.mails[2]["Subject"]
    assert "maintenance" in place.ok("silence", "list", "--ended")
    shown = place.ok("route", "show", "calm")
    assert "grouped by" in shown and "1s" in shown


def add(*words: str) -> tuple[str, ...]:
    return ("route", "add", "mail1", *TO_OPS, *words)


def inhibit(source: str, target: str) -> tuple[str, ...]:
    return ("inhibition", "add", "again", "--source", source, "--target", target)


def silence(*words: str) -> tuple[str, ...]:
    return ("silence", "add", "work", *words)


PAST = "2020-01-01T00:00:00Z"
WRONG: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (add("--code", "vm.watchdgo.*"), ("did you mean vm.watchdog.*",)),
    (add("--label", "domian=ds1"), ("labels.domian", "did you mean domain?")),
    (add("--label", "domain"), ("--label", "FIELD=VALUE")),
    (add("--group-wait", "5s"), ("group_wait", "--group cause")),
    (add("--repeat", "1s"), ("repeat", "1m to 30d")),
    (add("--repeat", "often"), ("--repeat", "not a duration")),
    (add("--quiet-hours", "night"), ("--quiet-hours", "22:00-07:00")),
    (add("--quiet-hours", "mun 22:00-07:00"), ("--quiet-hours", "mon")),
    (add("--quiet-hours", "22:00-07:00 Mars/Base"), ("quiet[0].zone", "Europe/Berlin")),
    (add("--quiet-hours", "00:00-24:00"), ("quiet", "cover the whole week")),
    (silence(), ("--for", "--until")),
    (silence("--for", "1h"), ("matcher", "names nothing")),
    (silence("--code", "vm.*", "--until", PAST), ("ends", "give a later end")),
    (
        silence(
            "--code", "vm.*", "--begins", "2100-01-02T00:00:00Z", "--until", "2100-01-01T00:00:00Z"
        ),
        ("ends", "give a later end"),
    ),
    (silence("--code", "vm.*", "--for", "365d"), ("at most 30d",)),
    (silence("--code", "vm.*", "--for", "1h", "--label", "vn=web1"), ("labels.vn",)),
    (inhibit("vm.agent.lost", "host.unreachable"), ("→", "(by again, down)")),
    (inhibit("vm.crashed", "vm.*"), ("→",)),
    (inhibit("vm.watchdog.fired", "vm.agent.lost"), ("source.codes", "would never inhibit")),
    (inhibit("host.unreachable", "vm.quarantined"), ("target.codes", "would never inhibit")),
]


@pytest.mark.bad_input("a route that matches nothing, or everything", story=True)
@pytest.mark.bad_input("options of a route that can't be", story=True)
@pytest.mark.bad_input("quiet hours that leave no time", story=True)
@pytest.mark.bad_input("a silence that ends before it begins", story=True)
@pytest.mark.bad_input("a cycle of inhibitions", story=True)
@pytest.mark.bad_input("an unknown label, with near words", story=True)
def test_what_is_wrong_is_told_and_changes_nothing(place: Place) -> None:
    place.ok(
        "inhibition", "add", "down", "--source", "host.unreachable", "--target", "vm.agent.lost"
    )
    for words, says in WRONG:
        done = place.run(*words)
        assert done.returncode == 2, (words, done)
        for text in says:
            assert text in done.stderr, (words, done.stderr)
    assert json.loads(place.ok("route", "list", "-o", "json")) == []
    assert json.loads(place.ok("silence", "list", "--ended", "-o", "json")) == []
    assert len(json.loads(place.ok("inhibition", "list", "-o", "json"))) == 1
    assert place.run("silence", "show", "nobody").returncode == 3
    assert place.run("why", "999999").returncode == 3
    # No error, but told with its weight.
    everything = place.run(*add("--severity", "info"))
    assert everything.returncode == 0 and "it matches every event" in everything.stderr
    nothing = place.run(*add("--code", "vm.quarantined"))
    assert nothing.returncode == 0 and "none of the last" in nothing.stderr
