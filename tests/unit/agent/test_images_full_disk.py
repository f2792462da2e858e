"""The real qemu-img on a file system that is really full."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import asyncio, sys
from pathlib import Path
from virtha.agent.images import copy_image, create_empty
from virtha.model.errors import Failed

source, small = Path(sys.argv[1]), Path(sys.argv[2])
copy = copy_image(source, "raw", small / "b", "qcow2", on_percent=lambda _: None)
for work in (copy, create_empty(small / "c", "qcow2", 1 << 20)):
    try:
        asyncio.run(work)
    except Failed as error:
        print(error.code, bool(error.fix), "No space left on device" in str(error))
    else:
        print("done")
"""
MOUNTED = 'set -e; small=$1; shift; mount -t tmpfs -o size=1m none "$small"; exec "$@"'


@pytest.mark.lab  # mounting needs root
@pytest.mark.bad_input("full disk", story=True)
def test_an_image_that_does_not_fit_its_storage_is_told_so(tmp_path: Path) -> None:
    source, small = tmp_path / "source", tmp_path / "small"
    source.write_bytes(bytes(range(1, 256)) * 40_000)
    small.mkdir()
    private = ("unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNTED, "sh")
    done = subprocess.run(
        [*private, str(small), sys.executable, "-c", SCRIPT, str(source), str(small)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.splitlines() == ["problem.disk.full True True"] * 2, done.stderr
