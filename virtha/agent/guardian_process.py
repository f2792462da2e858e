"""The guardian: beats while there is a session, and the end of ungranted QEMUs.

It knows neither libvirt nor any disk but its slots, its memory is locked, and it outlives the agent. The event
loop does nothing but beats, the local socket and deadlines; whatever may wait (``/proc`` of a process in trouble,
files, storage, the watchdog) runs in threads of their own, so that no beat and no deadline waits for it.
"""

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from virtha import __version__
from virtha.agent.certificate_follower import CertificateFollower
from virtha.agent.files import Files, read_bounded
from virtha.agent.guardian_channel import GuardianServer, Pulse, ReportFiles
from virtha.agent.guardian_lease import KILLED, GuardianLease, LeaseHands, LeaseKit, disks_of
from virtha.agent.host_clock import read_boot_id
from virtha.agent.host_nature import read_nature
from virtha.agent.identity import Identity, load_credentials, load_identity
from virtha.agent.neighbour_probes import NeighbourProbes
from virtha.agent.paths import KERNEL_BOOT_ID_FILE, AgentPaths, boot_id_file
from virtha.agent.process_lock import hold_lock
from virtha.agent.process_table import kill, look
from virtha.agent.properties import load_agent_properties
from virtha.agent.qemu_ledger import LedgerLook, QemuLedger
from virtha.agent.records import FILE_BYTES_MAX
from virtha.agent.storage import open_slots
from virtha.agent.worker import Worker
from virtha.drivers.kernel_watchdog import KernelWatchdog, SysrqReset
from virtha.drivers.link import HelloState, HostCredentials, HostLink
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.neighbour_probe import ProbeListener
from virtha.drivers.service_notify import notify
from virtha.drivers.standin_watchdog import StandinWatchdog
from virtha.model.facts import Happened
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, StorageDomainId
from virtha.model.orders import HostSettings, Order
from virtha.model.slot_round import SlotRound, slot_index
from virtha.model.time import Millis
from virtha.ports.clock import Clock
from virtha.ports.host_watchdog import HostReset, HostWatchdog
from virtha.ports.storage_domain import HeartbeatSlots
from virtha.sentinel.guardian import (
    AgentGone,
    AgentPulse,
    Guardian,
    GuardianCommand,
    GuardianEvent,
    Kill,
    LinkLost,
    Paced,
    ProcessesSeen,
    QemuProcess,
    Report,
    SendBeat,
    Welcomed,
)
from virtha.sentinel.lease_events import WaiverEnded, WaiverGiven
from virtha.wire.lease_messages import (
    KeepLease,
    LeaseKept,
    LeaseOrder,
    ReadSlots,
    StopReading,
    WaiveLease,
    told_round,
)
from virtha.wire.messages import Beat, Pace, PeerRole, Welcome
from virtha.wire.witness_messages import HostProbed, ProbeHost, WitnessOrder

LOOK_S = 1.0
LOOK_HURRIED_S = 0.05
CAUSE_S = 0.2
"""So long a kill waits for its cause to be told."""
PULSE_S = 1.0
STACK_BYTES = 1 << 20
"""Of each thread; all of it is locked."""
SETTINGS_IGNORED = "settings and orders are the agent's"
_MCL_CURRENT, _MCL_FUTURE = 1, 2

_log = structlog.get_logger(__name__)


class _SettingsFile:
    """What the agent keeps of the server's settings; read again when it has changed. In the looker's thread."""

    def __init__(self, paths: AgentPaths) -> None:
        self._path = paths.settings
        self._stamp: tuple[int, int] | None = None
        self._settings: HostSettings | None = None

    def read(self) -> HostSettings | None:
        """The last that could be read; the file is the agent's, so a damaged one is left to it."""
        try:
            status = self._path.stat()
            stamp = status.st_mtime_ns, status.st_ino
            if stamp != self._stamp:
                data = read_bounded(self._path, FILE_BYTES_MAX)
                self._settings = msgspec.json.decode(data, type=HostSettings)
                self._stamp = stamp
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            _log.debug("the host's settings can't be read", error=str(error))
        return self._settings


