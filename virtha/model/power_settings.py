"""How a power device is reached: settings of a cluster, overridden by its hosts', field by field (F5, F6).

A host's address, and its plug behind it, are its own: they are never inherited (rule P1).
"""

from enum import StrEnum

from msgspec.structs import fields, replace

from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.ids import BootId, ClusterId, HostId, Revision
from virtha.model.time import UtcMillis
from virtha.model.value import Value


class PowerDriver(StrEnum):
    COMMAND = "command"
    """Any program or script, by a syntax of the user's own (F5)."""
    IPMI = "ipmi"
    REDFISH = "redfish"
    FENCE_AGENT = "fence-agent"
    """A program of the fence-agents project, named by ``agent``."""


class AskedFrom(StrEnum):
    """Who makes the attempts (ADR 18)."""

    SERVER = "server"
    AGENTS = "agents"
    """A neighbour: the agent of another host of the cluster. For devices that only hosts reach."""


class PowerHelp(StrEnum):
    """What a host does for others with ``AskedFrom.AGENTS``: its administrator says so, not the server."""

    NONE = "none"
    NETWORK = "network"
    ANY = "any"
    """Also what runs programs there."""

    @property
    def drivers(self) -> "tuple[PowerDriver, ...]":
        if self is PowerHelp.NONE:
            return ()
        over_network = (PowerDriver.IPMI, PowerDriver.REDFISH)
        return over_network if self is PowerHelp.NETWORK else tuple(PowerDriver)


class SecretWay(StrEnum):
    """How a program is given its password when its syntax does not name ``$IPMI_PASSWORD``."""

    ENVIRONMENT = "environment"
    """In the variable ``IPMI_PASSWORD``."""
    STDIN = "stdin"
    """As the first line of its standard input."""


class CertificateCheck(StrEnum):
    FULL = "full"
    AUTHORITY = "authority"
    """Whose signature, not which name: for devices whose certificates name something else."""
    NONE = "none"
    """Whoever answers at the address is given the password."""


class IpmiPrivilege(StrEnum):
    USER = "user"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


SYNTAX = "$IPMI_EXEC --username $IPMI_USERNAME --password $IPMI_PASSWORD --command $IPMI_ACTION --host $IPMI_HOST"
"""Of the source document, word by word (F5)."""
LEVELS_MAX = 4
OWN_FIELDS = ("address", "plug")
"""A host's own, never a cluster's."""
OUR_PARAMETERS = frozenset(
    {"action", "method", "plug", "port", "port_as_ip", "missing_as_off", "network_fencing"}
)
"""Of fence agents, that are not the administrator's: ``method=cycle`` would make an off that is none, and so would what says
off of a machine that is not found, or of its network; with ``port_as_ip`` it goes to another address (P1)."""


class PowerSettings(Value, frozen=True, kw_only=True):
    """Of one device. None: not said here, so the cluster's value holds, then the default. An empty text: none, whatever
    the cluster says. The password is kept apart, sealed."""

    driver: PowerDriver | None = None
    level: int | None = None
    """Devices of one level must all be off for the host to be off; level 2 is tried when level 1 fails. Default: 1."""
    address: str | None = None
    port: int | None = None
    """Default: the protocol's."""
    plug: str | None = None
    """Which of those behind the address: an outlet, a blade, a Redfish system."""
    user: str | None = None
    asked_from: AskedFrom | None = None
    """Default: server."""

    executable: str | None = None
    """Command: an absolute path, where the attempts are made."""
    syntax: str | None = None
    """Command: default ``SYNTAX``."""
    stop: str | None = None
    start: str | None = None
    reboot: str | None = None
    """Command: kept with the others (F5) but never run: a reboot is off, read back, then on (P1)."""
    blink: str | None = None
    test: str | None = None
    """Command: run by the power test before the status; none: the status alone is the test."""
    status: str | None = None
    """Command: without it nothing this device does is a proof (P1)."""
    status_on: str | None = None
    """Command: the whole line of output that means on, instead of the usual ones."""
    status_off: str | None = None
    password_by: SecretWay | None = None

    cipher: int | None = None
    """IPMI: cipher suite; none: 3, then 17 where the device refuses that."""
    privilege: IpmiPrivilege | None = None
    """IPMI: default operator, which may switch."""

    certificate: CertificateCheck | None = None
    """Redfish: default full."""
    authority_pem: str | None = None
    """Redfish: who signed the device's certificate; none: the system's authorities."""

    agent: str | None = None
    """Fence agent: its program's name, such as ``fence_apc_snmp``."""
    parameters: dict[str, str] | None = None
    """Fence agent: what else it is given; a host's are added to its cluster's, name by name."""

    @property
    def from_agents(self) -> bool:
        return self.asked_from is AskedFrom.AGENTS

    @property
    def has_status(self) -> bool:
        """Whether readings of it can prove anything (P1)."""
        return self.driver is not PowerDriver.COMMAND or bool(self.status)


def merged(cluster: PowerSettings, host: PowerSettings) -> PowerSettings:
    """What holds for the host: its own value where it has one, field by field (F6)."""
    given = {
        one.name: value
        for one in fields(host)
        if (value := getattr(host, one.name)) is not None or one.name in OWN_FIELDS
    }
    if cluster.parameters and host.parameters:
        given["parameters"] = {**cluster.parameters, **host.parameters}
    return replace(cluster, **given)


class MachineIdentity(Value, frozen=True, kw_only=True):
    """What a machine, or a power device of it, says which machine it is. Empty: it doesn't say."""

    uuid: str = ""
    """Of the system (SMBIOS), as 32 hexadecimal digits in lower case."""
    serial: str = ""


class PowerRecord(Value, frozen=True, kw_only=True):
    """One device as a cluster or a host sets it. ``secrets``: the names of those that are set here."""

    id: str
    name: str
    cluster_id: ClusterId | None = None
    host_id: HostId | None = None
    settings: PowerSettings
    secrets: tuple[str, ...] = ()
    revision: Revision = Revision(0)


class PowerTest(Value, frozen=True, kw_only=True):
    """``passed``: it said on while ``boot`` was up, and named no other machine (P1)."""

    at: UtcMillis
    boot: BootId | None
    passed: bool
    state: PowerState
    identity: IdentityMatch
    code: str | None = None
    """Why it did not pass, or what is to be said although it did."""
    detail: str = ""
    took_ms: int = 0
    settings_revision: Revision = Revision(0)
    """Of the newer of the cluster's and the host's: settings that were changed since were not tested."""
    scheduled: bool = False
    """By the server itself: a reading of its state. Else a person asked for it."""
    passed_at: UtcMillis | None = None
    """When these settings last passed, by this test or an earlier one."""
