"""Processes that look like QEMU in the process table."""

import subprocess
import sys
import time
from pathlib import Path


class FakeQemus:
    """Real processes that look like QEMU in the process table, ended by id."""

    def __init__(self) -> None:
        self._made: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        vm_id: str,
        program: str = "qemu-system-x86_64",
        code: str = "import time; time.sleep(600)",
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [program, "-c", code, "-name", "x", "-uuid", vm_id],
            executable=sys.executable,
        )
        self._made.append(process)
        deadline = time.monotonic() + 60
        while vm_id.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    def end(self) -> None:
        for process in self._made:
            process.kill()
            process.wait(60)
