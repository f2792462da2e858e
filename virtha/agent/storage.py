"""Storage domains as this host sees them: header, VM records, images, space.

Nothing of a storage domain is touched outside its own worker thread: a hung export stalls its worker
and nothing else. Layout below a domain's path::

    .virtha/domain.json          installation and domain id (G7)
    .virtha/mark                 one at random (``storage_mark``)
    .virtha/vms/<vm id>.json     the highest incarnation that was started (G4)
    images/  disks/

On Ceph the first three are the objects ``virtha.domain``, ``virtha.mark`` and ``virtha.vm.<vm id>`` of the pool.
"""

import asyncio
import os
import queue
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import UNSET

from virtha.agent import ceph_records
from virtha.agent.files import Files, read_bounded
from virtha.agent.records import safe_name
from virtha.drivers.ceph_slots import CephSlots
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.model.errors import Failed, InvalidInput, Refused, Unavailable
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import (
    BootId,
    HostId,
    Incarnation,
    InstallationId,
    StorageDomainId,
    VmId,
)
from virtha.model.slot_round import slot_index
from virtha.model.value import Value

PROBE_DEADLINE_MS = 5_000
ORDER_DEADLINE_MS = 20_000
HEADER_BYTES_MAX = 65_536
HEADER = ".virtha/domain.json"
"""Below a domain's path."""
_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class DomainHeader(Value, frozen=True, kw_only=True):
    format: int = 1
    installation_id: InstallationId
    domain_id: StorageDomainId
    name: str


class CephHeader(DomainHeader, frozen=True, kw_only=True):
    """``cluster`` and ``pool_id`` of where it was written: a copy of the pool is another place."""

    cluster: str
    pool_id: int


class VmHeader(Value, frozen=True, kw_only=True):
    """Who last started the VM that has disks here."""

    format: int = 1
    installation_id: InstallationId
    vm_id: VmId
    incarnation: Incarnation
    host_id: HostId
    boot: BootId


class _Worker:
    """One daemon thread: a call that hangs in the kernel must not keep the agent from ending."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.pending = 0
        threading.Thread(target=self._run, name=f"virtha-{name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._calls.get()()

    async def call(self, call: Callable[[], _T], *, deadline_ms: int) -> _T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            self.pending -= 1
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def run() -> None:
            result, error = None, None
            try:
                result = call()
            except Exception as caught:  # raised again where its answer is awaited
                error = caught
            try:
                loop.call_soon_threadsafe(finish, result, error)
            except RuntimeError:
                return  # the loop has ended while this call hung

        self.pending += 1
        self._calls.put(run)
        async with asyncio.timeout(deadline_ms / 1_000):
            return await future


class StorageWorkers:
    """One worker per storage domain; a call behind one that hangs fails at once."""

    def __init__(self) -> None:
        self._workers: dict[StorageDomainId, _Worker] = {}
        self._hung: set[StorageDomainId] = set()

    async def call(self, domain: StorageDomain, call: Callable[[], _T], *, deadline_ms: int) -> _T:
        """Raises Unavailable when the storage does not answer in time; else what ``call`` raises."""
        worker = self._workers.get(domain.id)
        if worker is None:
            worker = self._workers[domain.id] = _Worker(f"storage-{domain.name}")
        if worker.pending == 0:
            self._hung.discard(domain.id)
        if domain.id in self._hung:
            raise _silent(domain)
        try:
            return await worker.call(call, deadline_ms=deadline_ms)
        except TimeoutError:
            self._hung.add(domain.id)
            raise _silent(domain) from None


def _silent(domain: StorageDomain) -> Unavailable:
    on_ceph = domain.ceph is not UNSET
    return Unavailable(
        f"storage domain {domain.name} ({domain.path}) does not answer",
        fix="look at 'ceph status'"
        if on_ceph
        else "see whether its mount is alive: 'findmnt' and the kernel's log",
    )


def inside(domain: StorageDomain, path: str) -> Path:
    """The absolute path of a file of the domain. Raises InvalidInput when it would leave it.

    Links inside the domain are refused, wherever they point: the next host may see another target.
    So are directories that are a storage domain themselves: what is in them is another's.
    Touches the storage: only in its worker.
    """
    if domain.ceph is not UNSET:
        raise Refused(
            f"storage domain {domain.name} is a Ceph pool: it has no files",
            code="problem.disk.outside",
            field="disk.path",
            fix="do that with a disk on a storage domain of kind directory",
        )
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise InvalidInput(
            f"'{path}' is not a path inside storage domain {domain.name}",
            code="problem.disk.outside",
            field="disk.path",
            fix="give a path below the domain's directory, for example disks/web1.qcow2",
        )
    if ".virtha" in parts:  # deeper down it would make a storage domain of a directory, below
        raise InvalidInput(
            "'.virtha' is the domain's own", code="problem.disk.outside", field="disk.path"
        )
    at = Path(domain.path)
    for part in parts:
        at = at / part
        try:
            is_link = stat.S_ISLNK(at.lstat().st_mode)
        except FileNotFoundError:
            break
        if is_link:
            raise InvalidInput(
                f"'{path}' goes through a symbolic link",
                code="problem.disk.outside",
                field="disk.path",
            )
        if _holds_header(at):
            raise InvalidInput(
                f"'{path}' goes through {at}, which is a storage domain of its own",
                code="problem.disk.outside",
                field="disk.path",
                fix="use that storage domain",
            )
    return Path(domain.path, path)


def _holds_header(directory: Path) -> bool:
    """Raises OSError where that can't be told."""
    try:
        (directory / HEADER).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_not_within_another(domain: StorageDomain) -> None:
    """Two domains must not have files in common: a VM of each could then write to one. As far up as
    this host sees of the file system. Raises Refused, Failed (it can't be told)."""
    at = Path(os.path.realpath(domain.path))
    while not os.path.ismount(at):
        at = at.parent
        try:
            is_within = _holds_header(at)
        except OSError as error:
            raise Failed(f"whether {at} is a storage domain can't be told: {error}") from error
        if is_within:
            raise Refused(
                f"{domain.path} lies in {at}, which is a storage domain itself",
                code="order.refused.storage_foreign",
                fix="choose a directory beside it: no file may belong to two storage domains",
            )


