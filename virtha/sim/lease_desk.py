"""The simulator's place for the leader's lease desk (``engine/lease_desk.py``): its hosts, its lines, its records.

Requests and answers travel over the guardians' sessions, so a reader that is cut off is not heard.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from virtha.engine.events import EndWaiver, GiveWaiver, WaiverOver
from virtha.engine.events import Poison as PoisonCommand
from virtha.engine.lease_desk import ASSIGN_MS, LeaseDesk
from virtha.engine.machine import Verdict
from virtha.engine.records import HostRecord
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import Poison
from virtha.model.slot_round import SlotRound
from virtha.model.vm import Reason
from virtha.sentinel.lease_events import WaiverEnded, WaiverGiven
from virtha.sim.leader import Leader
from virtha.sim.lease import Duty
from virtha.sim.line import INSTALLATION, SERVER
from virtha.sim.world_time import cluster_time
from virtha.wire.messages import Beat

if TYPE_CHECKING:
    from virtha.sim.gateway import SimGateway
    from virtha.sim.host import SimHost
    from virtha.sim.world import World


class SimLeaseDesk:
    """Implements ``lease_desk.Surroundings``."""

    def __init__(self, world: "World", gateway: "SimGateway", leader: Leader) -> None:
        self._world = world
        self._gateway = gateway
        self._leader = leader
        self._desk = LeaseDesk(self, installation_id=INSTALLATION)

    def begin(self) -> None:
        if not self._leader.alive:
            return
        self._desk.look()
        self._leader.kernel.after(ASSIGN_MS, self.begin)

    def reasons(self, host_id: HostId) -> tuple[Reason, ...]:
        return self._desk.reasons(host_id)

    # Surroundings

    @property
    def policy(self) -> LeasePolicy:
        return self._world.server.policy.lease

    def domains(self) -> Collection[StorageDomainId]:
        return self._world.domains

    def hosts(self) -> Collection[HostId]:
        return [HostId(name) for name in self._world.hosts]

    def is_able(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        return self._gateway.guardian_connected(host_id) and self._world.storage.reaches(
            host_id, domain_id
        )

    def is_silent(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        """It knows who reaches the storage."""
        return False

    def records(self) -> Iterable[HostRecord]:
        return self._world.server.table.hosts.values()

    def record(self, host_id: HostId) -> HostRecord | None:
        return self._world.server.table.hosts.get(host_id)

    def held_on(self, host_id: HostId) -> Collection[StorageDomainId]:
        return {
            self._world.storage.domain_of(record.vm_id)
            for record in self._world.server.table.vms.values()
            if any(copy.host_id == host_id for copy in record.copies)
        }

    def verdict(self, host_id: HostId) -> Verdict | None:
        return self._leader.engine.verdict(host_id)

    def engage(
        self, host_id: HostId, domain_id: StorageDomainId, poisons: Mapping[HostId, Poison]
    ) -> None:
        duty = Duty(poisons=dict(poisons), tell=lambda seen: self._answer(seen))
        self._send(host_id, partial(self._engage, domain_id, duty))

    def relieve(self, host_id: HostId, domain_id: StorageDomainId) -> None:
        self._send(host_id, partial(self._relieve, domain_id))

    # To the hosts and back

    def _send(self, name: str, arrive: Callable[["SimHost"], None]) -> None:
        host = self._world.hosts[name]
        link = self._world.network.link(SERVER, name)
        boot = host.boot

        def there() -> None:
            guardian = host.guardian
            if guardian is not None and host.boot == boot:
                guardian.kernel.deliver(lambda: arrive(host) if guardian.alive else None)

        if link.carries and self._gateway.guardian_connected(name):
            self._world.kernel.after(link.delay_ms, there)

    def _engage(self, domain_id: StorageDomainId, duty: Duty, host: "SimHost") -> None:
        if host.lease is not None:
            host.lease.duties[domain_id] = duty

    def _relieve(self, domain_id: StorageDomainId, host: "SimHost") -> None:
        if host.lease is not None:
            host.lease.duties.pop(domain_id, None)

    def _answer(self, seen: SlotRound) -> None:
        """On the reader's host, when its round is done."""
        link = self._world.network.link(seen.reader_id, SERVER)
        if link.carries:
            link.carry(lambda: self._leader.kernel.deliver(lambda: self._read(seen)))

    def beat(self, host_id: HostId, beat: Beat) -> None:
        now = cluster_time(self._leader.kernel.now)
        self._desk.beat(now, host_id, beat.boot, beat.monotonic_ms)

    def _read(self, seen: SlotRound) -> None:
        if not self._leader.alive:
            return
        events = self._desk.read(cluster_time(self._leader.kernel.now), seen)
        if events:
            self._leader.offer(*events)

    # Commands

    def poison(self, command: PoisonCommand) -> None:
        poison = Poison(
            boot=command.boot,
            server=self._gateway.instance,
            term=self._leader.term,
            incident=str(command.incident),
        )
        self._desk.poison(command, poison)

    def carry_out(self, command: GiveWaiver | EndWaiver) -> None:
        """Its intent is durable."""
        domain_id, boot = command.domain_id, command.boot
        event: WaiverGiven | WaiverEnded
        if isinstance(command, GiveWaiver):
            event = WaiverGiven(domain_id=domain_id)
        else:
            event = WaiverEnded(domain_id=domain_id)

        def arrive(host: "SimHost") -> None:
            guardian = host.guardian
            if guardian is None or guardian.lease is None or host.boot != boot:
                return
            guardian.lease.on_waiver_over[domain_id] = partial(self._over, host.name, command)
            guardian.lease.tell(event)

        self._send(command.host_id, arrive)

    def _over(self, name: str, command: GiveWaiver | EndWaiver) -> None:
        """On the host: it keeps the lease again."""
        event = WaiverOver(
            waiver_id=command.waiver_id,
            host_id=command.host_id,
            boot=command.boot,
            domain_id=command.domain_id,
        )
        link = self._world.network.link(name, SERVER)
        if self._gateway.guardian_connected(name):
            link.carry(lambda: self._leader.kernel.deliver(lambda: self._leader.offer(event)))
