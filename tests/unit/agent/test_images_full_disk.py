"""The real qemu-img on a file system that is really full; and what it says when it says it in pieces."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtha.agent.images import copy_image
from virtha.model.errors import Failed

IN_PIECES = """#!/bin/sh
printf 'qemu-img: ' >&2
read -r _ < "$(dirname "$0")/said"
echo 'error while writing: No space left on device' >&2
exit 1
"""
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


def test_an_error_that_comes_in_pieces_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu-img writes its name first; under load that was all that was read."""
    (tmp_path / "qemu-img").write_text(IN_PIECES)
    (tmp_path / "qemu-img").chmod(0o755)
    os.mkfifo(tmp_path / "said")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen: list[int] = []

    async def story() -> None:
        copy = asyncio.create_task(
            copy_image(tmp_path / "a", "raw", tmp_path / "b", "qcow2", on_percent=seen.append)
        )
        # Opened for writing as soon as the program reads it: its first piece was said before.
        piece = await asyncio.to_thread((tmp_path / "said").open, "w")
        for _ in range(20):
            await asyncio.sleep(0)  # what was said is taken in
        piece.write("go on\n")
        piece.close()
        with pytest.raises(Failed) as failed:
            await copy
        assert failed.value.code == "problem.disk.full", failed.value

    asyncio.run(story())
