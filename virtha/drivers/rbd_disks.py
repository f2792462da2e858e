"""Signs of writing on disks that are RBD images (F2, J3), and who has them open.

Three kinds. What was written: each object that a guest writes to gets a new version, whatever is in it, and the header says when it was
last written (Ceph renews that at most once a minute). Who holds it: a QEMU that has the image open for writing watches it, and
says so every few seconds whether its guest writes or not. A watch that was seen twice by the same reader with more
between than Ceph keeps one of a dead client is life, and so a change; so an idle guest does not look dead. A watch that ends
is none: the dead one's does after 30 s.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from virtha.drivers.ceph_client import CephClient
from virtha.model.host import CephPool
from virtha.model.value import Value
from virtha.ports.storage_domain import DiskSigns

HEAD_BYTES = 65_536
OBJECTS_MAX = 512
"""Looked at of one image: every object of 2 GiB, and of larger ones evenly spread."""
OBJECTS_MS = 5_000
PATIENCE_MS = 30_000
WATCH_MS = 45_000
"""``osd_client_watch_timeout`` is 30 s. Where it was made longer, a dead client's watch is taken for life that much longer:
nothing is done too early."""


class Watcher(Value, frozen=True, kw_only=True):
    """Of an image that is open for writing: ``address`` as Ceph sees it (IP:PORT/NONCE); the nonce and ``client`` are of one
    connection of one process."""

    address: str
    client: int
    cookie: int


class RbdDisks:
    """Implements ``DiskActivity``; paths are names of images. Not for two threads at once. Keeps what it saw."""

    def __init__(
        self,
        pool: CephPool,
        *,
        options: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = CephClient(pool, options=options)
        self._now_s = now_s
        self._seen: dict[tuple[str, Watcher], float] = {}
        """Since when."""
        self._lived: dict[str, int] = {}
        """How often a watch outlived what a dead client's would."""

    def close(self) -> None:
        self._client.close()

    def read_signs(self, paths: Iterable[str]) -> dict[str, DiskSigns | None]:
        return {path: self._read(path) for path in paths}

    def watchers(self, image: str) -> tuple[Watcher, ...]:
        """Who has it open for writing. Raises OSError."""
        return _watchers(self._look(image, objects_max=1))

    def _look(self, image: str, *, objects_max: int = OBJECTS_MAX) -> dict[str, Any]:
        found: dict[str, Any] = self._client.ask(
            "look",
            patience_ms=PATIENCE_MS,
            name=image,
            head_bytes=HEAD_BYTES,
            objects_max=objects_max,
            wait_ms=OBJECTS_MS,
        )
        return found

    def _read(self, image: str) -> DiskSigns | None:
        try:
            found = self._look(image)
        except OSError:
            return None
        versions: list[int] = found["versions"]
        if any(version < 0 for version in versions):
            return None  # a part of the pool does not answer: what is not seen is no silence
        return DiskSigns(
            modified_ns=found["written_ns"],
            size_bytes=found["size_bytes"],
            blocks=sum(version > 0 for version in versions),
            head=_digest(found["head"]),
            tables=_digest(",".join(map(str, versions)).encode()),
            storage=f"watched {self._count_lived(image, _watchers(found))}",
        )

    def _count_lived(self, image: str, watchers: tuple[Watcher, ...]) -> int:
        now_s = self._now_s()
        present = {(image, watcher) for watcher in watchers}
        for key in [key for key in self._seen if key[0] == image and key not in present]:
            del self._seen[key]
        lived = self._lived.get(image, 0)
        for key in present:
            since_s = self._seen.setdefault(key, now_s)
            if now_s - since_s >= WATCH_MS / 1_000:
                self._seen[key] = now_s
                lived += 1
        self._lived[image] = lived
        return lived


def _watchers(found: Mapping[str, Any]) -> tuple[Watcher, ...]:
    return tuple(
        Watcher(address=address, client=client, cookie=cookie)
        for address, client, cookie in sorted(found["watchers"])
    )


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
