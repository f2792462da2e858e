"""What follows a commit: settings and orders to hosts. Persisted first, sent afterwards.

If the server dies in between, the orders are in the store and go out after the next hello.
"""

import msgspec
import structlog

from virtha.control.copies import copies_on
from virtha.control.host_settings import settings_for
from virtha.control.known_settings import GRANT_DURATION, SettingValues
from virtha.engine.configured import EngineVm
from virtha.engine.events import CopyGranted
from virtha.model.errors import InvalidInput
from virtha.model.ids import BootId, ClusterId, HostId, Term
from virtha.model.orders import Grant, GrantedBody, Order
from virtha.model.policy.detection import SESSION_SILENCE_MS
from virtha.model.time import Millis
from virtha.ports.hosts import HostLinks, LastBeat
from virtha.ports.leaders import Leaders
from virtha.store.hosts import HostRow, find_host, hosts_of_cluster
from virtha.store.installations import the_installation
from virtha.store.operations import unanswered_orders
from virtha.store.store import Store, Transaction
from virtha.store.vms import find_vm

log = structlog.get_logger("virtha.control.effects")
BEAT_SILENCE_MS = SESSION_SILENCE_MS
"""After which every policy ends a session: a guardian that has not beaten for longer may be dead. Nobody would
kill a QEMU without a grant then, and a grant that quotes its last beat is short or over."""


class Effects:
    """Gathered inside a transaction, carried out after its commit."""

    def __init__(self) -> None:
        self.clusters: set[ClusterId] = set()
        """All of whose hosts need new settings."""
        self.orders: list[tuple[HostId, Order]] = []
        self.disconnected: list[tuple[HostId, str]] = []
        self.granted: list[tuple[ClusterId, EngineVm, CopyGranted]] = []
        """Copies that these orders make possible: entered in the same transaction (G1)."""

    def configure(self, cluster_id: ClusterId) -> None:
        self.clusters.add(cluster_id)

    def deliver(self, host_id: HostId, order: Order) -> None:
        self.orders.append((host_id, order))

    def disconnect(self, host_id: HostId, code: str) -> None:
        self.disconnected.append((host_id, code))

    def grant(self, cluster_id: ClusterId, vm: EngineVm, granted: CopyGranted) -> None:
        self.granted.append((cluster_id, vm, granted))


class Dispatcher:
    def __init__(self, store: Store, links: HostLinks, leaders: Leaders) -> None:
        self._store = store
        self._links = links
        self._leaders = leaders

    async def carry_out(self, effects: Effects) -> None:
        for cluster_id, vm, granted in effects.granted:
            # Before the order goes out: nothing starts elsewhere from now on (G1).
            self._leaders.granted(cluster_id, vm, granted)
        if effects.clusters:
            async with self._store.read() as tx:
                for cluster_id in sorted(effects.clusters):
                    await self._configure(tx, cluster_id)
        for host_id, order in effects.orders:
            # False: no session; the order stays in the store and goes out after the next hello.
            self._links.deliver(host_id, order)
        for host_id, code in effects.disconnected:
            self._links.disconnect(host_id, code)

    async def _configure(self, tx: Transaction, cluster_id: ClusterId) -> None:
        rows = [
            row
            for row in await hosts_of_cluster(tx, cluster_id)
            if self._links.has_session(row.host.id)
        ]
        for host_id, settings in (await settings_for(tx, cluster_id, rows)).items():
            try:
                self._links.configure(host_id, settings)
            except InvalidInput as error:
                # They fit no frame: of a cluster with some 27,000 VMs. What is written stands, and what follows from it,
                # starts above all, goes out all the same; that host goes by the settings that it has.
                log.error("a host can't be told its settings", host_id=host_id, error=str(error))

    def agent_connected(self, host_id: HostId) -> bool:
        return self._links.agent_connected(host_id)

    def beating(self, host: HostRow) -> bool:
        return fresh_beat(self._links, host, self._store.clock.monotonic_ms()) is not None

    async def unanswered(self, tx: Transaction, host: HostRow) -> tuple[Order, ...]:
        """This host's unanswered orders, renewed for its present boot and term.

        A start whose grant can't be renewed, for want of a beat of this boot, waits for the next time.
        """
        row = await the_installation(tx)
        renewed = []
        for waiting in await unanswered_orders(tx, host.host.id):
            boot = host.status.boot
            if boot is None or not await still_stands(tx, host, waiting.order):
                continue
            order = self._renewed(waiting.order, host, boot, row.term)
            if order is not None:
                renewed.append(order)
        return tuple(renewed)

    def _renewed(self, order: Order, host: HostRow, boot: BootId, term: Term) -> Order | None:
        body = order.body
        if isinstance(body, GrantedBody):
            now = self._store.clock.monotonic_ms()
            grant = quoting(self._links, host, body.grant, now)
            if grant is None:
                return None
            body = msgspec.structs.replace(body, grant=grant)
        return msgspec.structs.replace(order, body=body, host_boot=boot, term=term)

    async def resend(self, host_id: HostId) -> int:
        """Send what this host has not answered, now. Returns how many orders went out."""
        async with self._store.read() as tx:
            host = await find_host(tx, host_id)
            orders = await self.unanswered(tx, host) if host is not None else ()
        return sum(self._links.deliver(host_id, order) for order in orders)


async def still_stands(tx: Transaction, host: HostRow, order: Order) -> bool:
    """Whether a host may still be sent this order.

    A start stands while its host is held to have that very incarnation. After its release the next
    start may be on another host: sent again with a new grant, this one would be a second copy (G1).
    And it is for the boot that it was made for: that boot's end is a proof (P4), by which the engine
    starts the VM elsewhere, and it may be writing so now.
    """
    if not isinstance(order.body, GrantedBody):
        return True
    host_id, grant = host.host.id, order.body.grant
    if grant.boot != host.status.boot:
        return False
    row = await find_vm(tx, grant.vm_id)
    if row is None or host_id not in row.status.holders:
        return False
    known = {copy.incarnation for copy in copies_on(row.status, host_id)} or {grant.incarnation}
    return row.status.incarnation == grant.incarnation and grant.incarnation in known


def fresh_beat(links: HostLinks, host: HostRow, now: Millis) -> LastBeat | None:
    """The last beat of the host's present boot; None: there is none, or its guardian is silent."""
    beat = links.last_beat(host.host.id)
    if beat is None or beat.boot != host.status.boot:
        return None
    return beat if now - beat.received_at < BEAT_SILENCE_MS else None


def quoting(links: HostLinks, host: HostRow, wanted: Grant, now: Millis) -> Grant | None:
    """``wanted`` for the host's present boot, from its last beat; None: there is no beat to quote (G2)."""
    beat = fresh_beat(links, host, now)
    if beat is None:
        return None
    return msgspec.structs.replace(wanted, boot=beat.boot, beat_monotonic_ms=beat.monotonic_ms)


def grant_duration_ms(host: HostRow, values: SettingValues) -> int:
    """Of a start that a person orders."""
    duration_ms = values.get(GRANT_DURATION, host_id=host.host.id, cluster_id=host.host.cluster_id)
    if isinstance(check_ms := host.status.capabilities.disk_check_ms, int):
        # The host watches the disks first (A5), and looks at the grant again after that.
        duration_ms += check_ms
    return duration_ms
