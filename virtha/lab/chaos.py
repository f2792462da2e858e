"""`make chaos`: random faults from a seed on three real hosts and six VMs, judged from outside.

    python -m virtha.lab.chaos [--minutes 30] [--seed 1] [--list ROUNDS] …

Each guest writes numbered records, and says outside of itself when one is on its disk; the kernel tells who writes to which disk
when. No copy may write once a newer one has, no acknowledged record may be lost, and after each round's healing every VM has to be back.
The engine's journal is replayed in the end. A table, then one JSON object; the exit code is 0 only if all of it holds.
What was struck when, each write and the evidence of a failure are files in ``--out``.
"""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from virtha.lab import lab
from virtha.lab.chaos_plan import FaultKind, Scene, draw_round
from virtha.lab.chaos_report import FIGURES, exit_code, figures, keep_evidence, show
from virtha.lab.chaos_run import (
    FAULT_LOG,
    HOSTS,
    VMS,
    ChaosRun,
    Options,
    back_within_s,
    chaos_policy,
    refuse_nothing_to_strike,
)
from virtha.lab.journals import Journals
from virtha.lab.progress import Steps
from virtha.lab.state import lab_directory
from virtha.model.errors import InvalidInput, VirthaError

DIRECTORY = Path("/var/lib/virtha-chaos")
STRETCH_MIN, STRETCH_MAX = 0.1, 20.0


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description="random faults on a lab")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--kinds", default="", help="only these, with commas between")
    parser.add_argument("--no-leases", action="store_true", help="no leases, no host watchdogs")
    parser.add_argument("--stretch", type=float, default=1.0, help="all times so much longer")
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help="the lab's")
    parser.add_argument("--out", type=Path, default=None, help="default: DIR-runs/SEED-TIME")
    parser.add_argument("--list", type=int, default=0, metavar="ROUNDS", help="print what would be")
    return parser.parse_args(words)


def options_of(given: argparse.Namespace) -> Options:
    """Raises InvalidInput."""
    if given.minutes <= 0:
        raise InvalidInput(f"{given.minutes:g} minutes", field="--minutes", fix="name more than 0")
    if not STRETCH_MIN <= given.stretch <= STRETCH_MAX:
        allowed = (f"{STRETCH_MIN:g} to {STRETCH_MAX:g}",)
        raise InvalidInput(f"{given.stretch:g} times", field="--stretch", allowed=allowed)
    seed = int(time.time()) if given.seed is None else given.seed
    directory = lab_directory(given.dir)
    default_out = directory.with_name(f"{directory.name}-runs") / f"{seed}-{int(time.time())}"
    return Options(
        seed=seed,
        minutes=given.minutes,
        directory=directory,
        out=(given.out or default_out).absolute(),
        leases=not given.no_leases,
        kinds=kinds_of(given.kinds),
        stretch=given.stretch,
    )


def kinds_of(text: str) -> frozenset[FaultKind]:
    """All, where nothing is said. Raises InvalidInput that names those there are."""
    names = [word.strip() for word in text.split(",") if word.strip()]
    known = {kind.value for kind in FaultKind}
    for name in names:
        if name not in known:
            raise InvalidInput(
                f"there is no fault '{name}'", field="--kinds", allowed=tuple(sorted(known))
            )
    kinds = frozenset(FaultKind(name) for name in names) or frozenset(FaultKind)
    refuse_nothing_to_strike(kinds)
    return kinds


def refuse_used(out: Path) -> None:
    """Raises InvalidInput: what another run, perhaps another version's, wrote there would be read as this one's."""
    if (out / FAULT_LOG).exists():
        raise InvalidInput(
            f"{out} holds the log of another run", field="--out", fix="name a new directory"
        )


def planned(options: Options, count: int) -> list[str]:
    """The list of the first rounds, as a run with these options has it."""
    scene = Scene(
        hosts=tuple(f"h{number + 1}" for number in range(HOSTS)),
        vms=tuple(f"rec{number + 1}" for number in range(VMS)),
        server="s1",
        kinds=options.kinds,
    )
    lines = []
    for number in range(1, count + 1):
        drawn = draw_round(options.seed, number, scene).stretched(options.stretch)
        lines.append(f"round {number}, healed after {drawn.heal_at_ms / 1_000:g} s")
        lines += [f"  {one}" for one in drawn.strikes]
    return lines


def main(words: Sequence[str] | None = None) -> int:
    given = parse(sys.argv[1:] if words is None else words)
    try:
        options = options_of(given)
        if given.list:
            sys.stdout.write("\n".join(planned(options, given.list)) + "\n")
            return 0
        return _run(options)
    except VirthaError as error:
        sys.stderr.write(f"chaos: {error}\n")
        return error.exit_code


def _run(options: Options) -> int:
    # So that a lab does not outlive whoever ends this run politely.
    signal.signal(signal.SIGTERM, _interrupted)
    steps = Steps(sys.stdout)
    refuse_used(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    lab.down(options.directory, steps=steps)
    steps.say(f"seed {options.seed}; lists, logs and evidence go to {options.out}")
    policy = chaos_policy(leases=options.leases)
    steps.say(f"policy beside the defaults: {policy}")
    steps.say(f"after each healing all must be back within {back_within_s(policy):.0f} s")
    told: dict[str, Any] = {}
    code = 1
    try:
        with ChaosRun(options, steps) as run:
            told, code = _play(run, steps)
    except KeyboardInterrupt:
        steps.say("interrupted: nothing is shown by this run")
        return 130
    finally:
        lab.down(options.directory, keep_files=code != 0, steps=steps)
    show(told, run.tally, options.out / FIGURES)
    return code


def _play(run: ChaosRun, steps: Steps) -> tuple[dict[str, Any], int]:
    """Its figures, and its exit code."""
    run.play()
    run.last_look()
    if run.tally.findings:
        steps.say(f"evidence: {keep_evidence(run)}; the lab's files stay in {run.lab.directory}")
    with steps.step("the engine's journal is replayed"):
        replayed = Journals(run.lab, run.options.out).replay()
    steps.say(f"replay: {replayed}")
    return figures(run, replayed), exit_code(run.tally, replayed)


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
