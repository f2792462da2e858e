"""Which host reads a domain for a while beside the two that always do: each in its turn, so that one with something else
mounted there is found out (``shared_check``). Pure.
"""

from collections.abc import Collection, Sequence

from virtha.model.ids import HostId, StorageDomainId
from virtha.model.time import Millis
from virtha.server.shared_check import ROUNDS

PAUSE_MS = 30_000
"""Between two guests: the check is no hurry, and its reads cost something."""
GUEST_ROUNDS = ROUNDS + 3
"""Enough to be found out, or not."""


class _Visit:
    def __init__(self, host_id: HostId) -> None:
        self.host_id = host_id
        self.rounds = 0


class GuestReaders:
    def __init__(self, began: Millis) -> None:
        self._began = began
        self._visits: dict[StorageDomainId, _Visit] = {}
        self._last: dict[StorageDomainId, tuple[HostId, Millis]] = {}
        """Who was the last one, and when it left."""

    def guest(self, domain_id: StorageDomainId) -> HostId | None:
        visit = self._visits.get(domain_id)
        return None if visit is None else visit.host_id

    def heard(self, domain_id: StorageDomainId, host_id: HostId) -> bool:
        """A round came. False: not of a guest."""
        visit = self._visits.get(domain_id)
        if visit is None or visit.host_id != host_id:
            return False
        visit.rounds += 1
        return True

    def look(
        self,
        now: Millis,
        domain_id: StorageDomainId,
        able: Sequence[HostId],
        suspects: Collection[HostId],
    ) -> HostId | None:
        """Who is to read there as a guest now. ``able``: who could and does not read anyway, in an order that stays; a
        host that is silent is none of them. ``suspects``: are to go on until they see what the others write."""
        visit = self._visits.get(domain_id)
        if visit is not None:
            stays = visit.rounds < GUEST_ROUNDS or visit.host_id in suspects
            if visit.host_id in able and stays:
                return visit.host_id
            del self._visits[domain_id]
            self._last[domain_id] = (visit.host_id, now)
        last, left = self._last.get(domain_id, (None, self._began))
        if not able or now - left < PAUSE_MS:
            return None
        chosen = next((one for one in able if one in suspects), None) or _after(able, last)
        self._visits[domain_id] = _Visit(chosen)
        return chosen


def _after(able: Sequence[HostId], last: HostId | None) -> HostId:
    """The next one; the first where the last is none of them any more."""
    if last in able:
        return able[(able.index(last) + 1) % len(able)]
    return able[0]
