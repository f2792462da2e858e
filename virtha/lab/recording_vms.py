"""VMs that write numbered records from their boot on, and what they acknowledged: read from outside, for as long as it is entered.

Their serial ports' logs are read from the hosts' disks, also of hosts that are off, and their records' disks behind all FUSE mounts.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from virtha.agent.paths import AgentPaths
from virtha.lab.lab import Lab
from virtha.lab.node import STORAGE_NAME
from virtha.lab.record_ledger import MARK, SECTOR, Ledger, LostRecord, acknowledged, lost
from virtha.lab.story import MEMORY_BYTES, Story

DISK_BYTES = 32 << 20
"""65,535 records: more than five hours of one writer."""
_TAIL_S = 0.5
_LINE_BYTES_MAX = 4_096


class RecordingVm(NamedTuple):
    name: str
    id: str
    disks: dict[Path, str]
    """Behind all mounts -> name."""
    records: Path
    """The one of them with the records."""


def make_recording_vm(story: Story, name: str, *, host: str | None = None) -> RecordingVm:
    """Highly available, with its records' disk, marked before its first start; it runs."""
    body = {
        "name": name,
        "memory_bytes": MEMORY_BYTES,
        "ha": True,
        "watchdog": {"model": "i6300esb", "action": "reset"},
        "nics": [{"bridge": "br0"}],
        "disks": [
            {"name": "boot", "image": "tiny", "storage_domain": STORAGE_NAME},
            {
                "name": "records",
                "size_bytes": DISK_BYTES,
                "format": "raw",
                "storage_domain": STORAGE_NAME,
            },
        ],
    }
    story.api.operate("/v1/vms", body)
    made = story.api.vm(name)["vm"]
    behind = Path(story.lab.directory, "storage", STORAGE_NAME)
    disks = {behind / disk["path"]: str(disk["name"]) for disk in made["disks"]}
    (records,) = (path for path, disk in disks.items() if disk == "records")
    with records.open("r+b") as disk:
        disk.write(MARK.ljust(SECTOR, b"\0"))
    story.start_vm(name, host=host)
    return RecordingVm(name, str(made["id"]), disks, records)


class _Tail:
    """One log, followed by its inode: virtlogd renames it when it is full."""

    def __init__(self) -> None:
        self.offset = 0

    def new_lines(self, path: Path) -> bytes:
        try:
            with path.open("rb") as log:
                size = log.seek(0, 2)
                if size < self.offset:  # another file by now, with the same inode
                    self.offset = 0
                log.seek(self.offset)
                data = log.read()
        except OSError:
            return b""
        # What a guest that dies leaves unfinished is ended by the next one's first line.
        whole = data.rfind(b"\n") + 1
        if whole == 0 and len(data) > _LINE_BYTES_MAX:
            whole = len(data)
        self.offset += whole
        return data[:whole]


class Recorders:
    """A context manager. ``failed`` has what broke the reading, if anything did."""

    def __init__(self, lab: Lab, vms: Sequence[RecordingVm]) -> None:
        self.vms = tuple(vms)
        self.error: BaseException | None = None
        self._serial = [Path(AgentPaths(root=str(host.root)).serial) for host in lab.hosts]
        self._ledgers = {vm.name: Ledger() for vm in vms}
        self._tails: dict[int, _Tail] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="records", daemon=True)

    def __enter__(self) -> "Recorders":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def newest(self) -> dict[str, int]:
        """VM -> the newest record that it acknowledged; 0: none yet."""
        with self._lock:
            return {name: ledger.newest for name, ledger in self._ledgers.items()}

    def acknowledged(self) -> int:
        """How many in all."""
        with self._lock:
            return sum(len(ledger.told) for ledger in self._ledgers.values())

    def lost(self) -> Iterator[tuple[str, LostRecord]]:
        """Of each VM, what it acknowledged so far and has no more."""
        for vm in self.vms:
            with self._lock:
                ledger = self._ledgers[vm.name]
                told, missing = dict(ledger.told), list(ledger.contradictions)
            with vm.records.open("rb") as disk:
                data = disk.read((max(told, default=0) + 1) * SECTOR)
            missing += lost(told, data)
            yield from ((vm.name, one) for one in missing)

    def _follow(self) -> None:
        try:
            while not self._over.wait(_TAIL_S):
                self.look()
            self.look()
        except BaseException as error:
            self.error = error

    def look(self) -> None:
        """At all that is new; the thread does it all the time."""
        for vm in self.vms:
            for directory in self._serial:
                for path in sorted(directory.glob(f"{vm.id}.log*")):
                    self._read(vm.name, path)

    def _read(self, name: str, path: Path) -> None:
        try:
            inode = path.stat().st_ino
        except OSError:
            return
        text = self._tails.setdefault(inode, _Tail()).new_lines(path)
        if text:
            with self._lock:
                self._ledgers[name].note(acknowledged(text))
