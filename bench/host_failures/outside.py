"""What a round looks like from outside of the product: libvirt's events, the kernel's processes and locks, who writes which disk."""

import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from host_failures.twice import ran_at_once, starts_of, wrote_in_turn
from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.lab import Lab
from virtha.lab.namespaces import ProcessId
from virtha.lab.node import Node, wait_until
from virtha.lab.watching import LibvirtWitness, Seen
from virtha.model.errors import Failed


class End:
    """When a process ended, for a lab host's process 1: when that host was dead."""

    def __init__(self, process: ProcessId) -> None:
        """Raises ProcessLookupError when it is gone."""
        self.at_s: float | None = None
        """The first to see it."""
        self._lock = threading.Lock()
        self._descriptor = os.pidfd_open(process.pid)
        threading.Thread(target=self._wait, name="end of a host", daemon=True).start()

    def note(self) -> None:
        """Whoever ended it has seen that it is dead. The thread that waits for it may learn that seconds later, where both
        processors are kept busy: in one of 33 runs it did after 14 s, and a start in between counted as one before the end."""
        self._found()

    def _wait(self) -> None:
        select.select([self._descriptor], [], [])
        self._found()
        os.close(self._descriptor)

    def _found(self) -> None:
        with self._lock:
            if self.at_s is None:
                self.at_s = time.monotonic()


class Outside:
    """Use as a context manager around a round. ``watched``: hosts whose libvirt tells; ``disks``: VM to its disk's path."""

    def __init__(self, lab: Lab, watched: Sequence[Node], disks: Mapping[str, str]) -> None:
        self._lab = lab
        self._libvirts = {host.name: LibvirtWitness(host) for host in watched}
        self._marks = {name: libvirt.mark() for name, libvirt in self._libvirts.items()}
        self._disks = DiskWitnesses(lab, disks)

    def __enter__(self) -> "Outside":
        self._disks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._disks.__exit__()
        for libvirt in self._libvirts.values():
            libvirt.__exit__()

    def file_of(self, vm: str) -> Path:
        """Its disk, behind all hosts' mounts of it."""
        return self._disks.of[vm].file

    def seen(self, kind: str | None = None) -> list[tuple[str, Seen]]:
        """Host and event, in the order of time."""
        found = [
            (name, seen)
            for name, libvirt in self._libvirts.items()
            for seen in libvirt.since(self._marks[name])
            if kind in (None, seen.kind)
        ]
        return sorted(found, key=lambda one: one[1].at_s)

    def first_of_each(self, kind: str) -> dict[str, float]:
        """VM to the moment (monotonic seconds)."""
        first: dict[str, float] = {}
        for _, seen in self.seen(kind):
            first.setdefault(seen.vm, seen.at_s)
        return first

    def wait_for_each(self, kind: str, vms: Sequence[str], *, timeout_s: float) -> dict[str, float]:
        wait_until(
            lambda: set(vms) <= self.first_of_each(kind).keys(),
            f"libvirt's '{kind}' of {', '.join(vms)}",
            timeout_s=timeout_s,
            pause_s=0.01,
        )
        return self.first_of_each(kind)

    def started_again(self) -> int:
        """Starts beyond the first of each VM: of those that took too long, and were taken back."""
        return sum(count - 1 for count in starts_of(self.seen()).values())

    def double_runs(self, vms: Sequence[str], dead: End | None) -> int:
        """VMs that were started while another host had them, or before their host was dead; that run twice now; whose image two
        QEMUs had locked; to whose disk one host wrote after another had begun."""
        seen = self.seen()
        early = {
            one.vm
            for _, one in seen
            if one.kind == "started"
            and dead is not None
            and (dead.at_s is None or one.at_s < dead.at_s)
        }
        twice = ran_at_once(seen) | {vm for vm in vms if len(self._lab.copies_of(vm)) > 1}
        if self._disks.error is not None:
            raise Failed(f"nobody saw who wrote: {self._disks.error}")
        starts = starts_of(seen)
        written = {
            vm
            for vm, disk in self._disks.of.items()
            if disk.twice or disk.strangers or wrote_in_turn(disk.writers, starts.get(vm, 0))
        }
        return len(twice | early | written)
