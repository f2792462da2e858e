"""What witnesses can say. Every answer is three-valued: unknown is never success."""

from enum import StrEnum


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
