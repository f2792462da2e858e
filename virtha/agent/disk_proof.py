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
from msgspec import UNSET

from virtha.agent.files import Files
from virtha.agent.host_context import HostContext
from virtha.agent.lease_files import LEASE_LOST
from virtha.agent.new_disk import ROOM_BYTES_MIN, free_bytes
from virtha.agent.records import safe_name
from virtha.agent.storage import PROBE_DEADLINE_MS, check_header, inside
from virtha.drivers.disk_signs import read_signs
from virtha.model.errors import VirthaError
from virtha.model.host import StorageDomain
from virtha.model.ids import HostId, InstallationId, StorageDomainId, VmId
from virtha.model.size import format_size
from virtha.model.value import Value
from virtha.model.vm import Disk


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
            *(self._ask(domain_id, wanted[domain_id], needs_room) for domain_id in sorted(wanted))
        )
        told = next((one for one in found if one is not None), None)
        # After the looks, which take their time: the lease may have run out meanwhile.
        return told or (None if host.lease_allows(vm_id) else LEASE_LOST)

    async def _ask(
        self, domain_id: StorageDomainId, disks: list[Disk], needs_room: bool
    ) -> str | None:
        host, name = self._host, str(domain_id)
        try:
            domain = host.storage_domain(domain_id)
            name = domain.name
            look = partial(
                _prove, domain, disks, host.installation_id, host.host_id, host.files, needs_room
            )
            return await host.workers.call(domain, look, deadline_ms=PROBE_DEADLINE_MS)
        except OSError as error:
            return f"storage domain {name}: {error.strerror or error}"
        except VirthaError as error:
            return str(error)


class _Written(Value, frozen=True, kw_only=True):
    """What lies in the domain afterwards; nobody reads it."""

    host_id: HostId


def _prove(
    domain: StorageDomain,
    disks: Iterable[Disk],
    installation_id: InstallationId,
    host_id: HostId,
    files: Files,
    needs_room: bool,
) -> str | None:
    """Raises VirthaError, OSError. Only in the domain's worker."""
    if domain.ceph is not UNSET:
        # What would prove that its images take writes is not built; a person can see that.
        return f"storage domain {domain.name} is a Ceph pool, which is not looked at for this: 'virtha vm resume'"
    check_header(domain, installation_id)
    for disk in disks:
        path = inside(domain, disk.path)
        read_signs(path)
        if not disk.readonly:
            # Opened only: what is in it is its QEMU's.
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    free = free_bytes(domain)
    if needs_room and free < ROOM_BYTES_MIN:
        return f"storage domain {domain.name} has {format_size(free)} left"
    place = Path(domain.path, ".virtha", "answers", f"{safe_name(host_id)}.json")
    place.parent.mkdir(exist_ok=True)
    files.write_atomic(place, msgspec.json.encode(_Written(host_id=host_id)), mode=0o644)
    return None
