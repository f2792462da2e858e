"""The agent: wires sentinel, libvirt, orders, reports, outbox and link into one process.

Stopping it, also with kill -9, touches no VM: QEMUs are libvirt's children, grants stay on their
tmpfs, and whoever starts next reads records, settings and outbox from disk.
"""

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec
import structlog

from virtha import __version__
from virtha.agent import host_shutdown
from virtha.agent.commands import CommandRunner, Starter, VmLocks, is_gone
from virtha.agent.evidence import EvidenceKeeper
from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.files import Files
from virtha.agent.gate import PROOF_VM_ID, GateRecords, GrantState
from virtha.agent.gate_proof import GateProver
from virtha.agent.guardian_channel import GuardianClient, Pulse, ReportFiles
from virtha.agent.host_clock import BoottimeClock, read_boot_id
from virtha.agent.host_context import HostContext, StopWaiters
from virtha.agent.identity import Identity, load_credentials, load_identity
from virtha.agent.journal import Journal
from virtha.agent.loop import AgentLoop
from virtha.agent.order_desk import OrderDesk
from virtha.agent.outbox import Outbox
from virtha.agent.paths import AgentPaths
from virtha.agent.process_table import QemuWatch, qemu_processes
from virtha.agent.properties import AgentProperties, load_properties, read_properties
from virtha.agent.records import (
    OutcomeMemory,
    RecordStore,
    SettingsStore,
    sentinel_records,
)
from virtha.agent.reports import HostReporter, InventoryReporter, StorageReporter
from virtha.agent.service_notify import notify
from virtha.agent.storage import StorageWorkers
from virtha.drivers.guest_agent import LibvirtGuestAgent
from virtha.drivers.libvirt_driver import LibvirtHost
from virtha.drivers.link import HelloState, HostLink
from virtha.model.domain import DomainEvent, DomainEventKind, DomainReport
from virtha.model.errors import Failed
from virtha.model.facts import Happened
from virtha.model.ids import BootId, Term, VmId
from virtha.model.orders import HostSettings, Order
from virtha.model.vm import VmState
from virtha.ports.clock import Clock
from virtha.ports.hypervisor import (
    DomainCatalog,
    DomainControl,
    DomainEvidence,
    DomainWatch,
    GuestAgent,
    HostFacts,
    HypervisorError,
)
from virtha.sentinel.events import (
    Configured,
    HostShuttingDown,
    HostStaysUp,
    LibvirtLost,
    ListDomains,
    ReportAgain,
    SentinelRecords,
)
from virtha.sentinel.guardian import QemuProcess
from virtha.sentinel.sentinel import Sentinel
from virtha.wire.messages import PeerRole, Welcome

TICK_S = 0.5
GOODBYE_S = 2.0
GRANT_SETTLE_S = 2.0
"""A stopped VM's grant goes a little later: a restart must not wait behind the question whether it
may. Until then it starts nothing, for it is held."""

_log = structlog.get_logger(__name__)


def _is_older(settings: HostSettings, present: HostSettings) -> bool:
    """By term first: a database restored from a backup counts its revisions from there again."""
    return (settings.term, settings.revision) < (present.term, present.revision)


