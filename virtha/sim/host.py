"""A simulated host: its libvirt, its disk, its agent and guardian around the real cores."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from virtha.model.domain import DomainEvent, DomainReport
from virtha.model.errors import VirthaError
from virtha.model.facts import Fact, FactBody, Happened, Outcome, Released, Result
from virtha.model.ids import BootId, Incarnation, OperationId, VmId
from virtha.model.time import Millis
from virtha.ports.hypervisor import GateRefused
from virtha.sentinel.events import BootStatusRead as BootStatus
from virtha.sentinel.events import (
    Command,
    Configured,
    Decision,
    DomainsListed,
    DropRecord,
    GatherEvidence,
    GuestAnswered,
    LibvirtLost,
    ListDomains,
    PauseDomain,
    PingGuest,
    ReadBootStatus,
    Restart,
    RestartEnded,
    SaveRecord,
    SaveWatched,
    SentinelEvent,
    SentinelRecords,
    Told,
    VmRecord,
    Watched,
)
from virtha.sentinel.guardian import (
    AgentGone,
    AgentPulse,
    Guardian,
    GuardianEvent,
    Kill,
    LinkLost,
    ProcessesSeen,
    QemuProcess,
    Report,
    SendBeat,
    Welcomed,
)
from virtha.sentinel.sentinel import Sentinel
from virtha.sim.kernel import Kernel
from virtha.sim.libvirt import Qemu, SimLibvirt

EVENT_MS = 1
LIST_MS = 5
EVIDENCE_MS = 50
CREATE_MS = 120
RUN_MS = 80
ASK_GUEST_MS = 20
ASK_GUEST_DEADLINE_MS = 5_000
PULSE_MS = 500
LOOK_MS = 500
SEND_MS = 5

CRASH_POINTS = ("history", "intents", "commands", "states")


class HostDisk:
    """What survives a crash of the agent and a power cut. Records are kept encoded, as on disk."""

    def __init__(self) -> None:
        self.records: dict[VmId, bytes] = {}
        self.watched: bytes | None = None
        self.settings: bytes | None = None
        self.outbox: list[tuple[int, Fact]] = []
        self.sequence = 0
        self.outcomes: dict[OperationId, Outcome] = {}


class SimHost:
    def __init__(self, kernel: Kernel, name: str, *, trace: Callable[[str], None]) -> None:
        self.kernel = kernel
        self.name = name
        self.trace = trace
        self.boots = 0
        self.booted_ms = 0
        self.powered = False
        self.net = True
        self.libvirt_up = False
        self.disk = HostDisk()
        self.grants: dict[VmId, Incarnation] = {}
        self.records_hidden = False
        self.managed: Callable[[], frozenset[VmId]] = frozenset
        """By the mark in the domains' metadata."""
        self.blind_starts = 0
        self.lists = 0
        """Lists that an agent has got: what ends a gap."""
        self.decisions = 0
        """Of all its agents so far, counting those that say or order something."""
        self.crash_after: tuple[int, str] | None = None
        """(decision, point): where a crash-point run kills the agent."""
        self.agent: SimAgent | None = None
        self.guardian: SimGuardian | None = None
        self.on_event: Callable[[SimHost, DomainEvent], None] = lambda _host, _event: None
        self.on_commands: Callable[[Sequence[Command]], None] = lambda _commands: None
        self.on_start: Callable[[SimHost, VmId], None] = lambda _host, _vm_id: None
        self.libvirt = SimLibvirt(clock=self.clock, emit=self._emit, gate=self._gate)

    def clock(self) -> Millis:
        """The host's boot-time clock."""
        return Millis(self.kernel.now - self.booted_ms)

    @property
    def boot(self) -> BootId:
        return BootId(f"{self.name}-boot-{self.boots}")

    # Power

    def power_on(self) -> None:
        assert not self.powered
        self.boots += 1
        self.booted_ms = self.kernel.now
        self.powered = True
        self.libvirt_up = True
        self.grants.clear()
        self.start_guardian()
        self.start_agent()
        for domain in list(self.libvirt):
            if domain.autostart:
                self._autostart(domain.vm_id)

    def _autostart(self, vm_id: VmId) -> None:
        try:
            self.libvirt.start_paused(vm_id)
            self.libvirt.run(vm_id)
        except GateRefused as refusal:
            self.trace(f"gate {vm_id}: {refusal.message}")

    def power_cut(self) -> None:
        self.powered = False
        self.stop_agent()
        self.guardian = None
        self.libvirt_up = False
        for domain in list(self.libvirt):
            if domain.qemu is not None:
                self.libvirt.end_silently(domain.vm_id, "unknown")

    def stop_libvirt(self) -> None:
        self.libvirt_up = False
        if self.agent is not None:
            self.agent.libvirt_lost()

    def start_libvirt(self) -> None:
        assert self.powered
        self.libvirt_up = True
        if self.agent is not None:
            self.agent.list_domains()

    def _emit(self, event: DomainEvent) -> None:
        self.on_event(self, event)
        agent = self.agent
        if agent is not None and self.libvirt_up:
            self.kernel.after(EVENT_MS, lambda: agent.tell(event))

    def _gate(self, vm_id: VmId) -> str | None:
        return None if vm_id in self.grants else f"no grant for {vm_id}"

    # Agent and guardian

    def start_agent(self) -> None:
        if self.agent is None and self.powered:
            self.agent = SimAgent(self)
            self.agent.begin()

    def stop_agent(self) -> None:
        if self.agent is not None:
            self.agent.dead = True
            self.agent = None
            if self.guardian is not None:
                self.guardian.tell(AgentGone())

    def crash_agent(self) -> None:
        """Its supervisor brings it back after a second."""
        self.stop_agent()
        boot = self.boots
        self.kernel.after(1_000, lambda: self.start_agent() if boot == self.boots else None)

    def start_guardian(self) -> None:
        if self.guardian is None:
            self.guardian = SimGuardian(self)
            self.guardian.begin()


