"""The leader's loop around the real engine: the effects of ``virtha.engine.turn``, each with its own delay.

Between two effects the process can die or freeze, as a server can. What it sends goes to ``carry_out``; nothing it
sent comes to an end in here.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from virtha.engine.engine import Engine
from virtha.engine.events import (
    Command,
    CopyGranted,
    EngineEvent,
    Intent,
    LeaseRenewed,
    Notice,
    Stalled,
)
from virtha.engine.turn import Effect, Journal, Send, StepDown, Turn, Wait, Write
from virtha.model.ids import HostId, Term
from virtha.model.time import Millis
from virtha.sim.kernel import Action, Actor
from virtha.sim.wakes import Wakes
from virtha.sim.world_time import cluster_time

TURN_MS = 1
"""What comes within it goes into one turn."""
WRITE_MS = 3
TICK_MS = 500
"""How often it looks at its own watch."""
LEASE_MS = 90_000
"""The leader's own lease; above the longest order of every profile, or none would be given (J7)."""
LEASE_EVERY_MS = 5_000
DATABASE_RETRY_MS = 200

POINTS = ("journal", "intents", "commands", "sent")
"""Before what came is journalled; decided and not written; written and not sent; sent."""

WriteRecords = Callable[
    [Term, Sequence[Intent], Sequence[Notice], Mapping[HostId, int]], bool | None
]
"""True: durable. False: the term is over. None: the database does not answer."""


class Trap:
    """Armed at a point of a turn: what happens to the process there. ``of``: only at an event of that kind, or from the
    commands on at a command of that kind.
    ``passes``: so many times nothing happens there first."""

    def __init__(
        self, point: str, of: str | None, spring: Callable[[], None], *, passes: int = 0
    ) -> None:
        self.point = point
        self.of = of
        self.spring = spring
        self.passes = passes


