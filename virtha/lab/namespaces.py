"""Network namespaces and the processes inside: found by what the kernel says, never by name.

A lab's processes are those whose network namespace is one of the lab's: that holds for every child
of a child, and also when the command that made them died before it could write their ids down.
"""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from virtha.lab.commands import run
from virtha.model.errors import Failed
from virtha.model.value import Value

NETNS_DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x4000_0000
"""Linux, include/uapi/linux/sched.h."""


class ProcessId(Value, frozen=True, kw_only=True):
    """A process for certain: ids are used again, an id with its start time is not."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat: clock ticks from the machine's boot."""

    def is_alive(self) -> bool:
        """A zombie counts as dead: it runs nothing."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.start_ticks and found[0] not in "ZX"


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time; None: no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold blanks and brackets
    return fields[0], int(fields[19])


def identify(pid: int) -> ProcessId | None:
    """None: it is gone already."""
    found = _stat(pid)
    return None if found is None else ProcessId(pid=pid, start_ticks=found[1])


def kill(process: ProcessId, number: int = signal.SIGKILL) -> bool:
    """Send a signal to exactly this process; False when it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        # Between opening and looking the id could have been given to another: the open one counts.
        if not process.is_alive():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(processes: Iterable[ProcessId], *, timeout_s: float) -> list[ProcessId]:
    """Wait until all are dead; those that are not by then."""
    left = list(processes)
    deadline = time.monotonic() + timeout_s
    while left := [process for process in left if process.is_alive()]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.01)
    return []


def add_network_namespace(name: str) -> None:
    if not (NETNS_DIRECTORY / name).exists():
        run(["ip", "netns", "add", name])


def delete_network_namespace(name: str) -> None:
    """Also one that is only half there: the name can outlive its namespace (reboot, crash)."""
    path = NETNS_DIRECTORY / name
    if not path.exists():
        return
    try:
        run(["ip", "netns", "del", name])
    except Failed:
        path.unlink(missing_ok=True)


def network_namespaces(prefix: str) -> list[str]:
    if not NETNS_DIRECTORY.is_dir():
        return []
    return sorted(path.name for path in NETNS_DIRECTORY.iterdir() if path.name.startswith(prefix))


def processes_in_network(names: Iterable[str]) -> list[ProcessId]:
    """All processes of the machine whose network namespace is one of these."""
    wanted = set()
    for name in names:
        try:
            found = (NETNS_DIRECTORY / name).stat()
        except OSError:
            continue
        wanted.add((found.st_dev, found.st_ino))
    return [] if not wanted else _processes_with("net", wanted)


def processes_with_init(init: ProcessId) -> list[ProcessId]:
    """All processes of the PID namespace whose process 1 this is, itself included."""
    try:
        found = Path(f"/proc/{init.pid}/ns/pid").stat()
    except OSError:
        return []
    return _processes_with("pid", {(found.st_dev, found.st_ino)})


def _processes_with(kind: str, wanted: set[tuple[int, int]]) -> list[ProcessId]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "ns" / kind).stat()
        except OSError:
            continue  # it ended, or it is a zombie, while we looked
        if (status.st_dev, status.st_ino) in wanted:
            process = identify(int(entry.name))
            if process is not None and process.is_alive():
                found.append(process)
    return found


def inner_pid(process: ProcessId) -> int | None:
    """Its id inside its own (innermost) PID namespace."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return None


def command_line(process: ProcessId) -> list[str]:
    try:
        raw = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")[:-1]


def enter_network(name: str) -> None:
    """Move the calling thread into a network namespace; sockets it has keep theirs.

    Python 3.11 has no ``os.setns`` yet, so the C library is asked.
    """
    with (NETNS_DIRECTORY / name).open("rb") as handle:
        library = ctypes.CDLL(None, use_errno=True)
        if library.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise Failed(f"can't enter network namespace {name}: {os.strerror(error)}")
