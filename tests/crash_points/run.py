"""Strikes the leader and the agents of scenarios at every point of what they do (see ``virtha.sim.crash_points``).

    python tests/crash_points/run.py [--all] [--jobs N] [--resume FILE] [NAME...]

All points of the stories that are marked with ``crash-points``, and their end compared with the end without the strike; of
the other stories a twentieth of the points, the same each time, and the checkers only; of those that last longer than
``LONG_MS`` a hundredth, for each strike is played to the end. ``--all``: all points of all stories. Points before which
nothing was done since the one before are no others: left out, unless a story's share has none else.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from virtha.cli.run_journal import RunJournal, code_digest
from virtha.cli.worker_pool import worker_pool
from virtha.model.errors import VirthaError
from virtha.model.time import parse_duration_ms
from virtha.scenario.language import Scenario, parse
from virtha.sim.crash_points import (
    Strike,
    is_marked,
    parse_strike,
    play_struck,
    play_untouched,
    without,
)

SCENARIOS = Path(__file__).resolve().parents[1] / "scenarios"
TWENTIETH, HUNDREDTH = 20, 100
LONG_MS = 600_000
PIECE = 100
"""Strikes that one process is given at a time: one play of the story up to the last, and each one's own end."""
MARKED_MIN = 25


class Plan(NamedTuple):
    """``running``: which VMs run in the end; None: only the checkers are asked."""

    name: str
    strikes: tuple[Strike, ...]
    running: dict[str, bool] | None


class Piece(NamedTuple):
    name: str
    strikes: tuple[Strike, ...]
    running: dict[str, bool] | None


def plan(name: str, *, everything: bool) -> Plan:
    scenario = parse((SCENARIOS / f"{name}.txt").read_text())
    marked = is_marked(scenario)
    untouched = play_untouched(scenario, to_the_end=marked)
    strikes = untouched.strikes
    if not marked and not everything and strikes:
        chance = random.Random(name)
        part = HUNDREDTH if _lasts_ms(scenario) > LONG_MS else TWENTIETH
        strikes = tuple(chance.sample(strikes, -(-len(strikes) // part)))
    # Left out only now, so that who is drawn does not change with what counts as the same.
    return Plan(name, without(untouched.twins, strikes), untouched.running)


def _lasts_ms(scenario: Scenario) -> int:
    advances = (step.words[0] for step in scenario.steps if step.verb == "advance")
    return sum(parse_duration_ms(text, field="advance") for text in advances)


def play(piece: Piece) -> list[tuple[str, str]]:
    """(Strike, what it broke), those that broke something."""
    scenario = parse((SCENARIOS / f"{piece.name}.txt").read_text())
    found = play_struck(scenario, piece.strikes, running=piece.running)
    return [(strike.text(), message) for strike, message in found]


def pieces(plans: Sequence[Plan], done: frozenset[tuple[str, str]]) -> Iterator[Piece]:
    for one in plans:
        left = [strike for strike in one.strikes if (one.name, strike.text()) not in done]
        for first in range(0, len(left), PIECE):
            yield Piece(one.name, tuple(left[first : first + PIECE]), one.running)


def names_of(wanted: Sequence[str]) -> list[str]:
    names = sorted(path.stem for path in SCENARIOS.glob("*.txt"))
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SystemExit(f"no such scenario: {', '.join(unknown)}")
    return [name for name in names if not wanted or name in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(description="strikes processes at every point of stories")
    parser.add_argument("--all", action="store_true", help="all points of unmarked stories too")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--resume", type=Path, help="keep what was played there; go on from it")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    try:
        return strike_all(names_of(given.names), given)
    except VirthaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def strike_all(names: Sequence[str], given: argparse.Namespace) -> int:
    began_s = time.monotonic()
    journal, done, failed = _resumed(names, given)
    with worker_pool(given.jobs) as pool:
        plans = list(pool.map(_plan_all if given.all else _plan_some, names, chunksize=4))
        todo = list(pieces(plans, done))
        for piece, found in zip(todo, pool.map(play, todo), strict=True):
            for strike, message in found:
                failed += 1
                sys.stdout.write(f"{piece.name}: struck at '{strike}': {message}\n")
            if journal is not None:
                broken = {strike for strike, _ in found}
                held = [one.text() for one in piece.strikes if one.text() not in broken]
                line = {"name": piece.name, "held": held, "failed": found}
                journal.add(json.dumps(line).encode())
            sys.stdout.flush()
    if journal is not None:
        journal.close()
    count = sum(len(one.strikes) for one in plans)
    marked = sum(one.running is not None for one in plans)
    sys.stdout.write(
        f"crash points: {count - failed}/{count} hold; {len(plans)} stories, {marked} of them marked; "
        f"{time.monotonic() - began_s:.0f} s\n"
    )
    if len(names) == len(names_of(())) and marked < MARKED_MIN:
        sys.stdout.write(f"only {marked} stories are marked, {MARKED_MIN} must be\n")
        return 1
    return 1 if failed else 0


def _plan_all(name: str) -> Plan:
    return plan(name, everything=True)


def _plan_some(name: str) -> Plan:
    return plan(name, everything=False)


def _resumed(
    names: Sequence[str], given: argparse.Namespace
) -> tuple[RunJournal | None, frozenset[tuple[str, str]], int]:
    """The journal, what held, and how many strikes broke something: these are told again, not played."""
    if given.resume is None:
        return None, frozenset(), 0
    what = f"{'all' if given.all else 'some'} points of {len(names)} stories from {names[0]}"
    stories = [SCENARIOS / f"{name}.txt" for name in names]
    journal = RunJournal(given.resume, what=what, code=code_digest(stories))
    done, failed = set(), 0
    for line in journal.lines:
        told = json.loads(line)
        done |= {(told["name"], strike) for strike in told["held"]}
        for strike, message in told["failed"]:
            parse_strike(strike)
            failed += 1
            done.add((told["name"], strike))
            sys.stdout.write(f"{told['name']}: struck at '{strike}': {message}\n")
    return journal, frozenset(done), failed


if __name__ == "__main__":
    raise SystemExit(main())
