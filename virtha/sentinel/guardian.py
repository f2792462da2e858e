"""The guardian's core, pure: beats while there is a session, and the end of ungranted QEMUs.

It knows neither libvirt nor the disk, so it goes on when both hang (safety.md, section 3). It does
not heed `virtha hold`: an ungranted copy is a second writer, whatever the operator holds.

What the caller owes to it:

- In each look the processes are listed *before* the grants are read, and a grant is written before
  its QEMU is made, so a process without a grant in one look is the exception already.
- A grant file stays until its VM's exit was seen: ``granted`` means "may have a QEMU in this boot",
  not "its starting time has not run out". An adopted VM gets its grant before it counts as managed.
"""

from collections.abc import Iterable, Sequence

from virtha.model.ids import BootId, VmId
from virtha.model.time import Millis
from virtha.model.value import Fields, Value

PULSE_FRESH_MS = 2_000
"""The agent pulses twice a second; four in a row missing is a dead or hung agent."""
UNGRANTED_MS = 1_000
"""Least time between the two looks that condemn: libvirt's hook runs 10 to 200 ms before QEMU's exec."""
KILL_DEADLINE_MS = 5_000
"""A killed process that is not in uninterruptible sleep is reaped within milliseconds."""


class QemuProcess(Value, frozen=True, kw_only=True):
    """One QEMU; ``pid`` and ``start_ticks`` (field 22 of /proc/PID/stat) together are never reused."""

    pid: int
    start_ticks: int
    vm_id: VmId


class Welcomed(Value, frozen=True, kw_only=True):
    """The guardian's session is up; beats may flow."""

    beat_interval_ms: int


class Paced(Value, frozen=True, kw_only=True):
    """The policy has changed: the session stands, its beats are to come at another interval."""

    beat_interval_ms: int


class LinkLost(Value, frozen=True, kw_only=True):
    pass


class AgentPulse(Value, frozen=True, kw_only=True):
    """The agent's loop turned: sent by the loop itself, not by a thread of its own."""

    inventory_revision: int


class AgentGone(Value, frozen=True, kw_only=True):
    """The agent's end of the local socket is closed."""


class ProcessesSeen(Value, frozen=True, kw_only=True):
    """One look at the host. ``None``: the records could not be read; unknown never kills."""

    processes: tuple[QemuProcess, ...]
    managed: frozenset[VmId] | None
    granted: frozenset[VmId] | None


GuardianEvent = Welcomed | Paced | LinkLost | AgentPulse | AgentGone | ProcessesSeen


class SendBeat(Value, frozen=True, kw_only=True):
    """The fields of `virtha.wire.messages.Beat`; the caller adds the wall clock."""

    sequence: int
    boot: BootId
    monotonic_ms: int
    inventory_revision: int
    agent_alive: bool


class Kill(Value, frozen=True, kw_only=True):
    """SIGKILL by pidfd, after checking ``start_ticks`` on that pidfd's process."""

    process: QemuProcess
    code: str


class Report(Value, frozen=True, kw_only=True):
    """Say it: to the agent, which makes it a fact, or to the log while there is none."""

    code: str
    vm_id: VmId | None = None
    fields: Fields = {}


GuardianCommand = SendBeat | Kill | Report


class GuardianDecision(Value, frozen=True, kw_only=True):
    commands: tuple[GuardianCommand, ...] = ()
    wake_at: Millis | None = None