class Leader:
    def __init__(
        self,
        kernel: Actor,
        engine: Engine,
        term: Term,
        *,
        hosts: Callable[[], int],
        stall_ms: Callable[[], int],
        write: WriteRecords,
        carry_out: Callable[[Command], None],
        trace: Callable[[str], None],
    ) -> None:
        self.kernel = kernel
        self.engine = engine
        self.term = term
        self.alive = True
        self.trap: Trap | None = None
        self.on_point: Callable[[str, Sequence[Command]], None] = lambda _point, _commands: None
        """Whenever it passes one of ``POINTS``, before what follows."""
        self.turns = 0
        self._turn = Turn(engine, term=term)
        self._wakes = Wakes(hosts=hosts)
        self._given = False
        """This turn began because something came, not because its time had."""
        self._busy = False
        self._due = False
        self._timers = 0
        self._timer = 0
        """The one that counts, by number; 0: none."""
        self._timer_at = kernel.now
        self._last_timer: Action = self._tick
        """The one that was made last, and when it is due: a turn mostly leaves the moment as it was."""
        self._ticked_ms = kernel.now
        self._lease_asked_ms: int | None = None
        self.told: list[CopyGranted] = []
        """Of which turns were told since the last write."""
        self._came: Sequence[EngineEvent] = ()
        self._stall_ms = stall_ms
        self._write = write
        self._carry_out = carry_out
        self._trace = trace

    def begin(self) -> None:
        self._tick()

    def die(self) -> None:
        self.alive = False

    def offer(self, *events: EngineEvent) -> None:
        if not self.alive:
            return
        self._turn.offer(events)
        if not self._due:
            self._begin_soon()

    def took(self, host_id: HostId, sequence: int) -> None:
        """See ``Turn.took``."""
        if self.alive:
            self._turn.took(host_id, sequence)
            self._begin_soon()

    # Its own watch

    def _tick(self) -> None:
        if not self.alive:
            return
        self._look_at_watch()
        self._give_receipts()
        asked = self._lease_asked_ms
        if asked is None or self.kernel.now - asked >= LEASE_EVERY_MS:
            self._renew_lease()
        self.kernel.after(TICK_MS, self._tick)

    def _look_at_watch(self) -> None:
        asleep_ms = self.kernel.now - self._ticked_ms
        self._ticked_ms = self.kernel.now
        if asleep_ms >= TICK_MS + self._stall_ms():
            self._trace(f"leader of term {self.term} was asleep for {asleep_ms} ms")
            self.offer(Stalled())

    def _renew_lease(self) -> None:
        """Its end counts from the asking, not from the answer."""
        asked_ms = self.kernel.now
        held = self._write(self.term, (), (), {})
        if held:
            self._lease_asked_ms = asked_ms
            self.offer(LeaseRenewed(until_ms=int(cluster_time(asked_ms)) + LEASE_MS))
        elif held is False:
            self._step_down()

    def _give_receipts(self) -> None:
        """Nothing waits for them: between two turns, and again when the database answers."""
        settled = self._turn.settled
        if settled and not self._busy and self._write(self.term, (), (), settled):
            self._turn.settled = {}

    # Turns

    def _begin_soon(self) -> None:
        if not self._busy and not self._due:
            self._due = True
            self.kernel.after(TURN_MS, self._begin)

    def _begin(self) -> None:
        self._due = False
        if not self.alive or self._busy:
            return
        self._look_at_watch()
        self._timer = 0
        self._busy = True
        self.turns += 1
        self._given = self._turn.waiting
        self._do(self._turn.begin(Millis(cluster_time(self.kernel.now))))

    def _do(self, effect: Effect) -> None:
        match effect:
            case Journal(events=events):
                self._came = events
                self.told += [one for one in events if type(one) is CopyGranted]
                self._at("journal", (), self._decide, came=events)
            case Write():
                self._at(
                    "intents",
                    (),
                    lambda: self.kernel.after(WRITE_MS, lambda: self._try(effect)),
                    came=self._came,
                )
            case Send(commands=commands):
                self._at("commands", commands, lambda: self._send(commands))
            case Wait(until=until):
                self._wait(until)
            case StepDown():
                self._step_down()

    def _decide(self) -> None:
        effect = self._turn.journaled()
        decision = self._turn.decision
        assert decision is not None, "a step without a decision"
        self._wakes.stepped(Millis(cluster_time(self.kernel.now)), decision, came=self._given)
        self._do(effect)

    def _at(
        self,
        point: str,
        commands: Sequence[Command],
        go_on: Callable[[], None],
        *,
        came: Sequence[EngineEvent] = (),
    ) -> None:
        """``came``: what a trap looks at before anything is ordered."""
        self.on_point(point, commands)
        trap = self.trap
        if trap is not None and trap.point == point:
            self._strike(trap, point, (*came, *commands))
        if self.alive:
            self.kernel.deliver(go_on)

    def _strike(self, trap: Trap, point: str, around: Sequence[EngineEvent | Command]) -> None:
        if trap.of is not None and not any(
            trap.of in type(one).__struct_config__.tag  # type: ignore[operator]  # each is made with a tag
            for one in around
        ):
            return
        if trap.passes:
            trap.passes -= 1
            return
        self.trap = None
        self._trace(f"leader of term {self.term} is struck at its {point}")
        trap.spring()

    def _try(self, effect: Write) -> None:
        if not self.alive:
            return
        held = self._write(effect.term, effect.intents, effect.notices, effect.receipts)
        if held is None:
            self.kernel.after(DATABASE_RETRY_MS, lambda: self._try(effect))
            return
        self.told.clear()
        now = Millis(cluster_time(self.kernel.now))
        self._do(self._turn.written(held=held, now=now))

    def _send(self, commands: Sequence[Command]) -> None:
        if not self.alive:
            return
        for command in commands:
            self._carry_out(command)
        self._at("sent", commands, lambda: self._do(self._turn.sent()))

    def _wait(self, until: Millis | None) -> None:
        self._busy = False
        self._give_receipts()
        if self._turn.waiting:
            self._begin_soon()
        if until is not None:
            self._arm(max(0, until - cluster_time(self.kernel.now)))

    def _arm(self, delay_ms: int) -> None:
        """The last timer serves again where it is for that moment and nothing was asked for behind it: a new one would
        come in its place."""
        root = self.kernel.root
        at = root.now + delay_ms
        if not (delay_ms and at == self._timer_at and root.is_last(at, self._last_timer)):
            self._timers += 1
            self._last_timer, self._timer_at = partial(self._timer_fired, self._timers), at
            self.kernel.after(delay_ms, self._last_timer)
        self._timer = self._timers

    def _timer_fired(self, mine: int) -> None:
        if mine == self._timer and self.alive and not self._busy:
            self._begin()

    def _step_down(self) -> None:
        if self.alive:
            self._trace(f"leader of term {self.term} steps down")
        self.alive = False
