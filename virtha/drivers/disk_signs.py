"""Signs of writing on disks that are files: what changes when a guest writes (F2, J3).

A digest of the qcow2 header alone misses a guest that rewrites clusters which it has; the file's time stamp alone
misses a second write within the file system's tick, or one that a network file system has not told yet. Read past
the cache where the file system can. Whoever compares does it with two reads of its own: no clock is asked.
"""

import errno
import hashlib
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from virtha.ports.storage_domain import DiskSigns

HEAD_BYTES = 65_536
TABLE_BYTES_MAX = 1 << 20
"""A first level table of 64 GiB and more of disk in 64 KiB clusters is 1 KiB and more; so a disk of 64 TiB fits."""
_QCOW2 = struct.Struct(">4sI8sIIQIIQ")
_PAGE = 4_096


class DirectoryDisks:
    """Implements ``DiskActivity`` for disks below a directory."""

    def __init__(self, path: str) -> None:
        self._root = Path(path)

    def read_signs(self, paths: Iterable[str]) -> dict[str, DiskSigns | None]:
        return {path: self._read(path) for path in paths}

    def _read(self, path: str) -> DiskSigns | None:
        try:
            return read_signs(self._root / path)
        except OSError:
            return None


def read_signs(path: Path) -> DiskSigns:
    """Raises OSError. May hang as long as the storage does."""
    descriptor = _open(path)
    try:
        head = _read(descriptor, 0, HEAD_BYTES)
        tables = b""
        place = _first_level_table(head)
        if place is not None:
            tables = _digest(_read(descriptor, *place))
        # After the reads: a network file system refreshes its attributes when the file is opened.
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return DiskSigns(
        modified_ns=status.st_mtime_ns,
        size_bytes=status.st_size,
        blocks=status.st_blocks,
        head=_digest(head),
        tables=tables,
    )


def _open(path: Path) -> int:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return os.open(path, flags)
    try:
        _read(descriptor, 0, _PAGE)
    except OSError as error:
        os.close(descriptor)
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)
    return descriptor


def _read(descriptor: int, offset: int, size: int) -> bytes:
    """Aligned around what was asked; shorter at the file's end."""
    begin = offset - offset % _PAGE
    length = -(-(offset + size - begin) // _PAGE) * _PAGE
    with mmap.mmap(-1, length) as buffer:
        view = memoryview(buffer)
        try:
            got = os.preadv(descriptor, [view], begin)
        finally:
            view.release()
        return buffer[offset - begin : min(got, offset - begin + size)]


def _first_level_table(head: bytes) -> tuple[int, int] | None:
    """Offset and length in bytes, of a qcow2; None: it is none, or damaged."""
    if len(head) < _QCOW2.size:
        return None
    magic, version, _, _, _, _, _, entries, offset = _QCOW2.unpack_from(head)
    if magic != b"QFI\xfb" or version not in (2, 3) or not 0 < offset < 1 << 62:
        return None
    return offset, min(entries * 8, TABLE_BYTES_MAX)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
