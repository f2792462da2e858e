"""How the Ceph cluster of a domain sees this host: told while it lives, so that another host can shut it out when it does not
(P3). Only in the domain's worker."""

import json
import subprocess

from virtha.agent import ceph_records
from virtha.model.ceph import CephSight
from virtha.model.errors import InvalidInput
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import BootId

OBSTACLE_EVERY_MS = 600_000
"""What the cluster's daemons are, and whether the key permits a fence, is asked so often, and whenever an address changes: the one is
a long answer, and the other is in the cluster's log."""
_IP_S = 5


class CephSights:
    """Of one domain. Remembers what it told last: an outage changes none of it."""

    def __init__(self, boot: BootId) -> None:
        self._boot = boot
        self._last: CephSight | None = None
        self._asked_ms = 0
        self._helps = False

    @property
    def last(self) -> CephSight | None:
        return self._last

    def look(self, domain: StorageDomain, now_ms: int, *, helps: bool = False) -> CephSight:
        """``helps``: the policy counts on this host to shut others out. Raises OSError, VirthaError."""
        pool = pool_of(domain)
        fsid, _ = ceph_records.identity(pool)
        blocklist = ceph_records.blocklist(pool)
        addresses = blocklist.own_addresses()
        last = self._last
        if last is not None and last.fsid == fsid:
            same = last.addresses == addresses
            # A QEMU that was started from a former address has it yet.
            told = tuple(sorted({*last.addresses, *addresses}))
        else:
            same, told = False, addresses
        known = same and helps is self._helps and now_ms - self._asked_ms < OBSTACLE_EVERY_MS
        if last is not None and known:
            return last
        obstacle = blocklist.obstacle(addresses, card_addresses())
        lacks = blocklist.lacks() if helps else ""
        self._asked_ms, self._helps = now_ms, helps
        self._last = CephSight(
            boot=self._boot, fsid=fsid, addresses=told, obstacle=obstacle, lacks=lacks
        )
        return self._last


def pool_of(domain: StorageDomain) -> CephPool:
    """Raises InvalidInput."""
    if not isinstance(domain.ceph, CephPool):
        raise InvalidInput(
            f"storage domain {domain.name} is no pool of a Ceph cluster",
            field="domain_id",
            fix="name a domain of kind ceph-rbd",
        )
    return domain.ceph


def card_addresses() -> frozenset[str]:
    """Of all network cards of this host, in its network namespace. Raises OSError."""
    try:
        done = subprocess.run(
            ["ip", "-json", "address", "show"], capture_output=True, timeout=_IP_S, check=True
        )
        cards = json.loads(done.stdout)
        return frozenset(
            address["local"] for card in cards for address in card.get("addr_info", ())
        )
    except (subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise OSError(f"'ip -json address show' says nothing of use: {error}") from error
