"""Mail from a real server process to a real mail server: through an outage and a kill, nothing is lost."""

import os
import socket
import time
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from server_process import Server, initialise, serving

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root on the Unix socket needs root")
WAIT_S = 60.0


class Mailbox:
    """Keeps what is accepted."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"

    def codes(self) -> list[str]:
        return [mail["X-Virtha-Code"] for mail in self.mails]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


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
def test_an_outage_and_a_kill_lose_no_mail(tmp_path: Path) -> None:
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
        hold(server, *range(5))
        until(lambda: _away(server))
        told = ask(server, "GET", "/v1/receivers/mail1")
        assert told["deliveries"] == {"pending": 5}
        assert told["status"]["code"] == "notify.unreachable"
        server.process.kill()
        server.process.wait()
    with serving(tmp_path) as server:
        hold(server, 5, 6)
        controller = Controller(box, hostname="127.0.0.1", port=port)
        controller.start()
        try:
            until(lambda: len(box.mails) == 7)
            until(lambda: ask(server, "GET", "/v1/receivers/mail1")["deliveries"] == {"sent": 7})
            test = ask(server, "POST", "/v1/receivers/mail1/test", {"address": "me@example.org"})
            assert test["outcome"] == "accepted"
            assert not _away(server)
            events = ask(server, "GET", "/v1/events?code=notify.receiver_*&order=asc")["items"]
        finally:
            controller.stop()
    assert [event["code"] for event in events] == ["notify.receiver_away", "notify.receiver_back"]
    assert box.codes() == ["hold.set"] * 7 + ["notify.test_asked"]
    assert len({mail["Message-ID"] for mail in box.mails}) == 8, "each once"
    subjects = [mail["Subject"] for mail in box.mails[:7]]
    assert [f"reason {number}" in subject for number, subject in enumerate(subjects)] == [True] * 7


def _away(server: Server) -> bool:
    return ask(server, "GET", "/v1/receivers/mail1")["status"]["away_since"] is not None
