"""The server's place for a leader's lease desk (``engine/lease_desk.py``): its sessions, its configuration, its engine.

What is asked of a guardian is said once in each session and when it changes: a session that stands loses nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from msgspec.structs import replace

from virtha.control.leading import LedHost
from virtha.engine.engine import Engine
from virtha.engine.events import (
    EndWaiver,
    EngineEvent,
    GiveWaiver,
    SplitDomain,
    StorageCompared,
    WaiverOver,
)
from virtha.engine.events import Poison as PoisonCommand
from virtha.engine.lease import LeaseJudge, LeaseTarget
from virtha.engine.lease_desk import ASSIGN_MS, LeaseDesk
from virtha.engine.machine import Verdict
from virtha.engine.records import HostRecord, OrderId
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.policy import LeasePolicy, Policy
from virtha.model.slot import Poison
from virtha.model.slot_round import PLACES_MAX, LeaseDuty, SlotRound, slot_index
from virtha.model.time import Millis
from virtha.model.vm import Reason
from virtha.ports.leaders import Prospects
from virtha.server.guest_readers import GuestReaders
from virtha.server.shared_check import NotShared, SharedCheck
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseAnswer,
    LeaseKept,
    LeaseOrder,
    ReadSlots,
    SlotsRead,
    StopReading,
    WaiveLease,
    heard_round,
)
from virtha.wire.messages import Beat

SILENT_MS = 5_000
"""At least; a reader of which no round has come for that long stands back for others, for ``PASSED_OVER_MS``."""
PERIODS_SILENT = 3
PASSED_OVER_MS = 60_000
ROUNDS_KEPT = 3
"""A judge needs two to see that slots go on; renewals may be further apart than rounds."""


class LeaseLines(Protocol):
    """Guardians' sessions, as far as leases need them: the gateway's part."""

    instance: str
    """Of this server."""

    def lease_boot(self, host_id: HostId) -> BootId | None:
        """Of the guardian whose session stands. None: there is none, or it holds no leases."""
        ...

    def tell_lease(self, host_id: HostId, order: LeaseOrder) -> bool:
        """To that guardian. False: it could not be sent."""
        ...


class LedCluster(Protocol):
    """What is configured, and who decides: the cluster's feed."""

    @property
    def policy_now(self) -> Policy: ...

    @property
    def led_hosts(self) -> Mapping[HostId, LedHost]:
        """By number."""
        ...

    def storage_domains(self) -> Collection[StorageDomainId]:
        """All that a host of it says it can use, or a VM of it has disks in; sorted."""
        ...

    def offer(self, *events: EngineEvent) -> None: ...


