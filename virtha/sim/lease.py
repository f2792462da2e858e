"""The storage lease on a simulated host: the real lease core in its guardian, its worker, and the host's watchdog.

What the kernel has (blocks on their way, the watchdog) outlives the guardian's process; ``HostLease`` is that part,
``SimLease`` dies with the process. Between what the core decides and its doing, the process or the whole host can
be made to sleep (``trap``).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from virtha.model.facts import Happened
from virtha.model.ids import HostId, StorageDomainId, VmId
from virtha.model.policy import LeasePolicy
from virtha.model.slot import (
    BlockFault,
    Mailbox,
    MailboxReading,
    Poison,
    SlotReading,
    Unreadable,
)
from virtha.model.slot_round import SlotRound
from virtha.model.time import Millis
from virtha.sentinel.guardian import Kill, LinkLost, QemuProcess, Report, Welcomed
from virtha.sentinel.guardian_lease import LeaseGuardian
from virtha.sentinel.lease import LeaseState
from virtha.sentinel.lease_events import (
    AllowStarts,
    ArmWatchdog,
    DisarmWatchdog,
    DomainAttached,
    FeedWatchdog,
    HostNature,
    LeaseCommand,
    LeasedQemu,
    LeaseEvent,
    LeaseOwner,
    PolicySet,
    QemuEnded,
    QemusSeen,
    RenewDone,
    RenewSlot,
    ResetHost,
    WaiverOver,
    WatchdogArmed,
    WatchdogDisarmed,
    WatchdogFailed,
    WatchdogFed,
)
from virtha.sim.kernel import Kernel
from virtha.sim.line import INSTALLATION
from virtha.sim.slots import HostIo, SlotDomain
from virtha.sim.storage import SharedStorage

if TYPE_CHECKING:
    from virtha.sim.guardian import SimGuardian
    from virtha.sim.host import SimHost

KILLED = "host.lease.killed_vm"
REFUSED = "order.refused.lease"
OFF = LeasePolicy(enabled=False)
"""Until the first settings came."""
_UNREAD = Unreadable(fault=BlockFault.UNREAD)


class Duty(NamedTuple):
    """What a reader is asked to do on a domain beside its own renewals. ``poisons``: whose mailboxes, with what."""

    poisons: dict[HostId, Poison]
    tell: Callable[[SlotRound], None]


class WatchdogDevice:
    """The host's hardware: armed, it resets the host that long after its last feeding, whatever sleeps in it."""

    def __init__(
        self, kernel: Kernel, bite: Callable[[], None], *, exists: bool, no_way_out: bool
    ) -> None:
        self._kernel = kernel
        self._bite = bite
        self._exists = exists
        self.no_way_out = no_way_out
        self.timeout_ms = 0
        self._feedings = 0

    def arm(self, timeout_ms: int) -> bool:
        if not self._exists:
            return False
        self.timeout_ms = timeout_ms
        self.feed()
        return True

    def feed(self) -> None:
        self._feedings += 1
        mine = self._feedings
        self._kernel.after(self.timeout_ms, lambda: self._due(mine))

    def stop(self) -> None:
        """By its driver, or with the power."""
        self._feedings += 1
        self.timeout_ms = 0

    def released(self) -> None:
        """The process that held it is gone."""
        if not self.no_way_out:
            self.stop()

    def _due(self, mine: int) -> None:
        if mine == self._feedings and self.timeout_ms:
            self._bite()


def _is_told_first(command: LeaseCommand) -> bool:
    return isinstance(command, Report) and command.code == KILLED


