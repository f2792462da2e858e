"""The host whose lease is judged: its kernel, its watchdog, and the real guardian core on top of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lease_blocks import BOOT, DOMAIN, IO_US, LOOK_US, OURS, US, VM, WRITER, Clock, place

from virtha.model.ids import HostId, StorageDomainId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import (
    BlockFault,
    Mailbox,
    Unreadable,
    decode_mailbox,
    decode_slot,
    encode_slot,
)
from virtha.model.time import Millis
from virtha.sentinel.guardian import Kill, QemuProcess, Welcomed
from virtha.sentinel.guardian_lease import LeaseGuardian
from virtha.sentinel.lease_events import (
    AllowStarts,
    ArmWatchdog,
    DomainAttached,
    FeedWatchdog,
    HostNature,
    LeaseCommand,
    LeasedQemu,
    LeaseEvent,
    LeaseOwner,
    QemuEnded,
    QemusSeen,
    RenewDone,
    RenewSlot,
    ResetHost,
    WaiverGiven,
    WaiverOver,
    WatchdogArmed,
    WatchdogFailed,
    WatchdogFed,
)

if TYPE_CHECKING:
    from lease_world import World


class Qemu:
    def __init__(self, pid: int) -> None:
        self.process = QemuProcess(pid=pid, start_ticks=pid, vm_id=VM)
        self.running = False
        self.killed = False
        self.gone = False


class Writer:
    """The host under test: hardware watchdog, kernel queue, QEMUs, guardian, its worker and its feeder."""

    def __init__(
        self,
        world: "World",
        policy: LeasePolicy,
        *,
        clock: Clock,
        watchdog_clock: Clock,
        has_watchdog: bool,
        no_way_out: bool,
    ) -> None:
        self.world, self.policy, self.clock = world, policy, clock
        self._watchdog_clock = watchdog_clock
        self._has_watchdog, self._no_way_out = has_watchdog, no_way_out
        self.up = True
        self.reset_at: int | None = None
        # The adversary's levers
        self.path_up = True
        self.write_errors = False
        self.reset_works = True
        self.read_lag_us = 0
        self.frozen_until = 0
        self.act_delay_us = 0
        self.report_delay_us = 0
        self.feed_delay: Callable[[], int] = lambda: 0
        self.tear_next = False
        # The kernel
        self._queue: list[Callable[[], None]] = []
        self.qemus: list[Qemu] = []
        self._stuck: set[int] = set()
        self._pids = 100
        # The watchdog
        self._generation = 0
        self.bites_at: int | None = None
        self.fed_at = 0
        self._timeout_ms = 0
        self.feeder_free_at = 0
        # The guardian
        self.allowed_until: Millis | None = None
        self.renewed_at: list[int] = []
        self.waiver_over = False
        self.waived: set[tuple[HostId, StorageDomainId]] = set()
        """What the leader has on record: given again to each new guardian."""
        self.life = 0
        self._start_guardian(first_of_boot=True)
        self.start_vm()

    # Guardian

    def _start_guardian(self, *, first_of_boot: bool) -> None:
        self.life += 1
        self._inbox: list[LeaseEvent] = [Welcomed(beat_interval_ms=1_000)]
        self._busy_until = self.world.now
        self._step_at: int | None = None
        self.core = LeaseGuardian(
            owner=LeaseOwner(installation_id=OURS, host_id=WRITER),
            boot=BOOT,
            nature=HostNature(is_virtual=False, suspend_blocked=True),
            policy=self.policy,
            now=self.clock.read(self.world.now),
            first_of_boot=first_of_boot,
            watchdog_runs_ms=0 if first_of_boot else self._timeout_ms,
        )
        self._attach()
        self._look(self.life)

    def _attach(self) -> None:
        life = self.life
        unread = Unreadable(fault=BlockFault.UNREAD)
        self.tell(DomainAttached(domain_id=DOMAIN, index=0, own=unread, direct_io=True))
        if (WRITER, DOMAIN) in self.waived:
            self.tell(WaiverGiven(domain_id=DOMAIN))

        def read() -> None:
            own = decode_slot(self.world.blocks.read("slot w", self.world.now), place(WRITER))
            event = DomainAttached(domain_id=DOMAIN, index=0, own=own, direct_io=True)
            self._tell(event, life)

        self._io(read)

    def restart_guardian(self) -> None:
        """Killed and started again by its supervisor; what it had given to the kernel goes on."""
        if self.up:
            self._watchdog_released()
            self._start_guardian(first_of_boot=False)

    def kill_guardian(self) -> None:
        self.life += 1
        self._watchdog_released()

    def _tell(self, event: LeaseEvent, life: int) -> None:
        if life == self.life and self.up:
            self._inbox.append(event)
            self._wake(self.world.now)

    def tell(self, event: LeaseEvent) -> None:
        self._tell(event, self.life)

    def _wake(self, when: int) -> None:
        when = max(when, self._busy_until, self.frozen_until)
        if self._step_at is None or when < self._step_at or self._step_at < self.world.now:
            self._step_at = when
            life = self.life
            self.world.at(when, lambda: self._step(life, when))

    def _step(self, life: int, planned: int) -> None:
        if life != self.life or not self.up or self._step_at != planned:
            return
        self._step_at = None
        ready = max(self._busy_until, self.frozen_until)
        if self.world.now < ready:
            self._wake(ready)
            return
        events, self._inbox = self._inbox, []
        decision = self.core.step(self.clock.read(self.world.now), events)
        at_ms = decision.wake_at
        wake = None if at_ms is None else self.clock.when(at_ms)
        commands = decision.commands
        # Frozen between check and act: what was decided is carried out later, and nothing else meanwhile.
        self._busy_until = self.world.now + self.act_delay_us

        def act() -> None:
            if life != self.life or not self.up:
                return
            if self.world.now < self.frozen_until:
                self._busy_until = self.frozen_until
                self.world.at(self.frozen_until, act)
                return
            for command in commands:
                self._carry_out(command)
            if wake is not None or self._inbox:
                self._wake(self.world.now if self._inbox else wake or 0)

        if self.act_delay_us:
            self.world.at(self._busy_until, act)
        else:
            act()

    def _carry_out(self, command: LeaseCommand) -> None:
        match command:
            case RenewSlot():
                self.renewed_at.append(self.world.now)
                self._renew(command, self.life)
            case Kill(process=process):
                self._kill(process)
            case ResetHost():
                if self.reset_works:
                    self.reset()
            case AllowStarts(until_ms=until_ms):
                self.allowed_until = until_ms
            case ArmWatchdog(timeout_ms=timeout_ms):
                self._arm(timeout_ms)
            case FeedWatchdog():
                self._feed(self.life)
            case WaiverOver():
                self.waiver_over = True
                self.waived.clear()
                self.world.reader.judge.set_waiver(WRITER, DOMAIN, stands=False)
            case _:
                pass

    # Its worker

    def _renew(self, command: RenewSlot, life: int) -> None:
        block = encode_slot(command.slot)
        if self.tear_next:
            self.tear_next = False
            old = self.world.blocks.read("slot w", self.world.now)
            block = block[:256] + old[256:]

        def done(written: bool) -> None:
            event = RenewDone(
                domain_id=DOMAIN,
                number=command.number,
                written=written,
                mailbox=self._read_mailbox() if written else Unreadable(fault=BlockFault.UNREAD),
            )
            self.world.after(self.report_delay_us, lambda: self._tell(event, life))

        def write() -> None:
            self.world.blocks.land("slot w", block, self.world.now)
            # The worker of a guardian that is gone reads nothing more.
            self.world.after(IO_US, lambda: done(True))

        if self.write_errors and not self.path_up:
            # An error, and the write lands all the same once the path is back.
            self._io(lambda: self.world.blocks.land("slot w", block, self.world.now))
            self.world.after(5_000 * US, lambda: done(False))
        else:
            self._io(write)

    def _read_mailbox(self) -> Mailbox | Unreadable:
        if not self.path_up or not self.up:
            return Unreadable(fault=BlockFault.UNREAD)
        block = self.world.blocks.read("mail w", self.world.now - self.read_lag_us)
        return decode_mailbox(block, place(WRITER))

    # Kernel

    def _io(self, land: Callable[[], None]) -> None:
        if self.path_up and self.up:
            self.world.after(IO_US, lambda: self._land(land))
        else:
            self._queue.append(land)

    def _land(self, land: Callable[[], None]) -> None:
        if not self.up:
            return
        if self.path_up:
            land()
        else:
            self._queue.append(land)

    def cut(self) -> None:
        """The path hangs. Each QEMU has a write under way."""
        self.path_up = False
        self._stuck |= {qemu.process.pid for qemu in self.qemus if qemu.running and not qemu.gone}

    def heal(self) -> None:
        self.path_up = True
        if not self.up:
            return
        queued, self._queue = self._queue, []
        for land in queued:
            land()
        self.land_vm_writes()

    def land_vm_writes(self) -> None:
        """Of the queue only what QEMUs wrote: a slot's write may well be the last to get through."""
        if self._stuck and self.up:
            self._stuck.clear()
            self.world.vm_wrote()
        for qemu in self.qemus:
            self._reap(qemu)

    def reset(self) -> None:
        if self.up:
            self.up = False
            self.reset_at = self.world.now
            self._queue.clear()
            self._stuck.clear()

    # QEMU

    def vm_can_write(self) -> bool:
        return (
            self.up
            and self.path_up
            and any(each.running and not each.killed for each in self.qemus)
        )

    def start_vm(self, freeze_us: int = 0) -> None:
        """Created paused; the lease is asked once it exists; frozen; then its processors run."""
        if not self.up:
            return
        self._pids += 1
        qemu = Qemu(self._pids)
        self.qemus.append(qemu)
        first = self.world.now == 0
        until = self.allowed_until
        allowed = first or (until is not None and self.clock.read(self.world.now) < until)

        def run() -> None:
            if allowed and not qemu.killed and self.up:
                qemu.running = True
                if not self.path_up:
                    self._stuck.add(qemu.process.pid)

        self.world.after(freeze_us, run)

    def _kill(self, process: QemuProcess) -> None:
        for qemu in self.qemus:
            if qemu.process == process and not qemu.killed:
                qemu.killed = True
                self._reap(qemu)

    def _reap(self, qemu: Qemu) -> None:
        if qemu.killed and not qemu.gone and qemu.process.pid not in self._stuck:
            qemu.gone = True
            self._tell(QemuEnded(process=qemu.process), self.life)

    def _look(self, life: int) -> None:
        if life != self.life or not self.up:
            return
        seen = tuple(
            LeasedQemu(process=qemu.process, domain_ids=frozenset({DOMAIN}))
            for qemu in self.qemus
            if not qemu.gone
        )
        self._tell(QemusSeen(began_ms=self.clock.read(self.world.now), qemus=seen), life)
        # One that was reaped while no guardian listened: the next look of /proc finds that out again.
        for qemu in self.qemus:
            if qemu.gone:
                self._tell(QemuEnded(process=qemu.process), life)
        self.world.after(LOOK_US, lambda: self._look(life))

    # Watchdog

    def _arm(self, timeout_ms: int) -> None:
        if not self._has_watchdog:
            self.tell(WatchdogFailed(detail="no such device"))
            return
        self._timeout_ms = timeout_ms
        self._rewind()
        self.tell(WatchdogArmed(timeout_ms=timeout_ms, no_way_out=self._no_way_out))

    def _rewind(self) -> None:
        self._generation += 1
        generation = self._generation
        self.fed_at = self.world.now
        ticks = self._watchdog_clock.read(self.world.now) + self._timeout_ms
        self.bites_at = self._watchdog_clock.when(ticks)
        self.world.at(self.bites_at, lambda: self._bite(generation))

    def _bite(self, generation: int) -> None:
        if generation == self._generation and self._timeout_ms:
            self.reset()

    def _feed(self, life: int) -> None:
        """One feeder thread: feedings wait for each other."""
        when = max(self.world.now, self.feeder_free_at)
        self.feeder_free_at = when + max(0, min(self.feed_delay(), self._latest(when) - when))

        def feed() -> None:
            if life == self.life and self.up:
                self._rewind()
                self._tell(WatchdogFed(), life)

        self.world.at(self.feeder_free_at, feed)

    def _latest(self, queued_behind: int) -> int:
        """Just before the watchdog bites, if nothing feeds it but what is queued before."""
        assert self.bites_at is not None
        if queued_behind <= self.world.now:
            return self.bites_at - IO_US
        ticks = self._watchdog_clock.read(queued_behind) + self._timeout_ms
        return self._watchdog_clock.when(ticks) - 2 * IO_US

    def _watchdog_released(self) -> None:
        """Its process is gone: without "no way out" the driver stops it."""
        if not self._no_way_out:
            self._generation += 1
