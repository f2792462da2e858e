"""What the agent's parts share: ports, stores and the present settings of one host."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from msgspec import UNSET

from virtha.agent.commands import Spawn, Starter, VmLocks
from virtha.agent.evidence import EvidenceKeeper
from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.files import Files
from virtha.agent.freezer import GuestFreezer
from virtha.agent.gate import GateRecords
from virtha.agent.lease_files import load_permits
from virtha.agent.loop import AgentLoop
from virtha.agent.paths import AgentPaths
from virtha.agent.process_table import QemuWatch
from virtha.agent.properties import AgentProperties
from virtha.agent.records import OutcomeMemory
from virtha.agent.storage import StorageWorkers
from virtha.domainxml.host_defaults import HostDefaults
from virtha.model.errors import Failed
from virtha.model.host import HostCapabilities, StorageDomain
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, VmId
from virtha.model.orders import HostSettings, MoveDestination
from virtha.model.vm import Vm
from virtha.ports.clock import Clock
from virtha.ports.hypervisor import (
    DomainCatalog,
    DomainControl,
    DomainDevices,
    DomainDisks,
    DomainMoves,
    DomainSecrets,
)


async def _nobody(_vm_id: VmId) -> None:
    raise AssertionError("the agent wires this")


class StopWaiters:
    """Who waits for a VM's QEMU to be gone; woken by libvirt's STOPPED event."""

    def __init__(self) -> None:
        self._events: dict[VmId, asyncio.Event] = {}

    def stopped(self, vm_id: VmId) -> None:
        event = self._events.pop(vm_id, None)
        if event is not None:
            event.set()

    def event(self, vm_id: VmId) -> asyncio.Event:
        return self._events.setdefault(vm_id, asyncio.Event())


@dataclass(kw_only=True)
class HostContext:
    """Wiring, not a value: one per agent process, also in tests with a simulated hypervisor."""

    host_id: HostId
    host_name: str
    host_number: int
    """In the installation: where its heartbeat lies."""
    boot: BootId
    installation_id: InstallationId
    paths: AgentPaths
    files: Files
    clock: Clock
    disk: DiskThread
    facts: FactSink
    gate: GateRecords
    outcomes: OutcomeMemory
    locks: VmLocks
    stops: StopWaiters
    workers: StorageWorkers
    control: DomainControl
    catalog: DomainCatalog
    devices: DomainDevices
    disks: DomainDisks
    moves: DomainMoves
    processes: QemuWatch
    secrets: DomainSecrets | None = None
    """None: this hypervisor keeps none."""
    starter: Starter
    evidence: EvidenceKeeper
    freezer: GuestFreezer
    loop: AgentLoop
    spawn: Spawn
    properties: AgentProperties
    settings: HostSettings | None = None
    capabilities: HostCapabilities = field(default_factory=HostCapabilities)
    shutting_down: bool = False
    capabilities_known: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once libvirt was asked: before that nobody knows whether VMs run with KVM here."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Clear while new settings are being written."""
    prepared: dict[StorageDomainId, StorageDomain] = field(default_factory=dict)
    """Storage domains of a PrepareStorage order that the settings may not have yet."""
    buffered: set[StorageDomainId] = field(default_factory=set)
    on_prepared: Callable[[], None] = lambda: None
    on_plugged: Callable[[VmId], None] = lambda _vm_id: None
    """What its running copy has changed: the server is told."""
    destination: MoveDestination | None = None
    """Where other hosts' VMs are let in; None: it is not set up."""
    on_given_back: Callable[[VmId], Awaitable[None]] = _nobody

    def storage_domain(self, domain_id: StorageDomainId) -> StorageDomain:
        """Raises Failed when this host does not know it."""
        for domain in self.storage_domains():
            if domain.id == domain_id:
                return domain
        raise Failed(
            f"this host has no storage domain {domain_id}",
            fix="wait for its settings, or attach it",
        )

    def storage_domains(self) -> tuple[StorageDomain, ...]:
        known = {} if self.settings is None else {d.id: d for d in self.settings.storage_domains}
        return tuple({**self.prepared, **known}.values())

    def is_managed(self, vm_id: VmId) -> bool:
        """Whether it is a VM of this installation, on this host or another, as far as is known here."""
        if self.loop.record(vm_id) is not None:
            return True
        settings = self.settings
        return settings is not None and (
            vm_id in settings.foreign_vms or any(held.vm.id == vm_id for held in settings.vms)
        )

    @property
    def leases_in_use(self) -> bool:
        return self.settings is not None and self.settings.policy.leases_in_use

    def lease_allows(self, vm_id: VmId, *, coming: Vm | None = None) -> bool:
        """Whether its processors may run by the leases on its disks' storage. Asked once its QEMU exists and before they
        do: one that existed before a lease was lost is killed with the others (ADR 8). ``coming``: as an order says what
        it has, where nothing here may know of it yet."""
        if not self.leases_in_use:
            return True
        permits = load_permits(self.paths.start_permits, self.boot)
        domains = self._domains_of(vm_id, coming)
        return permits.objection(domains, self.clock.monotonic_ms()) is None

    def _domains_of(self, vm_id: VmId, coming: Vm | None) -> set[StorageDomainId]:
        """Of a VM that is not known here: any."""
        record = self.loop.record(vm_id)
        vms = [] if coming is None else [coming]
        vms += [] if record is None else [record.vm]
        if self.settings is not None:
            vms += [held.vm for held in self.settings.vms if held.vm.id == vm_id]
        if not vms:
            return {domain.id for domain in self.storage_domains()}
        return {disk.storage_domain_id for vm in vms for disk in vm.disks}

    def host_defaults(self) -> HostDefaults:
        """What domain XML needs to know of this host."""
        return HostDefaults(
            domain_type=self.capabilities.domain_type,
            watchdog=self.properties.watchdog,
            rng=self.properties.rng,
            cpu=self.properties.guest_cpu,
            serial_directory=str(self.paths.serial),
            storage_paths={
                domain.id: domain.path for domain in self.storage_domains() if domain.ceph is UNSET
            },
            ceph_pools={
                domain.id: domain.ceph
                for domain in self.storage_domains()
                if domain.ceph is not UNSET
            },
            buffered_storage=tuple(sorted(self.buffered)),
        )
