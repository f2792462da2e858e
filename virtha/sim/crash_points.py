"""Plays a story with one process struck at one of the points of what it does, for each of them.

The leader is killed, or sleeps for a minute while another takes over, at each effect of each turn in which it writes
something, or sends something else than the turn before; each agent is killed at each effect of each of its decisions.
Where nothing was done since the point before, the same world would be played twice: that is once enough. Whatever is
struck: the checkers hold, and in the end the same VMs run as in the story as it is.
"""

import gc
import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, NoReturn

from virtha.scenario.language import Scenario, Step
from virtha.sim.checkers import Violation
from virtha.sim.play import ASKED, Player
from virtha.sim.swarm import do_if_it_applies

MARK = "crash-points"
"""The verb by which a story says that all of its points from there on are played, and its end compared. The points of
other stories begin with their first ``advance``: what builds the world is not struck."""
AWAY_MS = 3_000
"""Until the killed server is started again."""
SLEEP_MS = 60_000
TAKEOVER_MS = 5_000
SETTLE_MS = 60_000
"""After the story, until the end is looked at: longer than the sleep of a leader."""
SETTLE_AWAKE_MS = 20_000
"""The same where nobody sleeps, or whoever did has been awake for as long."""
SETTLE_MS_MAX = 600_000
"""Until it must be that of the untouched story: twice the longest pause between two attempts."""
SETTLE_STEP_MS = 20_000
ASK_AGAIN_MS = 100
KILL, SLEEP = "kill", "sleep"
MESSAGE_MAX = 4_000
"""Bytes that a pipe takes without a reader."""


class Strike(NamedTuple):
    """``who``: ``leader`` or a host, whose agent it is. ``number``: of the leaders' points so far, or of that host's
    decisions; counted from 1."""

    who: str
    how: str
    number: int
    point: str

    def text(self) -> str:
        return f"{self.who} {self.how} {self.number} {self.point}"


def parse_strike(text: str) -> Strike:
    """As ``text`` writes it. Raises ValueError."""
    who, how, number, point = text.split()
    return Strike(who, how, int(number), point)


class Untouched(NamedTuple):
    """The story as it is: where it can be struck, and which VMs run in the end; None: that was not asked. ``twins``: strikes
    that leave the same world behind as another one of ``strikes``, for nothing was done in between."""

    strikes: tuple[Strike, ...]
    twins: frozenset[Strike]
    running: dict[str, bool] | None

    @property
    def different(self) -> tuple[Strike, ...]:
        return without(self.twins, self.strikes)


def without(twins: frozenset[Strike], strikes: Sequence[Strike]) -> tuple[Strike, ...]:
    """Those that are no twins; where all are, all of them."""
    return tuple(one for one in strikes if one not in twins) or tuple(strikes)


def is_marked(scenario: Scenario) -> bool:
    return any(step.verb == MARK for step in scenario.steps)


def play_untouched(scenario: Scenario, *, to_the_end: bool = True) -> Untouched:
    player = Player()
    passed: list[_Pass] = []
    player.world.on_leader_point = lambda point, commands: passed.append(
        _Pass(
            point,
            tuple(type(command).__name__ for command in commands),
            player.world.kernel.done,
        )
    )
    begin, built = _beginning(scenario), 0
    decided: list[Strike] = []
    twins: set[Strike] = set()

    def note(name: str, number: int, point: str, changes: bool) -> bool:
        decided.append(Strike(name, KILL, number, point))
        if not changes:
            twins.add(decided[-1])
        return False

    for number, step in enumerate(scenario.steps):
        if number == begin:
            built = len(passed)
            decided.clear()
        _do(player, step)
        for name, host in player.world.hosts.items():
            host.is_struck = partial(note, name)
    agents = tuple(decided)
    struck_at = _that_do_something(passed)
    if to_the_end:
        player.world.kernel.advance(SETTLE_MS_MAX)
        player.at_end()
    strikes = [
        Strike("leader", how, number, point)
        for number, point in struck_at
        if number > built
        for how in (KILL, SLEEP)
    ]
    twins |= {one for one in strikes if _only_decides(passed, one.number)}
    running = _running(player) if to_the_end else None
    return Untouched((*strikes, *agents), frozenset(twins), running)


def _beginning(scenario: Scenario) -> int:
    """Index of the step from which on it is struck."""
    verbs = [step.verb for step in scenario.steps]
    first = MARK if MARK in verbs else "advance"
    return verbs.index(first) if first in verbs else len(verbs)


class _Pass(NamedTuple):
    """A point of a leader's turn, and the kinds of what is sent there. ``action``: of the world's, in which it is passed."""

    point: str
    sends: tuple[str, ...]
    action: int


def _only_decides(passed: Sequence[_Pass], number: int) -> bool:
    """From there to the next point, which is passed in the same action: nothing has left the leader, and nothing came."""
    here = passed[number - 1]
    return here.point == "journal" and number < len(passed) and passed[number].action == here.action


def _that_do_something(passed: Sequence[_Pass]) -> list[tuple[int, str]]:
    """(Number, point) of all turns that write, and of those that begin to send something: a turn that does neither
    leaves nothing half done, and who asks the same again and again is struck at the first of it."""
    turns: list[list[tuple[int, _Pass]]] = []
    for number, one in enumerate(passed, 1):
        if one.point == "journal" or not turns:
            turns.append([])
        turns[-1].append((number, one))
    found: list[tuple[int, str]] = []
    before: tuple[str, ...] = ()
    for turn in turns:
        writes = any(one.point == "intents" for _, one in turn)
        sends = next((one.sends for _, one in turn if one.point == "commands"), ())
        if writes or (sends and sends != before):
            found += [(number, one.point) for number, one in turn]
        before = sends or before
    return found


