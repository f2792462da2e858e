"""Disks of VMs that are RBD images: made, removed, and taken from whoever had them open (docs/adr/0019-heartbeat-on-rados.md)."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import structlog
from msgspec import UNSET

from virtha.agent import ceph_records
from virtha.agent.answers import OK, Answer, refused
from virtha.agent.ceph_marks import read_marks, write_marks
from virtha.agent.host_context import HostContext
from virtha.agent.image_holders import (
    ImageLook,
    Opened,
    check_exclusive,
    shut_out,
    to_shut_out,
)
from virtha.agent.storage import ORDER_DEADLINE_MS, VmHeader, check_header, read_vm_header
from virtha.model.errors import InvalidInput, Refused
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import InstallationId, StorageDomainId
from virtha.model.orders import CreateDisk, DiskCheck, Order, StartVm
from virtha.model.vm import Disk, DiskFormat, Vm

MADE_BY = "virtha.made_by"
"""Noted with an image before it has its name: whose order made it."""
_LOOK_MS = 5_000
_UNOPENED_POLL_S = 1.0
_UNOPENED_MARGIN_MS = 10_000
"""Of a grant, that a start needs yet once nobody has its images open any more."""
_log = structlog.get_logger(__name__)


async def make_image(
    host: HostContext, order: Order, body: CreateDisk, domain: StorageDomain
) -> Answer:
    """Empty. One of that name is never overwritten, nor taken for ours: only one that says that this very order made it."""
    disk = body.disk
    if body.image is not None or disk.format is not DiskFormat.RAW:
        raise InvalidInput(
            "a disk on a Ceph pool is made empty and raw",
            field="image" if body.image is not None else "format",
            fix="put its content there with 'rbd import', and give its path",
        )
    maker = f"{order.operation_id}.{order.step}"
    make = partial(_make_image, domain, host.installation_id, disk, maker)
    if await host.workers.call(domain, make, deadline_ms=ORDER_DEADLINE_MS):
        return OK
    return refused(
        "problem.disk.in_use",
        f"{disk.path} is there already; it is never overwritten: add it by its path, or choose another name",
    )


def _make_image(
    domain: StorageDomain, installation_id: InstallationId, disk: Disk, maker: str
) -> bool:
    """False: another one of that name is there. It is made under a name of its own, says whose it is, and only then gets its
    name, which no image had until then: an order that comes again, after whatever end, finds what it made or nothing."""
    check_header(domain, installation_id)
    pool, name = _pool(domain), disk.path
    try:
        return bool(ceph_records.ask(pool, "noted_image", name=name, key=MADE_BY) == maker)
    except FileNotFoundError:
        pass  # looked, and it is not there
    unnamed = f"virtha.new.{maker}"
    # What a broken attempt left: nobody else has that name, and nothing was ever written to it.
    remove_image(domain, unnamed, installation_id)
    ceph_records.ask(pool, "create_image", name=unnamed, size_bytes=disk.size_bytes)
    ceph_records.ask(pool, "note_image", name=unnamed, key=MADE_BY, value=maker)
    try:
        ceph_records.ask(pool, "rename_image", name=unnamed, to=name)
    except FileExistsError:
        remove_image(domain, unnamed, installation_id)
        return False
    return True


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


# Before a start


async def await_maps(host: HostContext, order: StartVm) -> None:
    """Before anything of the VM is read there: this host's client has the maps in which former holders are shut out (P3). Raises
    Refused where a cluster of its disks is none of those that were named; OSError, VirthaError where that is not so yet."""
    if order.ceph_epochs is UNSET:
        return
    epochs = order.ceph_epochs
    for domain_id in sorted({disk.storage_domain_id for disk in order.vm.disks}):
        domain = host.storage_domain(domain_id)
        await host.workers.call(
            domain, partial(_await_map, domain, epochs), deadline_ms=ORDER_DEADLINE_MS
        )


def _await_map(domain: StorageDomain, epochs: Mapping[str, int]) -> None:
    """In the domain's worker."""
    fsid = ceph_records.identity(domain.ceph)[0] if isinstance(domain.ceph, CephPool) else ""
    if fsid not in epochs:
        raise Refused(
            f"a former holder is shut out of {', '.join(sorted(epochs))}, and storage domain {domain.name} is elsewhere",
            fix="make sure that the host which had the VM is off, and confirm it as dead",
        )
    ceph_records.blocklist(_pool(domain)).wait_for(epochs[fsid])


