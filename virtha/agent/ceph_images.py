"""Disks of VMs that are RBD images: made, removed, and taken from whoever had them open."""

from functools import partial
from typing import Any

import structlog

from virtha.agent import ceph_records
from virtha.agent.answers import OK, Answer, refused
from virtha.agent.host_context import HostContext
from virtha.agent.storage import ORDER_DEADLINE_MS, check_header, read_vm_header
from virtha.model.errors import InvalidInput, Refused
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import InstallationId
from virtha.model.orders import CreateDisk, Order
from virtha.model.vm import DiskFormat, Vm

_LOOK_MS = 5_000
_log = structlog.get_logger(__name__)


async def make_image(
    host: HostContext, order: Order, body: CreateDisk, domain: StorageDomain
) -> Answer:
    """Empty. One of that name is never overwritten; one that this very order may have made is it."""
    pool, disk = _pool(domain), body.disk
    if body.image is not None or disk.format is not DiskFormat.RAW:
        raise InvalidInput(
            "a disk on a Ceph pool is made empty and raw",
            field="image" if body.image is not None else "format",
            fix="put its content there with 'rbd import', and give its path",
        )
    check = partial(check_header, domain, host.installation_id)
    await host.workers.call(domain, check, deadline_ms=ORDER_DEADLINE_MS)
    begun = host.outcomes.begun(order.operation_id, order.step)
    await host.disk(host.outcomes.begin, order.operation_id, order.step)
    create = partial(
        ceph_records.ask, pool, "create_image", name=disk.path, size_bytes=disk.size_bytes
    )
    try:
        await host.workers.call(domain, create, deadline_ms=ORDER_DEADLINE_MS)
    except FileExistsError:
        if begun:
            return OK
        return refused(
            "problem.disk.in_use",
            f"{disk.path} is there already; it is never overwritten: add it by its path, or choose another name",
        )
    return OK


def remove_image(domain: StorageDomain, name: str, installation_id: InstallationId) -> None:
    """Only of a pool that is ours. Absent is done already. Only in the domain's worker."""
    check_header(domain, installation_id)
    try:
        ceph_records.ask(_pool(domain), "remove_image", name=name)
    except FileNotFoundError:
        return


def image_bytes(domain: StorageDomain, name: str) -> int:
    """Raises OSError. Only in the domain's worker."""
    return int(look(_pool(domain), name)["size_bytes"])


def look(pool: CephPool, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ceph_records.ask(
        pool, "look", name=name, head_bytes=16, objects_max=1, wait_ms=_LOOK_MS
    )
    return found


async def check_unopened(host: HostContext, vm: Vm) -> None:
    """Before the first claim of a VM on an image: who has that open is none of ours, and may be a running VM that nobody here
    knows of. Raises Refused; OSError, VirthaError."""
    for disk in vm.disks:
        domain = host.storage_domain(disk.storage_domain_id)
        if isinstance(domain.ceph, CephPool) and not disk.readonly and not vm.adopted:
            await host.workers.call(
                domain,
                partial(_check_unopened, domain, vm, disk.path),
                deadline_ms=ORDER_DEADLINE_MS,
            )


def _check_unopened(domain: StorageDomain, vm: Vm, image: str) -> None:
    watchers = look(_pool(domain), image)["watchers"]
    if watchers and read_vm_header(domain, vm.id) is None:
        raise Refused(
            f"image {image} is open at {', '.join(address for address, _, _ in watchers)}, and this VM never ran",
            code="problem.disk.in_use",
            fix=f"end what has it open: rbd status {_pool(domain).image_prefix}/{image}",
        )


async def take_over(host: HostContext, vm: Vm) -> None:
    """Right before a start that has proof for every former holder: whoever watches an image of it yet is shut out of the
    cluster by its address and nonce, that is that one connection. A late write of a dead QEMU can't land any more, and the new one
    need not wait for half a minute until Ceph takes the dead one for dead. Raises OSError, VirthaError: then nothing starts."""
    for disk in vm.disks:
        domain = host.storage_domain(disk.storage_domain_id)
        if isinstance(domain.ceph, CephPool) and not disk.readonly:
            await host.workers.call(
                domain, partial(_shut_out, domain.ceph, disk.path), deadline_ms=ORDER_DEADLINE_MS
            )


def _shut_out(pool: CephPool, image: str) -> None:
    found = look(pool, image)
    if not found["exclusive"]:
        raise InvalidInput(
            f"image {image} lacks the feature exclusive-lock, so two writers could go unseen",
            field="disk.path",
            fix=f"turn it on: rbd feature enable {pool.image_prefix}/{image} exclusive-lock",
        )
    for address, _, _ in found["watchers"]:
        _log.warning("shut out of its image", image=image, address=address)
        ceph_records.block(pool, address)


def _pool(domain: StorageDomain) -> CephPool:
    assert isinstance(domain.ceph, CephPool)
    return domain.ceph
