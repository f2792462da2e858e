"""The hosts as the use cases see them: implemented by the server's gateway."""

from typing import Protocol

from virtha.model.ids import BootId, HostId
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.model.value import Value


class LastBeat(Value, frozen=True, kw_only=True):
    """The newest beat of a host: what a grant quotes."""

    boot: BootId
    sequence: int
    monotonic_ms: int
    """The host's clock, when it sent the beat."""
    received_at: Millis
    """This server's monotonic clock, when it came in."""
    agent_alive: bool


class HostLinks(Protocol):
    """Sessions of hosts with this server. Nothing here waits for a host."""

    def agent_connected(self, host_id: HostId) -> bool: ...

    def has_session(self, host_id: HostId) -> bool:
        """Its agent or its guardian, which goes by the policy too."""
        ...

    def last_beat(self, host_id: HostId) -> LastBeat | None: ...

    def deliver(self, host_id: HostId, order: Order) -> bool:
        """Send an order. True: it is on its way, and may be lost with its session. False: no session now, and it is certain that
        it goes nowhere; the caller keeps it and sends it after hello."""
        ...

    def configure(self, host_id: HostId, settings: HostSettings) -> None:
        """Send settings if connected, and to its guardian what concerns it; a host that connects gets both anyway."""
        ...

    def disconnect(self, host_id: HostId, code: str) -> None:
        """Close the host's sessions: removed, revoked."""
        ...
