"""Looks at the disks of a silent host's VMs, as the server asks for them (F2): never through libvirt, never in the event loop.

Workers of their own: a look that hangs marks its domain for no order, and no order's work passes for a hung storage.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from virtha.agent.commands import Spawn
from virtha.agent.disk_watch import DisksSeen, DiskWatch
from virtha.agent.storage import StorageWorkers
from virtha.drivers.disk_signs import DirectoryDisks
from virtha.model.host import StorageDomain
from virtha.model.ids import HostId
from virtha.ports.storage_domain import DiskActivity
from virtha.wire.witness_messages import DisksLooked, LookAtDisks

SUBJECTS_MAX = 64
"""Whose disks are remembered; of more the eldest is forgotten, and begins anew."""
WAIT_MAX_MS = 10_000
_log = structlog.get_logger(__name__)


def directory_disks(domain: StorageDomain) -> DiskActivity:
    return DirectoryDisks(domain.path)


class DiskLooks:
    def __init__(
        self,
        domains: Callable[[], Iterable[StorageDomain]],
        *,
        spawn: Spawn,
        tell: Callable[[DisksLooked], object],
        activity_of: Callable[[StorageDomain], DiskActivity] = directory_disks,
    ) -> None:
        """``domains``: those of this host, now."""
        self._domains = domains
        self._spawn = spawn
        self._tell = tell
        self._activity_of = activity_of
        self._workers = StorageWorkers()
        self._silences: dict[HostId, tuple[str, DiskWatch]] = {}
        """What was seen in the present silence of each, the eldest first."""
        self._busy: set[HostId] = set()

    def ask(self, order: LookAtDisks) -> None:
        if order.subject in self._busy:
            _log.info("the last look at its disks goes on yet", subject=order.subject)
            return
        self._busy.add(order.subject)
        self._spawn(f"disks of {order.subject}", self._answer(order))

    async def _answer(self, order: LookAtDisks) -> None:
        try:
            seen = await self._look(order)
        finally:
            self._busy.discard(order.subject)
        self._tell(DisksLooked(question=order.question, changed=seen.changed, disks=seen.disks))

    async def _look(self, order: LookAtDisks) -> DisksSeen:
        """The first is compared with what this host saw before in the same silence, the second with the first."""
        watch = self._watch_of(order)
        first = await self._once(watch, order)
        if first.changed:
            return first
        await asyncio.sleep(min(order.gap_ms, WAIT_MAX_MS) / 1_000)
        return await self._once(watch, order)

    def _watch_of(self, order: LookAtDisks) -> DiskWatch:
        known = self._silences.pop(order.subject, None)
        if known is None or known[0] != order.silence:
            known = (order.silence, DiskWatch(self._workers, self._activity_of))
        self._silences[order.subject] = known
        while len(self._silences) > SUBJECTS_MAX:
            del self._silences[next(iter(self._silences))]
        return known[1]

    async def _once(self, watch: DiskWatch, order: LookAtDisks) -> DisksSeen:
        (seen,) = await watch.look(
            {order.subject: order.disks},
            {domain.id: domain for domain in self._domains()},
            deadline_ms=min(order.deadline_ms, WAIT_MAX_MS),
        )
        return seen
