"""Plays a story again and again, each time with one process struck at another point of what it does.

The leader is killed, or sleeps for a minute while another takes over, at each effect of each turn in which it writes
something, or sends something else than the turn before; each agent is killed at each effect of each of its decisions. Whatever is struck: the checkers hold,
and in the end the same VMs run as in the story as it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

from virtha.scenario.language import Scenario, Step
from virtha.sim.checkers import Violation
from virtha.sim.host import CRASH_POINTS
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
SETTLE_MS_MAX = 600_000
"""Until it must be that of the untouched story: twice the longest pause between two attempts."""
SETTLE_STEP_MS = 20_000
ASK_AGAIN_MS = 100
KILL, SLEEP = "kill", "sleep"


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
    decided: dict[str, int] = {}
    for number, step in enumerate(scenario.steps):
        if number == begin:
            built = len(passed)
            decided = {name: host.decisions for name, host in player.world.hosts.items()}
        _do(player, step)
    ended = {name: host.decisions for name, host in player.world.hosts.items()}
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
    strikes += [
        Strike(name, KILL, number, point)
        for name, last in ended.items()
        for number in range(decided.get(name, 0) + 1, last + 1)
        for point in CRASH_POINTS
    ]
    return Untouched(tuple(strikes), _running(player) if to_the_end else None)


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


def play_struck(scenario: Scenario, strike: Strike, *, running: dict[str, bool] | None) -> None:
    """``running``: which VMs run in the end; None: only the checkers are asked. Raises Violation."""
    player = Player()
    if strike.who == "leader":
        _Blow(player, strike)
    for step in scenario.steps:
        _do(player, step)
        if strike.who in player.world.hosts:
            player.world.hosts[strike.who].crash_after = (strike.number, strike.point)
    player.world.kernel.advance(SETTLE_MS)
    settled_ms = SETTLE_MS
    while running is not None and _running(player) != running and settled_ms < SETTLE_MS_MAX:
        player.world.kernel.advance(SETTLE_STEP_MS)
        settled_ms += SETTLE_STEP_MS
    player.at_end()
    found = _running(player)
    if running is not None and found != running:
        changed = sorted(name for name in running if found.get(name) != running[name])
        told = ", ".join(f"{name} {'runs' if found.get(name) else 'is down'}" for name in changed)
        raise Violation(f"another end than without the strike: {told}")


class _Blow:
    """Falls once, when that point is passed."""

    def __init__(self, player: Player, strike: Strike) -> None:
        self._world = player.world
        self._strike = strike
        self._passed = 0
        player.world.on_leader_point = self._pass

    def _pass(self, _point: str, _commands: object) -> None:
        self._passed += 1
        if self._passed != self._strike.number:
            return
        world, gateway = self._world, self._world.gateway
        world.trace(f"struck: {self._strike.text()}")
        if self._strike.how == KILL:
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
