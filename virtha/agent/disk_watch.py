"""Do the disks of a silent host's VMs change? Compared by this host alone, between two looks of its own (F2, J3).

Every look runs in the storage domains' own workers: one that hangs is not waited for beyond the deadline, and what
could not be read says nothing, neither life nor death. That nothing changed proves nothing either: a guest may be idle.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping

from virtha.agent.storage import StorageWorkers
from virtha.model.errors import VirthaError
from virtha.model.evidence import WatchedDisk
from virtha.model.host import StorageDomain
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.value import Value
from virtha.ports.storage_domain import DiskActivity, DiskSigns


class DisksSeen(Value, frozen=True, kw_only=True):
    """``changed``: True: at least one; False: none of ``disks``, which are all; None: it can't be told of all, and
    none of the others changed."""

    subject: HostId
    changed: bool | None
    disks: int
    """How many were compared."""


class DiskWatch:
    def __init__(
        self, workers: StorageWorkers, activity_of: Callable[[StorageDomain], DiskActivity]
    ) -> None:
        self._workers = workers
        self._activity_of = activity_of
        self._last: dict[HostId, dict[WatchedDisk, DiskSigns]] = {}

    async def look(
        self,
        subjects: Mapping[HostId, Collection[WatchedDisk]],
        domains: Mapping[StorageDomainId, StorageDomain],
        *,
        deadline_ms: int,
    ) -> tuple[DisksSeen, ...]:
        """One round. A subject's first round tells nothing; one that is left out begins anew when it comes again."""
        wanted: dict[StorageDomainId, set[str]] = {}
        for disks in subjects.values():
            for disk in disks:
                wanted.setdefault(disk.domain_id, set()).add(disk.path)
        read = await asyncio.gather(
            *(
                self._read(domains.get(domain_id), paths, deadline_ms)
                for domain_id, paths in wanted.items()
            )
        )
        signs = {
            WatchedDisk(domain_id=domain_id, path=path): sign
            for domain_id, found in zip(wanted, read, strict=True)
            for path, sign in found.items()
        }
        before, self._last = self._last, {}
        return tuple(
            self._compare(subject, disks, signs, before.get(subject, {}))
            for subject, disks in subjects.items()
        )

    async def _read(
        self, domain: StorageDomain | None, paths: set[str], deadline_ms: int
    ) -> dict[str, DiskSigns | None]:
        if domain is None:
            return {}
        activity = self._activity_of(domain)
        try:
            return await self._workers.call(
                domain, lambda: activity.read_signs(sorted(paths)), deadline_ms=deadline_ms
            )
        except (OSError, VirthaError):
            return {}

    def _compare(
        self,
        subject: HostId,
        disks: Collection[WatchedDisk],
        signs: Mapping[WatchedDisk, DiskSigns | None],
        before: Mapping[WatchedDisk, DiskSigns],
    ) -> DisksSeen:
        compared = changed = 0
        kept = {disk: before[disk] for disk in disks if disk in before}
        for disk in disks:
            sign = signs.get(disk)
            if sign is None:
                continue
            if disk in before:
                compared += 1
                changed += sign != before[disk]
            kept[disk] = sign
        self._last[subject] = kept
        told = True if changed else False if compared == len(disks) and disks else None
        return DisksSeen(subject=subject, changed=told, disks=compared)
