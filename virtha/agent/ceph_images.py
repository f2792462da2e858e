"""Disks of VMs that are RBD images: made, removed, and taken from whoever had them open (docs/adr/0019-heartbeat-on-rados.md)."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from virtha.agent import ceph_records
from virtha.agent.answers import OK, Answer, refused
from virtha.agent.ceph_marks import Marks, read_marks, write_marks
from virtha.agent.host_context import HostContext
from virtha.agent.storage import (
    ORDER_DEADLINE_MS,
    ClaimRefused,
    VmHeader,
    check_header,
    read_vm_header,
)
from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import InstallationId, StorageDomainId
from virtha.model.orders import CreateDisk, DiskCheck, Order, StartVm
from virtha.model.vm import Disk, DiskFormat, Vm

MADE_BY = "virtha.made_by"
"""Noted with an image before it has its name: whose order made it."""
IN_USE = "problem.disk.in_use"
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
        IN_USE,
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


async def await_unopened(host: HostContext, order: StartVm) -> None:
    """Before the claim. A start without proof shuts out nobody: who has an image open is waited for, for a client that died
    is dropped by Ceph within half a minute, and then left to have it. Raises Refused; OSError, VirthaError."""
    proven = order.disk_check is DiskCheck.SKIP_PROVEN
    last_ms = order.grant.ends_at_ms - _UNOPENED_MARGIN_MS
    while True:
        try:
            await _each_pool(host, order.vm, partial(_to_shut_out, order.vm, proven=proven))
        except _Opened:
            if proven or host.clock.monotonic_ms() >= last_ms:
                raise
            await asyncio.sleep(_UNOPENED_POLL_S)
        else:
            return


async def take_over(host: HostContext, order: StartVm, claim: VmHeader) -> None:
    """After the claim, right before a start. With proof for every former holder: whoever has an image of it open yet is shut out of
    the cluster by its address and nonce, that is that one connection. A late write of a dead QEMU can't land any more, and the
    new one need not wait for half a minute until Ceph takes the dead one for dead. Raises OSError, VirthaError: then nothing starts."""
    proven = order.disk_check is DiskCheck.SKIP_PROVEN
    await _each_pool(host, order.vm, partial(_take, order.vm, claim, proven=proven))


async def take_along(host: HostContext, vm: Vm, new: Disk | None) -> None:
    """Of a copy that runs here and is claimed: its images are its own from now on. ``new``: one that it is to open yet; raises
    Refused where somebody has that open."""
    await _each_pool(host, vm, partial(_take_along, vm, new))


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


class _Opened(Refused):
    def __init__(self, pool: CephPool, image: str, addresses: list[str], why: str) -> None:
        super().__init__(
            f"image {image} is open at {', '.join(addresses)}, {why}",
            code=IN_USE,
            fix=f"end what has it open: rbd status {pool.image_prefix}/{image}",
        )


def _to_shut_out(
    vm: Vm, domain: StorageDomain, images: tuple[str, ...], *, proven: bool
) -> tuple[list[str], Marks]:
    """Addresses that have an image open, and the marks with all of these images. Raises Refused where one of them may be a
    client that nothing is proven of."""
    pool = _pool(domain)
    marks = read_marks(domain, vm.id)
    # An adopted VM ran with its images before anybody here kept marks.
    all_known = vm.adopted and marks.images is None
    addresses: set[str] = set()
    prefixes: list[str] = []
    for image in images:
        found = look(pool, image)
        _check_exclusive(found, pool, image)
        watchers = {address for address, _, _ in found["watchers"]}
        # A lock whose owner does not watch: its client died, or lost its watch, and may have writes on their way.
        owners = set(found["lock_owners"])
        if watchers and not proven:
            raise _Opened(
                pool, image, sorted(watchers), "and a start without proof shuts out nobody"
            )
        if watchers | owners and not all_known and not marks.has(found["prefix"]) and proven:
            raise _Opened(pool, image, sorted(watchers | owners), "and this VM never ran with it")
        if "" in owners:
            raise Failed(f"who has the lock of image {image} can't be told")
        prefixes.append(found["prefix"])
        addresses |= watchers | owners
    return sorted(addresses) if proven else [], marks.with_images(prefixes)


def _take(
    vm: Vm, claim: VmHeader, domain: StorageDomain, images: tuple[str, ...], *, proven: bool
) -> None:
    # In this order: the claim is read after it was seen who has the images open. Whoever came after us has claimed before it opens
    # anything: where the claim is ours yet, none of those addresses is a later copy's, however long this takes from here.
    addresses, marks = _to_shut_out(vm, domain, images, proven=proven)
    present = read_vm_header(domain, vm.id)
    if present is None:
        raise Failed(f"the claim on {domain.name} is gone: its record was removed meanwhile")
    if present != claim:
        raise ClaimRefused(claim, present)
    for address in addresses:
        _log.warning("shut out of its image", vm=vm.name, domain=domain.name, address=address)
        ceph_records.block(_pool(domain), address)
    write_marks(domain, marks)


def _take_along(vm: Vm, new: Disk | None, domain: StorageDomain, images: tuple[str, ...]) -> None:
    pool = _pool(domain)
    if new is not None:
        images = (new.path,) if new.storage_domain_id == domain.id and not new.readonly else ()
    prefixes = []
    for image in images:
        found = look(pool, image)
        _check_exclusive(found, pool, image)
        watchers = sorted(address for address, _, _ in found["watchers"])
        if new is not None and watchers:
            raise _Opened(
                pool, image, watchers, "and nobody is shut out for a disk that is plugged in"
            )
        prefixes.append(found["prefix"])
    write_marks(domain, read_marks(domain, vm.id).with_images(prefixes))


def _check_exclusive(found: dict[str, Any], pool: CephPool, image: str) -> None:
    if not found["exclusive"]:
        raise InvalidInput(
            f"image {image} lacks the feature exclusive-lock, so two writers could go unseen",
            field="disk.path",
            fix=f"turn it on: rbd feature enable {pool.image_prefix}/{image} exclusive-lock",
        )


def _pool(domain: StorageDomain) -> CephPool:
    assert isinstance(domain.ceph, CephPool)
    return domain.ceph