def play_struck(
    scenario: Scenario, strikes: Sequence[Strike], *, running: dict[str, bool] | None
) -> list[tuple[Strike, str]]:
    """The strikes that broke something, and what. ``running``: which VMs run in the end; None: only the checkers are
    asked. The story is played once, up to the last strike; where one falls, a forked process goes on with the struck world
    to the end and this one with the untouched world, so that what comes before a strike is not played for each anew."""
    if not strikes:
        return []
    player = Player()
    fork = _Fork(player, strikes, running)
    try:
        for step in scenario.steps:
            _do(player, step)
            fork.watch_agents()
    except _AllStruck:
        return fork.found
    except BaseException as error:  # whatever ends a struck world must not go on as this process
        if fork.report is None:
            raise
        fork.end(f"{type(error).__name__}: {error}")
    if fork.report is not None:
        fork.end(_ended(player, running, fork.settles_ms()))
    missed = [(strike, "its point was not reached") for strike in fork.left]
    return fork.found + missed


def _ended(player: Player, running: dict[str, bool] | None, settled_ms: int) -> str:
    """What is wrong with that end; empty: nothing."""
    try:
        player.world.kernel.advance(settled_ms)
        while running is not None and _running(player) != running and settled_ms < SETTLE_MS_MAX:
            player.world.kernel.advance(SETTLE_STEP_MS)
            settled_ms += SETTLE_STEP_MS
        player.at_end()
    except Exception as error:  # told by whoever forked this process
        return str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
    found = _running(player)
    if running is None or found == running:
        return ""
    changed = sorted(name for name in running if found.get(name) != running[name])
    told = ", ".join(f"{name} {'runs' if found.get(name) else 'is down'}" for name in changed)
    return f"another end than without the strike: {told}"


class _AllStruck(BaseException):
    """Raised in the untouched world when no strike is left: what comes later was played before, and is asked of nobody."""


class _Fork:
    """``report``: in a struck process, where what became of it is written; None: this world is untouched."""

    def __init__(
        self, player: Player, strikes: Sequence[Strike], running: dict[str, bool] | None
    ) -> None:
        self.left = list(strikes)
        self.found: list[tuple[Strike, str]] = []
        self.report: int | None = None
        self._how = KILL
        self._struck_ms = 0
        self._world = player.world
        self._running = running
        self._passed = 0
        self._world.on_leader_point = self._pass

    def settles_ms(self) -> int:
        """From the story's end on. Of one who sleeps, until he was awake for as long as the others settle, or ``SETTLE_MS``."""
        if self._how == KILL:
            return SETTLE_AWAKE_MS
        awake_ms = self._struck_ms + SLEEP_MS + SETTLE_AWAKE_MS - self._world.kernel.now
        return min(max(awake_ms, SETTLE_AWAKE_MS), SETTLE_MS)

    def watch_agents(self) -> None:
        """Of hosts that have come into the story."""
        for name, host in self._world.hosts.items():
            if any(strike.who == name for strike in self.left):
                host.is_struck = partial(self._agent_at, name)

    def _agent_at(self, name: str, number: int, point: str, _changes: bool) -> bool:
        return self._falls(Strike(name, KILL, number, point))

    def _pass(self, point: str, _commands: object) -> None:
        self._passed += 1
        for how in (KILL, SLEEP):
            if self._falls(Strike("leader", how, self._passed, point)):
                self._strike_leader(how)
                return

    def _falls(self, strike: Strike) -> bool:
        """In the process that goes on struck: True. Here, once that has ended: False."""
        if self.report is not None or strike not in self.left:
            return False
        self.left.remove(strike)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            self.report = writing
            gc.disable()  # a collection would copy all that came before, and it ends too soon to need one
            self._how, self._struck_ms = strike.how, self._world.kernel.now
            self._world.trace(f"struck: {strike.text()}")
            return True
        os.close(writing)
        with os.fdopen(reading) as pipe:
            message = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            message = message or f"its process ended with status {status}"
        if message:
            self.found.append((strike, message))
        if not self.left:
            raise _AllStruck
        return False

    def end(self, message: str) -> NoReturn:
        """Of a struck process: nothing of what forked it may run on in it."""
        assert self.report is not None, "only a struck process ends here"
        os.write(self.report, message[:MESSAGE_MAX].encode())
        os._exit(0)

    def _strike_leader(self, how: str) -> None:
        world, gateway = self._world, self._world.gateway
        if how == KILL:
            gateway.kill()
            world.kernel.after(AWAY_MS, world.start_server)
            return
        sleeper = gateway.kernel
        sleeper.freeze()
        # Another takes over, unless the story itself brought one.
        world.kernel.after(
            TAKEOVER_MS, lambda: world.second_server() if world.gateway is gateway else None
        )
        world.kernel.after(SLEEP_MS, sleeper.thaw)


def _do(player: Player, step: Step) -> None:
    """What is asked of a server that is away is asked again until it is back, and what asks changes nothing."""
    if step.verb == "explain":
        return
    waited_ms = 0
    while step.verb in ASKED and not player.world.gateway.running and waited_ms <= AWAY_MS:
        player.world.kernel.advance(ASK_AGAIN_MS)
        waited_ms += ASK_AGAIN_MS
    do_if_it_applies(player, step)


def _running(player: Player) -> dict[str, bool]:
    world = player.world
    return {name: bool(world.running_on(vm_id)) for name, vm_id in sorted(world.ids.items())}
