"""A host that joined by the real command and holds real sessions; only its VMs are played."""

import asyncio
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from server_process import command

from virtha.agent.files import Files
from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.outbox import Outbox
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials, HostLink
from virtha.drivers.link_connection import monotonic_ms
from virtha.drivers.machine_clock import MachineClock
from virtha.model.facts import (
    FactBody,
    HostReport,
    Image,
    Outcome,
    Released,
    Result,
    StorageReport,
    VmReport,
)
from virtha.model.host import HostCapabilities
from virtha.model.ids import BootId, Incarnation, StorageDomainId, VmId
from virtha.model.orders import (
    ChangeSnapshots,
    GrowDisk,
    HostSettings,
    Order,
    PrepareStorage,
    StartVm,
    StopVm,
)
from virtha.model.time import UtcMillis
from virtha.model.vm import VmState
from virtha.model.watchdog import WatchdogModel
from virtha.wire.messages import Beat, PeerRole, Welcome

GIB = 1 << 30
BOOT = BootId("played-boot")
ABLE = HostCapabilities(
    cpus=4,
    memory_bytes=8 * GIB,
    libvirt_version=9_000_000,
    watchdog_models=(WatchdogModel.I6300ESB, WatchdogModel.IB700),
    bridges=("br0",),
    gate_in_force=True,
    libvirt_connected=True,
)
TINY = Image(
    name="tiny", path="images/tiny.qcow2", format="qcow2", size_bytes=1, virtual_size_bytes=1 << 26
)
WAIT_S = 60.0


def join_host(root: Path, url: str, token: str, name: str, *words: str) -> "JoinedHost":
    """`virtha agent join`, with the host's files below ``root``."""
    done = command(
        *("agent", "join", url, "--token", token, "--name", name, "--root", str(root), *words),
        VIRTHA_LIBVIRT_HOOKS=str(root / "hooks"),
    )
    assert done.returncode == 0, done.stderr
    paths = AgentPaths(root=str(root))
    return JoinedHost(load_credentials(paths, load_identity(paths)), root)


@dataclass
class JoinedHost:
    """Who it is, and where its files are."""

    credentials: HostCredentials
    root: Path


@dataclass
class WrongClock(MachineClock):
    """The host's clock, as wrong as a test wants it."""

    ahead_ms: int = 0

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(super().wall_ms() + self.ahead_ms)


def storage_report(domain_id: StorageDomainId) -> StorageReport:
    """Of a host that can use it."""
    return StorageReport(
        storage_domain_id=domain_id,
        usable=True,
        size_bytes=100 * GIB,
        free_bytes=50 * GIB,
        images=(TINY,),
    )


def told_after(order: Order, incarnations: dict[VmId, Incarnation]) -> list[FactBody]:
    """What a host tells that does the order at once. ``incarnations``: what runs on it, kept here."""
    told: list[FactBody] = []
    match order.body:
        case PrepareStorage(domain=domain):
            told.append(storage_report(domain.id))
        case StartVm(vm=vm, grant=grant):
            incarnations[vm.id] = grant.incarnation
            told.append(
                VmReport(
                    vm_id=vm.id,
                    incarnation=grant.incarnation,
                    state=VmState.RUNNING,
                    guest_agent=False,
                )
            )
        case StopVm(vm_id=vm_id) if vm_id in incarnations:
            held = incarnations[vm_id]
            told += [
                VmReport(vm_id=vm_id, incarnation=held, state=VmState.DOWN),
                Released(vm_id=vm_id, incarnation=held),
            ]
    told.append(Outcome(operation_id=order.operation_id, step=order.step, result=Result.OK))
    if isinstance(order.body, ChangeSnapshots | GrowDisk):
        # It held the VM while it worked on its disks, and gives it back.
        grant = order.body.grant
        told.append(Released(vm_id=grant.vm_id, incarnation=grant.incarnation))
    return told


