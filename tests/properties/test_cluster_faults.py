"""The real engine under random faults of whole clusters, and its leader killed at every step."""

import pytest

from virtha.engine.events import OrderPower
from virtha.scenario.language import parse
from virtha.scenario.verbs import VERBS
from virtha.sim.checkers import Violation
from virtha.sim.leader import Trap
from virtha.sim.play import Player
from virtha.sim.swarm import play, run_seed
from virtha.sim.swarm_story import KINDS, NOT_DRAWN, drawn_verbs, write_story

AWAY_MS = 3_000
STORIES = {
    "power cut": "hosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\npower-cut h1\n",
    "hung": "hosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\nhang h1\n",
    "start fails": "hosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\nfail-starts h2 1\n"
    "power-cut h1\n",
    "start hangs": "hosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\nslow-start h2 90s\n"
    "power-cut h1\n",
    "level two": "host h1 power=bmc,outlets\nhosts h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\n"
    "bmc h1 refuses device=h1-bmc1\nhang h1\n",
    "reboot": "policy fencing.action=reboot\nhosts h1 h2 h3\nvm web on=h1 ha\nstart web\n"
    "advance 10s\nhang h1\n",
}


@pytest.mark.req("X3", "F1", "F4")
@pytest.mark.parametrize("first", range(1, 13, 6))
def test_random_faults_then_healing(first: int) -> None:
    for seed in range(first, first + 6):
        result = run_seed(seed, cluster=True)
        assert not result.rule, f"seed {seed}: {result.message}\n{result.story}"
        assert result.virtual_ms >= 600_000


def test_a_failing_world_is_told_as_a_story_that_fails_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seeded bug: a checker that forbids every start elsewhere. What is saved must fail by itself."""

    def forbid(self: object, start: object) -> None:
        raise Violation(f"{start.vm_id} is started")  # type: ignore[attr-defined]  # any command

    monkeypatch.setattr("virtha.sim.truth.Truth._start_given", forbid)
    failing = (run_seed(seed, cluster=True) for seed in range(1, 30))
    result = next(one for one in failing if one.rule)
    assert result.rule == "safety"
    assert result.story.startswith(f"# Seed {result.seed} of the swarm, shortened. safety:")
    lines = [line for line in result.story.splitlines() if not line.startswith("#")]
    assert len(lines) < len(write_story(result.seed, cluster=True).lines)
    again = play(lines, strict=True).failure
    assert again is not None and again.rule == "safety"


def test_every_verb_is_drawn_or_there_is_a_reason() -> None:
    """A new fault is a line of ``swarm_story.KINDS``."""
    drawn = drawn_verbs()
    assert drawn.isdisjoint(NOT_DRAWN)
    assert set(VERBS) - drawn - set(NOT_DRAWN) == set()
    assert set(NOT_DRAWN) <= set(VERBS)


def test_every_kind_happens_in_many_worlds() -> None:
    """By the stories: whether it applied is what the swarm's own table says."""
    told = [{kind for _, kind in write_story(seed).kinds} for seed in range(1, 401)]
    rare = [kind.name for kind in KINDS if sum(kind.name in one for one in told) < 4]
    assert not rare


@pytest.mark.req("X3")
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("point", ["intents", "commands"])
def test_leader_killed_at_every_step(story: str, point: str) -> None:
    """Whichever transaction or sending is its last, the next leader brings the VM back; never two of it."""
    passes = 0
    while _struck(story, point, passes):
        passes += 1
    assert passes > 2, "the leader was hardly struck"


def _struck(story: str, point: str, passes: int) -> bool:
    """False: there were not so many steps."""
    player = Player()
    world = player.world
    *before, fault = parse(f"# a story\nengine\n{STORIES[story]}").steps
    for step in before:
        player.do(step)
    gateway = world.gateway
    assert gateway.failover is not None

    def die() -> None:
        gateway.kill()
        world.kernel.after(AWAY_MS, world.start_server)

    gateway.failover.leader.trap = Trap(point, None, die, passes=passes)
    player.do(fault)
    player.advance("6m")
    player.at_end()
    where = world.running_on(world.ids["web"])
    assert len(where) == 1, f"{story}: killed at its {passes}. {point}, web runs on {where}"
    return world.gateway is not gateway


def test_no_order_goes_out_that_was_not_written() -> None:
    """Killed between the decision and its transaction, the leader has struck nobody."""
    player = Player()
    story = "# a story\nengine\n" + STORIES["hung"]
    for step in parse(story).steps:
        player.do(step)
    given: list[object] = []
    player.world.on_engine_command = lambda _term, command: given.append(command)
    player.do(parse("# x\nstop-database\n").steps[0])
    player.advance("60s")
    assert not any(isinstance(command, OrderPower) for command in given)
    player.do(parse("# x\nstart-database\n").steps[0])
    player.advance("60s")
    assert any(isinstance(command, OrderPower) for command in given)