class Guardian:
    """One per host and process. Invariant: whom it kills was ungranted in two known looks."""

    def __init__(self, boot: BootId, now: Millis) -> None:
        self._boot = boot
        self._now = now
        self._sequence = 0
        self._interval_ms: int | None = None
        self._beat_at = now
        self._pulse_at: Millis | None = None
        self._inventory_revision = 0
        self._alive_said: bool | None = None
        self._waits_until = now
        """What the last step waits for; in the past if it waits for nothing."""
        self._all_well: ProcessesSeen | None = None
        """The last look, if nobody was suspected and no kill was open: the same again says nothing new."""
        self._suspects: dict[QemuProcess, Millis] = {}
        self._killed: dict[QemuProcess, tuple[Millis, int]] = {}

    def step(self, now: Millis, events: Iterable[GuardianEvent]) -> GuardianDecision:
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now
        commands: list[GuardianCommand] = []
        for event in events:
            commands += self._fold(event)
        if self._interval_ms is None:
            self._waits_until = now
            return GuardianDecision(commands=tuple(commands))
        alive = self._agent_alive()
        # A change is told at once: "agent down" must not wait out a slow beat.
        if now >= self._beat_at or alive != self._alive_said:
            commands.append(self._beat(self._interval_ms, alive=alive))
        self._waits_until = self._wake_at(alive=alive)
        return GuardianDecision(commands=tuple(commands), wake_at=self._waits_until)

    def takes_in_passing(self, now: Millis, event: ProcessesSeen | AgentPulse) -> bool:
        """Most of what a guardian hears is what it heard before. True: the event was taken, and a step with it would
        decide nothing and wait for the same moment. False: it was not taken, and needs a step."""
        if now >= self._waits_until:
            return False
        if event is self._all_well:
            return True
        waits_for_pulse = self._waits_until != self._beat_at
        if type(event) is not AgentPulse or not self._alive_said or waits_for_pulse:
            return False
        self._now = self._pulse_at = now
        self._inventory_revision = event.inventory_revision
        return True

    def _fold(self, event: GuardianEvent) -> Sequence[GuardianCommand]:
        match event:
            case Welcomed(beat_interval_ms=interval_ms):
                self._interval_ms = max(interval_ms, 1)
                self._beat_at = self._now
            case Paced(beat_interval_ms=interval_ms):
                self._interval_ms = max(interval_ms, 1)
                # Not now: all guardians of a cluster are told at once, and would beat together from then on.
                self._beat_at = min(self._beat_at, Millis(self._now + self._interval_ms))
            case LinkLost():
                self._interval_ms = None
                self._alive_said = None
            case AgentPulse(inventory_revision=revision):
                self._pulse_at = self._now
                self._inventory_revision = revision
            case AgentGone():
                self._pulse_at = None
            case ProcessesSeen():
                return self._look(event)
        return ()

    # Beats

    def _agent_alive(self) -> bool:
        return self._pulse_at is not None and self._now - self._pulse_at < PULSE_FRESH_MS

    def _beat(self, interval_ms: int, *, alive: bool) -> SendBeat:
        self._sequence += 1
        self._alive_said = alive
        # Counted from now: after a stall one beat goes out, not a burst of those that were missed.
        self._beat_at = Millis(self._now + interval_ms)
        return SendBeat(
            sequence=self._sequence,
            boot=self._boot,
            monotonic_ms=self._now,
            inventory_revision=self._inventory_revision,
            agent_alive=alive,
        )

    def _wake_at(self, *, alive: bool) -> Millis:
        """For the next beat, or for the pulse that will be missing."""
        if self._pulse_at is not None and alive:
            stale_at = Millis(self._pulse_at + PULSE_FRESH_MS)
            return stale_at if stale_at < self._beat_at else self._beat_at
        return self._beat_at

    # Kills

    def _look(self, seen: ProcessesSeen) -> list[GuardianCommand]:
        if seen == self._all_well:
            return []
        self._all_well = None
        commands = self._confirm_kills(seen)
        if seen.managed is None or seen.granted is None:
            # Unreadable records say nothing, so they also interrupt a suspicion.
            self._suspects.clear()
            return commands
        ungranted = [
            process
            for process in sorted(seen.processes, key=lambda process: process.pid)
            if process.vm_id in seen.managed and process.vm_id not in seen.granted
        ]
        if not ungranted and not self._killed:
            self._all_well = seen
        self._suspects = {process: self._suspects.get(process, self._now) for process in ungranted}
        for process, since in self._suspects.items():
            if self._now - since >= UNGRANTED_MS and process not in self._killed:
                commands += self._kill(process, attempt=1)
        return commands

    def _kill(self, process: QemuProcess, *, attempt: int) -> list[GuardianCommand]:
        self._killed[process] = (self._now, attempt)
        told: list[GuardianCommand] = []
        if attempt == 1:
            told = [Report(code="vm.unmanaged_copy", vm_id=process.vm_id, fields=_fields(process))]
        return [Kill(process=process, code="host.guardian.killed_vm"), *told]

    def _confirm_kills(self, seen: ProcessesSeen) -> list[GuardianCommand]:
        commands: list[GuardianCommand] = []
        for process, (since, attempt) in list(self._killed.items()):
            if process not in seen.processes:
                del self._killed[process]
                commands.append(
                    Report(
                        code="host.guardian.killed_vm",
                        vm_id=process.vm_id,
                        fields=_fields(process),
                    )
                )
            elif self._now - since >= KILL_DEADLINE_MS:
                commands += self._repeat_kill(process, seen, attempt)
        return commands

    def _repeat_kill(
        self, process: QemuProcess, seen: ProcessesSeen, attempt: int
    ) -> list[GuardianCommand]:
        if seen.managed is None or seen.granted is None:
            return []
        if process.vm_id not in seen.managed or process.vm_id in seen.granted:
            return []
        # The host reset that ends what no signal ends comes with the host watchdog.
        unconfirmed = Report(
            code="host.guardian.kill_unconfirmed",
            vm_id=process.vm_id,
            fields={**_fields(process), "attempt": attempt},
        )
        return [*self._kill(process, attempt=attempt + 1), unconfirmed]


def _fields(process: QemuProcess) -> Fields:
    return {"vm": process.vm_id, "pid": process.pid}
