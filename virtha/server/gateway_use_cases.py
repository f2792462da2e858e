"""What the gateway needs of ``virtha.control``."""

from collections.abc import Sequence
from typing import Protocol

from virtha.control.views import GuardianAnswer, HelloAnswer
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, Term


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
    async def record_facts(
        self, host_id: HostId, carried_by: BootId, facts: Sequence[Fact]
    ) -> int: ...


class GatewayUseCases(Protocol):
    """The part of ``virtha.control.Control`` that the gateway needs."""

    @property
    def hosts(self) -> HostUseCases: ...

    @property
    def facts(self) -> FactUseCases: ...
