"""Storage of several kinds to mount, break and take away. Needs root, but for plain directories and tmpfs.

What is started here ends with whoever started it; mounts that a killed run left are taken down by the next (``left_mounts``).
"""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


class Mount:
    """A directory as a host sees it. ``close`` ends what was started for it, by its id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """A plain directory needs nothing."""


class MemoryMount(Mount):
    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="virtha-", dir="/dev/shm")
        super().__init__(Path(self._directory.name))

    def close(self) -> None:
        self._directory.cleanup()


class LoopMount(Mount):
    """ext4 in a file."""

    def __init__(self, root: Path, megabytes: int = 32) -> None:
        super().__init__(root / "mounted")
        image = root / "image"
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
        _run("mount", "-o", "loop", str(image), str(self.path))

    def remount(self, options: str) -> None:
        _run("mount", "-o", f"remount,{options}", str(self.path))

    def close(self) -> None:
        _run("umount", "-l", str(self.path))


class FuseMount(Mount):
    """``backing`` through bindfs, which can be stopped (storage hangs) and killed (storage fails)."""

    def __init__(self, path: Path, backing: Path, *options: str) -> None:
        super().__init__(path)
        self._backing = backing
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        device = self.path.stat().st_dev
        self._process = subprocess.Popen(
            [*DIES_WITH_US, "bindfs", "-f", *self._options, str(self._backing), str(self.path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 60
            while self.path.stat().st_dev == device:
                assert time.monotonic() < deadline and self._process.poll() is None
                time.sleep(0.02)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of what serves it."""
        assert self._process is not None
        return self._process.pid

    def hang(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def fail(self) -> None:
        """The kernel answers with errors from now on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(60)

    def unmount(self) -> None:
        _run("umount", "-l", str(self.path))

    def close(self) -> None:
        assert self._process is not None
        try:
            if self._process.poll() is None:
                self.go_on()
                self.fail()
        finally:
            subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=200)
