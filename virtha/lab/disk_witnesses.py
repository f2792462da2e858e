"""Who writes to the disks of VMs, asked of the kernel alone: libvirt and agents may be dead meanwhile.

Two witnesses at once. Which hosts' storage wrote to the file, in order (fanotify on the file behind the FUSE mounts: the
one that writes is the host's FUSE process). And which QEMUs hold QEMU's own write lock of the image; a live migration's target
takes it when its source has let it go.
"""

import ctypes
import os
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId, command_line
from virtha.lab.node import STORAGE_NAME

LOOK_S = 0.05
HOSTS_LOOK_S = 0.5
WRITE_LOCK_BYTE = 101
"""QEMU, block/file-posix.c: RAW_LOCK_PERM_BASE (100) + the bit of BLK_PERM_WRITE (1)."""
_NONBLOCK, _MARK_ADD, _MODIFY, _AT_FDCWD = 0x2, 0x1, 0x2, -100
"""Linux, include/uapi/linux/fanotify.h."""
_EVENT = struct.Struct("IBBHQii")


class Disk:
    """One VM's, and what was seen of it. ``path``: below the storage domain."""

    def __init__(self, lab: Lab, path: str) -> None:
        self.file = Path(lab.directory, f"storage/{STORAGE_NAME}", path)
        self.seen_as = str(lab.hosts[0].storage / path)
        self.writers: list[str] = []
        """Hosts by what they wrote, in order; one after another are one."""
        self.locked: list[str] = []
        """The same of the write lock."""
        self.twice: list[str] = []
        """When two QEMUs held it."""

    @property
    def was_given_back(self) -> bool:
        """Somebody wrote, another one after it, and then the first again: no failover does that."""
        return len(set(self.writers)) < len(self.writers)


class DiskWitnesses:
    """Use as a context manager around whatever may go wrong. ``disks``: VM to its disk's path below the storage domain."""

    def __init__(self, lab: Lab, disks: Mapping[str, str]) -> None:
        self._lab = lab
        self._disks = {vm: Disk(lab, path) for vm, path in disks.items()}
        self._by_inode: dict[tuple[int, int], Disk] = {}
        self._storages: dict[int, str] = {}
        self._qemus: dict[str, dict[str, ProcessId]] = {}
        """VM, host."""
        self._images: dict[int, Path] = {}
        """QEMU's process id to its descriptor that held the lock when it was last looked for."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="disk-witnesses", daemon=True)
        self._notices = -1
        self.looks = 0
        self.error: BaseException | None = None

    def __enter__(self) -> "DiskWitnesses":
        for disk in self._disks.values():
            found = disk.file.stat()
            self._by_inode[found.st_dev, found.st_ino] = disk
        self._notices = _watch_writes([disk.file for disk in self._disks.values()])
        self._look_at_hosts()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        os.close(self._notices)

    def of(self, vm: str) -> Disk:
        return self._disks[vm]

    def written_twice(self) -> set[str]:
        """VMs of which two copies wrote. Raises what ended the watch: then nobody looked."""
        if self.error is not None:
            raise self.error
        return {vm for vm, disk in self._disks.items() if disk.twice or disk.was_given_back}

    def _watch(self) -> None:
        try:
            looked_s = 0.0
            while not self._over.wait(LOOK_S):
                if time.monotonic() > looked_s + HOSTS_LOOK_S:
                    self._look_at_hosts()
                    looked_s = time.monotonic()
                self._read_notices()
                for vm, disk in self._disks.items():
                    self._look_at_locks(disk, self._qemus.get(vm, {}))
                self.looks += 1
        except BaseException as error:
            self.error = error

    def _look_at_hosts(self) -> None:
        qemus: dict[str, dict[str, ProcessId]] = {}
        for host in self._lab.hosts:
            for process in host.processes():
                words = command_line(process)
                if words and words[0] == "bindfs":
                    self._storages[process.pid] = host.name
                    continue
                guest = next((word for word in words if word.startswith("guest=")), None)
                if guest is not None:
                    vm = guest.removeprefix("guest=").partition(",")[0]
                    qemus.setdefault(vm, {})[host.name] = process
        self._qemus = qemus

    def _read_notices(self) -> None:
        try:
            data = os.read(self._notices, 1 << 16)
        except BlockingIOError:
            return
        while data:
            length, _, _, _, _, descriptor, pid = _EVENT.unpack_from(data)
            data = data[length:]
            if descriptor < 0:
                raise OSError("the kernel lost notices of writes")
            found = os.fstat(descriptor)
            os.close(descriptor)
            if pid not in self._storages:
                self._look_at_hosts()  # of a host that has just booted
            disk = self._by_inode[found.st_dev, found.st_ino]
            _note(disk.writers, self._storages.get(pid, f"process {pid}"))

    def _look_at_locks(self, disk: Disk, qemus: Mapping[str, ProcessId]) -> None:
        first = [name for name, process in qemus.items() if self._may_write(disk, process)]
        for name in first:
            _note(disk.locked, name)
        # The second answer is younger: who held it in the first may have let go by then, so all are asked again.
        if len(first) > 1 and all(self._may_write(disk, qemus[name]) for name in first):
            disk.twice.append(f"look {self.looks}: {', '.join(first)}")

    def _may_write(self, disk: Disk, process: ProcessId) -> bool:
        known = self._images.get(process.pid)
        if known is not None and _holds(disk, process.pid, known):
            return True
        try:
            descriptors = list(Path(f"/proc/{process.pid}/fd").iterdir())
        except OSError:
            return False
        for one in descriptors:
            if _holds(disk, process.pid, one):
                self._images[process.pid] = one
                return True
        return False


def _holds(disk: Disk, pid: int, descriptor: Path) -> bool:
    try:
        if str(descriptor.readlink()) != disk.seen_as:
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


def _watch_writes(files: list[Path]) -> int:
    """A descriptor that tells of each write to one of the files."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fanotify_mark.argtypes = [
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_char_p,
    ]
    descriptor = int(library.fanotify_init(_NONBLOCK, os.O_RDONLY))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    for file in files:
        path = os.fsencode(file)
        if library.fanotify_mark(descriptor, _MARK_ADD, _MODIFY, _AT_FDCWD, path) != 0:
            raise OSError(ctypes.get_errno(), f"fanotify_mark {file}")
    return descriptor
