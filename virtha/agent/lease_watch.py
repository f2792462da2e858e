"""Which storage domains this host's guardian can't renew its lease on: seen from what it permits, in /run.

The leader waives the leases of an outage only if it hears of it in time, and the storage itself does not answer then.
"""

from virtha.agent.host_context import HostContext
from virtha.agent.lease_files import load_permits
from virtha.model.ids import StorageDomainId
from virtha.model.policy import LeasePolicy

SHARE = 4
"""After that part of ``lease.self_fence_after`` without a good renewal a domain counts as lost here; another third of it the
leader waits."""
ROOM_MS = 500
"""For the look itself, beyond two renewals."""


class LeaseWatch:
    def __init__(self, host: HostContext) -> None:
        self._host = host
        self._renewed_ms: dict[StorageDomainId, int] = {}
        """Of the last permit that was seen: one that is withdrawn, or not written again yet by a new guardian, goes on to age."""
        self._off_ms = 0
        """Leases were out of use until then: what was renewed before says nothing."""
        self.lost: frozenset[StorageDomainId] = frozenset()

    def look(self) -> tuple[frozenset[StorageDomainId], frozenset[StorageDomainId]]:
        """What is lost since the last look, and what is back. A domain that never had a permit says nothing."""
        host, before = self._host, self.lost
        if not host.leases_in_use:
            if host.settings is not None:
                self._off_ms = host.clock.monotonic_ms()
            self._renewed_ms.clear()
            self.lost = frozenset()
        else:
            assert host.settings is not None
            policy, now = host.settings.policy.lease, host.clock.monotonic_ms()
            permits = load_permits(host.paths.start_permits, host.boot).domains
            for domain_id, permit in permits.items():
                if permit.renewed_ms >= self._off_ms:
                    self._renewed_ms[domain_id] = permit.renewed_ms
            self.lost = self._aged(policy, now)
        return self.lost - before, before - self.lost

    def _aged(self, policy: LeasePolicy, now: int) -> frozenset[StorageDomainId]:
        late_ms = max(2 * policy.renew_ms + ROOM_MS, policy.self_fence_after_ms // SHARE)
        return frozenset(one for one, at in self._renewed_ms.items() if at < now - late_ms)
