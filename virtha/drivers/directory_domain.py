"""Storage domain ``directory``: heartbeat blocks in one preallocated file below any shared file system.

``.virtha/heartbeat`` holds ``HOSTS_MAX`` slots, then as many mailboxes, ``BLOCK_BYTES`` each, all written out when the
file is made, so that no renewal ever needs room. It is made beside its place and linked there whole, so it is never
seen half; it is never renamed, replaced or resized afterwards.

Written with O_DIRECT and O_DSYNC. A file system that refuses O_DIRECT (tmpfs, some of FUSE) is used through the
page cache, with a new descriptor for each read, which network file systems check their caches at; ``direct_io`` says so,
and leases there prove nothing. One that takes O_DIRECT and caches all the same (a FUSE program may) can't be told
from here: docs/adr/0015-heartbeat-in-a-directory.md.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.ids import HostId, InstallationId, StorageDomainId
from virtha.model.slot import (
    BLOCK_BYTES,
    BlockFault,
    Mailbox,
    MailboxReading,
    Place,
    Slot,
    SlotReading,
    Unreadable,
    decode_mailbox,
    decode_slot,
    encode_mailbox,
    encode_slot,
)
from virtha.model.slot_round import PLACES_MAX

HOSTS_MAX = PLACES_MAX
FILE_BYTES = 2 * HOSTS_MAX * BLOCK_BYTES
"""8 MiB."""
_ZEROS_BYTES = 1 << 20
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DSYNC
_REFUSES_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
_NOT_OURS = (BlockFault.FOREIGN, BlockFault.MISPLACED, BlockFault.FUTURE)


class DirectoryDomain:
    """Implements ``HeartbeatSlots``. Not for two threads at once, but for ``write_back``. Opens its file when it is first used, and again
    after each error: what is mounted there may be another by then."""

    def __init__(
        self, path: str, *, installation_id: InstallationId, domain_id: StorageDomainId
    ) -> None:
        self._root = Path(path)
        self._installation_id = installation_id
        self._domain_id = domain_id
        self._descriptor: int | None = None
        self._direct: bool | None = None
        self._own: dict[int, HostId] = {}
        """Places that were seen, through this descriptor, to be that host's."""
        self._block = mmap.mmap(-1, BLOCK_BYTES)
        self._table = mmap.mmap(-1, HOSTS_MAX * BLOCK_BYTES)
        """Page aligned, as direct I/O wants it."""

    @property
    def file(self) -> Path:
        return self._root / ".virtha" / "heartbeat"

    @property
    def direct_io(self) -> bool:
        return self._direct is True

    def close(self) -> None:
        self._forget()
        self._block.close()
        self._table.close()

    # Setting up

    def prepare(self, index: int, host_id: HostId) -> None:
        _check_index(index)
        if not self.file.exists():
            self._make_file()
        try:
            mailbox, slot = self.read_mailbox(index), self.read_slot(index)
            if isinstance(mailbox, Mailbox):
                if mailbox.host_id != host_id:
                    raise self._refused(f"place {index} is host {mailbox.host_id}'s")
                return
            self._check_blank(mailbox, slot, index)
            self._write(
                HOSTS_MAX + index,
                encode_mailbox(
                    Mailbox(
                        installation_id=self._installation_id,
                        domain_id=self._domain_id,
                        index=index,
                        host_id=host_id,
                        counter=0,
                    )
                ),
            )
        except OSError:
            self._forget()
            raise

    def _check_blank(self, mailbox: Unreadable, slot: SlotReading, index: int) -> None:
        fault = mailbox.fault
        if fault is BlockFault.EMPTY and isinstance(slot, Unreadable):
            fault = slot.fault
        if fault in _NOT_OURS:
            raise self._refused(
                f"its heartbeat file is of another installation or domain ({fault.value})"
            )
        lost = fault is BlockFault.EMPTY and isinstance(slot, Slot)
        if lost or fault is not BlockFault.EMPTY:
            # Written anew it would say that nobody ever poisoned this host.
            raise Failed(
                f"the mailbox {index} of {self.file} is {'lost' if lost else fault.value}",
                fix=f"see that no host of this installation runs VMs with disks there, then remove {self.file}",
            )

    def _refused(self, why: str) -> Refused:
        return Refused(
            f"{self._root}: {why}",
            code="order.refused.storage_foreign",
            fix=f"use another directory, or remove {self.file} if nobody else uses it",
        )

    def _make_file(self) -> None:
        directory = self.file.parent
        temporary = directory / f".heartbeat.{os.getpid()}.{id(self):x}"
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
            try:
                # Zeros, not a hole: where there is no room for a renewal this fails now, not in an outage.
                for at in range(0, FILE_BYTES, _ZEROS_BYTES):
                    _write_whole(descriptor, bytes(_ZEROS_BYTES), at)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.file.hardlink_to(temporary)
        except FileExistsError:
            pass  # another host was quicker
        except OSError as error:
            raise self._failed(error) from error
        finally:
            _unlink(temporary)
        _sync_directory(directory)

    def _failed(self, error: OSError) -> Failed:
        fixes = {
            errno.ENOSPC: f"make room: {FILE_BYTES >> 20} MiB are needed, once",
            errno.EDQUOT: f"raise the quota: {FILE_BYTES >> 20} MiB are needed, once",
            errno.EROFS: "mount it for writing",
            errno.ENOENT: "is the right file system mounted there?",
            errno.EPERM: "the file system must know hard links",
            errno.EOPNOTSUPP: "the file system must know hard links",
        }
        return Failed(
            f"{self.file} can't be made: {error.strerror}",
            fix=fixes.get(error.errno or 0, "see the mount and the kernel's log"),
        )

    # Reading

    def read_slot(self, index: int) -> SlotReading:
        _check_index(index)
        return decode_slot(self._read(index), self._place(index))

    def read_mailbox(self, index: int) -> MailboxReading:
        _check_index(index)
        return decode_mailbox(self._read(HOSTS_MAX + index), self._place(index))

    def read_slots(self, places: Mapping[HostId, int]) -> dict[HostId, SlotReading]:
        if not places:
            return {}
        for index in places.values():
            _check_index(index)
        first, last = min(places.values()), max(places.values())
        size = (last + 1 - first) * BLOCK_BYTES
        got = self._read_into(memoryview(self._table)[:size], first * BLOCK_BYTES)
        return {
            host_id: decode_slot(
                _part(self._table, (index - first) * BLOCK_BYTES, got), self._place(index)
            )
            for host_id, index in places.items()
        }

    def read_mailboxes(self, places: Mapping[HostId, int]) -> dict[HostId, MailboxReading]:
        return {host_id: self.read_mailbox(index) for host_id, index in places.items()}

    def _place(self, index: int) -> Place:
        return Place(installation_id=self._installation_id, domain_id=self._domain_id, index=index)

    def _read(self, block: int) -> bytes:
        got = self._read_into(memoryview(self._block), block * BLOCK_BYTES)
        return bytes(self._block[:got])

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        if self._direct is False:
            self._forget()  # opening makes a network file system look whether its cache still holds
        try:
            return os.preadv(self._open(), [buffer], offset)
        except OSError:
            self._forget()
            raise

    # Writing

    def write_slot(self, slot: Slot) -> None:
        self._check_own(slot.index, slot.host_id)
        self._write(slot.index, encode_slot(slot))

    def write_mailbox(self, mailbox: Mailbox) -> None:
        found = self.read_mailbox(mailbox.index)
        self._check_mailbox(found, mailbox.host_id)
        assert isinstance(found, Mailbox)
        if found.counter + 1 != mailbox.counter:
            raise OSError(errno.ESTALE, f"mailbox {mailbox.index} was written by another since")
        self._write(HOSTS_MAX + mailbox.index, encode_mailbox(mailbox))

    def write_back(self) -> None:
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync_file_system(descriptor)
        finally:
            os.close(descriptor)

    def _check_own(self, index: int, host_id: HostId) -> None:
        """Once per descriptor: what is behind one does not change."""
        self._open()
        if self._own.get(index) == host_id:
            return
        self._check_mailbox(self.read_mailbox(index), host_id)
        slot = self.read_slot(index)
        alien = slot.host_id != host_id if isinstance(slot, Slot) else slot.fault in _NOT_OURS
        if alien:
            raise OSError(errno.EPERM, f"slot {index} of {self.file} is another's")
        self._own[index] = host_id

    def _check_mailbox(self, found: MailboxReading, host_id: HostId) -> None:
        if isinstance(found, Unreadable):
            raise OSError(errno.EPERM, f"{self.file}: the mailbox is {found.fault.value}")
        if found.host_id != host_id:
            raise OSError(errno.EPERM, f"{self.file}: that place is host {found.host_id}'s")

    def _write(self, block: int, data: bytes) -> None:
        self._block[:] = data
        try:
            written = os.pwritev(self._open(), [self._block], block * BLOCK_BYTES)
        except OSError:
            self._forget()
            raise
        if written != BLOCK_BYTES:
            self._forget()
            raise OSError(errno.EIO, f"{written} of {BLOCK_BYTES} bytes were written")

    # The file

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor, direct = _open_blocks(self.file, self._block)
            if self._direct not in (None, direct):
                self._forget()
                # What slots declare of it holds for this boot.
                raise OSError(errno.EINVAL, f"{self.file}: direct I/O was {self._direct} before")
            self._direct = direct
        return self._descriptor

    def _forget(self) -> None:
        self._own.clear()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):  # it is closed all the same
                os.close(descriptor)


