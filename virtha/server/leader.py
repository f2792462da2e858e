"""The leader of one cluster: the effects of ``virtha.engine.turn``, interpreted in asyncio.

One turn after the other: journal what came, decide, write under the term, send, wait. The simulator interprets the same
turn (``virtha.sim.leader``), and dies between any two of its effects; so may this process. What it sent comes to an end
elsewhere, and is told as an event.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from virtha.engine import turn
from virtha.engine.ending import EndCopy, EndPaused
from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    CancelStart,
    Command,
    CopyGranted,
    Decision,
    EngineEvent,
    HostConfigured,
    Intent,
    Investigate,
    LeaseRenewed,
    MigrateCommand,
    Notice,
    SettleMigration,
    Stalled,
    StartCommand,
    VmConfigured,
)
from virtha.engine.snapshot import EngineSnapshot
from virtha.engine.turn import Effect, InboxFull, Journal, Send, StepDown, Turn, Wait, Write
from virtha.model.errors import Failed, Unavailable
from virtha.model.ids import HostId, Term
from virtha.model.time import Millis, UtcMillis
from virtha.ports.clock import Clock

log = structlog.get_logger("virtha.server.leader")
TURN_MS = 2
"""What comes within it goes into one turn."""
EVENTS_MAX = 2_000
"""In one turn: a tenth of a second. More than that waits for the next one, and the gateway is served between them."""
TICK_MS = 500
"""How often it looks at its own watch."""
LEASE_MS = 90_000
"""The leader's own lease; above the longest order of every profile, or none would be given (J7)."""
LEASE_EVERY_MS = 5_000
DATABASE_RETRY_MS = 200


class ClusterClock:
    """Cluster time (M4): never before what was written last, and from then on as this machine's clock that counts through
    suspend. The wall clock only says how long nobody led."""

    def __init__(self, clock: Clock, *, written: Millis) -> None:
        self._clock = clock
        self._base_ms = max(int(written), int(clock.wall_ms()))
        self._began_ms = int(clock.monotonic_ms())

    def now(self) -> Millis:
        return Millis(self._base_ms + int(self._clock.monotonic_ms()) - self._began_ms)

    def wall_ms(self) -> UtcMillis:
        """For people only."""
        return self._clock.wall_ms()


class TurnJournal(Protocol):
    """See ``virtha.server.journal.EngineJournal``."""

    def wants_snapshot(self, now: Millis) -> bool: ...

    def begin(self, state: EngineSnapshot, *, created_at_ms: UtcMillis) -> None: ...

    def turn(self, now: Millis, events: Sequence[EngineEvent]) -> None: ...

    def decided(self, now: Millis, decision: Decision) -> None: ...


class Records(Protocol):
    """The cluster's records, under a term. Each raises Unavailable while the database does not answer; False: the term is
    over."""

    async def write(
        self,
        *,
        intents: Sequence[Intent],
        notices: Sequence[Notice],
        receipts: Mapping[HostId, int],
        told: Iterable[CopyGranted],
        clock: Millis,
    ) -> bool: ...

    async def acknowledge(self, receipts: Mapping[HostId, int]) -> bool: ...

    async def held(self) -> bool: ...


class _Took(NamedTuple):
    """A receipt behind the events that it is about."""

    host_id: HostId
    sequence: int


class LostTerm(Exception):
    """Another term or timeline has begun: nothing more is sent."""


def lane_of(command: Command) -> str:
    """Commands of one lane are sent in their order; no lane waits for another. What fences a host, or leads to it, waits
    for nothing but what was decided about that host before (F4): not for starts, nor for another host's device."""
    match command:
        case StartCommand() | CancelStart() | MigrateCommand() | SettleMigration():
            return "vms"
        case EndCopy() | EndPaused():
            return "vms"
        case Investigate(subject=host_id):
            return f"evidence of {host_id}"
        case _:
            return f"fence of {command.host_id}"


