"""Carries out the sentinel's commands, one attempt each; what came of it goes back into the inbox."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, assert_never

import structlog

from virtha.agent.disk_activity import judged
from virtha.agent.dumps import DumpFinder
from virtha.agent.evidence import EvidenceKeeper
from virtha.agent.fact_sink import FactSink
from virtha.agent.gate import PROOF_VM_ID, GateRecords
from virtha.agent.process_table import QemuWatch
from virtha.agent.roll_call import RollCall
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.ports.clock import Clock
from virtha.ports.hypervisor import (
    DomainCatalog,
    DomainControl,
    DomainMissing,
    GateRefused,
    GuestAgent,
    HypervisorError,
    HypervisorFailed,
    HypervisorTimeout,
    HypervisorUnavailable,
)
from virtha.sentinel.events import (
    AbortMove,
    BootStatusRead,
    Command,
    DomainsListed,
    GatherEvidence,
    GuestAnswered,
    LibvirtLost,
    ListDomains,
    PauseDomain,
    PingGuest,
    ReadBootStatus,
    Restart,
    RestartEnded,
    SentinelEvent,
    VmRecord,
)
from virtha.sentinel.io_error_events import DisksProbed, ProbeDisks, ResumeDomain, ResumeEnded
from virtha.sentinel.io_errors import objection_to_resume
from virtha.sentinel.objections import late_objection

RESTART_GRANT_MS = 60_000
"""As long as libvirt may take to create a QEMU before the driver gives up."""
PING_DEADLINE_MS = 5_000
BOOTSTATUS_DEADLINE_MS = 240_000
BOOTSTATUS_POLL_MS = 2_000
BOOTSTATUS_PATH = "/sys/class/watchdog/watchdog0/bootstatus"
GUEST_CALLS_MAX = 8
"""Guest agent calls at once; each holds a thread of the driver for up to its deadline."""
LIST_RETRY_MS = 1_000
FORMER_QEMU_MS = 30_000
FORMER_QEMU_POLL_S = 0.2

_log = structlog.get_logger(__name__)
Spawn = Callable[[str, Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class VmLocks:
    """One change of power at a time per VM, and what a start is under way for.

    ``count`` changes with every start: a list of domains that was asked for before a start says
    nothing about what that start made.
    """

    def __init__(self) -> None:
        self._locks: defaultdict[VmId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starting: defaultdict[VmId, int] = defaultdict(int)
        self._counts: defaultdict[VmId, int] = defaultdict(int)

    def of(self, vm_id: VmId) -> asyncio.Lock:
        return self._locks[vm_id]

    def begin_start(self, vm_id: VmId) -> None:
        self._starting[vm_id] += 1
        self._counts[vm_id] += 1

    def end_start(self, vm_id: VmId) -> None:
        self._starting[vm_id] -= 1
        self._counts[vm_id] += 1

    def is_starting(self, vm_id: VmId) -> bool:
        return self._starting.get(vm_id, 0) > 0

    def count(self, vm_id: VmId) -> int:
        return self._counts.get(vm_id, 0)

    def counts(self) -> dict[VmId, int]:
        return dict(self._counts)


class Starter:
    """Grant, create paused, look again, run: the one way in which this agent starts a VM (G2)."""

    def __init__(
        self,
        control: DomainControl,
        catalog: DomainCatalog,
        gate: GateRecords,
        *,
        lease_objection: Callable[[VmId], str | None],
    ) -> None:
        """``lease_objection``: why its processors may not run by the leases on its disks' storage, in words."""
        self._control = control
        self._catalog = catalog
        self._gate = gate
        self._lease_objection = lease_objection

    async def start(
        self,
        vm_id: VmId,
        incarnation: Incarnation,
        *,
        until_ms: int,
        still_allowed: Callable[[], str | None],
    ) -> tuple[Result, str]:
        """(result, what went wrong). The caller holds the VM's lock.

        ``still_allowed`` is asked once more when QEMU exists and nothing of the guest ran yet; its
        text says why not. ``FAILED`` and ``REFUSED``: certainly no QEMU is left.
        """
        try:
            self._gate.grant(vm_id, incarnation, until_ms=until_ms)
        except OSError as error:
            # Without a grant the gate refuses it: nothing was started.
            return Result.FAILED, f"the grant can't be written: {error.strerror}"
        try:
            await self._control.start_paused(vm_id)
        except (HypervisorTimeout, HypervisorUnavailable) as error:
            # It may yet come to life, paused: the grant stays, so that the guardian leaves the matter
            # to whoever reads the next list of domains. Nobody lets its processors run.
            return Result.UNKNOWN, str(error)
        except (GateRefused, DomainMissing) as error:
            self._gate.revoke(vm_id)
            return Result.FAILED, str(error)
        except HypervisorFailed as error:
            return await self._after_failure(vm_id, incarnation, error, still_allowed)
        return await self._let_run(vm_id, incarnation, still_allowed)

    async def _after_failure(
        self,
        vm_id: VmId,
        incarnation: Incarnation,
        error: HypervisorFailed,
        still_allowed: Callable[[], str | None],
    ) -> tuple[Result, str]:
        """It may run already: an order that came twice, or what a former attempt left paused."""
        try:
            report = await self._catalog.domain(vm_id)
        except DomainMissing:
            self._gate.revoke(vm_id)
            return Result.FAILED, str(error)
        except HypervisorError as unknown:
            return Result.UNKNOWN, f"{error}; {unknown}"
        if report.state is DomainState.RUNNING:
            try:
                self._gate.hold(vm_id, incarnation)
            except OSError as unwritten:
                # It runs, and the grant that is there keeps the guardian off: the list tells the rest.
                return Result.UNKNOWN, f"the grant can't be kept: {unwritten.strerror}"
            return Result.OK, ""
        if report.state is DomainState.PAUSED:
            return await self._let_run(vm_id, incarnation, still_allowed)
        if is_gone(report):
            self._gate.revoke(vm_id)
            return Result.FAILED, str(error)
        return Result.UNKNOWN, f"{error}; it is {report.state}"

    async def _let_run(
        self, vm_id: VmId, incarnation: Incarnation, still_allowed: Callable[[], str | None]
    ) -> tuple[Result, str]:
        objection = still_allowed() or self._lease_objection(vm_id)
        if objection is not None:
            return await self._take_back(vm_id, objection)
        # Before, not after: from the first instruction on no gap may tempt the guardian.
        try:
            self._gate.hold(vm_id, incarnation)
        except OSError as error:
            result, detail = await self._take_back(
                vm_id, f"the grant can't be kept: {error.strerror}"
            )
            return (Result.FAILED if result is Result.REFUSED else result), detail
        try:
            await self._control.run(vm_id)
        except HypervisorFailed as error:
            result, detail = await self._take_back(vm_id, str(error))
            return (Result.FAILED if result is Result.REFUSED else result), detail
        except HypervisorError as error:
            return Result.UNKNOWN, str(error)
        return Result.OK, ""

    async def _take_back(self, vm_id: VmId, why: str) -> tuple[Result, str]:
        try:
            await self._control.destroy(vm_id)
        except DomainMissing:
            pass  # a transient one is gone with its QEMU
        except HypervisorError as error:
            return Result.UNKNOWN, f"{why}; and its QEMU could not be ended: {error}"
        self._gate.revoke(vm_id)
        return Result.REFUSED, why


