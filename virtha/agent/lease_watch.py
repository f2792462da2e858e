"""Which storage domains this host's guardian can't renew its lease on: seen from what it permits, in /run.

The leader waives the leases of an outage only if it hears of it in time, and the storage itself does not answer then.
"""

from virtha.agent.host_context import HostContext
from virtha.agent.lease_files import load_permits
from virtha.model.ids import StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.time import Millis

SHARE = 4
"""After that part of ``lease.self_fence_after`` without a good renewal a domain counts as lost here; another third of it the
leader waits."""
ROOM_MS = 500
"""For the look itself, beyond two renewals."""


class LeaseWatch:
    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._seen: dict[StorageDomainId, tuple[Millis, int]] = {}
        """The last permit that was seen, and when it was renewed: one that is withdrawn, or not written again yet by a new
        guardian, goes on to age."""
        self._looked_ms: int = 0
        self.lost: frozenset[StorageDomainId] = frozenset()

    def look(self) -> tuple[frozenset[StorageDomainId], frozenset[StorageDomainId]]:
        """What is lost since the last look, and what is back. A domain that never had a permit says nothing."""
        host, before = self._host, self.lost
        if not host.leases_in_use:
            self._seen.clear()
            self.lost = frozenset()
        else:
            assert host.settings is not None
            policy, now = host.settings.policy.lease, host.clock.monotonic_ms()
            for domain_id, until in load_permits(
                host.paths.start_permits, host.boot
            ).until_ms.items():
                self._see(domain_id, until, policy, now)
            self._looked_ms = now
            self.lost = self._aged(policy, now)
        return self.lost - before, before - self.lost

    def _see(
        self, domain_id: StorageDomainId, until: Millis, policy: LeasePolicy, now: Millis
    ) -> None:
        """The guardian may still permit by the policy of before: so one that moves on was renewed since the last look,
        however short it is, and none was renewed in times to come, however long."""
        before = self._seen.get(domain_id)
        if before is not None and before[0] == until:
            return
        renewed = until - policy.self_fence_after_ms
        if before is not None and until > before[0]:
            renewed = max(renewed, self._looked_ms)
        self._seen[domain_id] = until, min(renewed, now)

    def _aged(self, policy: LeasePolicy, now: Millis) -> frozenset[StorageDomainId]:
        late_ms = max(2 * policy.renew_ms + ROOM_MS, policy.self_fence_after_ms // SHARE)
        return frozenset(one for one, (_, renewed) in self._seen.items() if renewed < now - late_ms)
