"""An agent on a simulated hypervisor, with real files, the real gate hook and a real event loop."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from virtha.agent.files import Files
from virtha.agent.gate import hook_path, install_gate
from virtha.agent.host_agent import Agent
from virtha.agent.host_clock import read_boot_id
from virtha.agent.identity import Identity
from virtha.agent.lease_files import StartPermit, StartPermits, write_run_file
from virtha.agent.paths import AgentPaths
from virtha.agent.process_table import OpenFiles
from virtha.agent.properties import AgentProperties
from virtha.drivers.machine_clock import MachineClock
from virtha.model.facts import Fact, Happened, Outcome, Released, Result, VmReport
from virtha.model.host import HostCapabilities, StorageDomain
from virtha.model.ids import (
    BootId,
    ClusterId,
    DiskId,
    HostId,
    Incarnation,
    InstallationId,
    OperationId,
    StorageDomainId,
    Term,
    VmId,
)
from virtha.model.orders import (
    Grant,
    HeldVm,
    HostSettings,
    MoveDestination,
    Order,
    OrderBody,
    PrepareStorage,
    StartVm,
    StopMode,
    StopVm,
)
from virtha.model.time import Millis
from virtha.model.vm import Disk, Vm
from virtha.model.watchdog import Watchdog, WatchdogAction, WatchdogModel
from virtha.ports.hypervisor import (
    GuestAgent,
    HypervisorError,
    HypervisorFailed,
    LiveDisk,
    MoveEnd,
    MoveProgress,
)
from virtha.sentinel.events import GuestAnswered
from virtha.sentinel.guardian import QemuProcess
from virtha.sim.hypervisor import SimHypervisor
from virtha.sim.libvirt import Domain, Qemu

INSTALLATION = InstallationId("10000000-0000-4000-8000-000000000001")
HOST = HostId("20000000-0000-4000-8000-000000000001")
CLUSTER = ClusterId("30000000-0000-4000-8000-000000000001")
DOMAIN = StorageDomainId("40000000-0000-4000-8000-000000000001")
OTHER = StorageDomainId("40000000-0000-4000-8000-000000000002")
ALWAYS = 1 << 53
WEB1 = VmId("50000000-0000-4000-8000-000000000001")
WEB2 = VmId("50000000-0000-4000-8000-000000000002")
FOREIGN_XML = (
    f"<domain type='qemu'><name>old</name><uuid>{WEB2}</uuid><memory unit='MiB'>64</memory>"
    "<vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>"
    "<on_crash>restart</on_crash><devices/></domain>"
)
"""Of a VM of somebody else's."""


class MovableClock(MachineClock):
    """The host's own, moved by a story: what has run out has, however slow the machine is."""

    ahead_ms = 0

    def monotonic_ms(self) -> Millis:
        return Millis(super().monotonic_ms() + self.ahead_ms)