def _open_blocks(path: Path, block: mmap.mmap) -> tuple[int, bool]:
    """And whether it is read and written past the caches. Some file systems take the flag and refuse the read."""
    try:
        descriptor = os.open(path, _FLAGS | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _REFUSES_DIRECT:
            raise
        return _checked(os.open(path, _FLAGS), path), False
    _checked(descriptor, path)
    try:
        os.preadv(descriptor, [block], 0)
    except OSError as error:
        with suppress(OSError):
            os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return _checked(os.open(path, _FLAGS), path), False
    return descriptor, True


def _checked(descriptor: int, path: Path) -> int:
    """Of another size it is another program's, or was cut."""
    size = os.fstat(descriptor).st_size
    if size == FILE_BYTES:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EFBIG, f"{path} has {size} bytes, not {FILE_BYTES}")


def _check_index(index: int) -> None:
    if not 0 <= index < HOSTS_MAX:
        raise InvalidInput(
            f"{index} is no place in a heartbeat file",
            field="slot.index",
            allowed=(f"0 to {HOSTS_MAX - 1}",),
            fix=f"an installation has room for {HOSTS_MAX} hosts on each storage domain",
        )


def _part(table: mmap.mmap, offset: int, got: int) -> bytes:
    """A block of what was read; shorter where the file ended."""
    return table[offset : max(offset, min(offset + BLOCK_BYTES, got))]


def _write_whole(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(descriptor: int) -> None:
    """syncfs(2): all dirty pages of that file system."""
    if _LIBC.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_LIBC = ctypes.CDLL(None, use_errno=True)
