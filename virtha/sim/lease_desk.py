"""The server's side of the storage lease: who reads the slots, what they read, and the waivers' way to the hosts.

One per leader, as its judge is: what must outlive it (poison, waivers) is in the engine's records. Readers are hosts
with a guardian's session; requests and answers travel over that session, so a reader that is cut off is not heard.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from virtha.engine.events import (
    EndWaiver,
    EngineEvent,
    GiveWaiver,
    ProofFound,
    SlotChanged,
    WaiverOver,
)
from virtha.engine.events import Poison as PoisonCommand
from virtha.engine.lease import LeaseJudge, LeaseTarget, LifeSign
from virtha.engine.machine import Verdict
from virtha.model.ids import BootId, HostId, StorageDomainId
from virtha.model.slot import Poison
from virtha.model.slot_round import SlotRound
from virtha.model.vm import Reason
from virtha.sentinel.lease_events import WaiverEnded, WaiverGiven
from virtha.sim.leader import Leader
from virtha.sim.lease import Duty
from virtha.sim.line import INSTALLATION, SERVER
from virtha.sim.world_time import cluster_time

if TYPE_CHECKING:
    from virtha.sim.gateway import SimGateway
    from virtha.sim.host import SimHost
    from virtha.sim.world import World

ASSIGN_MS = 1_000
"""How often it looks who may read."""
ROUNDS_APART = 2
"""Rounds of one reader that are closer than so many periods follow each other."""
READERS = 2
"""On each domain at a time: one of them may be about to die."""


class LeaseDesk:
    def __init__(self, world: "World", gateway: "SimGateway", leader: Leader) -> None:
        self._world = world
        self._gateway = gateway
        self._leader = leader
        self._judge = LeaseJudge(INSTALLATION, world.server.policy.lease)
        self._poisons: dict[HostId, tuple[PoisonCommand, Poison]] = {}
        self._targets: dict[HostId, LeaseTarget] = {}
        self._waived: set[tuple[HostId, StorageDomainId]] = set()
        self._readers: dict[StorageDomainId, tuple[str, ...]] = {}

    def begin(self) -> None:
        self._look()

    # Readers

    def _look(self) -> None:
        if not self._leader.alive:
            return
        for domain_id in self._world.domains:
            self._assign(domain_id)
        self._leader.kernel.after(ASSIGN_MS, self._look)

    def _assign(self, domain_id: StorageDomainId) -> None:
        """Whoever reads well goes on: a judge compares rounds of one reader."""
        before = self._readers.get(domain_id, ())
        chosen = [name for name in before if self._able(name, domain_id)]
        for name in self._world.hosts:
            if len(chosen) >= READERS:
                break
            if name not in chosen and self._able(name, domain_id):
                chosen.append(name)
        readers = tuple(chosen)
        for name in before:
            if name not in readers:
                self._send(name, partial(self._relieve, domain_id))
        self._readers[domain_id] = readers
        duty = Duty(poisons=self._mailboxes(domain_id), tell=lambda seen: self._answer(seen))
        for name in readers:
            self._send(name, partial(self._engage, domain_id, duty))

    def _able(self, name: str, domain_id: StorageDomainId) -> bool:
        """Not whom it is about. Whether it sees the storage it finds out by itself; its agent's word comes first."""
        return (
            HostId(name) not in self._poisons
            and self._gateway.guardian_connected(name)
            and self._world.storage.reaches(name, domain_id)
        )

    def _mailboxes(self, domain_id: StorageDomainId) -> dict[HostId, Poison]:
        return {
            host_id: poison
            for host_id, (_, poison) in self._poisons.items()
            if domain_id in self._targets[host_id].domain_ids
        }

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

    # Rounds

    def _answer(self, seen: SlotRound) -> None:
        """On the reader's host, when its round is done."""
        link = self._world.network.link(seen.reader_id, SERVER)
        if link.carries:
            link.carry(lambda: self._leader.kernel.deliver(lambda: self._read(seen)))

    def _read(self, seen: SlotRound) -> None:
        if not self._leader.alive:
            return
        judge = self._judge
        judge.policy = self._world.server.policy.lease
        judge.two_hosts = len(self._world.hosts) == 2
        self._look_at_records()
        proofs = judge.read(cluster_time(self._leader.kernel.now), seen)
        events: list[EngineEvent] = [
            SlotChanged(
                witness=seen.reader_id,
                subject=sign.host_id,
                storage_domain_id=seen.domain_id,
                boot=sign.boot,
            )
            for sign in judge.signs
            if self._in_doubt(sign)
        ]
        events += [ProofFound(proof=proof) for proof in proofs]
        if events:
            self._leader.offer(*events)

    def _in_doubt(self, sign: LifeSign) -> bool:
        """Of those that beat nobody needs to be told that they live. Of a boot that is proven dead only what is new:
        a reader that saw nothing for a while finds what the slot wrote before that proof."""
        record = self._world.server.table.hosts.get(sign.host_id)
        if record is not None and sign.boot in record.dead_boots:
            return sign.within_ms <= ROUNDS_APART * self._judge.policy.read_period_ms
        return self._leader.engine.verdict(sign.host_id) is not Verdict.ALIVE

    def _look_at_records(self) -> None:
        """Waivers that stand, and what the incidents are about now."""
        table = self._world.server.table
        waived = {
            (record.host_id, waiver.domain_id)
            for record in table.hosts.values()
            for waiver in record.waived
        }
        for host_id, domain_id in sorted(waived ^ self._waived):
            self._judge.set_waiver(host_id, domain_id, stands=(host_id, domain_id) in waived)
        self._waived = waived
        for host_id in sorted(self._poisons):
            record = table.hosts.get(host_id)
            boot = self._poisons[host_id][0].boot
            if record is None or record.incident is None or record.incident.boot != boot:
                del self._poisons[host_id], self._targets[host_id]
                self._judge.forget(host_id)
            else:
                self._watch(host_id, boot)

    def poison(self, command: PoisonCommand) -> None:
        """The mailboxes are written by the readers, in their next rounds and until they read it back."""
        poison = Poison(
            boot=command.boot,
            server=self._gateway.instance,
            term=self._leader.term,
            incident=str(command.incident),
        )
        self._poisons[command.host_id] = (command, poison)
        self._watch(command.host_id, command.boot)
        for domain_id in self._world.domains:
            self._assign(domain_id)

    def _watch(self, host_id: HostId, boot: BootId) -> None:
        """All domains that copies which it may hold have disks in, as the engine named them and as the records do by now."""
        domains = set(self._poisons[host_id][0].domain_ids) | {
            self._world.storage.domain_of(record.vm_id)
            for record in self._world.server.table.vms.values()
            if any(copy.host_id == host_id for copy in record.copies)
        }
        known = self._targets.get(host_id)
        target = LeaseTarget(
            host_id=host_id, boot=boot, domain_ids=frozenset(domains or self._world.domains)
        )
        if known is None or known.boot != boot or not target.domain_ids <= known.domain_ids:
            self._targets[host_id] = target
            self._judge.watch(target)

    def reasons(self, host_id: HostId) -> tuple[Reason, ...]:
        """Why its lease proves nothing, or not yet."""
        found = self._judge.reasons(host_id)
        return tuple({one.code: one for _, one in sorted(found.items())}.values())

    # Waivers

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
