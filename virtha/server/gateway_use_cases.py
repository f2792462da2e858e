"""What the gateway needs of ``virtha.control``, and whom it tells of every sign."""

from collections.abc import Sequence
from typing import Protocol

from virtha.control.views import GuardianAnswer, HelloAnswer
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, Term
from virtha.server.lease_desk import LeaseLines
from virtha.server.witness_desk import WitnessLines
from virtha.wire.lease_messages import LeaseAnswer
from virtha.wire.messages import Beat, PeerRole
from virtha.wire.witness_messages import WitnessAnswer


class HostUseCases(Protocol):
    async def hello(
        self,
        host_id: HostId,
        *,
        boot: BootId,
        certificate_serial: str,
        term_elsewhere: Term,
        fact_sequence_last: int,
    ) -> HelloAnswer: ...

    async def guardian_hello(self, host_id: HostId, *, term_elsewhere: Term) -> GuardianAnswer: ...

    async def certificate_allowed(self, host_id: HostId, serial: str) -> bool: ...

    async def agent_lost(self, host_id: HostId) -> None: ...


class FactUseCases(Protocol):
    async def record_facts(self, host_id: HostId, facts: Sequence[Fact]) -> int: ...


class GatewayUseCases(Protocol):
    """The part of ``virtha.control.Control`` that the gateway needs."""

    @property
    def hosts(self) -> HostUseCases: ...

    @property
    def facts(self) -> FactUseCases: ...


class WatchedGateway(LeaseLines, WitnessLines, Protocol):
    """The gateway as the engines see it."""

    watcher: "HostWatcher | None"

    def sessions(self, host_id: HostId) -> tuple[tuple[PeerRole, BootId], ...]: ...

    def acknowledge(self, host_id: HostId, sequence: int) -> None: ...

    def begin_anew(self, instance: str) -> None: ...


class HostWatcher(Protocol):
    """Who is told of every sign of a host, beside the use cases: the engines. Only ``facts`` may take its time."""

    def beat(self, host_id: HostId, beat: Beat) -> None: ...

    def session(
        self, host_id: HostId, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None:
        """``broken``: the connection was seen to break, rather than to fall silent or to be ended."""
        ...

    def lease(self, host_id: HostId, answer: LeaseAnswer) -> None:
        """Of its guardian: a round that it read, or that it keeps a lease again."""
        ...

    def witness(self, host_id: HostId, answer: WitnessAnswer) -> None:
        """What it found out about another host."""
        ...

    async def facts(
        self, host_id: HostId, boot: BootId, facts: Sequence[Fact], recorded: int
    ) -> None:
        """They are recorded up to ``recorded``; some perhaps before. ``Gateway.acknowledge`` follows when the host may forget
        them. Never raises."""
        ...