def check_header(domain: StorageDomain, installation_id: InstallationId) -> DomainHeader:
    """Raises Refused (foreign), Failed (no header, not readable). Only in the domain's worker."""
    if domain.ceph is not UNSET:
        return _check_on_ceph(domain, domain.ceph, installation_id)
    path = _header_path(domain)
    try:
        header = msgspec.json.decode(read_bounded(path, HEADER_BYTES_MAX), type=DomainHeader)
    except FileNotFoundError:
        raise Failed(
            f"{domain.path} holds no storage domain: {path} is missing",
            fix="is the right file system mounted there?",
        ) from None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise Failed(f"{path} can't be read: {error}") from error
    _check_ours(header, domain, installation_id, f"directory, or remove {path}")
    return header


def _check_ours(
    header: DomainHeader, domain: StorageDomain, installation_id: InstallationId, other: str
) -> None:
    if header.installation_id != installation_id or header.domain_id != domain.id:
        raise Refused(
            f"storage domain {domain.name} belongs to another installation"
            if header.installation_id != installation_id
            else f"{domain.path} is storage domain {header.name}, not {domain.name}",
            code="order.refused.storage_foreign",
            fix=f"choose another {other} if you are sure",
        )


def _check_on_ceph(
    domain: StorageDomain, pool: CephPool, installation_id: InstallationId
) -> CephHeader:
    data = ceph_records.read(pool, ceph_records.DOMAIN)
    if data is None:
        raise Failed(
            f"{domain.path} holds no storage domain: object {ceph_records.DOMAIN} is missing",
            fix="is it the right cluster, pool and namespace?",
        )
    try:
        header = msgspec.json.decode(data, type=CephHeader)
    except msgspec.MsgspecError as error:
        raise Failed(
            f"object {ceph_records.DOMAIN} of {domain.path} can't be read: {error}"
        ) from error
    what = f"pool or namespace, or remove object {ceph_records.DOMAIN} there"
    _check_ours(header, domain, installation_id, what)
    found = ceph_records.identity(pool)
    if found != (header.cluster, header.pool_id):
        raise Refused(
            f"{domain.path} was made in pool {header.pool_id} of cluster {header.cluster}, and this is pool {found[1]} of "
            f"{found[0]}: a copy",
            code="order.refused.storage_foreign",
            fix="give the monitors of the cluster that the other hosts use",
        )
    return header


def prepare_storage(domain: StorageDomain, installation_id: InstallationId, files: Files) -> None:
    """Make or check header and directories. Raises Refused (foreign), Failed, OSError; InvalidInput where a setting of Ceph's is
    wrong."""
    if domain.ceph is not UNSET:
        return _prepare_on_ceph(domain, domain.ceph, installation_id)
    root = Path(domain.path)
    if not root.is_dir():
        raise Failed(f"{domain.path} is no directory on this host", fix="mount the storage first")
    path = _header_path(domain)
    if not path.exists():
        # Only then: an outer one that somebody makes later gives nothing of this one away (``inside``), and must not
        # be a way to take it from its VMs.
        _check_not_within_another(domain)
        path.parent.mkdir(mode=0o755, exist_ok=True)
        header = DomainHeader(
            installation_id=installation_id, domain_id=domain.id, name=domain.name
        )
        create_once(path, msgspec.json.format(msgspec.json.encode(header)), files)
    # Also after we wrote it: another installation may have been quicker.
    check_header(domain, installation_id)
    for name in ("images", "disks", ".virtha/vms"):
        (root / name).mkdir(mode=0o755, exist_ok=True)
    # Also the directories' own entries: a domain whose header a power cut takes away looks new to everybody (G7).
    for directory in (path.parent, root):
        files.sync_directory(directory)


