"""Every key of ``agent.properties``: one table for the parser, its errors and the reference page.

Names are CloudStack's where it has the key. ``python -m virtha.agent.property_table`` prints the
reference as Markdown.
"""

import difflib
import ipaddress
import re
import sys
from enum import StrEnum

from virtha.domainxml.host_defaults import CpuMode, RngBackend
from virtha.model.errors import InvalidInput
from virtha.model.power_settings import PowerHelp
from virtha.model.value import Value
from virtha.model.watchdog import WatchdogAction, WatchdogModel


class Kind(StrEnum):
    TEXT = "text"
    NUMBER = "number"
    YES_NO = "yes_no"
    CHOICE = "choice"
    PATH = "path"
    ADDRESS = "address"
    FEATURES = "features"
    SERVERS = "servers"


class Property(Value, frozen=True, kw_only=True):
    """One key. ``default`` as it would be written; empty: nothing is set."""

    key: str
    meaning: str
    kind: Kind = Kind.TEXT
    default: str = ""
    choices: tuple[str, ...] = ()
    least: int = 0
    most: int = 0
    unit: str = ""
    since: str = "0.1"
    requirement: str = ""

    def allowed(self) -> tuple[str, ...]:
        """What may be written, for errors and for the reference page."""
        match self.kind:
            case Kind.NUMBER:
                return (f"{self.least} to {self.most}" + (f" {self.unit}" if self.unit else ""),)
            case Kind.YES_NO:
                return ("true", "false")
            case Kind.CHOICE:
                return self.choices
            case Kind.PATH:
                return ("an absolute path",)
            case Kind.ADDRESS:
                return ("an address of IPv4 or IPv6, no name",)
            case Kind.FEATURES:
                return ("processor features, a space between them; -name turns one off",)
            case Kind.SERVERS:
                return (
                    "addresses with commas between them, then @static, @roundrobin or @shuffle",
                )
            case Kind.TEXT:
                return ("a text in one line",)


ALGORITHMS = ("static", "roundrobin", "shuffle")

TABLE: tuple[Property, ...] = (
    Property(
        key="host",
        kind=Kind.SERVERS,
        meaning="Management servers in order of preference, with the algorithm that made the order. "
        "An address may carry a port. Servers don't send such lists yet: it is as joining wrote it, or you.",
        requirement="L3",
    ),
    Property(
        key="port",
        kind=Kind.NUMBER,
        least=1,
        most=65_535,
        default="8250",
        meaning="Port of the servers' agent gateway, for addresses that name none.",
        requirement="A1",
    ),
    Property(
        key="guid",
        meaning="This host's id in the installation; written at joining.",
        requirement="A1",
    ),
    Property(
        key="workers",
        kind=Kind.NUMBER,
        least=1,
        most=64,
        default="5",
        meaning="Orders that the agent carries out at the same time. Protection needs none of them.",
        requirement="A1",
    ),
    Property(
        key="hypervisor.uri",
        default="qemu:///system",
        meaning="libvirt connection.",
        requirement="A1",
    ),
    Property(
        key="hypervisor.type",
        kind=Kind.CHOICE,
        choices=("auto", "kvm", "qemu"),
        default="auto",
        meaning="How VMs run: with KVM, or emulated (qemu). auto: KVM where it is there and faster, "
        "found out once by a measurement.",
        requirement="A1",
    ),
    Property(
        key="host.overcommit.mem.mb",
        kind=Kind.NUMBER,
        least=0,
        most=67_108_864,
        unit="MiB",
        default="0",
        meaning="Added to the memory that the host reports, where KSM or zswap make room.",
        requirement="A2",
    ),
    Property(
        key="host.lb.check.interval",
        kind=Kind.NUMBER,
        least=0,
        most=86_400,
        unit="s",
        meaning="How often the agent looks whether its preferred server is back; 0: never. "
        "Taken and checked, but not acted upon yet: the agent stays with the server that it has, and says so when it starts.",
        requirement="L4",
    ),
    Property(
        key="guest.cpu.mode",
        kind=Kind.CHOICE,
        choices=tuple(CpuMode),
        meaning="Processor that guests see. Unset: host-model with KVM, QEMU's own when emulated.",
        requirement="A6",
    ),
    Property(
        key="guest.cpu.model",
        meaning="Processor model for guest.cpu.mode=custom, as `virsh cpu-models x86_64` lists them.",
        requirement="A6",
    ),
    Property(
        key="guest.cpu.features",
        kind=Kind.FEATURES,
        meaning="Processor features that each guest must have (name) or must not see (-name).",
        requirement="A6",
    ),
    Property(
        key="vm.rng.enable",
        kind=Kind.YES_NO,
        default="false",
        meaning="Give each VM a virtio random number generator.",
        requirement="A4",
    ),
    Property(
        key="vm.rng.model",
        kind=Kind.CHOICE,
        choices=tuple(RngBackend),
        default="random",
        meaning="Where randomness comes from: a device of the host, or an entropy gathering daemon.",
        requirement="A4",
    ),
    Property(
        key="vm.rng.path",
        kind=Kind.PATH,
        default="/dev/random",
        meaning="The device (random), or the daemon's Unix socket (egd).",
        requirement="A4",
    ),
    Property(
        key="vm.rng.rate.bytes",
        kind=Kind.NUMBER,
        least=1,
        most=1_073_741_824,
        unit="bytes",
        default="2048",
        meaning="How much one guest may take in each period.",
        requirement="A4",
    ),
    Property(
        key="vm.rng.rate.period",
        kind=Kind.NUMBER,
        least=1,
        most=3_600_000,
        unit="ms",
        default="1000",
        meaning="Length of the period.",
        requirement="A4",
    ),
    Property(
        key="vm.watchdog.model",
        kind=Kind.CHOICE,
        choices=tuple(WatchdogModel),
        meaning="Watchdog card of VMs that don't say; left out where it doesn't fit the machine. "
        "Needs vm.watchdog.action.",
        requirement="W10",
    ),
    Property(
        key="vm.watchdog.action",
        kind=Kind.CHOICE,
        choices=tuple(WatchdogAction),
        meaning="What that card does when it fires. Needs vm.watchdog.model.",
        requirement="W10",
    ),
    Property(
        key="vm.diskactivity.checkenabled",
        kind=Kind.YES_NO,
        default="false",
        meaning="Before a start without proof that the last copy is dead: its qcow2 disks must have "
        "been quiet, or the start fails.",
        requirement="A5",
    ),
    Property(
        key="vm.diskactivity.checktimeout_s",
        kind=Kind.NUMBER,
        least=1,
        most=3_600,
        unit="s",
        default="120",
        meaning="How long to wait for the disks to become quiet. More than the quiet time.",
        requirement="A5",
    ),
    Property(
        key="vm.diskactivity.inactivetime_ms",
        kind=Kind.NUMBER,
        least=100,
        most=3_600_000,
        unit="ms",
        default="30000",
        meaning="How long they must have been quiet.",
        requirement="A5",
    ),
    Property(
        key="probe.port",
        kind=Kind.NUMBER,
        least=0,
        most=65_535,
        default="8252",
        meaning="Port on which the guardian tells other hosts that this one lives, when it can't reach the server; "
        "0: it doesn't.",
        requirement="F1",
    ),
    Property(
        key="probe.address",
        kind=Kind.ADDRESS,
        meaning="This host's address on the management network, where others probe it, and from which it probes them. "
        "Unset: that of its session with the server.",
        requirement="F1",
    ),
    Property(
        key="probe.storage.address",
        kind=Kind.ADDRESS,
        meaning="The same on the storage network, if that is another one. Unset: there are no probes on it.",
        requirement="F1",
    ),
    Property(
        key="power.attempts",
        kind=Kind.CHOICE,
        choices=tuple(PowerHelp),
        default=PowerHelp.NETWORK,
        meaning="What this host does for the server at other hosts' power devices set to asked_from=agents: none; over the "
        "network (ipmi, redfish); any, also programs of the administrator's choice, run here as root (command, fence-agent).",
        requirement="F5",
    ),
    Property(
        key="migration.address",
        meaning="Name or address under which other hosts reach this host's libvirt and QEMU, to move VMs to it. "
        "Written by `virtha agent setup-migration`; without it no VM is moved to this host.",
    ),
)