class HostLease:
    """What a host has for its lease whoever runs on it. ``reset``: ends its boot, and begins the next."""

    def __init__(
        self,
        kernel: Kernel,
        host: "SimHost",
        storage: SharedStorage,
        domains: Sequence[SlotDomain],
        *,
        index: int,
        nature: HostNature,
        watchdog: str,
        reset: Callable[[str], None],
    ) -> None:
        """``watchdog``: armed, way-out or none."""
        self.host = host
        self.storage = storage
        self.index = index
        self.nature = nature
        self.reset = reset
        self.direct_io = True
        self.domains = {domain.domain_id: domain for domain in domains}
        for domain in domains:
            domain.prepare(HostId(host.name), index)
        self.io = {
            domain.domain_id: HostIo(
                kernel, storage.path(host.name, domain.domain_id), domain, HostId(host.name)
            )
            for domain in domains
        }
        self.watchdog = WatchdogDevice(
            kernel,
            lambda: reset("its watchdog bites"),
            exists=watchdog != "none",
            no_way_out=watchdog != "way-out",
        )
        self.guardians = 0
        """Of this boot."""
        self.dying: list[VmId] = []
        """Killed, with a write outstanding: not reaped before that has ended."""
        self.trap: Callable[[], None] | None = None
        self.trap_at = ""
        self.duties: dict[StorageDomainId, Duty] = {}

    @property
    def policy(self) -> LeasePolicy:
        settings = self.host.disk.settings
        if settings is None or not settings.policy.leases_in_use:
            return OFF
        return settings.policy.lease

    def power_lost(self) -> None:
        self.guardians = 0
        self.dying.clear()
        self.watchdog.stop()
        self.duties.clear()
        for io in self.io.values():
            io.power_lost()

    def paths_changed(self) -> None:
        for io in self.io.values():
            io.path_changed()
        for vm_id in list(self.dying):
            if not self.storage.outstanding(vm_id, self.host.name):
                self.dying.remove(vm_id)
                self._reap(vm_id)

    def kill(self, vm_id: VmId) -> None:
        """SIGKILL: gone at once, or as soon as its last write has ended."""
        if not self.storage.outstanding(vm_id, self.host.name):
            self._reap(vm_id)
        elif vm_id not in self.dying:
            self.dying.append(vm_id)
            self.host.libvirt.stun(vm_id)

    def _reap(self, vm_id: VmId) -> None:
        domain = self.host.libvirt.find(vm_id)
        if domain is not None and domain.qemu is not None:
            self.host.libvirt.kill_qemu(vm_id)

    def objection(self, vm_id: VmId) -> str | None:
        """Code of why its processors may not run now, asked once its QEMU exists; None: they may."""
        guardian = self.host.guardian
        if guardian is None or guardian.lease is None:
            return REFUSED  # nobody can say
        return guardian.lease.objection(self.storage.domain_of(vm_id))


