"""Files that survive a crash at any instant: the old content or the new, never a mixture.

All writes of the agent's state go through one ``Files`` object, so that a test can end the world
at each single step (see tests/unit/agent/crash_files.py).
"""

import os
from pathlib import Path


class Files:
    """One bounded file operation each; errors are the OSErrors of the system calls."""

    def write_atomic(self, path: Path, data: bytes, *, mode: int = 0o600) -> None:
        """Replace ``path`` durably. After a crash it holds the old or the new content whole."""
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
        )
        try:
            self.write(descriptor, data)
            self.sync(descriptor)
        except OSError:
            # A full disk: the half-written file would take the room that the next attempt needs.
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Absent is done already."""
        try:
            path.unlink()
        except FileNotFoundError:
            return
        self.sync_directory(path.parent)

    def write(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """The whole file. Raises OSError, or ValueError when it is larger than ``bytes_max``."""
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"{path} is larger than {bytes_max} bytes")
    return data
