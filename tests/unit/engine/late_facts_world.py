"""Hosts with a true history, and an engine that hears of it late: sessions and beats in their order, facts out of durable
outboxes whenever they like, in any order and more than once; orders arrive late or never. Leaders change, at once or after a
time in which nobody led: hosts reboot and facts are recorded all the same, and the next leader is given those first, of which
it is not known any more over which session they came. A host may have connected elsewhere: its facts come over a session of
which the engine is told later, in its order, and until then the one before is told to a next leader as standing (P4).

No power devices: what frees a copy is a new boot, a release, or an operator who is right. So every start elsewhere, and every
boot that the engine calls dead, can be compared with the truth.
"""

from collections.abc import Callable

import msgspec

from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    CancelStart,
    Command,
    CopyGranted,
    CopyReleased,
    EngineEvent,
    HostConfigured,
    HostSurveyed,
    LeaseRenewed,
    ReferenceAnswered,
    SessionChanged,
    StartCommand,
    StartEnded,
    VmConfigured,
    VmSeen,
)
from virtha.engine.records import ClusterRecord, EngineRecords, VmRecord, VmStage
from virtha.model.evidence import ProcessKind
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import BootId, HostId, Incarnation, Term, VmId
from virtha.model.policy import Policy
from virtha.model.time import Millis
from virtha.model.vm import VmState

Move = tuple[int, int, int]
GIB = 1 << 30
HOSTS = ("h1", "h2", "h3")
VMS = ("v1", "v2")
Fact = VmSeen | HostSurveyed | CopyReleased | StartEnded


class Order(msgspec.Struct):
    """On its way to a host. ``order_id`` None: a person's."""

    host: str
    boot: BootId
    vm: str
    incarnation: int
    order_id: str | None


class TrueHost:
    def __init__(self, name: str) -> None:
        self.name = name
        self.boots = 1
        self.connected = False
        self.running: dict[str, int] = {}
        self.refused: set[tuple[str, int]] = set()
        """Given back, or to be cancelled: its agent starts them no more."""
        self.outbox: list[Fact] = []
        self.untold: list[BootId] = []
        """Boots whose sessions stand or stood at another gateway, and that the engine has not been told of."""
        self.stood: BootId | None = None
        """The last of which it was; None: it may not be told of that one again, for it was given what later ones made."""

    @property
    def boot(self) -> BootId:
        return BootId(f"{self.name}b{self.boots}")

    @property
    def id(self) -> HostId:
        return HostId(self.name)

    def see(self, vm: str, incarnation: int, state: VmState) -> None:
        self.outbox.append(
            VmSeen(
                host_id=self.id,
                boot=self.boot,
                vm_id=VmId(vm),
                incarnation=Incarnation(incarnation),
                state=state,
            )
        )

    def release(self, vm: str, incarnation: int, cause: ReleaseCause) -> None:
        self.refused.add((vm, incarnation))
        self.outbox.append(
            CopyReleased(
                host_id=self.id,
                boot=self.boot,
                vm_id=VmId(vm),
                incarnation=Incarnation(incarnation),
                cause=cause,
            )
        )

    def survey(self) -> None:
        self.outbox.append(
            HostSurveyed(
                host_id=self.id,
                boot=self.boot,
                gate_in_force=True,
                libvirt_connected=True,
                active=frozenset(VmId(one) for one in self.running),
            )
        )


