"""The order of effects around the engine, as a state machine that does nothing itself.

The server's loop and the simulator both interpret it, so that a crash between two effects in the simulator is a crash
that can happen on a server. One turn: journal what came, decide, write what was decided while our term still holds,
send, wait. A leader whose write was refused because the term has passed on has nothing more to say.

A write may take long (the database is away, this process was asleep). A power order that is too old by then is not
sent: the engine is told so as an event of the next turn, and decides on what is known by then. Whoever carries the others
out looks at the clock again, right before the device is asked (see ``OrderPower``).
"""

from collections.abc import Iterable
from typing import TypeGuard

from virtha.engine.engine import Engine
from virtha.engine.events import (
    BeatSeen,
    Command,
    Decision,
    EngineEvent,
    Intent,
    Notice,
    OrderPower,
    PowerOrdered,
    Stalled,
)
from virtha.model.facts import Result
from virtha.model.ids import HostId, Term
from virtha.model.power import TOO_LATE
from virtha.model.time import Millis
from virtha.model.value import Value

INBOX_MAX = 100_000
"""Events that may wait for the next turn. Beats take one place per host, however many come."""


class Journal(Value, frozen=True, kw_only=True):
    """Append (now, events) to the journal; before the step, so that a step that fails can be replayed."""

    now: Millis
    events: tuple[EngineEvent, ...]


class Write(Value, frozen=True, kw_only=True):
    """One transaction that succeeds only while ``term`` is the cluster's."""

    term: Term
    intents: tuple[Intent, ...]
    notices: tuple[Notice, ...]
    receipts: dict[HostId, int] = {}
    """Of each host the last fact that this turn knows of. Only when all of this is durable may that host be told that
    it can forget them: a release that is lost with a leader would never be said again."""


class Send(Value, frozen=True, kw_only=True):
    """Hand these to their lanes, without waiting for their ends: those come back as events."""

    commands: tuple[Command, ...]


class Wait(Value, frozen=True, kw_only=True):
    """Until there are events, or until that cluster time."""

    until: Millis | None


class StepDown(Value, frozen=True, kw_only=True):
    """Another leads. Nothing of this turn was sent, nothing more may be."""


Effect = Journal | Write | Send | Wait | StepDown


class InboxFull(Exception):
    """The leader is too slow for what happens; it must step down rather than decide on half of it."""


def is_too_late(command: Command, now: Millis) -> TypeGuard[OrderPower]:
    """Asked after a late write, and by whoever carries it out, right before the device is."""
    return isinstance(command, OrderPower) and now > command.not_after_ms


def not_carried_out(order: OrderPower) -> PowerOrdered:
    """What comes back of an order that was too old: it never went to its device, and that is certain."""
    return PowerOrdered(
        order_id=order.order_id,
        host_id=order.host_id,
        device=order.device,
        result=Result.REFUSED,
        error=TOO_LATE,
    )


class Turn:
    """Call ``begin``, then for each effect the method that says that it is done. The answer is the next effect."""

    def __init__(self, engine: Engine, *, term: Term) -> None:
        self._engine = engine
        self._term = term
        self._events: list[EngineEvent] = []
        self._beats: dict[HostId, BeatSeen] = {}
        self._receipts: dict[HostId, int] = {}
        self.settled: dict[HostId, int] = {}
        """Receipts of turns that had nothing to write: to be written beside the turns, whenever the database answers."""
        self._now: Millis | None = None
        self._taken: tuple[EngineEvent, ...] = ()
        self.decision: Decision | None = None
        """Of this turn's step, or of the last one's, for the journal: it is written beside what went in."""
        self._commands: tuple[Command, ...] = ()
        self._wake_at: Millis | None = None
        self._deposed = False

    def offer(self, events: Iterable[EngineEvent]) -> None:
        """For the next turn, in this order; of one host's beats the last one counts, unless its boot or its
        agent's state differ. Raises InboxFull."""
        for event in events:
            if isinstance(event, BeatSeen):
                before = self._beats.get(event.host_id)
                if before is not None and before != event:
                    self._events.append(before)
                self._beats[event.host_id] = event
            else:
                # A beat from before its session broke must not be read after the break.
                host_id: HostId = getattr(event, "host_id", HostId(""))
                earlier = self._beats.pop(host_id, None)
                self._events += [event] if earlier is None else [earlier, event]
        if len(self._events) > INBOX_MAX:
            raise InboxFull(f"{len(self._events)} events wait for the engine")

    def took(self, host_id: HostId, sequence: int) -> None:
        """All that follows from that host's facts up to this one has been offered."""
        self._receipts[host_id] = sequence

    @property
    def waiting(self) -> bool:
        """Whether there is something for a turn."""
        return bool(self._events or self._beats or self._receipts)

    def begin(self, now: Millis) -> Effect:
        assert self._now is None, "a turn is under way"
        if self._deposed:
            return StepDown()
        self._taken = (*self._events, *self._beats.values())
        self._events, self._beats = [], {}
        self.settled |= self._receipts
        self._receipts = {}
        self._now = now
        self.decision = None
        return Journal(now=now, events=self._taken)

    def journaled(self) -> Effect:
        assert self._now is not None, "no turn is under way"
        decision = self._engine.step(self._now, self._taken)
        self.decision = decision
        self._commands, self._wake_at = decision.commands, decision.wake_at
        if decision.intents or decision.notices:
            return Write(
                term=self._term,
                intents=decision.intents,
                notices=decision.notices,
                receipts=self.settled,
            )
        return self._send()

    def written(self, *, held: bool, now: Millis) -> Effect:
        """``held``: the term was still ours, and all of it is durable. ``now``: when that was known.

        While a write waits nobody is asked and nobody judged. One that took as long as a stall was one (J1): what the
        witnesses said before it is too old by then, and what they would have said was not asked.
        """
        if not held:
            self._deposed = True
            self._now = None
            self._commands = ()
            return StepDown()
        self.settled = {}
        assert self._now is not None, "no turn is under way"
        if now - self._now >= self._engine.stall_ms:
            self.offer([Stalled()])
        late = [one for one in self._commands if is_too_late(one, now)]
        if late:
            self._commands = tuple(one for one in self._commands if one not in late)
            self.offer(not_carried_out(one) for one in late)
        return self._send()

    def sent(self) -> Effect:
        self._now = None
        self._commands = ()
        return Wait(until=self._wake_at)

    def _send(self) -> Effect:
        if self._commands:
            return Send(commands=self._commands)
        return self.sent()
