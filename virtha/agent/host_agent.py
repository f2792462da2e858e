"""The agent of one host: wires sentinel, libvirt, orders, settings, grants, reports, outbox and link."""

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Protocol

import msgspec
import structlog

from virtha.agent import host_shutdown, roll_call
from virtha.agent.channel_desk import ChannelDesk, Dial
from virtha.agent.commands import CommandRunner, Starter, VmLocks
from virtha.agent.disk_looks import DiskLooks
from virtha.agent.disk_proof import DiskProver
from virtha.agent.dumps import DumpFinder, dump_directory
from virtha.agent.evidence import EvidenceKeeper
from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.files import Files
from virtha.agent.freezer import GuestFreezer
from virtha.agent.gate import PROOF_VM_ID, GateRecords
from virtha.agent.gate_proof import GateProver
from virtha.agent.gate_refusals import RefusalSpool, RefusalTeller
from virtha.agent.grant_keeper import GrantKeeper
from virtha.agent.guardian_channel import GuardianClient, Pulse, ReportFiles
from virtha.agent.guardian_lease import KILLED
from virtha.agent.host_context import HostContext, StopWaiters
from virtha.agent.identity import Identity
from virtha.agent.journal import Journal
from virtha.agent.lease_files import LEASE_LOST
from virtha.agent.libvirt_pulse import LibvirtPulse
from virtha.agent.loop import AgentLoop
from virtha.agent.neighbour_probes import NeighbourProbes, own_addresses
from virtha.agent.order_desk import OrderDesk
from virtha.agent.outbox import Outbox
from virtha.agent.paths import AgentPaths
from virtha.agent.power_attempts import PowerAttempts
from virtha.agent.process_table import OpenFiles, QemuWatch, open_files, qemu_processes
from virtha.agent.properties import AgentProperties
from virtha.agent.records import (
    OutcomeMemory,
    RecordStore,
    SettingsStore,
    sentinel_records,
)
from virtha.agent.reports import HostReporter, InventoryReporter, StorageReporter
from virtha.agent.running import RunningTeller
from virtha.agent.settings_keeper import SettingsKeeper
from virtha.agent.storage import StorageWorkers
from virtha.drivers.link import HelloState, HostCredentials, HostLink
from virtha.drivers.service_notify import notify
from virtha.model.domain import DomainEvent, DomainEventKind, DomainReport
from virtha.model.facts import Happened
from virtha.model.ids import BootId, Term, VmId
from virtha.model.orders import HostSettings, MoveDestination, Order
from virtha.model.policy import PermissionGrade
from virtha.ports.clock import Clock
from virtha.ports.hypervisor import (
    DomainCatalog,
    DomainControl,
    DomainDevices,
    DomainDisks,
    DomainEvidence,
    DomainMoves,
    DomainSecrets,
    DomainWatch,
    GuestAgent,
    HostFacts,
)
from virtha.ports.power import PowerDevices
from virtha.sentinel.events import (
    HostShuttingDown,
    HostStaysUp,
    KilledForLease,
    LibvirtLost,
    ListDomains,
    ReportAgain,
    SentinelRecords,
)
from virtha.sentinel.guardian import QemuProcess
from virtha.sentinel.machine import UP_STATES
from virtha.sentinel.objections import objection_of_settings
from virtha.sentinel.sentinel import Sentinel
from virtha.wire.messages import OpenChannel, Welcome
from virtha.wire.power_messages import PowerAttempted, PowerWord
from virtha.wire.witness_messages import LookAtDisks, ProbeHost, WitnessAnswer, WitnessOrder

TICK_S = 0.5
GOODBYE_S = 2.0

_log = structlog.get_logger(__name__)


class Hypervisor(
    DomainControl,
    DomainDevices,
    DomainDisks,
    DomainCatalog,
    DomainWatch,
    DomainEvidence,
    HostFacts,
    Protocol,
):
    """All that the agent needs of libvirt; ``LibvirtHost`` in production."""


