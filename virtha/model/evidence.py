"""What witnesses can say. Every answer is three-valued: unknown is never success."""

from enum import StrEnum

from virtha.model.ids import StorageDomainId
from virtha.model.value import Value


class ProcessKind(StrEnum):
    """Which process of a host holds a session."""

    AGENT = "agent"
    GUARDIAN = "guardian"


class Answer(StrEnum):
    """A neighbour's probe of a host (J2)."""

    ALIVE = "alive"
    """Its guardian or agent gave an authenticated answer."""
    HINT = "hint"
    """Only its kernel answered (ping, an open port): never a vote."""
    SILENT = "silent"
    UNKNOWN = "unknown"
    """The probe could not be made."""


class PowerState(StrEnum):
    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"


class IdentityMatch(StrEnum):
    """Whether the power device names the host that it is configured for (system UUID or serial)."""

    MATCH = "match"
    MISMATCH = "mismatch"
    UNKNOWN = "unknown"
    """One of the two tells no identity."""


MANAGEMENT_NETWORK = "management"
STORAGE_NETWORK = "storage"


class ProbeAddress(Value, frozen=True, kw_only=True):
    """Where a host's guardian answers its neighbours on one network; its neighbours' questions come from the same kind of
    address of theirs."""

    network: str
    address: str
    """Of IPv4 or IPv6, never a name: to look one up may hang."""
    port: int


class WatchedDisk(Value, frozen=True, kw_only=True):
    """``path`` below the domain."""

    domain_id: StorageDomainId
    path: str