PROPERTIES: dict[str, Property] = {item.key: item for item in TABLE}

_FEATURE = re.compile(r"-?[A-Za-z0-9][A-Za-z0-9._-]*")
# A host name, an IPv4 address, or an IPv6 address in brackets; then a port.
_ADDRESS = re.compile(
    r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::(\d+))?"
)


def nearest_key(key: str) -> str | None:
    """The known key that was probably meant."""
    near = difflib.get_close_matches(key.lower(), PROPERTIES, n=1, cutoff=0.6)
    return near[0] if near else None


def check_value(item: Property, value: str, *, where: str = "") -> None:
    """Raise InvalidInput if ``value`` is none for this key. ``where`` begins the message (`line 7: `)."""
    if _fits(item, value):
        return
    raise InvalidInput(
        f"{where}'{_shown(value)}' is no value for it",
        field=item.key,
        allowed=item.allowed(),
        fix=f"the default is {item.default}"
        if item.default
        else "remove the line to leave it unset",
    )


def _fits(item: Property, value: str) -> bool:
    if not value.isprintable():
        # Control characters, line ends, and bytes that are no UTF-8.
        return False
    match item.kind:
        case Kind.NUMBER:
            # isascii: int() takes digits of every script, most programs that read this file don't.
            written = value.isascii() and value.isdigit() and len(value) <= 12
            return written and item.least <= int(value) <= item.most
        case Kind.YES_NO:
            return value in ("true", "false")
        case Kind.CHOICE:
            return value in item.choices
        case Kind.PATH:
            return value.startswith("/")
        case Kind.ADDRESS:
            return _is_address(value)
        case Kind.FEATURES:
            return all(_FEATURE.fullmatch(word) for word in value.split())
        case Kind.SERVERS:
            return _servers_fit(value)
        case Kind.TEXT:
            return True


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _servers_fit(value: str) -> bool:
    addresses, at, algorithm = value.partition("@")
    if at and algorithm not in ALGORITHMS:
        return False
    for address in addresses.split(","):
        match = _ADDRESS.fullmatch(address.strip())
        if match is None or (match[1] is not None and not 0 < int(match[1]) < 65_536):
            return False
    return True


def _shown(value: str) -> str:
    """Safe to print on a terminal and not without end."""
    text = value if value.isprintable() else repr(value)[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


def reference_page() -> str:
    """The reference of ``agent.properties`` as Markdown."""
    lines = [
        "# agent.properties",
        "",
        "One `key=value` per line; lines that begin with `#` or `!` are comments. The agent reads the",
        "file when it starts. A key that stands twice or a value that does not fit stops it with the",
        "line's number; an unknown key is a warning.",
        "",
        "| key | default | allowed | meaning | since | requirement |",
        "|---|---|---|---|---|---|",
    ]
    for item in TABLE:
        default = f"`{item.default}`" if item.default else "unset"
        allowed = ", ".join(item.allowed())
        lines.append(
            f"| `{item.key}` | {default} | {allowed} | {item.meaning} | {item.since} "
            f"| {item.requirement} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference_page())
