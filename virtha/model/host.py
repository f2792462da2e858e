"""Hosts, clusters and storage domains."""

from enum import StrEnum

from msgspec import UNSET, UnsetType

from virtha.model.evidence import ProbeAddress
from virtha.model.ids import BootId, ClusterId, HostId, InstallationId, Revision, StorageDomainId
from virtha.model.policy import Policy
from virtha.model.power_settings import MachineIdentity
from virtha.model.time import UtcMillis
from virtha.model.value import Value
from virtha.model.watchdog import WatchdogModel


class Cluster(Value, frozen=True, kw_only=True):
    id: ClusterId
    name: str
    description: str = ""
    policy: Policy = Policy()
    revision: Revision = Revision(0)


class Host(Value, frozen=True, kw_only=True):
    """A KVM host that has joined. ``number`` counts up and is never reused (L1)."""

    id: HostId
    name: str
    number: int
    cluster_id: ClusterId
    certificate_serial: str = ""
    revision: Revision = Revision(0)


class HostState(StrEnum):
    """How the host answers. ``UNREACHABLE`` proves nothing about it (safety.md, section 2)."""

    NEVER_SEEN = "never_seen"
    UP = "up"
    AGENT_DOWN = "agent_down"
    UNREACHABLE = "unreachable"


class HostCapabilities(Value, frozen=True, kw_only=True):
    """What an agent reports of its host after hello and whenever it changes. Sizes in bytes."""

    architecture: str = "x86_64"
    cpus: int = 0
    memory_bytes: int = 0
    """Physical memory plus ``host.overcommit.mem.mb`` (A2): what may be promised to VMs."""
    memory_overcommit_bytes: int = 0
    libvirt_version: int = 0
    qemu_version: int = 0
    machine_types: tuple[str, ...] = ()
    watchdog_models: tuple[WatchdogModel, ...] = ()
    """What this host's libvirt accepts: probed, not guessed."""
    domain_type: str = "kvm"
    """``kvm``, or ``qemu`` (TCG) where KVM is absent or slower."""
    bridges: tuple[str, ...] = ()
    agent_version: str = ""
    gate_in_force: bool = False
    """Proved by a start that must be refused (G3)."""
    libvirt_connected: bool = False
    machine: MachineIdentity | UnsetType = UNSET
    """Which machine it is by its firmware, to be compared with its power device (P1); left out where that says nothing."""
    disk_check_ms: int | UnsetType = UNSET
    """How long the disk activity check in front of a start may take (A5); left out where it is off."""
    probed_at: tuple[ProbeAddress, ...] | UnsetType = UNSET
    """Where its guardian answers its neighbours' probes (F1); left out by agents that know of none."""


def format_version(number: int) -> str:
    """libvirt's and QEMU's numbering, major * 1,000,000 + minor * 1,000 + release: ``7.2.22``; empty for 0, not known."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}" if number else ""


class HostStatus(Value, frozen=True, kw_only=True):
    """What the server knows of a host."""

    host_id: HostId
    state: HostState = HostState.NEVER_SEEN
    boot: BootId | None = None
    capabilities: HostCapabilities = HostCapabilities()
    last_seen: UtcMillis | None = None
    clock_offset_ms: int | None = None
    inventory_revision: int = 0
    carries: str | None = None
    """A mark of the server's machine, if it was this host's when it last connected."""
    libvirt_lost: bool = False
    """It was told that its libvirt doesn't answer, and not yet that it does again."""
    revision: Revision = Revision(0)


class CephPool(Value, frozen=True, kw_only=True):
    """Where a domain of kind ``ceph-rbd`` lies. No key is in it: that lies on the hosts, in a file of root's."""

    monitors: tuple[str, ...]
    """HOST or HOST:PORT; the ports are 3300 and 6789 where none is given."""
    pool: str
    namespace: str = ""
    """Not to be chosen yet: libvirt 9.0 takes it for a part of an image's name."""
    user: str | None = None
    """``virtha`` for ``client.virtha``; None: the cluster works without keys (auth none)."""
    keyring: str = ""
    """File with its key, on each host; empty: ``/etc/ceph/ceph.client.USER.keyring``."""

    @property
    def keyring_path(self) -> str:
        return self.keyring or f"/etc/ceph/ceph.client.{self.user}.keyring"

    @property
    def shown(self) -> str:
        """As a path: ``rbd:pool@monitor`` or ``rbd:pool/namespace@monitor``."""
        return f"rbd:{self.image_prefix}@{self.monitors[0]}"

    @property
    def gate_path(self) -> str:
        """As the start gate writes it, in the shape of a directory that no host has: ``/rbd:pool:namespace``."""
        return f"/rbd:{self.pool}:{self.namespace}"

    @property
    def image_prefix(self) -> str:
        """What QEMU and libvirt write before the name of an image."""
        return f"{self.pool}/{self.namespace}" if self.namespace else self.pool


class StorageDomain(Value, frozen=True, kw_only=True):
    """Storage that all hosts of the cluster share. Kind ``directory``: they see it under the same ``path``, and ``images/``
    below it holds what VMs are created from. Kind ``ceph-rbd``: ``ceph`` says where, ``path`` only shows it.

    Its header names the installation (G7).
    """

    id: StorageDomainId
    name: str
    cluster_id: ClusterId
    kind: str = "directory"
    path: str
    revision: Revision = Revision(0)
    ceph: CephPool | UnsetType = UNSET


class Installation(Value, frozen=True, kw_only=True):
    id: InstallationId
    name: str = "virtha"
    hold: str | None = None
    """The operator's reason while automatic action is on hold (`virtha hold`); None: not held."""
