"""Looks at the disks of a silent host's VMs, as the server asks for them (F2): never through libvirt, never in the event loop.

Workers of their own: a look that hangs marks its domain for no order, and no order's work passes for a hung storage.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from msgspec import UNSET

from virtha.agent.commands import Spawn
from virtha.agent.disk_watch import DisksSeen, DiskWatch
from virtha.agent.storage import StorageWorkers
from virtha.drivers.disk_signs import DirectoryDisks
from virtha.drivers.rbd_disks import RbdDisks
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import HostId
from virtha.ports.storage_domain import DiskActivity
from virtha.wire.witness_messages import DisksLooked, LookAtDisks

SUBJECTS_MAX = 64
"""Whose disks are remembered; of more the eldest is forgotten, and begins anew."""
WAIT_MAX_MS = 60_000


class DisksOf:
    """What reads a domain's disks; of a Ceph pool always the same, which remembers who had them open."""

    def __init__(self) -> None:
        self._pools: dict[CephPool, RbdDisks] = {}

    def __call__(self, domain: StorageDomain) -> DiskActivity:
        if domain.ceph is UNSET:
            return DirectoryDisks(domain.path)
        return self._pools.setdefault(domain.ceph, RbdDisks(domain.ceph))


class _Silence:
    """What was seen since a host's last sign."""

    def __init__(self, name: str, watch: DiskWatch) -> None:
        self.name = name
        self.watch = watch
        self.looked_s: float | None = None
        """When the last look began."""


class DiskLooks:
    def __init__(
        self,
        domains: Callable[[], Iterable[StorageDomain]],
        *,
        spawn: Spawn,
        tell: Callable[[DisksLooked], object],
        activity_of: Callable[[StorageDomain], DiskActivity] | None = None,
    ) -> None:
        """``domains``: those of this host, now."""
        self._domains = domains
        self._spawn = spawn
        self._tell = tell
        self._activity_of = activity_of or DisksOf()
        self._workers = StorageWorkers()
        self._silences: dict[HostId, _Silence] = {}
        """The present one of each, the eldest first."""
        self._busy: set[HostId] = set()
        self._next: dict[HostId, LookAtDisks] = {}
        """What was asked meanwhile; of more the last."""

    def ask(self, order: LookAtDisks) -> None:
        if order.subject in self._busy:
            self._next[order.subject] = order
            return
        self._busy.add(order.subject)
        self._spawn(f"disks of {order.subject}", self._answer(order))

    async def _answer(self, first: LookAtDisks) -> None:
        order: LookAtDisks | None = first
        try:
            while order is not None:
                seen = await self._look(order)
                self._tell(
                    DisksLooked(question=order.question, changed=seen.changed, disks=seen.disks)
                )
                order = self._next.pop(first.subject, None)
        finally:
            self._busy.discard(first.subject)

    async def _look(self, order: LookAtDisks) -> DisksSeen:
        """Compared with what this host saw before in the same silence; and once more, until that was ``gap_ms`` ago."""
        silence = self._silence_of(order)
        before_s, silence.looked_s = silence.looked_s, time.monotonic()
        seen = await self._once(silence.watch, order)
        gap_s = min(order.gap_ms, WAIT_MAX_MS) / 1_000
        if seen.changed is None or before_s is None:
            left_s = gap_s
        else:
            left_s = before_s + gap_s - silence.looked_s
        if seen.changed or left_s <= 0:
            return seen
        await asyncio.sleep(left_s)
        silence.looked_s = time.monotonic()
        return await self._once(silence.watch, order)

    def _silence_of(self, order: LookAtDisks) -> "_Silence":
        known = self._silences.pop(order.subject, None)
        if known is None or known.name != order.silence:
            known = _Silence(order.silence, DiskWatch(self._workers, self._activity_of))
        self._silences[order.subject] = known
        while len(self._silences) > SUBJECTS_MAX:
            del self._silences[next(iter(self._silences))]
        return known

    async def _once(self, watch: DiskWatch, order: LookAtDisks) -> DisksSeen:
        (seen,) = await watch.look(
            {order.subject: order.disks},
            {domain.id: domain for domain in self._domains()},
            deadline_ms=min(order.deadline_ms, WAIT_MAX_MS),
        )
        return seen