def _prepare_on_ceph(
    domain: StorageDomain, pool: CephPool, installation_id: InstallationId
) -> None:
    cluster, pool_id = ceph_records.identity(pool)
    header = CephHeader(
        installation_id=installation_id,
        domain_id=domain.id,
        name=domain.name,
        cluster=cluster,
        pool_id=pool_id,
    )
    with suppress(OSError):
        # Another host may have been quicker; whatever else it is, the check says it.
        ceph_records.write(pool, ceph_records.DOMAIN, msgspec.json.encode(header), over=None)
    check_header(domain, installation_id)


def open_slots(
    domain: StorageDomain, installation_id: InstallationId, *, locked: bool = False
) -> DirectoryDomain | CephSlots:
    """``locked``: in memory, as a guardian is."""
    if domain.ceph is not UNSET:
        return CephSlots(
            domain.ceph, installation_id=installation_id, domain_id=domain.id, locked=locked
        )
    return DirectoryDomain(domain.path, installation_id=installation_id, domain_id=domain.id)


def prepare_place(
    domain: StorageDomain, installation_id: InstallationId, host_id: HostId, number: int
) -> None:
    """Make what is missing for this host's heartbeat there; done already: nothing changes. Raises Refused (foreign),
    Failed (no room, damaged), OSError. Only in the domain's worker."""
    slots = open_slots(domain, installation_id)
    try:
        slots.prepare(slot_index(number), host_id)
    finally:
        slots.close()


def create_once(path: Path, data: bytes, files: Files) -> None:
    """Never replaces: of two writers one wins, whole, and both then read the same."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        files.write(descriptor, data)
        files.sync(descriptor)
    finally:
        os.close(descriptor)
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    finally:
        temporary.unlink(missing_ok=True)
    files.sync_directory(path.parent)


def _header_path(domain: StorageDomain) -> Path:
    return Path(domain.path, HEADER)


def _vm_path(domain: StorageDomain, vm_id: VmId) -> Path:
    return Path(domain.path, ".virtha", "vms", f"{safe_name(vm_id)}.json")


def read_vm_header(domain: StorageDomain, vm_id: VmId) -> VmHeader | None:
    """None: never started from here. Raises Failed when it can't be read: unknown is not none."""
    return _vm_record(domain, vm_id)[0]


def _vm_record(domain: StorageDomain, vm_id: VmId) -> tuple[VmHeader | None, bytes | None]:
    path: Path | str = _vm_path(domain, vm_id)
    data: bytes | None
    try:
        if domain.ceph is not UNSET:
            path = f"object {ceph_records.vm_record(vm_id)} of {domain.path}"
            data = ceph_records.read(domain.ceph, ceph_records.vm_record(vm_id))
            if data is None:
                return None, None
        else:
            data = read_bounded(Path(path), HEADER_BYTES_MAX)
        return msgspec.json.decode(data, type=VmHeader), data
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise Failed(
            f"{path} can't be read: {error}", fix="remove it if the VM runs nowhere"
        ) from (error)


class ClaimRefused(Refused):
    """The domain knows a later start, or the same one by another host."""

    def __init__(self, claim: VmHeader, present: VmHeader) -> None:
        super().__init__(
            f"incarnation {claim.incarnation} is not above {present.incarnation}, which host "
            f"{present.host_id} started before",
            code="order.refused.incarnation",
        )
        self.present = present


def claim_incarnation(domain: StorageDomain, claim: VmHeader, files: Files) -> None:
    """Check and record an incarnation on the domain (G4, G7). Raises Refused, Failed, OSError."""
    check_header(domain, claim.installation_id)
    present, read = _vm_record(domain, claim.vm_id)
    if present is not None and present.installation_id != claim.installation_id:
        raise Refused(
            f"the VM's record on {domain.name} is of another installation",
            code="order.refused.storage_foreign",
        )
    # An incarnation is one host's: the same one from another host is a second copy of it.
    if present is not None and (
        present.incarnation > claim.incarnation
        or (present.incarnation == claim.incarnation and present.host_id != claim.host_id)
    ):
        raise ClaimRefused(claim, present)
    if present == claim:
        return
    if domain.ceph is not UNSET:
        # Over what was read, or not at all: of two claims at once one is refused.
        name = ceph_records.vm_record(claim.vm_id)
        ceph_records.write(domain.ceph, name, msgspec.json.encode(claim), over=read)
        return
    path = _vm_path(domain, claim.vm_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, msgspec.json.encode(claim), mode=0o644)


def forget_vm(domain: StorageDomain, vm_id: VmId, files: Files) -> None:
    if domain.ceph is not UNSET:
        ceph_records.remove(domain.ceph, ceph_records.images_record(vm_id))
        ceph_records.remove(domain.ceph, ceph_records.vm_record(vm_id))
        return
    files.remove(_vm_path(domain, vm_id))


def takes_direct_io(domain: StorageDomain) -> bool:
    """Whether files there can be opened with O_DIRECT (tmpfs and some FUSE file systems can't)."""
    if domain.ceph is not UNSET:
        return True
    try:
        descriptor = os.open(_header_path(domain), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(descriptor)
    return True
