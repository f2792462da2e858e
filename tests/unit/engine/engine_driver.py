"""A cluster played around the real engine: enough world to answer its commands, one behaviour per switch.

The simulator is the place for faults in combination; this one shows a single decision at a time.
"""

from collections.abc import Callable, Sequence

import msgspec
from played_moves import PlayedMoves

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.configured import EngineHost, EngineVm
from virtha.engine.cutting import StorageFenced, StorageLetIn, StorageOpened
from virtha.engine.ending import EndCopy
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
    Intent,
    Investigate,
    LeaseRenewed,
    MigrateCommand,
    NeighbourAnswered,
    Notice,
    OrderPower,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ReadPower,
    ReferenceAnswered,
    SaveCluster,
    SaveHost,
    SaveVm,
    SessionChanged,
    SettleMigration,
    StartCommand,
    StartEnded,
    StorageFence,
    VmConfigured,
    VmSeen,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import ClusterRecord, EngineRecords, HostRecord, VmRecord
from virtha.model.ceph import CephSight
from virtha.model.evidence import Answer, IdentityMatch, PowerState, ProcessKind
from virtha.model.facts import Result
from virtha.model.ids import BootId, HostId, Incarnation, StorageDomainId, Term, VmId
from virtha.model.policy import Policy
from virtha.model.power import PowerAction, PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.time import Millis
from virtha.model.vm import VmState

GIB = 1 << 30
TICK_MS = 100
DEAD_PEER_MS = 4_000
"""When the gateway gives up a session that says nothing."""
ANSWER_MS = 20
"""Between a command and its answer: the next tick."""


class PlayedHost:
    """One host and its power device, with a switch per behaviour."""

    def __init__(self, number: int) -> None:
        self.id = HostId(f"h{number}")
        self.number = number
        self.boots = 1
        self.powered = True
        self.beating = True
        self.agent_alive = True
        self.guardian_down = False
        """Its agent's session stands, and nothing beats."""
        self.answers_neighbours = True
        self.answers_ping = True
        self.disks_change = False
        self.running: dict[VmId, Incarnation] = {}
        self.start_result: Result | None = Result.OK
        self.confirms_cancel = True
        # The power device
        self.bmc_state: PowerState | None = None
        """None: it tells the truth."""
        self.bmc_dead = False
        self.bmc_refuses: str | None = None
        self.bmc_does_nothing = False
        self.bmc_identity = IdentityMatch.UNKNOWN
        self.bmc_strikes: PlayedHost = self
        """Whose power it really switches."""
        self.storage = True
        self.ceph: dict[StorageDomainId, CephSight] = {}
        """As it tells: per domain."""
        self.fences: Result | None = Result.OK
        """As a helper; None: it does not answer."""
        self.silent_ticks = 0

    @property
    def boot(self) -> BootId:
        return BootId(f"{self.id}b{self.boots}")

    def cut(self) -> None:
        self.powered = False
        self.running.clear()

    def hang(self) -> None:
        """Powered, its disks quiet, and nothing of it answers."""
        self.beating = self.answers_neighbours = self.answers_ping = False

    def boot_again(self) -> None:
        self.boots += 1
        self.powered = self.beating = self.answers_neighbours = self.answers_ping = True
        self.running.clear()

    @property
    def alive(self) -> bool:
        return self.powered and self.beating


