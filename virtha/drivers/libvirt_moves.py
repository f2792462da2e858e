"""Live migrations away from this host, each led by a process of its own (``libvirt_mover``, ADR 14)."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import msgspec
import structlog

from virtha.drivers.libvirt_mover import MoveRequest
from virtha.model.facts import Result
from virtha.model.ids import VmId
from virtha.model.orders import MoveDestination
from virtha.model.value import Value
from virtha.ports.hypervisor import HypervisorTimeout, MoveEnd, MoveProgress

Answer = TypeVar("Answer")
Look = Callable[[str, VmId, Callable[["libvirt.virDomain"], Answer]], Awaitable[Answer]]
LEFT_S = 5.0
LEFT_POLL_S = 0.02

_log = structlog.get_logger(__name__)


class Mover(Value, frozen=True, kw_only=True):
    """One file per mover that is there; ``start_ticks`` (/proc/PID/stat, field 22) tells its number from a later one's."""

    pid: int
    start_ticks: int


class Movers:
    """The processes, through restarts of whoever began them."""

    def __init__(self, directory: Path, source_uri: str) -> None:
        """``directory``: on a tmpfs, of root alone."""
        self._directory = directory
        self._uri = source_uri
        self.command: tuple[str, ...] = (sys.executable, "-m", "virtha.drivers.libvirt_mover")

    async def lead(
        self,
        vm_id: VmId,
        destination: MoveDestination,
        *,
        tls_directory: Path,
        serial_directory: str,
    ) -> MoveEnd:
        """Cancelled, it leaves the mover alone."""
        request = MoveRequest(
            vm_id=vm_id,
            source_uri=self._uri,
            destination=destination,
            relay_socket=str(self._directory / f"{vm_id}.sock"),
            tls_directory=str(tls_directory),
            serial_directory=serial_directory,
        )
        pid = self._begin(vm_id, msgspec.json.encode(request))
        # Not asyncio's subprocess: that kills what still runs when the agent's event loop is closed.
        while (code := _exit_code(pid)) is None:  # noqa: ASYNC110 - no event of ours tells it
            await asyncio.sleep(LEFT_POLL_S)
        return self._end_of(vm_id, pid, code)

    def _begin(self, vm_id: VmId, request: bytes) -> int:
        # The socket of a mover that was killed is removed by asyncio's server; the directory is of root alone.
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        reading, writing = os.pipe()
        # Unbuffered: what a mover that has ended could not be told would be written, and fail, once more at the close.
        with os.fdopen(writing, "wb", buffering=0) as asked:
            with os.fdopen(reading, "rb", buffering=0), self._said(vm_id).open("wb") as said:
                pid = os.posix_spawn(
                    self.command[0],
                    self.command,
                    dict(os.environ),
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, reading, 0),
                        (os.POSIX_SPAWN_DUP2, said.fileno(), 1),
                    ],
                    setsid=True,
                )
            # Before it has its request it does nothing: whoever comes after us finds it by this file.
            self._note(vm_id, pid)
            with contextlib.suppress(OSError):
                asked.write(request)
        return pid

    def _end_of(self, vm_id: VmId, pid: int, code: int) -> MoveEnd:
        try:
            end = msgspec.json.decode(self._said(vm_id).read_bytes(), type=MoveEnd)
        except (OSError, msgspec.MsgspecError):
            end = MoveEnd(result=Result.UNKNOWN, detail=f"its mover ended with {code}")
        found = self._read(vm_id)
        if found is not None and found.pid == pid:
            self._path(vm_id).unlink(missing_ok=True)
            self._said(vm_id).unlink(missing_ok=True)
        return end

    def _said(self, vm_id: VmId) -> Path:
        return self._directory / f"{vm_id}.said"

    def _note(self, vm_id: VmId, pid: int) -> None:
        ticks = _start_ticks(pid)
        if ticks is None:
            return
        path = self._path(vm_id)
        temporary = path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(Mover(pid=pid, start_ticks=ticks)))
        temporary.replace(path)

    def _path(self, vm_id: VmId) -> Path:
        return self._directory / f"{vm_id}.json"

    def _read(self, vm_id: VmId) -> Mover | None:
        try:
            return msgspec.json.decode(self._path(vm_id).read_bytes(), type=Mover)
        except (OSError, msgspec.MsgspecError):
            return None

    def find(self, vm_id: VmId) -> Mover | None:
        """The one that runs."""
        found = self._read(vm_id)
        if found is None or _start_ticks(found.pid) != found.start_ticks:
            return None
        return found

    async def end(self, vm_id: VmId) -> None:
        """Kill it, and wait until it is gone. Raises HypervisorTimeout."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEFT_S
        while (found := self.find(vm_id)) is not None:
            _kill(found)
            if loop.time() > deadline:
                raise HypervisorTimeout(f"the mover of {vm_id} does not end")
            await asyncio.sleep(LEFT_POLL_S)


class LibvirtMoves:
    """Implements ``DomainMoves``. ``look``: runs a function with the domain on a libvirt connection."""

    def __init__(
        self,
        movers: Movers,
        look: Look[Any],
        *,
        tls_directory: Path,
        serial_directory: str,
    ) -> None:
        self._movers = movers
        self._look = look
        self._tls_directory = tls_directory
        self._serial_directory = serial_directory

    async def move(self, vm_id: VmId, destination: MoveDestination) -> MoveEnd:
        end = await self._movers.lead(
            vm_id,
            destination,
            tls_directory=self._tls_directory,
            serial_directory=self._serial_directory,
        )
        _log.info("moved away", vm=vm_id, result=end.result, code=end.code, detail=end.detail)
        return end

    async def under_way(self, vm_id: VmId) -> bool:
        if self._movers.find(vm_id) is not None:
            return True
        return bool(await self._look("look for a migration of", vm_id, _leaves))

    async def abort_move(self, vm_id: VmId) -> None:
        def abort(domain: "libvirt.virDomain") -> bool:
            """Whether nothing of it is sent, nor was."""
            if not _leaves(domain):
                return domain.isActive() and not _stands(domain)
            try:
                domain.abortJob()
            except libvirt.libvirtError as error:
                # All of it was sent meanwhile, or it is over: how it ended is told by that.
                if _copies(domain):
                    raise
                _log.debug("libvirt.abort.late", vm_id=vm_id, error=str(error))
            return False

        if await self._look("end the migration of", vm_id, abort):
            # Its mover asks the target's libvirt, which may hang: there is no job to abort, and the word was not given.
            await self._movers.end(vm_id)

    async def leave_move(self, vm_id: VmId) -> None:
        await self._movers.end(vm_id)

    async def move_progress(self, vm_id: VmId) -> MoveProgress | None:
        def look(domain: "libvirt.virDomain") -> MoveProgress | None:
            if not domain.isActive() or not _leaves(domain):
                return None
            stats = domain.jobStats()
            total = stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_TOTAL)
            if total is None:
                return None
            return MoveProgress(
                bytes_total=int(total),
                bytes_left=int(stats.get(libvirt.VIR_DOMAIN_JOB_MEMORY_REMAINING, 0)),
            )

        progress: MoveProgress | None = await self._look("ask for the progress of", vm_id, look)
        return progress


def _leaves(domain: "libvirt.virDomain") -> bool:
    """Whether libvirt itself works at moving it away."""
    if not domain.isActive():
        return False
    stats = domain.jobStats()
    outgoing = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT
    return bool(stats.get(libvirt.VIR_DOMAIN_JOB_OPERATION) == outgoing)


def _stands(domain: "libvirt.virDomain") -> bool:
    """All of it was sent."""
    paused = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION
    return tuple(domain.state()) == paused


def _copies(domain: "libvirt.virDomain") -> bool:
    return _leaves(domain) and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING


def _exit_code(pid: int) -> int | None:
    """Of a child; None: it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return None if ended == 0 else os.waitstatus_to_exitcode(status)


def _start_ticks(pid: int) -> int | None:
    """None: there is no such process, or nothing of it but its number is left."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = data.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _kill(mover: Mover) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(mover.pid)
        try:
            if _start_ticks(mover.pid) == mover.start_ticks:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
