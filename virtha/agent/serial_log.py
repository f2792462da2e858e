"""The serial log of a VM: written by libvirt's virtlogd, which also rotates it, so that a guest that writes for ever fills
at most ``max_size * (max_backups + 1)`` of virtlogd.conf (8 MiB). virtlogd holds the file; an agent that cut it would
lose what is written meanwhile. Read backwards here, with a bound.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import BinaryIO

from virtha.model.console import LOG_BYTES_MAX, LogPosition, ReadSerialLog, SerialLog
from virtha.model.time import UtcMillis

BACKUPS_MAX = 9
LOOK_AGAIN_S = 0.25


def read_log(path: Path, request: ReadSerialLog) -> SerialLog:
    """``path``: of the newest file; older ones have ``.0``, ``.1`` … behind it. Never raises for files that vanish."""
    with _Files(path) as files:
        if not files.newest_first:
            return SerialLog()
        newest = os.fstat(files.newest_first[0].fileno())
        wanted = request.contains.encode().lower()
        lines: list[bytes] = []
        size = 0
        cut = False
        for line in files.lines_backwards(request.after):
            if wanted and wanted not in line.lower():
                continue
            if len(lines) >= request.lines or size + len(line) > LOG_BYTES_MAX:
                cut = True
                break
            lines.append(line)
            size += len(line)
        return SerialLog(
            text=b"".join(reversed(lines)),
            end=LogPosition(file=newest.st_ino, offset=files.end),
            written_at=UtcMillis(newest.st_mtime_ns // 1_000_000),
            cut=cut,
        )


async def wait_and_read(path: Path, request: ReadSerialLog) -> SerialLog:
    """As ``read_log``; while that finds nothing new, again and again for ``wait_ms``."""
    deadline = time.monotonic() + request.wait_ms / 1_000
    while True:
        # A thread for the reading only, never for the waiting: the agent's end waits for its threads.
        log = await asyncio.to_thread(read_log, path, request)
        left_s = deadline - time.monotonic()
        if log.text or left_s <= 0:
            return log
        await asyncio.sleep(min(LOOK_AGAIN_S, left_s))


def remove_log(path: Path) -> None:
    for one in (path, *_backups(path)):
        one.unlink(missing_ok=True)


def _backups(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.{number}") for number in range(BACKUPS_MAX)]


class _Files:
    """All files of one log, opened at once: a rotation between two reads must not show text twice."""

    def __init__(self, path: Path) -> None:
        self.newest_first: list[BinaryIO] = []
        self.end = 0
        for one in (path, *_backups(path)):
            try:
                self.newest_first.append(one.open("rb", buffering=0))
            except OSError:
                if one is not path:
                    break  # virtlogd leaves no gaps
        if self.newest_first:
            self.end = os.fstat(self.newest_first[0].fileno()).st_size

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.newest_first:
            file.close()

    def lines_backwards(self, after: LogPosition | None) -> list[bytes]:
        """Newest first, with their line ends; at most twice what may be sent is looked at."""
        text = b""
        for file in self.newest_first:
            status = os.fstat(file.fileno())
            found = after is not None and after.file == status.st_ino
            begin = after.offset if found and after is not None else 0
            size = self.end if file is self.newest_first[0] else status.st_size
            begin = begin if begin <= size else 0
            begin = max(begin, size - (2 * LOG_BYTES_MAX - len(text)))
            text = os.pread(file.fileno(), max(0, size - begin), begin) + text
            if found or len(text) >= 2 * LOG_BYTES_MAX:
                break
        # At line feeds only: splitlines would also cut at a carriage return within a progress bar.
        lines = text.split(b"\n")
        whole = [line + b"\n" for line in lines[:-1]]
        return ([lines[-1]] if lines[-1] else []) + whole[::-1]
