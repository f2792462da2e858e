"""What if these hosts lost power? The real engine and the real lease judge, driven through virtual time.

The world around them is small and answers truthfully, or as the inventory says: living hosts beat, survey and
start what they are ordered to; neighbours find nothing where a host is gone; power devices answer while they have
power themselves; slots of living hosts go on, those of the others stand still. The server is not among the hosts
that fail. No chance and no clock: the same inventory and question give the same answer.
"""

import heapq
from collections.abc import Callable, Sequence

from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    CancelStart,
    Command,
    CopyReleased,
    Decision,
    DisksWatched,
    EngineEvent,
    HostConfigured,
    HostSurveyed,
    Investigate,
    LeaseRenewed,
    NeighbourAnswered,
    Notice,
    OrderPower,
    Poison,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ProofFound,
    ReadPower,
    ReferenceAnswered,
    SaveHost,
    SessionChanged,
    StartCommand,
    StartEnded,
    StorageFence,
    VmConfigured,
    VmSeen,
)
from virtha.engine.records import (
    ClusterRecord,
    EngineRecords,
    HostRecord,
    OrderId,
    VmRecord,
)
from virtha.model.errors import InvalidInput
from virtha.model.evidence import Answer, IdentityMatch, PowerState, ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import HostId, Incarnation, StorageDomainId, Term, VmId
from virtha.model.time import Millis
from virtha.model.value import Value
from virtha.model.vm import PossibleCopy, Reason, VmState
from virtha.scenario.inventory import (
    BmcAnswers,
    FedBy,
    Inventory,
    InventoryDevice,
    InventoryHost,
    engine_host,
    engine_vm,
)
from virtha.scenario.section import nearest
from virtha.sim.wakes import Wakes
from virtha.sim.what_if_slots import Slots, boot_of

WARM_UP_MS = 20_000
"""All is well for so long before: longer than any profile's reconnect time."""
WATCH_EVERY_MS = 1_000
BEAT_PHASES = 10
"""Hosts don't beat in step: each tenth of them a tenth of the interval later."""
PROBE_MS = 200
"""A neighbour's probe that finds nothing, and its comparison of the disks."""
POISON_MS = 50
"""As the policy's budget has it."""
CANCEL_MS = 50
LEADER_MS = 10**12
"""The leader's own lease is not in question here."""


class Failure(Value, frozen=True, kw_only=True):
    """What loses power at the same moment. ``racks``: named as such; their own supply is gone too."""

    hosts: tuple[str, ...]
    racks: tuple[str, ...] = ()


class Log(Value, frozen=True, kw_only=True):
    """What the engine told, or did, at ``at_ms`` after the failure. ``command``: instead of a notice."""

    at_ms: int
    notice: Notice | None = None
    command: Command | None = None


class Reasons(Value, frozen=True, kw_only=True):
    """From ``at_ms`` on these hold."""

    at_ms: int
    reasons: tuple[Reason, ...]


class WhatIf(Value, frozen=True, kw_only=True):
    """What came of it. Times count from the failure, before it they are negative.

    ``host_reasons``, ``vm_reasons``: of the hosts that failed and the VMs on them, whenever they changed.
    ``silent_ms``: of each failed host its last beat. ``agent_ms``: when guest agents answered again.
    ``ended_ms``: how far it was looked.
    """

    inventory: Inventory
    failure: Failure
    log: tuple[Log, ...]
    host_reasons: dict[str, tuple[Reasons, ...]]
    vm_reasons: dict[str, tuple[Reasons, ...]]
    silent_ms: dict[str, int]
    agent_ms: dict[str, int]
    ended_ms: int


