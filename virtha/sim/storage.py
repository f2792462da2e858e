"""Shared storage, as truth: which host wrote which VM's disk, as what incarnation, and when that landed.

A VM that runs writes at its interval. Nothing happens at each write: a stretch of them is one ``Stretch``, and
what landed between two moments is counted when somebody asks. A host that does not reach the storage keeps what
was written in its kernel's queue, which outlives the QEMU that wrote it: it lands when the path is back, unless
the host lost its power before. So a late write of a dead copy is in the log like every other.
"""

from collections.abc import Callable
from typing import NamedTuple

from virtha.model.ids import Incarnation, VmId
from virtha.sim.kernel import Kernel

WRITE_MS = 500
"""Between two writes of a guest that nobody asked to write."""


class Writer(NamedTuple):
    """Local restarts keep the incarnation (ADR 4): they are the same writer."""

    host: str
    incarnation: Incarnation


class Stretch:
    """Writes of one writer at ``began_ms``, and each interval after it, until ``ended_ms``."""

    __slots__ = ("began_ms", "ended_ms", "interval_ms", "writer")

    def __init__(self, writer: Writer, began_ms: int, interval_ms: int) -> None:
        self.writer = writer
        self.began_ms = began_ms
        self.ended_ms: int | None = None
        self.interval_ms = interval_ms

    def count(self, after_ms: int, until_ms: int) -> int:
        """Writes that landed in (after, until]."""
        end = until_ms if self.ended_ms is None else min(until_ms, self.ended_ms)
        return max(0, self._landed(end) - self._landed(after_ms))

    def _landed(self, until_ms: int) -> int:
        return 0 if until_ms < self.began_ms else (until_ms - self.began_ms) // self.interval_ms + 1


class Disk:
    """All disks of one VM."""

    def __init__(self) -> None:
        self.interval_ms = WRITE_MS
        self.stretches: list[Stretch] = []
        self.writers: list[Writer] = []
        """In the order of their first landed writes: the last is the current one."""

    def open_stretch(self) -> Stretch | None:
        last = self.stretches[-1] if self.stretches else None
        return last if last is not None and last.ended_ms is None else None


class HostPath:
    """One host's way to the storage, and what waits in its kernel."""

    def __init__(self) -> None:
        self.up = True
        self.awake = True
        self.running: dict[VmId, Writer] = {}
        self.queue: dict[tuple[VmId, Writer], int] = {}
        """(VM, writer) to the moment of the first write that has not landed."""

    @property
    def lands(self) -> bool:
        return self.up and self.awake


class SharedStorage:
    """``on_breach`` gets a sentence whenever the writes of two writers interleave on one disk."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._disks: dict[VmId, Disk] = {}
        self._paths: dict[str, HostPath] = {}
        self.on_breach: Callable[[VmId, str], None] = lambda _vm_id, _what: None

    def disk(self, vm_id: VmId) -> Disk:
        return self._disks.setdefault(vm_id, Disk())

    def path(self, host: str) -> HostPath:
        return self._paths.setdefault(host, HostPath())

    # What happens to QEMUs and hosts

    def runs(self, vm_id: VmId, writer: Writer) -> None:
        """Its processors run there from now on."""
        path = self.path(writer.host)
        path.running[vm_id] = writer
        self._begin(path, vm_id, writer)

    def stands(self, vm_id: VmId, host: str) -> None:
        """They stand still, or its QEMU is gone. What it wrote before may still be in the kernel's queue."""
        path = self.path(host)
        writer = path.running.pop(vm_id, None)
        if writer is not None and path.lands:
            self._end(vm_id, writer)

    def power_lost(self, host: str) -> None:
        """With all that its kernel had still to write."""
        path = self.path(host)
        for vm_id in list(path.running):
            self.stands(vm_id, host)
        path.queue.clear()
        path.awake = True

    def set_up(self, host: str, *, up: bool) -> None:
        self._change(host, up=up)

    def set_awake(self, host: str, *, awake: bool) -> None:
        """A host that hangs writes nothing and keeps all."""
        self._change(host, awake=awake)

    # What readers see

    def reaches(self, host: str) -> bool:
        return self.path(host).lands

    def written(self, vm_id: VmId, after_ms: int, until_ms: int) -> bool:
        """Whether anything landed on its disks in (after, until]."""
        return any(one.count(after_ms, until_ms) for one in self.disk(vm_id).stretches)

    # Inside

    def _change(self, host: str, *, up: bool | None = None, awake: bool | None = None) -> None:
        path = self.path(host)
        before = path.lands
        path.up = path.up if up is None else up
        path.awake = path.awake if awake is None else awake
        if path.lands == before:
            return
        if not path.lands:
            for vm_id, writer in path.running.items():
                self._end(vm_id, writer)
                path.queue[vm_id, writer] = self._kernel.now
            return
        queue, path.queue = path.queue, {}
        for vm_id, writer in queue:
            self._land(vm_id, writer)
        for vm_id, writer in path.running.items():
            self._begin(path, vm_id, writer)

    def _begin(self, path: HostPath, vm_id: VmId, writer: Writer) -> None:
        if not path.lands:
            path.queue.setdefault((vm_id, writer), self._kernel.now)
            return
        disk = self.disk(vm_id)
        still = disk.open_stretch()
        if still is not None and still.writer == writer:
            return
        if still is not None:
            self.on_breach(vm_id, f"{_name(writer)} writes while {_name(still.writer)} does")
            still.ended_ms = self._kernel.now
        self._note(vm_id, disk, writer)
        disk.stretches.append(Stretch(writer, self._kernel.now, disk.interval_ms))

    def _end(self, vm_id: VmId, writer: Writer) -> None:
        still = self.disk(vm_id).open_stretch()
        if still is not None and still.writer == writer:
            still.ended_ms = self._kernel.now

    def _land(self, vm_id: VmId, writer: Writer) -> None:
        """One late write; it is a stretch of its own."""
        disk = self.disk(vm_id)
        still = disk.open_stretch()
        if still is not None and still.writer != writer:
            self.on_breach(
                vm_id, f"a late write of {_name(writer)} lands while {_name(still.writer)} writes"
            )
        self._note(vm_id, disk, writer)
        late = Stretch(writer, self._kernel.now, disk.interval_ms)
        late.ended_ms = self._kernel.now
        disk.stretches.insert(len(disk.stretches) - (still is not None), late)

    def _note(self, vm_id: VmId, disk: Disk, writer: Writer) -> None:
        if disk.writers and disk.writers[-1] == writer:
            return
        if writer in disk.writers:
            self.on_breach(vm_id, f"{_name(writer)} writes again after {_name(disk.writers[-1])}")
        disk.writers.append(writer)


def _name(writer: Writer) -> str:
    return f"{writer.host} (incarnation {writer.incarnation})"