class Hypervisor(DomainControl, DomainCatalog, DomainWatch, DomainEvidence, HostFacts, Protocol):
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
        qemus: Callable[[], tuple[QemuProcess, ...]] = qemu_processes,
    ) -> None:
        """``qemus``: the kernel's by default; simulated ones are not among those."""
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
        self._settings_store = SettingsStore(paths.settings, files)
        self._record_store = RecordStore(paths.records, files)
        settings = self._settings_store.load()
        outcomes = OutcomeMemory(paths.outcomes, files)
        outcomes.open()
        facts = FactSink(self.outbox, self.disk, host_name=identity.name)
        gate = GateRecords(paths, files, boot=boot)
        locks = VmLocks()
        evidence = EvidenceKeeper(paths, hypervisor)
        self._processes = QemuWatch(qemus)
        self._runner = CommandRunner(
            control=hypervisor,
            catalog=hypervisor,
            guest=guest,
            gate=gate,
            evidence=evidence,
            facts=facts,
            clock=clock,
            locks=locks,
            processes=self._processes,
            spawn=self.spawn,
            disk_check=properties.diskactivity_check,
        )
        records = sentinel_records(self._record_store, settings, self.outbox.told())
        self._hold_at_start = records.hold
        self.loop = self._make_loop(records, properties, clock, facts, gate, identity)
        self._runner.connect(self.loop.tell, self.loop.record, self._host_objection)
        self._runner.on_listed = self._on_listed
        self.host = HostContext(
            host_id=identity.host_id,
            host_name=identity.name,
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
            starter=Starter(hypervisor, hypervisor, gate),
            evidence=evidence,
            loop=self.loop,
            spawn=self.spawn,
            properties=properties,
            settings=settings,
        )
        self.host.settled.set()
        self._server_instance = ""
        self._settings_waiting: HostSettings | None = None
        self._settings_come = asyncio.Event()
        self._grants_settling: set[VmId] = set()
        self.desk = OrderDesk(
            self.host, term_seen=settings.term if settings is not None else Term(0)
        )
        self._inventory = InventoryReporter(
            paths.state / "inventory_revision", hypervisor, facts, files
        )
        self._reporter = HostReporter(
            self.host, hypervisor, GateProver(hypervisor, hypervisor, paths)
        )
        self._storage = StorageReporter(self.host)
        self.host.on_prepared = self._storage.changed
        self.host.on_given_back = self._given_back
        self._reports = ReportFiles(paths.guardian_kills, files)
        self._guardian = GuardianClient(
            paths.guardian_socket, pulse=self._pulse, on_reports=self._collect_reports_soon
        )
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

    def connect(self, link: HostLink) -> None:
        self._link = link
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
            await self._hypervisor.close()
            self._processes.close()
            self.disk.close()
            self.outbox.close()

    async def _begin(self) -> None:
        host = self.host
        await self.loop.turn()  # opens the records: the gate's need them
        if host.settings is not None:
            self._write_gate(host.settings)
        await self._check_shutdown()
        self._hypervisor.subscribe(self._on_domain_event, self._on_connection)
        self.spawn("sentinel", self.loop.run())
        self.spawn("settings", self._apply_settings())
        self.spawn("inventory", self._inventory.run())
        self.spawn("host report", self._reporter.run())
        self.spawn("storage reports", self._storage.run())
        self.spawn("guardian channel", self._guardian.run())
        self.spawn("tick", self._tick())
        if self._link is not None:
            self._link_task = self.spawn("link", self._link.run())
        self.loop.on_ready = self._on_ready
        await self._hypervisor.start()
        self._collect_reports_soon()
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
        return None if hold is None else f"automatic action is on hold: {hold}"

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
        self.loop.tell(event)
        self._inventory.changed()
        if event.kind is DomainEventKind.STOPPED:
            self.host.stops.stopped(event.vm_id)
            if event.vm_id not in self._grants_settling:
                self._grants_settling.add(event.vm_id)
                self.spawn(f"grant of {event.vm_id}", self._settle_grant(event.vm_id))

    async def _settle_grant(self, vm_id: VmId) -> None:
        """Take back the grant of a VM that has stopped, unless it runs again by then."""
        host = self.host
        try:
            await asyncio.sleep(GRANT_SETTLE_S)
            async with host.locks.of(vm_id):
                try:
                    gone = is_gone(await host.catalog.domain(vm_id))
                except HypervisorError:
                    return  # unknown: the next list settles it
                if gone and not host.locks.is_starting(vm_id):
                    host.gate.revoke(vm_id)
        finally:
            self._grants_settling.discard(vm_id)

    def _on_listed(self, domains: tuple[DomainReport, ...], counts: dict[VmId, int]) -> None:
        """Grants without a QEMU go. A list that is older than a start says nothing about it."""
        host = self.host
        alive = {domain.vm_id for domain in domains if not is_gone(domain)}
        if not host.gate.complete:
            self._restore_grants(alive)
        for vm_id, grant in host.gate.grants().items():
            untouched = host.locks.count(vm_id) == counts.get(vm_id, 0)
            idle = vm_id not in alive and untouched and not host.locks.is_starting(vm_id)
            late = grant.state is GrantState.GRANTED and (
                host.clock.monotonic_ms() < grant.until_ms
            )
            # A grant that has not run out may belong to a QEMU that libvirt is still making.
            if idle and not late:
                host.gate.revoke(vm_id)
        self.spawn("inventory of a list", self._inventory.listed(domains))

    def _restore_grants(self, alive: set[VmId]) -> None:
        """The directory is new: at boot, or somebody emptied /run. What this host may hold gets its
        grant before the guardian counts a missing one; a released copy gets none.
        """
        host = self.host
        present = host.gate.grants()
        held = {
            record.vm.id: record.incarnation
            for record in self.loop.records()
            if record.boot == self.boot and record.state is not VmState.DOWN and not record.released
        }
        adopted = () if host.settings is None else (h for h in host.settings.vms if h.vm.adopted)
        for each in adopted:
            if host.loop.record(each.vm.id) is None and each.vm.id in alive:
                held[each.vm.id] = each.incarnation
        try:
            for vm_id, incarnation in held.items():
                if vm_id not in present:
                    host.gate.hold(vm_id, incarnation)
            host.gate.restored()
        except OSError as error:
            _log.error("grants can't be written", error=str(error))

    # The server

    def on_connected(self, welcome: Welcome, address: str) -> None:
        _log.info("connected", server=address)
        self.outbox.align(welcome.fact_sequence_acknowledged)
        self.desk.term_seen = max(self.desk.term_seen, welcome.term)
        if welcome.server_instance != self._server_instance:
            # Its memory is new, perhaps a restored one: rule M2 waits for what runs here.
            self._server_instance = welcome.server_instance
            self._inventory.tell_again()
            self.loop.tell(ReportAgain())

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        _log.info("no session", server=address, code=code, detail=message)

    def on_settings(self, settings: HostSettings) -> None:
        present = self._settings_waiting or self.host.settings
        if settings.installation_id != self.host.installation_id:
            _log.error("settings of another installation ignored", of=settings.installation_id)
            return
        if present is not None and _is_older(settings, present):
            _log.info("older settings ignored", term=settings.term, revision=settings.revision)
            return
        self._settings_waiting = settings
        self.host.settled.clear()
        self._settings_come.set()

    def on_order(self, order: Order) -> None:
        self.desk.accept(order)

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

    async def _apply_settings(self) -> None:
        """The newest only: of several that came while one was written, the last says all."""
        while True:
            await self._settings_come.wait()
            self._settings_come.clear()
            settings, self._settings_waiting = self._settings_waiting, None
            if settings is not None:
                await self._apply(settings)
            if self._settings_waiting is None:
                self.host.settled.set()

    async def _apply(self, settings: HostSettings) -> None:
        host = self.host
        host.settings = msgspec.structs.replace(
            settings, term=max(settings.term, self.desk.term_seen)
        )
        self.desk.term_seen = host.settings.term
        try:
            self._grant_adopted(settings)
            await self.disk(self._write_gate, host.settings)
            await self.disk(self._settings_store.save, host.settings)
        except OSError as error:
            # Acted on all the same; after a restart of the agent the server sends them again.
            _log.error("settings can't be kept", error=str(error))
            await host.facts.emit(
                [Happened(code="host.disk.full", fields={"name": host.host_name})]
            )
        await self.loop.told(
            Configured(policy=settings.policy, hold=settings.hold, vms=settings.vms)
        )
        self._storage.changed()

    def _write_gate(self, settings: HostSettings) -> None:
        own = {record.vm.id: record.vm.name for record in self.loop.records()}
        self.host.gate.write(settings, extra=own)

    async def _given_back(self, vm_id: VmId) -> None:
        """It is unmanaged from here on, also for the guardian, and also after a restart of the agent:
        its QEMU runs on, and a managed one without a grant would be killed."""
        host = self.host
        if host.settings is None:
            return
        left = tuple(held for held in host.settings.vms if held.vm.id != vm_id)
        host.settings = msgspec.structs.replace(host.settings, vms=left)
        await self.disk(self._settings_store.save, host.settings)
        own = {r.vm.id: r.vm.name for r in self.loop.records() if r.vm.id != vm_id}
        await self.disk(host.gate.write, host.settings, extra=own)

    def _grant_adopted(self, settings: HostSettings) -> None:
        """An adopted VM gets its grant before the records call it managed.

        Without asking whether it runs: libvirt may not answer, and a grant that is held starts
        nothing. One without a QEMU goes with the next list.
        """
        host = self.host
        grants = host.gate.grants()
        fresh = [
            held
            for held in settings.vms
            if held.vm.adopted and held.vm.id not in grants and host.loop.record(held.vm.id) is None
        ]
        for held in fresh:
            host.gate.hold(held.vm.id, held.incarnation)

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
        facts = [self._named(event) for _, event in found]
        if await self.host.facts.emit(facts):
            await self.disk(self._reports.done, [path for path, _ in found])

    def _named(self, event: Happened) -> Happened:
        """The guardian knows ids; people know names."""
        record = self.loop.record(event.vm_id) if event.vm_id is not None else None
        fields = {**event.fields, "name": self.host.host_name, "host": self.host.host_name}
        if record is not None:
            fields["vm"] = record.vm.name
        return msgspec.structs.replace(event, fields=fields)


