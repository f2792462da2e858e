"""The agent's loop around the pure sentinel: the one place where the order of effects is fixed.

    drain the inbox -> step -> journal -> history -> intents -> commands -> states

The order and its reasons are the contract of ``virtha.sentinel.events``. All of it is over before the
next step.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import msgspec
import structlog

from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.journal import Journal
from virtha.agent.records import RecordStore
from virtha.model.facts import FactBody, Happened, Released
from virtha.model.ids import Incarnation, VmId
from virtha.model.orders import SettleMigration
from virtha.model.time import Millis
from virtha.model.vm import Reason
from virtha.ports.clock import Clock
from virtha.sentinel.events import (
    ArrivalAccepted,
    Command,
    Decision,
    DropRecord,
    Intent,
    ListDomains,
    MoveAccepted,
    SaveRecord,
    SentinelEvent,
    SentinelRecords,
    StartAccepted,
    VmRecord,
)
from virtha.sentinel.moves import CopySeen, SettleAction

INBOX_MAX = 20_000
"""Events of one stall; at this many the loop lists all domains instead of following each."""
RETRY_MS = 1_000

_log = structlog.get_logger(__name__)


class SentinelCore(Protocol):
    @property
    def ready(self) -> bool: ...

    def step(self, now: Millis, events: list[SentinelEvent]) -> Decision: ...

    def start_refusal(self, vm_id: VmId, incarnation: Incarnation) -> Reason | None: ...

    def arrival_refusal(self, vm_id: VmId, incarnation: Incarnation) -> Reason | None: ...

    def move_refusal(
        self, vm_id: VmId, incarnation: Incarnation, target_incarnation: Incarnation
    ) -> Reason | None: ...

    def settle_action(self, order: SettleMigration, copy: CopySeen) -> SettleAction: ...

    def view(self) -> tuple[VmRecord, ...]: ...


Accepted = StartAccepted | ArrivalAccepted | MoveAccepted
"""What the sentinel takes only while it has nothing against it."""


class _Waiting(NamedTuple):
    event: SentinelEvent
    done: "asyncio.Future[bool] | None" = None
    start: "asyncio.Future[tuple[bool, Reason | None]] | None" = None
    """An ordered start or move: the first of its step, if the sentinel then has nothing against it."""


class AgentLoop:
    """Owns the sentinel. ``execute`` begins a command and returns at once."""

    def __init__(
        self,
        sentinel: SentinelCore,
        *,
        clock: Clock,
        disk: DiskThread,
        records: RecordStore,
        journal: Journal,
        facts: FactSink,
        execute: Callable[[Command], None],
        revoke: Callable[[Released], None],
        may_run: Callable[[VmId], Awaitable[bool]],
        policy: Callable[[], SentinelRecords],
        host_name: str = "",
    ) -> None:
        self._sentinel = sentinel
        self._clock = clock
        self._disk = disk
        self._records = records
        self._journal = journal
        self._facts = facts
        self._execute = execute
        self._revoke = revoke
        self._may_run = may_run
        self._policy = policy
        self._host_name = host_name
        self._inbox: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._wake_at: Millis | None = None
        self._unsaved: dict[str, Intent] = {}
        self._untold: list[FactBody] = []
        self._opened = False
        self._dropped = 0
        self._told_full = False
        self._by_id: dict[VmId, VmRecord] = {}
        self.ready = False
        """Whether the sentinel has libvirt's list; without it nothing is started here."""
        self.on_ready: Callable[[], None] = lambda: None
        self.refresh()

    # For the agent's other parts

    def tell(self, event: SentinelEvent) -> None:
        """Never waits. Beyond ``INBOX_MAX`` events are dropped, counted and told."""
        if len(self._inbox) >= INBOX_MAX:
            self._dropped += 1
        else:
            self._inbox.append(_Waiting(event))
        self._wake.set()

    async def told(self, event: SentinelEvent) -> bool:
        """Returns when the event was stepped. False: its intents are not on disk (no space left)."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._inbox.append(_Waiting(event, done=done))
        self._wake.set()
        return await done

    async def told_start(self, event: Accepted) -> tuple[bool, Reason | None]:
        """(durable, None), or (False, why the sentinel refuses it): a crash, a restart or a shutdown of
        the host may have come after the order was checked."""
        done: asyncio.Future[tuple[bool, Reason | None]]
        done = asyncio.get_running_loop().create_future()
        self._inbox.append(_Waiting(event, start=done))
        self._wake.set()
        return await done

    def start_refusal(self, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
        return self._sentinel.start_refusal(vm_id, incarnation)

    def arrival_refusal(self, vm_id: VmId, incarnation: Incarnation) -> Reason | None:
        return self._sentinel.arrival_refusal(vm_id, incarnation)

    def settle_action(self, order: SettleMigration, copy: CopySeen) -> SettleAction:
        """Of what the sentinel knows by now; see there."""
        return self._sentinel.settle_action(order, copy)

    def _refusal(self, event: SentinelEvent) -> Reason | None:
        match event:
            case StartAccepted():
                return self._sentinel.start_refusal(event.vm.id, event.incarnation)
            case ArrivalAccepted():
                return self._sentinel.arrival_refusal(event.vm.id, event.incarnation)
            case MoveAccepted():
                return self._sentinel.move_refusal(
                    event.vm_id, event.incarnation, event.target_incarnation
                )
            case _:
                raise AssertionError(f"nobody asks before {event}")

    def record(self, vm_id: VmId) -> VmRecord | None:
        return self._by_id.get(vm_id)

    def records(self) -> tuple[VmRecord, ...]:
        return tuple(self._by_id.values())

    # Turning

    async def run(self) -> None:
        """Until cancelled. An error of the core ends the agent: its supervisor starts it anew."""
        while True:
            await self.turn()
            await self._pause()

    async def _pause(self) -> None:
        if self._inbox:
            return
        self._wake.clear()
        timeout_s = None
        if self._wake_at is not None:
            timeout_s = max(0, self._wake_at - self._clock.monotonic_ms()) / 1_000
        if self._unsaved or self._untold:
            retry_s = RETRY_MS / 1_000
            timeout_s = retry_s if timeout_s is None else min(timeout_s, retry_s)
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with what is
            # awaited, and the agent would never end.
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def turn(self) -> None:
        """One step with what has come in; at most one ordered start in it, as its first event."""
        batch = self._take()
        now = self._clock.monotonic_ms()
        due = self._wake_at is not None and now >= self._wake_at
        waits = self._unsaved or self._untold
        if not batch and not due and not waits and self._opened:
            return
        self._opened = True
        events = [waiting.event for waiting in batch]
        decision = self._sentinel.step(now, events)
        self.refresh()
        self._wake_at = decision.wake_at
        await self._disk(self._journal.add, now, events, decision)
        if self._journal.is_full:
            records = msgspec.structs.replace(self._policy(), vms=self._sentinel.view())
            await self._disk(self._journal.begin, now, records, from_start=False)
        await self._facts.emit((*decision.history, *self._overload()))
        durable = await self._save(decision.intents)
        for command in decision.commands:
            self._execute(command)
        await self._tell_states(decision.states, durable=durable)
        self._tell_ready()
        for waiting in batch:
            if waiting.done is not None and not waiting.done.done():
                waiting.done.set_result(durable)
            if waiting.start is not None and not waiting.start.done():
                waiting.start.set_result((durable, None))

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._inbox:
            waiting = self._inbox[0]
            if waiting.start is not None:
                if batch:
                    break  # what came before it may decide whether it is still allowed
                refusal = self._refusal(waiting.event)
                if refusal is not None:
                    self._inbox.popleft()
                    if not waiting.start.done():
                        waiting.start.set_result((False, refusal))
                    continue
            batch.append(self._inbox.popleft())
        return batch

    async def _tell_states(self, states: tuple[FactBody, ...], *, durable: bool) -> None:
        """Not before the records behind them: a release whose record is lost would be broken later."""
        self._untold += states
        if not durable:
            return
        states, self._untold = tuple(self._untold), []
        told: list[FactBody] = []
        for state in states:
            if isinstance(state, Released):
                if not await self._is_over(state):
                    continue
                self._revoke(state)
            told.append(state)
        await self._facts.emit(told)

    async def _is_over(self, released: Released) -> bool:
        """Held back while the kernel still has its QEMU: it may yet write, whatever libvirt says."""
        record = self.record(released.vm_id)
        if record is not None and record.incarnation > released.incarnation:
            return False  # a later start was accepted here since; that one has its own release
        if not await self._may_run(released.vm_id):
            return True
        _log.warning("a release waits for the end of its QEMU", vm=released.vm_id)
        self._untold.append(released)
        return False

    def _tell_ready(self) -> None:
        ready = self._sentinel.ready
        if ready != self.ready:
            self.ready = ready
            self.on_ready()

    def refresh(self) -> None:
        self._by_id = {record.vm.id: record for record in self._sentinel.view()}

    async def _save(self, intents: tuple[Intent, ...]) -> bool:
        """Write them; False: no space. They are kept and tried again each second.

        Commands go out all the same, states (a release above all) wait for their records. The only one that changes a VM by itself is a restart, and that
        one is safe without its record: its exit was seen in this boot by this process, and whatever
        an agent after us finds on disk is older, so it can only restart less (it asks the server).
        What may be lost is the count of attempts. An *ordered* start is not done without its record
        (``told`` returns False): an agent that forgot an incarnation could not refuse a lower one.
        """
        for intent in intents:
            self._unsaved.pop(_key(intent), None)
            self._unsaved[_key(intent)] = intent
        if not self._unsaved:
            return True
        waiting = tuple(self._unsaved.values())
        try:
            await self._disk(self._records.write, waiting)
        except OSError as error:
            _log.error("records can't be written", error=str(error), waiting=len(waiting))
            if not self._told_full:
                self._told_full = True
                await self._facts.emit(
                    [Happened(code="host.disk.full", fields={"name": self._host_name})]
                )
            return False
        self._told_full = False
        self._unsaved.clear()
        return True

    def _overload(self) -> tuple[Happened, ...]:
        if not self._dropped:
            return ()
        count, self._dropped = self._dropped, 0
        # What was dropped is lost as history, but not as state: libvirt is asked for the truth.
        self._execute(ListDomains())
        return (
            Happened(code="host.agent.overload", fields={"name": self._host_name, "count": count}),
        )


def _key(intent: Intent) -> str:
    match intent:
        case SaveRecord(record=record):
            return record.vm.id
        case DropRecord(vm_id=vm_id):
            return vm_id
        case _:
            return "watched"
