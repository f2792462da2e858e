"""One cluster's leader and what it is told of: configuration, sessions, beats and facts become events of its engine, its
commands become orders. Its memory goes with it; what it wrote is in the store.
"""

import asyncio
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from msgspec.structs import replace

from virtha.control.engine_orders import (
    EngineOrders,
    NotOrdered,
    ending,
    leaving,
    operation_of,
    receiving,
)
from virtha.control.engine_power import EnginePower
from virtha.control.leading import Leading, LedHost, LedVm, Takeover
from virtha.engine.capacity import FeatureKind
from virtha.engine.cutting import StorageLetIn
from virtha.engine.ending import EndCopy, EndPaused
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    CancelStart,
    Command,
    CopyGranted,
    EndWaiver,
    EngineEvent,
    GiveWaiver,
    HoldChanged,
    HostConfigured,
    HostRemoved,
    HostSurveyed,
    Investigate,
    LibvirtAnswered,
    MigrateCommand,
    OrderPower,
    Poison,
    PolicyChanged,
    PowerTested,
    ReadPower,
    SessionChanged,
    SettleMigration,
    StartCommand,
    StartEnded,
    StorageFence,
    VmConfigured,
    VmRemoved,
)
from virtha.engine.told import active_vms, ended, event_of, move_answer, move_refused
from virtha.model.errors import Unavailable
from virtha.model.evidence import ProcessKind
from virtha.model.facts import Fact, Inventory, Outcome, Result
from virtha.model.ids import (
    BootId,
    ClusterId,
    HostId,
    InstallationId,
    OperationId,
    StorageDomainId,
    VmId,
)
from virtha.model.policy import Policy
from virtha.model.power import PowerLevel
from virtha.model.vm import Reason
from virtha.ports.clock import Clock
from virtha.ports.leaders import Prospects
from virtha.server.begun_orders import BegunOrders
from virtha.server.cluster_records import ClusterRecords
from virtha.server.journal import EngineJournal
from virtha.server.leader import DATABASE_RETRY_MS, ClusterClock, Leader
from virtha.server.lease_desk import LeaseLines, ServerLeaseDesk
from virtha.server.power_desk import PowerDesk
from virtha.server.sightings import SightingBook
from virtha.server.witness_desk import WitnessDesk, WitnessLines
from virtha.store.installations import Lead
from virtha.wire.lease_messages import LeaseAnswer
from virtha.wire.messages import Beat, PeerRole
from virtha.wire.witness_messages import WitnessAnswer

log = structlog.get_logger("virtha.server.engines")

HELPING_MAX = 64
"""Orders to helpers whose answers are awaited: of more the oldest have long been followed by others."""
_PROCESSES = {PeerRole.AGENT: ProcessKind.AGENT, PeerRole.GUARDIAN: ProcessKind.GUARDIAN}
Sessions = Callable[[HostId], Iterable[tuple[PeerRole, BootId]]]
"""Of a host, those that stand at this moment."""


class Lines(LeaseLines, WitnessLines, Protocol):
    """Sessions, as its desks need them."""