class GuardianProcess:
    """Wires the pure ``Guardian``; implements ``HostLinkEvents``."""

    def __init__(
        self,
        *,
        paths: AgentPaths,
        boot: BootId,
        clock: Clock,
        files: Files,
        look: Callable[[AgentPaths, BootId], ProcessesSeen] = look,
        lease_kit: LeaseKit | None = None,
        credentials: HostCredentials | None = None,
        probe_port: int | None = None,
        probe_address: str | None = None,
    ) -> None:
        """``lease_kit``: None: this host holds no leases. ``credentials``: None: it asks no neighbours, and answers none.
        ``probe_port``: None: it answers none; 0: on any port. ``probe_address``: None: on all addresses."""
        self._paths = paths
        self._boot = boot
        self._clock = clock
        self._look = look
        self._core = Guardian(boot, clock.monotonic_ms())
        # Kills have a thread of their own: no look at /proc that hangs may hold one up.
        self._looker = Worker("looks")
        self._killer = Worker("kills")
        self._writer = Worker("reports")
        self._reports = ReportFiles(paths.guardian_kills, files)
        self._report_number = 0
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        self._link: HostLink | None = None
        self._agent_instance: str | None = None
        self._loop = asyncio.get_running_loop()
        self._channel = GuardianServer(
            paths.guardian_socket, on_pulse=self._on_pulse, on_gone=self._on_gone
        )
        self.stopping = asyncio.Event()
        self._look_soon = asyncio.Event()
        self._failure: Exception | None = None
        self._causes: dict[int, threading.Event] = {}
        """By process: set once the agent can read why it is killed."""
        self._ledger = QemuLedger()
        self._settings = _SettingsFile(paths)
        self._lease_kit = lease_kit
        self._waivers: dict[StorageDomainId, str] = {}
        self.probes: NeighbourProbes | None = None
        self.listener: ProbeListener | None = None
        self._probe_at = (probe_address, probe_port or 0)
        self.certificate: CertificateFollower | None = None
        if credentials is not None:
            self.certificate = CertificateFollower(paths, credentials, self._use)
            self.probes = NeighbourProbes(credentials, self._tell_probed)
            if probe_port is not None:
                self.listener = ProbeListener(credentials, boot)
        self.lease: GuardianLease | None = None
        if lease_kit is not None:
            self.lease = self._make_lease(lease_kit)

    def _use(self, credentials: HostCredentials) -> None:
        for one in (self._link, self.probes, self.listener):
            if one is not None:
                one.use(credentials)

    def _make_lease(self, kit: LeaseKit) -> GuardianLease:
        hands = LeaseHands(
            report=self._report,
            kill=self._kill_for_lease,
            look_soon=self._look_soon.set,
            broken=self._broken,
        )
        hands.tell_round = self._tell_round
        hands.tell_waiver_over = self._tell_lease_kept
        return GuardianLease(kit, hands, paths=self._paths, boot=self._boot, clock=self._clock)

    def connect(self, link: HostLink) -> None:
        self._link = link

    @property
    def agent_instance(self) -> str | None:
        """The server instance of the agent's live session (M1)."""
        return self._agent_instance

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._channel.run(), name="agent socket")
                group.create_task(self._look_again(), name="looks")
                group.create_task(self._pulse_back(), name="pulses")
                if self.certificate is not None:
                    group.create_task(self.certificate.run(), name="certificate")
                if self.listener is not None:
                    address, port = self._probe_at
                    answers = self.listener.run(port, address=address)
                    group.create_task(answers, name="neighbours' probes")
                link_task = None
                if self._link is not None:
                    link_task = group.create_task(self._link.run(), name="link")
                notify("READY=1")
                await self.stopping.wait()
                notify("STOPPING=1")
                if self._link is not None and link_task is not None:
                    self._link.close()
                    await asyncio.wait([link_task], timeout=PULSE_S)
                raise _Stop
        except* _Stop:
            self._log_stop()
        finally:
            if self.probes is not None:
                self.probes.stop()
            if self.lease is not None:
                self.lease.stop()
            if self._timer is not None:
                self._timer.cancel()
        if self._failure is not None:
            raise self._failure

    def _log_stop(self) -> None:
        if self.lease is not None and self.lease.watchdog_ms:
            _log.warning(
                "guardian stopped; no VM was touched, but the host's watchdog resets it unless a guardian begins in time",
                within_ms=self.lease.watchdog_ms,
            )
        else:
            _log.info("guardian stopped; no VM was touched")

    def _broken(self, error: Exception) -> None:
        _log.critical(
            "the guardian's lease broke; the watchdog has to end this host", error=repr(error)
        )
        self._failure = error
        self.stopping.set()

    # The core

    def step(self, *events: GuardianEvent) -> None:
        decision = self._core.step(self._clock.monotonic_ms(), events)
        for command in decision.commands:
            self._carry_out(command)
        self._arm(decision.wake_at)

    def _arm(self, wake_at: Millis | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wake_at is not None:
            delay_s = max(0, wake_at - self._clock.monotonic_ms()) / 1_000
            self._timer = self._loop.call_later(delay_s, self.step)

    def _carry_out(self, command: GuardianCommand) -> None:
        match command:
            case SendBeat():
                self._send(command)
            case Kill(process=process):
                _log.warning("killing an ungranted QEMU", pid=process.pid, vm=process.vm_id)
                self._killer.put(lambda: _kill(process))
            case Report():
                self._report(command)

    def _send(self, beat: SendBeat) -> None:
        if self._link is not None:
            self._link.send_beat(
                Beat(
                    sequence=beat.sequence,
                    boot=beat.boot,
                    monotonic_ms=beat.monotonic_ms,
                    inventory_revision=beat.inventory_revision,
                    agent_alive=beat.agent_alive,
                    wall_ms=self._clock.wall_ms(),
                )
            )

    def _report(self, report: Report) -> None:
        event = Happened(code=report.code, vm_id=report.vm_id, fields=report.fields)
        self._report_number += 1
        number, at_ms = self._report_number, self._clock.wall_ms()
        written = threading.Event()
        if report.code == KILLED:
            self._causes[int(report.fields["pid"] or 0)] = written

        def write() -> None:
            self._reports.write(event, at_ms=at_ms, number=number)
            written.set()
            with suppress(RuntimeError):  # the loop has ended; the agent looks when it starts
                self._loop.call_soon_threadsafe(
                    self._channel.tell, Pulse(server_instance=self._instance(), reports=True)
                )

        self._writer.put(write)

    def _kill_for_lease(self, process: QemuProcess) -> None:
        """Its cause first, if that takes no time: a disk that hangs must not save it."""
        _log.warning("killing a QEMU: its lease is lost", pid=process.pid, vm=process.vm_id)
        cause = self._causes.pop(process.pid, None)
        latest_s = time.monotonic() + CAUSE_S

        def work() -> None:
            if cause is not None:
                cause.wait(max(0, latest_s - time.monotonic()))
            _kill(process)

        self._killer.put(work)

    # What it is told

    def _on_pulse(self, pulse: Pulse) -> None:
        self._agent_instance = pulse.server_instance
        self.step(AgentPulse(inventory_revision=pulse.inventory_revision))

    def _on_gone(self) -> None:
        self._agent_instance = None
        self.step(AgentGone())

    async def _look_again(self) -> None:
        while True:
            self._look_soon.clear()
            if not self._looking:
                self._looking = self._looker.put(self._look_now)
            if self.lease is not None and self.lease.hurried:
                await asyncio.sleep(LOOK_HURRIED_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look_soon.wait()

    def _look_now(self) -> None:
        """In the worker."""
        began_ms = self._clock.monotonic_ms()
        seen: ProcessesSeen | None = None
        leased: LedgerLook | None = None
        settings: HostSettings | None = None
        runs_ms = 0
        try:
            if self.lease is not None and self._lease_kit is not None:
                settings = self._settings.read()
                if not self.lease.states():
                    runs_ms = self._lease_kit.watchdog.runs_ms()
            seen = self._look(self._paths, self._boot)
            leased = self._look_at_leased(seen, settings)
        except OSError as error:
            _log.error("can't look at the processes", error=str(error))
        except Exception:
            # A mistake of ours: it must not be the last look, for nobody would notice that there are none.
            _log.exception("a look at the processes broke")
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._looked, seen)
            if self.lease is not None:
                self._loop.call_soon_threadsafe(
                    self._tell_lease, began_ms, leased, settings, runs_ms
                )

    def _look_at_leased(
        self, seen: ProcessesSeen, settings: HostSettings | None
    ) -> LedgerLook | None:
        """None: which are managed can't be read. Not to be seen is not to be dead."""
        if self.lease is None or seen.managed is None:
            return None
        managed = [each for each in seen.processes if each.vm_id in seen.managed]
        return self._ledger.look(managed, disks_of(settings), self.lease.roots)

    def _tell_lease(
        self,
        began_ms: Millis,
        leased: LedgerLook | None,
        settings: HostSettings | None,
        runs_ms: int,
    ) -> None:
        assert self.lease is not None
        if settings is not None:
            self.lease.settle(settings, runs_ms)
        if leased is not None:
            self.lease.looked(began_ms, leased)

    def _looked(self, seen: ProcessesSeen | None) -> None:
        self._looking = False
        if seen is not None:
            self.step(seen)

    async def _pulse_back(self) -> None:
        while True:
            self._channel.tell(Pulse(server_instance=self._instance()))
            await asyncio.sleep(PULSE_S)

    def _instance(self) -> str | None:
        return self._link.server_instance if self._link is not None else None

    # Leases: what the leader asks, and what it is told

    def on_lease(self, order: LeaseOrder) -> None:
        lease = self.lease
        if lease is None or (not isinstance(order, StopReading) and order.boot != self._boot):
            return
        match order:
            case ReadSlots(duty=duty):
                lease.duties[duty.domain_id] = duty
            case StopReading(domain_id=domain_id):
                lease.duties.pop(domain_id, None)
            case WaiveLease(waiver_id=waiver_id, domain_id=domain_id):
                self._waivers[domain_id] = waiver_id
                lease.tell(WaiverGiven(domain_id=domain_id))
            case KeepLease(waiver_id=waiver_id, domain_id=domain_id):
                self._waivers[domain_id] = waiver_id
                lease.tell(WaiverEnded(domain_id=domain_id))

    def _tell_round(self, seen: SlotRound) -> None:
        if self._link is not None:
            self._link.send_lease(told_round(seen))

    def _tell_lease_kept(self, domain_id: StorageDomainId) -> None:
        waiver_id = self._waivers.get(domain_id)
        if self._link is not None and waiver_id is not None:
            self._link.send_lease(
                LeaseKept(waiver_id=waiver_id, boot=self._boot, domain_id=domain_id)
            )

    # Neighbours

    def on_witness(self, order: WitnessOrder) -> None:
        """Disks are the agent's to look at."""
        if isinstance(order, ProbeHost) and self.probes is not None:
            self.probes.ask(order)

    def _tell_probed(self, answer: HostProbed) -> None:
        if self._link is not None:
            self._link.send_witness(answer)

    # HostLinkEvents

    def on_connected(self, welcome: Welcome, address: str) -> None:
        _log.info("connected", server=address)
        self.step(Welcomed(beat_interval_ms=welcome.beat_interval_ms))
        if self.lease is not None:
            self.lease.tell(Welcomed(beat_interval_ms=welcome.beat_interval_ms))

    def on_pace(self, pace: Pace) -> None:
        _log.info("pace", beat_interval_ms=pace.beat_interval_ms, silence_ms=pace.silence_ms)
        self.step(Paced(beat_interval_ms=pace.beat_interval_ms))

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        _log.info("no session", server=address, code=code, detail=message)
        self.step(LinkLost())
        if self.lease is not None:
            self.lease.duties.clear()  # said again in the next session
            self.lease.tell(LinkLost())

    def on_settings(self, settings: HostSettings) -> None:
        _log.warning(SETTINGS_IGNORED, revision=settings.revision)

    def on_order(self, order: Order) -> None:
        _log.warning(SETTINGS_IGNORED, operation=order.operation_id)

    def on_facts_acknowledged(self, sequence: int) -> None:
        """Guardians send no facts."""

    def on_beat_acknowledged(self, sequence: int) -> None:
        """The session itself watches for a silent server."""


class _Stop(Exception):
    pass


def _kill(process: QemuProcess) -> None:
    if not kill(process):
        _log.info("it had ended by itself", pid=process.pid)


def lock_memory() -> bool:
    """mlockall(2): under memory pressure a swapped-out guardian would be a silent one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0:
        return True
    _log.warning("memory can't be locked", error=os.strerror(ctypes.get_errno()))
    return False


def make_lease_kit(identity: Identity, paths: AgentPaths) -> LeaseKit:
    """A lab's host has a stand-in for its watchdog, or none; any other has what its kernel has, for the lab's kernel is
    not its own."""
    watchdog: HostWatchdog
    reset: HostReset
    standin = os.environ.get("VIRTHA_HOST_WATCHDOG")
    if standin is None and boot_id_file() != KERNEL_BOOT_ID_FILE:
        standin = str(paths.run / "host-watchdog.sock")
    if standin is not None:
        watchdog = reset = StandinWatchdog(Path(standin))
        nature = read_nature(watchdog_is_real_because="a program outside of the lab's host")
    else:
        watchdog, reset, nature = KernelWatchdog(), SysrqReset(), read_nature()

    def slots_of(domain: StorageDomain) -> HeartbeatSlots:
        return open_slots(domain, identity.installation_id, locked=True)

    return LeaseKit(
        installation_id=identity.installation_id,
        host_id=identity.host_id,
        index=slot_index(identity.number),
        nature=nature,
        watchdog=watchdog,
        reset=reset,
        slots_of=slots_of,
    )


async def run_guardian(paths: AgentPaths) -> None:
    """``virtha guardian``. Raises Failed, InvalidInput; returns after SIGTERM or SIGINT."""
    threading.stack_size(STACK_BYTES)
    identity = load_identity(paths)
    properties = load_agent_properties(paths)
    credentials = load_credentials(paths, identity)
    boot = read_boot_id()
    paths.make_directories(grants=False)
    lock = hold_lock(paths, "guardian")
    process = GuardianProcess(
        paths=paths,
        boot=boot,
        clock=MachineClock(),
        files=Files(),
        lease_kit=make_lease_kit(identity, paths),
        credentials=credentials,
        probe_port=properties.probe_port or None,
    )
    link = HostLink(
        servers=properties.host or identity.servers,
        credentials=credentials,
        role=PeerRole.GUARDIAN,
        boot=boot,
        events=process,
        hello_state=HelloState,
        live_instance=lambda: process.agent_instance,
        on_lease=process.on_lease,
        on_pace=process.on_pace,
        on_witness=process.on_witness,
        program_version=__version__,
    )
    process.connect(link)
    lock_memory()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stopping.set)
    try:
        await process.run()
    finally:
        os.close(lock)