class _Stop(Exception):
    pass


def load_agent_properties(paths: AgentPaths) -> AgentProperties:
    """Raises InvalidInput (line and what is allowed). A missing file means the defaults."""
    try:
        text = load_properties(paths.properties)
    except FileNotFoundError:
        return AgentProperties()
    values, warnings = read_properties(text)
    for warning in warnings:
        _log.warning("agent.properties", warning=warning)
    return values


def hold_lock(paths: AgentPaths, name: str) -> int:
    """One agent and one guardian per host. Raises Failed; the lock ends with the process."""
    paths.run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(paths.run / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Failed(f"the {name} runs already on this host", fix="stop that one first") from None
    return descriptor


async def run_agent(paths: AgentPaths) -> None:
    """``virtha agent run``. Raises Failed, InvalidInput; returns after SIGTERM or SIGINT."""
    identity = load_identity(paths)
    properties = load_agent_properties(paths)
    credentials = load_credentials(paths, identity)
    boot = read_boot_id()
    paths.make_directories()
    lock = hold_lock(paths, "agent")
    hypervisor = LibvirtHost(
        properties.hypervisor_uri,
        domain_type=properties.hypervisor_type,
        cache_directory=paths.cache,
    )
    agent = Agent(
        paths=paths,
        identity=identity,
        properties=properties,
        boot=boot,
        hypervisor=hypervisor,
        guest=LibvirtGuestAgent(hypervisor),
        clock=BoottimeClock(),
        files=Files(),
    )
    link = HostLink(
        servers=properties.host or identity.servers,
        credentials=credentials,
        role=PeerRole.AGENT,
        boot=boot,
        events=agent,
        outbox=agent.outbox,
        hello_state=agent.hello_state,
        live_instance=lambda: agent.guardian.server_instance,
        program_version=__version__,
    )
    agent.connect(link)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    try:
        await agent.run()
    finally:
        link.close()
        os.close(lock)
