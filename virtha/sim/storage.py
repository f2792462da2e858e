"""Shared storage, as truth: which host wrote which VM's disk, as what incarnation, and when that landed.

A VM that runs writes at its interval. Nothing happens at each write: a stretch of them is one ``Stretch``, and
what landed between two moments is counted when somebody asks. A host whose storage hangs keeps what was written in
its kernel's queue, which outlives the QEMU that wrote it: it lands when the path is back, unless the host lost its
power before. So a late write of a dead copy is in the log like every other. A path that answers with errors keeps
nothing: its QEMUs stop on them.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from virtha.model.ids import Incarnation, StorageDomainId, VmId
from virtha.sim.kernel import Kernel

SHARED = StorageDomainId("shared")
"""The domain of a world that names no other."""
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


class PathState(StrEnum):
    WELL = "well"
    READ_ONLY = "read-only"
    ERRORS = "errors"
    """Each read and write ends with an error, at once."""
    STALLED = "stalled"
    """Nothing ends: what was asked waits in the kernel."""


class HostPath:
    """One host's way to one storage domain, and what waits in its kernel."""

    def __init__(self) -> None:
        self.state = PathState.WELL
        self.awake = True
        self.shut_out = False
        """Its cluster takes nothing from this host."""
        self.running: dict[VmId, Writer] = {}
        self.queue: dict[tuple[VmId, Writer], int] = {}
        """(VM, writer) to the moment of the first write that has not landed."""

    @property
    def lands(self) -> bool:
        return self.awake and self.state is PathState.WELL and not self.shut_out

    @property
    def reads(self) -> bool:
        well = self.state in (PathState.WELL, PathState.READ_ONLY)
        return self.awake and well and not self.shut_out

    @property
    def hangs(self) -> bool:
        return not self.awake or self.state is PathState.STALLED


class SharedStorage:
    """All domains. ``on_breach`` gets a sentence whenever the writes of two writers interleave on one disk."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._disks: dict[VmId, Disk] = {}
        self._paths: dict[tuple[str, StorageDomainId], HostPath] = {}
        self._domains: dict[VmId, StorageDomainId] = {}
        self.on_breach: Callable[[VmId, str], None] = lambda _vm_id, _what: None
        self.on_failed: Callable[[VmId, str], None] = lambda _vm_id, _host: None
        """A VM that runs on that host writes, and gets an error."""

    def disk(self, vm_id: VmId) -> Disk:
        return self._disks.setdefault(vm_id, Disk())

    def place(self, vm_id: VmId, domain: StorageDomainId) -> None:
        """All disks of that VM lie there; before it first runs."""
        self._domains[vm_id] = domain

    def domain_of(self, vm_id: VmId) -> StorageDomainId:
        return self._domains.get(vm_id, SHARED)

    def path(self, host: str, domain: StorageDomainId = SHARED) -> HostPath:
        return self._paths.setdefault((host, domain), HostPath())

    def _path_of(self, vm_id: VmId, host: str) -> HostPath:
        return self.path(host, self.domain_of(vm_id))

    # What happens to QEMUs and hosts

    def runs(self, vm_id: VmId, writer: Writer) -> None:
        """Its processors run there from now on."""
        path = self._path_of(vm_id, writer.host)
        path.running[vm_id] = writer
        self._begin(path, vm_id, writer)

    def stands(self, vm_id: VmId, host: str) -> None:
        """They stand still, or its QEMU is gone. What it wrote before may still be in the kernel's queue."""
        path = self._path_of(vm_id, host)
        writer = path.running.pop(vm_id, None)
        if writer is not None and path.lands:
            self._end(vm_id, writer)

    def power_lost(self, host: str) -> None:
        """With all that its kernel had still to write."""
        for (name, _), path in self._paths.items():
            if name != host:
                continue
            for vm_id in list(path.running):
                self.stands(vm_id, host)
            path.queue.clear()
            path.awake = True

    def set_state(self, host: str, state: PathState, domain: StorageDomainId = SHARED) -> None:
        self._change(host, self.path(host, domain), state=state)

    def set_up(self, host: str, *, up: bool) -> None:
        """The way to the domain of a world that names no other."""
        self.set_state(host, PathState.WELL if up else PathState.STALLED)

    def set_awake(self, host: str, *, awake: bool) -> None:
        """A host that hangs writes nothing and keeps all."""
        for name, domain in [key for key in self._paths if key[0] == host]:
            self._change(name, self.path(name, domain), awake=awake)

    def shut_out(self, host: str, domain: StorageDomainId, *, out: bool) -> None:
        """What waits in its kernel, and what it writes from now on, ends with an error; as soon as it is awake."""
        path = self.path(host, domain)
        if path.shut_out is out:
            return
        if out and path.hangs:
            path.shut_out = True  # noticed when it thaws
            return
        self._change(host, path, shut_out=out)

    # What readers see

    def reaches(self, host: str, domain: StorageDomainId = SHARED) -> bool:
        return self.path(host, domain).lands

    def outstanding(self, vm_id: VmId, host: str) -> bool:
        """Something that it wrote there waits in that host's kernel, whether its QEMU lives or not."""
        path = self._paths.get((host, self.domain_of(vm_id)))
        return path is not None and any(queued == vm_id for queued, _ in path.queue)

    def written(self, vm_id: VmId, after_ms: int, until_ms: int) -> bool:
        """Whether anything landed on its disks in (after, until]."""
        return any(one.count(after_ms, until_ms) for one in self.disk(vm_id).stretches)

    # Inside

    def _change(
        self,
        host: str,
        path: HostPath,
        *,
        state: PathState | None = None,
        awake: bool | None = None,
        shut_out: bool | None = None,
    ) -> None:
        before = (path.state, path.awake, path.shut_out)
        path.state = path.state if state is None else state
        path.awake = path.awake if awake is None else awake
        path.shut_out = path.shut_out if shut_out is None else shut_out
        if (path.state, path.awake, path.shut_out) == before:
            return
        if not path.lands:
            if not path.hangs:
                path.queue.clear()  # each ends with an error
            for vm_id, writer in list(path.running.items()):
                self._end(vm_id, writer)
                self._fail(path, vm_id, writer)
            return
        queue, path.queue = path.queue, {}
        for vm_id, writer in queue:
            self._land(vm_id, writer)
        for vm_id, writer in path.running.items():
            self._begin(path, vm_id, writer)

    def _fail(self, path: HostPath, vm_id: VmId, writer: Writer) -> None:
        if path.hangs:
            path.queue.setdefault((vm_id, writer), self._kernel.now)
        else:
            self.on_failed(vm_id, writer.host)

    def _begin(self, path: HostPath, vm_id: VmId, writer: Writer) -> None:
        if not path.lands:
            self._fail(path, vm_id, writer)
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
