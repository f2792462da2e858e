"""Random events for the engine, and the world that answers what it orders; ``engine_fuzz_judge`` watches its starts.

A run is a list of moves, each four small numbers, so that Hypothesis shrinks them and any other generator can make
them. Three hosts with two boots each, three VMs. Some moves give one event, legal or not; some let the world go on
for seconds and answer what the engine ordered, so that runs come deep into incidents.

Run as a program it prints a digest of all decisions of many runs: the same under every hash seed.
"""

import hashlib
import random
from collections.abc import Sequence

import msgspec
from engine_fuzz_judge import Judge

from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    BrakeLifted,
    CancelStart,
    Command,
    CopyGranted,
    CopyReleased,
    DeathConfirmed,
    DisksWatched,
    EngineEvent,
    GatewayLost,
    HoldChanged,
    HostConfigured,
    HostRemoved,
    HostSurveyed,
    Investigate,
    LeaseRenewed,
    LibvirtAnswered,
    MaintenanceChanged,
    NeighbourAnswered,
    OrderPower,
    PolicyChanged,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ProofFound,
    QuarantineLifted,
    ReadPower,
    ReferenceAnswered,
    SessionChanged,
    SlotChanged,
    Stalled,
    StartCommand,
    StartEnded,
    VmConfigured,
    VmRemoved,
    VmSeen,
)
from virtha.engine.records import ClusterRecord, EngineRecords
from virtha.model.evidence import Answer, IdentityMatch, PowerState, ProcessKind
from virtha.model.facts import ReleaseCause, Result
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, Term, VmId
from virtha.model.policy import FencingAction, FencingPolicy, Policy
from virtha.model.power import PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.proof import Proof, ProofKind
from virtha.model.time import Millis
from virtha.model.vm import VmState
from virtha.sim.wakes import Wakes

Move = tuple[int, int, int, int]
GIB = 1 << 30
HOSTS = ("h1", "h2", "h3")
VMS = ("v1", "v2", "v3")
ANSWERS = tuple(Answer)
STATES = tuple(VmState)
RESULTS = tuple(Result)
POWERS = tuple(PowerState)
MATCHES = tuple(IdentityMatch)
POLICIES = tuple(Policy(fencing=FencingPolicy(action=action)) for action in FencingAction)
LATER_MS = (0, 1, 100, 1_000, 3_000, 21_000)


