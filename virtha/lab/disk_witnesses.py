"""Who writes to the disks of VMs, asked of the kernel alone: libvirt and agents may be dead meanwhile.

Two witnesses at once. Which hosts' storage wrote to each file, in order (fanotify on the file behind the FUSE mounts: the
one that writes is the host's FUSE process); a thread of its own reads that at once, for writes of one process to one file that nobody has
read in between may be told as one. And which QEMUs hold QEMU's own write lock of the image; a live migration's target
takes it when its source has let it go.
"""

import os
import selectors
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId, command_line
from virtha.lab.node import STORAGE_NAME, qemu_guest
from virtha.lab.write_notices import identity, watch_writes, writers

LOOK_S = 0.05
HOSTS_LOOK_S = 0.5
STRANGER = "process "
"""A writer that is no host's storage."""
WRITE_LOCK_BYTE = 101
"""QEMU, block/file-posix.c: RAW_LOCK_PERM_BASE (100) + the bit of BLK_PERM_WRITE (1)."""


class DiskStory:
    """What happened to one disk."""

    def __init__(self, vm: str, file: Path, seen_as: str) -> None:
        self.vm = vm
        self.file = file
        self.seen_as = seen_as
        """By every QEMU that has it."""
        self.writers: list[str] = []
        """Hosts by what they wrote, in order; one after another are one."""
        self.locked: list[str] = []
        """The same of the write lock."""
        self.twice: list[str] = []
        """When two QEMUs held it."""
        self._holding: dict[ProcessId, Path] = {}
        """A QEMU's descriptor that held the lock: that one is looked at first, for each QEMU has dozens."""

    def may_write(self, process: ProcessId) -> bool:
        """Whether that QEMU holds the write lock now."""
        known = self._holding.get(process)
        if known is not None and _holds(process.pid, known, self.seen_as):
            return True
        try:
            descriptors = list(Path(f"/proc/{process.pid}/fd").iterdir())
        except OSError:
            return False
        for one in descriptors:
            if _holds(process.pid, one, self.seen_as):
                self._holding[process] = one
                return True
        return False

    @property
    def double_runs(self) -> int:
        """Of a VM that is never moved back: writes of a host after another one's, of nobody's host, and locks held twice."""
        return len(self.writers) - len(set(self.writers)) + self.strangers + len(self.twice)

    @property
    def strangers(self) -> int:
        """Writes of what is no host's storage."""
        return sum(name.startswith(STRANGER) for name in self.writers)


class DiskWitnesses:
    """Use as a context manager around whatever may go wrong. ``disks``: per VM the path of its disk, below its storage domain."""

    def __init__(self, lab: Lab, disks: Mapping[str, str]) -> None:
        self._lab = lab
        domain = Path(lab.directory, "storage", STORAGE_NAME)
        seen = lab.hosts[0].storage
        self.of = {vm: DiskStory(vm, domain / path, str(seen / path)) for vm, path in disks.items()}
        self._storages: dict[int, str] = {}
        self._qemus: dict[str, dict[str, ProcessId]] = {}
        """Per VM, host by host."""
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._until_over, args=(watch,), name=name, daemon=True)
            for watch, name in ((self._hear, "disk-writes"), (self._look, "disk-locks"))
        ]
        self._notices = -1
        self.looks = 0
        self.error: BaseException | None = None

    def __enter__(self) -> "DiskWitnesses":
        self._notices = watch_writes([disk.file for disk in self.of.values()])
        self._files = {identity(disk.file.stat()): disk for disk in self.of.values()}
        self._look_at_hosts()
        for one in self._threads:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for one in self._threads:
            one.join(30)
        self._until_over(self._read_notices)  # what came as it was told to end
        os.close(self._notices)

    def _until_over(self, watch: Callable[[], None]) -> None:
        try:
            watch()
        except BaseException as error:
            self.error = error

    def _hear(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._notices, selectors.EVENT_READ)
            while not self._over.is_set():
                if ready.select(HOSTS_LOOK_S):
                    self._read_notices()

    def _look(self) -> None:
        looked_s = 0.0
        while not self._over.wait(LOOK_S):
            if time.monotonic() > looked_s + HOSTS_LOOK_S:
                self._look_at_hosts()
                looked_s = time.monotonic()
            for disk in self.of.values():
                self._look_at_locks(disk)
            self.looks += 1

    def _look_at_hosts(self) -> None:
        qemus: dict[str, dict[str, ProcessId]] = {vm: {} for vm in self.of}
        for host in self._lab.hosts:
            for process in host.processes():
                words = command_line(process)
                if words and words[0] == "bindfs":
                    self._storages[process.pid] = host.name
                elif (vm := qemu_guest(words)) in qemus:
                    qemus[vm][host.name] = process
        self._qemus = qemus

    def _read_notices(self) -> None:
        for file, pid in writers(self._notices):
            if pid not in self._storages:
                self._look_at_hosts()  # of a host that has just booted
            _note(self._files[file].writers, self._storages.get(pid, f"{STRANGER}{pid}"))

    def _look_at_locks(self, disk: DiskStory) -> None:
        qemus = self._qemus[disk.vm]
        first = [name for name, process in qemus.items() if disk.may_write(process)]
        for name in first:
            _note(disk.locked, name)
        # The second answer is younger: who held it in the first may have let go by then, so all are asked again.
        if len(first) > 1 and all(disk.may_write(qemus[name]) for name in first):
            disk.twice.append(f"look {self.looks}: {', '.join(first)}")


def _holds(pid: int, descriptor: Path, file: str) -> bool:
    try:
        if str(descriptor.readlink()) != file:
            return False
        lines = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text().splitlines()
    except OSError:
        return False
    locks = [line.split() for line in lines if line.startswith("lock:")]
    return any(_covers(words) for words in locks)


def _covers(words: list[str]) -> bool:
    """``lock: 1: OFDLCK ADVISORY READ -1 00:27:42 100 101``."""
    first, last = words[-2], words[-1]
    return int(first) <= WRITE_LOCK_BYTE and (last == "EOF" or int(last) >= WRITE_LOCK_BYTE)


def _note(names: list[str], name: str) -> None:
    if not names or names[-1] != name:
        names.append(name)
