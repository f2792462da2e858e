"""A simulated guardian: the real core and its own session."""

from functools import partial
from typing import TYPE_CHECKING

from virtha.model.facts import Happened
from virtha.model.ids import HostId, Term
from virtha.model.orders import HostSettings, Order
from virtha.model.time import Millis
from virtha.sentinel.guardian import (
    AgentPulse,
    Guardian,
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
from virtha.sim.kernel import Actor
from virtha.sim.lease import SimLease
from virtha.sim.line import HostLink
from virtha.wire.messages import (
    PACE_FEATURE,
    VERSION_MAJOR,
    VERSION_MINOR,
    Beat,
    Hello,
    Pace,
    PeerRole,
    Welcome,
)

if TYPE_CHECKING:
    from virtha.sim.host import SimHost

LOOK_MS = 1_000


class SimGuardian:
    def __init__(self, host: "SimHost") -> None:
        self.host = host
        self.kernel = Actor(host.kernel)
        self.core = Guardian(host.boot, host.clock())
        self.alive = False
        """From ``begin`` to ``die``."""
        self._term_seen = Term(0)
        self._wakes = 0
        self._wake_at: Millis | None = None
        self._seen: tuple[int, tuple[QemuProcess, ...]] = (-1, ())
        self._look_before = ProcessesSeen(processes=(), managed=None, granted=None)
        self.lease = SimLease(self, host.lease) if host.lease is not None else None
        self.link = HostLink(
            host, self.kernel, self, hello=self._hello, live_instance=self._agent_instance
        )

    def begin(self) -> None:
        self.alive = True
        self.link.dial()
        if self.lease is not None:
            self.lease.begin()
        self._look()

    def die(self) -> None:
        self.link.kill()
        if self.lease is not None:
            self.lease.die()
        self.alive = False

    def hear(self, event: ProcessesSeen | AgentPulse) -> None:
        """What comes all the time, and mostly says what was said before."""
        awake = self.alive and not self.kernel.root.frozen_actors
        if not awake or not self.core.takes_in_passing(self.host.clock(), event):
            self.tell(event)

    def tell(self, *events: GuardianEvent) -> None:
        if self.kernel.root.frozen_actors:
            self.kernel.deliver(self._take, events)
        else:
            self._take(events)

    def _take(self, events: tuple[GuardianEvent, ...]) -> None:
        if not self.alive:
            return
        now = self.host.clock()
        decision = self.core.step(now, events)
        for command in decision.commands:
            match command:
                case SendBeat():
                    self._send(command)
                case Kill(process=process):
                    self._kill(process)
                case Report():
                    self._report(command)
        if decision.wake_at != self._wake_at:
            self._wake(decision.wake_at, now)

    def _wake(self, wake_at: Millis | None, now: Millis) -> None:
        """Not the moment that it waits for already: that one is on its way."""
        self._wake_at = wake_at
        self._wakes += 1
        if wake_at is not None:
            mine = self._wakes
            delay_ms = wake_at - now
            self.kernel.after(delay_ms if delay_ms > 0 else 0, partial(self._awake, mine))

    def _awake(self, mine: int) -> None:
        if mine == self._wakes:
            self._wake_at = None
            self.tell()

    def _send(self, beat: SendBeat) -> None:
        self.link.send_beat(
            Beat(
                sequence=beat.sequence,
                boot=beat.boot,
                monotonic_ms=beat.monotonic_ms,
                inventory_revision=beat.inventory_revision,
                agent_alive=beat.agent_alive,
            )
        )

    def _look(self) -> None:
        if not self.alive:
            return
        host = self.host
        if self._seen[0] != host.libvirt.processes:
            self._seen = (host.libvirt.processes, self._processes())
        processes = self._seen[1]
        known = not host.records_hidden
        managed = host.disk.gate_managed if known else None
        granted = host.grants.keys() if known and host.grants_complete else None
        seen = self._look_before
        if (
            seen.processes is not processes
            or seen.managed is not managed
            or seen.granted != granted
        ):
            seen = self._look_before = ProcessesSeen(
                processes=processes,
                managed=managed,
                granted=None if granted is None else frozenset(granted),
            )
        self.hear(seen)
        if self.lease is not None:
            self.lease.look(processes)
        self.kernel.after(LOOK_MS, self._look)

    def _processes(self) -> tuple[QemuProcess, ...]:
        return tuple(
            QemuProcess(
                pid=domain.qemu.pid, start_ticks=domain.qemu.start_ticks, vm_id=domain.vm_id
            )
            for domain in self.host.libvirt
            if domain.qemu is not None
        )

    def _kill(self, process: QemuProcess) -> None:
        domain = self.host.libvirt.find(process.vm_id)
        same = domain is not None and domain.qemu is not None and domain.qemu.pid == process.pid
        if same:
            self.host.libvirt.kill_qemu(process.vm_id)

    def _report(self, report: Report) -> None:
        event = Happened(code=report.code, vm_id=report.vm_id, fields=report.fields)
        self.host.disk.reports.append(event)
        if self.host.agent is not None:
            self.host.agent.collect_reports()

    # The session

    def _hello(self) -> Hello:
        return Hello(
            version_major=VERSION_MAJOR,
            version_minor=VERSION_MINOR,
            features=(PACE_FEATURE,),
            role=PeerRole.GUARDIAN,
            host_id=HostId(self.host.name),
            boot=self.host.boot,
            term_seen=self._term_seen,
        )

    def _agent_instance(self) -> str | None:
        """Of the agent's live session (M1)."""
        return self.host.agent.link.server_instance if self.host.agent is not None else None

    def on_connected(self, welcome: Welcome) -> None:
        self._term_seen = max(self._term_seen, welcome.term)  # as virtha.drivers.link keeps it
        self.tell(Welcomed(beat_interval_ms=welcome.beat_interval_ms))
        if self.lease is not None:
            self.lease.connected(welcome.beat_interval_ms)

    def on_pace(self, pace: Pace) -> None:
        self.tell(Paced(beat_interval_ms=pace.beat_interval_ms))

    def on_disconnected(self, code: str) -> None:
        self.tell(LinkLost())
        if self.lease is not None:
            self.lease.disconnected()

    def on_settings(self, settings: HostSettings) -> None:
        """Settings and orders are the agent's."""

    def on_order(self, order: Order) -> None:
        """Settings and orders are the agent's."""

    def on_facts_acknowledged(self, sequence: int) -> None:
        """Guardians send no facts."""
