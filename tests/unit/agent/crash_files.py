"""Files that end the world at the n-th step, with half a write done."""

import errno
import os
from pathlib import Path

from virtha.agent.files import Files


class Crash(BaseException):
    """kill -9, or the power went: nothing catches it."""


class CrashingFiles(Files):
    """``steps`` operations work; the next one is cut in the middle."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def _step(self) -> None:
        if self.steps_left == 0:
            raise Crash
        self.steps_left -= 1

    def write(self, descriptor: int, data: bytes) -> None:
        if self.steps_left == 0:
            os.write(descriptor, data[: len(data) // 2])
        self._step()
        super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def sync_directory(self, directory: Path) -> None:
        self._step()
        super().sync_directory(directory)


class FullDisk(Files):
    """No space left while ``full``; half of each write still fits."""

    def __init__(self) -> None:
        self.full = False
        self.refused: list[str] = []
        """Paths of what found no room."""

    def write(self, descriptor: int, data: bytes) -> None:
        if self.full:
            self.refused.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write(descriptor, data)