async def await_unopened(host: HostContext, order: StartVm) -> None:
    """Before the claim. A start without proof shuts out nobody: who has an image open is waited for, for a client that died
    is dropped by Ceph within half a minute, and then left to have it. Raises Refused; OSError, VirthaError."""
    proven = _proven(order)
    last_ms = order.grant.ends_at_ms - _UNOPENED_MARGIN_MS
    while True:
        try:
            await _each_pool(host, order.vm, partial(_addresses, order.vm, proven=proven))
        except Opened:
            if proven or host.clock.monotonic_ms() >= last_ms:
                raise
            await asyncio.sleep(_UNOPENED_POLL_S)
        else:
            return


async def take_over(host: HostContext, order: StartVm, claim: VmHeader) -> None:
    """After the claim, right before a start. With proof for every former holder: whoever has an image of it open yet is shut out of
    the cluster by its address and nonce, that is that one connection. A late write of a dead QEMU can't land any more, and the
    new one need not wait for half a minute until Ceph takes the dead one for dead. Raises OSError, VirthaError: then nothing starts."""
    await _each_pool(host, order.vm, partial(_take, order.vm, claim, proven=_proven(order)))


async def take_along(host: HostContext, vm: Vm, new: Disk | None) -> None:
    """Of a copy that runs here and is claimed: its images are its own from now on. ``new``: one that it is to open yet; raises
    Refused where somebody has that open."""
    await _each_pool(host, vm, partial(_take_along, vm, new))


def _proven(order: StartVm) -> bool:
    return order.disk_check is DiskCheck.SKIP_PROVEN


_OfPool = Callable[[StorageDomain, tuple[str, ...]], object]


async def _each_pool(host: HostContext, vm: Vm, call: _OfPool) -> None:
    images: dict[StorageDomainId, list[str]] = {}
    for disk in vm.disks:
        if not disk.readonly:
            images.setdefault(disk.storage_domain_id, []).append(disk.path)
    for domain_id, names in sorted(images.items()):
        domain = host.storage_domain(domain_id)
        if isinstance(domain.ceph, CephPool):
            await host.workers.call(
                domain, partial(call, domain, tuple(names)), deadline_ms=ORDER_DEADLINE_MS
            )


# In the domain's worker


def _looks(pool: CephPool, images: tuple[str, ...]) -> list[ImageLook]:
    found = [(image, look(pool, image)) for image in images]
    return [
        ImageLook(
            name=f"{pool.image_prefix}/{image}",
            prefix=one["prefix"],
            exclusive=one["exclusive"],
            watchers=tuple(address for address, _, _ in one["watchers"]),
            owners=tuple(one["lock_owners"]),
        )
        for image, one in found
    ]


def _addresses(
    vm: Vm, domain: StorageDomain, images: tuple[str, ...], *, proven: bool
) -> tuple[str, ...]:
    marks = read_marks(domain, vm.id)
    # An adopted VM ran with its images before anybody here kept marks.
    known = None if vm.adopted and marks.images is None else marks.images or ()
    return to_shut_out(_looks(_pool(domain), images), known=known, proven=proven)


def _take(
    vm: Vm, claim: VmHeader, domain: StorageDomain, images: tuple[str, ...], *, proven: bool
) -> None:
    shut_out(
        claim,
        look=partial(_addresses, vm, domain, images, proven=proven),
        read_claim=partial(read_vm_header, domain, vm.id),
        block=partial(_block, vm, domain),
    )
    _mark(vm, domain, _looks(_pool(domain), images))


def _block(vm: Vm, domain: StorageDomain, address: str) -> None:
    _log.warning("shut out of its image", vm=vm.name, domain=domain.name, address=address)
    ceph_records.block(_pool(domain), address)


def _take_along(vm: Vm, new: Disk | None, domain: StorageDomain, images: tuple[str, ...]) -> None:
    if new is not None:
        images = (new.path,) if new.storage_domain_id == domain.id and not new.readonly else ()
    looks = _looks(_pool(domain), images)
    for one in looks:
        check_exclusive(one)
        if new is not None and one.watchers:
            raise Opened(one, one.watchers, "and nobody is shut out for a disk that is plugged in")
    _mark(vm, domain, looks)


def _mark(vm: Vm, domain: StorageDomain, looks: list[ImageLook]) -> None:
    marks = read_marks(domain, vm.id)
    write_marks(domain, marks.with_images(one.prefix for one in looks))


def _pool(domain: StorageDomain) -> CephPool:
    assert isinstance(domain.ceph, CephPool)
    return domain.ceph
