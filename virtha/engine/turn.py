"""The order of effects around the engine, as a state machine that does nothing itself.

The server's loop and the simulator both interpret it, so that a crash between two effects in the simulator is a crash
that can happen on a server. One turn: journal what came, decide, write what was decided while our term still holds,
send, wait. A leader whose write was refused because the term has passed on has nothing more to say.
"""

from collections.abc import Iterable

from virtha.engine.engine import Engine
from virtha.engine.events import BeatSeen, Command, Decision, EngineEvent, Intent, Notice
from virtha.model.ids import HostId, Term
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


class Turn:
    """Call ``begin``, then for each effect the method that says that it is done. The answer is the next effect."""

    def __init__(self, engine: Engine, *, term: Term) -> None:
        self._engine = engine
        self._term = term
        self._events: list[EngineEvent] = []
        self._beats: dict[HostId, BeatSeen] = {}
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

    @property
    def waiting(self) -> bool:
        """Whether there is something for a turn."""
        return bool(self._events or self._beats)

    def begin(self, now: Millis) -> Effect:
        assert self._now is None, "a turn is under way"
        if self._deposed:
            return StepDown()
        self._taken = (*self._events, *self._beats.values())
        self._events, self._beats = [], {}
        self._now = now
        self.decision = None
        return Journal(now=now, events=self._taken)

    def journaled(self) -> Effect:
        assert self._now is not None, "no turn is under way"
        decision = self._engine.step(self._now, self._taken)
        self.decision = decision
        self._commands, self._wake_at = decision.commands, decision.wake_at
        if decision.intents or decision.notices:
            return Write(term=self._term, intents=decision.intents, notices=decision.notices)
        return self._send()

    def written(self, *, held: bool) -> Effect:
        """``held``: the term was still ours, and all of it is durable."""
        if not held:
            self._deposed = True
            self._now = None
            self._commands = ()
            return StepDown()
        return self._send()

    def sent(self) -> Effect:
        self._now = None
        self._commands = ()
        return Wait(until=self._wake_at)

    def _send(self) -> Effect:
        if self._commands:
            return Send(commands=self._commands)
        return self.sent()
