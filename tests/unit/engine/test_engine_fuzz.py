"""Random legal and illegal events: the engine never raises, never starts a VM that may live elsewhere, and decides the
same under every hash seed. See ``engine_fuzz_world``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_fuzz_world import Move, Run, random_moves
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUMBER = st.integers(0, 95)
MOVES: st.SearchStrategy[list[Move]] = st.lists(
    st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), min_size=12, max_size=60
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(moves=MOVES)
def test_no_events_make_it_raise_or_start_a_vm_that_may_live(moves: list[Move]) -> None:
    """Raising, waking in the past and a second copy all end the run with an AssertionError that says which."""
    run = Run()
    for move in moves:
        run.move(move)


@pytest.mark.parametrize("seed", range(0, 200, 20))
def test_long_runs_hold_as_well(seed: int) -> None:
    """Hypothesis keeps its lists short; incidents within incidents need longer ones."""
    starts = 0
    for each in range(seed, seed + 20):
        run = Run()
        for move in random_moves(each, 150):
            run.move(move)
        starts += len(run.judge.starts)
    assert starts > 0, "runs that decide nothing show nothing"


def test_hash_seeds_change_no_decision() -> None:
    script = Path(__file__).with_name("engine_fuzz_world.py")
    digests = {
        subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(digests) == 1
    lines = digests.pop().split()
    assert len(set(lines)) == len(lines) > 1