class Play:
    """Keeps what the engine decided, and answers its commands a tick later."""

    def __init__(
        self,
        hosts: int = 4,
        *,
        policy: Policy | None = None,
        levels: int = 1,
        tested: bool = True,
        vms: Sequence[EngineVm] | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.now = 1_000_000_000
        self.hosts = {f"h{number}": PlayedHost(number) for number in range(1, hosts + 1)}
        self.notices: list[Notice] = []
        self.commands: list[tuple[int, Command]] = []
        self._offs: list[HostId] = []
        """Kept beside them: asked at every tick, a look through all of them is most of a long play."""
        self.saved: dict[str, Intent] = {}
        self.inbox: list[EngineEvent] = []
        self.shut_out: set[tuple[str, str]] = set()
        """Cluster and address: what helpers put on Ceph's list."""
        self.epoch = 100
        self.moves = PlayedMoves(self)
        self.answers = True
        self.levels = levels
        self.lease_ms: int | None = None
        self.reference: bool | None = None
        """Told at each tick; None: not at all."""
        self.before_first_step: Callable[[], None] = lambda: None
        self.on_command: Callable[[Command], bool] | None = None
        """True: it has dealt with that command."""
        self.configs = [self._config(host) for host in self.hosts.values()]
        self.vms = list(vms) if vms is not None else [vm("v1"), vm("v2")]
        self.engine = Engine(policy=self.policy, records=_records(1), now=Millis(self.now))
        self._configure()
        for host in self.hosts.values():
            self._greet(host)
            if tested:
                self.test_power(host)
        self.tick()

    def _config(self, host: PlayedHost) -> EngineHost:
        levels = tuple(
            PowerLevel(feeds=(PowerFeed(device=PowerDeviceId(f"{host.id}-power{level}")),))
            for level in range(1, self.levels + 1)
        )
        return EngineHost(
            host_id=host.id,
            name=host.id,
            number=host.number,
            memory_bytes=8 * GIB,
            cpus=8,
            power=levels,
        )

    def _configure(self) -> None:
        self.inbox += [HostConfigured(host=config) for config in self.configs]
        self.inbox += [VmConfigured(vm=config) for config in self.vms]

    def _greet(self, host: PlayedHost) -> None:
        """What a host tells when it connects."""
        self.inbox.append(BeatSeen(host_id=host.id, boot=host.boot, agent_alive=True))
        for process in ProcessKind:
            self.inbox.append(
                SessionChanged(host_id=host.id, process=process, boot=host.boot, up=True)
            )
        self.survey(host)

    def survey(self, host: PlayedHost) -> None:
        self.inbox.append(
            HostSurveyed(
                host_id=host.id,
                boot=host.boot,
                gate_in_force=True,
                libvirt_connected=True,
                storage_domains=frozenset({"ds1", *host.ceph}) if host.storage else frozenset(),
                active=frozenset(host.running),
                ceph=host.ceph,
            )
        )

    def tell_ceph(self, *domains: str, fsid: str = "cluster-1") -> None:
        """Each host says by which address that cluster sees it."""
        for host in self.hosts.values():
            for domain in domains:
                sight = CephSight(boot=host.boot, fsid=fsid, addresses=(f"10.0.0.{host.number}",))
                host.ceph[StorageDomainId(domain)] = sight
            self.survey(host)
        self.tick()

    def test_power(self, host: PlayedHost) -> None:
        for level in range(1, self.levels + 1):
            self.inbox.append(
                PowerTested(
                    host_id=host.id,
                    boot=host.boot,
                    device=PowerDeviceId(f"{host.id}-power{level}"),
                    passed=True,
                    identity=host.bmc_identity,
                )
            )

    def run(self, vm_id: str, host: str) -> None:
        """It runs there and everybody knows."""
        played = self.hosts[host]
        played.running[VmId(vm_id)] = Incarnation(1)
        self._say(played, VmId(vm_id))
        self.tick()

    def _say(self, host: PlayedHost, vm_id: VmId, *, guest_agent: bool = True) -> None:
        self.inbox.append(
            VmSeen(
                host_id=host.id,
                boot=host.boot,
                vm_id=vm_id,
                incarnation=host.running[vm_id],
                state=VmState.RUNNING,
                guest_agent=guest_agent,
            )
        )

    # Time

    def tick(self) -> Decision:
        self.now += TICK_MS
        self.moves.tick()
        events, self.inbox = self.inbox, []
        lease = 10_000_000 if self.lease_ms is None else self.lease_ms
        events.append(LeaseRenewed(until_ms=self.now + lease))
        if self.reference is not None:
            events.append(ReferenceAnswered(reached=self.reference))
        for host in self.hosts.values():
            if host.alive and not host.guardian_down:
                events.append(
                    BeatSeen(host_id=host.id, boot=host.boot, agent_alive=host.agent_alive)
                )
            events += self._sessions(host)
        decision = self.engine.step(Millis(self.now), events)
        assert decision.wake_at is None or decision.wake_at > self.now
        for intent in decision.intents:
            self._save(intent)
        self.notices += decision.notices
        self.commands += [(self.now, command) for command in decision.commands]
        self._offs += [
            command.host_id
            for command in decision.commands
            if isinstance(command, OrderPower) and command.action is PowerAction.OFF
        ]
        for command in decision.commands:
            if self.answers and not (self.on_command is not None and self.on_command(command)):
                self._answer(command)
        return decision

    def _sessions(self, host: PlayedHost) -> list[EngineEvent]:
        silent_ms = host.silent_ticks * TICK_MS
        host.silent_ticks = 0 if host.alive else host.silent_ticks + 1
        lost = not host.alive and silent_ms == DEAD_PEER_MS
        back = host.alive and silent_ms >= DEAD_PEER_MS
        if not lost and not back:
            return []
        return [
            SessionChanged(host_id=host.id, process=process, boot=host.boot, up=back)
            for process in ProcessKind
        ]

    def advance(self, duration_ms: int) -> None:
        for _ in range(0, duration_ms, TICK_MS):
            self.tick()

    def until(self, condition: Callable[[], bool], *, within_ms: int = 300_000) -> int:
        """How long it took, in ms. Raises AssertionError when it does not come about."""
        began = self.now
        while not condition():
            assert self.now - began < within_ms, f"not within {within_ms} ms; {self.told()}"
            self.tick()
        return self.now - began

    def _save(self, intent: Intent) -> None:
        match intent:
            case SaveHost():
                self.saved[f"host {intent.record.host_id}"] = intent
            case SaveVm():
                self.saved[f"vm {intent.record.vm_id}"] = intent
            case SaveCluster():
                self.saved["cluster"] = intent
            case _:
                pass

    def new_leader(self, *, away_ms: int = 0) -> None:
        """Another server goes on from what was written, with no memory of its own."""
        self.now += away_ms
        cluster = self.saved["cluster"]
        assert isinstance(cluster, SaveCluster)
        term = Term(cluster.record.term + 1)
        record = cluster.record.led_in(term)
        hosts = [one.record for one in self.saved.values() if isinstance(one, SaveHost)]
        vms = [one.record for one in self.saved.values() if isinstance(one, SaveVm)]
        records = EngineRecords(cluster=record, hosts=tuple(hosts), vms=tuple(vms))
        self.engine = Engine(policy=self.policy, records=records, now=Millis(self.now))
        self.inbox.clear()
        self._configure()
        for host in self.hosts.values():
            if host.alive:
                self._greet(host)
                for vm_id in host.running:
                    self._say(host, vm_id)
        self.before_first_step()
        self.tick()

    # Answers

    def _answer(self, command: Command) -> None:
        match command:
            case Investigate():
                self._investigate(command)
            case ReadPower():
                self._read_power(command)
            case OrderPower():
                self._order_power(command)
            case StartCommand():
                self._start(command)
            case MigrateCommand():
                self.moves.begin(command)
            case SettleMigration():
                self.moves.settle(command)
            case EndCopy():
                host = self.hosts[command.host_id]
                if host.alive and host.boot == command.boot:
                    host.running.pop(command.vm_id, None)
                    self._release(host, command.vm_id, command.incarnation)
            case CancelStart():
                host = self.hosts[command.host_id]
                if host.alive and host.confirms_cancel:
                    self._release(host, command.vm_id, command.incarnation)
            case StorageFence():
                self._shut_out(command)
            case StorageLetIn():
                self._let_in(command)
            case _:
                pass

    def _shut_out(self, command: StorageFence) -> None:
        helper = self.hosts[command.helper]
        if not helper.alive or helper.fences is None or helper.boot != command.helper_boot:
            return
        ok = helper.fences is Result.OK
        if ok:
            self.epoch += 1
            self.shut_out.update((command.fsid, one) for one in command.addresses)
        self.inbox.append(
            StorageFenced(
                order_id=command.order_id,
                host_id=command.host_id,
                helper=helper.id,
                result=helper.fences,
                fsid=command.fsid,
                addresses=command.addresses if ok else (),
                epoch=self.epoch if ok else 0,
                until_s=2_000_000_000 if ok else 0,
                error="" if ok else "no permission",
            )
        )

    def _let_in(self, command: StorageLetIn) -> None:
        helper = self.hosts[command.helper]
        if not helper.alive or helper.fences is None or helper.boot != command.helper_boot:
            return
        if helper.fences is Result.OK:
            self.shut_out -= {(command.fsid, one) for one in command.addresses}
        self.inbox.append(
            StorageOpened(
                order_id=command.order_id,
                host_id=command.host_id,
                helper=helper.id,
                result=helper.fences,
            )
        )

    def _release(self, host: PlayedHost, vm_id: VmId, incarnation: Incarnation) -> None:
        self.inbox.append(
            CopyReleased(host_id=host.id, boot=host.boot, vm_id=vm_id, incarnation=incarnation)
        )

    def _investigate(self, command: Investigate) -> None:
        subject = self.hosts[command.subject]
        for witness in command.witnesses:
            if not self.hosts[witness].alive:
                continue
            answer, boot = Answer.SILENT, None
            if subject.powered and subject.answers_neighbours:
                answer, boot = Answer.ALIVE, subject.boot
            elif subject.powered and subject.answers_ping:
                answer = Answer.HINT
            self.inbox.append(
                NeighbourAnswered(
                    witness=witness, subject=subject.id, network="lan", answer=answer, boot=boot
                )
            )
        if command.disk_reader is not None:
            self.inbox.append(
                DisksWatched(
                    witness=command.disk_reader,
                    subject=subject.id,
                    changed=subject.disks_change,
                    disks=1,
                )
            )

    def _read_power(self, command: ReadPower) -> None:
        host = self.hosts[command.host_id]
        truth = PowerState.ON if host.bmc_strikes.powered else PowerState.OFF
        state = truth if host.bmc_state is None else host.bmc_state
        if host.bmc_dead:
            state = PowerState.UNKNOWN
        self.inbox.append(
            PowerRead(
                order_id=command.order_id,
                host_id=host.id,
                device=command.device,
                state=state,
                identity=host.bmc_identity,
            )
        )

    def _order_power(self, command: OrderPower) -> None:
        host = self.hosts[command.host_id]
        if host.bmc_dead:
            return
        result = Result.OK if host.bmc_refuses is None else Result.REFUSED
        self.inbox.append(
            PowerOrdered(
                order_id=command.order_id,
                host_id=host.id,
                device=command.device,
                result=result,
                error=host.bmc_refuses,
            )
        )
        if result is Result.OK and not host.bmc_does_nothing:
            if command.action is PowerAction.OFF:
                host.bmc_strikes.cut()
            elif command.action is PowerAction.ON and not host.bmc_strikes.powered:
                host.bmc_strikes.boot_again()
                self._greet(host.bmc_strikes)

    def _start(self, command: StartCommand) -> None:
        """The one rule, seen from outside: nobody else may be running it."""
        for other in self.hosts.values():
            assert other.id == command.host_id or command.vm_id not in other.running, (
                f"{command.vm_id} is started on {command.host_id} while {other.id} runs it"
            )
        standing = self.moves.standing(command.vm_id)
        assert not standing, f"{command.vm_id} is started while copies stand on {standing}"
        host = self.hosts[command.host_id]
        if not host.alive or host.start_result is None:
            return
        if host.start_result is Result.OK:
            host.running[command.vm_id] = command.incarnation
            self._say(host, command.vm_id)
        self.inbox.append(
            StartEnded(
                order_id=command.order_id,
                host_id=host.id,
                vm_id=command.vm_id,
                incarnation=command.incarnation,
                result=host.start_result,
                code=None if host.start_result is Result.OK else "start.failed",
            )
        )

    # Looking

    def verdict(self, host: str) -> Verdict | None:
        return self.engine.verdict(HostId(host))

    def why(self, host: str) -> list[str]:
        return [one.code for one in self.engine.explain_host(HostId(host))]

    def why_vm(self, vm_id: str) -> list[str]:
        return [one.code for one in self.engine.explain_vm(VmId(vm_id))]

    def told(self) -> list[str]:
        return [notice.code for notice in self.notices]

    def sent(self, kind: type[Command]) -> list[Command]:
        return [command for _, command in self.commands if isinstance(command, kind)]

    def offs(self) -> list[HostId]:
        return list(self._offs)

    def forget_commands(self) -> None:
        """What is asked for from here on is what comes from here on."""
        self.commands.clear()
        self._offs.clear()

    def where(self, vm_id: str) -> list[str]:
        return [host.id for host in self.hosts.values() if VmId(vm_id) in host.running]

    def host_record(self, host: str) -> HostRecord:
        return next(one for one in self.engine.records().hosts if one.host_id == host)

    def vm_record(self, vm_id: str) -> VmRecord:
        return next(one for one in self.engine.records().vms if one.vm_id == vm_id)


def on_ceph(name: str, *domains: str) -> EngineVm:
    """With a disk in each."""
    storage = (Feature(FeatureKind.STORAGE, one) for one in domains or ("rbd1",))
    return vm(name, features=frozenset(storage))


def vm(name: str, *, ha: bool = True, **changes: object) -> EngineVm:
    base = EngineVm(vm_id=VmId(name), name=name, memory_bytes=GIB, ha=ha, wanted_up=True)
    return msgspec.structs.replace(base, **changes)


def _records(term: int) -> EngineRecords:
    return EngineRecords(cluster=ClusterRecord(term=Term(term)))
