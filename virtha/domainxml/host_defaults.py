"""What a host adds to every domain that virtha makes on it. Filled from ``agent.properties`` and probes."""

from enum import StrEnum

from virtha.model.host import CephPool
from virtha.model.ids import StorageDomainId
from virtha.model.value import Value
from virtha.model.watchdog import Watchdog


class RngBackend(StrEnum):
    RANDOM = "random"
    EGD = "egd"


class Rng(Value, frozen=True, kw_only=True):
    """The virtio random number generator (A4): ``rate_bytes`` per ``rate_period_ms``.

    ``path`` is a device for ``random`` and the Unix socket of the daemon for ``egd``.
    """

    backend: RngBackend = RngBackend.RANDOM
    path: str = "/dev/random"
    rate_bytes: int = 2_048
    rate_period_ms: int = 1_000


class CpuMode(StrEnum):
    HOST_PASSTHROUGH = "host-passthrough"
    HOST_MODEL = "host-model"
    MAXIMUM = "maximum"
    CUSTOM = "custom"


class Cpu(Value, frozen=True, kw_only=True):
    """Processor of all VMs (A6). ``mode`` None: ``host-model`` under KVM, QEMU's default under TCG.

    ``features``: ``name`` is required, ``-name`` is disabled.
    """

    mode: CpuMode | None = None
    model: str | None = None
    features: tuple[str, ...] = ()


class HostDefaults(Value, frozen=True, kw_only=True):
    """Everything that ``build_domain`` and ``patch_domain`` need to know of the host."""

    domain_type: str = "kvm"
    """``kvm``, or ``qemu`` (TCG)."""
    watchdog: Watchdog | None = None
    """For VMs that say nothing themselves (W10); left out where it doesn't fit the machine."""
    rng: Rng | None = None
    cpu: Cpu = Cpu()
    serial_directory: str = "/var/lib/virtha/agent/serial"
    """The first serial port of each VM is logged to ``<directory>/<vm id>.log`` (W12)."""
    storage_paths: dict[StorageDomainId, str] = {}
    """Directory of each storage domain as this host sees it."""
    ceph_pools: dict[StorageDomainId, CephPool] = {}
    """Storage domains that are Ceph pools. libvirt has the key of each as a secret with the domain's own id."""
    buffered_storage: tuple[StorageDomainId, ...] = ()
    """Storage domains whose file system refuses O_DIRECT: written through the page cache."""

    def serial_log(self, vm_id: str) -> str:
        return f"{self.serial_directory}/{vm_id}.log"
