"""The disk activity check (A5): before a start, its disks must have been quiet for a while.

Judged by *change between two reads of this host*, never by a time stamp against a clock (J3): two
hosts' clocks and a storage server's differ, and a wrong clock must neither start a second copy nor
keep the first from starting.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from virtha.model.codes import render
from virtha.model.errors import Refused
from virtha.model.facts import Happened
from virtha.model.value import Scalar, Value
from virtha.model.vm import Vm
from virtha.ports.clock import Clock

POLL_MS = 1_000
HEAD_BYTES = 65_536
"""A qcow2's header, first tables and reference counts change with nearly every allocation."""


class Fingerprint(Value, frozen=True, kw_only=True):
    modified_ns: int
    size_bytes: int
    blocks: int
    head: bytes


class StillActive(Refused):
    """Something writes a disk of the VM."""

    def __init__(self, path: Path, changed_ms: int) -> None:
        """``changed_ms``: how long ago the last change was seen."""
        super().__init__(
            f"disk {path} changed {changed_ms} ms ago: something writes it",
            code="order.refused.disk_active",
            field=str(path),
            fix="find the host where this VM still runs",
        )
        self.path = path
        self.changed_ms = changed_ms


def fingerprint(path: Path) -> Fingerprint:
    """Touches the storage: only in its worker. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    # After the read: an attribute cache is refreshed by opening the file.
    status = path.stat()
    return Fingerprint(
        modified_ns=status.st_mtime_ns,
        size_bytes=status.st_size,
        blocks=status.st_blocks,
        head=hashlib.blake2b(head, digest_size=16).digest(),
    )


async def wait_until_quiet(
    paths: tuple[Path, ...],
    read: Callable[[Path], Awaitable[Fingerprint]],
    *,
    clock: Clock,
    quiet_ms: int,
    timeout_ms: int,
) -> int:
    """How long all disks have been quiet, in ms, when that is at least ``quiet_ms``.

    Raises StillActive when they are not after ``timeout_ms``; what ``read``
    raises goes through: a disk that can't be read is not a quiet one.
    """
    last = {path: await read(path) for path in paths}
    # However long the first look took: the time to become quiet counts from it, as the quiet does.
    began = clock.monotonic_ms()
    changed_at = dict.fromkeys(paths, began)
    while paths:
        now = clock.monotonic_ms()
        quiet_for_ms = now - max(changed_at.values())
        if quiet_for_ms >= quiet_ms:
            return quiet_for_ms
        if now - began >= timeout_ms:
            worst = max(paths, key=lambda path: changed_at[path])
            raise StillActive(worst, now - changed_at[worst])
        await asyncio.sleep(min(POLL_MS, quiet_ms - quiet_for_ms + 1) / 1_000)
        for path in paths:
            present = await read(path)
            if present != last[path]:
                last[path], changed_at[path] = present, clock.monotonic_ms()
    return quiet_ms


def judged(vm: Vm, code: str, **fields: Scalar) -> Happened:
    """What became of the check, for the VM's history (A5 asks that a start that skips it says why)."""
    return Happened(
        code="vm.disk_check",
        vm_id=vm.id,
        fields={"vm": vm.name, "code": code, "result": render(code, fields)},
    )