class LateWorld:
    def __init__(self, *, told: bool = True, orderly: bool = False) -> None:
        """``told``: facts say over which boot's session they came. ``orderly``: each host's come in their order and once, as
        their sequence has it; only how late is anybody's guess."""
        self.now = 1_000_000_000
        self.told, self.orderly = told, orderly
        self.hosts = {name: TrueHost(name) for name in HOSTS}
        self.lines: list[Fact] = []
        """Read from an outbox over some session, and not given to the engine."""
        self.given: list[Fact] = []
        self.orders: list[Order] = []
        self.led = True
        self.grants: list[CopyGranted] = []
        """Given while nobody led."""
        self.starts = 0
        self.reboots_unseen = 0
        records = EngineRecords(cluster=ClusterRecord(term=Term(1)))
        self.engine = Engine(policy=Policy(), records=records, now=Millis(self.now))
        self.step(self._configured())
        for name in HOSTS:
            self.connect(name)
        self.pass_time(5)
        for vm, name in zip(VMS, HOSTS, strict=False):
            self.person_starts(vm, name)
        self.settle(20)

    def _configured(self) -> list[EngineEvent]:
        hosts = [
            HostConfigured(
                host=EngineHost(
                    host_id=HostId(name),
                    name=name,
                    number=int(name[1]),
                    memory_bytes=8 * GIB,
                    cpus=8,
                )
            )
            for name in HOSTS
        ]
        vms = [
            VmConfigured(
                vm=EngineVm(vm_id=VmId(name), name=name, memory_bytes=GIB, ha=True, wanted_up=True)
            )
            for name in VMS
        ]
        return [
            *hosts,
            *vms,
            ReferenceAnswered(reached=True),
            LeaseRenewed(until_ms=self.now + 10**9),
        ]

    # The engine

    def step(self, events: list[EngineEvent]) -> None:
        self.now += 1
        if not self.led:
            return
        decision = self.engine.step(Millis(self.now), events)
        self.judge()
        for command in decision.commands:
            self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case StartCommand():
                self.starts += 1
                self.orders.append(
                    Order(
                        command.host_id,
                        command.boot,
                        command.vm_id,
                        command.incarnation,
                        command.order_id,
                    )
                )
            case CancelStart():
                host = self.hosts[command.host_id]
                if not host.connected:
                    return
                if host.running.get(command.vm_id) == command.incarnation:
                    host.see(command.vm_id, command.incarnation, VmState.RUNNING)
                else:
                    host.release(command.vm_id, command.incarnation, ReleaseCause.HOST_BOOTED)
            case _:
                pass

    def judge(self) -> None:
        """The truth beside what the engine believes."""
        records = self.engine.records()
        for record in records.hosts:
            host = self.hosts[record.host_id]
            assert host.boot not in record.dead_boots, f"{host.boot} lives and is called dead"
        for vm in records.vms:
            there = {host.name for host in self.hosts.values() if vm.vm_id in host.running}
            assert len(there) <= 1, f"{vm.vm_id} has two writers: {there}"
            if not self.led:
                continue
            if vm.stage is VmStage.READY:
                assert not there, f"{vm.vm_id} is ready while it runs on {there}"
            elif vm.stage is VmStage.STARTING and vm.start is not None:
                assert there <= {vm.start.host_id}, f"{vm.vm_id} is started beside {there}"

    def record(self, vm: str) -> VmRecord:
        return next(one for one in self.engine.records().vms if one.vm_id == vm)

    # What is true of hosts

    def connect(self, name: str) -> None:
        host = self.hosts[name]
        if not host.connected:
            self._reaches_a_server(host)
        self.tell_sessions(host)
        self.read_outbox(host)

    def connect_elsewhere(self, name: str) -> None:
        """Nothing can be told late of a host whose facts don't say over which session they came."""
        host = self.hosts[name]
        if not self.told:
            self.connect(name)
        elif not host.connected:
            self._reaches_a_server(host)
            self.read_outbox(host)

    def _reaches_a_server(self, host: TrueHost) -> None:
        host.connected = True
        host.untold.append(host.boot)
        host.survey()
        for vm, incarnation in host.running.items():
            host.see(vm, incarnation, VmState.RUNNING)

    def tell_session(self, host: TrueHost) -> None:
        """The earliest that it was not told of."""
        if host.untold:
            host.stood = host.untold.pop(0)
            self._tells(host, host.stood, up=True)

    def tell_sessions(self, host: TrueHost) -> None:
        while host.untold:
            self.tell_session(host)

    def _tells(self, host: TrueHost, boot: BootId, *, up: bool) -> None:
        self.step(
            [
                SessionChanged(host_id=host.id, process=process, boot=boot, up=up)
                for process in ProcessKind
            ]
        )

    def disconnect(self, name: str) -> None:
        host = self.hosts[name]
        if host.connected:
            self.tell_sessions(host)
            host.connected = False
            host.stood = None
            self._tells(host, host.boot, up=False)

    def reboot(self, name: str) -> None:
        """Its session breaks, which need not be told before the next one stands."""
        host = self.hosts[name]
        if not host.connected:
            self.reboots_unseen += 1
        before, host.running = host.running, {}
        host.boots += 1
        host.connected = False
        for vm, incarnation in before.items():
            host.see(vm, incarnation, VmState.DOWN)
            host.release(vm, incarnation, ReleaseCause.HOST_BOOTED)
        host.survey()

    def crash(self, name: str, vm: str) -> None:
        host = self.hosts[name]
        incarnation = host.running.pop(vm, None)
        if incarnation is not None:
            host.see(vm, incarnation, VmState.DOWN)
            host.release(vm, incarnation, ReleaseCause.HOST_SHUTDOWN)

    def person_starts(self, vm: str, name: str) -> None:
        """As a server lets them: nobody may hold it, and the engine is told before the order goes out."""
        host, record = self.hosts[name], self.record(vm)
        if record.start is not None or self._held(vm) or not host.connected:
            return
        former = [record.incarnation, *(one.incarnation for one in self.grants if one.vm_id == vm)]
        incarnation = Incarnation(max(former) + 1)
        grant = CopyGranted(
            host_id=host.id, boot=host.boot, vm_id=VmId(vm), incarnation=incarnation
        )
        self.tell_sessions(host)  # none is told after a grant for a later boot
        self.orders.append(Order(name, host.boot, vm, incarnation, None))
        if not self.led:
            self.grants.append(grant)
        self.step([grant])

    def _held(self, vm: str) -> bool:
        """As a server knows it, which records what hosts tell also while nobody leads."""
        held = {(one.host_id, one.incarnation) for one in self.record(vm).copies}
        if not self.led:
            held |= {(one.host_id, one.incarnation) for one in self.grants if one.vm_id == vm}
            held -= {
                (fact.host_id, fact.incarnation)
                for fact in self.lines
                if isinstance(fact, CopyReleased) and fact.vm_id == vm
            }
        return bool(held)

    def arrive(self, number: int) -> None:
        """One of the orders under way; twice is possible, for it may have been sent again."""
        if not self.orders:
            return
        order = self.orders[number % len(self.orders)]
        host = self.hosts[order.host]
        refused = (order.vm, order.incarnation) in host.refused
        if not host.connected and order.order_id is None:
            return  # a server gives a person's order again until it is answered
        if number % 3:
            self.orders.remove(order)
        if not host.connected:
            return
        if host.boot != order.boot or refused:
            if order.order_id is not None:
                host.outbox.append(self._ended(order, Result.REFUSED))
            elif not refused:
                host.release(order.vm, order.incarnation, ReleaseCause.HOST_BOOTED)
        elif order.vm not in host.running:
            host.running[order.vm] = order.incarnation
            host.see(order.vm, order.incarnation, VmState.RUNNING)
            if order.order_id is not None:
                host.outbox.append(self._ended(order, Result.OK))
        self.judge()

    def _ended(self, order: Order, result: Result) -> StartEnded:
        assert order.order_id is not None
        return StartEnded(
            order_id=order.order_id,
            host_id=HostId(order.host),
            vm_id=VmId(order.vm),
            incarnation=Incarnation(order.incarnation),
            result=result,
        )

    # Roads of facts

    def read_outbox(self, host: TrueHost) -> None:
        """Over the session that stands."""
        if host.connected:
            facts, host.outbox = host.outbox, []
            self.lines += [self._carried(fact, host.boot) for fact in facts]

    def _carried(self, fact: Fact, boot: BootId) -> Fact:
        if self.told and isinstance(fact, VmSeen | HostSurveyed):
            return msgspec.structs.replace(fact, carried_by=boot)
        return fact

    def _uncarried(self, fact: Fact) -> Fact:
        if isinstance(fact, VmSeen | HostSurveyed):
            return msgspec.structs.replace(fact, carried_by=None)
        return fact

    def deliver(self, number: int) -> None:
        if self.lines and self.led:
            at = number % len(self.lines)
            if self.orderly:
                of = self.lines[at].host_id
                at = next(one for one, fact in enumerate(self.lines) if fact.host_id == of)
            fact = self.lines.pop(at)
            self.given.append(fact)
            self.step([fact])

    def deliver_again(self, number: int) -> None:
        if self.given and not self.orderly and self.led:
            self.step([self.given[number % len(self.given)]])

    # Time

    def beats(self) -> list[EngineEvent]:
        return [
            BeatSeen(host_id=host.id, boot=host.boot, agent_alive=True)
            for host in self.hosts.values()
            if host.connected and not host.untold
        ]

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 999
            self.step(self.beats())
            for host in self.hosts.values():
                self.read_outbox(host)

    def settle(self, seconds: int) -> None:
        """Everybody is well, and nothing is under way any longer than a second."""
        if not self.led:
            self.new_leader(recorded=True)
        for name in HOSTS:
            self.connect(name)
        for _ in range(seconds):
            self.pass_time(1)
            while self.orders:
                self.arrive(1)
            for host in self.hosts.values():
                self.read_outbox(host)
            while self.lines:
                self.deliver(0)

    def connect_anew(self) -> None:
        """Each host, in its present boot."""
        for name in HOSTS:
            self.disconnect(name)
            self.connect(name)

    def new_leader(self, *, recorded: bool) -> None:
        """What was on its way to the former one comes again; ``recorded``: before any host connects."""
        self.led = True
        self.now += 1_000
        records = self.engine.records()
        cluster = records.cluster.led_in(Term(records.cluster.term + 1))
        records = msgspec.structs.replace(records, cluster=cluster)
        self.engine = Engine(policy=Policy(), records=records, now=Millis(self.now))
        grants, self.grants = self.grants, []
        facts: list[Fact] = []
        if recorded:
            facts, self.lines = [self._uncarried(fact) for fact in self.lines], []
            self.given += facts
        self.step([*self._configured(), *grants, *facts])
        for host in self.hosts.values():
            if recorded:
                host.untold, host.stood = [], None
            if host.untold:
                if host.stood is not None:
                    self._tells(host, host.stood, up=True)
            elif host.connected:
                host.connected = False
                self.connect(host.name)

    def nobody_leads(self) -> None:
        """Gateways go on: hosts connect, what they tell is recorded, persons start VMs."""
        self.led = False
        for host in self.hosts.values():
            host.stood = None

    def unheard_boot(self, name: str) -> None:
        """A boot that ran what the one before did, and that no leader heard of; what it told may not have been read."""
        self.nobody_leads()
        self.reboot(name)
        self.connect(name)
        for vm in VMS:
            self.person_starts(vm, name)
        for number in range(len(self.orders)):
            self.arrive(1 + 3 * number)
        self.reboot(name)

    def move(self, move: Move) -> None:
        kind, which, number = move
        _MOVES[kind % len(_MOVES)](self, HOSTS[which % len(HOSTS)], number)


_MOVES: tuple[Callable[[LateWorld, str, int], None], ...] = (
    lambda world, host, number: world.connect(host),
    lambda world, host, number: world.connect_elsewhere(host),
    lambda world, host, number: world.tell_session(world.hosts[host]),
    lambda world, host, number: world.disconnect(host),
    lambda world, host, number: world.reboot(host),
    lambda world, host, number: world.reboot(host),
    lambda world, host, number: world.crash(host, VMS[number % len(VMS)]),
    lambda world, host, number: world.person_starts(VMS[number % len(VMS)], host),
    lambda world, host, number: world.arrive(number),
    lambda world, host, number: world.arrive(number),
    lambda world, host, number: world.deliver(number),
    lambda world, host, number: world.deliver(number),
    lambda world, host, number: world.deliver(number),
    lambda world, host, number: world.deliver_again(number),
    lambda world, host, number: world.pass_time(1 + number % 12),
    lambda world, host, number: world.pass_time(1 + number % 3),
    lambda world, host, number: world.new_leader(recorded=not world.led or number % 2 == 0),
    lambda world, host, number: world.new_leader(recorded=not world.led or number % 2 == 0),
    lambda world, host, number: world.nobody_leads(),
    lambda world, host, number: world.unheard_boot(host),
)