class SimLease:
    """Of one guardian process."""

    def __init__(self, guardian: "SimGuardian", kit: HostLease) -> None:
        self._guardian = guardian
        self._kit = kit
        self._host = guardian.host
        self._root = guardian.kernel.root
        self._policy = kit.policy
        self._busy = False
        self._inbox: list[LeaseEvent] = []
        self._wakes = 0
        self._wake_at: Millis | None = None
        self._allowed: dict[StorageDomainId, Millis | None] = {}
        self._known: dict[QemuProcess, LeasedQemu] = {}
        self._qemus: tuple[tuple[QemuProcess, ...], tuple[LeasedQemu, ...]] | None = None
        """A look's processes and what they are, while no other is known: none of those that vanished may still
        write."""
        self._read_ms: dict[StorageDomainId, int] = {}
        first = kit.guardians == 0
        kit.guardians += 1
        self.on_waiver_over: dict[StorageDomainId, Callable[[], None]] = {}
        """By domain: how to tell the leader, of its last word about a waiver there."""
        self.core = LeaseGuardian(
            owner=LeaseOwner(installation_id=INSTALLATION, host_id=HostId(self._host.name)),
            boot=self._host.boot,
            nature=kit.nature,
            policy=self._policy,
            now=self._host.clock(),
            first_of_boot=first,
            watchdog_runs_ms=kit.watchdog.timeout_ms,
        )

    def begin(self) -> None:
        """All domains are announced in the first step; their own slots are read then."""
        self.tell(*(self._attached(domain_id, _UNREAD) for domain_id in self._kit.domains))
        for domain_id in self._kit.domains:
            self._read_own(domain_id)

    def _attached(self, domain_id: StorageDomainId, own: SlotReading) -> DomainAttached:
        return DomainAttached(
            domain_id=domain_id, index=self._kit.index, own=own, direct_io=self._kit.direct_io
        )

    def _read_own(self, domain_id: StorageDomainId) -> None:
        def answered(read: bool) -> None:
            if not read:
                self._guardian.kernel.after(
                    self._policy.renew_ms, lambda: self._read_own(domain_id)
                )
                return
            domain = self._kit.domains[domain_id]
            own = domain.read_slot(self._host.name, HostId(self._host.name))
            self.tell(self._attached(domain_id, own))

        if self._guardian.alive:
            self._kit.io[domain_id].read(partial(self._heard, answered))

    def die(self) -> None:
        self._kit.watchdog.released()

    def states(self) -> dict[StorageDomainId, LeaseState]:
        return self.core.states()

    def objection(self, domain_id: StorageDomainId) -> str | None:
        if not self._policy.enabled:
            return None
        until = self._allowed.get(domain_id)
        return REFUSED if until is None or self._host.clock() >= until else None

    # Steps

    def connected(self, beat_interval_ms: int) -> None:
        self.tell(Welcomed(beat_interval_ms=beat_interval_ms))

    def disconnected(self) -> None:
        self.tell(LinkLost())

    def settings_changed(self) -> None:
        if self._kit.policy != self._policy:
            self._policy = self._kit.policy
            self.tell(PolicySet(policy=self._policy))

    def tell(self, *events: LeaseEvent) -> None:
        if self._root.frozen_actors:
            self._guardian.kernel.deliver(self._take, events)
        else:
            self._take(events)

    def _take(self, events: Sequence[LeaseEvent]) -> None:
        if not self._guardian.alive:
            return
        if self._busy:
            self._inbox += events
            return  # of the step whose commands are still to be carried out
        if self._inbox:
            events, self._inbox = (*self._inbox, *events), []
        decision = self.core.step(self._host.clock(), events)
        if not decision.commands and decision.wake_at == self._wake_at:
            return  # nothing to carry out, and nothing else to wait for
        self._busy = True
        if self._kit.trap is None:
            # Whoever decides is awake, and only a trap can put him to sleep in between.
            self._act(decision.commands, decision.wake_at)
            return
        self._spring(*(type(each).__name__ for each in decision.commands))
        self._guardian.kernel.deliver(self._act, decision.commands, decision.wake_at)

    def _act(self, commands: Sequence[LeaseCommand], wake_at: Millis | None) -> None:
        if len(commands) > 1:
            # The agent is told before the kill: what libvirt will say of the exit needs its cause.
            commands = sorted(commands, key=lambda one: not _is_told_first(one))
        guardian = self._guardian
        for command in commands:
            if not guardian.alive:
                return  # perhaps by what it has just done itself
            self._carry_out(command)
        if not guardian.alive:
            return
        self._busy = False
        if wake_at != self._wake_at:
            self._wake(wake_at)
        if self._inbox:
            self.tell()

    def _spring(self, *points: str) -> None:
        """Whoever was to be made to sleep between the decision and its act sleeps from here on."""
        kit = self._kit
        if kit.trap is not None and any(kit.trap_at in point.lower() for point in points):
            trap, kit.trap = kit.trap, None
            trap()

    def _wake(self, wake_at: Millis | None) -> None:
        """Not the moment that it waits for already: that one is on its way."""
        self._wake_at = wake_at
        self._wakes += 1
        if wake_at is not None:
            mine = self._wakes
            delay_ms = self._host.clocks.until(wake_at)
            self._guardian.kernel.after(delay_ms, partial(self._awake, mine))

    def _awake(self, mine: int) -> None:
        if mine == self._wakes:
            self._wake_at = None
            self._take(())

    def _heard(self, action: Callable[..., None], *arguments: Any) -> None:
        """Of the kernel's answer, the last of the arguments: it waits for a process that sleeps, and is nobody's if that
        is gone."""
        guardian = self._guardian
        if self._root.frozen_actors:
            guardian.kernel.deliver(self._if_alive, action, *arguments)
        elif guardian.alive:
            action(*arguments)

    def _if_alive(self, action: Callable[..., None], *arguments: Any) -> None:
        if self._guardian.alive:
            action(*arguments)

    # Its hands

    def _carry_out(self, command: LeaseCommand) -> None:
        kit = self._kit
        match command:
            case RenewSlot():
                self._renew(command)
            case Kill(process=process):
                self._kill(process)
            case ResetHost(domain_id=domain_id):
                kit.reset(f"its VMs on {domain_id} did not end in time")
            case AllowStarts(domain_id=domain_id, until_ms=until_ms):
                self._allowed[domain_id] = until_ms
            case ArmWatchdog(timeout_ms=timeout_ms):
                if kit.watchdog.arm(timeout_ms):
                    self.tell(
                        WatchdogArmed(timeout_ms=timeout_ms, no_way_out=kit.watchdog.no_way_out)
                    )
                else:
                    self.tell(WatchdogFailed(detail="no such device"))
            case FeedWatchdog():
                kit.watchdog.feed()
                self.tell(WatchdogFed())
            case DisarmWatchdog():
                kit.watchdog.stop()
                self.tell(WatchdogDisarmed())
            case WaiverOver(domain_id=domain_id):
                tell = self.on_waiver_over.get(domain_id)
                if tell is not None:
                    tell()
            case Report():
                self._report(command)

    def _kill(self, process: QemuProcess) -> None:
        domain = self._host.libvirt.find(process.vm_id)
        if domain is None or domain.qemu is None or domain.qemu.pid != process.pid:
            return
        self._kit.kill(process.vm_id)

    def _report(self, report: Report) -> None:
        host = self._host
        host.disk.reports.append(
            Happened(code=report.code, vm_id=report.vm_id, fields=report.fields)
        )
        if host.agent is not None:
            agent = host.agent
            agent.kernel.deliver(agent.collect_reports)

    # QEMUs

    def look(self, seen: tuple[QemuProcess, ...]) -> None:
        """Each that vanished has ended for certain once none of its writes waits in the kernel."""
        gone: list[QemuProcess] = []
        if self._qemus is None or self._qemus[0] is not seen:
            gone = self._compare(seen)
            qemus = tuple(self._known[process] for process in seen)
            self._qemus = (seen, qemus) if len(seen) == len(self._known) else None
        else:
            qemus = self._qemus[1]
        now = self._host.clock()
        look = QemusSeen(began_ms=now, qemus=qemus)
        awake = self._guardian.alive and not self._root.frozen_actors
        if (
            gone
            or self._busy
            or self._inbox
            or not awake
            or not self.core.takes_in_passing(look, now)
        ):
            self.tell(*(QemuEnded(process=process) for process in gone), look)

    def _compare(self, seen: tuple[QemuProcess, ...]) -> list[QemuProcess]:
        """Those that have ended since."""
        storage = self._kit.storage
        gone = [
            process
            for process in self._known
            if process not in seen and not storage.outstanding(process.vm_id, self._host.name)
        ]
        for process in gone:
            del self._known[process]
        for process in seen:
            if process not in self._known:
                self._known[process] = LeasedQemu(
                    process=process, domain_ids=frozenset({storage.domain_of(process.vm_id)})
                )
        return gone

    # Its worker: one thing at a time on each domain

    def _renew(self, command: RenewSlot) -> None:
        began_ms = self._host.clock()
        duty = self._kit.duties.get(command.domain_id)
        if duty is not None and duty.poisons:
            then = partial(self._write_slot, command, began_ms)
            self._poison(command.domain_id, duty.poisons, then=then)
        else:
            self._write_slot(command, began_ms)

    def _write_slot(self, command: RenewSlot, began_ms: int) -> None:
        io = self._kit.io[command.domain_id]
        io.write_slot(command.slot, partial(self._heard, self._slot_written, command, began_ms))

    def _slot_written(self, command: RenewSlot, began_ms: int, landed: bool) -> None:
        if landed:
            io = self._kit.io[command.domain_id]
            io.read(partial(self._heard, self._mailbox_read, command, began_ms))
        else:
            self._renewed(command, _UNREAD, written=False)

    def _mailbox_read(self, command: RenewSlot, began_ms: int, reached: bool) -> None:
        if not reached:
            self._renewed(command, _UNREAD, written=True)
            return
        name = self._host.name
        mailbox = self._kit.domains[command.domain_id].read_mailbox(name, HostId(name))
        self._renewed(command, mailbox, written=True)
        if command.domain_id in self._kit.duties:
            self._read_others(command.domain_id, began_ms, command.slot.counter)

    def _renewed(self, command: RenewSlot, mailbox: MailboxReading, *, written: bool) -> None:
        self.tell(
            RenewDone(
                domain_id=command.domain_id,
                number=command.number,
                written=written,
                mailbox=mailbox,
            )
        )

    def _poison(
        self,
        domain_id: StorageDomainId,
        poisons: Mapping[HostId, Poison],
        *,
        then: Callable[[], None],
    ) -> None:
        """First the mailboxes of others, where the server asked for that; each one's counter goes on."""
        domain, io = self._kit.domains[domain_id], self._kit.io[domain_id]
        due: list[Mailbox] = []
        for host_id, poison in poisons.items():
            found = domain.read_mailbox(self._host.name, host_id)
            if isinstance(found, Mailbox) and found.poison != poison:
                place = domain.places[host_id]
                due.append(
                    Mailbox(
                        installation_id=place.installation_id,
                        domain_id=place.domain_id,
                        index=place.index,
                        host_id=host_id,
                        counter=found.counter + 1,
                        poison=poison,
                    )
                )
        if not due:
            then()
            return
        self._spring("poison")

        def write(_landed: bool) -> None:
            if due:
                io.write_mailbox(due.pop(), partial(self._heard, write))
            else:
                then()

        self._guardian.kernel.deliver(lambda: write(True))

    def _read_others(self, domain_id: StorageDomainId, began_ms: int, counter: int) -> None:
        duty = self._kit.duties.get(domain_id)
        last = self._read_ms.get(domain_id)
        if duty is None or (last is not None and began_ms < last + self._policy.read_period_ms):
            return
        self._read_ms[domain_id] = began_ms
        domain = self._kit.domains[domain_id]

        def read(reached: bool) -> None:
            if not reached:
                return
            name = self._host.name
            seen = SlotRound(
                reader_id=HostId(name),
                reader_boot=self._host.boot,
                domain_id=domain_id,
                began_ms=began_ms,
                ended_ms=self._host.clock(),
                own_counter=counter,
                direct_io=self._kit.direct_io,
                slots={host: domain.read_slot(name, host) for host in domain.places},
                mailboxes={host: domain.read_mailbox(name, host) for host in duty.poisons},
            )
            self._spring("read")
            self._guardian.kernel.deliver(lambda: duty.tell(seen))

        self._kit.io[domain_id].read(partial(self._heard, read))
