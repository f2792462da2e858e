"""QEMUs with an image open, on a real Ceph; and what tests of it wait with."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from uuid import uuid4

from heartbeat_places import CephPlace
from msgspec.structs import replace

from virtha.drivers.ceph_client import CephClient
from virtha.model.host import CephPool

PATIENCE_MS = 60_000
OLD_HOST = "127.0.0.2"
BOUND_S = 120


def until(holds: Callable[[], object]) -> None:
    bound = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < bound
        time.sleep(0.05)


def new_image(place: CephPlace) -> str:
    place.ceph.run("rbd", "namespace", "create", f"vms/{place.pool.namespace}")
    client = place.opened(CephClient(place.pool))
    name = f"web-{uuid4().hex}"
    client.ask("create_image", name=name, size_bytes=1 << 30, patience_ms=PATIENCE_MS)
    return name


def of_user(place: CephPlace, user: str) -> CephPool:
    return replace(place.pool, user=user, keyring=str(place.ceph.keyring(user)))


class Guest:
    """A QEMU with the image open for writing, as its own block driver has it, on a host of that address."""

    def __init__(self, place: CephPlace, image: str, address: str = "") -> None:
        pool = place.pool
        options = [
            f"id={pool.user}",
            f"keyring={pool.keyring}",
            "mon_host=" + place.ceph.monitor.replace(":", "\\:"),
        ]
        name = f"rbd:{pool.pool}/{pool.namespace}/{image}:{':'.join(options)}"
        self._process = subprocess.Popen(
            ["qemu-io", "-f", "raw", "-t", "none", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **place.ceph.from_address(address)},
        )

    def write(self, pattern: int, at: str = "512M") -> None:
        self._say(f"write -P {pattern} {at} 4k")

    def holds(self, pattern: int, at: str = "512M") -> bool:
        self._say(f"read -P {pattern} {at} 4k")
        return "verification failed" not in self.answer()

    def answer(self) -> str:
        """The line that tells how the last one ended."""
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline().decode()
            if any(word in line for word in ("wrote", "read ", "failed", "error")) or not line:
                return line

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def leave(self) -> None:
        """In good order: nobody has to wait for its lock."""
        self._process.communicate(b"quit\n", timeout=BOUND_S)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=BOUND_S)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()