class SimHost(SimHypervisor):
    """With the ports that the simulator does not need: facts of the host, evidence, insides of disks."""

    def __init__(self, hook: Path) -> None:
        super().__init__(gate=self._ask_hook, clock=MachineClock().monotonic_ms)
        self.hook = hook
        self.loses_starts = False
        self.pulse: HypervisorError | None = None
        """What it says to whoever asks whether libvirt answers; ``pulses``: each time."""
        self.pulses: list[HypervisorError | None] = []
        self.opened: dict[str, LiveDisk] = {}
        """What QEMU has open, by path: put there by the test."""
        self.disk_calls: list[str] = []
        self.fails_once: Exception | None = None
        """Raised by the next call that changes disks, after it was carried out."""
        self.libvirt.incoming_gate = self._ask_hook_of_arrival

    def _ask_hook_of_arrival(self, vm_id: VmId) -> str | None:
        return self._ask_hook(vm_id, "migrate") or self._ask_hook(vm_id)

    def _ask_hook(self, vm_id: VmId, operation: str = "prepare") -> str | None:
        """As libvirt does it: the real hook script, with the domain's XML on its standard input."""
        if not self.hook.exists():
            return None
        domain = self.libvirt.domain(vm_id)
        answer = subprocess.run(
            [str(self.hook), domain.name, operation, "begin", "-"],
            input=domain.xml.encode(),
            capture_output=True,
            check=False,
        )
        return answer.stderr.decode() if answer.returncode else None

    async def answers(self, *, deadline_ms: int) -> None:
        self.pulses.append(self.pulse)
        if self.pulse is not None:
            raise self.pulse

    async def capabilities(self) -> HostCapabilities:
        self._reachable()
        return HostCapabilities(memory_bytes=8 << 30, cpus=4, domain_type="qemu")

    async def live_disks(self, vm_id: VmId) -> tuple[LiveDisk, ...]:
        self._reachable().domain(vm_id)
        return tuple(self.opened.values())

    async def grow_disk(self, vm_id: VmId, path: str, size_bytes: int) -> None:
        self.opened[path] = msgspec.structs.replace(self.opened[path], size_bytes=size_bytes)
        self._changed(f"grow {Path(path).name} {size_bytes}")

    async def make_snapshot(self, vm_id: VmId, paths: tuple[str, ...], name: str) -> None:
        for path in paths:
            tags = self.opened[path].snapshots | {name}
            self.opened[path] = msgspec.structs.replace(self.opened[path], snapshots=tags)
        self._changed(f"snapshot of {len(paths)}")

    async def delete_snapshot(self, vm_id: VmId, path: str, name: str) -> None:
        tags = self.opened[path].snapshots - {name}
        self.opened[path] = msgspec.structs.replace(self.opened[path], snapshots=tags)
        self._changed(f"delete in {Path(path).name}")

    def _changed(self, call: str) -> None:
        self.disk_calls.append(call)
        error, self.fails_once = self.fails_once, None
        if error is not None:
            raise error

    async def screenshot(self, vm_id: VmId, path: str) -> str:
        picture = Path(path + ".ppm")
        await asyncio.to_thread(picture.write_bytes, b"P6 1 1 255\n\0\0\0")
        return str(picture)

    async def dump(self, vm_id: VmId, path: str) -> None:
        raise AssertionError("nobody asks for a dump yet")


class PlayedMoves:
    """Live migrations away from the bench's host; the test plays the phases through ``libvirt`` and ends them."""

    def __init__(self, hypervisor: "SimHost") -> None:
        self.hypervisor = hypervisor
        self.begun: dict[VmId, MoveDestination] = {}
        self.aborted: list[VmId] = []
        self.left: list[VmId] = []
        self.over: list[VmId] = []
        """Whose end was said to whoever waits for it."""
        self._ends: dict[VmId, asyncio.Future[MoveEnd]] = {}

    async def move(self, vm_id: VmId, destination: MoveDestination) -> MoveEnd:
        self.begun[vm_id] = destination
        self._ends[vm_id] = asyncio.get_running_loop().create_future()
        end = await asyncio.shield(self._ends[vm_id])
        self.over.append(vm_id)
        return end

    def end(self, vm_id: VmId, result: Result, code: str | None = None) -> None:
        self.begun.pop(vm_id, None)
        ended = self._ends.pop(vm_id, None)
        if ended is not None:
            ended.set_result(MoveEnd(result=result, code=code))

    async def under_way(self, vm_id: VmId) -> bool:
        return vm_id in self.begun

    async def abort_move(self, vm_id: VmId) -> None:
        self.aborted.append(vm_id)
        self.end(vm_id, Result.FAILED, "migration.ended.cancelled")

    async def leave_move(self, vm_id: VmId) -> None:
        self.left.append(vm_id)
        self.end(vm_id, Result.UNKNOWN)

    async def move_progress(self, vm_id: VmId) -> MoveProgress | None:
        return None


