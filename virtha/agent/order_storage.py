"""Orders about storage: prepare a domain, create a disk."""

import os
from functools import partial
from pathlib import Path

from virtha.agent.answers import OK, Answer, refused
from virtha.agent.files import Files
from virtha.agent.host_context import HostContext
from virtha.agent.images import copy_image, create_empty, image_info, resize
from virtha.agent.storage import (
    ORDER_DEADLINE_MS,
    check_header,
    inside,
    prepare_storage,
    takes_direct_io,
)
from virtha.model.errors import Failed, InvalidInput, NotFound, Refused
from virtha.model.facts import Progress
from virtha.model.host import StorageDomain
from virtha.model.ids import InstallationId
from virtha.model.orders import CreateDisk, Order, PrepareStorage
from virtha.model.size import format_size
from virtha.model.vm import Disk

PROGRESS_STEP_PERCENT = 5
IMAGE_SUFFIXES = (".qcow2", ".img", ".raw")


class StorageOrders:
    def __init__(self, host: HostContext) -> None:
        self._host = host

    async def prepare(self, order: PrepareStorage) -> Answer:
        host, domain = self._host, order.domain
        if order.installation_id != host.installation_id:
            return refused(
                "order.refused.storage_foreign",
                "the order names another installation than this host's",
                name=domain.name,
            )
        await host.workers.call(
            domain,
            partial(prepare_storage, domain, host.installation_id, host.files),
            deadline_ms=ORDER_DEADLINE_MS,
        )
        host.prepared[domain.id] = domain
        direct = await host.workers.call(
            domain, partial(takes_direct_io, domain), deadline_ms=ORDER_DEADLINE_MS
        )
        (host.buffered.discard if direct else host.buffered.add)(domain.id)
        host.on_prepared()
        return OK

    async def create_disk(self, order: Order, body: CreateDisk) -> Answer:
        host, disk = self._host, body.disk
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
                "problem.disk.in_use", f"{disk.path} is there already; it is never overwritten"
            )
        await host.disk(host.outcomes.begin, order.operation_id, order.step)
        part = target.with_name(f".{target.name}.{order.operation_id}.part")
        try:
            await self._make(order, body, domain, part)
            await host.workers.call(
                domain, partial(_publish, part, target, host.files), deadline_ms=ORDER_DEADLINE_MS
            )
        finally:
            await host.workers.call(
                domain, partial(part.unlink, missing_ok=True), deadline_ms=ORDER_DEADLINE_MS
            )
        return OK

    async def _make(
        self, order: Order, body: CreateDisk, domain: StorageDomain, part: Path
    ) -> None:
        disk = body.disk
        await self._check_room(domain, disk)
        if body.image is None:
            await create_empty(part, disk.format, disk.size_bytes)
            return
        source = await self._host.workers.call(
            domain, partial(_find_image, domain, body.image), deadline_ms=ORDER_DEADLINE_MS
        )
        info = await image_info(source)
        if info.backing_filename is not None:
            raise Refused(
                f"image {body.image} has a backing file ({info.backing_filename}) and is not whole",
                code="problem.invalid",
                field="image",
                fix="flatten it with 'qemu-img convert' first",
            )
        if info.virtual_size > disk.size_bytes:
            raise InvalidInput(
                f"image {body.image} is {format_size(info.virtual_size)}, larger than the disk",
                field="disks.size_bytes",
                fix=f"make the disk at least {format_size(info.virtual_size)}",
            )
        await copy_image(source, info.format, part, disk.format, on_percent=self._progress(order))
        if disk.size_bytes > info.virtual_size:
            await resize(part, disk.format, disk.size_bytes)

    async def _check_room(self, domain: StorageDomain, disk: Disk) -> None:
        """A sparse disk may outgrow its storage later; one that can't even begin is refused now."""
        free = await self._host.workers.call(
            domain, partial(_free_bytes, domain), deadline_ms=ORDER_DEADLINE_MS
        )
        if free < min(disk.size_bytes, 64 << 20):
            raise Failed(
                f"storage domain {domain.name} has {format_size(free)} left",
                code="problem.disk.full",
                fix="delete something there, or choose another domain",
            )

    def _progress(self, order: Order) -> "_ProgressTeller":
        return _ProgressTeller(self._host, order)


class _ProgressTeller:
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


def _find_image(domain: StorageDomain, name: str) -> Path:
    """By name without suffix, or with it."""
    candidates = (name, *(f"{name}{suffix}" for suffix in IMAGE_SUFFIXES))
    for candidate in candidates:
        if candidate.endswith(IMAGE_SUFFIXES):
            path = inside(domain, f"images/{candidate}")
            if path.is_file():
                return path
    raise NotFound(
        f"storage domain {domain.name} has no image '{name}'",
        field="image",
        fix=f"put it into {domain.path}/images, as .qcow2, .img or .raw",
    )


def _free_bytes(domain: StorageDomain) -> int:
    free = os.statvfs(domain.path)
    return free.f_bavail * free.f_frsize
