"""Writes an initramfs: the `newc` cpio format (Linux, Documentation/driver-api/early-userspace).

Written here and not by the cpio program so that device nodes need no root and the result is the
same byte for byte for the same inputs.
"""

import gzip
import stat
from pathlib import PurePosixPath


class Archive:
    """Collects entries; parents are added by themselves. Paths are relative, '/' between parts."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, int, int]] = {}

    def directory(self, path: str) -> None:
        self._add(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str, data: bytes, mode: int) -> None:
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        self._add(path, stat.S_IFCHR | 0o600, b"", major, minor)

    def _add(self, path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> None:
        for parent in reversed(PurePosixPath(path).parents[:-1]):
            self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", 0, 0))
        self._entries[path] = (mode, data, major, minor)

    def to_bytes(self) -> bytes:
        """The archive, gzip-compressed at level 9 with no time stamp inside."""
        out = bytearray()
        for number, (path, (mode, data, major, minor)) in enumerate(self._entries.items(), 1):
            out += _entry(number, path, mode, data, major, minor)
        out += _entry(0, "TRAILER!!!", 0, b"", 0, 0)
        return gzip.compress(bytes(out), 9, mtime=0)


def _entry(number: int, path: str, mode: int, data: bytes, major: int, minor: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
