"""The storage fence of Ceph (rule P3): a host's addresses are put on the cluster's blocklist, and every OSD then refuses what any
client of that host sends, also what it had sent and what arrives later.

A whole IP address at a time, so that no QEMU of the host is missed and none that starts there later is let through. That is why it
is wrong for a host behind NAT (others have that address, too) and for one that carries Ceph daemons: both are told
from what the host's own client is seen as, and what the cluster's daemons are. It ends only with the host's next boot.
"""

import errno
import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from virtha.drivers.ceph_client import CephClient
from virtha.model.errors import InvalidInput, Refused
from virtha.model.host import CephPool
from virtha.model.ids import BootId
from virtha.model.value import Value

EXPIRY_S = 10 * 365 * 86_400
"""An entry without expiry does not exist; Ceph's default is an hour, after which the old guest could write again."""
FAR_ENOUGH_S = EXPIRY_S // 2
"""What ends earlier is somebody else's entry, or a very old one of ours."""
PATIENCE_MS = 20_000


class Blocked(Value, frozen=True, kw_only=True):
    """What was read back. ``epoch``: of the OSDs' map that has them all; whoever takes the disks over waits for it."""

    addresses: tuple[str, ...]
    until_s: int
    """UTC seconds: the earliest end."""
    epoch: int


