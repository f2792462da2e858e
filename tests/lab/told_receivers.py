"""Real receivers inside a lab, for those who are told: aiosmtpd for mail, net-snmp's snmptrapd for SNMP.

Both listen on the loopback of the lab's server, which nothing outside its network namespace reaches. Each keeps what
came with the moment when it did, by the machine's monotonic clock.
"""

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from pathlib import Path
from typing import Any, cast

from aiosmtpd.smtp import SMTP

from virtha.lab.lab import Lab
from virtha.lab.namespaces import enter_network
from virtha.lab.story import Story
from virtha.lab.watching import Witness

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from own_trap_daemon import AUTHENTICATION_PASSWORD, PRIVACY_PASSWORD, OwnTrapDaemon

SNMP_USER = "virtha"
LOOK_S = 0.002


@dataclass(frozen=True)
class ToldMail:
    at_s: float
    mail: EmailMessage

    def __repr__(self) -> str:
        """For who waits in vain: what came instead."""
        named = ("To", "Subject", "X-Virtha-Code", "X-Virtha-Kind", "X-Virtha-Event")
        return f"<{self.at_s:.1f} s {' | '.join(str(self.mail[one]) for one in named)}>"


@dataclass(frozen=True)
class ToldTrap:
    at_s: float
    objects: dict[str, str]


async def _end(connections: set[asyncio.Task[Any]]) -> None:
    for task in connections:
        task.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    await asyncio.sleep(0)  # what they closed is told of its end in the loop's next turn


class MailWitness(Witness[ToldMail]):
    """A mail server that accepts all. A context manager; its port stays the same when it is entered again."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._namespace = lab.server.namespace
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "MailWitness":
        listener = _listener(self._namespace, self.port)
        self.port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(listener, ready), name="mail-server", daemon=True
        )
        self._thread.start()
        assert ready.wait(60.0), "the mail server does not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60.0)

    def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.new_event_loop()
        server = self._loop.run_until_complete(
            self._loop.create_server(
                lambda: SMTP(self, hostname="mail.test", loop=self._loop), sock=listener
            )
        )
        ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(_end(asyncio.all_tasks(self._loop)))
        self._loop.close()

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=default_policy)
        self.add(ToldMail(time.monotonic(), cast(EmailMessage, mail)))
        return "250 OK"

    def wait_for(self, code: str, *, after: int = 0, timeout_s: float) -> ToldMail:
        return self.wait(
            lambda told: told.mail["X-Virtha-Code"] == code,
            f"a mail of {code}",
            after=after,
            timeout_s=timeout_s,
        )


class TrapWitness(Witness[ToldTrap]):
    """An SNMP manager with our MIB, version 3 with keys. A context manager."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._daemon = OwnTrapDaemon(
            {SNMP_USER: ("SHA-256", "AES")},
            within=("nsenter", f"--net=/run/netns/{lab.server.namespace}"),
        )
        self.port = self._daemon.port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="trap-daemon", daemon=True)

    def __enter__(self) -> "TrapWitness":
        self._daemon.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(60.0)
        self._daemon.__exit__(*error)

    def stop(self) -> None:
        self._daemon.stop()

    def start(self) -> None:
        self._daemon.start()

    def _follow(self) -> None:
        known = 0
        while not self._stopping.wait(LOOK_S):
            notices = self._daemon.notices()
            now = time.monotonic()
            for notice in notices[known:]:
                self.add(ToldTrap(now, notice))
            known = len(notices)

    def wait_for(self, code: str, *, after: int = 0, timeout_s: float) -> ToldTrap:
        return self.wait(
            lambda told: told.objects["virthaCode"] == code,
            f"a notification of {code}",
            after=after,
            timeout_s=timeout_s,
        )


def _listener(namespace: str, port: int) -> socket.socket:
    """A socket that listens on the namespace's loopback. Made in a thread that ends: only that one moved there."""
    made: list[socket.socket] = []

    def make() -> None:
        enter_network(namespace)
        made.append(socket.create_server(("127.0.0.1", port), backlog=16))

    thread = threading.Thread(target=make, name="listener")
    thread.start()
    thread.join(60.0)
    assert made, f"no listener in {namespace}"
    return made[0]


def add_mail_receiver(story: Story, mails: MailWitness) -> None:
    """As an administrator does it, on the command line."""
    story.lab.virtha(
        *("notify", "receiver", "add", "mail", "mail1", "--host", "127.0.0.1"),
        *("--port", str(mails.port), "--security", "none", "--sender", "virtha@example.org"),
    )


def add_receivers(story: Story, mails: MailWitness, traps: TrapWitness) -> None:
    """On the command line where no secret is asked for."""
    add_mail_receiver(story, mails)
    settings = {
        "type": "snmp",
        "host": "127.0.0.1",
        "port": traps.port,
        "user": SNMP_USER,
    }
    secrets = {
        "authentication_password": AUTHENTICATION_PASSWORD,
        "privacy_password": PRIVACY_PASSWORD,
    }
    story.api.post("/v1/receivers", {"name": "nms", "settings": settings, "secrets": secrets})


@contextlib.contextmanager
def told(story: Story, *codes: str) -> Iterator[tuple[MailWitness, TrapWitness]]:
    """Receivers that are subscribed to these codes; gone from lab and server afterwards."""
    with MailWitness(story.lab) as mails, TrapWitness(story.lab) as traps:
        add_receivers(story, mails, traps)
        wanted = [word for code in codes for word in ("--code", code)]
        story.lab.virtha("notify", "subscribe", "mail1", "--address", "ops@example.org", *wanted)
        story.lab.virtha("notify", "subscribe", "nms", *wanted)
        try:
            yield mails, traps
        finally:
            forget_receivers(story, "mail1", "nms")


def forget_receivers(story: Story, *names: str) -> None:
    """With all that was sent to them."""
    for one in story.api.get("/v1/subscriptions")["items"]:
        story.api.request("DELETE", f"/v1/subscriptions/{one['subscription']['name']}")
    for name in names:
        story.api.request("DELETE", f"/v1/receivers/{name}")