class Agent:
    """One per process. ``run`` ends when ``stop`` was called, or with the error of a part."""

    def __init__(
        self,
        *,
        paths: AgentPaths,
        identity: Identity,
        properties: AgentProperties,
        boot: BootId,
        hypervisor: Hypervisor,
        guest: GuestAgent,
        clock: Clock,
        files: Files,
        moves: DomainMoves,
        secrets: DomainSecrets | None = None,
        destination: MoveDestination | None = None,
        qemus: Callable[[], tuple[QemuProcess, ...]] = qemu_processes,
        qemu_files: Callable[[QemuProcess, Collection[str]], OpenFiles | None] = open_files,
        credentials: HostCredentials | None = None,
        power_devices: PowerDevices | None = None,
    ) -> None:
        """``destination``: where this host lets moved VMs in; None: not set up. ``qemus``, ``qemu_files``: the kernel's by
        default; simulated ones are not among those. ``credentials``: None: it probes no neighbours. ``power_devices``: None: it asks
        none of theirs."""
        paths.make_directories()
        self._paths = paths
        self._hypervisor = hypervisor
        self._stopping = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._files = files
        self.boot = boot
        self.disk = DiskThread()
        self.outbox = Outbox(
            paths.outbox,
            boot=boot,
            clock=clock,
            files=files,
            host_name=identity.name,
            awaits_hello=True,
        )
        self.outbox.open()
        settings_store = SettingsStore(paths.settings, files)
        self._record_store = RecordStore(paths.records, files)
        settings = settings_store.load()
        outcomes = OutcomeMemory(paths.outcomes, files)
        outcomes.open()
        facts = FactSink(self.outbox, self.disk, host_name=identity.name)
        gate = GateRecords(paths, files, boot=boot)
        locks = VmLocks()
        evidence = EvidenceKeeper(paths, hypervisor)
        self._processes = QemuWatch(qemus, qemu_files)
        self._runner = CommandRunner(
            control=hypervisor,
            catalog=hypervisor,
            guest=guest,
            gate=gate,
            evidence=evidence,
            dumps=DumpFinder(dump_directory(), clock),
            facts=facts,
            clock=clock,
            locks=locks,
            processes=self._processes,
            spawn=self.spawn,
            disk_check=properties.diskactivity_check,
        )
        records = sentinel_records(self._record_store, settings, self.outbox.told())
        self._hold_at_start, self._policy_at_start = records.hold, records.policy
        self.loop = self._make_loop(records, properties, clock, facts, gate, identity)
        self._runner.connect(
            self.loop.tell, self.loop.record, self._host_objection, self._lease_objection
        )
        self._runner.on_listed = self._on_listed
        self.host = HostContext(
            host_id=identity.host_id,
            host_name=identity.name,
            host_number=identity.number,
            boot=boot,
            installation_id=identity.installation_id,
            paths=paths,
            files=files,
            clock=clock,
            disk=self.disk,
            facts=facts,
            gate=gate,
            outcomes=outcomes,
            locks=locks,
            stops=StopWaiters(),
            workers=StorageWorkers(),
            control=hypervisor,
            catalog=hypervisor,
            devices=hypervisor,
            disks=hypervisor,
            moves=moves,
            processes=self._processes,
            secrets=secrets,
            destination=destination,
            starter=Starter(hypervisor, hypervisor, gate, lease_objection=self._lease_objection),
            evidence=evidence,
            freezer=GuestFreezer(
                directory=paths.frozen,
                boot=boot,
                files=files,
                disk=self.disk,
                guest=guest,
                catalog=hypervisor,
                facts=facts,
                spawn=self.spawn,
                name_of=self._name_of,
            ),
            loop=self.loop,
            spawn=self.spawn,
            properties=properties,
            settings=settings,
        )
        self.host.settled.set()
        self._server_instance = ""
        self.desk = OrderDesk(
            self.host, term_seen=settings.term if settings is not None else Term(0)
        )
        self._runner.on_abort = self.desk.moves.abort_soon
        self._runner.disk_objection = DiskProver(self.host).objection
        self._inventory = InventoryReporter(
            paths.state / "inventory_revision",
            roll_call.RollCall(hypervisor, self._processes),
            facts,
            files,
        )
        self._running = RunningTeller(self.host)
        self.host.on_plugged = self._running.changed
        self._reporter = HostReporter(
            self.host,
            hypervisor,
            GateProver(hypervisor, hypervisor, paths),
            lambda: own_addresses(properties, self._local_address),
        )
        self._libvirt_pulse = LibvirtPulse(self.host, hypervisor, self._reporter.libvirt_hangs)
        self._storage = StorageReporter(self.host)
        self.host.on_prepared = self._storage.changed
        self._grants = GrantKeeper(self.host)
        self._settings = SettingsKeeper(
            self.host,
            settings_store,
            self.desk,
            self._grants,
            on_applied=self._storage.changed,
        )
        self.host.on_given_back = self._settings.given_back
        self._refusals = RefusalTeller(
            RefusalSpool(paths.refusals),
            facts=facts,
            disk=self.disk,
            clock=clock,
            is_managed=self.host.is_managed,
        )
        self._reports = ReportFiles(paths.guardian_kills, files)
        self._guardian = GuardianClient(
            paths.guardian_socket, pulse=self._pulse, on_reports=self._collect_reports_soon
        )
        self._channels = ChannelDesk(
            paths, hypervisor, spawn=self.spawn, is_managed=self.host.is_managed
        )
        self._probes: NeighbourProbes | None = None
        if credentials is not None:
            self._probes = NeighbourProbes(credentials, self._tell_witness)
        self._looks = DiskLooks(
            self.host.storage_domains, spawn=self.spawn, tell=self._tell_witness
        )
        self._power: PowerAttempts | None = None
        if power_devices is not None:
            self._power = PowerAttempts(
                host_id=identity.host_id,
                boot=boot,
                drivers=properties.power_attempts.drivers,
                devices=power_devices,
                clock=clock,
                term_seen=lambda: self.desk.term_seen,
                spawn=self.spawn,
                tell=self._tell_power,
            )
        self._local_address: str | None = None
        """Of the last session."""
        self._dial: Dial | None = None
        self._link: HostLink | None = None
        self._link_task: asyncio.Task[None] | None = None

    def _make_loop(
        self,
        records: SentinelRecords,
        properties: AgentProperties,
        clock: Clock,
        facts: FactSink,
        gate: GateRecords,
        identity: Identity,
    ) -> AgentLoop:
        now = clock.monotonic_ms()
        sentinel = Sentinel(
            boot=self.boot, records=records, now=now, default_watchdog=properties.watchdog
        )
        journal = Journal(self._paths.journal, boot=self.boot)
        journal.begin(now, records, from_start=True)
        return AgentLoop(
            sentinel,
            clock=clock,
            disk=self.disk,
            records=self._record_store,
            journal=journal,
            facts=facts,
            execute=self._runner.execute,
            revoke=lambda released: gate.released(released.vm_id, released.incarnation),
            may_run=self._processes.may_run,
            policy=self._policy,
            host_name=identity.name,
        )

    def use(self, credentials: HostCredentials) -> None:
        """This host's, renewed."""
        if self._probes is not None:
            self._probes.use(credentials)

    def connect(self, link: HostLink, dial: Dial | None = None) -> None:
        """``dial``: opens channels to the server of the present session; None: there are none."""
        self._link = link
        self._dial = dial
        self.host.facts.on_written(link.facts_written)

    @property
    def guardian(self) -> GuardianClient:
        return self._guardian

    # Running

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A named task; an error that it does not handle itself ends the agent."""
        assert self._group is not None, "the agent is not running"
        return self._group.create_task(work, name=name)

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._begin()
                await self._stopping.wait()
                notify("STOPPING=1")
                await self._say_goodbye()
                raise _Stop
        except* _Stop:
            _log.info("stopped; no VM was touched")
        finally:
            if self._probes is not None:
                self._probes.stop()
            await self._hypervisor.close()
            self._processes.close()
            self.disk.close()
            self.outbox.close()

    async def _begin(self) -> None:
        host = self.host
        await self.loop.turn()  # opens the records: the gate's need them
        if host.settings is not None:
            self._settings.write_gate(host.settings)
        await self._check_shutdown()
        self._hypervisor.subscribe(self._on_domain_event, self._on_connection)
        self.spawn("sentinel", self.loop.run())
        self.spawn("settings", self._settings.run())
        self.spawn("refusals of the gate", self._refusals.run())
        self.spawn("inventory", self._inventory.run())
        self.spawn("running hardware", self._running.run())
        self.spawn("host report", self._reporter.run())
        self.spawn("libvirt's pulse", self._libvirt_pulse.run())
        self.spawn("storage reports", self._storage.run())
        self.spawn("storage leases", self._storage.watch_leases())
        self.spawn("guardian channel", self._guardian.run())
        self.spawn("tick", self._tick())
        self.spawn("roll call", self._call_roll())
        if self._link is not None:
            self._link_task = self.spawn("link", self._link.run())
        self.loop.on_ready = self._on_ready
        # What was killed meanwhile is known before libvirt's list tells that it is gone.
        await self._collect_reports()
        await self._hypervisor.start()
        host.freezer.go_on()
        notify("READY=1")

    async def _say_goodbye(self) -> None:
        """The server learns at once that this agent stops, instead of from its silence."""
        if self._link is not None and self._link_task is not None:
            self._link.close()
            await asyncio.wait([self._link_task], timeout=GOODBYE_S)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._check_shutdown()
            if self._runner.connected and not self.host.gate.complete:
                # Somebody removed the grants' directory. The list tells whose grants to write again.
                self._runner.execute(ListDomains())
            await self.host.facts.retry()

    async def _call_roll(self) -> None:
        """libvirt does not tell every end (``roll_call``)."""
        told: frozenset[VmId] = frozenset()
        while True:
            await asyncio.sleep(roll_call.ROLL_CALL_S)
            up = {
                record.vm.id
                for record in self.loop.records()
                if record.state in UP_STATES and record.boot == self.boot
            }
            gone = await self._processes.missing(up | self._inventory.active)
            if gone - told:
                _log.warning("said to run here, and have no QEMU", vms=sorted(gone))
            told = gone
            if gone and self._runner.connected:
                self._runner.execute(ListDomains())

    async def _check_shutdown(self) -> None:
        marked = host_shutdown.is_marked(self._paths, self.boot)
        if marked and not self.host.shutting_down:
            _log.warning("this host is shutting down: nothing is started any more")
            self.loop.tell(HostShuttingDown())
        elif self.host.shutting_down and not marked:
            _log.warning("this host's shutdown was called off")
            self.loop.tell(HostStaysUp())
        self.host.shutting_down = marked

    def _host_objection(self) -> str | None:
        """Against a restart, asked again right before its processors run (G5)."""
        if self.host.shutting_down or host_shutdown.is_marked(self._paths, self.boot):
            return "this host is shutting down"
        settings = self.host.settings
        hold = self._hold_at_start if settings is None else settings.hold
        policy = self._policy_at_start if settings is None else settings.policy
        return objection_of_settings(hold, policy, PermissionGrade.RESTART)

    def _lease_objection(self, vm_id: VmId) -> str | None:
        return None if self.host.lease_allows(vm_id) else LEASE_LOST

    def _policy(self) -> SentinelRecords:
        """Without VMs: the journal adds those that the loop has."""
        settings = self.host.settings
        if settings is None:
            return SentinelRecords(hold=self._hold_at_start)
        return SentinelRecords(policy=settings.policy, hold=settings.hold)

    # libvirt

    def _on_ready(self) -> None:
        """A libvirt that is connected but lists nothing protects no VM, and the server must know."""
        self._reporter.ready = self.loop.ready
        self._reporter.changed()

    def _on_connection(self, connected: bool) -> None:
        self._runner.connected = self._reporter.connected = connected
        if connected:
            self._runner.execute(ListDomains())
        else:
            self.loop.tell(LibvirtLost())
        self._reporter.changed()

    def _on_domain_event(self, event: DomainEvent) -> None:
        if event.vm_id == PROOF_VM_ID:
            return
        if _is_end(event) and not self.host.lease_allows(event.vm_id):
            # The guardian's report of its kill may come after libvirt's word. Whatever ended it, it may not run here.
            self.loop.tell(KilledForLease(vm_id=event.vm_id))
        self.loop.tell(event)
        self._inventory.changed()
        if event.kind is DomainEventKind.STARTED:
            self._running.changed(event.vm_id)
        if event.kind is DomainEventKind.STOPPED:
            self.host.stops.stopped(event.vm_id)
            self._grants.stopped(event.vm_id)

    def _on_listed(self, domains: tuple[DomainReport, ...], counts: dict[VmId, int]) -> None:
        self._grants.listed(domains, counts)
        self._inventory.changed()
        self._running.all_changed()
        self.desk.moves.watch_open()
        # A copy that begins to run here makes the sentinel ask for a list: so this comes right after.
        for record in self.loop.records():
            self.desk.moves.looked_at(record.vm.id)

    # The server

    def on_connected(self, welcome: Welcome, address: str) -> None:
        _log.info("connected", server=address)
        self.outbox.align(welcome.fact_sequence_acknowledged)
        self.desk.term_seen = max(self.desk.term_seen, welcome.term)
        local = self._link.local_address if self._link is not None else None
        if local not in (None, self._local_address):
            self._local_address = local
            self.spawn("own addresses", self._reporter.addresses_changed())
        if welcome.server_instance != self._server_instance:
            # Its memory is new, perhaps a restored one: rule M2 waits for what runs here.
            self._server_instance = welcome.server_instance
            self._inventory.tell_again()
            self._running.tell_again()
            self.loop.tell(ReportAgain())

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        _log.info("no session", server=address, code=code, detail=message)
        if self._power is not None:
            self._power.session_lost()

    def on_settings(self, settings: HostSettings) -> None:
        self._settings.take(settings)

    def on_order(self, order: Order) -> None:
        self.desk.accept(order)

    def on_channel(self, request: OpenChannel) -> None:
        if self._dial is not None:
            self._channels.accept(request, self._dial)

    def on_witness(self, order: WitnessOrder) -> None:
        match order:
            case LookAtDisks():
                self._looks.ask(order)
            case ProbeHost():
                if self._probes is not None:
                    self._probes.ask(order)

    def _tell_witness(self, answer: WitnessAnswer) -> None:
        if self._link is not None:
            self._link.send_witness(answer)

    def on_power(self, word: PowerWord) -> None:
        if self._power is not None:
            self._power.take(word)

    def _tell_power(self, answer: PowerAttempted) -> None:
        if self._link is not None:
            self._link.send_power(answer)

    def on_facts_acknowledged(self, sequence: int) -> None:
        self.outbox.on_facts_acknowledged(sequence)

    def on_beat_acknowledged(self, sequence: int) -> None:
        """Agents send no beats."""

    def hello_state(self) -> HelloState:
        settings = self.host.settings
        return HelloState(
            term_seen=self.desk.term_seen,
            settings_revision=settings.revision if settings is not None else 0,
        )

    # The guardian

    def _pulse(self) -> Pulse:
        instance = self._link.server_instance if self._link is not None else None
        return Pulse(inventory_revision=self._inventory.revision, server_instance=instance)

    def _collect_reports_soon(self) -> None:
        self.spawn("guardian's reports", self._collect_reports())

    async def _collect_reports(self) -> None:
        found = await self.disk(self._reports.read)
        if not found:
            return
        for _, event in found:
            if event.code == KILLED and event.vm_id is not None:
                self.loop.tell(KilledForLease(vm_id=event.vm_id))
        facts = [self._named(event) for _, event in found]
        if await self.host.facts.emit(facts):
            await self.disk(self._reports.done, [path for path, _ in found])

    def _name_of(self, vm_id: VmId) -> str:
        record = self.loop.record(vm_id)
        return record.vm.name if record is not None else vm_id

    def _named(self, event: Happened) -> Happened:
        """The guardian knows ids; people know names."""
        record = self.loop.record(event.vm_id) if event.vm_id is not None else None
        fields = {**event.fields, "name": self.host.host_name, "host": self.host.host_name}
        if record is not None:
            fields["vm"] = record.vm.name
        return msgspec.structs.replace(event, fields=fields)


class _Stop(Exception):
    pass


def _is_end(event: DomainEvent) -> bool:
    """Of a QEMU that nobody asked to end."""
    return event.kind is DomainEventKind.STOPPED and event.detail in ("failed", "crashed")