class SimAgent:
    """The order of effects as ``virtha.sentinel.events`` demands it."""

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.dead = False
        self.crash_at: str | None = None
        self._wakes = 0
        self.last_steps = 0
        """Steps that this process has begun."""
        disk = host.disk
        settings = msgspec.msgpack.decode(disk.settings, type=Configured) if disk.settings else None
        self.sentinel = Sentinel(
            boot=host.boot,
            now=host.clock(),
            records=SentinelRecords(
                vms=tuple(
                    msgspec.msgpack.decode(disk.records[vm_id], type=VmRecord)
                    for vm_id in sorted(disk.records)
                ),
                policy=settings.policy if settings else SentinelRecords().policy,
                hold=settings.hold if settings else None,
                told=tuple(
                    Told(at_ms=fact.monotonic_ms, happened=fact.body)
                    for _, fact in disk.outbox
                    if fact.boot == host.boot and isinstance(fact.body, Happened)
                ),
                watched=msgspec.msgpack.decode(disk.watched, type=Watched)
                if disk.watched
                else None,
            ),
        )

    def begin(self) -> None:
        self.tell()
        self._pulse()
        if self.host.libvirt_up:
            self.list_domains(at_start=True)

    def _pulse(self) -> None:
        if self.dead:
            return
        if self.host.guardian is not None:
            self.host.guardian.tell(AgentPulse(inventory_revision=1))
        self.host.kernel.after(PULSE_MS, self._pulse)

    # Steps

    def tell(self, *events: SentinelEvent) -> None:
        if self.dead:
            return
        self.last_steps += 1
        decision = self.sentinel.step(self.host.clock(), events)
        self._carry_out(decision)
        self._wake(decision.wake_at)

    def _wake(self, wake_at: Millis | None) -> None:
        self._wakes += 1
        if self.dead or wake_at is None:
            return
        mine = self._wakes
        delay_ms = max(wake_at - self.host.clock(), 0)
        self.host.kernel.after(delay_ms, lambda: self.tell() if mine == self._wakes else None)

    def _carry_out(self, decision: Decision) -> None:
        effects: Sequence[tuple[str, Callable[[], None]]] = (
            ("history", lambda: self._append(decision.history)),
            ("intents", lambda: self._save(decision)),
            ("commands", lambda: self._command(decision.commands)),
            ("states", lambda: self._append(decision.states)),
        )
        if not (decision.history or decision.commands):
            for _, effect in effects:
                effect()
            return
        self.host.decisions += 1
        for point, effect in effects:
            effect()
            if point == self.crash_at or self.host.crash_after == (self.host.decisions, point):
                self.host.trace(f"agent of {self.host.name} crashes after its {point}")
                self.host.crash_agent()
                return

    def _append(self, bodies: Sequence[FactBody]) -> None:
        host = self.host
        for body in bodies:
            if isinstance(body, Released) and host.grants.get(body.vm_id) == body.incarnation:
                # The right to start goes first: nothing may start what the server starts elsewhere.
                del host.grants[body.vm_id]
            self.fact(body)

    def fact(self, body: FactBody) -> None:
        disk = self.host.disk
        disk.sequence += 1
        fact = Fact(
            sequence=disk.sequence,
            boot=self.host.boot,
            monotonic_ms=self.host.clock(),
            wall_ms=self.host.kernel.now,
            body=body,
        )
        disk.outbox.append((self.host.kernel.now, fact))
        if isinstance(body, Happened):
            self.host.trace(f"{self.host.name} {body.code} {body.vm_id or ''}")

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

    # Commands: one attempt each

    def _command(self, commands: Sequence[Command]) -> None:
        self.host.on_commands(commands)
        for command in commands:
            match command:
                case Restart():
                    self.host.trace(f"{self.host.name} restart {command.vm_id} {command.attempt}")
                    self._restart(command)
                case GatherEvidence(vm_id=vm_id, cause=cause):
                    self._later(EVIDENCE_MS, partial(self._keep_evidence, vm_id, cause))
                case ReadBootStatus(vm_id=vm_id):
                    self._read_boot_status(vm_id)
                case PingGuest(vm_id=vm_id):
                    self._ping(vm_id)
                case PauseDomain(vm_id=vm_id):
                    self._later(ASK_GUEST_MS, partial(self._pause, vm_id))
                case ListDomains():
                    self.list_domains()

    def _keep_evidence(self, vm_id: VmId, cause: str) -> None:
        self.fact(
            Happened(code="vm.evidence.kept", vm_id=vm_id, fields={"path": "kept", "items": cause})
        )

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        self.host.kernel.after(delay_ms, lambda: None if self.dead else action())

    def _restart(self, command: Restart) -> None:
        self.host.grants[command.vm_id] = command.incarnation

        def ended(result: Result, detail: str) -> None:
            self.tell(
                RestartEnded(
                    vm_id=command.vm_id,
                    incarnation=command.incarnation,
                    attempt=command.attempt,
                    result=result,
                    detail=detail,
                )
            )

        self.make_and_run(command.vm_id, ended)

    def make_and_run(self, vm_id: VmId, ended: Callable[[Result, str], None]) -> None:
        """Created paused, then run (G2); a crash in between leaves it paused."""

        def create() -> None:
            domain = self.host.libvirt.find(vm_id)
            if domain is None or domain.qemu is None:
                self._attempt(lambda: self.host.libvirt.start_paused(vm_id), ended, then=run)
            else:
                run()

        def run() -> None:
            self._later(
                RUN_MS,
                lambda: self._attempt(lambda: self._run(vm_id), ended, then=finish),
            )

        def finish() -> None:
            ended(Result.OK, "")

        self._later(CREATE_MS, create)

    def _run(self, vm_id: VmId) -> None:
        self.host.on_start(self.host, vm_id)
        self.host.libvirt.run(vm_id)

    def _attempt(
        self,
        action: Callable[[], None],
        ended: Callable[[Result, str], None],
        *,
        then: Callable[[], None],
    ) -> None:
        if not self.host.libvirt_up:
            ended(Result.UNKNOWN, "libvirt does not answer")
            return
        try:
            action()
        except GateRefused as refusal:
            ended(Result.REFUSED, refusal.message)
            return
        except VirthaError as error:
            ended(Result.FAILED, error.message)
            return
        if self.host.blind_starts:
            self.host.blind_starts -= 1
            ended(Result.UNKNOWN, "no answer within the deadline")
            return
        then()

    def _pause(self, vm_id: VmId) -> None:
        domain = self.host.libvirt.find(vm_id)
        if self.host.libvirt_up and domain is not None and domain.qemu is not None:
            self.host.libvirt.pause(vm_id)

    def list_domains(self, *, at_start: bool = False) -> None:
        reports = tuple(domain.report() for domain in self.host.libvirt)
        if self.host.libvirt_up:
            self._later(LIST_MS, lambda: self._listed(reports, at_start=at_start))

    def _listed(self, reports: tuple[DomainReport, ...], *, at_start: bool) -> None:
        if self.host.libvirt_up:
            self.host.lists += 1
            self.tell(DomainsListed(domains=reports, at_start=at_start))

    def libvirt_lost(self) -> None:
        self.tell(LibvirtLost())

    def _guest(self, vm_id: VmId) -> Qemu | None:
        domain = self.host.libvirt.find(vm_id)
        qemu = domain.qemu if domain is not None else None
        return qemu if qemu is not None and qemu.agent_connected and qemu.running else None

    def _ping(self, vm_id: VmId) -> None:
        answers = self._guest(vm_id) is not None
        delay_ms = ASK_GUEST_MS if answers else ASK_GUEST_DEADLINE_MS
        self._later(delay_ms, lambda: self.tell(GuestAnswered(vm_id=vm_id, answers=answers)))

    def _read_boot_status(self, vm_id: VmId) -> None:
        qemu = self._guest(vm_id)
        if qemu is None:
            silent = BootStatus(vm_id=vm_id, bootstatus=None)
            self._later(ASK_GUEST_DEADLINE_MS, lambda: self.tell(silent))
            return
        read = BootStatus(
            vm_id=vm_id,
            bootstatus=qemu.bootstatus,
            guest_uptime_ms=self.host.clock() - qemu.guest_boot_ms,
        )
        self._later(ASK_GUEST_MS, lambda: self.tell(read))