class Run:
    """One engine, the world around it, and the judge."""

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.judge = Judge()
        self.digest = hashlib.sha256()
        self.boot = dict.fromkeys(HOSTS, 1)
        self.beating = set(HOSTS)
        self.reads = dict.fromkeys(HOSTS, PowerState.ON)
        self.start_result: Result | None = Result.OK
        self.pending: list[Command] = []
        self.wake_at: int | None = None
        self.wakes = Wakes(hosts=lambda: len(HOSTS))
        self.levels = dict.fromkeys(HOSTS, 1)
        self.removed: set[str] = set()
        self.configs = {name: _vm(name) for name in VMS}
        self.engine = self._engine(EngineRecords(cluster=ClusterRecord(term=Term(1))))
        self.step(self._configured() + [one for host in HOSTS for one in self._greet(host)])
        for vm, host in zip(VMS, HOSTS, strict=True):
            self.step([self._seen(host, self.boot[host], vm, 1, VmState.RUNNING)])

    def _engine(self, records: EngineRecords) -> Engine:
        return Engine(policy=POLICIES[1], records=records, now=Millis(self.now))

    def _configured(self) -> list[EngineEvent]:
        hosts = [
            HostConfigured(host=self._host(host)) for host in HOSTS if host not in self.removed
        ]
        vms = [VmConfigured(vm=config) for config in self.configs.values()]
        return [
            *hosts,
            *vms,
            ReferenceAnswered(reached=True),
            LeaseRenewed(until_ms=self.now + 10**9),
        ]

    def _host(self, name: str) -> EngineHost:
        levels = tuple(
            PowerLevel(feeds=(PowerFeed(device=PowerDeviceId(f"{name}-power{level}")),))
            for level in range(1, self.levels[name] + 1)
        )
        return EngineHost(
            host_id=HostId(name),
            name=name,
            number=int(name[1]),
            memory_bytes=8 * GIB,
            cpus=8,
            power=levels,
        )

    def _greet(self, host: str) -> list[EngineEvent]:
        boot = _boot(host, self.boot[host])
        events: list[EngineEvent] = [
            SessionChanged(host_id=HostId(host), process=process, boot=boot, up=True)
            for process in ProcessKind
        ]
        events.append(BeatSeen(host_id=HostId(host), boot=boot, agent_alive=True))
        events.append(self._survey(host, self.boot[host]))
        for level in (1, 2):
            device = PowerDeviceId(f"{host}-power{level}")
            events.append(PowerTested(host_id=HostId(host), boot=boot, device=device, passed=True))
        return events

    def _survey(self, host: str, boot: int) -> HostSurveyed:
        return HostSurveyed(
            host_id=HostId(host),
            boot=_boot(host, boot),
            gate_in_force=True,
            libvirt_connected=True,
            storage_domains=frozenset({StorageDomainId("ds1")}),
        )

    def _seen(self, host: str, boot: int, vm: str, incarnation: int, state: VmState) -> VmSeen:
        return VmSeen(
            host_id=HostId(host),
            boot=_boot(host, boot),
            vm_id=VmId(vm),
            incarnation=Incarnation(incarnation),
            state=state,
        )

    # Moving

    def step(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self.judge.event(self.now, event)
        decision = self.engine.step(Millis(self.now), events)
        self.digest.update(msgspec.msgpack.encode(decision.wake_at))
        self.digest.update(repr((decision.intents, decision.commands, decision.notices)).encode())
        self.judge.decision(decision)
        self.wakes.stepped(Millis(self.now), decision, came=bool(events))
        assert decision.wake_at is None or decision.wake_at > self.now, "due already"
        self.wake_at = decision.wake_at
        self.pending = [*self.pending, *decision.commands][-40:]

    def move(self, move: Move) -> None:
        kind, first, second, third = move
        host, vm = HOSTS[first % 3], VMS[second % 3]
        if kind % 3 == 0:
            self._go_on(1 + first % 24)
        elif kind % 3 == 1:
            _WORLD[first % len(_WORLD)](self, HOSTS[second % 3], third)
        else:
            events = _EVENTS[kind // 3 % len(_EVENTS)](self, host, vm, third)
            self.now += LATER_MS[(kind + third) % len(LATER_MS)]
            self.step(events)

    def _go_on(self, seconds: int) -> None:
        """A second each: who beats beats, and what was ordered is answered as the switches say."""
        for _ in range(seconds):
            second_ms = self.now + 1_000
            while self.wake_at is not None and self.now < self.wake_at < second_ms:
                self.now = self.wake_at
                self.step(())
            self.now = second_ms
            orders, self.pending = self.pending, []
            events: list[EngineEvent] = []
            for host in sorted(self.beating):
                boot = _boot(host, self.boot[host])
                events.append(BeatSeen(host_id=HostId(host), boot=boot, agent_alive=True))
            for order in orders:
                events += self._answers(order)
            events.append(LeaseRenewed(until_ms=self.now + 10**6))
            self.step(events)

    def _answers(self, order: Command) -> list[EngineEvent]:
        match order:
            case Investigate():
                answer = Answer.SILENT
                return [
                    NeighbourAnswered(
                        witness=witness, subject=order.subject, network="lan", answer=answer
                    )
                    for witness in order.witnesses
                ] + (
                    [DisksWatched(witness=order.disk_reader, subject=order.subject, changed=False)]
                    if order.disk_reader is not None
                    else []
                )
            case ReadPower():
                return [self._power_read(order, self.reads[order.host_id], IdentityMatch.UNKNOWN)]
            case OrderPower():
                return [self._power_ordered(order, Result.OK)]
            case StartCommand() if self.start_result is not None:
                return [self._start_ended(order, self.start_result)]
            case CancelStart() if order.host_id in self.beating:
                return [
                    CopyReleased(
                        host_id=order.host_id,
                        boot=_boot(order.host_id, self.boot[order.host_id]),
                        vm_id=order.vm_id,
                        incarnation=order.incarnation,
                    )
                ]
            case _:
                return []

    def _power_read(
        self, order: ReadPower, state: PowerState, identity: IdentityMatch
    ) -> PowerRead:
        return PowerRead(
            order_id=order.order_id,
            host_id=order.host_id,
            device=order.device,
            state=state,
            identity=identity,
        )

    def _power_ordered(self, order: OrderPower, result: Result) -> PowerOrdered:
        return PowerOrdered(
            order_id=order.order_id, host_id=order.host_id, device=order.device, result=result
        )

    def _start_ended(self, order: StartCommand, result: Result) -> StartEnded:
        return StartEnded(
            order_id=order.order_id,
            host_id=order.host_id,
            vm_id=order.vm_id,
            incarnation=order.incarnation,
            result=result,
        )

    def incident(self, host: str) -> tuple[BootId, int]:
        for record in self.engine.records().hosts:
            if record.host_id == host and record.incident is not None:
                return record.incident.boot, record.incident.number
        return _boot(host, 1), 0


def _boot(host: str, number: int) -> BootId:
    return BootId(f"{host}b{number}")


def _vm(name: str, **changes: object) -> EngineVm:
    base = EngineVm(vm_id=VmId(name), name=name, memory_bytes=GIB, ha=True, wanted_up=True)
    return msgspec.structs.replace(base, **changes)


# What moves the world


def _falls_silent(run: Run, host: str, how: int) -> None:
    run.beating.discard(host)
    run.reads[host] = POWERS[how % len(POWERS)]


def _comes_back(run: Run, host: str, how: int) -> None:
    """In the same boot, or, once, in the next."""
    run.beating.add(host)
    run.reads[host] = PowerState.ON
    if how % 2 and run.boot[host] == 1:
        run.boot[host] = 2
    run.now += 100
    run.step(run._greet(host))


def _starts_end(run: Run, host: str, how: int) -> None:
    run.start_result = (None, *RESULTS)[how % 5]


def _new_leader(run: Run, host: str, how: int) -> None:
    """Goes on from the records alone."""
    run.now += 1_000
    run.pending = []
    records = run.engine.records()
    cluster = msgspec.structs.replace(records.cluster, term=Term(records.cluster.term + 1))
    run.engine = run._engine(msgspec.structs.replace(records, cluster=cluster))
    events = run._configured()
    for one in sorted(run.beating):
        events += run._greet(one)
    run.step(events)


def _sleeps(run: Run, host: str, how: int) -> None:
    """To the moment at which the engine wants to wake, and nothing happened."""
    if run.wake_at is not None:
        run.now = run.wake_at
    run.step([])


_WORLD = (_falls_silent, _comes_back, _starts_end, _new_leader, _sleeps)


# Single events: (run, host, vm, number)


def _of_last(run: Run, kind: type, number: int) -> Command | None:
    """One of the commands not yet answered, or answered before: late, early or twice."""
    found = [one for one in run.pending if isinstance(one, kind)]
    return found[number % len(found)] if found else None


def _late_start(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    order = _of_last(run, StartCommand, number)
    return [run._start_ended(order, RESULTS[number % 4])] if isinstance(order, StartCommand) else []


def _late_order(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    order = _of_last(run, OrderPower, number)
    return [run._power_ordered(order, RESULTS[number % 4])] if isinstance(order, OrderPower) else []


def _late_reading(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    order = _of_last(run, ReadPower, number)
    if not isinstance(order, ReadPower):
        return []
    return [run._power_read(order, POWERS[number % 3], MATCHES[number // 3 % 3])]


def _proof(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    """True: that boot gives no further sign."""
    if host in run.beating:
        return []
    kind = (ProofKind.LEASE, ProofKind.STORAGE_FENCE)[number % 2]
    boot = _boot(host, run.boot[host])
    return [ProofFound(proof=Proof(kind=kind, host_id=HostId(host), boot=boot, at_ms=run.now))]


def _confirm(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    boot, incident = run.incident(host)
    if host in run.beating or not incident:
        return []
    return [
        DeathConfirmed(
            host_id=HostId(host), boot=boot, incident=incident, by="admin", force_reason="seen"
        )
    ]


def _host_changes(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    run.levels[host] = number % 3
    run.removed.discard(host)
    return [HostConfigured(host=run._host(host))]


def _host_goes(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    run.removed.add(host)
    return [HostRemoved(host_id=HostId(host))]


def _vm_changes(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    changes = ({}, {"ignore": True}, {"ha": False}, {"wanted_up": False}, {"memory_bytes": 9 * GIB})
    run.configs[vm] = _vm(vm, **changes[number % len(changes)])
    return [VmConfigured(vm=run.configs[vm])]


def _seen_somewhere(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    state = STATES[number % len(STATES)]
    return [run._seen(host, run.boot[host], vm, 1 + number % 4, state)]


def _seen_in_any_boot(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    boot = 1 + number % (run.boot[host] + 1)  # the next one, too, which has not begun
    return [run._seen(host, boot, vm, 1 + number % 4, STATES[number % len(STATES)])]


def _release(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    boot = _boot(host, run.boot[host])
    return [
        CopyReleased(
            host_id=HostId(host),
            boot=boot,
            vm_id=VmId(vm),
            incarnation=Incarnation(1 + number % 4),
            cause=(None, *ReleaseCause)[number % (1 + len(ReleaseCause))],
        )
    ]


def _grant(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    boot = _boot(host, 1 + number % (run.boot[host] + 1))
    incarnation = Incarnation(1 + number % 6)
    return [CopyGranted(host_id=HostId(host), boot=boot, vm_id=VmId(vm), incarnation=incarnation)]


def _neighbour(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    answer = ANSWERS[number % len(ANSWERS)]
    boot = _boot(host, run.boot[host]) if answer is Answer.ALIVE else None
    witness = HostId(HOSTS[number % 3])
    return [
        NeighbourAnswered(
            witness=witness, subject=HostId(host), network="lan", answer=answer, boot=boot
        )
    ]


def _slot(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    return [
        SlotChanged(
            witness=HostId(HOSTS[number % 3]),
            subject=HostId(host),
            storage_domain_id=StorageDomainId("ds1"),
            boot=_boot(host, 1 + number % run.boot[host]),
        )
    ]


def _session(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    return [
        SessionChanged(
            host_id=HostId(host),
            process=tuple(ProcessKind)[number % 2],
            boot=_boot(host, 1 + number % run.boot[host]),
            up=number % 4 > 1,
            broken=number % 3 == 0,
        )
    ]


def _late_beat(run: Run, host: str, vm: str, number: int) -> list[EngineEvent]:
    boot = _boot(host, 1 + number % run.boot[host])
    return [BeatSeen(host_id=HostId(host), boot=boot, agent_alive=number % 2 == 0)]


_EVENTS = (
    _late_start,
    _late_order,
    _late_reading,
    _proof,
    _confirm,
    _host_changes,
    _host_goes,
    _vm_changes,
    _seen_somewhere,
    _seen_in_any_boot,
    _release,
    _grant,
    _neighbour,
    _slot,
    _session,
    _late_beat,
    lambda run, host, vm, number: [VmRemoved(vm_id=VmId(vm)), VmConfigured(vm=run.configs[vm])],
    lambda run, host, vm, number: [HoldChanged(reason="x" if number % 2 else None)],
    lambda run, host, vm, number: [
        MaintenanceChanged(host_id=HostId(host), on=number % 2 == 0, by="admin")
    ],
    lambda run, host, vm, number: [QuarantineLifted(vm_id=VmId(vm), by="admin")],
    lambda run, host, vm, number: [BrakeLifted(by="admin")],
    lambda run, host, vm, number: [Stalled()],
    lambda run, host, vm, number: [GatewayLost(hosts=frozenset({HostId(host)}))],
    lambda run, host, vm, number: [PolicyChanged(policy=POLICIES[number % len(POLICIES)])],
    lambda run, host, vm, number: [
        LibvirtAnswered(host_id=HostId(host), answering=number % 2 == 0)
    ],
    lambda run, host, vm, number: [LeaseRenewed(until_ms=run.now + number * 10_000)],
    lambda run, host, vm, number: [ReferenceAnswered(reached=number % 2 == 0)],
    lambda run, host, vm, number: [run._survey(host, 1 + number % (run.boot[host] + 1))],
    lambda run, host, vm, number: [
        DisksWatched(
            witness=HostId("h1"), subject=HostId(host), changed=(True, False, None)[number % 3]
        )
    ],
)


def random_moves(seed: int, count: int = 60) -> list[Move]:
    source = random.Random(seed)
    return [tuple(source.randrange(96) for _ in range(4)) for _ in range(count)]


def main(runs: int = 20) -> None:
    for seed in range(runs):
        run = Run()
        try:
            for move in random_moves(seed):
                run.move(move)
        except Exception as error:  # it belongs to the digest: the same under every hash seed
            run.digest.update(repr(error).encode())
        print(run.digest.hexdigest())


if __name__ == "__main__":
    main()