class ServerLeaseDesk:
    """Of one leader, and gone with it. Implements ``lease_desk.Surroundings``."""

    def __init__(
        self,
        cluster: LedCluster,
        lines: LeaseLines,
        engine: Engine,
        *,
        installation_id: InstallationId,
        term: Term,
        now: Callable[[], Millis],
    ) -> None:
        """``now``: cluster time."""
        self._cluster = cluster
        self._lines = lines
        self._engine = engine
        self._term = term
        self._now = now
        self._places: dict[HostId, int] = {}
        """Also of hosts that were removed since: their boots may have to be poisoned yet."""
        self._said: dict[tuple[HostId, StorageDomainId], LeaseDuty] = {}
        """In the present session of that host's guardian."""
        self._awaited: dict[tuple[HostId, StorageDomainId], Millis] = {}
        """Since when no round has come of a reader."""
        self._looked_ms: Millis | None = None
        self._shared = SharedCheck()
        self._not_shared: tuple[NotShared, ...] = ()
        self._rounds: dict[tuple[StorageDomainId, HostId], tuple[SlotRound, ...]] = {}
        """The last ones of each reader, in its present session."""
        self._installation_id = installation_id
        self._guests = GuestReaders(now())
        self._desk = LeaseDesk(self, installation_id=installation_id)

    def reasons(self, host_id: HostId) -> tuple[Reason, ...]:
        """Why its lease proves nothing, or not yet; empty where nobody asks."""
        return self._desk.reasons(host_id)

    def prospects(self) -> Prospects | None:
        """See ``Leaders.lease_prospects``: the judge is asked about all hosts at once, as if they had fallen silent."""
        if not self._cluster.policy_now.leases_in_use:
            return None
        found: dict[HostId, dict[StorageDomainId, Reason]] = {}
        for domain_id in self.domains():
            judge = LeaseJudge(self._installation_id, self.policy, two_hosts=len(self.hosts()) == 2)
            watched = []
            for host_id, led in self._cluster.led_hosts.items():
                boot = self._lines.lease_boot(host_id)
                if boot is not None and domain_id in led.storage_domains:
                    domains = frozenset((domain_id,))
                    judge.watch(LeaseTarget(host_id=host_id, boot=boot, domain_ids=domains))
                    watched.append(host_id)
            for reader in self._desk.readers(domain_id):
                for seen in self._rounds.get((domain_id, reader), ()):
                    judge.read(self._now(), seen)
            for host_id in watched:
                found.setdefault(host_id, {}).update(judge.reasons(host_id))
        return found

    # What it is told

    def ticked(self) -> None:
        """Every now and then."""
        now = self._now()
        if self._looked_ms is None or now - self._looked_ms >= ASSIGN_MS:
            self._looked_ms = now
            self._desk.look()
            for domain_id in self.domains():
                self._invite(domain_id)

    def is_shared(self, domain_id: StorageDomainId) -> bool:
        """False: two hosts are known to see two different things there."""
        return all(pair.domain_id != domain_id for pair in self._not_shared)

    def beat(self, host_id: HostId, beat: Beat) -> None:
        self._desk.beat(self._now(), host_id, beat.boot, beat.monotonic_ms)

    def host_gone(self, host_id: HostId) -> None:
        self._shared.drop(host_id)
        self._tell_not_shared()

    def _invite(self, domain_id: StorageDomainId) -> None:
        """One more reader, for a while. It poisons nobody, and proves nothing."""
        before, readers = self._guests.guest(domain_id), self._desk.readers(domain_id)
        able = [
            one
            for one in self.hosts()
            if one not in readers
            and not self._desk.is_judging
            and self.is_able(one, domain_id)
            and not self.is_silent(one, domain_id)
        ]
        pairs = [pair for pair in self._not_shared if pair.domain_id == domain_id]
        suspects = {one for pair in pairs for one in (pair.reader_id, pair.writer_id)}
        guest = self._guests.look(self._now(), domain_id, able, suspects)
        if before not in (None, guest, *readers):
            assert before is not None
            self.relieve(before, domain_id)
        if guest is not None:
            self.engage(guest, domain_id, {})

    def session_changed(self, host_id: HostId, *, up: bool) -> None:
        """Of its guardian: what the one before was asked, this one does not know."""
        for key in [each for each in self._said if each[0] == host_id]:
            del self._said[key]
        for each in [one for one in self._rounds if one[1] == host_id]:
            del self._rounds[each]
        self._shared.forget(host_id)  # it may be another boot
        if up:
            self._desk.look()

    def heard(self, host_id: HostId, answer: LeaseAnswer) -> None:
        match answer:
            case SlotsRead():
                self._heard_round(host_id, answer)
            case LeaseKept(waiver_id=waiver_id, boot=boot, domain_id=domain_id):
                self._cluster.offer(
                    WaiverOver(
                        waiver_id=OrderId(waiver_id),
                        host_id=host_id,
                        boot=boot,
                        domain_id=domain_id,
                    )
                )

    def _heard_round(self, host_id: HostId, told: SlotsRead) -> None:
        if host_id not in self._cluster.led_hosts or told.domain_id not in self.domains():
            return  # of another cluster, or removed since it was asked
        self._awaited[host_id, told.domain_id] = self._now()
        seen = heard_round(host_id, told)
        places = self._places
        seen = replace(
            seen,
            slots={one: slot for one, slot in seen.slots.items() if one in places},
            mailboxes={one: box for one, box in seen.mailboxes.items() if one in places},
        )
        self._shared.fold(seen)
        self._tell_not_shared()
        if self._guests.heard(told.domain_id, host_id):
            return
        key = (told.domain_id, host_id)
        self._rounds[key] = (*self._rounds.get(key, ()), seen)[-ROUNDS_KEPT:]
        events = self._desk.read(self._now(), seen)
        if events:
            self._cluster.offer(*events)

    def _tell_not_shared(self) -> None:
        found = self._shared.not_shared()
        if found == self._not_shared:
            return
        self._not_shared = found
        first = {pair.domain_id: pair for pair in reversed(found)}
        self._cluster.offer(
            StorageCompared(
                not_shared=tuple(
                    SplitDomain(domain_id=domain_id, reader=pair.reader_id, writer=pair.writer_id)
                    for domain_id, pair in sorted(first.items())
                )
            )
        )

    # Commands; what they follow from is durable

    def poison(self, command: PoisonCommand) -> None:
        self._desk.poison(
            command,
            Poison(
                boot=command.boot,
                server=self._lines.instance,
                term=self._term,
                incident=str(command.incident),
            ),
        )

    def carry_out(self, command: GiveWaiver | EndWaiver) -> None:
        """The engine says it again in each session of that guardian, for as long as it stands."""
        kind = WaiveLease if isinstance(command, GiveWaiver) else KeepLease
        self._lines.tell_lease(
            command.host_id,
            kind(
                waiver_id=command.waiver_id,
                boot=command.boot,
                domain_id=command.domain_id,
            ),
        )

    # Surroundings

    @property
    def policy(self) -> LeasePolicy:
        return self._cluster.policy_now.lease

    def domains(self) -> Collection[StorageDomainId]:
        return self._cluster.storage_domains()

    def hosts(self) -> Collection[HostId]:
        return self._cluster.led_hosts

    def is_able(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        led = self._cluster.led_hosts.get(host_id)
        if led is None or domain_id not in led.storage_domains:
            return False
        wanted = self._cluster.policy_now.leases_in_use or self._desk.is_judging
        return wanted and self._lines.lease_boot(host_id) is not None

    def is_silent(self, host_id: HostId, domain_id: StorageDomainId) -> bool:
        since = self._awaited.get((host_id, domain_id))
        if since is None:
            return False
        silent_ms = self._now() - since
        return self._patience_ms <= silent_ms < self._patience_ms + PASSED_OVER_MS

    @property
    def _patience_ms(self) -> int:
        return max(SILENT_MS, PERIODS_SILENT * self.policy.read_period_ms)

    def records(self) -> Iterable[HostRecord]:
        return self._engine.host_records()

    def record(self, host_id: HostId) -> HostRecord | None:
        return self._engine.host_record(host_id)

    def held_on(self, host_id: HostId) -> Collection[StorageDomainId]:
        return self._engine.domains_held_on(host_id)

    def verdict(self, host_id: HostId) -> Verdict | None:
        return self._engine.verdict(host_id)

    def engage(
        self, host_id: HostId, domain_id: StorageDomainId, poisons: Mapping[HostId, Poison]
    ) -> None:
        boot = self._lines.lease_boot(host_id)
        if boot is None:
            return
        key = (host_id, domain_id)
        places = self._placed()
        duty = LeaseDuty(
            domain_id=domain_id,
            places=places,
            poisons={one: poison for one, poison in poisons.items() if one in places},
        )
        since = self._awaited.get(key)
        if since is None or self._now() - since >= self._patience_ms + PASSED_OVER_MS:
            self._awaited[key] = self._now()
        if self._said.get(key) == duty:
            return
        if self._lines.tell_lease(host_id, ReadSlots(boot=boot, duty=duty)):
            self._said[key] = duty

    def _placed(self) -> dict[HostId, int]:
        for host_id, led in self._cluster.led_hosts.items():
            index = slot_index(led.host.number)
            if index < PLACES_MAX:
                self._places[host_id] = index
        return dict(self._places)

    def relieve(self, host_id: HostId, domain_id: StorageDomainId) -> None:
        self._said.pop((host_id, domain_id), None)
        self._rounds.pop((domain_id, host_id), None)
        self._lines.tell_lease(host_id, StopReading(domain_id=domain_id))
