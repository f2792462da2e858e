"""From a real server process to real receivers: through outages and kills, nothing is lost."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from email import message_from_bytes
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from free_port import free_port
from server_process import Server, environment, initialise, serving

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from own_trap_daemon import OwnTrapDaemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root on the Unix socket needs root")
WAIT_S = 60.0
OUTAGE_S = float(os.environ.get("VIRTHA_OUTAGE_S", "4"))
"""How long the receivers are away in the long story: 300 in `make verify`."""

QUEUE = 100_000 if os.environ.get("VIRTHA_WHOLE_QUEUE") else 10_000


class Mailbox:
    """Keeps what is accepted."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.at: dict[int, Callable[[], None]] = {}
        """What happens with the mail of that number, accepted and not yet answered."""

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content))
        self.at.pop(len(self.mails), lambda: None)()
        return "250 OK"

    def codes(self) -> list[str]:
        return [mail["X-Virtha-Code"] for mail in self.mails]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    with server.local() as client:
        answer = client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None


def hold(server: Server, *numbers: int) -> None:
    for number in numbers:
        ask(server, "PUT", "/v1/hold", {"reason": f"reason {number}"})


@pytest.mark.req("W7", "F4")
@pytest.mark.bad_input("queue of 100,000 messages", story=True)
def test_an_outage_and_a_kill_lose_no_mail(tmp_path: Path) -> None:
    """Beside another receiver for which ``QUEUE`` messages wait, and which never comes."""
    initialise(tmp_path)
    port, box = free_port(), Mailbox()
    with serving(tmp_path) as server:
        settings = {
            "type": "mail",
            "host": "127.0.0.1",
            "port": port,
            "security": "none",
            "sender": "virtha@example.org",
        }
        ask(server, "POST", "/v1/receivers", {"name": "mail1", "settings": settings})
        wanted = {"receiver": "mail1", "address": "ops@example.org", "codes": ["hold.set"]}
        ask(server, "POST", "/v1/subscriptions", wanted)
        nobody = f"http://127.0.0.1:{free_port()}/"
        hook = {"type": "webhook", "url": nobody, "private_addresses": True}
        ask(server, "POST", "/v1/receivers", {"name": "hook1", "settings": hook})
        ask(server, "POST", "/v1/subscriptions", {"receiver": "hook1", "codes": ["hold.set"]})
        hold(server, *range(5))
        until(lambda: _away(server) and _away(server, "hook1"))
        until(lambda: _pending(server) == 5 and _pending(server, "hook1") == 5)
        view = ask(server, "GET", "/v1/receivers/mail1")
        assert view["deliveries"] == {"pending": 5}
        assert view["status"]["code"] == "notify.unreachable"
        kill(server)
    lengthen(tmp_path / "var/lib/virtha/server/virtha.db", "hook1")
    with serving(tmp_path) as server:
        hold(server, 5, 6)
        until(lambda: _pending(server, "hook1") == QUEUE + 2)
        page = ask(server, "GET", "/v1/deliveries?receiver=hook1&state=pending&limit=2")
        assert len(page["items"]) == 2 and page["next"]
        controller = Controller(box, hostname="127.0.0.1", port=port)
        controller.start()
        try:
            until(lambda: len(box.mails) == 7)
            until(lambda: ask(server, "GET", "/v1/receivers/mail1")["deliveries"] == {"sent": 7})
            test = ask(server, "POST", "/v1/receivers/mail1/test", {"address": "me@example.org"})
            assert test["outcome"] == "accepted"
            assert not _away(server)
            events = ask(server, "GET", "/v1/events?code=notify.receiver_*&order=asc")["items"]
            assert _pending(server, "hook1") == QUEUE + 2, "none was given up"
        finally:
            controller.stop()
    told = [event["code"] for event in events if event["fields"]["receiver"] == "mail1"]
    assert told == ["notify.receiver_away", "notify.receiver_back"]
    assert box.codes() == ["hold.set"] * 7 + ["notify.test_asked"]
    assert len({mail["Message-ID"] for mail in box.mails}) == 8, "each once"
    subjects = [mail["Subject"] for mail in box.mails[:7]]
    assert [f"reason {number}" in subject for number, subject in enumerate(subjects)] == [True] * 7


