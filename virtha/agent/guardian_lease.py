"""The guardian's lease on real storage: the pure core, a worker per domain, the host's watchdog, and QEMUs' ends.

The core decides in the event loop, which never waits for storage, ``/proc`` or a device; each of those has threads of
its own. What is done at once, in the loop: the host's reset, and what ``/run`` says about starts, so that what a step
refused is refused when the next one begins.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog
from msgspec.structs import replace

from virtha.agent.lease_files import (
    LeaseMemory,
    OpenedDomain,
    StartPermit,
    StartPermits,
    load_memory,
    write_run_file,
)
from virtha.agent.paths import AgentPaths
from virtha.agent.qemu_ledger import EndedQemu, LedgerLook
from virtha.agent.slot_worker import UNREAD, SlotWorker
from virtha.agent.worker import Worker
from virtha.model.host import StorageDomain
from virtha.model.ids import BootId, ClusterId, HostId, InstallationId, StorageDomainId, VmId
from virtha.model.orders import HostSettings
from virtha.model.policy import LeasePolicy
from virtha.model.slot_round import LeaseDuty, SlotRound
from virtha.model.time import Millis
from virtha.ports.clock import Clock
from virtha.ports.host_watchdog import HostReset, HostWatchdog
from virtha.ports.storage_domain import HeartbeatSlots
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
    LeaseEvent,
    LeaseOwner,
    PolicySet,
    QemuEnded,
    QemusSeen,
    RenewSlot,
    ResetHost,
    WaiverOver,
    WatchdogArmed,
    WatchdogDisarmed,
    WatchdogFailed,
    WatchdogFed,
)

OFF = LeasePolicy(enabled=False)
KILLED = "host.lease.killed_vm"

_log = structlog.get_logger(__name__)


class LeaseKit:
    """What a host has for its lease, whichever guardian runs on it."""

    def __init__(
        self,
        *,
        installation_id: InstallationId,
        host_id: HostId,
        index: int,
        nature: HostNature,
        watchdog: HostWatchdog,
        reset: HostReset,
        slots_of: Callable[[StorageDomain], HeartbeatSlots],
    ) -> None:
        self.owner = LeaseOwner(installation_id=installation_id, host_id=host_id)
        self.index = index
        self.nature = nature
        self.watchdog = watchdog
        self.reset = reset
        self.slots_of = slots_of


class LeaseHands:
    """What the process around it does for it."""

    def __init__(
        self,
        *,
        report: Callable[[Report], None],
        kill: Callable[[QemuProcess], None],
        look_soon: Callable[[], None],
        broken: Callable[[Exception], None],
    ) -> None:
        """``kill`` after its cause was told. ``look_soon``: kills are waited for. ``broken``: end this process, the
        watchdog does the rest."""
        self.report = report
        self.kill = kill
        self.look_soon = look_soon
        self.broken = broken
        self.tell_round: Callable[[SlotRound], None] = lambda seen: None
        self.tell_waiver_over: Callable[[StorageDomainId], None] = lambda domain_id: None


class GuardianLease:
    """Of one guardian process. All methods in the event loop's thread but where said."""

    def __init__(
        self,
        kit: LeaseKit,
        hands: LeaseHands,
        *,
        paths: AgentPaths,
        boot: BootId,
        clock: Clock,
    ) -> None:
        self._kit = kit
        self.hands = hands
        self._paths = paths
        self._boot = boot
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._core: LeaseGuardian | None = None
        self._policy = OFF
        self._workers: dict[StorageDomainId, SlotWorker] = {}
        self._watchdog = Worker("watchdog")
        self._permits = StartPermits(boot=boot)
        self._memory = LeaseMemory(boot=boot)
        self._announced: set[StorageDomainId] = set()
        self._session: LeaseEvent | None = None
        self._stopped = False
        self.watchdog_ms = 0
        """Within so long after its last feeding the host's watchdog resets it; 0: this guardian has not armed it."""
        self.duties: dict[StorageDomainId, LeaseDuty] = {}
        """What the server asked for; changed by whoever hears it."""
        self.roots: dict[str, StorageDomainId] = {}
        """Directories of domains, as the kernel names them. Read in the looker's thread; replaced, never changed."""

    def states(self) -> dict[StorageDomainId, LeaseState]:
        return self._core.states() if self._core is not None else {}

    @property
    def hurried(self) -> bool:
        """Something is to be dead by a deadline: looks follow each other at once."""
        return LeaseState.LOST in self.states().values()

    def stop(self) -> None:
        """Leases and the watchdog run on: the next guardian of this boot takes them over, or they run out."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    # What it is told

    def settle(self, settings: HostSettings, watchdog_runs_ms: int) -> None:
        """The settings that this host has on its disk; may come again."""
        if self._stopped or settings.installation_id != self._kit.owner.installation_id:
            return
        wanted = settings.policy.lease if settings.policy.leases_in_use else OFF
        if self._core is None:
            if not wanted.enabled and not self._paths.lease_memory.exists():
                return  # never in use in this boot
            self._begin(wanted, watchdog_runs_ms, settings)
            known = {each.id for each in settings.storage_domains}
            for opened in self._memory.domains:
                if opened.domain_id not in known:
                    # Removed since; what this boot promised there still binds it.
                    self._take_on(
                        StorageDomain(
                            id=opened.domain_id,
                            name=opened.domain_id,
                            cluster_id=ClusterId(""),
                            path=opened.path,
                            ceph=opened.ceph,
                        )
                    )
        elif wanted != self._policy:
            self._policy = wanted
            self.tell(PolicySet(policy=wanted))
        for domain in settings.storage_domains:
            if domain.id not in self._workers:
                self._take_on(domain)

    def tell(self, *events: LeaseEvent) -> None:
        """Also of the session (``Welcomed``, ``LinkLost``) and the leader's waivers."""
        for event in events:
            match event:
                case Welcomed() | LinkLost():
                    self._session = event
                case WatchdogArmed(timeout_ms=timeout_ms):
                    self.watchdog_ms = timeout_ms
                case WatchdogDisarmed():
                    self.watchdog_ms = 0
                case _:
                    pass
        if self._core is None or self._stopped:
            return
        try:
            decision = self._core.step(self._clock.monotonic_ms(), events)
            for command in sorted(decision.commands, key=_told_first):
                self._carry_out(command)
        except Exception as error:
            # An invariant, or /run that takes no refusal: what goes on like that is worse than the watchdog's end.
            self.stop()
            self.hands.broken(error)
            return
        if self.hurried:
            self.hands.look_soon()
        self._wake(decision.wake_at)

    def looked(self, began_ms: Millis, look: LedgerLook) -> None:
        ended = [each.process for each in look.ended if not self._wait_for_cache(each)]
        self.tell(
            *(QemuEnded(process=process) for process in ended),
            QemusSeen(began_ms=began_ms, qemus=look.qemus),
        )

    def _tell_from_thread(self, *events: LeaseEvent) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.tell, *events)

    def _wake(self, wake_at: Millis | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wake_at is not None and not self._stopped:
            delay_s = max(0, wake_at - self._clock.monotonic_ms()) / 1_000
            self._timer = self._loop.call_later(delay_s, self.tell)

    # Beginning

    def _begin(self, policy: LeasePolicy, watchdog_runs_ms: int, settings: HostSettings) -> None:
        try:
            memory = load_memory(self._paths.lease_memory, self._boot)
            first = memory is None
        except (OSError, ValueError) as error:
            _log.error("what earlier guardians of this boot did is unknown", error=str(error))
            # So any domain may be promised to; nothing is known of how it is read.
            first, memory = (
                False,
                LeaseMemory(
                    boot=self._boot,
                    domains=tuple(
                        OpenedDomain(
                            domain_id=each.id,
                            index=self._kit.index,
                            direct_io=False,
                            path=each.path,
                            ceph=each.ceph,
                        )
                        for each in settings.storage_domains
                    ),
                ),
            )
        self._memory = memory or LeaseMemory(boot=self._boot)
        # Before anything is promised: the next guardian must not take itself for the first.
        write_run_file(self._paths.lease_memory, self._memory)
        self._policy = policy
        self._core = LeaseGuardian(
            owner=self._kit.owner,
            boot=self._boot,
            nature=self._kit.nature,
            policy=policy,
            now=self._clock.monotonic_ms(),
            first_of_boot=first,
            watchdog_runs_ms=watchdog_runs_ms,
        )
        self._announced = {each.domain_id for each in self._memory.domains}
        self.roots = {each.path: each.domain_id for each in self._memory.domains}
        announced = [
            DomainAttached(
                domain_id=each.domain_id, index=each.index, own=UNREAD, direct_io=each.direct_io
            )
            for each in self._memory.domains
        ]
        self.tell(*announced, *([self._session] if self._session is not None else []))

    def _take_on(self, domain: StorageDomain) -> None:
        kit = self._kit
        worker = SlotWorker(
            domain.id,
            kit.index,
            kit.slots_of(domain),
            others=kit.slots_of(domain),
            path=domain.path,
            ceph=domain.ceph,
            host_id=kit.owner.host_id,
            boot=self._boot,
            now=self._clock.monotonic_ms,
            tell=self._tell_from_thread,
            tell_round=self._round_from_thread,
        )
        self._workers[domain.id] = worker
        self._read_own(worker)

    def _read_own(self, worker: SlotWorker) -> None:
        if not self._stopped:
            worker.read_own(
                lambda opened: self._from_thread(self._opened, opened),
                lambda: self._from_thread(self._read_later, worker),
            )

    def _read_later(self, worker: SlotWorker) -> None:
        self._loop.call_later(self._policy.renew_ms / 1_000, self._read_own, worker)

    def _opened(self, opened: OpenedDomain) -> None:
        """Known before its slot is: the next guardian announces it in its first step."""
        self.roots = {**self.roots, opened.path: opened.domain_id}
        if opened.domain_id in self._announced:
            return
        self._announced.add(opened.domain_id)
        self._memory = replace(self._memory, domains=(*self._memory.domains, opened))
        try:
            write_run_file(self._paths.lease_memory, self._memory)
        except OSError as error:
            self.stop()
            self.hands.broken(error)

    def _round_from_thread(self, seen: SlotRound) -> None:
        self._from_thread(self.hands.tell_round, seen)

    def _from_thread(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *arguments)

    # Its hands

    def _carry_out(self, command: LeaseCommand) -> None:
        match command:
            case RenewSlot(domain_id=domain_id):
                self._workers[domain_id].renew(
                    command,
                    self.duties.get(domain_id),
                    read_period_ms=self._policy.read_period_ms,
                )
            case Kill(process=process):
                self.hands.kill(process)
            case ResetHost():
                self._reset(command)
            case AllowStarts():
                self._allow(command)
            case ArmWatchdog() | FeedWatchdog() | DisarmWatchdog():
                if not self._watchdog.put(partial(self._serve_watchdog, command)):
                    self._loop.call_soon(self.tell, WatchdogFailed(detail="its worker hangs"))
            case WaiverOver(domain_id=domain_id):
                self.hands.tell_waiver_over(domain_id)
            case Report():
                self.hands.report(command)

    def _reset(self, command: ResetHost) -> None:
        _log.critical("resetting the host: its VMs did not end in time", domain=command.domain_id)
        try:
            self._kit.reset.reset()
        except OSError as error:
            _log.critical("the host can't be reset; its watchdog has to", error=str(error))

    def _allow(self, command: AllowStarts) -> None:
        domains = {**self._permits.domains}
        domains.pop(command.domain_id, None)
        if command.until_ms is not None:
            domains[command.domain_id] = StartPermit(
                renewed_ms=command.renewed_ms, until_ms=command.until_ms
            )
        self._permits = StartPermits(boot=self._boot, domains=domains)
        try:
            write_run_file(self._paths.start_permits, self._permits)
        except OSError as error:
            if command.until_ms is None:
                self._paths.start_permits.unlink()  # refuses all; raises where not even that is possible
            _log.error("what may start can't be told", error=str(error))

    def _serve_watchdog(self, command: ArmWatchdog | FeedWatchdog | DisarmWatchdog) -> None:
        """In its worker's thread."""
        device = self._kit.watchdog
        event: LeaseEvent
        try:
            match command:
                case ArmWatchdog(timeout_ms=timeout_ms):
                    armed = device.arm(timeout_ms)
                    event = WatchdogArmed(timeout_ms=armed.timeout_ms, no_way_out=armed.no_way_out)
                case FeedWatchdog():
                    device.feed()
                    event = WatchdogFed()
                case DisarmWatchdog():
                    device.disarm()
                    event = WatchdogDisarmed()
        except OSError as error:
            event = WatchdogFailed(detail=str(error))
        self._tell_from_thread(event)

    def _wait_for_cache(self, ended: EndedQemu) -> bool:
        """Whether its end counts only once what it wrote through the cache was written back."""
        if not ended.buffered:
            return False
        left = {
            domain_id
            for domain_id in self._workers
            if ended.domain_ids is None or domain_id in ended.domain_ids
        }

        def done(domain_id: StorageDomainId) -> None:
            left.discard(domain_id)
            if not left:
                self.tell(QemuEnded(process=ended.process))

        for domain_id in tuple(left):
            self._write_back(domain_id, done)
        return bool(left)

    def _write_back(
        self, domain_id: StorageDomainId, done: Callable[[StorageDomainId], None]
    ) -> None:
        self._workers[domain_id].write_back(lambda: self._from_thread(done, domain_id))


def disks_of(settings: HostSettings | None) -> dict[VmId, frozenset[StorageDomainId]]:
    """Where each VM's disks lie; one that settings don't name may write anywhere."""
    held = settings.vms if settings is not None else ()
    return {
        each.vm.id: frozenset(disk.storage_domain_id for disk in each.vm.disks) for each in held
    }


def _told_first(command: LeaseCommand) -> bool:
    """The agent is told before the kill: what libvirt will say of the exit needs its cause."""
    return not (isinstance(command, Report) and command.code == KILLED)
