"""QEMUs as the kernel lists them, and how one is ended for sure. No libvirt."""

import asyncio
import os
import re
import signal
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from virtha.agent import gate_hook
from virtha.agent.gate import PROOF_VM_ID, grants_complete, read_grant
from virtha.agent.paths import AgentPaths
from virtha.model.ids import BootId, VmId
from virtha.model.value import Value
from virtha.sentinel.guardian import ProcessesSeen, QemuProcess

PROC = Path("/proc")
COMMAND_LINE_BYTES_MAX = 256 << 10
LOOK_DEADLINE_S = 5.0
_UUID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_log = structlog.get_logger(__name__)


def qemu_processes(proc: Path = PROC) -> tuple[QemuProcess, ...]:
    """All processes with ``-uuid <uuid>`` in their command line. Raises OSError: /proc is unreadable."""
    found = []
    for entry in os.scandir(proc):
        if entry.name.isdigit():
            process = _read_process(proc, int(entry.name))
            if process is not None:
                found.append(process)
    return tuple(sorted(found, key=lambda process: process.pid))


def _read_process(proc: Path, pid: int) -> QemuProcess | None:
    try:
        with (proc / str(pid) / "cmdline").open("rb") as file:
            words = file.read(COMMAND_LINE_BYTES_MAX).split(b"\0")
        program = words[0].rpartition(b"/")[2]
        if b"-uuid" not in words or not program.startswith((b"qemu", b"kvm")):
            return None
        uuid = words[words.index(b"-uuid") + 1]
        ticks = start_ticks(proc, pid)
    except (OSError, IndexError):
        return None  # it ended while we looked
    if ticks is None or not _UUID.fullmatch(uuid):
        return None
    return QemuProcess(pid=pid, start_ticks=ticks, vm_id=VmId(uuid.decode()))


class QemuWatch:
    """Whether a VM's QEMU still exists, as the kernel has it: libvirt's word that it ended is given
    before a process that hangs in the kernel (storage that does not answer) has written its last.

    Reading ``/proc`` of such a process may hang too, so it is done in one thread of its own; while
    that one hangs, every VM may run.
    """

    def __init__(
        self,
        look: Callable[[], tuple[QemuProcess, ...]] = qemu_processes,
        files: Callable[[QemuProcess, Collection[str]], "OpenFiles | None"] | None = None,
    ) -> None:
        """``files``: what one of them has open below some directories; the kernel's word by default."""
        self._look = look
        self._files = files
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="virtha-proc")
        self._looking: asyncio.Future[tuple[QemuProcess, ...]] | None = None

    async def may_run(self, vm_id: VmId) -> bool:
        found = await self._ids()
        return found is None or vm_id in found

    async def missing(self, vm_ids: Collection[VmId]) -> frozenset[VmId]:
        """Of these, who has no QEMU; nobody while that is not known."""
        found = await self._ids() if vm_ids else None
        return frozenset() if found is None else frozenset(vm_ids) - found

    async def _ids(self) -> frozenset[VmId] | None:
        found = await self._found()
        return None if found is None else frozenset(process.vm_id for process in found)

    async def _found(self) -> tuple[QemuProcess, ...] | None:
        if self._looking is None or self._looking.done():
            loop = asyncio.get_running_loop()
            self._looking = loop.run_in_executor(self._executor, self._look)
        # A look that is under way will do: what is asked for has been there for longer.
        try:
            async with asyncio.timeout(LOOK_DEADLINE_S):
                found = await asyncio.shield(self._looking)
        except (TimeoutError, OSError) as error:
            _log.error("the processes can't be read", error=str(error))
            return None
        return found

    async def writes_past_cache(self, vm_id: VmId, roots: Collection[str]) -> str | None:
        """None: whatever its QEMU writes below ``roots`` has landed when the kernel says that it has ended. Else why
        that can't be relied on, in words."""
        files = self._files or open_files
        found = await self._found()
        if found is None:
            return "its process can't be looked at"
        loop = asyncio.get_running_loop()
        for process in found:
            if process.vm_id != vm_id:
                continue
            try:
                async with asyncio.timeout(LOOK_DEADLINE_S):
                    opened = await loop.run_in_executor(self._executor, files, process, roots)
            except TimeoutError:
                opened = None
            if opened is None:
                return "what its process has open can't be told"
            if opened.buffered:
                return f"process {process.pid}"
        return None

    def close(self) -> None:
        self._executor.shutdown(wait=False)


