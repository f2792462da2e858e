"""A simulated agent: the order of effects as ``virtha.sentinel.events`` demands it, and its session."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from virtha.model.domain import DomainEvent, DomainEventKind, DomainReport, DomainState
from virtha.model.facts import Fact, FactBody, Happened, Inventory, Released
from virtha.model.ids import HostId, Term, VmId
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.model.vm import VmState
from virtha.sentinel.events import (
    AbortMove,
    Command,
    Configured,
    Decision,
    DomainsListed,
    DropRecord,
    GatherEvidence,
    GuestAnswered,
    HostShuttingDown,
    KilledForLease,
    LibvirtLost,
    ListDomains,
    PauseDomain,
    PingGuest,
    ReadBootStatus,
    ReportAgain,
    Restart,
    SaveRecord,
    SaveWatched,
    SentinelEvent,
    SentinelRecords,
    Told,
    VmRecord,
    Watched,
)
from virtha.sentinel.events import BootStatusRead as BootStatus
from virtha.sentinel.guardian import AgentPulse
from virtha.sentinel.io_error_events import ProbeDisks, ResumeDomain
from virtha.sentinel.sentinel import Sentinel
from virtha.sim.kernel import Actor
from virtha.sim.lease import KILLED
from virtha.sim.libvirt import Qemu
from virtha.sim.line import INSTALLATION, HostLink
from virtha.sim.orders import OrderDesk
from virtha.sim.paused import PausedVms
from virtha.sim.starter import Starter
from virtha.wire.messages import (
    PACE_FEATURE,
    VERSION_MAJOR,
    VERSION_MINOR,
    Hello,
    Pace,
    PeerRole,
    Welcome,
)

if TYPE_CHECKING:
    from virtha.sim.host import SimHost

LIST_MS = 5
EVIDENCE_MS = 50
ASK_GUEST_MS = 20
ASK_GUEST_DEADLINE_MS = 5_000
PULSE_MS = 500
INVENTORY_QUIET_MS = 200
GRANT_SETTLE_MS = 2_000
WRITE_BACK_MS = 500
"""How often it looks whether a storage that hangs has taken what a VM that is down wrote."""
FACTS_KEPT_MAX = 4_096
"""Acknowledged ones that are still on disk: what an agent has told already."""


class SimAgent:
    """One process. Also the ``OutboxView`` of its session."""

    def __init__(self, host: "SimHost") -> None:
        self.host = host
        self.kernel = Actor(host.kernel)
        self.dead = False
        self.crash_at: str | None = None
        self.last_steps = 0
        """Steps that this process has begun."""
        self._wakes = 0
        self._wake_at: Millis | None = None
        self._instance = ""
        self._inventory: tuple[DomainReport, ...] | None = None
        self._inventory_due = False
        self._settling: set[VmId] = set()
        self._locks: dict[VmId, list[Callable[[], None]]] = {}
        settings = host.disk.settings
        self.sentinel = Sentinel(boot=host.boot, now=host.clock(), records=self._records(settings))
        self.desk = OrderDesk(self, term_seen=settings.term if settings else Term(0))
        self.starter = Starter(self)
        self.paused = PausedVms(self)
        self.link = HostLink(
            host,
            self.kernel,
            self,
            hello=self._hello,
            live_instance=self._guardian_instance,
            outbox=self,
        )

    def _records(self, settings: HostSettings | None) -> SentinelRecords:
        disk, boot = self.host.disk, self.host.boot
        return SentinelRecords(
            vms=tuple(
                msgspec.msgpack.decode(disk.records[vm_id], type=VmRecord)
                for vm_id in sorted(disk.records)
            ),
            policy=settings.policy if settings else SentinelRecords().policy,
            hold=settings.hold if settings else None,
            told=tuple(
                Told(at_ms=fact.monotonic_ms, happened=fact.body)
                for fact in disk.facts
                if fact.boot == boot and isinstance(fact.body, Happened)
            ),
            watched=msgspec.msgpack.decode(disk.watched, type=Watched) if disk.watched else None,
        )

    def begin(self) -> None:
        self.tell()
        if self.host.disk.settings is not None:
            self._write_gate(self.host.disk.settings)
        if self.host.shutting_down:
            self.tell(HostShuttingDown())
        if self.dead:
            return
        self.link.dial()
        self._pulse()
        if self.host.libvirt_up:
            self.list_domains(at_start=True)
        self.collect_reports()

    def die(self) -> None:
        """The kernel closes its connection."""
        self.dead = True
        self.link.kill()

    def _pulse(self) -> None:
        if self.dead:
            return
        if self.host.guardian is not None:
            revision = self.host.disk.inventory_revision
            self.host.guardian.hear(AgentPulse(inventory_revision=revision))
        if self.host.libvirt_up and not self.host.grants_complete:
            # Somebody removed the grants' directory. The list tells whose grants to write again.
            self.list_domains()
        self.kernel.after(PULSE_MS, self._pulse)

    # Steps

    def tell(self, *events: SentinelEvent) -> None:
        if self.dead:
            return
        self.last_steps += 1
        decision = self.sentinel.step(self.host.clock(), events)
        self._carry_out(decision)
        if not self.dead:
            self.desk.look_again()
        self._wake(decision.wake_at)

    def _wake(self, wake_at: Millis | None) -> None:
        if wake_at == self._wake_at:
            return  # that one is on its way
        self._wake_at = wake_at
        self._wakes += 1
        if not self.dead and wake_at is not None:
            mine = self._wakes
            delay_ms = max(wake_at - self.host.clock(), 0)
            self.kernel.after(delay_ms, partial(self._awake, mine))

    def _awake(self, mine: int) -> None:
        if mine == self._wakes:
            self._wake_at = None
            self.tell()

    def _carry_out(self, decision: Decision) -> None:
        history, states = decision.history, decision.states
        effects: Sequence[tuple[str, Sequence[object], Callable[[], None]]] = (
            ("history", history, lambda: self.emit(history)),
            ("intents", decision.intents, lambda: self._save(decision)),
            ("commands", decision.commands, lambda: self._command(decision.commands)),
            ("states", states, lambda: self._tell_states(states)),
        )
        if not (history or decision.commands):
            for _, _, effect in effects:
                effect()
            return
        self.host.decisions += 1
        for point, what, effect in effects:
            effect()
            changes = bool(what) or point == "history"
            if point == self.crash_at or self.host.is_struck(self.host.decisions, point, changes):
                self.host.trace(f"agent of {self.host.name} crashes after its {point}")
                self.host.crash_agent()
                return

    def _tell_states(self, states: Sequence[FactBody]) -> None:
        told: list[FactBody] = []
        for state in states:
            if isinstance(state, Released):
                record = self.record(state.vm_id)
                if record is not None and record.incarnation > state.incarnation:
                    continue  # a later start was accepted here since; that one has its own release
                if self.host.outstanding(state.vm_id):
                    # P5: what it wrote is written back first, or it would land after a start elsewhere.
                    self.later(WRITE_BACK_MS, partial(self._tell_states, (state,)))
                    continue
                # The right to start goes first: nothing may start what the server starts elsewhere.
                self.host.released(state.vm_id, state.incarnation)
            told.append(state)
        self.emit(told)

    def record(self, vm_id: VmId) -> VmRecord | None:
        return next((one for one in self.sentinel.view() if one.vm.id == vm_id), None)

    def _save(self, decision: Decision) -> None:
        disk = self.host.disk
        for intent in decision.intents:
            match intent:
                case SaveRecord(record=record):
                    disk.records[record.vm.id] = msgspec.msgpack.encode(record)
                case DropRecord(vm_id=vm_id):
                    disk.records.pop(vm_id, None)
                case SaveWatched(watched=watched):
                    disk.watched = msgspec.msgpack.encode(watched)

    # The outbox

    def emit(self, bodies: Sequence[FactBody]) -> None:
        """On disk, all of them, before the first is sent."""
        host, disk = self.host, self.host.disk
        for body in bodies:
            disk.sequence += 1
            disk.facts.append(
                Fact(
                    sequence=disk.sequence,
                    boot=host.boot,
                    monotonic_ms=host.clock(),
                    wall_ms=host.wall_ms(),
                    body=body,
                )
            )
            if isinstance(body, Happened):
                disk.history.append((disk.sequence, body.code))
                host.trace(f"{host.name} {body.code} {body.vm_id or ''}")
        if bodies and not self.dead:
            self.link.facts_written()

    @property
    def last_sequence(self) -> int:
        return self.host.disk.sequence

    def facts_after(self, sequence: int, limit: int) -> Sequence[Fact]:
        facts = self.host.disk.facts
        if sequence >= self.host.disk.sequence:
            return ()
        first = bisect_right(facts, sequence, key=lambda fact: fact.sequence)
        return facts[first : first + limit]

    def on_facts_acknowledged(self, sequence: int) -> None:
        disk = self.host.disk
        disk.acknowledged = max(disk.acknowledged, sequence)
        if len(disk.facts) > 2 * FACTS_KEPT_MAX:
            kept = len(disk.facts) - FACTS_KEPT_MAX
            first_open = bisect_right(disk.facts, disk.acknowledged, key=lambda fact: fact.sequence)
            del disk.facts[: min(kept, first_open)]

    def collect_reports(self) -> None:
        reports, self.host.disk.reports = self.host.disk.reports, []
        self.emit(reports)
        for report in reports:
            if report.code == KILLED and report.vm_id is not None:
                self.tell(KilledForLease(vm_id=report.vm_id))

    # The session

    def _hello(self) -> Hello:
        settings = self.host.disk.settings
        return Hello(
            version_major=VERSION_MAJOR,
            version_minor=VERSION_MINOR,
            features=(PACE_FEATURE,),
            role=PeerRole.AGENT,
            host_id=HostId(self.host.name),
            boot=self.host.boot,
            term_seen=self.desk.term_seen,
            fact_sequence_last=self.host.disk.sequence,
            settings_revision=settings.revision if settings else 0,
        )

    def _guardian_instance(self) -> str | None:
        """Of the guardian's live session (M1)."""
        guardian = self.host.guardian
        return guardian.link.server_instance if guardian is not None else None

    def on_connected(self, welcome: Welcome) -> None:
        self.on_facts_acknowledged(welcome.fact_sequence_acknowledged)
        self.desk.term_seen = max(self.desk.term_seen, welcome.term)
        if welcome.server_instance != self._instance:
            # Its memory is new, perhaps a restored one: rule M2 waits for what runs here.
            self._instance = welcome.server_instance
            self._inventory = None
            self._inventory_changed()
            self.tell(ReportAgain())

    def on_pace(self, pace: Pace) -> None:
        """Beats are the guardian's."""

    def on_disconnected(self, code: str) -> None:
        self.host.trace(f"agent of {self.host.name} lost its session: {code}")

    def on_settings(self, settings: HostSettings) -> None:
        """By term first: a database restored from a backup counts its revisions from there again (B3)."""
        disk, present = self.host.disk, self.host.disk.settings
        if settings.installation_id != INSTALLATION:
            return
        if present is not None and _age(settings) < _age(present):
            self.host.trace(f"{self.host.name} ignores settings {_age(settings)}")
            return
        self.desk.term_seen = max(self.desk.term_seen, settings.term)
        disk.settings = msgspec.structs.replace(settings, term=self.desk.term_seen)
        for held in settings.vms:
            ungranted = held.vm.adopted and held.vm.id not in self.host.grants
            if ungranted and self.record(held.vm.id) is None:
                self.host.hold(held.vm.id, held.incarnation)
        self._write_gate(disk.settings)
        self.host.settings_changed()
        self.tell(Configured(policy=settings.policy, hold=settings.hold, vms=settings.vms))

    def on_order(self, order: Order) -> None:
        self.desk.accept(order)

    def _write_gate(self, settings: HostSettings) -> None:
        self.host.disk.gate_managed = frozenset(
            (
                *(held.vm.id for held in settings.vms),
                *settings.foreign_vms,
                *(record.vm.id for record in self.sentinel.view()),
            )
        )

    def given_back(self, vm_id: VmId) -> None:
        """Unmanaged from here on, also for the guardian and after a restart of the agent."""
        disk = self.host.disk
        if disk.settings is not None:
            left = tuple(held for held in disk.settings.vms if held.vm.id != vm_id)
            disk.settings = msgspec.structs.replace(disk.settings, vms=left)
        disk.gate_managed -= {vm_id}

    # Commands: one attempt each

    def _command(self, commands: Sequence[Command]) -> None:
        self.host.on_commands(commands)
        for command in commands:
            match command:
                case Restart():
                    self.host.trace(f"{self.host.name} restart {command.vm_id} {command.attempt}")
                    self.locked(command.vm_id, partial(self.starter.restart, command))
                case GatherEvidence(vm_id=vm_id, cause=cause):
                    self.later(EVIDENCE_MS, partial(self._keep_evidence, vm_id, cause))
                case ReadBootStatus(vm_id=vm_id):
                    self._read_boot_status(vm_id)
                case PingGuest(vm_id=vm_id):
                    self._ping(vm_id)
                case PauseDomain(vm_id=vm_id):
                    self.later(ASK_GUEST_MS, partial(self._pause, vm_id))
                case ProbeDisks():
                    self.paused.probe(command)
                case ResumeDomain():
                    self.locked(command.vm_id, partial(self.paused.resume, command))
                case AbortMove(vm_id=vm_id, code=code):
                    self.desk.moves.abort(vm_id, code)
                case ListDomains():
                    self.list_domains()

    def _keep_evidence(self, vm_id: VmId, cause: str) -> None:
        fields = {"path": "kept", "items": cause}
        self.emit([Happened(code="vm.evidence.kept", vm_id=vm_id, fields={**fields})])

    def _pause(self, vm_id: VmId) -> None:
        domain = self.host.libvirt.find(vm_id)
        if self.host.libvirt_up and domain is not None and domain.qemu is not None:
            self.host.libvirt.pause(vm_id)

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        self.kernel.after(delay_ms, lambda: None if self.dead else action())

    def locked(self, vm_id: VmId, action: Callable[[], None]) -> None:
        """One thing at a time is done to a VM; ``action`` ends by ``unlock``."""
        if vm_id in self._locks:
            self._locks[vm_id].append(action)
        else:
            self._locks[vm_id] = []
            action()

    def unlock(self, vm_id: VmId) -> None:
        waiting = self._locks.get(vm_id)
        if not waiting:
            self._locks.pop(vm_id, None)
        elif not self.dead:
            waiting.pop(0)()

    # libvirt

    def on_domain_event(self, event: DomainEvent) -> None:
        self.tell(event)
        if self.dead:
            return
        self._inventory_changed()
        if event.kind is DomainEventKind.STOPPED and event.vm_id not in self._settling:
            self._settling.add(event.vm_id)
            self.later(GRANT_SETTLE_MS, partial(self._settle_grant, event.vm_id))

    def _settle_grant(self, vm_id: VmId) -> None:
        """Take back the grant of a VM that has stopped, unless it runs again or is being started."""
        self._settling.discard(vm_id)
        domain = self.host.libvirt.find(vm_id)
        gone = domain is None or domain.qemu is None
        if self.host.libvirt_up and gone and vm_id not in self._locks:
            self.host.revoke(vm_id)

    def list_domains(self, *, at_start: bool = False) -> None:
        reports = self._domains()
        if self.host.libvirt_up:
            self.later(LIST_MS, lambda: self._listed(reports, at_start=at_start))

    def _domains(self) -> tuple[DomainReport, ...]:
        return tuple(domain.report() for domain in self.host.libvirt)

    def _listed(self, reports: tuple[DomainReport, ...], *, at_start: bool) -> None:
        host = self.host
        if not host.libvirt_up:
            return
        host.lists += 1
        alive = {one.vm_id for one in self._domains() if one.state is not DomainState.SHUTOFF}
        if not host.grants_complete:
            self._restore_grants(alive)
        for vm_id, grant in list(host.grants.items()):
            late = not grant.held and host.clock() < grant.until_ms
            # A grant that has not run out may belong to a QEMU that libvirt is still making.
            if vm_id not in alive and vm_id not in self._locks and not late:
                host.revoke(vm_id)
        # Told from a list of its own: this one may be older than an event, and a release, told since.
        self._inventory_changed()
        self.tell(DomainsListed(domains=reports, at_start=at_start))
        if not self.dead:
            self.desk.moves.watch_open()

    def _restore_grants(self, alive: set[VmId]) -> None:
        """The directory is new: at boot, or somebody emptied /run. What this host may hold gets its
        grant before the guardian counts a missing one; a released copy gets none."""
        host, settings = self.host, self.host.disk.settings
        held = {
            record.vm.id: record.incarnation
            for record in self.sentinel.view()
            if record.boot == host.boot and record.state is not VmState.DOWN and not record.released
        }
        for each in settings.vms if settings is not None else ():
            if each.vm.adopted and self.record(each.vm.id) is None and each.vm.id in alive:
                held[each.vm.id] = each.incarnation
        for vm_id, incarnation in held.items():
            if vm_id not in host.grants:
                host.hold(vm_id, incarnation)
        host.grants_complete = True

    def _inventory_changed(self) -> None:
        if not self._inventory_due:
            self._inventory_due = True
            self.later(INVENTORY_QUIET_MS, self._inventory_quiet)

    def _inventory_quiet(self) -> None:
        self._inventory_due = False
        if self.host.libvirt_up:
            self._tell_inventory(self._domains())

    def _tell_inventory(self, domains: tuple[DomainReport, ...]) -> None:
        if domains == self._inventory:
            return
        self._inventory = domains
        self.host.disk.inventory_revision += 1
        self.emit([Inventory(revision=self.host.disk.inventory_revision, domains=domains)])

    def libvirt_lost(self) -> None:
        self.tell(LibvirtLost())

    def _guest(self, vm_id: VmId) -> Qemu | None:
        domain = self.host.libvirt.find(vm_id)
        qemu = domain.qemu if domain is not None else None
        return qemu if qemu is not None and qemu.agent_connected and qemu.running else None

    def _ping(self, vm_id: VmId) -> None:
        answers = self._guest(vm_id) is not None
        delay_ms = ASK_GUEST_MS if answers else ASK_GUEST_DEADLINE_MS
        self.later(delay_ms, lambda: self.tell(GuestAnswered(vm_id=vm_id, answers=answers)))

    def _read_boot_status(self, vm_id: VmId) -> None:
        qemu = self._guest(vm_id)
        if qemu is None:
            silent = BootStatus(vm_id=vm_id, bootstatus=None)
            self.later(ASK_GUEST_DEADLINE_MS, lambda: self.tell(silent))
            return
        read = BootStatus(
            vm_id=vm_id,
            bootstatus=qemu.bootstatus,
            guest_uptime_ms=self.host.clock() - qemu.guest_boot_ms,
        )
        self.later(ASK_GUEST_MS, lambda: self.tell(read))


def _age(settings: HostSettings) -> tuple[int, int]:
    return settings.term, settings.revision
