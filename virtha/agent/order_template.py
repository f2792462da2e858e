"""Orders about templates: copy disks to and from them, delete theirs."""

import os
from functools import partial
from pathlib import Path

from virtha.agent.answers import OK, Answer, refused
from virtha.agent.commands import is_gone
from virtha.agent.files import Files
from virtha.agent.host_context import HostContext
from virtha.agent.images import copy_image, create_thin, image_info
from virtha.agent.new_disk import ROOM_BYTES_MIN, ProgressTeller, check_room, make_disk, part_name
from virtha.agent.storage import ORDER_DEADLINE_MS, check_header, inside, read_vm_header
from virtha.model.errors import Failed, NotFound, Refused
from virtha.model.host import StorageDomain
from virtha.model.ids import InstallationId
from virtha.model.orders import CopyDisk, DeleteTemplate, Order
from virtha.model.template import DIRECTORY
from virtha.model.vm import Disk, DiskFormat
from virtha.ports.hypervisor import DomainMissing

SEALED = 0o444


class TemplateOrders:
    def __init__(self, host: HostContext) -> None:
        self._host = host

    async def copy_disk(self, order: Order, body: CopyDisk) -> Answer:
        await self._check_quiet(body)
        return await make_disk(self._host, order, body.target, partial(self._make, order, body))

    async def _make(self, order: Order, body: CopyDisk, part: Path) -> None:
        host, source, target = self._host, body.source, body.target
        source_domain = host.storage_domain(source.storage_domain_id)
        target_domain = host.storage_domain(target.storage_domain_id)
        path = await host.workers.call(
            source_domain,
            partial(_source, source_domain, source, host.installation_id),
            deadline_ms=ORDER_DEADLINE_MS,
        )
        info = await image_info(path)
        if info.format != source.format.value and source.format is not DiskFormat.RAW:
            # A raw disk's content is the guest's: what it looks like says nothing.
            raise Failed(f"{source.path} is {info.format}, not {source.format.value}")
        if body.thin:
            _check_thin(body)
            await check_room(host, target_domain, ROOM_BYTES_MIN)
            await create_thin(part, _relative(path, part.parent), source.format.value)
            return
        await check_room(host, target_domain, max(info.actual_size, ROOM_BYTES_MIN))
        await copy_image(
            path,
            source.format.value,
            part,
            target.format.value,
            on_percent=ProgressTeller(host, order),
        )
        # It may have been started while it was read; then the copy is of no moment that ever was.
        await self._check_quiet(body)
        if body.sealed:
            await host.workers.call(
                target_domain, partial(part.chmod, SEALED), deadline_ms=ORDER_DEADLINE_MS
            )

    async def _check_quiet(self, body: CopyDisk) -> None:
        """Raises Refused when the VM whose disk is read runs here, or was started since the server asked."""
        vm_id, host = body.vm_id, self._host
        if vm_id is None:
            return
        try:
            present = await host.catalog.domain(vm_id)
        except DomainMissing:
            present = None
        if present is not None and not is_gone(present):
            raise Refused(
                f"{present.name} is {present.state} here: a copy of its disk would not be consistent",
                code="order.refused.running",
                fix="shut it down first",
            )
        domain = host.storage_domain(body.source.storage_domain_id)
        header = await host.workers.call(
            domain, partial(read_vm_header, domain, vm_id), deadline_ms=ORDER_DEADLINE_MS
        )
        if header is not None and header.incarnation > body.incarnation:
            raise Refused(
                f"the VM was started by host {header.host_id} (incarnation {header.incarnation}) "
                f"since this was asked for, with incarnation {body.incarnation}",
                code="order.refused.incarnation",
            )

    async def delete(self, body: DeleteTemplate) -> Answer:
        host = self._host
        for disk in body.disks:
            if not disk.path.startswith(f"{DIRECTORY}/{body.template_id}/"):
                return refused("problem.disk.outside", f"{disk.path} is no disk of that template")
        for disk in body.disks:
            domain = host.storage_domain(disk.storage_domain_id)
            await host.workers.call(
                domain,
                partial(_delete, domain, disk, host.installation_id, host.files),
                deadline_ms=ORDER_DEADLINE_MS,
            )
        return OK


def _source(domain: StorageDomain, disk: Disk, installation_id: InstallationId) -> Path:
    check_header(domain, installation_id)
    path = inside(domain, disk.path)
    if not path.is_file():
        raise NotFound(f"storage domain {domain.name} has no file {disk.path}")
    return path


def _relative(path: Path, directory: Path) -> str:
    """It holds wherever the storage is mounted."""
    return os.path.relpath(path, directory)


def _check_thin(body: CopyDisk) -> None:
    if body.target.format is not DiskFormat.QCOW2:
        raise Refused(f"a thin disk is qcow2, not {body.target.format.value}")
    if body.source.storage_domain_id != body.target.storage_domain_id:
        raise Refused("a thin disk is on the storage domain of what it needs")


def _delete(
    domain: StorageDomain, disk: Disk, installation_id: InstallationId, files: Files
) -> None:
    """With the half files of killed agents, and the directory when that was all."""
    check_header(domain, installation_id)
    path = inside(domain, disk.path)
    files.remove(path)
    if not path.parent.is_dir():
        return
    for half in path.parent.glob(part_name(path.name, "*")):
        files.remove(half)
    try:
        path.parent.rmdir()
    except OSError:
        return  # other disks of the template are there yet
