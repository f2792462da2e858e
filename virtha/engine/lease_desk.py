"""Who reads the slots, whom it is about, and what follows for the engine: a leader's desk for storage leases. Pure.

One per leader, as its judge is: what must outlive it (poison, waivers) is in the engine's records. The server and the
simulator put the same desk among their hosts (``Surroundings``). Readers are hosts with a guardian's session; duties
and rounds travel over that session, so a reader that is cut off is not heard.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from virtha.engine.events import EngineEvent, ProofFound, SlotChanged
from virtha.engine.events import Poison as PoisonCommand
from virtha.engine.lease import LeaseJudge, LeaseTarget, LifeSign
from virtha.engine.machine import Verdict
from virtha.engine.records import HostRecord
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import Poison
from virtha.model.slot_round import SlotRound
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import Reason

ASSIGN_MS = 1_000
"""How often whoever runs it lets it look who may read."""
ROUNDS_APART = 2
"""Rounds of one reader that are closer than so many periods follow each other."""
READERS = 2
"""On each domain at a time: one of them may be about to die."""


class Surroundings(Protocol):
    """What it asks of whoever runs it, and does through them. Nothing here waits."""

    @property
    def policy(self) -> LeasePolicy:
        """The cluster's present one."""
        ...

    def domains(self) -> Collection[StorageDomainId]:
        """All of the cluster, in an order that stays."""
        ...

    def hosts(self) -> Collection[HostId]:
        """All of the cluster, in the order in which they are asked to read."""
        ...

    def is_able(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        """Its guardian's session stands, and it says that it can use the domain."""
        ...

    def is_silent(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        """It was asked to read there, and nothing comes: others are asked first."""
        ...

    def records(self) -> Iterable[HostRecord]:
        """Of all hosts that the leader has one of."""
        ...

    def record(self, host_id: HostId) -> HostRecord | None: ...

    def held_on(self, host_id: HostId) -> Collection[StorageDomainId]:
        """Every domain in which copies that the host may hold have disks, by the records."""
        ...

    def verdict(self, host_id: HostId) -> Verdict | None: ...

    def engage(
        self, host_id: HostId, domain_id: StorageDomainId, poisons: Mapping[HostId, Poison]
    ) -> None:
        """It is to read there, and to poison these; said again at each look."""
        ...

    def relieve(self, host_id: HostId, domain_id: StorageDomainId) -> None: ...


class HostClock(Value, frozen=True, kw_only=True):
    """A boot's clock beside ours: what it showed was sent before we received it. So for anything that the boot did there is a
    cluster time by which it had happened, however long our knowing of it took.

    Without it a renewal of just before a power cut, read late or told late, looks like a sign of life after the device
    said *off* (P1).
    """

    boot: BootId
    clock_ms: int
    received_ms: int

    def latest_ms(self, clock_ms: int, drift_percent: int) -> int:
        """The latest cluster time at which that clock can have shown ``clock_ms``, however they drift."""
        passed_ms = clock_ms - self.clock_ms
        return self.received_ms + passed_ms - (-abs(passed_ms) * drift_percent // 100)


class LeaseDesk:
    def __init__(
        self,
        around: Surroundings,
        *,
        installation_id: InstallationId,
    ) -> None:
        self._around = around
        self._judge = LeaseJudge(installation_id, around.policy)
        self._poisons: dict[HostId, tuple[PoisonCommand, Poison]] = {}
        self._targets: dict[HostId, LeaseTarget] = {}
        self._waived: set[tuple[HostId, StorageDomainId]] = set()
        self._readers: dict[StorageDomainId, tuple[HostId, ...]] = {}
        self._clocks: dict[HostId, HostClock] = {}

    @property
    def is_judging(self) -> bool:
        """Somebody is poisoned, and rounds are wanted whatever the policy says by now."""
        return bool(self._poisons)

    def readers(self, domain_id: StorageDomainId) -> tuple[HostId, ...]:
        """Who reads there now."""
        return self._readers.get(domain_id, ())

    # Readers

    def look(self) -> None:
        """At the beginning and every ``ASSIGN_MS``."""
        for domain_id in self._around.domains():
            self._assign(domain_id)

    def _assign(self, domain_id: StorageDomainId) -> None:
        """Whoever reads well goes on: a judge compares rounds of one reader."""
        before = self._readers.get(domain_id, ())
        able = [name for name in before if self._is_able(name, domain_id)]
        silent = {name for name in able if self._around.is_silent(name, domain_id)}
        for name in self._around.hosts():
            if len(able) - len(silent) >= READERS:
                break
            if name not in able and self._is_able(name, domain_id):
                able.append(name)
                if self._around.is_silent(name, domain_id):
                    silent.add(name)
        # Stable: those who read already stay before the others.
        able.sort(key=lambda name: name in silent)
        readers = tuple(able[:READERS])
        for name in before:
            if name not in readers:
                self._around.relieve(name, domain_id)
        self._readers[domain_id] = readers
        poisons = self._mailboxes(domain_id)
        for name in readers:
            self._around.engage(name, domain_id, poisons)

    def _is_able(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        """Not whom it is about. Whether it sees the storage it finds out by itself; its agent's word comes first."""
        return host_id not in self._poisons and self._around.is_able(host_id, domain_id)

    def _mailboxes(self, domain_id: StorageDomainId) -> dict[HostId, Poison]:
        return {
            host_id: poison
            for host_id, (_, poison) in self._poisons.items()
            if host_id in self._targets and domain_id in self._targets[host_id].domain_ids
        }

    # Rounds

    def read(self, now: Millis, seen: SlotRound) -> tuple[EngineEvent, ...]:
        """What one round tells the engine. ``now``: cluster time."""
        judge = self._judge
        judge.policy = self._around.policy
        judge.two_hosts = len(self._around.hosts()) == 2
        self._look_at_records()
        proofs = judge.read(now, seen)
        signs = [
            SlotChanged(
                witness=seen.reader_id,
                subject=sign.host_id,
                storage_domain_id=seen.domain_id,
                boot=sign.boot,
                old_ms=self._at_least_old_ms(now, sign),
                within_ms=sign.within_ms,
            )
            for sign in judge.signs
            if self._is_in_doubt(sign)
        ]
        return (*signs, *(ProofFound(proof=proof) for proof in proofs))

    def _at_least_old_ms(self, now: Millis, sign: LifeSign) -> int:
        clock = self._clocks.get(sign.host_id)
        if clock is None or clock.boot != sign.boot:
            return 0
        return max(0, now - clock.latest_ms(sign.submitted_ms, self._judge.policy.drift_percent))

    def beat(self, now: Millis, host_id: HostId, boot: BootId, clock_ms: int) -> None:
        """``clock_ms``: of the host's boot-time clock when it sent that beat. ``now``: cluster time of its receipt."""
        known = self._clocks.get(host_id)
        drift_percent = self._judge.policy.drift_percent
        if known is None or known.boot != boot or now <= known.latest_ms(clock_ms, drift_percent):
            self._clocks[host_id] = HostClock(boot=boot, clock_ms=clock_ms, received_ms=int(now))

    def _is_in_doubt(self, sign: LifeSign) -> bool:
        """Of those that beat nobody needs to be told that they live. Of a boot that is proven dead only what is new:
        a reader that saw nothing for a while finds what the slot wrote before that proof."""
        record = self._around.record(sign.host_id)
        if record is not None and sign.boot in record.dead_boots:
            return sign.within_ms <= ROUNDS_APART * self._judge.policy.read_period_ms
        return self._around.verdict(sign.host_id) is not Verdict.ALIVE

    def _look_at_records(self) -> None:
        """Waivers that stand, and what the incidents are about now."""
        waived = {
            (record.host_id, waiver.domain_id)
            for record in self._around.records()
            for waiver in record.waived
        }
        for host_id, domain_id in sorted(waived ^ self._waived):
            self._judge.set_waiver(host_id, domain_id, stands=(host_id, domain_id) in waived)
        self._waived = waived
        for host_id in sorted(self._poisons):
            record = self._around.record(host_id)
            boot = self._poisons[host_id][0].boot
            if record is None or record.incident is None or record.incident.boot != boot:
                del self._poisons[host_id]
                self._targets.pop(host_id, None)
                self._judge.forget(host_id)
            else:
                self._watch(host_id, boot)

    def poison(self, command: PoisonCommand, poison: Poison) -> None:
        """``poison``: what the mailboxes are to say. They are written by the readers, in their next rounds and until they
        read it back."""
        self._poisons[command.host_id] = (command, poison)
        self._watch(command.host_id, command.boot)
        self.look()

    def _watch(self, host_id: HostId, boot: BootId) -> None:
        """All domains that copies which it may hold have disks in, as the engine named them and as the records do by now."""
        domains = self._poisons[host_id][0].domain_ids.union(self._around.held_on(host_id))
        known = self._targets.get(host_id)
        wanted = domains or frozenset(self._around.domains())
        if not wanted:
            return  # nothing to read, and nothing that a lease could be about
        target = LeaseTarget(host_id=host_id, boot=boot, domain_ids=wanted)
        if known is None or known.boot != boot or not target.domain_ids <= known.domain_ids:
            self._targets[host_id] = target
            self._judge.watch(target)

    def reasons(self, host_id: HostId) -> tuple[Reason, ...]:
        """Why its lease proves nothing, or not yet."""
        found = self._judge.reasons(host_id)
        return tuple({one.code: one for _, one in sorted(found.items())}.values())
