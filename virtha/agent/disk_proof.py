"""Whether the storage of a VM's disks answers: each disk read, and something written to each of their storage domains.

Read past the cache where the file system can (`drivers/disk_signs`), and written so that the storage has acknowledged
it: a mount that turned read-only reads well, and so does the page cache of one that is gone.
"""

import asyncio
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec

from virtha.agent import ceph_records
from virtha.agent.ceph_images import look
from virtha.agent.host_context import HostContext
from virtha.agent.lease_files import LEASE_LOST
from virtha.agent.new_disk import ROOM_BYTES_MIN, free_bytes
from virtha.agent.records import safe_name
from virtha.agent.storage import PROBE_DEADLINE_MS, check_header, inside, read_vm_header
from virtha.drivers.disk_signs import read_signs
from virtha.model.errors import VirthaError
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.size import format_size
from virtha.model.value import Value
from virtha.model.vm import Disk
from virtha.sentinel.events import VmRecord


class DiskProver:
    def __init__(self, host: HostContext) -> None:
        self._host = host

    async def objection(self, vm_id: VmId, needs_room: bool) -> str | None:
        """In words; None: all of its disks answer, and the leases on their storage are held. Never raises for what is
        wrong with the storage, nor waits for one that hangs."""
        host = self._host
        record = host.loop.record(vm_id)
        if record is None:
            return "the VM is no longer this host's"
        wanted: dict[StorageDomainId, list[Disk]] = {}
        for disk in record.vm.disks:
            wanted.setdefault(disk.storage_domain_id, []).append(disk)
        found = await asyncio.gather(
            *(self._ask(record, one, wanted[one], needs_room) for one in sorted(wanted))
        )
        told = next((one for one in found if one is not None), None)
        # After the looks, which take their time: the lease may have run out meanwhile.
        return told or (None if host.lease_allows(vm_id) else LEASE_LOST)

    async def _ask(
        self, record: VmRecord, domain_id: StorageDomainId, disks: list[Disk], needs_room: bool
    ) -> str | None:
        host, name = self._host, str(domain_id)
        try:
            domain = host.storage_domain(domain_id)
            name = domain.name
            proof = partial(_prove, host, domain, record, disks, needs_room)
            return await host.workers.call(domain, proof, deadline_ms=PROBE_DEADLINE_MS)
        except OSError as error:
            return f"storage domain {name}: {error.strerror or error}"
        except VirthaError as error:
            return str(error)


class _Written(Value, frozen=True, kw_only=True):
    """What lies in the domain afterwards; nobody reads it."""

    host_id: HostId


def _prove(
    host: HostContext,
    domain: StorageDomain,
    record: VmRecord,
    disks: Iterable[Disk],
    needs_room: bool,
) -> str | None:
    """Raises VirthaError, OSError. Only in the domain's worker."""
    check_header(domain, host.installation_id)
    claim = read_vm_header(domain, record.vm.id)
    if claim is not None and claim.incarnation > record.incarnation:
        # G4: of one that goes on as of one that starts. Nobody may have told this host of it.
        return f"incarnation {claim.incarnation} of it was started by another host"
    data = msgspec.json.encode(_Written(host_id=host.host_id))
    name = safe_name(host.host_id)
    if isinstance(domain.ceph, CephPool):
        return _prove_pool(domain, domain.ceph, disks, name, data, needs_room)
    for disk in disks:
        path = inside(domain, disk.path)
        read_signs(path)
        if not disk.readonly:
            # Opened only: what is in it is its QEMU's.
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    if needs_room and free_bytes(domain) < ROOM_BYTES_MIN:
        return _no_room(domain, free_bytes(domain))
    place = Path(domain.path, ".virtha", "answers", f"{name}.json")
    place.parent.mkdir(exist_ok=True)
    host.files.write_atomic(place, data, mode=0o644)
    return None


def _prove_pool(
    domain: StorageDomain,
    pool: CephPool,
    disks: Iterable[Disk],
    name: str,
    data: bytes,
    needs_room: bool,
) -> str | None:
    """What is written is one object, on the OSDs of its own placement group. That those of an image take writes nobody can
    try but its QEMU: where they don't, it is paused again, and the waits grow."""
    for disk in disks:
        look(pool, disk.path)
    size, free, _ = ceph_records.space(pool)
    # Without a manager nobody counts; a pool that is full takes no write, which is tried below.
    if needs_room and size > 0 and free < ROOM_BYTES_MIN:
        return _no_room(domain, free)
    written = f"virtha.answers.{name}"
    ceph_records.write(pool, written, data, over=ceph_records.read(pool, written))
    return None


def _no_room(domain: StorageDomain, free: int) -> str:
    return f"storage domain {domain.name} has {format_size(free)} left"