def parse_failure(texts: Sequence[str], inventory: Inventory) -> Failure:
    """``host=h3``, ``rack=r3``, or several with commas. Raises InvalidInput naming what there is."""
    hosts: dict[str, None] = {}
    racks: dict[str, None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        kind, equals, name = part.partition("=")
        if not equals or kind not in ("host", "rack"):
            raise InvalidInput(
                f"'{part}' says nothing that can fail",
                field="--fail",
                allowed=("host=NAME", "rack=NAME"),
                fix="write for example rack=r3 or host=h1,host=h2",
            )
        there = inventory.racks if kind == "rack" else tuple(one.name for one in inventory.hosts)
        if name not in there:
            raise InvalidInput(
                f"there is no {kind} '{name}'",
                field="--fail",
                allowed=there[:12] or ("none is named in this inventory",),
                fix=nearest(name, there),
            )
        if kind == "rack":
            racks[name] = None
            hosts.update((one.name, None) for one in inventory.hosts if one.rack == name)
        else:
            hosts[name] = None
    return Failure(hosts=tuple(hosts), racks=tuple(racks))


def run_what_if(
    inventory: Inventory,
    failure: Failure,
    *,
    at_ms: int,
    for_ms: int,
    watch: Callable[[int], None] = lambda _: None,
) -> WhatIf:
    """``at_ms``: when it happens, UTC (quiet times look at it). ``for_ms``: how long to look at most; less,
    when everything that can return has returned. ``watch`` is told once a second of virtual time how far it
    is, counted from the failure."""
    world = _World(inventory, failure, at_ms, watch)
    world.run(for_ms)
    return world.result()


_Action = Callable[[], Sequence[EngineEvent]]


class _World:
    def __init__(
        self,
        inventory: Inventory,
        failure: Failure,
        failed_ms: int,
        watch: Callable[[int], None],
    ) -> None:
        self.inventory = inventory
        self.watch = watch
        self.failure = failure
        self.failed_ms = failed_ms
        self.now = self.began_ms = failed_ms - WARM_UP_MS
        self.failed = False
        self.hosts = {HostId(host.name): host for host in inventory.hosts}
        self.vms = {VmId(vm.name): vm for vm in inventory.vms}
        self.lost = {HostId(name) for name in failure.hosts}
        self.affected = [vm for vm in inventory.vms if vm.on in failure.hosts]
        self.interval_ms = inventory.policy.detection.beat_interval_ms
        self.beats = self._beats()
        self.engine = Engine(policy=inventory.policy, records=self._records(), now=Millis(self.now))
        self.wakes = Wakes(hosts=lambda: len(self.hosts))
        self.slots = Slots(inventory, lost=self.lost, failed_ms=failed_ms)
        self.reading_slots = False
        self.cancelled: set[OrderId] = set()
        self.log: list[Log] = []
        self.host_reasons: dict[str, list[Reasons]] = {name: [] for name in failure.hosts}
        self.vm_reasons: dict[str, list[Reasons]] = {vm.name: [] for vm in self.affected}
        self._vm_reasons = [(VmId(name), kept) for name, kept in self.vm_reasons.items()]
        self.silent: dict[str, int] = {}
        self.agents: dict[str, int] = {}
        self.unjudged = set(self.lost)
        self.awaited = {VmId(vm.name) for vm in self.affected if vm.ha and not vm.ignore}
        """Their guest agents have not answered since."""
        self._due: list[tuple[int, int, _Action]] = []
        self._count = 0

    # Time

    def at(self, at_ms: int, action: _Action) -> None:
        self._count += 1
        heapq.heappush(self._due, (max(at_ms, self.now + 1), self._count, action))

    def after(self, delay_ms: int, *events: EngineEvent) -> None:
        self.at(self.now + delay_ms, lambda: events)

    def run(self, for_ms: int) -> None:
        end = self.failed_ms + for_ms
        self.at(self.failed_ms, self._fail)
        self.at(self.now, self._begin)
        self.at(self.now, self._tell_watch)
        wake: int | None = None
        while self._due:
            at_ms = self._due[0][0] if wake is None else min(wake, self._due[0][0])
            if at_ms > end:
                self.now = end
                return
            self.now = at_ms
            events: list[EngineEvent] = []
            while self._due and self._due[0][0] <= self.now:
                events += heapq.heappop(self._due)[2]()
            decision = self.engine.step(Millis(self.now), events)
            self.wakes.stepped(Millis(self.now), decision, came=bool(events))
            quiet = all(type(event) is BeatSeen for event in events) and self.now != wake
            wake = decision.wake_at
            self._note(decision)
            for command in decision.commands:
                self._obey(command)
            if self.failed and not (quiet and not decision.intents and not decision.commands):
                self._note_reasons()
            if self.failed and not self.awaited and not self.unjudged:
                return

    def _tell_watch(self) -> Sequence[EngineEvent]:
        self.watch(self.now - self.failed_ms)
        self.at(self.now + WATCH_EVERY_MS, self._tell_watch)
        # What was reached long ago says nothing of now (J4).
        return (ReferenceAnswered(reached=True),) if self.inventory.reference else ()

    # What is there before

    def _records(self) -> EngineRecords:
        """As after a long time without trouble."""
        hosts = [HostRecord(host_id=one, boot=boot_of(one)) for one in self.hosts]
        vms = []
        for vm in self.inventory.vms:
            if vm.on is not None:
                host_id = HostId(vm.on)
                copy = PossibleCopy(
                    host_id=host_id, incarnation=Incarnation(1), boot=boot_of(host_id)
                )
                vms.append(
                    VmRecord(vm_id=VmId(vm.name), incarnation=Incarnation(1), copies=(copy,))
                )
        cluster = ClusterRecord(term=Term(1))
        return EngineRecords(cluster=cluster, hosts=tuple(hosts), vms=tuple(vms))

    def _begin(self) -> Sequence[EngineEvent]:
        events: list[EngineEvent] = [LeaseRenewed(until_ms=self.now + LEADER_MS)]
        events += [HostConfigured(host=engine_host(one)) for one in self.inventory.hosts]
        events += [VmConfigured(vm=engine_vm(one)) for one in self.inventory.vms]
        for host in self.inventory.hosts:
            events += _greeting(host)
        for vm in self.inventory.vms:
            if vm.on is not None:
                events.append(_seen(HostId(vm.on), VmId(vm.name), Incarnation(1), agent=True))
        for phase in range(BEAT_PHASES):
            self._beat(phase, self._phase_ms(phase))
        return events

    # Beats

    def _beats(self) -> list[tuple[BeatSeen, ...]]:
        """The same values each time: what a beat says doesn't change."""
        phases: list[list[BeatSeen]] = [[] for _ in range(BEAT_PHASES)]
        for host_id, host in self.hosts.items():
            if not (self.failed and host_id in self.lost):
                beat = BeatSeen(host_id=host_id, boot=boot_of(host_id), agent_alive=True)
                phases[host.number % BEAT_PHASES].append(beat)
        return [tuple(phase) for phase in phases]

    def _phase_ms(self, phase: int) -> int:
        return self.began_ms + 1 + phase * self.interval_ms // BEAT_PHASES

    def _beat(self, phase: int, at_ms: int) -> None:
        def send() -> Sequence[EngineEvent]:
            self._beat(phase, at_ms + self.interval_ms)
            return self.beats[phase]

        self.at(at_ms, send)

    def _fail(self) -> Sequence[EngineEvent]:
        self.failed = True
        self.beats = self._beats()
        detection = self.inventory.policy.detection
        for host_id in self.lost:
            first_ms = self._phase_ms(self.hosts[host_id].number % BEAT_PHASES)
            since_ms = (self.now - 1 - first_ms) % self.interval_ms + 1
            self.silent[host_id] = -since_ms
            ends = [
                SessionChanged(host_id=host_id, process=process, boot=boot_of(host_id), up=False)
                for process in ProcessKind
            ]
            self.after(detection.session_silence_ms - since_ms, *ends)
        return ()

    # What the engine orders

    def _obey(self, command: Command) -> None:
        match command:
            case Investigate():
                self._investigate(command)
            case ReadPower():
                self._read_power(command)
            case OrderPower():
                self._order_power(command)
            case StartCommand():
                self._start(command)
            case CancelStart():
                self._cancel(command)
            case Poison():
                self.slots.poison(command, at_ms=self.now + POISON_MS)
                if not self.reading_slots:
                    self.reading_slots = True
                    self._read_slots_next()
            case _:
                pass  # a storage-side fence: no inventory says that there is a driver for it

    def _investigate(self, command: Investigate) -> None:
        gone = command.subject in self.lost
        for witness in command.witnesses:
            if witness not in self.lost:
                answer = NeighbourAnswered(
                    witness=witness,
                    subject=command.subject,
                    network="management",
                    answer=Answer.SILENT if gone else Answer.ALIVE,
                    boot=None if gone else boot_of(command.subject),
                )
                self.after(PROBE_MS, answer)
        reader = command.disk_reader
        if reader is not None and reader not in self.lost:
            needed = {domain for vm_id in command.vms for domain in self.vms[vm_id].storage}
            sees = needed <= set(self.hosts[reader].storage)
            looked = DisksWatched(
                witness=reader,
                subject=command.subject,
                changed=not gone if sees else None,
                disks=len(command.vms),
            )
            self.after(PROBE_MS, looked)

    def _device(self, host_id: HostId, name: str) -> InventoryDevice | None:
        """None: it has no power itself, or is broken."""
        host = self.hosts[host_id]
        device = next(one for level in host.power for one in level if one.device == name)
        dark = device.fed_by is FedBy.HOST or (
            device.fed_by is FedBy.RACK and host.rack in self.failure.racks
        )
        if device.answers is BmcAnswers.DEAD or (host_id in self.lost and dark):
            return None
        return device

    def _read_power(self, command: ReadPower) -> None:
        device = self._device(command.host_id, command.device)
        state, delay_ms = PowerState.UNKNOWN, command.deadline_ms
        if device is not None and device.answer_ms <= command.deadline_ms:
            delay_ms = device.answer_ms
            if not device.reads_state:
                state = PowerState.UNKNOWN
            elif device.answers is BmcAnswers.SAYS_OFF or device.answers is BmcAnswers.SAYS_ON:
                said_off = device.answers is BmcAnswers.SAYS_OFF
                state = PowerState.OFF if said_off else PowerState.ON
            else:
                state = PowerState.OFF if command.host_id in self.lost else PowerState.ON
        unread = state is PowerState.UNKNOWN
        reading = PowerRead(
            order_id=command.order_id,
            host_id=command.host_id,
            device=command.device,
            state=state,
            identity=IdentityMatch.UNKNOWN if device is None or unread else device.identity,
            error="power.no_answer" if unread else None,
        )
        self.after(delay_ms, reading)

    def _order_power(self, command: OrderPower) -> None:
        device = self._device(command.host_id, command.device)
        if device is None or device.answer_ms > command.deadline_ms:
            return  # the engine counts the time itself
        refused = device.answers is BmcAnswers.REFUSES
        ordered = PowerOrdered(
            order_id=command.order_id,
            host_id=command.host_id,
            device=command.device,
            result=Result.REFUSED if refused else Result.OK,
            error="power.failed" if refused else None,
        )
        self.after(device.answer_ms, ordered)

    def _start(self, command: StartCommand) -> None:
        vm = self.vms[command.vm_id]

        def end() -> Sequence[EngineEvent]:
            if command.order_id in self.cancelled:
                return ()
            runs = vm.start_ms <= command.grant_ms
            ended = StartEnded(
                order_id=command.order_id,
                host_id=command.host_id,
                vm_id=command.vm_id,
                incarnation=command.incarnation,
                result=Result.OK if runs else Result.FAILED,
                code=None if runs else "start.failed",
            )
            if not runs:
                return (ended,)
            self.at(self.now + vm.boot_ms, answer)
            return (ended, self._seen(command, agent=False))

        def answer() -> Sequence[EngineEvent]:
            self.agents[vm.name] = self.now - self.failed_ms
            self.awaited.discard(command.vm_id)
            return (self._seen(command, agent=True),)

        self.at(self.now + min(vm.start_ms, command.grant_ms), end)

    def _seen(self, command: StartCommand, *, agent: bool) -> VmSeen:
        return _seen(command.host_id, command.vm_id, command.incarnation, agent=agent)

    def _cancel(self, command: CancelStart) -> None:
        self.cancelled.add(command.order_id)
        released = CopyReleased(
            host_id=command.host_id,
            boot=boot_of(command.host_id),
            vm_id=command.vm_id,
            incarnation=command.incarnation,
        )
        self.after(CANCEL_MS, released)

    # Slots

    def _read_slots_next(self) -> None:
        """Readers read all the time, whoever is poisoned when: the next of their moments."""
        period_ms = self.inventory.policy.lease.read_period_ms
        self.at((self.now // period_ms + 1) * period_ms, self._read_slots)

    def _read_slots(self) -> Sequence[EngineEvent]:
        proofs = self.slots.read(self.now)
        if self.slots.watching:
            self._read_slots_next()
        else:
            self.reading_slots = False
        return [ProofFound(proof=proof) for proof in proofs]

    # Keeping

    def _note(self, decision: Decision) -> None:
        at_ms = self.now - self.failed_ms
        self.log += [Log(at_ms=at_ms, notice=notice) for notice in decision.notices]
        for intent in decision.intents:
            if isinstance(intent, SaveHost) and intent.record.incident is not None:
                self.unjudged.discard(intent.record.host_id)
        for command in decision.commands:
            if isinstance(command, OrderPower | Poison | StorageFence):
                self.log.append(Log(at_ms=at_ms, command=command))

    def _note_reasons(self) -> None:
        for name, kept in self.host_reasons.items():
            host_id = HostId(name)
            self._keep(kept, (*self.engine.explain_host(host_id), *self.slots.reasons(host_id)))
        for vm_id, kept in self._vm_reasons:
            reasons = self.engine.explain_vm(vm_id)
            if not kept or reasons is not kept[-1].reasons:
                self._keep(kept, reasons)

    def _keep(self, kept: list[Reasons], reasons: tuple[Reason, ...]) -> None:
        """Only what says something else: a count of milliseconds that went on is not news."""
        if [one.code for one in reasons] != (
            [one.code for one in kept[-1].reasons] if kept else []
        ):
            kept.append(Reasons(at_ms=self.now - self.failed_ms, reasons=reasons))
        elif kept:
            kept[-1] = Reasons(at_ms=kept[-1].at_ms, reasons=reasons)

    def result(self) -> WhatIf:
        return WhatIf(
            inventory=self.inventory,
            failure=self.failure,
            log=tuple(self.log),
            host_reasons={name: tuple(kept) for name, kept in self.host_reasons.items()},
            vm_reasons={name: tuple(kept) for name, kept in self.vm_reasons.items()},
            silent_ms=self.silent,
            agent_ms=self.agents,
            ended_ms=self.now - self.failed_ms,
        )


def _seen(host_id: HostId, vm_id: VmId, incarnation: Incarnation, *, agent: bool) -> VmSeen:
    return VmSeen(
        host_id=host_id,
        boot=boot_of(host_id),
        vm_id=vm_id,
        incarnation=incarnation,
        state=VmState.RUNNING,
        guest_agent=agent,
    )


def _greeting(host: InventoryHost) -> list[EngineEvent]:
    """What a host tells when it connects, and that its power devices passed their test."""
    host_id, boot = HostId(host.name), boot_of(HostId(host.name))
    events: list[EngineEvent] = [BeatSeen(host_id=host_id, boot=boot, agent_alive=True)]
    events += [
        SessionChanged(host_id=host_id, process=process, boot=boot, up=True)
        for process in ProcessKind
    ]
    events.append(
        HostSurveyed(
            host_id=host_id,
            boot=boot,
            gate_in_force=True,
            libvirt_connected=True,
            storage_domains=frozenset(StorageDomainId(one) for one in host.storage),
        )
    )
    events += [
        PowerTested(
            host_id=host_id, boot=boot, device=one.device, passed=True, identity=one.identity
        )
        for level in host.power
        for one in level
        if one.tested
    ]
    return events