class SilentGuest:
    async def ping(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        return False

    async def freeze(self, vm_id: VmId, *, deadline_ms: int) -> int:
        raise HypervisorFailed("Guest agent is not responding")

    async def thaw(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        return False

    async def is_frozen(self, vm_id: VmId, *, deadline_ms: int) -> bool | None:
        return None

    async def read_file(self, vm_id: VmId, path: str, *, deadline_ms: int) -> bytes | None:
        return None


class Bench:
    """One host: its paths survive ``restart``, as do its QEMUs."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        boot_file = root / "boot_id"
        boot_file.write_text("boot-1\n")
        monkeypatch.setenv("VIRTHA_BOOT_ID_FILE", str(boot_file))
        monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(root / "hooks"))
        self.paths = AgentPaths(root=str(root))
        self.paths.make_directories()
        self.permit(ALWAYS)
        self.files = Files()
        install_gate(self.paths, self.files)
        self.clock = MovableClock()
        self.storage = StorageDomain(
            id=DOMAIN, name="ds1", cluster_id=CLUSTER, path=str(root / "ds1")
        )
        Path(self.storage.path).mkdir()
        self.hypervisor = SimHost(hook_path(self.paths))
        self.guest: GuestAgent = SilentGuest()
        self.moves = PlayedMoves(self.hypervisor)
        self.destination: MoveDestination | None = None
        self.properties = AgentProperties()
        self.qemus: Callable[[], tuple[QemuProcess, ...]] = self._simulated_qemus
        """What the kernel has."""
        self.qemu_files: OpenFiles | None = OpenFiles()
        """What it says that each of those has open."""
        self.agent: Agent
        self._operation = 0

    @property
    def boot(self) -> BootId:
        return read_boot_id()

    def _simulated_qemus(self) -> tuple[QemuProcess, ...]:
        found = ((one.vm_id, one.qemu) for one in self.hypervisor.libvirt)
        return tuple(
            QemuProcess(pid=qemu.pid, start_ticks=qemu.start_ticks, vm_id=vm_id)
            for vm_id, qemu in found
            if qemu is not None
        )

    def permit(self, until_ms: int, *, renewed_ms: int | None = None) -> None:
        """What its guardian, which does not run, says of starts on its storage; renewed as late as it permits, unless told."""
        renewed = until_ms if renewed_ms is None else renewed_ms
        permit = StartPermit(renewed_ms=Millis(renewed), until_ms=Millis(until_ms))
        domains = dict.fromkeys((DOMAIN, OTHER), permit)
        write_run_file(self.paths.start_permits, StartPermits(boot=self.boot, domains=domains))

    def make_agent(self) -> Agent:
        self.agent = Agent(
            paths=self.paths,
            identity=Identity(
                host_id=HOST,
                number=1,
                name="h1",
                installation_id=INSTALLATION,
                servers=("192.0.2.1:8250",),
            ),
            properties=self.properties,
            boot=self.boot,
            hypervisor=self.hypervisor,
            guest=self.guest,
            clock=self.clock,
            files=self.files,
            moves=self.moves,
            destination=self.destination,
            qemus=lambda: self.qemus(),
            qemu_files=lambda _process, _roots: self.qemu_files,
        )
        self.agent.outbox.align(0)  # as the first hello does
        return self.agent

    def vm(self, vm_id: VmId = WEB1, name: str = "web1", **changes: Any) -> Vm:
        values: dict[str, Any] = {
            "id": vm_id,
            "name": name,
            "cluster_id": CLUSTER,
            "memory_bytes": 128 << 20,
            "ha": True,
            "watchdog": Watchdog(model=WatchdogModel.I6300ESB, action=WatchdogAction.RESET),
        }
        return Vm(**{**values, **changes})

    def disk(self, path: str = "disks/web1.qcow2", size_bytes: int = 1 << 20) -> Disk:
        return Disk(
            id=DiskId("60000000-0000-4000-8000-000000000001"),
            name="root",
            storage_domain_id=DOMAIN,
            path=path,
            size_bytes=size_bytes,
        )

    def settings(self, *vms: Vm, revision: int = 1, **changes: Any) -> HostSettings:
        values: dict[str, Any] = {
            "revision": revision,
            "installation_id": INSTALLATION,
            "term": Term(1),
            "storage_domains": (self.storage,),
            "vms": tuple(HeldVm(vm=vm, incarnation=Incarnation(1), wanted_up=True) for vm in vms),
        }
        return HostSettings(**{**values, **changes})

    def grant(self, vm_id: VmId = WEB1, incarnation: int = 1, duration_ms: int = 60_000) -> Grant:
        return Grant(
            vm_id=vm_id,
            incarnation=Incarnation(incarnation),
            boot=self.boot,
            beat_monotonic_ms=self.clock.monotonic_ms(),
            duration_ms=duration_ms,
        )

    def order(self, body: OrderBody, **changes: Any) -> Order:
        self._operation += 1
        values: dict[str, Any] = {
            "operation_id": OperationId(f"70000000-0000-4000-8000-{self._operation:012d}"),
            "step": 0,
            "term": Term(1),
            "host_boot": self.boot,
            "body": body,
        }
        return Order(**{**values, **changes})

    # Looking and waiting

    def facts(self) -> tuple[Fact, ...]:
        return self.agent.outbox.facts_after(0, 100_000)

    def codes(self) -> list[str]:
        return [fact.body.code for fact in self.facts() if isinstance(fact.body, Happened)]

    def released(self) -> list[Released]:
        return [fact.body for fact in self.facts() if isinstance(fact.body, Released)]

    def state(self, vm_id: VmId = WEB1) -> str | None:
        states = [
            fact.body.state
            for fact in self.facts()
            if isinstance(fact.body, VmReport) and fact.body.vm_id == vm_id
        ]
        return states[-1] if states else None

    async def until(self, condition: Callable[[], bool], *, within_s: float = 60.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s} s; facts: {self.facts()}"
            await asyncio.sleep(0.005)

    async def over(self, task: str) -> None:
        """What the agent does beside its loop under that name has ended; it has begun before this is asked."""
        await self.until(lambda: task not in {each.get_name() for each in asyncio.all_tasks()})

    async def stepped(self) -> None:
        """Whatever came to the agent's loop before this was asked: it takes all in order."""
        await self.agent.loop.told(GuestAnswered(vm_id=VmId("nobody"), answers=False))

    async def listed(self) -> None:
        """The sentinel has libvirt's list: from here on it sees everything itself."""

        def known() -> bool:
            refusal = self.agent.loop.start_refusal(VmId("nobody"), Incarnation(1))
            return refusal is None

        await self.until(known)

    async def configured(self, *vms: Vm, **changes: Any) -> None:
        """As ``settings``; they are applied."""
        self.agent.on_settings(self.settings(*vms, **changes))
        await self.agent.host.settled.wait()

    async def do(self, body: OrderBody, **changes: Any) -> Outcome:
        order = self.order(body, **changes)
        return await self.give(order)

    async def give(self, order: Order) -> Outcome:
        before = len(self.outcomes(order))
        # Until the server has an answer it isn't told again: here the server has all that came before.
        self.agent.outbox.on_facts_acknowledged(self.agent.outbox.last_sequence)
        self.agent.on_order(order)
        await self.until(lambda: len(self.outcomes(order)) > before)
        return self.outcomes(order)[-1]

    def outcomes(self, order: Order) -> list[Outcome]:
        return [
            fact.body
            for fact in self.facts()
            if isinstance(fact.body, Outcome) and fact.body.operation_id == order.operation_id
        ]

    async def start(self, vm: Vm | None = None, incarnation: int = 1) -> Outcome:
        vm = vm or self.vm()
        return await self.do(StartVm(vm=vm, grant=self.grant(vm.id, incarnation), by="ann"))

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        """One life of an agent: start it, tell the story, stop it cleanly."""

        async def live() -> None:
            agent = self.make_agent()
            life = asyncio.create_task(agent.run())
            try:
                await asyncio.wait_for(story(), 200)
            finally:
                agent.stop()
                await asyncio.wait_for(life, 60)

        asyncio.run(live())


# Orders that many stories give, and looks that they take


def stop(
    vm_id: VmId = WEB1,
    mode: StopMode = StopMode.POWER_OFF,
    *,
    incarnation: int = 1,
    deadline_ms: int = 60_000,
) -> StopVm:
    return StopVm(
        vm_id=vm_id,
        incarnation=Incarnation(incarnation),
        mode=mode,
        by="ann",
        deadline_ms=deadline_ms,
    )


async def prepared(bench: Bench) -> Outcome:
    """The bench's storage domain, with its header and directories."""
    bench.agent.on_settings(bench.settings(bench.vm()))
    return await bench.do(PrepareStorage(domain=bench.storage, installation_id=INSTALLATION))


def qemu(bench: Bench, vm_id: VmId = WEB1) -> Qemu | None:
    domain = bench.hypervisor.libvirt.find(vm_id)
    return domain.qemu if domain is not None else None


def runs(bench: Bench, vm_id: VmId = WEB1) -> bool:
    found = bench.hypervisor.libvirt.domain(vm_id).qemu
    return found is not None and found.running


def run_foreign(bench: Bench) -> Domain:
    """A VM of somebody else's, WEB2, started past the gate, which knows nothing of it yet."""
    libvirt = bench.hypervisor.libvirt
    domain = libvirt.define(FOREIGN_XML)
    libvirt.start_paused(WEB2)
    libvirt.run(WEB2)
    return domain
