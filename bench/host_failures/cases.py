"""What ``bench/failover.py`` plays: how a host fails, under which policy, with how many VMs, and what is asked of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from virtha.model.policy import Policy
from virtha.model.policy.profiles import PROFILES, Profile

Json = dict[str, Any]
CAP_COUNT = 1_000
"""So many hosts may be powered down within a minute: twenty power cuts in a row are meant here (F7's default is 3 in an hour)."""
WATCHDOG_OF_5_S_MS = 5_000


class Fault(StrEnum):
    NONE = "none"
    """Not a failure: the floor, measured by hand."""
    POWER_SEEN = "power_seen"
    """The power goes, and its kernel's last act is to reset all connections; its BMC says off."""
    POWER_SILENT = "power_silent"
    """Its cable goes first, so that nobody hears a goodbye, then its power; its BMC says off."""
    HUNG = "hung"
    """SIGSTOP of all its processes; its BMC says on, and obeys."""
    POWER_AND_BMC = "power_and_bmc"
    """As silent, and its BMC is gone as well: what is left is the lease."""
    NETWORK_CUT = "network_cut"
    AGENT_KILLED = "agent_killed"
    QEMU_KILLED = "qemu_killed"


RECOVERS = frozenset(
    {Fault.POWER_SEEN, Fault.POWER_SILENT, Fault.HUNG, Fault.POWER_AND_BMC},
)
"""The VMs come back on another host."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """``p50_s``, ``worst_s``: targets from the fault to libvirt's `started` of the (first) VM; None: none was set."""

    name: str
    what: str
    fault: Fault
    profile: Profile = Profile.BALANCED
    changes: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """What the policy has besides the profile's times, by section."""
    vms: int = 1
    rounds: int = 20
    p50_s: float | None = None
    worst_s: float | None = None
    libvirtd_hangs: bool = False
    """On the host that is the best place for the VM, from a moment before the fault on."""
    loaded: bool = False
    """Both cores of the machine have other things to do."""
    boots_later_ms: int = 0
    """Guests sit so long in their firmware before they boot on another host: starts are measured, and not what booting guests in
    emulation take from them on a machine of two processors. The storm of boots comes after it, and is watched as well."""
    without_watchdog: bool = False
    """No lease is kept, so the host's own watchdog is not armed and doesn't do the BMC's work."""

    @property
    def policy(self) -> Json:
        """As the API takes it: complete."""
        document: Json = msgspec.to_builtins(PROFILES[self.profile])
        sections = {**_FOR_ALL, **({"lease": {"enabled": False}} if self.without_watchdog else {})}
        for changes in (sections, self.changes):
            for section, values in changes.items():
                document[section] |= values
        return document

    @property
    def checked_policy(self) -> Policy:
        """Raises where its times can't live together."""
        return msgspec.convert(self.policy, Policy)

    @property
    def state(self) -> str:
        """Another one: rounds of before were of another case."""
        told = (
            self.fault, self.policy, self.vms, self.libvirtd_hangs, self.loaded, self.boots_later_ms
        )  # fmt: skip
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


_FOR_ALL: Mapping[str, Json] = {
    # A VM whose QEMU is killed twenty times in a row would stay down after the fifth, as it should for everybody else.
    "restart": {"restarts_max": 1_000, "delay_ms": 0},
    "fencing": {"cap_count": CAP_COUNT, "cap_window_ms": 60_000},
}
FLOOR = Case(
    name="floor",
    what="by hand: one BMC status, one off with read-back, one `virsh start`",
    fault=Fault.NONE,
)
POWER_SEEN_FAST = Case(
    name="power_seen_fast",
    what="power cut, connections reset, BMC alive",
    fault=Fault.POWER_SEEN,
    profile=Profile.FAST,
    p50_s=3.0,
    worst_s=7.0,
)
CASES: tuple[Case, ...] = (
    FLOOR,
    POWER_SEEN_FAST,
    Case(
        name="power_silent_fast",
        what="power cut, silent, BMC alive",
        fault=Fault.POWER_SILENT,
        profile=Profile.FAST,
        p50_s=4.0,
        worst_s=7.0,
    ),
    Case(
        name="power_seen_balanced",
        what="power cut, connections reset, BMC alive",
        fault=Fault.POWER_SEEN,
        p50_s=6.0,
        worst_s=10.0,
    ),
    Case(
        name="power_silent_balanced",
        what="power cut, silent, BMC alive",
        fault=Fault.POWER_SILENT,
        p50_s=6.0,
        worst_s=10.0,
    ),
    Case(
        name="hung_fast",
        what="all processes stopped, BMC alive, no watchdog",
        fault=Fault.HUNG,
        profile=Profile.FAST,
        without_watchdog=True,
        p50_s=12.0,
    ),
    Case(
        name="hung_balanced",
        what="all processes stopped, BMC alive, no watchdog",
        fault=Fault.HUNG,
        without_watchdog=True,
        p50_s=20.0,
    ),
    Case(
        name="hung_watchdog_fast",
        what="all processes stopped, BMC alive, its watchdog ends it first",
        fault=Fault.HUNG,
        profile=Profile.FAST,
        p50_s=12.0,
    ),
    Case(
        name="hung_watchdog_balanced",
        what="all processes stopped, BMC alive, its watchdog ends it first",
        fault=Fault.HUNG,
        p50_s=20.0,
    ),
    Case(
        name="lease_watchdog_5s",
        what="silent power cut, BMC dead too; fast with a watchdog of 5 s",
        fault=Fault.POWER_AND_BMC,
        profile=Profile.FAST,
        changes={"lease": {"watchdog_ms": WATCHDOG_OF_5_S_MS}},
        worst_s=20.0,
    ),
    Case(
        name="lease_balanced",
        what="silent power cut, BMC dead too",
        fault=Fault.POWER_AND_BMC,
        worst_s=45.0,
    ),
    Case(name="network_cut", what="its network is cut, its VM writes on", fault=Fault.NETWORK_CUT),
    Case(name="agent_killed", what="its agent is killed with -9", fault=Fault.AGENT_KILLED),
    Case(name="qemu_killed", what="its VM's QEMU is killed with -9", fault=Fault.QEMU_KILLED),
    Case(
        name="vms_16",
        what="power cut, connections reset, 16 VMs",
        fault=Fault.POWER_SEEN,
        profile=Profile.FAST,
        vms=16,
        boots_later_ms=20_000,
    ),
    Case(
        name="vms_40",
        what="power cut, connections reset, 40 VMs",
        fault=Fault.POWER_SEEN,
        profile=Profile.FAST,
        vms=40,
        boots_later_ms=60_000,
        rounds=5,
    ),
    Case(
        name="libvirtd_hung",
        what="power cut, connections reset, libvirtd stopped on the best target",
        fault=Fault.POWER_SEEN,
        profile=Profile.FAST,
        libvirtd_hangs=True,
    ),
    Case(
        name="loaded",
        what="power cut, connections reset, both cores busy",
        fault=Fault.POWER_SEEN,
        profile=Profile.FAST,
        loaded=True,
        p50_s=3.0,
        worst_s=7.0,
    ),
)
