"""libvirt behind ``virtha.ports.hypervisor``. (signatures; body follows)"""
from collections.abc import Callable
from pathlib import Path

from virtha.model.domain import DomainEvent, DomainReport
from virtha.model.host import HostCapabilities
from virtha.model.ids import VmId
from virtha.model.value import Value


class Deadlines(Value, frozen=True, kw_only=True):
    """How long one call may take before its outcome counts as unknown."""

    query_ms: int = 10_000
    start_ms: int = 60_000
    destroy_ms: int = 30_000
    dump_ms: int = 300_000


class LibvirtHost:
    """DomainControl, DomainCatalog, DomainWatch, DomainEvidence and HostFacts over one connection.

    ``cache_directory``: where probe results are kept (watchdog models, accelerator); None: memory.
    ``domain_type``: auto, kvm or qemu (property ``hypervisor.type``).
    """

    def __init__(self, uri: str = "qemu:///system", *, domain_type: str = "auto",
                 deadlines: Deadlines = Deadlines(), cache_directory: Path | None = None) -> None: ...

    @property
    def connected(self) -> bool: ...
    def subscribe(self, on_event: Callable[[DomainEvent], None], on_connection: Callable[[bool], None]) -> None: ...
    async def start(self) -> None: ...
    async def close(self) -> None: ...
    # the rest as in the ports
