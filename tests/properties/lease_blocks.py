"""What the worlds of the storage lease stand on: the storage server's blocks, clocks that drift, and who is who."""

from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, VmId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import (
    Declaration,
    Mailbox,
    Place,
    Slot,
)
from virtha.model.time import Millis

OURS = InstallationId("ours")
DOMAIN = StorageDomainId("ds1")
WRITER, READER, CONTROL = HostId("w"), HostId("r"), HostId("c")
INDEX = {WRITER: 0, READER: 1, CONTROL: 2}
BOOT = BootId("w-boot")
VM = VmId("web")
POLICY = LeasePolicy(
    renew_ms=1_000,
    self_fence_after_ms=150_000,
    kill_ms=20_000,
    watchdog_ms=30_000,
    read_period_ms=1_000,
    drift_percent=2,
)
"""Long waits beside a short read period: so that 2 % of drift is more than two of them."""
US = 1_000
IO_US = 1_000
LOOK_US = 1_000_000


class TwoWriters(AssertionError):
    """A write of the boot that was proven dead landed."""


class Clock:
    """``rate``: milliseconds that it counts in one real second."""

    def __init__(self, rate: int = 1_000, offset_ms: int = 0) -> None:
        self.rate, self.offset_ms = rate, offset_ms

    def read(self, real_us: int) -> Millis:
        return Millis(self.offset_ms + real_us * self.rate // 1_000_000)

    def when(self, ms: int) -> int:
        """The first real moment at which it shows ``ms``."""
        return -(-(ms - self.offset_ms) * 1_000_000 // self.rate)


class Blocks:
    """The storage server: what landed when, so that a view may be old."""

    def __init__(self) -> None:
        self._landed: dict[str, list[tuple[int, bytes]]] = {}

    def land(self, name: str, block: bytes, at: int) -> None:
        self._landed.setdefault(name, []).append((at, block))

    def read(self, name: str, at: int) -> bytes:
        """As it was at ``at``."""
        for landed, block in reversed(self._landed.get(name, [])):
            if landed <= at:
                return block
        return bytes(4_096)


def place(host: HostId) -> Place:
    return Place(installation_id=OURS, domain_id=DOMAIN, index=INDEX[host])


def plain_slot(host: HostId, boot: BootId, counter: int) -> Slot:
    return Slot(
        installation_id=OURS,
        domain_id=DOMAIN,
        index=INDEX[host],
        host_id=host,
        boot=boot,
        counter=counter,
        declaration=Declaration(waived=True),
    )


def empty_mailbox() -> Mailbox:
    return Mailbox(
        installation_id=OURS, domain_id=DOMAIN, index=INDEX[WRITER], host_id=WRITER, counter=0
    )
