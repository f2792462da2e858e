"""Which process wrote to which file, in the order in which the kernel did it (fanotify). Only root is told."""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from virtha.model.errors import Failed

FileIdentity = tuple[int, int]
"""Device and inode."""
_READ_BYTES = 1 << 16
_CLOEXEC, _NONBLOCK, _UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_MARK_ADD, _MODIFY, _AT_FDCWD = 0x1, 0x2, -100
_OVERFLOW = 0x4000
"""Linux, include/uapi/linux/fanotify.h."""
_EVENT = struct.Struct("IBBHQii")


def identity(found: os.stat_result) -> FileIdentity:
    return found.st_dev, found.st_ino


def watch_writes(files: Iterable[Path]) -> int:
    """A descriptor that tells of each write to one of them from now on. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fanotify_mark.argtypes = [
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint64,
        ctypes.c_int,
        ctypes.c_char_p,
    ]
    flags = _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE
    descriptor = int(library.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    for file in files:
        if library.fanotify_mark(descriptor, _MARK_ADD, _MODIFY, _AT_FDCWD, os.fsencode(file)) != 0:
            error = ctypes.get_errno()
            os.close(descriptor)
            raise OSError(error, f"fanotify_mark {file}")
    return descriptor


def writers(descriptor: int) -> list[tuple[FileIdentity, int]]:
    """What was told and not read yet, file and process; nothing where there is nothing. Raises Failed when something was missed.
    Writes of one process to one file that nobody has read in between may be told as one."""
    try:
        data = os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return []
    found = []
    while data:
        length, _, _, _, mask, file, pid = _EVENT.unpack_from(data)
        data = data[length:]
        if file < 0 or mask & _OVERFLOW:
            raise Failed("the kernel could not tell of every write")
        try:
            found.append((identity(os.fstat(file)), pid))
        finally:
            os.close(file)
    return found
