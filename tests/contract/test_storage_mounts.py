"""What tests mount ends with them: also when they are killed, with storage that hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import storage_mounts
from left_mounts import MOUNTS, unmount_left
from storage_mounts import FuseMount, Mount

pytestmark = pytest.mark.lab

KILLED = """
import os, sys
from pathlib import Path
from storage_mounts import FuseMount, Mount
run = Path(sys.argv[1])
(run / ".lock").write_text(str(os.getpid()))
made = FuseMount(run / "test_x0/ds1", Mount(run / "test_x0/backing").path)
made.hang()
os.kill(os.getpid(), 9)
"""


def _is_mounted(path: Path) -> bool:
    return f" {path} " in MOUNTS.read_text()


def test_a_killed_runs_storage_ends_and_the_next_run_takes_its_mount_down(tmp_path: Path) -> None:
    run = tmp_path / "pytest-of-me/pytest-0"
    run.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-c", KILLED, str(run)],
        env={**os.environ, "PYTHONPATH": str(Path(storage_mounts.__file__).parent)},
        check=False,
    )
    mounted = run / "test_x0/ds1"
    assert _is_mounted(mounted)
    unmount_left()
    assert not _is_mounted(mounted)
    assert list(mounted.iterdir()) == []


@pytest.mark.parametrize("state", ["works", "hangs", "fails"])
def test_a_mount_is_taken_down_whatever_became_of_its_storage(tmp_path: Path, state: str) -> None:
    made = FuseMount(tmp_path / "ds1", Mount(tmp_path / "backing").path)
    match state:
        case "hangs":
            made.hang()
        case "fails":
            made.fail()
    made.close()
    assert not _is_mounted(made.path)