class CephBlocklist:
    """Not for two threads at once. All methods raise OSError, where nothing is known."""

    def __init__(
        self,
        pool: CephPool,
        *,
        options: Mapping[str, str] | None = None,
        now_s: Callable[[], float] = time.time,
        client: CephClient | None = None,
    ) -> None:
        """``client``: of whoever has one for that pool, and closes it; ``options`` are its own then."""
        self._client = client or CephClient(pool, options=options)
        self._pool = pool
        self._now_s = now_s

    def close(self) -> None:
        self._client.close()

    def own_addresses(self) -> tuple[str, ...]:
        """IP addresses that this host's clients are seen with. For the host itself to tell, while it lives."""
        text: str = self._client.ask("addresses", patience_ms=PATIENCE_MS)
        return tuple(sorted({_ip_of(one) for one in text.split(",") if one}))

    def obstacle(self, seen: Iterable[str], own: Iterable[str]) -> str:
        """Why this host may not be blocked by its addresses; empty: nothing stands against it. ``seen``: those of
        ``own_addresses``; ``own``: those of its network cards."""
        missing = sorted(set(seen) - set(own))
        if missing:
            return f"Ceph sees it as {', '.join(missing)}, which is no address of its own: it is behind NAT"
        shared = sorted(set(seen) & self._daemons())
        if shared:
            return f"Ceph daemons run at {', '.join(shared)}: blocking it would block them"
        return "" if tuple(seen) else "Ceph sees no address of it"

    def block(self, addresses: Iterable[str]) -> Blocked:
        """Before anything is proven by it. The answer says what was read back, never what was asked. Raises InvalidInput (an
        address, no permission), OSError."""
        wanted = _wanted(addresses)
        far_s = self._now_s() + FAR_ENOUGH_S
        standing = self._listed()
        for address in wanted:
            until_s = standing.get(address)
            if until_s is not None and until_s < far_s:
                # Ceph adds nothing to an entry that stands: one with a nearer end has to go first, or it ends then.
                self._change("rm", address)
                until_s = None
            if until_s is None:
                self._change("add", address, expire=float(EXPIRY_S))
        return self.check(wanted)

    def check(self, addresses: Iterable[str]) -> Blocked:
        """Whether all of them are blocked for years yet. Raises OSError where one is not: what leaned on that leans on nothing."""
        wanted = _wanted(addresses)
        far_s = self._now_s() + FAR_ENOUGH_S
        standing = self._listed()
        missing = [one for one in wanted if standing.get(one, 0.0) < far_s]
        if missing:
            raise OSError(
                errno.EIO, f"{', '.join(missing)} is not on the blocklist, or not for long"
            )
        self._client.ask("newest_map", patience_ms=PATIENCE_MS)
        until_s = int(min(standing[one] for one in wanted))
        return Blocked(addresses=wanted, until_s=until_s, epoch=self._epoch())

    def wait_for(self, epoch: int) -> None:
        """By the host that takes over, before it opens a disk: its client has a map in which the old one is shut out, and
        each OSD that it talks to takes over that map first. Raises OSError where that is not so yet."""
        self._client.ask("newest_map", patience_ms=PATIENCE_MS)
        has = self._epoch()
        if has < epoch:
            raise OSError(errno.EAGAIN, f"the map of OSDs is {has} here, and {epoch} is needed")

    def lift(self, blocked: Blocked, *, boot: BootId, runs: BootId) -> tuple[str, ...]:
        """After the host is back: its entries would stand for years. ``boot``: that was blocked; ``runs``: that it is heard of
        in. Where its end was never read back, ours is what ends far enough away. Returns addresses that stand there with an earlier end than ours: somebody else's entries, left to him. Again: the same.
        Raises Refused where no other boot is known to run: the old copies may live; OSError where one of ours stands yet."""
        if not runs or boot == runs:
            raise Refused(
                "the host has not booted since it was blocked"
                if runs
                else "it is not known which boot the host is in",
                fix="reboot it, then its storage is given back",
            )
        wanted = _wanted(blocked.addresses)
        standing = self._listed()
        until_s = blocked.until_s or self._now_s() + FAR_ENOUGH_S
        ours = [one for one in wanted if standing.get(one, 0.0) >= until_s]
        for address in ours:
            self._change("rm", address)
        standing = self._listed()
        left = [one for one in ours if one in standing]
        if left:
            raise OSError(errno.EIO, f"{', '.join(left)} is on the blocklist yet")
        return tuple(one for one in wanted if one in standing)

    def check_permission(self) -> None:
        """Raises InvalidInput when this user may not add or remove entries; tried on an address that nobody has."""
        self._change("add", _NOBODY, expire=1.0)
        self._change("rm", _NOBODY)

    def lacks(self) -> str:
        """Why this user could not let a host in again, in words with the fix; empty: it could, so it may add entries too. Asked by
        taking off the list what nobody has put there: the cluster's map stays as it is. Raises OSError where that is not known."""
        try:
            self._change("rm", _NOBODY)
        except InvalidInput as error:
            return f"{error.message}; {error.fix}"
        except FileNotFoundError:
            pass  # it might have been
        return ""

    def _change(self, operation: str, address: str, **words: float) -> None:
        try:
            self._client.command(
                patience_ms=PATIENCE_MS,
                prefix="osd blocklist",
                blocklistop=operation,
                addr=_entry(address),
                **words,
            )
        except PermissionError as error:
            user = self._pool.user
            raise InvalidInput(
                f"client.{user} may not change the cluster's blocklist ({operation})",
                field="ceph.user",
                fix=f"allow it: ceph auth caps client.{user} mon 'profile rbd, allow command \"osd blocklist\"' "
                f"osd 'profile rbd pool={self._pool.pool}'",
            ) from error

    def _listed(self) -> dict[str, float]:
        """Of whole addresses, until when (UTC seconds)."""
        text = self._client.command(patience_ms=PATIENCE_MS, prefix="osd blocklist ls")
        entries, _ = json.JSONDecoder().raw_decode(
            text.lstrip()
        )  # ranges follow as a list of their own
        return {
            _ip_of(entry["addr"]): _utc_s(entry["until"])
            for entry in entries
            if entry["addr"].endswith(":0/0")
        }

    def _daemons(self) -> set[str]:
        told = self._json("osd dump")
        osds = {_ip_of(osd["public_addr"]) for osd in told["osds"] if osd.get("public_addr")}
        monitors = {_ip_of(one["public_addr"]) for one in self._json("mon dump")["mons"]}
        return osds | monitors

    def _epoch(self) -> int:
        return int(self._json("osd dump")["epoch"])

    def _json(self, prefix: str) -> dict[str, Any]:
        text = self._client.command(patience_ms=PATIENCE_MS, prefix=prefix)
        told: dict[str, Any] = json.loads(text)
        return told


def _wanted(addresses: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(sorted({_checked(address) for address in addresses}))
    if not wanted:
        raise InvalidInput("no address is given", field="addresses")
    return wanted


_NOBODY = "192.0.2.1"
"""TEST-NET-1 of RFC 5737."""


def _checked(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise InvalidInput(f"'{address[:64]}' is no IP address", field="addresses") from None


def _entry(address: str) -> str:
    return f"[{address}]:0/0" if ":" in address else f"{address}:0/0"


def _ip_of(text: str) -> str:
    """Of ``v2:10.0.0.5:0/123``, ``[fd00::5]:0/0`` and the like."""
    body = text.split("/")[0].removeprefix("v1:").removeprefix("v2:").removeprefix("any:")
    host = body.rpartition(":")[0] or body
    return str(ipaddress.ip_address(host.strip("[]")))


def _utc_s(text: str) -> float:
    """``2036-11-19T12:26:26.413141+0000``"""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z").astimezone(UTC).timestamp()
