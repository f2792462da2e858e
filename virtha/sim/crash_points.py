"""Plays a story with one process struck at one of the points of what it does, for each of them.

The leader is killed, or sleeps for a minute while another takes over, at each effect of each turn in which it writes
something, or sends something else than the turn before; each agent is killed at each effect of each of its decisions. Whatever is struck: the checkers hold,
and in the end the same VMs run as in the story as it is.
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
"""The same where nobody sleeps."""
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
    """The story as it is: where it can be struck, and which VMs run in the end; None: that was not asked."""

    strikes: tuple[Strike, ...]
    running: dict[str, bool] | None


def is_marked(scenario: Scenario) -> bool:
    return any(step.verb == MARK for step in scenario.steps)


def play_untouched(scenario: Scenario, *, to_the_end: bool = True) -> Untouched:
    player = Player()
    passed: list[_Pass] = []
    player.world.on_leader_point = lambda point, commands: passed.append(
        _Pass(point, tuple(type(command).__name__ for command in commands))
    )
    begin, built = _beginning(scenario), 0
    decided: list[Strike] = []

    def note(name: str, number: int, point: str) -> bool:
        decided.append(Strike(name, KILL, number, point))
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
    return Untouched((*strikes, *agents), _running(player) if to_the_end else None)


def _beginning(scenario: Scenario) -> int:
    """Index of the step from which on it is struck."""
    verbs = [step.verb for step in scenario.steps]
    first = MARK if MARK in verbs else "advance"
    return verbs.index(first) if first in verbs else len(verbs)


class _Pass(NamedTuple):
    """A point of a leader's turn, and the kinds of what is sent there."""

    point: str
    sends: tuple[str, ...]


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
    asked. The story is played once; where a strike falls, a forked process goes on with the struck world to the end and
    this one with the untouched world, so that what comes before a strike is not played for each anew."""
    player = Player()
    fork = _Fork(player, strikes, running)
    gc.collect()
    gc.freeze()  # or each child would copy all of it at its first collection
    try:
        for step in scenario.steps:
            _do(player, step)
            fork.watch_agents()
    except BaseException as error:  # whatever ends a struck world must not go on as this process
        if fork.report is None:
            raise
        fork.end(f"{type(error).__name__}: {error}")
    finally:
        gc.unfreeze()
    if fork.report is not None:
        fork.end(_ended(player, running, fork.settle_ms))
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


class _Fork:
    """``report``: in a struck process, where what became of it is written; None: this world is untouched."""

    def __init__(
        self, player: Player, strikes: Sequence[Strike], running: dict[str, bool] | None
    ) -> None:
        self.left = list(strikes)
        self.found: list[tuple[Strike, str]] = []
        self.report: int | None = None
        self.settle_ms = 0
        self._world = player.world
        self._running = running
        self._passed = 0
        self._world.on_leader_point = self._pass

    def watch_agents(self) -> None:
        """Of hosts that have come into the story."""
        for name, host in self._world.hosts.items():
            if any(strike.who == name for strike in self.left):
                host.is_struck = partial(self._agent_at, name)

    def _agent_at(self, name: str, number: int, point: str) -> bool:
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
            self.settle_ms = SETTLE_AWAKE_MS if strike.how == KILL else SETTLE_MS
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