def start_ticks(proc: Path, pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None: a zombie, which writes no more. Raises OSError: no such process."""
    data = (proc / str(pid) / "stat").read_bytes()
    # The name in parentheses may hold anything, so the fields are counted from its end.
    fields = data.rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def kill(process: QemuProcess, proc: Path = PROC) -> bool:
    """SIGKILL by pidfd; False: that process is gone already. Raises OSError (not permitted)."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # Looked at after the pidfd was opened: now the number can't pass to another process unseen.
        try:
            if start_ticks(proc, process.pid) != process.start_ticks:
                return False
        except OSError:
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def has_ended(process: QemuProcess, proc: Path = PROC) -> bool:
    """Reaped, or about to be with no thread left: one that is killed while a thread of it waits for its storage is
    neither. Raises OSError: /proc can't be read, so nothing is known."""
    folder = proc / str(process.pid)
    try:
        data = (folder / "stat").read_bytes()
        fields = data.rpartition(b")")[2].split()
        if int(fields[19]) != process.start_ticks:
            return True  # the number was used again
        if fields[0] not in (b"Z", b"X"):
            return False
        return [task.name for task in (folder / "task").iterdir()] == [str(process.pid)]
    except (FileNotFoundError, ProcessLookupError):
        return True


class OpenFiles(Value, frozen=True, kw_only=True):
    """Of one process, below some directories. ``buffered``: it may write there through the page cache, and such writes
    land after its end."""

    roots: frozenset[str] = frozenset()
    buffered: bool = False


def open_files(process: QemuProcess, roots: Collection[str], proc: Path = PROC) -> OpenFiles | None:
    """None: nobody can tell, as of a process that is ending. Asks the kernel only, never a file system."""
    folder = proc / str(process.pid)
    found, buffered = set(), False
    try:
        for opened in (folder / "fd").iterdir():
            try:
                path = str(opened.readlink())
                root = next((root for root in roots if path.startswith(root + "/")), None)
                if root is None:
                    continue
                flags = _open_flags((folder / "fdinfo" / opened.name).read_bytes())
            except FileNotFoundError:
                continue  # closed while we looked
            found.add(root)
            writes = flags & os.O_ACCMODE != os.O_RDONLY
            buffered = buffered or (writes and not flags & os.O_DIRECT)
        same = start_ticks(proc, process.pid) == process.start_ticks
    except OSError:
        return None
    return OpenFiles(roots=frozenset(found), buffered=buffered) if same else None


def _open_flags(about: bytes) -> int:
    """Of fdinfo: octal. Raises OSError: it says none."""
    for line in about.splitlines():
        name, _, value = line.partition(b":")
        if name == b"flags":
            return int(value, 8)
    raise OSError("fdinfo without flags")


def look(paths: AgentPaths, boot: BootId) -> ProcessesSeen:
    """One look: processes first, then grants, so that a start between the two is no suspect."""
    processes = qemu_processes()
    return ProcessesSeen(
        processes=processes, managed=_managed(paths), granted=_granted(paths, boot)
    )


def _managed(paths: AgentPaths) -> frozenset[VmId] | None:
    try:
        records = gate_hook.read_records(str(paths.gate / "records.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.error("the gate's records can't be read", error=str(error))
        return None
    if records is None:
        return frozenset()
    # The gate's own proof has no disk and ends by itself.
    return frozenset(VmId(vm_id) for vm_id in records.managed if vm_id != PROOF_VM_ID)


def _granted(paths: AgentPaths, boot: BootId) -> frozenset[VmId] | None:
    """None until the agent says that they are complete: somebody cleaned /run, which condemns nobody.

    Without that mark an empty directory would condemn every VM of the host.
    """
    if not grants_complete(paths, boot):
        return None
    granted = set()
    for path in paths.grants.glob("*.json"):
        grant = read_grant(path)
        if grant is None:
            # A grant that can't be read may be one: for that VM it counts.
            granted.add(VmId(path.stem))
        elif grant.boot == boot:
            granted.add(grant.vm)
    return frozenset(granted)