class ClusterFeed:
    def __init__(
        self,
        cluster_id: ClusterId,
        *,
        lead: Lead,
        installation_id: InstallationId,
        leading: Leading,
        orders: EngineOrders,
        power: EnginePower,
        clock: Clock,
        journal: Path,
        sessions: Sessions,
        lines: Lines,
        acknowledged: Callable[[Mapping[HostId, int]], None],
    ) -> None:
        self.cluster_id = cluster_id
        self.lead = lead
        self._leading = leading
        self._orders = orders
        self._power = power
        self._clock = clock
        self._sessions = sessions
        self._lines = lines
        self._installation_id = installation_id
        self._acknowledged = acknowledged
        self._journal = EngineJournal(
            journal,
            installation_id=installation_id,
            cluster_id=cluster_id,
            term=lead.term,
            on_trouble=lambda trouble: log.warning(trouble),
        )
        self._early: list[EngineEvent] = []
        """What came before it was known what had been decided before."""
        self.leader: Leader | None = None
        self.leases: ServerLeaseDesk | None = None
        """Of the leader."""
        self.witnesses: WitnessDesk | None = None
        self.power_desk: PowerDesk | None = None
        self._sightings: SightingBook | None = None
        self._policy = Policy()
        self._hold: str | None = None
        self._hosts: dict[HostId, LedHost] = {}
        self._vms: dict[VmId, LedVm] = {}
        self._domains: tuple[StorageDomainId, ...] | None = None
        """None: something has changed since they were counted."""
        self._surveys: dict[HostId, HostSurveyed] = {}
        self._offered: dict[HostId, int] = {}
        """The last fact of each host that the engine was given."""
        self._begun = BegunOrders()
        self._let_in: dict[OperationId, MigrateCommand] = {}
        """By the order to the target, until that is answered; its source is ordered when its target has taken it."""
        self._leaving: dict[OperationId, MigrateCommand] = {}
        """By the order to the source, until that is answered."""
        self._helping: dict[OperationId, StorageFence | StorageLetIn] = {}
        """What helpers were asked, oldest first."""
        self._untold: dict[HostId, list[PowerTested]] = defaultdict(list)
        """Power tests that count while the boot beats in which they were made."""
        self._attempts = itertools.count(1)

    # Its beginning and end

    def begin(
        self,
        taken: Takeover,
        *,
        hosts: Iterable[LedHost],
        vms: Iterable[LedVm],
        hold: str | None,
    ) -> None:
        """From the records; then what is configured, then what no turn has written, then which sessions stand: a session
        of a boot ends what others of its host's boots made, so none may be told that stands no more, after what a later
        boot was granted meanwhile (P4, see ``SessionChanged``)."""
        assert self.leader is None, "it leads already"
        clock = ClusterClock(self._clock, written=taken.clock)
        self._policy = taken.policy
        self._hold = taken.records.cluster.hold
        self.power_desk = PowerDesk(
            self.cluster_id, lead=self.lead, power=self._power, clock=clock, tell=self.offer
        )
        engine = Engine(policy=taken.policy, records=taken.records, now=clock.now())
        self._sightings = SightingBook(
            now=clock.now, wall=clock.wall_ms, name=self._name_of, explain=self.explain_host
        )
        self.leader = Leader(
            name=self.cluster_id,
            engine=engine,
            term=self.lead.term,
            clock=clock,
            records=ClusterRecords(self._leading, self.cluster_id, self.lead, self._sightings),
            journal=self._journal,
            carry_out=self.carry_out,
            acknowledged=self._acknowledged,
            stall_ms=lambda: self._policy.detection.stall_ms,
            ticked=lambda: leases.ticked(),
        )
        leases = self.leases = ServerLeaseDesk(
            self,
            self._lines,
            engine,
            installation_id=self._installation_id,
            term=self.lead.term,
            now=clock.now,
        )
        self.witnesses = WitnessDesk(self, self._lines, term=self.lead.term, now=clock.now)
        known = tuple(hosts)
        for host in known:
            self._configure(host)
        self.hold(hold)
        for vm in vms:
            self.vm(vm)
        for test in taken.tests:
            self._untold[test.host_id].append(test)
        early, self._early = self._early, []
        self.offer(*taken.granted)
        self.offer(*(event for event in early if not isinstance(event, SessionChanged | BeatSeen)))
        for host in known:
            self._tell_sessions(host.host.host_id)

    async def run(self) -> None:
        """As ``Leader.run``."""
        assert self.leader is not None, "begin first"
        try:
            await self.leader.run()
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Nothing goes to a power device any more. Safe to call twice."""
        if self.power_desk is not None:
            await self.power_desk.close()

    def close(self) -> None:
        """Waits for the journal's disk, for a second at most."""
        self._journal.close(1.0)

    def offer(self, *events: EngineEvent) -> None:
        if self.leader is None:
            self._early += events
            return
        self.leader.offer(*events)
        if self._sightings is not None:
            self._sightings.heard(events)

    def _name_of(self, host_id: HostId) -> str:
        led = self._hosts.get(host_id)
        return host_id if led is None else led.host.name

    # For its desks, and who asks them

    @property
    def policy_now(self) -> Policy:
        return self._policy

    @property
    def led_hosts(self) -> Mapping[HostId, LedHost]:
        return self._hosts

    @property
    def led_vms(self) -> Mapping[VmId, LedVm]:
        return self._vms

    def is_shared(self, domain_id: StorageDomainId) -> bool:
        return self.leases is None or self.leases.is_shared(domain_id)

    def storage_domains(self) -> tuple[StorageDomainId, ...]:
        """All that a host of it says it can use, or a VM of it has disks in."""
        if self._domains is not None:
            return self._domains
        found = {one for led in self._hosts.values() for one in led.storage_domains}
        for vm in self._vms.values():
            found |= {
                StorageDomainId(feature.name)
                for feature in vm.vm.features
                if feature.kind is FeatureKind.STORAGE
            }
        self._domains = tuple(sorted(found))
        return self._domains

    def lease_prospects(self) -> Prospects | None:
        return None if self.leases is None else self.leases.prospects()

    def explain_host(self, host_id: HostId) -> tuple[Reason, ...]:
        """Why it is as it is, then why its lease is no proof. Once it leads."""
        assert self.leader is not None and self.leases is not None
        return (*self.leader.engine.explain_host(host_id), *self.leases.reasons(host_id))

    # What operators configure

    def policy(self, policy: Policy) -> None:
        if policy != self._policy:
            self._policy = policy
            self.offer(PolicyChanged(policy=policy))

    def hold(self, reason: str | None) -> None:
        if reason != self._hold:
            self._hold = reason
            self.offer(HoldChanged(reason=reason))

    def host(self, led: LedHost) -> None:
        """New, or something about it has changed."""
        host_id = led.host.host_id
        before = self._hosts.get(host_id)
        self._configure(led)
        if before is None:
            self._tell_sessions(host_id)
        elif before.libvirt_connected is not led.libvirt_connected:
            self.offer(LibvirtAnswered(host_id=host_id, answering=led.libvirt_connected))
        self._survey_again(led)

    def _configure(self, led: LedHost) -> None:
        host_id = led.host.host_id
        before = self._hosts.get(host_id)
        self._hosts[host_id] = led
        self._domains = None
        if before is None:
            self._offered[host_id] = led.acknowledged
        self._tell_devices(host_id, led.host.power)
        if before is None or before.host != led.host:
            self.offer(HostConfigured(host=led.host))

    def _tell_devices(self, host_id: HostId, levels: tuple[PowerLevel, ...]) -> None:
        if self.power_desk is not None:
            devices = frozenset(feed.device for level in levels for feed in level.feeds)
            self.power_desk.configured(host_id, devices)

    def _tell_sessions(self, host_id: HostId) -> None:
        """Of what connected before it was known here."""
        for role, boot in self._sessions(host_id):
            self.session(host_id, role, boot, up=True)

    def host_gone(self, host_id: HostId) -> None:
        self._domains = None
        if self._hosts.pop(host_id, None) is not None:
            self._surveys.pop(host_id, None)
            self._tell_devices(host_id, ())
            if self.leases is not None:
                self.leases.host_gone(host_id)
            self.offer(HostRemoved(host_id=host_id))

    def vm(self, led: LedVm) -> None:
        before = self._vms.get(led.vm.vm_id)
        if led.disks is None and before is not None:
            led = replace(led, disks=before.disks)
        self._vms[led.vm.vm_id] = led
        self._domains = None
        if before is None or before.vm != led.vm:
            self.offer(VmConfigured(vm=led.vm))

    def vm_gone(self, vm_id: VmId) -> None:
        self._domains = None
        if self._vms.pop(vm_id, None) is not None:
            self._begun.vm_gone(vm_id)
            self._forget_moves(vm_id)
            self.offer(VmRemoved(vm_id=vm_id))

    def granted(self, led: LedVm, granted: CopyGranted) -> None:
        """By a person's order. Of a VM that it was not told of yet, that comes first."""
        self.vm(led)
        self.offer(granted)

    # What the gateway sees

    def beat(self, host_id: HostId, beat: Beat) -> None:
        if self.witnesses is not None:
            self.witnesses.signed(host_id)
        if self.leases is not None:
            self.leases.beat(host_id, beat)
        self.offer(BeatSeen(host_id=host_id, boot=beat.boot, agent_alive=beat.agent_alive))
        if host_id in self._untold:
            self.offer(*(one for one in self._untold.pop(host_id) if one.boot == beat.boot))

    def session(
        self, host_id: HostId, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None:
        survey = self._surveys.get(host_id)
        if up and survey is not None and survey.boot != boot:
            del self._surveys[host_id]
        self.offer(
            SessionChanged(
                host_id=host_id, process=_PROCESSES[role], boot=boot, up=up, broken=broken
            )
        )
        if up and self.witnesses is not None:
            self.witnesses.signed(host_id)
        if role is PeerRole.GUARDIAN and self.leases is not None:
            self.leases.session_changed(host_id, up=up)
        # What its agent said last may have been recorded when its session stood no more.
        if up and role is PeerRole.AGENT and host_id in self._hosts:
            self._survey_again(self._hosts[host_id])

    def lease(self, host_id: HostId, answer: LeaseAnswer) -> None:
        """Before it leads nobody was asked for one."""
        if self.leases is not None:
            self.leases.heard(host_id, answer)

    def witness(self, host_id: HostId, answer: WitnessAnswer) -> None:
        """As ``lease``."""
        if self.witnesses is not None:
            self.witnesses.heard(host_id, answer)

    def knows(self, facts: Sequence[Fact]) -> bool:
        """Whether it was told of all that these facts are about, and need no newer picture of their host."""
        for fact in facts:
            vm_id: VmId | None = getattr(fact.body, "vm_id", None)
            if isinstance(fact.body, Inventory) or (vm_id is not None and vm_id not in self._vms):
                return False
        return True

    async def facts(
        self, host_id: HostId, boot: BootId, facts: Sequence[Fact], recorded: int, timeline: str
    ) -> None:
        """Each once, also those that were recorded and not written by a leader before."""
        assert self.leader is not None, "facts before it leads"
        for fact in facts:
            if fact.sequence <= self._offered.get(host_id, 0):
                continue  # sent again over a new session while a turn still has it
            self._offered[host_id] = fact.sequence
            match fact.body:
                case Inventory() as inventory:
                    if self._leading.made_after(host_id, timeline, fact):
                        self._survey(host_id, fact.boot, boot, inventory)
                case Outcome() as outcome:
                    await self._ended(outcome)
                case _:
                    event = event_of(host_id, fact, carried_by=boot)
                    if event is not None:
                        self.offer(event)
        self.leader.took(host_id, recorded)

    def _survey(
        self, host_id: HostId, boot: BootId, carried_by: BootId, inventory: Inventory
    ) -> None:
        led = self._hosts[host_id]
        survey = HostSurveyed(
            host_id=host_id,
            boot=boot,
            carried_by=carried_by,
            gate_in_force=led.gate_in_force,
            libvirt_connected=led.libvirt_connected,
            storage_domains=led.storage_domains,
            ceph=led.ceph,
            active=active_vms(inventory, self._vms),
        )
        # A list tells of its own moment: what it named may have been given back by the time its host says the rest again.
        self._surveys[host_id] = replace(survey, active=frozenset())
        self.offer(survey)

    def _survey_again(self, led: LedHost) -> None:
        """Its agent says otherwise of its gate, libvirt or storage; only while it says so in the boot that it surveyed."""
        host_id = led.host.host_id
        before = self._surveys.get(host_id)
        if before is None or (PeerRole.AGENT, before.boot) not in self._sessions(host_id):
            return
        survey = replace(
            before,
            gate_in_force=led.gate_in_force,
            libvirt_connected=led.libvirt_connected,
            storage_domains=led.storage_domains,
            ceph=led.ceph,
        )
        if survey != before:
            self._surveys[host_id] = survey
            self.offer(survey)

    async def _ended(self, outcome: Outcome) -> None:
        begun = self._begun.get(outcome.operation_id)
        if begun is not None:
            self.offer(ended(begun, outcome))
            if outcome.result is not Result.UNKNOWN:
                self._begun.ended(outcome.operation_id)
        helping = self._helping.pop(outcome.operation_id, None)
        if helping is not None:
            self.offer(ended(helping, outcome))
        left = self._leaving.pop(outcome.operation_id, None)
        if left is not None:
            self.offer(move_answer(left, left.source, outcome))
        command = self._let_in.pop(outcome.operation_id, None)
        if command is None:
            return
        self.offer(move_answer(command, command.target, outcome))
        if outcome.result is not Result.OK:
            return  # a target that refused says so itself, durably
        operation_id = leaving(self.cluster_id, command)
        self._leaving[operation_id] = command
        while True:
            with contextlib.suppress(Unavailable):
                why_not = await self._orders.migrate(
                    self.cluster_id, self.lead, command, outcome.fields
                )
                if why_not is not None:
                    self._leaving.pop(operation_id, None)
                    self._move_unsent(command, command.source, why_not)
                return
            await asyncio.sleep(DATABASE_RETRY_MS / 1_000)

    def _move_unsent(self, command: MigrateCommand, host_id: HostId, why_not: NotOrdered) -> None:
        """Untold, the engine waits for the move's whole deadline."""
        log.info("a move was not ordered", order=command.order_id, why=why_not.why)
        self.offer(move_refused(command, host_id, why_not.code))

    def _forget_moves(self, vm_id: VmId) -> None:
        """Of this VM the answers to former orders are awaited no more."""
        for waiting in (self._let_in, self._leaving):
            for operation_id in [one for one, move in waiting.items() if move.vm_id == vm_id]:
                del waiting[operation_id]

    # Its hands

    async def carry_out(self, command: Command) -> None:
        """Raises Unavailable. What nobody can do has no answer, and no answer is none: the engine goes on from what it
        knows."""
        match command:
            case StartCommand():
                self._begun.sent(operation_of(self.cluster_id, command.order_id), command)
                why_not = await self._orders.start(self.cluster_id, self.lead, command)
                if why_not is not None:
                    log.info("a start was not ordered", order=command.order_id, why=why_not.why)
                    if why_not.code is not None:
                        self.offer(
                            StartEnded(
                                order_id=command.order_id,
                                host_id=command.host_id,
                                vm_id=command.vm_id,
                                incarnation=command.incarnation,
                                result=Result.REFUSED,
                                code=why_not.code,
                            )
                        )
            case CancelStart():
                attempt = next(self._attempts)
                await self._orders.cancel(self.cluster_id, self.lead, command, attempt=attempt)
            case EndCopy():
                attempt = next(self._attempts)
                await self._orders.end_superseded(
                    self.cluster_id, self.lead, command, attempt=attempt
                )
            case EndPaused():
                operation_id = ending(self.cluster_id, self.lead, command, next(self._attempts))
                self._begun.sent(operation_id, command)
                await self._orders.end_paused(self.lead, command, operation_id)
            case MigrateCommand():
                operation_id = receiving(self.cluster_id, command)
                self._forget_moves(command.vm_id)
                self._let_in[operation_id] = command
                unsent = await self._orders.receive(self.cluster_id, self.lead, command)
                if unsent is not None:
                    self._let_in.pop(operation_id, None)
                    self._move_unsent(command, command.target, unsent)
            case SettleMigration():
                attempt = next(self._attempts)
                await self._orders.settle(self.cluster_id, self.lead, command, attempt=attempt)
            case StorageFence() | StorageLetIn():
                while len(self._helping) >= HELPING_MAX:
                    del self._helping[next(iter(self._helping))]
                self._helping[operation_of(self.cluster_id, command.order_id)] = command
                await self._orders.ask_helper(self.cluster_id, self.lead, command)
            case Investigate() if self.witnesses is not None:
                self.witnesses.investigate(command)
            case Poison() if self.leases is not None:
                self.leases.poison(command)
            case GiveWaiver() | EndWaiver() if self.leases is not None:
                self.leases.carry_out(command)
            case ReadPower() | OrderPower():
                assert self.power_desk is not None, "it leads"
                self.power_desk.hand_over(command)
                if isinstance(command, OrderPower) and self._sightings is not None:
                    self._sightings.sent(command)
            case _:
                log.debug("nobody can do this yet", command=repr(command))
