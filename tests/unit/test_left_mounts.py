"""A killed run's mounts are found and no one else's."""

import os
import subprocess
import sys
from pathlib import Path

from left_mounts import left_mounts


def _line(point: Path) -> str:
    escaped = str(point).replace(" ", "\\040")
    return f"99 25 0:59 / {escaped} rw,relatime shared:1 - fuse bindfs rw\n"


def _run(root: Path, name: str, pid: int | None) -> Path:
    run = root / "pytest-of-me" / name
    run.mkdir(parents=True)
    if pid is not None:
        (run / ".lock").write_text(str(pid))
    return run


def test_only_mounts_of_runs_that_are_over_are_left(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lives = _run(tmp_path, "pytest-1", os.getpid())
    killed = _run(tmp_path, "pytest-2", ended.pid)
    over = _run(tmp_path, "pytest-3", None)
    being_deleted = _run(tmp_path, "garbage-0a1b", os.getpid())
    elsewhere = tmp_path / "virtha-lab-test-12/h1"
    points = [
        lives / "test_x0/ds1",
        killed / "test_x0/ds1",
        killed / "test_x0/ds1/inner",
        over / "test y0/ds1",
        being_deleted / "test_z0/ds1",
        elsewhere,
        Path("/"),
    ]
    assert left_mounts("".join(map(_line, points))) == [
        being_deleted / "test_z0/ds1",
        over / "test y0/ds1",
        killed / "test_x0/ds1/inner",
        killed / "test_x0/ds1",
    ]