def is_gone(report: DomainReport) -> bool:
    """No QEMU. A domain that is ``crashed`` still has its remains in memory."""
    return report.state is DomainState.SHUTOFF


class CommandRunner:
    """``execute`` begins a command as a named task and returns at once."""

    def __init__(
        self,
        *,
        control: DomainControl,
        catalog: DomainCatalog,
        guest: GuestAgent,
        gate: GateRecords,
        evidence: EvidenceKeeper,
        dumps: DumpFinder,
        facts: FactSink,
        clock: Clock,
        locks: VmLocks,
        processes: QemuWatch,
        spawn: Spawn,
        disk_check: bool = False,
    ) -> None:
        """``disk_check``: the host checks disks before ordered starts (A5); a restart says why it doesn't."""
        self._control = control
        self._catalog = catalog
        self._guest = guest
        self._gate = gate
        self._evidence = evidence
        self._dumps = dumps
        self._facts = facts
        self._clock = clock
        self._locks = locks
        self._processes = processes
        self._roll_call = RollCall(catalog, processes)
        self._spawn = spawn
        self._disk_check = disk_check
        self._starter = Starter(
            control, catalog, gate, lease_objection=lambda vm_id: self._lease_objection(vm_id)
        )
        self._guest_calls = asyncio.Semaphore(GUEST_CALLS_MAX)
        self._reading: set[VmId] = set()
        self._listing = False
        self._first_list = True
        self.connected = False
        """Whether the driver says that libvirt is there."""
        self._tell: Callable[[SentinelEvent], None] = lambda _event: None
        self._record: Callable[[VmId], VmRecord | None] = lambda _vm_id: None
        self._host_objection: Callable[[], str | None] = lambda: None
        self._lease_objection: Callable[[VmId], str | None] = lambda _vm_id: None
        self.on_listed: Callable[[tuple[DomainReport, ...], dict[VmId, int]], None]
        self.on_listed = lambda _domains, _counts: None
        self.on_abort: Callable[[VmId, str], None] = lambda _vm_id, _code: None
        self.disk_objection: Callable[[VmId, bool], Awaitable[str | None]]
        """Why the storage of a VM's disks can't be relied on now; with True, also if one has no room."""

    def connect(
        self,
        tell: Callable[[SentinelEvent], None],
        record: Callable[[VmId], VmRecord | None],
        host_objection: Callable[[], str | None],
        lease_objection: Callable[[VmId], str | None],
    ) -> None:
        """The loop and this object know each other; the loop is made second.

        ``host_objection``: why nothing is restarted on this host now, in words. ``lease_objection``: as the starter's.
        """
        self._lease_objection = lease_objection
        self._tell = tell
        self._record = record
        self._host_objection = host_objection

    def execute(self, command: Command) -> None:
        match command:
            case Restart():
                self._locks.begin_start(command.vm_id)
                self._spawn(f"restart {command.vm_id}", self._restart(command))
            case GatherEvidence():
                self._spawn(f"evidence {command.vm_id}", self._gather(command))
            case ReadBootStatus():
                if command.vm_id not in self._reading:
                    self._reading.add(command.vm_id)
                    self._spawn(f"bootstatus {command.vm_id}", self._read_bootstatus(command.vm_id))
            case PingGuest():
                self._spawn(f"ping {command.vm_id}", self._ping(command.vm_id))
            case PauseDomain():
                self._spawn(f"pause {command.vm_id}", self._pause(command.vm_id))
            case ProbeDisks():
                self._spawn(f"probe disks of {command.vm_id}", self._probe(command))
            case ResumeDomain():
                self._spawn(f"resume {command.vm_id}", self._resume(command))
            case ListDomains():
                if not self._listing:
                    self._listing = True
                    self._spawn("list domains", self._list())
            case AbortMove():
                self.on_abort(command.vm_id, command.code)
            case _:
                assert_never(command)

    async def _restart(self, command: Restart) -> None:
        vm_id = command.vm_id
        try:
            result, detail = await self._attempt(command)
        finally:
            self._locks.end_start(vm_id)
        record = self._record(vm_id)
        if result is Result.OK and self._disk_check and record is not None:
            await self._facts.emit([judged(record.vm, "disk_check.skipped.local_restart")])
        self._tell(
            RestartEnded(
                vm_id=vm_id,
                incarnation=command.incarnation,
                attempt=command.attempt,
                result=result,
                detail=detail,
            )
        )

    async def _attempt(self, command: Restart) -> tuple[Result, str]:
        vm_id = command.vm_id
        async with self._locks.of(vm_id):
            try:
                objection = self._objection(command) or await self._not_over(vm_id)
                if objection is not None:
                    return Result.REFUSED, objection
                until_ms = self._clock.monotonic_ms() + RESTART_GRANT_MS
                return await self._starter.start(
                    vm_id,
                    command.incarnation,
                    until_ms=until_ms,
                    still_allowed=lambda: self._objection(command, until_ms),
                )
            except OSError as error:
                # A grant could not be removed; how far the start came, the list tells.
                return Result.UNKNOWN, str(error)

    def _objection(self, command: Restart, until_ms: int | None = None) -> str | None:
        """A stop, a hold, the host's shutdown may have come between the decision and now."""
        record = self._record(command.vm_id)
        objection = late_objection(record, command.incarnation) or self._host_objection()
        if objection is not None:
            return objection
        if until_ms is not None and self._clock.monotonic_ms() >= until_ms:
            return "creating its QEMU took longer than the grant"
        return None

    async def _not_over(self, vm_id: VmId) -> str | None:
        """libvirt says that it has no QEMU; one that hangs in the kernel may still write."""
        deadline = self._clock.monotonic_ms() + FORMER_QEMU_MS
        while await self._processes.may_run(vm_id):
            try:
                if not is_gone(await self._catalog.domain(vm_id)):
                    return None  # what a former attempt left paused, which this one lets run
            except HypervisorError as error:
                return str(error)
            if self._clock.monotonic_ms() >= deadline:
                return "its former QEMU has not ended yet"
            await asyncio.sleep(FORMER_QEMU_POLL_S)
        return None

    async def _gather(self, command: GatherEvidence) -> None:
        record = self._record(command.vm_id)
        if record is None:
            return
        try:
            kept = await self._evidence.gather(
                record.vm,
                command.cause,
                at=self._clock.wall_ms(),
                screenshot=not self._locks.is_starting(command.vm_id) and record.attempt is None,
            )
        except OSError as error:
            _log.error("evidence can't be kept", vm=record.vm.name, error=str(error))
            return
        if kept is not None:
            await self._facts.emit([kept])

    async def _ping(self, vm_id: VmId) -> None:
        try:
            async with self._guest_calls:
                answers = await self._guest.ping(vm_id, deadline_ms=PING_DEADLINE_MS)
        except HypervisorError as error:
            _log.info("guest can't be asked", vm=vm_id, error=str(error))
            answers = False
        self._tell(GuestAnswered(vm_id=vm_id, answers=answers))

    async def _read_bootstatus(self, vm_id: VmId) -> None:
        deadline = self._clock.monotonic_ms() + BOOTSTATUS_DEADLINE_MS
        bootstatus: int | None = None
        uptime_ms: int | None = None
        try:
            while self._clock.monotonic_ms() < deadline and self._record(vm_id) is not None:
                async with self._guest_calls:
                    answers = await self._guest.ping(vm_id, deadline_ms=PING_DEADLINE_MS)
                    if answers:
                        bootstatus = _number(await self._read(vm_id, BOOTSTATUS_PATH))
                        uptime_ms = _uptime_ms(await self._read(vm_id, "/proc/uptime"))
                if bootstatus is not None or uptime_ms is not None:
                    break
                # One that answers and is read in vain may be slow, at its boot: nobody else asks again.
                await asyncio.sleep(BOOTSTATUS_POLL_MS / 1_000)
        except HypervisorError as error:
            _log.info("bootstatus can't be read", vm=vm_id, error=str(error))
        finally:
            self._reading.discard(vm_id)
        self._tell(BootStatusRead(vm_id=vm_id, bootstatus=bootstatus, guest_uptime_ms=uptime_ms))

    async def _read(self, vm_id: VmId, path: str) -> bytes | None:
        return await self._guest.read_file(vm_id, path, deadline_ms=PING_DEADLINE_MS)

    async def _pause(self, vm_id: VmId) -> None:
        try:
            await self._control.pause(vm_id)
        except HypervisorError as error:
            # The sentinel sees no SUSPENDED event and orders it again.
            _log.warning("can't pause", vm=vm_id, error=str(error))
        record = self._record(vm_id)
        if record is None or not record.firings_ms:
            return
        dump = await asyncio.to_thread(
            self._dumps.of_firing,
            record.vm,
            number=record.firing_count,
            fired_ms=record.firings_ms[-1],
        )
        if dump is not None:
            await self._facts.emit([dump])

    async def _probe(self, command: ProbeDisks) -> None:
        why_not = await self.disk_objection(command.vm_id, command.needs_room)
        self._tell(DisksProbed(vm_id=command.vm_id, number=command.number, why_not=why_not))

    async def _resume(self, command: ResumeDomain) -> None:
        async with self._locks.of(command.vm_id):
            result, detail = await self._let_go_on(command)
        self._tell(
            ResumeEnded(
                vm_id=command.vm_id,
                incarnation=command.incarnation,
                attempt=command.attempt,
                result=result,
                detail=detail,
            )
        )

    async def _let_go_on(self, command: ResumeDomain) -> tuple[Result, str]:
        """(result, what went wrong). Under the VM's lock: what a person orders meanwhile comes before or after all of it."""
        vm_id = command.vm_id
        try:
            domain = await self._catalog.domain(vm_id)
            objection = (
                objection_to_resume(self._record(vm_id), command, domain)
                or self._host_objection()
                or self._lease_objection(vm_id)
            )
            if objection is not None:
                return Result.REFUSED, objection
            await self._control.run(vm_id)
        except (HypervisorTimeout, HypervisorUnavailable) as error:
            return Result.UNKNOWN, str(error)
        except HypervisorError as error:
            return Result.FAILED, str(error)
        return Result.OK, ""

    async def _list(self) -> None:
        counts = self._locks.counts()
        domains = await self._list_once()
        while domains is None:
            await asyncio.sleep(LIST_RETRY_MS / 1_000)
            if not self.connected:
                # When libvirt is back, the driver says so, and a new list is asked for.
                self._listing = False
                return
            counts = self._locks.counts()
            domains = await self._list_once()
        self._listing = False
        self.on_listed(domains, counts)
        at_start, self._first_list = self._first_list, False
        self._tell(DomainsListed(domains=domains, at_start=at_start))

    async def _list_once(self) -> tuple[DomainReport, ...] | None:
        try:
            domains = await self._roll_call.domains()
        except HypervisorError as error:
            _log.warning("domains can't be listed", error=str(error))
            self._tell(LibvirtLost())
            return None
        return tuple(domain for domain in domains if domain.vm_id != PROOF_VM_ID)


def _number(data: bytes | None) -> int | None:
    text = (data or b"").decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


def _uptime_ms(data: bytes | None) -> int | None:
    """``/proc/uptime``: seconds with two decimals, then the idle time."""
    first = (data or b"").decode("ascii", "replace").split(" ")[0]
    try:
        return int(float(first) * 1_000)
    except ValueError:
        return None
