"""What is skipped because it could change nothing changes nothing: each story comes out the same without the shortcuts.

They are: the sentinel's rest, the guardians' looks that show nothing new, what guardians take without a step, the steps of
a lease guardian in calm and the moments that it remembers in it, hosts that beat in time and are not looked at closely,
actors that are not asked whether they are frozen while nobody is, a leader's timer that serves again, and blocks that are
decoded once.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from virtha.engine import watch
from virtha.engine.engine import Engine
from virtha.scenario.language import parse
from virtha.sentinel.guardian import Guardian
from virtha.sentinel.guardian_lease import LeaseGuardian
from virtha.sentinel.sentinel import Sentinel
from virtha.sim.kernel import Actor, Kernel
from virtha.sim.play import Player
from virtha.sim.slots import SlotDomain
from virtha.sim.swarm import run_seed

SCENARIOS = sorted((Path(__file__).parent.parent / "scenarios").glob("*.txt"))
SEEDS = range(1, 11)


def stories() -> list[Any]:
    """All; a submission plays some, and of those with storage leases more. Chosen by name: a new story moves no others."""

    def chosen(path: Path, text: str) -> bool:
        return crc32(path.stem.encode()) % (8 if "\nlease" in text else 25) == 0

    return [
        pytest.param(text, id=path.stem, marks=() if chosen(path, text) else pytest.mark.long)
        for path in SCENARIOS
        for text in [path.read_text()]
    ]


def told(text: str, patch: pytest.MonkeyPatch) -> list[Any]:
    """All that the engine decided, all that the agents and guardians did, and all that was recorded."""
    said: list[Any] = []

    def listen(kind: type, names: tuple[str, ...], *, always: bool) -> None:
        step: Callable[..., Any] = kind.step

        def heard(self: Any, now: int, events: Any) -> Any:
            decision = step(self, now, events)
            out = [getattr(decision, name) for name in names]
            if always or any(out):
                said.append((kind.__name__, now, tuple(events), *out))
            return decision

        patch.setattr(kind, "step", heard)

    listen(Engine, ("intents", "commands", "notices"), always=True)
    listen(Sentinel, ("intents", "commands", "notices"), always=False)
    listen(Guardian, ("commands",), always=False)
    listen(LeaseGuardian, ("commands",), always=False)
    player = Player(tolerant=True)
    for step in parse(text).steps:
        player.do(step)
    world = player.world
    disks = [(name, host.disk.records, host.disk.facts) for name, host in world.hosts.items()]
    return [*said, world.trace_lines, world.server.history, disks]


def without_shortcuts(patch: pytest.MonkeyPatch) -> None:
    def always(value: Any) -> property:
        return property(lambda _self: value(), lambda _self, _value: None)

    patch.setattr(Sentinel, "_may_rest", lambda _self, _intents: False)
    patch.setattr(LeaseGuardian, "_is_calm", lambda _self: False)
    patch.setattr(LeaseGuardian, "_times", always(lambda: None), raising=False)
    patch.setattr(LeaseGuardian, "takes_in_passing", lambda _self, _look, _now: False)
    patch.setattr(Guardian, "takes_in_passing", lambda _self, _now, _event: False)
    patch.setattr(Guardian, "_all_well", always(lambda: None), raising=False)
    patch.setattr(watch, "_beats_on", lambda _cluster, _node: False)
    patch.setattr(Kernel, "is_last", lambda _self, _at, _action: False)
    patch.setattr(Kernel, "frozen_actors", always(lambda: 1), raising=False)
    patch.setattr(SlotDomain, "_read_slots", always(dict), raising=False)
    patch.setattr(SlotDomain, "_read_mailboxes", always(dict), raising=False)


@pytest.mark.req("X3")
@pytest.mark.parametrize("text", stories())
def test_a_story_comes_out_the_same_without_the_shortcuts(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        short = told(text, patch)
    with pytest.MonkeyPatch.context() as patch:
        without_shortcuts(patch)
        long = told(text, patch)
    assert len(short) == len(long)
    for one, other in zip(short, long, strict=True):
        assert one == other


@pytest.mark.req("X3")
@pytest.mark.parametrize("first", SEEDS[::10])
def test_random_faults_come_out_the_same_without_the_shortcuts(first: int) -> None:
    """By the digest of all decisions."""
    seeds = SEEDS[first - 1 : first + 9]
    short = [run_seed(seed).digest for seed in seeds]
    with pytest.MonkeyPatch.context() as patch:
        without_shortcuts(patch)
        assert [run_seed(seed).digest for seed in seeds] == short


@pytest.mark.req("X3")
def test_the_shortcuts_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the comparison above would compare nothing."""
    taken: Counter[str] = Counter()
    rest = Sentinel._rest
    asked = Actor.do

    def resting(self: Sentinel) -> Any:
        taken["rest"] += 1
        return rest(self)

    step_in_calm = LeaseGuardian._step_in_calm

    def stepping(self: LeaseGuardian, *arguments: Any) -> Any:
        taken["calm"] += 1
        return step_in_calm(self, *arguments)

    def asking(self: Actor, action: Callable[[], None]) -> None:
        taken["asked"] += 1
        asked(self, action)

    def counted(owner: Any, name: str, what: str) -> None:
        """Each time that it says yes."""
        answers: Callable[..., bool] = getattr(owner, name)

        def answering(*arguments: Any) -> bool:
            answer = answers(*arguments)
            taken[what] += answer
            return answer

        monkeypatch.setattr(owner, name, answering)

    counted(Guardian, "takes_in_passing", "pulses and looks")
    counted(LeaseGuardian, "takes_in_passing", "looks at leases")
    counted(watch, "_beats_on", "beats")
    counted(Kernel, "is_last", "timers")
    monkeypatch.setattr(Sentinel, "_rest", resting)
    monkeypatch.setattr(LeaseGuardian, "_step_in_calm", stepping)
    monkeypatch.setattr(Actor, "do", asking)
    player = Player()
    lines = "# quiet\nengine\nlease\nhosts h1 h2\nvm web on=h1 ha\nstart web\nadvance 60s\n"
    for step in parse(lines).steps:
        player.do(step)
    assert taken["rest"] > 5
    assert taken["calm"] > 2 * 2 * 40  # an order and a result each second on each host
    assert taken["asked"] == 0
    assert (
        taken["pulses and looks"] > 2 * 2 * 50
    )  # of each host two pulses each second, or one and a look
    assert taken["looks at leases"] > 2 * 40
    assert taken["beats"] > 2 * 40
    assert taken["timers"] > 10
