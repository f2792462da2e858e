"""Storage and a watchdog of a guardian that is tested: real blocks that can hang or fail, and what the watchdog was told."""

import threading

from agent_bench import INSTALLATION

from virtha.drivers.directory_domain import DirectoryDomain
from virtha.model.ids import StorageDomainId
from virtha.model.slot import SlotReading
from virtha.ports.host_watchdog import ArmedWatchdog


class BreakableSlots(DirectoryDomain):
    """The real blocks behind a path that can hang or fail, as a thread feels it."""

    def __init__(self, path: str, domain_id: StorageDomainId) -> None:
        super().__init__(path, installation_id=INSTALLATION, domain_id=domain_id)
        self.way = self
        """What hangs and fails with it: the guardian has two of each domain, on one path."""
        self.goes = threading.Event()
        self.goes.set()
        self.fails = False
        self.failures = 0
        self.looks_at_slots = 0

    def read_slot(self, index: int) -> SlotReading:
        self.way.looks_at_slots += 1
        return super().read_slot(index)

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        self._pass()
        return super()._read_into(buffer, offset)

    def _write(self, block: int, data: bytes) -> None:
        self._pass()
        super()._write(block, data)

    def _pass(self) -> None:
        self.way.goes.wait()
        if self.way.fails:
            self.way.failures += 1
            raise OSError("the path fails")


class RecordedWatchdog:
    """A watchdog that never bites, and a reset that is only noted."""

    def __init__(self) -> None:
        self.timeout_ms = 0
        self.armings = 0
        self.feedings = 0
        self.resets = 0

    def runs_ms(self) -> int:
        return self.timeout_ms

    def arm(self, timeout_ms: int) -> ArmedWatchdog:
        self.timeout_ms = timeout_ms
        self.armings += 1
        return ArmedWatchdog(timeout_ms=timeout_ms, no_way_out=True)

    def feed(self) -> None:
        self.feedings += 1

    def disarm(self) -> None:
        raise AssertionError("it has no way out")

    def reset(self) -> None:
        self.resets += 1
