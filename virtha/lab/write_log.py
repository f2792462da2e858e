"""Every write to the VMs' disks, by which copy and when, asked of the kernel alone: libvirt, agents and guests may be dead meanwhile.

The kernel tells of each write to an image behind the hosts' FUSE mounts (fanotify), in the one order in which they were done, and of the
process that did it: the FUSE process of one boot of one host. Which QEMU that was for is told by what runs there. Two writes
of one process to one file are told as one while nobody has read the first; a thread of its own reads them at once, so that a
late write of an old copy hides behind an earlier one only if both come within some milliseconds.
"""

import os
import selectors
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId, command_line
from virtha.lab.node import qemu_guest
from virtha.lab.write_judge import Copy, Violation, Write, WriteJudge
from virtha.lab.write_notices import FileIdentity, identity, watch_writes, writers

HOSTS_LOOK_S = 1.0


class WriteLog:
    """Judges and notes each write to the disks while it is entered. ``disks``: image -> (VM, name of the disk)."""

    def __init__(self, lab: Lab, disks: Mapping[Path, tuple[str, str]], log: Path) -> None:
        self._lab = lab
        self._files = list(disks)
        self._disks = {identity(path.stat()): disk for path, disk in disks.items()}
        self._path = log
        self._storages: dict[int, str] = {}
        """FUSE process, one per boot -> its host, also those of boots that are over."""
        self._copies: dict[tuple[int, str], ProcessId] = {}
        """(FUSE process, VM) -> the newest QEMU that was seen in that boot."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="write-log", daemon=True)
        self._notices = -1
        self.judge = WriteJudge()
        self.violated = threading.Event()
        """Also set when it can see no more: then nothing can be said of what is written."""
        self.error: BaseException | None = None

    def __enter__(self) -> "WriteLog":
        self._notices = watch_writes(self._files)
        self._look_at_hosts()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        os.close(self._notices)

    @property
    def violations(self) -> list[Violation]:
        return list(self.judge.violations)

    def _watch(self) -> None:
        try:
            with self._path.open("a") as log, selectors.DefaultSelector() as ready:
                ready.register(self._notices, selectors.EVENT_READ)
                looked_s = 0.0
                while not self._over.is_set():
                    if time.monotonic() > looked_s + HOSTS_LOOK_S:
                        self._look_at_hosts()
                        looked_s = time.monotonic()
                        log.flush()
                    if ready.select(HOSTS_LOOK_S):
                        self._note(writers(self._notices), log)
                self._note(writers(self._notices), log)  # what came as it was told to end
        except BaseException as error:
            self.error = error
            self.violated.set()

    def _note(self, told: list[tuple[FileIdentity, int]], log: TextIO) -> None:
        at_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        for file, pid in told:
            vm, disk = self._disks[file]
            copy = self._copy(pid, vm)
            host = self._storages.get(pid, f"process {pid}")
            write = Write(at_ms=at_ms, vm=vm, disk=disk, host=host, copy=copy)
            log.write(f"{write}\n")
            if (violation := self.judge.saw(write)) is not None:
                log.write(f"# {violation}\n")
                log.flush()
                self.violated.set()

    def _copy(self, storage: int, vm: str) -> Copy | None:
        """The newest that ran there in that boot, even if it is gone: its last write may have been under way."""
        process = self._copies.get((storage, vm))
        if process is None or not process.is_alive():
            self._look_at_hosts()
            process = self._copies.get((storage, vm))
        if process is None:
            return None
        return Copy(host=self._storages[storage], pid=process.pid, start_ticks=process.start_ticks)

    def _look_at_hosts(self) -> None:
        for host in self._lab.hosts:
            storages: list[int] = []
            qemus: dict[str, ProcessId] = {}
            for process in host.processes():
                words = command_line(process)
                if words and Path(words[0]).name == "bindfs":
                    storages.append(process.pid)
                elif (vm := qemu_guest(words)) is not None:
                    qemus[vm] = process
            for storage in storages:
                self._storages[storage] = host.name
                for vm, process in qemus.items():
                    before = self._copies.get((storage, vm))
                    if before is None or before.start_ticks <= process.start_ticks:
                        self._copies[(storage, vm)] = process