class PlayedHost:
    """Agent and guardian sessions in a thread of their own; every order is done at once and told.

    Link and outbox are the real ones. Implements ``HostLinkEvents``.
    """

    def __init__(
        self,
        host: JoinedHost,
        gateway: str,
        *,
        clock_ahead_ms: int = 0,
        boot: BootId = BOOT,
        starts: bool = True,
    ) -> None:
        """``starts``: whether it carries starts out, or is never heard of them again."""
        self.boot = boot
        self.starts = starts
        self.credentials = host.credentials
        self.outbox = Outbox(
            host.root / "outbox",
            boot=boot,
            clock=WrongClock(ahead_ms=clock_ahead_ms),
            files=Files(),
            host_name=host.credentials.host_id,
        )
        self.outbox.open()
        self.orders: list[Order] = []
        self._incarnations: dict[VmId, Incarnation] = {}
        self.acknowledged = 0
        self.ended: list[str] = []
        self._gateway = gateway
        self._loop = asyncio.new_event_loop()
        self._agent: HostLink | None = None
        self._guardian: HostLink | None = None
        self._made = threading.Event()
        self._beating = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        assert self._made.wait(WAIT_S)
        self.tell(HostReport(capabilities=ABLE))

    def close(self) -> None:
        for link in (self._agent, self._guardian):
            if link is not None:
                self._loop.call_soon_threadsafe(link.close)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.outbox.close()

    def tell(self, *bodies: FactBody) -> int:
        """Add facts; returns the last one's sequence."""

        async def add() -> int:
            self._add(*bodies)
            return self.outbox.last_sequence

        return asyncio.run_coroutine_threadsafe(add(), self._loop).result(WAIT_S)

    def wait_until_usable(self) -> None:
        """The server knows what it can, and has a beat for a grant to quote."""
        assert self._beating.wait(WAIT_S), self.ended
        self.wait_acknowledged(self.outbox.last_sequence)

    def wait_acknowledged(self, sequence: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.acknowledged < sequence:
            assert time.monotonic() < deadline, (self.acknowledged, self.ended)
            time.sleep(0.01)

    # HostLinkEvents

    def on_connected(self, welcome: Welcome, address: str) -> None:
        self.outbox.align(welcome.fact_sequence_acknowledged)

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        self.ended.append(code)

    def on_settings(self, settings: HostSettings) -> None: ...

    def on_beat_acknowledged(self, sequence: int) -> None:
        self._beating.set()

    def on_facts_acknowledged(self, sequence: int) -> None:
        self.outbox.on_facts_acknowledged(sequence)
        self.acknowledged = sequence

    def on_order(self, order: Order) -> None:
        self.orders.append(order)
        if isinstance(order.body, StartVm) and not self.starts:
            return
        self._add(*told_after(order, self._incarnations))

    def _add(self, *bodies: FactBody) -> None:
        assert self.outbox.append(bodies)
        assert self._agent is not None
        self._agent.facts_written()

    # The thread

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run_links())
        finally:
            self._loop.close()

    async def _run_links(self) -> None:
        self._agent, self._guardian = (
            HostLink(
                servers=(self._gateway,),
                credentials=self.credentials,
                role=role,
                boot=self.boot,
                events=self,
                outbox=self.outbox if role is PeerRole.AGENT else None,
            )
            for role in (PeerRole.AGENT, PeerRole.GUARDIAN)
        )
        self._made.set()
        beating = asyncio.create_task(self._beat(self._guardian))
        try:
            await asyncio.gather(self._agent.run(), self._guardian.run())
        finally:
            beating.cancel()

    async def _beat(self, guardian: HostLink) -> None:
        sequence = 0
        while True:
            sequence += 1
            guardian.send_beat(
                Beat(
                    sequence=sequence,
                    boot=self.boot,
                    monotonic_ms=monotonic_ms(),
                    inventory_revision=0,
                    agent_alive=True,
                )
            )
            await asyncio.sleep(0.2)
