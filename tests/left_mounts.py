"""What a test run that was killed left mounted in pytest's own directories: nobody can delete those while it is there, and
each later run would fail at their clean-up."""

import re
import subprocess
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_RUN = re.compile(r"(?P<run>.*/pytest-of-[^/]+/(?:pytest-\d+|garbage-[^/]+))/")
"""Of whom a directory is: pytest renames what it is about to delete."""


def unmount_left() -> list[Path]:
    """Takes down what belongs to runs that are over, and says what that was. Runs that still live keep theirs."""
    left = left_mounts(MOUNTS.read_text())
    for path in left:
        # Lazily: it may be the mount of a process that is gone, and look busy.
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)
    return left


def left_mounts(mountinfo: str) -> list[Path]:
    """Those below directories of runs that are over, the last one mounted first. ``mountinfo``: see proc(5)."""
    points = [_unescaped(line.split()[4]) for line in mountinfo.splitlines()]
    return [Path(point) for point in reversed(points) if _is_left(point)]


def _is_left(point: str) -> bool:
    found = _RUN.match(point)
    return found is not None and not _lives(Path(found["run"]))


def _lives(run: Path) -> bool:
    """pytest keeps its process id there until it ends."""
    if not run.name.startswith("pytest-"):
        return False  # being deleted
    try:
        pid = int((run / ".lock").read_text())
    except (OSError, ValueError):
        return False
    return Path(f"/proc/{pid}").exists()


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
