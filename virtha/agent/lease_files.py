"""What the guardian leaves in /run about its leases: for the guardian after it, and for whoever starts VMs.

On a tmpfs, so no storage can keep it waiting, and it is gone after a boot; the boot id in it says the same where
/run outlives one (a lab's host).
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import UNSET, UnsetType

from virtha.agent.files import read_bounded
from virtha.model.codes import render
from virtha.model.host import CephPool
from virtha.model.ids import BootId, StorageDomainId
from virtha.model.time import Millis
from virtha.model.value import Value

FILE_BYTES_MAX = 1 << 20
REFUSED = "order.refused.lease"
LEASE_LOST = render(REFUSED, {})


class OpenedDomain(Value, frozen=True, kw_only=True):
    """A guardian of this boot opened its heartbeat blocks, so slots may promise something there."""

    domain_id: StorageDomainId
    index: int
    direct_io: bool
    path: str
    """Without symbolic links, as the kernel names its open files."""
    ceph: CephPool | UnsetType = UNSET


class LeaseMemory(Value, frozen=True, kw_only=True):
    """There is one for this boot: a guardian with a lease ran before."""

    boot: BootId
    domains: tuple[OpenedDomain, ...] = ()


class StartPermit(Value, frozen=True, kw_only=True):
    """Both of this boot's clock."""

    renewed_ms: Millis
    """Said and not computed: whoever reads it may know a newer policy than its guardian."""
    until_ms: Millis


class StartPermits(Value, frozen=True, kw_only=True):
    boot: BootId
    domains: dict[StorageDomainId, StartPermit] = {}

    def objection(self, domain_ids: Iterable[StorageDomainId], now: Millis) -> str | None:
        """Code of why a VM with disks there may not run now. Asked where leases are in use, once its QEMU exists and
        before its processors run (``AllowStarts``)."""
        permits = [self.domains.get(each) for each in domain_ids]
        return REFUSED if any(one is None or now >= one.until_ms for one in permits) else None


def load_memory(path: Path, boot: BootId) -> LeaseMemory | None:
    """None: no guardian with a lease ran in this boot. Raises OSError, ValueError: unknown, which is not none."""
    try:
        memory = msgspec.json.decode(read_bounded(path, FILE_BYTES_MAX), type=LeaseMemory)
    except FileNotFoundError:
        return None
    return memory if memory.boot == boot else None


def load_permits(path: Path, boot: BootId) -> StartPermits:
    """Unreadable, missing, of another boot: nothing is permitted."""
    with suppress(OSError, ValueError, msgspec.MsgspecError):
        permits = msgspec.json.decode(read_bounded(path, FILE_BYTES_MAX), type=StartPermits)
        if permits.boot == boot:
            return permits
    return StartPermits(boot=boot)


def write_run_file(path: Path, value: Value) -> None:
    """Whole or not at all; not synced: it need not outlive the boot. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(msgspec.json.encode(value))
    temporary.replace(path)
