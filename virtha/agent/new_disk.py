"""A new disk file: made whole beside its place, durable, then visible under its name; nothing is overwritten."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from virtha.agent.answers import OK, Answer, refused
from virtha.agent.files import Files
from virtha.agent.host_context import HostContext
from virtha.agent.images import image_info
from virtha.agent.storage import ORDER_DEADLINE_MS, check_header, inside
from virtha.model.errors import Failed, Refused
from virtha.model.facts import Progress
from virtha.model.host import StorageDomain
from virtha.model.ids import InstallationId
from virtha.model.orders import Order
from virtha.model.size import format_size
from virtha.model.vm import Disk

PROGRESS_STEP_PERCENT = 5
ROOM_BYTES_MIN = 64 << 20


async def make_disk(
    host: HostContext, order: Order, disk: Disk, make: Callable[[Path], Awaitable[None]]
) -> Answer:
    """``make`` writes the file whose path it is given. Whatever fails, nothing of it is left.

    One that is there already is a refusal, unless this very order may have made it.
    """
    domain = host.storage_domain(disk.storage_domain_id)
    target = await host.workers.call(
        domain,
        partial(_target, domain, disk, host.installation_id),
        deadline_ms=ORDER_DEADLINE_MS,
    )
    exists = await host.workers.call(domain, target.exists, deadline_ms=ORDER_DEADLINE_MS)
    if exists:
        if host.outcomes.begun(order.operation_id, order.step):
            # When this very order began it was not there, and nobody else makes disks of ours.
            await image_info(target)
            return OK
        return refused(
            "problem.disk.in_use",
            f"{disk.path} is there already; it is never overwritten: add it by its path, or choose another name",
        )
    await host.disk(host.outcomes.begin, order.operation_id, order.step)
    part = target.with_name(part_name(target.name, order.operation_id))
    remove_part = partial(part.unlink, missing_ok=True)
    # Of an agent before us that was killed: what its qemu-img still writes has no name any more.
    await host.workers.call(domain, remove_part, deadline_ms=ORDER_DEADLINE_MS)
    try:
        await make(part)
        publishing = asyncio.ensure_future(
            host.workers.call(
                domain, partial(_publish, part, target, host.files), deadline_ms=ORDER_DEADLINE_MS
            )
        )
        try:
            await asyncio.shield(publishing)
        except asyncio.CancelledError:
            await publishing  # too late to take it back: it has its name, and that is said
    finally:
        await host.workers.call(domain, remove_part, deadline_ms=ORDER_DEADLINE_MS)
    return OK


def part_name(name: str, operation_id: str) -> str:
    """Of a half file; ``operation_id`` may be '*'."""
    return f".{name}.{operation_id}.part"


async def check_room(host: HostContext, domain: StorageDomain, needed_bytes: int) -> None:
    """Raises Failed (`problem.disk.full`). A sparse disk may outgrow its storage later all the same."""
    free = await host.workers.call(
        domain, partial(free_bytes, domain), deadline_ms=ORDER_DEADLINE_MS
    )
    if free < needed_bytes:
        raise Failed(
            f"storage domain {domain.name} has {format_size(free)} left",
            code="problem.disk.full",
            fix="delete something there, or choose another domain",
        )


class ProgressTeller:
    """Every few percent a fact; in between nothing."""

    def __init__(self, host: HostContext, order: Order) -> None:
        self._host = host
        self._order = order
        self._told = 0

    def __call__(self, percent: int) -> None:
        if percent < self._told + PROGRESS_STEP_PERCENT:
            return
        self._told = percent
        order = self._order
        self._host.spawn(f"progress {order.operation_id}", self._tell(order, percent))

    async def _tell(self, order: Order, percent: int) -> None:
        await self._host.facts.emit(
            [Progress(operation_id=order.operation_id, step=order.step, percent=percent)]
        )


def _target(domain: StorageDomain, disk: Disk, installation_id: InstallationId) -> Path:
    check_header(domain, installation_id)
    path = inside(domain, disk.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _publish(part: Path, target: Path, files: Files) -> None:
    """Durable, then visible under its name; a file that came meanwhile is not replaced."""
    descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        files.sync(descriptor)
    finally:
        os.close(descriptor)
    try:
        target.hardlink_to(part)
    except FileExistsError:
        raise Refused(
            f"{target} was made by somebody else meanwhile", code="problem.disk.in_use"
        ) from None
    except PermissionError:
        # A file system without hard links: claim the name first, then replace our own claim.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        files.rename(part, target)
    files.sync_directory(target.parent)


def free_bytes(domain: StorageDomain) -> int:
    """Only in the domain's worker."""
    free = os.statvfs(domain.path)
    return free.f_bavail * free.f_frsize
