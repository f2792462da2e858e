"""Orders about storage: prepare a domain, create a disk."""

from functools import partial
from pathlib import Path

from msgspec import UNSET

from virtha.agent.answers import OK, Answer, refused
from virtha.agent.ceph_images import make_image
from virtha.agent.host_context import HostContext
from virtha.agent.images import copy_image, create_empty, image_info, resize
from virtha.agent.new_disk import ROOM_BYTES_MIN, ProgressTeller, check_room, make_disk
from virtha.agent.storage import (
    ORDER_DEADLINE_MS,
    inside,
    prepare_place,
    prepare_storage,
    takes_direct_io,
)
from virtha.agent.storage_mark import mark_of
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.host import StorageDomain
from virtha.model.orders import CreateDisk, Order, PrepareStorage
from virtha.model.size import format_size

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
        # The first look would make it, too, but has less time, and slow storage would then seem to hang.
        await host.workers.call(
            domain, partial(mark_of, domain, host.files), deadline_ms=ORDER_DEADLINE_MS
        )
        await host.workers.call(
            domain,
            partial(prepare_place, domain, host.installation_id, host.host_id, host.host_number),
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
        domain = self._host.storage_domain(body.disk.storage_domain_id)
        if domain.ceph is not UNSET:
            return await make_image(self._host, order, body, domain)
        return await make_disk(
            self._host, order, body.disk, partial(self._make, order, body, domain)
        )

    async def _make(
        self, order: Order, body: CreateDisk, domain: StorageDomain, part: Path
    ) -> None:
        disk = body.disk
        await check_room(self._host, domain, min(disk.size_bytes, ROOM_BYTES_MIN))
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
        await copy_image(
            source, info.format, part, disk.format, on_percent=ProgressTeller(self._host, order)
        )
        if disk.size_bytes > info.virtual_size:
            await resize(part, disk.format, disk.size_bytes)


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