@pytest.mark.req("W7")
@pytest.mark.bad_input("two edits at once", story=True)
def test_two_who_change_a_receiver_at_once_undo_nothing_of_each_other(tmp_path: Path) -> None:
    """Two commands in two processes: what each said was done is there, and who came too late is told."""
    initialise(tmp_path)
    with serving(tmp_path) as server:
        settings = {"type": "mail", "host": "127.0.0.1", "security": "none"}
        settings["sender"] = "virtha@example.org"
        ask(server, "POST", "/v1/receivers", {"name": "mail1", "settings": settings})
        set_receiver = [
            sys.executable,
            "-m",
            "virtha.cli.main",
            *["notify", "receiver", "set", "mail1"],
        ]
        for number in range(1, 6):
            changes = {"port": number, "sender": f"v{number}@example.org"}
            both = {
                field: subprocess.Popen(
                    [*set_receiver, f"--{field}", str(value), "--root", str(tmp_path)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment(),
                )
                for field, value in changes.items()
            }
            for field, process in both.items():
                _, error = process.communicate(timeout=WAIT_S)
                if process.returncode == 0:
                    settings[field] = changes[field]
                else:
                    assert process.returncode == 1 and "problem.stale" in error
            present = ask(server, "GET", "/v1/receivers/mail1")["receiver"]["settings"]
            assert {field: present[field] for field in settings} == settings


def lengthen(database: Path, receiver: str) -> None:
    """To ``QUEUE`` messages, as if so much had happened: while no server runs."""
    with contextlib.closing(sqlite3.connect(database)) as base, base:
        (of,) = base.execute("SELECT id FROM receiver WHERE name=?", (receiver,)).fetchone()
        names = [row[1] for row in base.execute("PRAGMA table_info(delivery)")]
        kept = ", ".join("q.n" if name == "number" else name for name in names if name != "id")
        first = "SELECT max(number) FROM delivery"
        base.execute(
            f"WITH RECURSIVE q(n) AS (SELECT ({first}) + 1 UNION ALL SELECT n + 1 FROM q WHERE n < ({first}) + ?) "
            f"INSERT INTO delivery (id, {', '.join(name for name in names if name != 'id')}) "
            f"SELECT 'q' || q.n, {kept} FROM q, (SELECT * FROM delivery WHERE receiver_id=? LIMIT 1)",
            (QUEUE - 5, of),
        )
        base.execute("UPDATE delivery_count SET count=? WHERE receiver_id=?", (QUEUE, of))


def _pending(server: Server, receiver: str = "mail1") -> int:
    return int(ask(server, "GET", f"/v1/receivers/{receiver}")["deliveries"].get("pending", 0))


@pytest.mark.req("W7", "F4")
@pytest.mark.timeout(OUTAGE_S + 180)
def test_receivers_down_together_and_the_server_killed_twice_meanwhile(tmp_path: Path) -> None:
    """A mail server and an SNMP manager are down for ``OUTAGE_S``. The server is killed halfway, and again when a mail
    of the backlog was accepted but not yet written down. All arrives at both, in order; twice only what was in flight.
    """
    initialise(tmp_path)
    box, port = Mailbox(), free_port()
    manager = OwnTrapDaemon({})
    with serving(tmp_path) as server:
        _subscribe_both(server, port, manager.port)
        hold_and_wait(server, 0, 1, 2, 3)
        until(lambda: _away(server) and _away(server, "nms"))
        # From here on nobody is taken for silent who is only slow, as whoever shares a busy machine is.
        _attempts_may_take(server, "120s")
        kill(server)
    with serving(tmp_path) as server:
        hold_and_wait(server, 4, 5, 6, 7)
        box.at[4] = lambda: kill(server)
        controller = Controller(box, hostname="127.0.0.1", port=port)
        controller.start()
        manager.start()
        try:
            until(lambda: not box.at)
            server.process.wait()
            with serving(tmp_path) as again:
                hold(again, 8)
                for name in ("mail1", "nms"):
                    until(lambda name=name: _all_sent(again, name, 9))
                away = ask(again, "GET", "/v1/events?code=notify.receiver_*&order=asc")["items"]
            notices = manager.notices()
        finally:
            controller.stop()
            manager.__exit__()
    for name in ("mail1", "nms"):
        codes = [event["code"] for event in away if event["fields"]["receiver"] == name]
        # Once each, unless the machine has so much else to do that the deadline passes without an outage, too.
        assert codes == ["notify.receiver_away", "notify.receiver_back"] * (len(codes) // 2)
        assert codes
    mails = [(mail["Subject"].rsplit(" ", 1)[1], mail["Message-ID"]) for mail in box.mails]
    expected = [str(number) for number in range(9)]
    assert [number for number, _ in without_repeats(mails)] == expected
    assert len(mails) == 10 and mails[3] == mails[4], "only what was in flight, once more"
    told = [(one["virthaMessage"].rsplit(" ", 1)[1], one["virthaNoticeId"]) for one in notices]
    assert [number for number, _ in without_repeats(told)] == expected
    assert len(set(told)) == len(expected), "said again, it is the same notice"
    assert len(told) <= 10, "only what was in flight, once more"


def hold_and_wait(server: Server, *numbers: int) -> None:
    """Half of the outage, with events all the time."""
    for number in numbers:
        hold(server, number)
        time.sleep(OUTAGE_S / 2 / len(numbers))  # of a server's own process, by its own clock


def _subscribe_both(server: Server, mail_port: int, snmp_port: int) -> None:
    # A manager that is down says nothing: the deadline is how long that takes to be seen.
    _attempts_may_take(server, "3s")
    mail = {"type": "mail", "host": "127.0.0.1", "port": mail_port, "security": "none"}
    mail["sender"] = "virtha@example.org"
    snmp = {"type": "snmp", "host": "127.0.0.1", "port": snmp_port, "version": "2c"}
    ask(server, "POST", "/v1/receivers", {"name": "mail1", "settings": mail})
    secrets = {"community": "public"}
    ask(server, "POST", "/v1/receivers", {"name": "nms", "settings": snmp, "secrets": secrets})
    for receiver, address in (("mail1", "ops@example.org"), ("nms", None)):
        wanted = {"receiver": receiver, "codes": ["hold.set"]}
        ask(
            server,
            "POST",
            "/v1/subscriptions",
            {**wanted, **({"address": address} if address else {})},
        )


def _attempts_may_take(server: Server, most: str) -> None:
    ask(server, "PUT", "/v1/settings/notification.deadline", {"value": most})


def without_repeats(told: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What follows itself under the same id, once."""
    return [one for one, _ in groupby(told)]


def kill(server: Server) -> None:
    server.process.kill()
    server.process.wait()


def _all_sent(server: Server, receiver: str, count: int) -> bool:
    return bool(ask(server, "GET", f"/v1/receivers/{receiver}")["deliveries"] == {"sent": count})


def _away(server: Server, receiver: str = "mail1") -> bool:
    view = ask(server, "GET", f"/v1/receivers/{receiver}")
    return view["status"]["away_since"] is not None