class SimGuardian:
    def __init__(self, host: SimHost) -> None:
        self.host = host
        self.core = Guardian(host.boot, host.clock())
        self.connected = False
        self.on_beat: Callable[[SendBeat], None] = lambda _beat: None
        self._wakes = 0

    @property
    def alive(self) -> bool:
        return self.host.guardian is self

    def begin(self) -> None:
        self._look()

    def tell(self, *events: GuardianEvent) -> None:
        if not self.alive:
            return
        decision = self.core.step(self.host.clock(), events)
        for command in decision.commands:
            match command:
                case SendBeat():
                    self.on_beat(command)
                case Kill(process=process):
                    self._kill(process)
                case Report():
                    self._report(command)
        self._wakes += 1
        if decision.wake_at is not None:
            mine = self._wakes
            delay_ms = max(decision.wake_at - self.host.clock(), 0)
            self.host.kernel.after(delay_ms, lambda: self.tell() if mine == self._wakes else None)

    def link(self, *, up: bool) -> None:
        if up != self.connected:
            self.connected = up
            self.tell(Welcomed(beat_interval_ms=1_000) if up else LinkLost())

    def _look(self) -> None:
        if not self.alive:
            return
        host = self.host
        processes = tuple(
            QemuProcess(
                pid=domain.qemu.pid, start_ticks=domain.qemu.start_ticks, vm_id=domain.vm_id
            )
            for domain in host.libvirt
            if domain.qemu is not None
        )
        known = not host.records_hidden
        self.tell(
            ProcessesSeen(
                processes=processes,
                managed=host.managed() if known else None,
                granted=frozenset(host.grants) if known else None,
            )
        )
        host.kernel.after(LOOK_MS, self._look)

    def _kill(self, process: QemuProcess) -> None:
        domain = self.host.libvirt.find(process.vm_id)
        same = domain is not None and domain.qemu is not None and domain.qemu.pid == process.pid
        if same:
            self.host.libvirt.kill_qemu(process.vm_id)

    def _report(self, report: Report) -> None:
        if self.host.agent is not None:
            self.host.agent.fact(
                Happened(code=report.code, vm_id=report.vm_id, fields=report.fields)
            )
