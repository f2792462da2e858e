"""The engine on the simulated server: what the gateway sees goes in, what it orders goes out.

One per start of the server. Its memory goes with the process; what it wrote is in ``SimServer.table``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from virtha.engine.capacity import Feature, FeatureKind
from virtha.engine.configured import EngineHost, EngineVm
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
    HostSurveyed,
    Intent,
    Investigate,
    LibvirtAnswered,
    MigrateCommand,
    Notice,
    OrderPower,
    Poison,
    PolicyChanged,
    PowerOrdered,
    PowerRead,
    PowerTested,
    ReadPower,
    SessionChanged,
    SettleMigration,
    StartCommand,
    StorageFence,
    VmConfigured,
)
from virtha.engine.host_orders import (
    BY,
    ceph_epochs,
    end_order,
    let_in_order,
    shut_out_order,
    spent_grant,
)
from virtha.engine.records import HostRecord
from virtha.engine.told import Answered, active_vms, ended, event_of
from virtha.engine.turn import is_too_late, not_carried_out
from virtha.model.ceph import CephSight
from virtha.model.evidence import PowerState, ProcessKind
from virtha.model.facts import (
    Fact,
    Inventory,
    Outcome,
    Result,
)
from virtha.model.ids import BootId, HostId, OperationId, StorageDomainId, Term, VmId
from virtha.model.orders import EndPausedVm, LetInHost, ShutOutHost, StartVm
from virtha.model.vm import OnIoError
from virtha.sim.host import SimHost
from virtha.sim.kernel import Actor
from virtha.sim.leader import Leader
from virtha.sim.lease_desk import SimLeaseDesk
from virtha.sim.line import SERVER
from virtha.sim.move_orders import MoveOrders
from virtha.sim.server import ServerVm
from virtha.sim.witness import Witnesses
from virtha.sim.world_time import cluster_time
from virtha.wire.messages import Beat, PeerRole

if TYPE_CHECKING:
    from virtha.sim.gateway import SimGateway
    from virtha.sim.world import World

HOST_CPUS = 8
AGENT_SAYS_AGAIN_MS = 1_000
"""Until what could not be carried is said once more."""

_PROCESSES = {PeerRole.AGENT: ProcessKind.AGENT, PeerRole.GUARDIAN: ProcessKind.GUARDIAN}


class Failover:
    def __init__(self, world: "World", gateway: "SimGateway", kernel: Actor) -> None:
        self._world = world
        self._gateway = gateway
        self._server = world.server
        self._configured: dict[VmId, EngineVm] = {}
        records = self._server.table.records(self._server.term)
        self._hold = records.cluster.hold
        """As the engine knows it."""
        self._policy = self._server.policy
        self._surveys: dict[str, HostSurveyed] = {}
        self._begun: dict[str, Answered] = {}
        self._offered: dict[str, int] = dict(self._server.acknowledged)
        """The last fact of each host that the engine was given."""
        self._cancels = self._ends = 0
        self._moves = MoveOrders(self._server, gateway, tell=lambda event: self.leader.offer(event))
        self._witnesses = Witnesses(world)
        self._untold = _untold_tests(world, records.hosts)
        self._lead = self._server.lead
        self.began_ms = world.kernel.now
        engine = Engine(
            policy=self._policy,
            records=records,
            now=cluster_time(kernel.now),
        )
        self.leader = Leader(
            kernel,
            engine,
            self._lead.term,
            hosts=lambda: len(world.hosts),
            stall_ms=lambda: self._server.policy.detection.stall_ms,
            write=self._write,
            carry_out=self._carry_out,
            trace=world.trace,
        )
        self.lease: SimLeaseDesk | None = None
        if world.slots:
            self.keep_leases()
        self.leader.on_point = lambda point, commands: world.on_leader_point(point, commands)

    @property
    def engine(self) -> Engine:
        return self.leader.engine

    @property
    def _leads(self) -> bool:
        return self._lead == self._server.lead

    def begin(self) -> None:
        for host in self._world.hosts.values():
            self.host_known(host)
        self.settings_changed()
        # What the orders of a former leader's time made possible, and no turn of it has written.
        self.leader.offer(*self._server.table.granted)
        self.leader.begin()

    def keep_leases(self) -> None:
        """This world has slots, which somebody has to read."""
        self.lease = SimLeaseDesk(self._world, self._gateway, self.leader)
        self.lease.begin()

    # What operators configure

    def host_known(self, host: SimHost) -> None:
        number = list(self._world.hosts).index(host.name) + 1
        config = EngineHost(
            host_id=HostId(host.name),
            name=host.name,
            number=number,
            memory_bytes=host.memory_bytes,
            cpus=HOST_CPUS,
            power=self._world.power.levels.get(host.name, ()),
            untold=self._server.untold(host.name),
            timeline=str(self._server.timeline),
        )
        self.leader.offer(HostConfigured(host=config))

    def settings_changed(self) -> None:
        """VMs, hold or policy."""
        events: list[EngineEvent] = []
        if self._server.policy != self._policy:
            self._policy = self._server.policy
            events.append(PolicyChanged(policy=self._policy))
        if self._server.hold != self._hold:
            self._hold = self._server.hold
            events.append(HoldChanged(reason=self._hold))
        for known in self._server.vms.values():
            config = _engine_vm(known, self._world.storage.domain_of(known.vm.id))
            if self._configured.get(config.vm_id) != config:
                self._configured[config.vm_id] = config
                events.append(VmConfigured(vm=config))
        if events:
            self.leader.offer(*events)

    def granted(self, granted: CopyGranted) -> None:
        """By an operator's order."""
        self.leader.offer(granted)

    # What the gateway sees

    def beat(self, host_id: HostId, beat: Beat) -> None:
        if self.lease is not None:
            self.lease.beat(host_id, beat)
        self.leader.offer(BeatSeen(host_id=host_id, boot=beat.boot, agent_alive=beat.agent_alive))
        self._world.power.beat_came(host_id, beat.boot)
        untold = self._untold.pop(host_id, ())
        if untold:
            self.leader.offer(*(one for one in untold if one.boot == beat.boot))

    def session(
        self, host: str, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None:
        host_id = HostId(host)
        self.leader.offer(
            SessionChanged(
                host_id=host_id, process=_PROCESSES[role], boot=boot, up=up, broken=broken
            )
        )
        sim_host = self._world.hosts[host]
        if up and role is PeerRole.AGENT:
            self.leader.offer(LibvirtAnswered(host_id=host_id, answering=sim_host.libvirt_up))
            self._test_power(sim_host, boot)
            self.storage_noticed(host)

    def _test_power(self, host: SimHost, boot: BootId) -> None:
        """Once, as the operator's set-up did it: read on while its beats come."""
        tests = self._world.power_tests
        if host.name in tests:
            return
        tested = [one for one in self._world.power.of(host.name) if not one.set_up_untested]
        for device in tested:
            device.tested = device.state() is PowerState.ON and device.answers
        tests[host.name] = tuple(
            PowerTested(
                host_id=HostId(host.name),
                boot=boot,
                device=device.name,
                passed=device.tested,
                identity=device.identity,
            )
            for device in tested
        )
        self.leader.offer(*tests[host.name])

    def fact(self, host: str, fact: Fact, *, made_after: bool) -> None:
        """Each new one, once it is recorded; also those that were recorded and not written by the leader before."""
        host_id = HostId(host)
        if fact.sequence <= self._offered.get(host, 0):
            return  # sent again over a new session while a turn still has it
        self._offered[host] = fact.sequence
        carried_by = self._gateway.agent_boot(host)
        match fact.body:
            case Inventory() as inventory:
                if made_after:
                    self._survey(host, fact.boot, inventory)
            case Outcome() as outcome:
                self._outcome(outcome)
                self._moves.ended(outcome)
            case _:
                event = event_of(host_id, fact, carried_by=carried_by)
                if event is not None:
                    self.leader.offer(event)

    def took(self, host: str, sequence: int) -> None:
        """That host's facts up to this one were given: it may forget them once what follows is written."""
        self.leader.took(HostId(host), sequence)

    def _survey(self, host: str, boot: BootId, inventory: Inventory) -> None:
        survey = HostSurveyed(
            host_id=HostId(host),
            boot=boot,
            gate_in_force=True,
            libvirt_connected=self._world.hosts[host].libvirt_up,
            storage_domains=self._domains(host),
            active=active_vms(inventory, self._server.vms),
            ceph=self._sights(host),
        )
        # As the server's: what is said again later names no copies.
        self._surveys[host] = replace(survey, active=frozenset())
        self.leader.offer(survey)

    def _domains(self, host: str) -> frozenset[StorageDomainId]:
        storage = self._world.storage
        return frozenset(one for one in self._world.domains if storage.reaches(host, one))

    def _sights(self, host: str) -> dict[StorageDomainId, CephSight]:
        ceph = self._world.ceph
        return {} if ceph is None else ceph.sights(self._world.hosts[host])

    def storage_noticed(self, host: str) -> None:
        """Its agent says which domains it can use now: with its next session, if it has none."""
        before = self._surveys.get(host)
        if before is None or not self._gateway.agent_connected(host):
            return
        survey = replace(
            before, storage_domains=self._domains(host), ceph=self._sights(host) or before.ceph
        )
        if survey == before or self._world.hosts[host].boot != survey.boot:
            return
        if self._agent_says(host, survey):
            self._surveys[host] = survey
        else:
            self._world.kernel.after(AGENT_SAYS_AGAIN_MS, partial(self.storage_noticed, host))

    def libvirt_noticed(self, host: str) -> None:
        """The agent of a session that begins says it there."""
        answering = self._world.hosts[host].libvirt_up
        event = LibvirtAnswered(host_id=HostId(host), answering=answering)
        if self._gateway.agent_connected(host) and not self._agent_says(host, event):
            self._world.kernel.after(AGENT_SAYS_AGAIN_MS, partial(self.libvirt_noticed, host))

    def _agent_says(self, host: str, event: EngineEvent) -> bool:
        """Over its session. False if its agent hangs or nothing is carried now: it tries again, as its link does."""
        agent = self._world.hosts[host].agent
        link = self._world.network.link(host, SERVER)
        if agent is None or agent.kernel.frozen or not link.carries:
            return False
        link.carry(lambda: self._hear(event))
        return True

    def _outcome(self, outcome: Outcome) -> None:
        begun = self._begun.get(outcome.operation_id)
        if begun is not None:
            self.leader.offer(ended(begun, outcome))

    # The records

    def _write(
        self,
        _term: Term,
        intents: Sequence[Intent],
        notices: Sequence[Notice],
        receipts: Mapping[HostId, int],
    ) -> bool | None:
        server = self._server
        if not self._world.database_up:
            return None
        if not self._leads:
            return False
        # A renewal of the lease may come in mid-turn, and writes nothing of it.
        told = self.leader.told if intents or notices else ()
        server.table.write(intents, told=told, on_vm=server.mirror)
        for notice in notices:
            self._say(notice)
        for host_id, sequence in receipts.items():
            server.acknowledged[host_id] = max(sequence, server.acknowledged.get(host_id, 0))
            self._gateway.acknowledge(host_id)
        self._world.on_written(self._lead, intents)
        self._gateway.carry_out()
        return True

    def _say(self, notice: Notice) -> None:
        subject = "cluster"
        if notice.vm_id is not None:
            subject = self._server.vms[notice.vm_id].vm.name
        elif notice.host_id is not None:
            subject = str(notice.host_id)
        fields = {
            name: value
            for name, value in notice.fields.items()
            if not (name in ("host", "vm") and value == subject)
        }
        self._server.say(notice.code, subject, by_engine=True, **fields)

    # Its hands

    def _carry_out(self, command: Command) -> None:
        world = self._world
        world.on_engine_command(self._lead, command)
        match command:
            case Investigate():
                self._witnesses.ask(command, self._gateway.connected, self._hear)
            case ReadPower(order_id=order_id, host_id=host_id, device=device):
                world.power.read(
                    device,
                    command.deadline_ms,
                    lambda state, identity: self._hear(
                        PowerRead(
                            order_id=order_id,
                            host_id=host_id,
                            device=device,
                            state=state,
                            identity=identity,
                        )
                    ),
                )
            case OrderPower():
                self._order_power(command)
            case StartCommand():
                self._start(command)
            case CancelStart():
                self._cancel(command)
            case EndCopy():
                self._end_superseded(command)
            case EndPaused():
                self._end_paused(command)
            case MigrateCommand() | SettleMigration() if not self._leads:
                world.trace(f"agents refuse term {self.leader.term}: {command.order_id}")
            case MigrateCommand():
                self._moves.begin(command)
            case SettleMigration():
                self._moves.settle(command)
            case StorageFence():
                self._ask_helper(command, shut_out_order(command))
            case StorageLetIn():
                self._ask_helper(command, let_in_order(command))
            case Poison() if self.lease is not None:
                self.lease.poison(command)
            case GiveWaiver() | EndWaiver() if self.lease is not None:
                self.lease.carry_out(command)
            case Poison(host_id=host_id) | GiveWaiver(host_id=host_id) | EndWaiver(host_id=host_id):
                world.trace(f"nobody answers: {type(command).__name__} of {host_id}")

    def _hear(self, event: EngineEvent) -> None:
        """An answer that a driver or a session brought: a process that sleeps reads it when it wakes."""
        self.leader.kernel.deliver(lambda: self.leader.offer(event))

    def _order_power(self, command: OrderPower) -> None:
        def ended(result: Result, error: str | None) -> None:
            self._hear(
                PowerOrdered(
                    order_id=command.order_id,
                    host_id=command.host_id,
                    device=command.device,
                    result=result,
                    error=error,
                )
            )

        world = self._world
        if is_too_late(command, cluster_time(world.kernel.now)):
            world.trace(f"too late: order {command.action} to {command.device}")
            self._hear(not_carried_out(command))
            return
        world.trace(f"order {command.action} to {command.device}")
        world.power.order(command.device, command.action, command.deadline_ms, ended)

    def _start(self, command: StartCommand) -> None:
        """The start order that every other start is, with a grant that quotes a beat. Not while the server's
        own record names another holder (G1): a person may have ordered a start while this one was written, of
        which the next turn is told. A server looks in the transaction that makes the order."""
        if not self._leads:
            self._world.trace(f"agents refuse term {self.leader.term}: {command.order_id}")
            return
        self._begun[command.order_id] = command
        known, host = self._server.vms[command.vm_id], str(command.host_id)
        others = sorted(known.holders - {host})
        if others:
            self._world.trace(f"not sent, {', '.join(others)} may hold it: {command.order_id}")
            return
        grant = self._gateway.make_grant(host, command.vm_id, command.incarnation)
        if grant is not None and grant.boot != command.boot:
            grant = None
        granted = grant is not None
        if grant is None:
            # It goes out with the first beat that can be quoted, if the engine still wants it then.
            grant = spent_grant(command)
        order = self._server.order(
            host,
            StartVm(vm=known.vm, grant=grant, by=BY, ceph_epochs=ceph_epochs(command.proofs)),
            operation_id=OperationId(command.order_id),
        )
        if granted:
            self._gateway.deliver(order)

    def _cancel(self, command: CancelStart) -> None:
        """The same start with a grant that is spent: whoever has not begun releases it, and whoever has
        made it says so."""
        server, prefix = self._server, f"{command.order_id}.cancel"
        if not self._leads:
            return
        for operation_id in list(server.pending):
            if operation_id == OperationId(command.order_id) or operation_id.startswith(prefix):
                del server.pending[operation_id]
        self._cancels += 1
        body = StartVm(vm=server.vms[command.vm_id].vm, grant=spent_grant(command), by=BY)
        order = server.order(
            str(command.host_id), body, operation_id=OperationId(f"{prefix}{self._cancels}")
        )
        if self._gateway.agent_connected(order.host):
            self._gateway.deliver(order)
        del server.pending[order.operation_id]

    def _end_superseded(self, command: EndCopy) -> None:
        """To that boot, over the session that there is."""
        server, host = self._server, str(command.host_id)
        if not self._leads or server.boots.get(host) != command.boot:
            return
        self._ends += 1
        operation_id = OperationId(f"{command.order_id}.end{self._ends}")
        order = server.order(host, end_order(command), operation_id=operation_id)
        if self._gateway.agent_connected(host):
            self._gateway.deliver(order)
        del server.pending[operation_id]

    def _ask_helper(
        self, command: StorageFence | StorageLetIn, body: ShutOutHost | LetInHost
    ) -> None:
        """Once, over the session that there is, to that boot of it."""
        server, helper = self._server, str(command.helper)
        if not self._leads or server.boots.get(helper) != command.helper_boot:
            return
        operation_id = OperationId(command.order_id)
        self._begun[operation_id] = command
        order = server.order(helper, body, operation_id=operation_id)
        if self._gateway.agent_connected(helper):
            self._gateway.deliver(order)
        del server.pending[operation_id]

    def _end_paused(self, command: EndPaused) -> None:
        """Once, over the session that there is; not while the server's own record names another holder."""
        server, host = self._server, str(command.host_id)
        if not self._leads or server.vms[command.vm_id].holders != {host}:
            return
        self._ends += 1
        operation_id = OperationId(f"{command.order_id}.end{self._ends}")
        self._begun[operation_id] = command
        body = EndPausedVm(vm_id=command.vm_id, incarnation=command.incarnation, by=BY)
        order = server.order(host, body, operation_id=operation_id)
        if self._gateway.agent_connected(host):
            self._gateway.deliver(order)
        del server.pending[order.operation_id]


def _untold_tests(
    world: "World", records: Sequence[HostRecord]
) -> dict[HostId, tuple[PowerTested, ...]]:
    """What no turn of a former leader has written: offered with the first beat, as the server does."""
    known = {record.host_id: record for record in records}
    found: dict[HostId, tuple[PowerTested, ...]] = {}
    for name, tests in world.power_tests.items():
        record = known.get(HostId(name), HostRecord(host_id=HostId(name)))
        since = (*record.foreign_devices, *record.disproved_devices)
        spoken_of = {*record.tested_devices, *since}
        news = tuple(one for one in tests if one.passed and one.device not in spoken_of)
        if news:
            found[HostId(name)] = news
    return found


def _engine_vm(known: ServerVm, domain: StorageDomainId) -> EngineVm:
    return EngineVm(
        vm_id=known.vm.id,
        name=known.vm.name,
        memory_bytes=known.vm.memory_bytes,
        ha=known.vm.ha and known.managed,
        wanted_up=known.wanted_up,
        kill_on_io_error=known.vm.on_io_error is OnIoError.KILL,
        priority=known.placing.priority,
        features=frozenset({Feature(FeatureKind.STORAGE, domain)}),
        groups=known.placing.groups,
        depends_on=known.placing.depends_on,
        grade=known.vm.grade_max,
    )
