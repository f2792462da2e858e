"""Random worlds without an engine from fixed seeds; the agent killed at every point of the marked stories; the same
digest under any hash seed."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtha.scenario.language import parse
from virtha.sim import swarm
from virtha.sim.crash_points import Strike, is_marked, play_struck, play_untouched
from virtha.sim.play import Player
from virtha.sim.swarm import Failure, run_seed, shrink

SCENARIOS = Path(__file__).parents[1] / "scenarios"
MARKED = {
    path.stem: scenario
    for path in sorted(SCENARIOS.glob("*.txt"))
    if is_marked(scenario := parse(path.read_text()))
}
AT_A_POINT = re.compile(r"struck: |crashes after its ")
"""Where a strike fell is all that differs."""


@pytest.mark.req("A8", "W7", "X3")
@pytest.mark.parametrize("first", range(1, 61, 20))
def test_random_faults_then_healing(first: int) -> None:
    for seed in range(first, first + 20):
        result = run_seed(seed, cluster=False)
        assert not result.rule, f"seed {seed}: {result.message}\n{result.story}"


@pytest.mark.req("A8", "W7")
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(min_value=1_000, max_value=1 << 32), steps=st.integers(1, 25))
def test_any_seed_holds(seed: int, steps: int) -> None:
    result = run_seed(seed, cluster=False, steps=steps)
    assert not result.rule, f"{result.message}\n{result.story}"


def test_a_strike_that_changes_the_end_is_noticed() -> None:
    """The harness itself: an end that never was is not taken for the story's."""
    scenario = next(iter(MARKED.values()))
    untouched = play_untouched(scenario)
    assert untouched.running
    other = {name: not runs for name, runs in untouched.running.items()}
    strike = untouched.strikes[0]
    ((struck, message),) = play_struck(scenario, [strike], running=other)
    assert struck == strike
    assert "another end" in message
    assert play_struck(scenario, [strike], running=untouched.running) == []


@pytest.mark.parametrize("name", ["crash-restarts-at-once", "bmc-level-two"])
def test_what_is_left_out_as_a_twin_leaves_the_same_world(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line of its trace: as a strike at the point that is next to it, which is played."""
    scenario = parse((SCENARIOS / f"{name}.txt").read_text())
    untouched = play_untouched(scenario, to_the_end=False)
    pairs = {one: _played_beside(one, untouched.strikes) for one in sorted(untouched.twins)[-4:]}

    def told(player: Player, _running: object, settled_ms: int) -> str:
        player.world.kernel.advance(settled_ms)
        lines = [line for line in player.world.trace_lines if not AT_A_POINT.search(line)]
        return hashlib.sha256(repr((lines, player.outcome())).encode()).hexdigest()

    monkeypatch.setattr("virtha.sim.crash_points._ended", told)
    struck = sorted({*pairs, *pairs.values()})
    worlds = dict(play_struck(scenario, struck, running=None))
    assert len(set(worlds.values())) > 1
    assert {one: worlds[one] for one in pairs} == {one: worlds[pairs[one]] for one in pairs}


def _played_beside(twin: Strike, strikes: Sequence[Strike]) -> Strike:
    """Of a leader the point after the decision, of an agent the one before where something was done last."""
    beside = twin.number + 1 if twin.who == "leader" else twin.number
    same = [one for one in strikes if (one.who, one.how, one.number) == (*twin[:2], beside)]
    return same[0] if twin.who == "leader" else same[same.index(twin) - 1]


def test_a_strike_at_a_point_that_is_never_reached_is_told() -> None:
    scenario = next(iter(MARKED.values()))
    never = Strike("leader", "kill", 1 << 20, "journal")
    assert play_struck(scenario, [never], running=None) == [(never, "its point was not reached")]


def test_enough_stories_are_marked() -> None:
    assert len(MARKED) >= 25


def _digest_under(hash_seed: str, seed: int, *, twice: bool) -> set[str]:
    code = (
        "from virtha.sim.swarm import run_seed;"
        f"print(*(run_seed({seed}).digest for _ in range({1 + twice})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stdout.split())


@pytest.mark.req("X3")
@pytest.mark.parametrize("seed", [3, 17])
def test_same_seed_same_digest_under_any_hash_seed_and_twice_in_a_row(seed: int) -> None:
    digests = _digest_under("0", seed, twice=True)
    digests |= _digest_under("1", seed, twice=False) | _digest_under("4711", seed, twice=False)
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_a_decision_that_differs_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_seed(3, cluster=True).digest
    monkeypatch.setattr("virtha.sim.leader.WRITE_MS", 4)
    assert run_seed(3, cluster=True).digest != before


def test_a_failing_story_is_shrunk_to_what_it_needs() -> None:
    needed = {"b", "d"}
    assert shrink(["a", "b", "c", "d", "e"], lambda lines: needed <= set(lines)) == ["b", "d"]


def test_a_story_is_shrunk_to_one_that_breaks_the_same_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ["a", "b", "c", "d"]

    class Played:
        def __init__(self, failure: Failure | None) -> None:
            self.failure = failure

    def play(lines: list[str], *, strict: bool) -> Played:
        assert strict
        if "b" in lines:
            return Played(Failure("safety", f"h{len(lines)} is ordered off"))
        return Played(Failure("safety", "another rule") if "c" in lines else None)

    monkeypatch.setattr(swarm, "play", play)
    assert shrink(whole, swarm.fails_like(Failure("safety", "h1 is ordered off"))) == ["b"]
