"""Two sessions, and the values they exchange, without any transport."""

from collections.abc import Sequence
from typing import Any

from virtha.model.facts import Fact, Happened
from virtha.model.ids import BootId, HostId, InstallationId, Term
from virtha.model.time import Millis
from virtha.wire.host_session import HostSession, OutboxView
from virtha.wire.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Beat,
    Hello,
    Message,
    PeerRole,
    Welcome,
)
from virtha.wire.server_session import ServerSession

INSTALLATION = InstallationId("installation-1")
HOST = HostId("host-1")
BOOT = BootId("boot-1")


def make_hello(role: PeerRole = PeerRole.AGENT, **changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "version_major": VERSION_MAJOR,
        "version_minor": VERSION_MINOR,
        "role": role,
        "host_id": HOST,
        "boot": BOOT,
    }
    return Hello(**{**fields, **changes})


def make_welcome(**changes: Any) -> Welcome:
    fields: dict[str, Any] = {
        "version_major": VERSION_MAJOR,
        "version_minor": VERSION_MINOR,
        "installation_id": INSTALLATION,
        "server_instance": "instance-1",
        "term": Term(3),
        "silence_ms": 5_000,
    }
    return Welcome(**{**fields, **changes})


def make_beat(sequence: int, boot: BootId = BOOT) -> Beat:
    return Beat(
        sequence=sequence, boot=boot, monotonic_ms=sequence, inventory_revision=1, agent_alive=True
    )


def make_fact(sequence: int, text: str = "x") -> Fact:
    return Fact(
        sequence=sequence,
        boot=BOOT,
        monotonic_ms=sequence,
        wall_ms=sequence,
        body=Happened(code="host.libvirt.lost", fields={"name": text}),
    )


class ListOutbox:
    def __init__(self, facts: Sequence[Fact] = ()) -> None:
        self.facts = list(facts)

    @property
    def last_sequence(self) -> int:
        return self.facts[-1].sequence if self.facts else 0

    def facts_after(self, sequence: int, limit: int) -> Sequence[Fact]:
        return [fact for fact in self.facts if fact.sequence > sequence][:limit]


def make_host(
    role: PeerRole = PeerRole.AGENT,
    *,
    outbox: OutboxView | None = None,
    hello: Hello | None = None,
    live_instance: str | None = None,
) -> HostSession:
    return HostSession(
        hello or make_hello(role),
        installation_id=INSTALLATION,
        now=Millis(0),
        outbox=outbox if role is PeerRole.AGENT else None,
        live_instance=live_instance,
    )


class Pair:
    """A host and a server session joined by a line without delay."""

    def __init__(
        self,
        role: PeerRole = PeerRole.AGENT,
        *,
        outbox: OutboxView | None = None,
        welcome: Welcome | None = None,
        hello: Hello | None = None,
    ) -> None:
        self.now = Millis(0)
        self.host = make_host(role, outbox=outbox or ListOutbox(), hello=hello)
        self.server = ServerSession(HOST, now=self.now)
        self.at_server: list[Message] = []
        self.at_host: list[Message] = []
        self.move()
        if self.server.hello is not None:
            self.server.welcome(welcome or make_welcome(), self.now)
            self.move()

    def move(self) -> None:
        """Carry bytes to and fro until there are none."""
        while True:
            up = self.host.data_to_send()
            down = self.server.data_to_send()
            if not up and not down:
                return
            self.at_server.extend(self.server.receive_data(up, self.now))
            self.at_host.extend(self.host.receive_data(down, self.now))
