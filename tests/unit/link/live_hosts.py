"""Hosts with real guardians on a shared directory, sessions by TLS with a real server: only agents and watchdogs are played."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from able_host import ABLE, GIB, IMAGE
from installed import ADMIN, Installed
from link_rig import Recorder, until
from msgspec.structs import replace

from virtha.agent.disk_looks import DiskLooks
from virtha.agent.files import Files
from virtha.agent.gate import GateRecords
from virtha.agent.guardian_lease import LeaseKit
from virtha.agent.guardian_process import GuardianProcess
from virtha.agent.paths import AgentPaths
from virtha.agent.records import SettingsStore
from virtha.control import Control
from virtha.control.requests import JoinRequest, TokenCreate
from virtha.drivers.directory_domain import DirectoryDomain
from virtha.drivers.link import HelloState, HostCredentials, HostLink
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import make_key_and_csr
from virtha.model.evidence import MANAGEMENT_NETWORK, ProbeAddress
from virtha.model.facts import (
    Fact,
    FactBody,
    HostReport,
    Inventory,
    Outcome,
    Result,
    StorageReport,
    VmReport,
)
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, StorageDomainId
from virtha.model.orders import HostSettings, Order, PrepareStorage, StartVm
from virtha.model.slot import SlotReading
from virtha.model.slot_round import slot_index
from virtha.model.vm import VmState
from virtha.ports.host_watchdog import ArmedWatchdog
from virtha.sentinel.guardian import AgentPulse, ProcessesSeen
from virtha.sentinel.lease import LeaseState
from virtha.sentinel.lease_events import HostNature
from virtha.wire.messages import PeerRole, Welcome
from virtha.wire.witness_messages import LookAtDisks, WitnessOrder

PULSE_S = 0.2
LOOPBACK = "127.0.0.1"


class BreakableSlots(DirectoryDomain):
    """The real blocks behind a path that can fail."""

    fails = False
    way: "BreakableSlots | None" = None
    """What fails with it: a guardian has two of each domain, on one path."""

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        if (self.way or self).fails:
            raise OSError("the path fails")
        return super()._read_into(buffer, offset)

    def _write(self, block: int, data: bytes) -> None:
        if (self.way or self).fails:
            raise OSError("the path fails")
        super()._write(block, data)


class PatientWatchdog:
    """Armed, and never bites; a reset would be noted."""

    timeout_ms = 0
    resets = 0

    def runs_ms(self) -> int:
        return self.timeout_ms

    def arm(self, timeout_ms: int) -> ArmedWatchdog:
        self.timeout_ms = timeout_ms
        return ArmedWatchdog(timeout_ms=timeout_ms, no_way_out=True)

    def feed(self) -> None: ...

    def disarm(self) -> None: ...

    def reset(self) -> None:
        self.resets += 1


def no_processes(_paths: AgentPaths, _boot: BootId) -> ProcessesSeen:
    return ProcessesSeen(processes=(), managed=frozenset(), granted=frozenset())


class LiveHost(Recorder):
    """Its agent is played: it carries out every order, and says so."""

    def __init__(self, name: str, root: Path, number: int, credentials: HostCredentials) -> None:
        super().__init__()
        self.name = name
        self.id = credentials.host_id
        self.boot = BootId(f"{name}-boot1")
        self.index = slot_index(number)
        self.clock = MachineClock()
        self.paths = AgentPaths(root=str(root))
        self.paths.make_directories()
        self.starts: list[tuple[int, StartVm]] = []
        """When each came, by this machine's boot-time clock."""
        self.watchdog = PatientWatchdog()
        self.slots: dict[StorageDomainId, BreakableSlots] = {}
        self._credentials = credentials
        self._gate = GateRecords(self.paths, Files(), boot=self.boot)
        self._outbox: list[Fact] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._domains: dict[StorageDomainId, StorageDomain] = {}
        self._looks = DiskLooks(
            self._domains.values,
            spawn=self._spawn,
            tell=lambda answer: self.agent.send_witness(answer),
        )

    # MemoryOutbox's part

    @property
    def last_sequence(self) -> int:
        return len(self._outbox)

    def facts_after(self, sequence: int, limit: int) -> list[Fact]:
        return self._outbox[sequence : sequence + limit]

    # Its life

    async def connect(self, port: int) -> None:
        self.guardian = GuardianProcess(
            paths=self.paths,
            boot=self.boot,
            clock=self.clock,
            files=Files(),
            look=no_processes,
            lease_kit=self._kit(),
            credentials=self._credentials,
            probe_port=0,
            probe_address=LOOPBACK,
        )
        address = (f"127.0.0.1:{port}",)
        beats = HostLink(
            servers=address,
            credentials=self._credentials,
            role=PeerRole.GUARDIAN,
            boot=self.boot,
            events=self.guardian,
            hello_state=HelloState,
            on_lease=self.guardian.on_lease,
            on_pace=self.guardian.on_pace,
            on_witness=self.guardian.on_witness,
        )
        self.guardian.connect(beats)
        self.agent = HostLink(
            servers=address,
            credentials=self._credentials,
            role=PeerRole.AGENT,
            boot=self.boot,
            events=self,
            outbox=self,
            on_witness=self._on_witness,
        )
        self._tasks = [
            asyncio.create_task(self.guardian.run()),
            asyncio.create_task(self._pulse()),
        ]
        assert self.guardian.listener is not None
        listener = self.guardian.listener
        await until(lambda: listener.port, "where it answers its neighbours")
        self._tasks.append(asyncio.create_task(self.agent.run()))
        self._beats = beats

    async def lose_server(self) -> None:
        """Both sessions end and are not begun again; its processes and its storage go on."""
        self._beats.close()
        self.agent.close()

    def on_connected(self, welcome: Welcome, address: str) -> None:
        """As an agent does in each session with a server that is new to it."""
        super().on_connected(welcome, address)
        assert self.guardian.listener is not None
        port = self.guardian.listener.port
        at = ProbeAddress(network=MANAGEMENT_NETWORK, address=LOOPBACK, port=port)
        able = replace(ABLE, probed_at=(at,))
        self.tell(HostReport(capabilities=able), Inventory(revision=1, domains=()))

    async def _pulse(self) -> None:
        """What its agent tells the guardian."""
        while not self.guardian.stopping.is_set():
            self.guardian.step(AgentPulse(inventory_revision=1))
            await asyncio.sleep(PULSE_S)

    def _kit(self) -> LeaseKit:
        self.slots.clear()

        def slots_of(domain: StorageDomain) -> BreakableSlots:
            made = self._blocks(domain)
            made.way = self.slots.setdefault(domain.id, made)
            return made

        return LeaseKit(
            installation_id=self._credentials.installation_id,
            host_id=self.id,
            index=self.index,
            nature=HostNature(is_virtual=False, suspend_blocked=True),
            watchdog=self.watchdog,
            reset=self.watchdog,
            slots_of=slots_of,
        )

    def _blocks(self, domain: StorageDomain) -> BreakableSlots:
        return self._blocks_at(domain.path, domain.id)

    def _blocks_at(self, path: str, domain_id: StorageDomainId) -> BreakableSlots:
        return BreakableSlots(
            path, installation_id=self._credentials.installation_id, domain_id=domain_id
        )

    def slot(self, path: Path, domain_id: StorageDomainId) -> SlotReading:
        """Its own, as another reader sees it."""
        blocks = self._blocks_at(str(path), domain_id)
        try:
            return blocks.read_slot(self.index)
        finally:
            blocks.close()

    async def die(self) -> None:
        """Nothing renews or speaks any more."""
        self.guardian.stopping.set()
        self.agent.close()
        await asyncio.wait(self._tasks, timeout=60)

    @property
    def states(self) -> set[LeaseState]:
        assert self.guardian.lease is not None
        return set(self.guardian.lease.states().values())

    # Its agent

    def _on_witness(self, order: WitnessOrder) -> None:
        if isinstance(order, LookAtDisks):
            self._looks.ask(order)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        return task

    def tell(self, *bodies: FactBody) -> None:
        for body in bodies:
            self._outbox.append(
                Fact(
                    sequence=self.last_sequence + 1,
                    boot=self.boot,
                    monotonic_ms=int(self.clock.monotonic_ms()),
                    wall_ms=0,
                    body=body,
                )
            )
        self.agent.facts_written()

    def tell_storage(self, domain_id: StorageDomainId, *, usable: bool) -> None:
        self.tell(
            StorageReport(
                storage_domain_id=domain_id,
                usable=usable,
                size_bytes=100 * GIB,
                free_bytes=50 * GIB,
                images=(IMAGE,),
            )
        )

    def on_settings(self, settings: HostSettings) -> None:
        self._gate.write(settings)
        SettingsStore(self.paths.settings, Files()).save(settings)

    def on_order(self, order: Order) -> None:
        match order.body:
            case PrepareStorage(domain=domain):
                Path(domain.path, ".virtha").mkdir(exist_ok=True)
                self._domains[domain.id] = domain
                self._blocks(domain).prepare(self.index, self.id)
                self.tell_storage(domain.id, usable=True)
            case StartVm(vm=vm, grant=grant):
                if not grant.duration_ms:
                    return
                for disk in vm.disks:
                    path = Path(self._domains[disk.storage_domain_id].path, disk.path)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                self.starts.append((int(self.clock.monotonic_ms()), order.body))
                self.tell(
                    VmReport(vm_id=vm.id, incarnation=grant.incarnation, state=VmState.RUNNING)
                )
        self.tell(Outcome(operation_id=order.operation_id, step=order.step, result=Result.OK))


async def join(installed: Installed, control: Control, name: str, root: Path) -> LiveHost:
    secret = (await control.tokens.create(ADMIN, TokenCreate())).secret
    key, csr = make_key_and_csr(name)
    answer = await control.join.join(
        JoinRequest(token=secret, csr_pem=csr, name=name), address="127.0.0.1"
    )
    credentials = HostCredentials(
        installation_id=answer.installation_id,
        host_id=answer.host_id,
        authority_pem=answer.authority_pem,
        certificate_pem=answer.certificate_pem,
        key_pem=key,
    )
    host = LiveHost(name, root / name, answer.number, credentials)
    await host.connect(installed.port)
    return host
