"""Messages between a host (its agent, its guardian) and the server.

Each is a tagged struct in msgpack behind a 4-byte big-endian length. Unknown fields are ignored;
an unknown message is refused with `wire.refused.message`. What this version sends is frozen, byte
by byte, under ``tests/wire/v1/``.
"""

from enum import StrEnum

from virtha.model.console import ChannelSubject
from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId, InstallationId, Term
from virtha.model.orders import HostSettings, Order
from virtha.model.value import Value
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseKept,
    ReadSlots,
    SlotsRead,
    StopReading,
    WaiveLease,
)
from virtha.wire.power_messages import AttemptPower, EndPowerAttempt, PowerAttempted
from virtha.wire.witness_messages import DisksLooked, HostProbed, LookAtDisks, ProbeHost

VERSION_MAJOR = 1
VERSION_MINOR = 0
FRAME_BYTES_MAX = 1 << 20
"""1 MiB: an inventory of 2,000 domains is 300 KB."""
CHANNEL_FEATURE = "channels"
"""In a host's hello: it can open channels. A host without it would refuse to be asked."""
PACE_FEATURE = "pace"
"""In a host's hello: it takes ``Pace``. A host without it goes by its welcome until its session ends."""
CHANNEL_PROTOCOL = "virtha-channel/1"
"""By ALPN: this connection is a channel, not a session."""
CHANNEL_WINDOW_BYTES = 256 * 1024
"""So much may be under way in each direction; the receiver's credit says how much of it was taken."""
CHANNEL_DATA_BYTES_MAX = 32 * 1024
FACTS_PER_FRAME_MAX = 256
FACTS_UNACKNOWLEDGED_MAX = 4_096


class PeerRole(StrEnum):
    AGENT = "agent"
    GUARDIAN = "guardian"


class Hello(Value, frozen=True, kw_only=True, tag="hello"):
    """The host's first message. ``fact_sequence_last``: the last fact it ever wrote (0: none)."""

    version_major: int
    version_minor: int
    features: tuple[str, ...] = ()
    role: PeerRole
    host_id: HostId
    boot: BootId
    term_seen: Term = Term(0)
    fact_sequence_last: int = 0
    settings_revision: int = 0
    program_version: str = ""


class Welcome(Value, frozen=True, kw_only=True, tag="welcome"):
    """The server's answer. ``fact_sequence_acknowledged``: resume after this one.

    ``server_instance`` is made at each server start; a host refuses a second live one (M1).
    """

    version_major: int
    version_minor: int
    features: tuple[str, ...] = ()
    installation_id: InstallationId
    server_instance: str
    term: Term
    fact_sequence_acknowledged: int = 0
    beat_interval_ms: int = 1_000
    silence_ms: int = 5_000
    """Nothing heard for that long: the peer is dead, close (either side)."""
    server_wall_ms: int = 0


class Pace(Value, frozen=True, kw_only=True, tag="pace"):
    """From the server, to either process: in place of those of the welcome from now on, for the cluster's policy has
    changed. A guardian that went on at the old pace would be late by the new policy with every beat."""

    beat_interval_ms: int
    silence_ms: int


class Refuse(Value, frozen=True, kw_only=True, tag="refuse"):
    """Said before closing. ``code`` is of the registry (`wire.refused.…`)."""

    code: str
    message: str = ""
    field: str | None = None


class Beat(Value, frozen=True, kw_only=True, tag="beat"):
    """The guardian's heartbeat; no VM list. ``agent_alive``: the agent's pulse is fresh."""

    sequence: int
    boot: BootId
    monotonic_ms: int
    inventory_revision: int
    agent_alive: bool
    wall_ms: int = 0


class BeatAck(Value, frozen=True, kw_only=True, tag="beat_ack"):
    sequence: int


class Facts(Value, frozen=True, kw_only=True, tag="facts"):
    """Consecutive facts, oldest first. ``gap``: those between the last frame and this one are lost for
    good (a damaged outbox); without it a gap is refused."""

    facts: tuple[Fact, ...]
    gap: bool = False


class FactsAck(Value, frozen=True, kw_only=True, tag="facts_ack"):
    """The server has committed all facts up to and including this one."""

    sequence: int


class Settings(Value, frozen=True, kw_only=True, tag="settings"):
    settings: HostSettings


class GiveOrder(Value, frozen=True, kw_only=True, tag="order"):
    order: Order


class Ping(Value, frozen=True, kw_only=True, tag="ping"):
    nonce: int


class Pong(Value, frozen=True, kw_only=True, tag="pong"):
    nonce: int


class OpenChannel(Value, frozen=True, kw_only=True, tag="open_channel"):
    """To an agent: connect once more, and attach that connection to ``channel``, which only it was told."""

    channel: str
    subject: ChannelSubject


class Attach(Value, frozen=True, kw_only=True, tag="attach"):
    """The host's first message on a connection that is a channel."""

    channel: str


class Attached(Value, frozen=True, kw_only=True, tag="attached"):
    """The server's answer; from now on both may send."""

    silence_ms: int


class ChannelData(Value, frozen=True, kw_only=True, tag="channel_data"):
    """Bytes of whatever the channel carries; none: the sender has said all."""

    data: bytes


class ChannelCredit(Value, frozen=True, kw_only=True, tag="channel_credit"):
    """So many bytes were taken by whoever they were for: as many more may be sent."""

    size: int


class Bye(Value, frozen=True, kw_only=True, tag="bye"):
    code: str = "wire.closed.shutdown"


Message = (
    Hello
    | Welcome
    | Pace
    | Refuse
    | Beat
    | BeatAck
    | Facts
    | FactsAck
    | Settings
    | GiveOrder
    | Ping
    | Pong
    | Bye
    | OpenChannel
    | Attach
    | Attached
    | ChannelData
    | ChannelCredit
    | ReadSlots
    | StopReading
    | WaiveLease
    | KeepLease
    | SlotsRead
    | LeaseKept
    | ProbeHost
    | HostProbed
    | LookAtDisks
    | DisksLooked
    | AttemptPower
    | EndPowerAttempt
    | PowerAttempted
)
