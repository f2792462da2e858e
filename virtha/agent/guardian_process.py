"""The guardian: beats while there is a session, and the end of ungranted QEMUs.

It knows neither libvirt nor storage, its memory is locked, and it outlives the agent. The event loop
does nothing but beats and the local socket; whatever may wait (``/proc`` of a process in trouble,
files) runs in a thread of its own, so that a beat never waits for it.
"""

import asyncio
import ctypes
import os
import queue
import signal
import threading
from collections.abc import Callable

import structlog

from virtha import __version__
from virtha.agent.files import Files
from virtha.agent.guardian_channel import GuardianServer, Pulse, ReportFiles
from virtha.agent.host_clock import BoottimeClock, read_boot_id
from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import hold_lock
from virtha.agent.process_table import kill, look
from virtha.agent.properties import load_agent_properties
from virtha.drivers.link import HelloState, HostLink
from virtha.drivers.service_notify import notify
from virtha.model.facts import Happened
from virtha.model.ids import BootId
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.ports.clock import Clock
from virtha.sentinel.guardian import (
    AgentGone,
    AgentPulse,
    Guardian,
    GuardianCommand,
    GuardianEvent,
    Kill,
    LinkLost,
    ProcessesSeen,
    QemuProcess,
    Report,
    SendBeat,
    Welcomed,
)
from virtha.wire.messages import Beat, PeerRole, Welcome

LOOK_S = 1.0
WORK_MAX = 1_000
PULSE_S = 1.0
SETTINGS_IGNORED = "settings and orders are the agent's"
_MCL_CURRENT, _MCL_FUTURE = 1, 2

_log = structlog.get_logger(__name__)


class _Worker:
    """One daemon thread for kills, looks and files; bounded, and a full queue is told, not waited for."""

    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None]] = queue.Queue(maxsize=WORK_MAX)
        threading.Thread(target=self._run, name="virtha-guardian-work", daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except OSError as error:
                _log.error("guardian's work failed", error=str(error))

    def put(self, work: Callable[[], None]) -> bool:
        try:
            self._work.put_nowait(work)
        except queue.Full:
            _log.error("the guardian's worker hangs; work is left out")
            return False
        return True


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
    ) -> None:
        self._paths = paths
        self._boot = boot
        self._clock = clock
        self._look = look
        self._core = Guardian(boot, clock.monotonic_ms())
        # Kills have a thread of their own: no look at /proc that hangs may hold one up.
        self._looker = _Worker()
        self._killer = _Worker()
        self._writer = _Worker()
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
            _log.info("guardian stopped; no VM was touched")
        finally:
            if self._timer is not None:
                self._timer.cancel()

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

        def write() -> None:
            self._reports.write(event, at_ms=at_ms, number=number)
            self._loop.call_soon_threadsafe(
                self._channel.tell, Pulse(server_instance=self._instance(), reports=True)
            )

        self._writer.put(write)

    # What it is told

    def _on_pulse(self, pulse: Pulse) -> None:
        self._agent_instance = pulse.server_instance
        self.step(AgentPulse(inventory_revision=pulse.inventory_revision))

    def _on_gone(self) -> None:
        self._agent_instance = None
        self.step(AgentGone())

    async def _look_again(self) -> None:
        while True:
            if not self._looking:
                self._looking = self._looker.put(self._look_now)
            await asyncio.sleep(LOOK_S)

    def _look_now(self) -> None:
        """In the worker."""
        try:
            seen: ProcessesSeen | None = self._look(self._paths, self._boot)
        except OSError as error:
            _log.error("can't look at the processes", error=str(error))
            seen = None
        self._loop.call_soon_threadsafe(self._looked, seen)

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

    # HostLinkEvents

    def on_connected(self, welcome: Welcome, address: str) -> None:
        _log.info("connected", server=address)
        self.step(Welcomed(beat_interval_ms=welcome.beat_interval_ms))

    def on_disconnected(self, code: str, message: str, address: str) -> None:
        _log.info("no session", server=address, code=code, detail=message)
        self.step(LinkLost())

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


async def run_guardian(paths: AgentPaths) -> None:
    """``virtha guardian``. Raises Failed, InvalidInput; returns after SIGTERM or SIGINT."""
    identity = load_identity(paths)
    properties = load_agent_properties(paths)
    credentials = load_credentials(paths, identity)
    boot = read_boot_id()
    paths.make_directories(grants=False)
    lock = hold_lock(paths, "guardian")
    process = GuardianProcess(paths=paths, boot=boot, clock=BoottimeClock(), files=Files())
    link = HostLink(
        servers=properties.host or identity.servers,
        credentials=credentials,
        role=PeerRole.GUARDIAN,
        boot=boot,
        events=process,
        hello_state=HelloState,
        live_instance=lambda: process.agent_instance,
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
