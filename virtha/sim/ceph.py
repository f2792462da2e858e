"""A Ceph cluster's list of shut-out addresses, as truth, and how a host's agent works on it (P3).

What was put on the list stands in the next map at once, and is in force when the OSDs have that map: after ``MAP_LAG_MS``, or when
a client comes that has it already. Until then the old host's writes land. So a start that does not wait for the map is
seen by the checker of interleaving writes, as in a real cluster by the guest's file system.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from virtha.model.ceph import CephSight
from virtha.model.errors import Failed, Refused
from virtha.model.ids import StorageDomainId
from virtha.model.orders import LetInHost, ShutOutHost
from virtha.model.value import Fields
from virtha.sim.kernel import Kernel
from virtha.sim.storage import SharedStorage

if TYPE_CHECKING:
    from virtha.sim.agent import SimAgent
    from virtha.sim.host import SimHost

FSID = "ceph-1"
MAP_LAG_MS = 5_000
WORK_MS = 150
"""From an order to its change, and from there to its answer."""
UNTIL_S = 2_000_000_000
POINTS = ("before", "done")
"""Looked at and not done yet; done and not answered."""

Ended = Callable[[Fields | None, str], None]
"""The answer's fields, or None and why it is not known to be done."""


class SimCeph:
    def __init__(
        self, kernel: Kernel, storage: SharedStorage, domains: Sequence[StorageDomainId]
    ) -> None:
        self.domains = tuple(domains)
        self.epoch = 1
        self.addresses: dict[str, str] = {}
        self.obstacles: dict[str, str] = {}
        self._kernel = kernel
        self._storage = storage
        self._listed: dict[str, int] = {}
        """The map in which each address came on the list."""
        self._in_force: set[str] = set()
        self.traps: dict[tuple[str, str], Callable[[SimHost], None]] = {}
        """By helper and point: what happens to it there, once."""
        self.on_change: Callable[[], None] = lambda: None
        """Somebody is shut out, or let in: its agent sees that at its next look."""
        self.on_let_in: Callable[[LetInHost], None] = lambda _order: None

    def add(self, host: str) -> None:
        self.addresses[host] = f"10.9.0.{len(self.addresses) + 1}"

    def sights(self, host: "SimHost") -> dict[StorageDomainId, CephSight]:
        """What its agent tells, where it can reach the cluster at all."""
        sight = CephSight(
            boot=host.boot,
            fsid=FSID,
            addresses=(self.addresses[host.name],),
            obstacle=self.obstacles.get(host.name, ""),
        )
        return {one: sight for one in self.domains if self._storage.reaches(host.name, one)}

    def is_listed(self, host: str) -> bool:
        return self.addresses[host] in self._listed

    # The cluster

    def block(self, addresses: Sequence[str]) -> int:
        new = [one for one in addresses if one not in self._listed]
        if new:
            self.epoch += 1
            self._listed |= dict.fromkeys(new, self.epoch)
            epoch = self.epoch
            self._kernel.after(MAP_LAG_MS, lambda: self.wait_for(epoch))
        return self.epoch

    def lift(self, addresses: Sequence[str]) -> None:
        self.epoch += 1
        for address in addresses:
            self._listed.pop(address, None)
            self._in_force.discard(address)
        self._apply()

    def wait_for(self, epoch: int) -> None:
        """Somebody has that map, so the OSDs that it talks to have it."""
        self._in_force |= {one for one, since in self._listed.items() if since <= epoch}
        self._apply()

    def _apply(self) -> None:
        for host, address in self.addresses.items():
            for domain_id in self.domains:
                self._storage.shut_out(host, domain_id, out=address in self._in_force)
        self.on_change()

    # Its helpers: one order at a time

    def carry_out(self, agent: "SimAgent", order: ShutOutHost | LetInHost, ended: Ended) -> None:
        host = agent.host
        if order.fsid != FSID or order.domain_id not in self.domains:
            raise Refused("it is in another cluster", code="problem.invalid")
        if isinstance(order, ShutOutHost) and self.addresses[host.name] in order.addresses:
            raise Refused("that is an address of this host", code="problem.invalid")
        if isinstance(order, LetInHost) and order.boot == order.runs:
            raise Refused("it has not booted since", code="problem.invalid")

        def begin() -> None:
            if not self._storage.reaches(host.name, order.domain_id):
                ended(None, "the cluster does not answer")
                return
            agent.later(WORK_MS, change)
            self._pass(host, "before")

        def change() -> None:
            fields: Fields
            if isinstance(order, ShutOutHost):
                epoch = self.block(order.addresses)
                told = ",".join(order.addresses)
                fields = {"fsid": FSID, "addresses": told, "epoch": epoch, "until_s": UNTIL_S}
            else:
                self.on_let_in(order)
                self.lift(order.addresses)
                fields = {"left": ""}
            host.trace(f"{host.name} carries out {type(order).__name__} of {order.host_id}")
            agent.later(WORK_MS, lambda: ended(fields, ""))
            self._pass(host, "done")

        agent.later(0, begin)

    def _pass(self, host: "SimHost", point: str) -> None:
        trap = self.traps.pop((host.name, point), None)
        if trap is not None:
            trap(host)


def cluster_of(host: "SimHost") -> SimCeph:
    """Raises Failed."""
    if host.ceph is None:
        raise Failed("this host has no Ceph cluster")
    return host.ceph