class Leader:
    """``run`` it in a task; cancelled, it stops between any two effects, as a process that is killed."""

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        term: Term,
        clock: ClusterClock,
        records: Records,
        journal: TurnJournal,
        carry_out: Callable[[Command], Awaitable[None]],
        acknowledged: Callable[[Mapping[HostId, int]], None],
        stall_ms: Callable[[], int],
        ticked: Callable[[], None] = lambda: None,
    ) -> None:
        """``name``: of the cluster. ``carry_out``: one command, in the order of its lane; raises Unavailable to be called
        again.
        ``acknowledged``: these hosts may forget their facts up to there. ``ticked``: called every ``TICK_MS``; must not
        wait."""
        self.name = name
        self.engine = engine
        self.term = term
        self.clock = clock
        self._records = records
        self._journal = journal
        self._carry_out = carry_out
        self._acknowledged = acknowledged
        self._stall_ms = stall_ms
        self._ticked = ticked
        self._turn = Turn(engine, term=term)
        self._came = asyncio.Event()
        self._until: Millis | None = clock.now()
        self._ticked_ms = clock.now()
        self._lease_asked_ms: Millis | None = None
        self._told: list[CopyGranted] = []
        """Of which turns were told since the last write."""
        self._lanes: dict[str, deque[Command]] = {}
        """What is not carried out yet, by ``lane_of``. The first of each is under way."""
        self._emptying: set[str] = set()
        self._handed = asyncio.Event()
        """Something may be in a lane that nobody empties."""
        self._overrun: InboxFull | None = None
        self._offered = 0
        """Events for the next turn."""
        self._behind: deque[EngineEvent | _Took] = deque()
        """For those after it, in their order."""
        self._behind_counted = 0

    # What comes in; never waits, never fails

    def offer(self, *events: EngineEvent) -> None:
        """A turn takes some of them, but all hosts that it is told of first: an engine that knows of some takes the others for
        removed."""
        for event in events:
            if self._behind or (self._offered >= EVENTS_MAX and type(event) is not HostConfigured):
                self._put_behind(event)
            else:
                self._put(event)
        self._came.set()

    def took(self, host_id: HostId, sequence: int) -> None:
        """See ``Turn.took``."""
        if self._behind:
            self._behind.append(_Took(host_id, sequence))
        else:
            self._turn.took(host_id, sequence)
        self._came.set()

    @property
    def busy(self) -> bool:
        """Whether more waits than the next turn takes."""
        return bool(self._behind)

    def _put(self, event: EngineEvent) -> None:
        self._offered += type(event) is not BeatSeen  # one of each host at most
        try:
            self._turn.offer((event,))
        except InboxFull as error:
            self._overrun = error

    def _put_behind(self, event: EngineEvent) -> None:
        self._behind.append(event)
        # What is configured comes all at once, when it begins: no sign of being too slow.
        self._behind_counted += type(event) not in (HostConfigured, VmConfigured)
        if self._behind_counted > turn.INBOX_MAX:
            self._overrun = InboxFull(f"{self._behind_counted} events wait for the engine")

    def _catch_up(self) -> None:
        """The next turn has begun: what waited goes into the one after it, as far as it has room."""
        self._offered = 0
        while self._behind and self._offered < EVENTS_MAX:
            one = self._behind.popleft()
            if isinstance(one, _Took):
                self._turn.took(one.host_id, one.sequence)
            else:
                self._behind_counted -= type(one) not in (HostConfigured, VmConfigured)
                self._put(one)
            self._came.set()

    # The loop

    async def run(self) -> None:
        """Until it is cancelled. Raises LostTerm, Failed (the engine or its inbox broke, a record can't be written)."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._tick_on(), name=f"watch of {self.name}")
                group.create_task(self._send_on(group), name=f"commands of {self.name}")
                group.create_task(self._turn_on(), name=f"turns of {self.name}")
        except ExceptionGroup as errors:
            # The first one ended the others, and is what callers know.
            raise errors.exceptions[0] from None

    async def _turn_on(self) -> None:
        while True:
            await self._until_due()
            await asyncio.sleep(TURN_MS / 1_000)
            await self.turn()

    async def _until_due(self) -> None:
        while not self._came.is_set():
            left_ms = None if self._until is None else self._until - self.clock.now()
            if left_ms is not None and left_ms <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if left_ms is None else left_ms / 1_000):
                    await self._came.wait()

    async def turn(self) -> None:
        """One whole turn, whatever there is for it."""
        async for _ in self.effects():
            pass

    async def effects(self) -> AsyncIterator[Effect]:
        """One whole turn. Each effect is given before it is carried out: who stops there stops like a process that dies."""
        if self._overrun is not None:
            raise Failed(
                f"the engine of cluster {self.name} can't keep up: {self._overrun}",
                fix="look for what keeps this machine busy; the server goes on from its records when it is started again",
            )
        self._look_at_watch()
        self._came.clear()
        effect = self._turn.begin(self.clock.now())
        self._catch_up()
        while not isinstance(effect, Wait):
            yield effect
            effect = await self._do(effect)
        self._until = effect.until
        if not self._turn.waiting:
            await self._give_receipts()

    async def _do(self, effect: Effect) -> Effect:
        """Carry one effect out. Returns the next."""
        match effect:
            case Journal(now=now, events=events):
                return self._decide(now, events)
            case Write():
                held = await self._write(effect)
                return self._turn.written(held=held, now=self.clock.now())
            case Send(commands=commands):
                self.hand_over(commands)
                return self._turn.sent()
            case StepDown():
                raise LostTerm
            case Wait():
                raise AssertionError("nothing is done while it waits")

    def _decide(self, now: Millis, events: Sequence[EngineEvent]) -> Effect:
        self._told += [one for one in events if type(one) is CopyGranted]
        if self._journal.wants_snapshot(now):
            self._journal.begin(self.engine.snapshot(), created_at_ms=self.clock.wall_ms())
        self._journal.turn(now, events)
        try:
            effect = self._turn.journaled()
        except AssertionError as error:
            raise Failed(
                f"the engine of cluster {self.name} stopped, for it would have broken a rule: {error}",
                fix="keep its journal for a report; no VM is touched, and the server goes on from its records when it is "
                "started again",
            ) from error
        assert self._turn.decision is not None, "a step without a decision"
        self._journal.decided(now, self._turn.decision)
        return effect

    async def _write(self, effect: Write) -> bool:
        """As often as it takes: what was decided is decided, and nothing is sent before it is durable."""
        told = tuple(self._told)
        while True:
            try:
                held = await self._records.write(
                    intents=effect.intents,
                    notices=effect.notices,
                    receipts=effect.receipts,
                    told=told,
                    clock=self.clock.now(),
                )
            except Unavailable as error:
                log.warning(
                    "the engine waits for the database", cluster=self.name, error=str(error)
                )
                await asyncio.sleep(DATABASE_RETRY_MS / 1_000)
                continue
            if held:
                self._told.clear()
                self._acknowledged(effect.receipts)
            return held

    async def _give_receipts(self) -> None:
        """Nothing waits for them: between two turns, and again when the database answers."""
        given = dict(self._turn.settled)
        if not given:
            return
        try:
            held = await self._records.acknowledge(given)
        except Unavailable:
            return  # with the next write, or the next tick
        if not held:
            raise LostTerm
        left = self._turn.settled
        self._turn.settled = {one: last for one, last in left.items() if given.get(one) != last}
        self._acknowledged(given)

    # Its own watch

    async def _tick_on(self) -> None:
        while True:
            await self.tick()
            await asyncio.sleep(TICK_MS / 1_000)

    async def tick(self) -> None:
        self._look_at_watch()
        self._ticked()
        if self._turn.settled:
            self._came.set()  # they could not be written before
        now, asked = self.clock.now(), self._lease_asked_ms
        if asked is None or now - asked >= LEASE_EVERY_MS:
            await self._renew_lease(now)

    def _look_at_watch(self) -> None:
        now = self.clock.now()
        asleep_ms, self._ticked_ms = now - self._ticked_ms, now
        if asleep_ms >= TICK_MS + self._stall_ms():
            log.warning("the leader was asleep", cluster=self.name, asleep_ms=asleep_ms)
            self.offer(Stalled())

    async def _renew_lease(self, asked_ms: Millis) -> None:
        """Its end counts from the asking, not from the answer."""
        try:
            held = await self._records.held()
        except Unavailable:
            return  # it runs on, and out
        if not held:
            raise LostTerm
        self._lease_asked_ms = asked_ms
        self.offer(LeaseRenewed(until_ms=int(asked_ms) + LEASE_MS))

    # Commands

    def hand_over(self, commands: Sequence[Command]) -> None:
        """To their lanes."""
        for command in commands:
            self._lanes.setdefault(lane_of(command), deque()).append(command)
        self._handed.set()

    async def _send_on(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._handed.wait()
            self._begin_lanes(group)

    async def send_all(self) -> None:
        """What was handed to the lanes by now. The ends come back as events."""
        async with asyncio.TaskGroup() as group:
            self._begin_lanes(group)

    def _begin_lanes(self, group: asyncio.TaskGroup) -> None:
        self._handed.clear()
        for name in self._lanes.keys() - self._emptying:
            self._emptying.add(name)
            group.create_task(self._empty(name), name=f"{name} in {self.name}")

    async def _empty(self, name: str) -> None:
        lane = self._lanes[name]
        try:
            while lane:
                await self._send(lane[0])
                lane.popleft()
            del self._lanes[name]
        finally:
            self._emptying.discard(name)

    async def _send(self, command: Command) -> None:
        """Also while the database is away: it waits for it, and its lane for this one."""
        while True:
            try:
                await self._carry_out(command)
                return
            except Unavailable as error:
                log.warning(
                    "a command waits for the database",
                    cluster=self.name,
                    command=repr(command),
                    error=str(error),
                )
                await asyncio.sleep(DATABASE_RETRY_MS / 1_000)
