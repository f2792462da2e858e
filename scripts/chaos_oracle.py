#!/usr/bin/env python3
"""Proves that chaos in the lab can fail: a copy of the sources with a seeded bug must be caught by its oracle, one without it not.

    python scripts/chaos_oracle.py [--mutant engine-trusts-silence] [--minutes 10] [--seed 4] [--stretch 4]

First a copy as it is, then one to which the mutant is applied; all programs of a lab of its own are that copy's. Both get the same
seed and the same options: no leases and no watchdogs, so that what is left between two writers is the proof that the mutant does
without; and hosts that hang and go on. Exit code 0: nothing was found without the bug, and with it a superseded copy wrote, within
ten minutes of the first strike. Else the oracle is worth nothing, or the copy did not run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "tests" / "mutants"
sys.path.insert(0, str(MUTANTS))

from run import apply, copy_base  # noqa: E402 - found only through the path set above

from virtha.lab.chaos_report import FIGURES, VIOLATED  # noqa: E402 - as the one above

DIRECTORY = "/var/lib/virtha-chaos-oracle"
CAUGHT_WITHIN_S = 600
ENDS_S = 1_800
"""Over the minutes that were wanted: building the lab, the last round, and its replay."""
DOWN_S = 120
"""A lab that is told to end does by then."""


def run_chaos(folder: Path, given: argparse.Namespace, out: Path) -> int:
    """The exit code of chaos, run by the copy in ``folder`` and nothing else."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    where = [sys.executable, "-c", "import virtha; print(virtha.__file__)"]
    found = subprocess.run(
        where, cwd="/", env=environment, check=True, capture_output=True, text=True
    ).stdout
    if not Path(found.strip()).is_relative_to(folder):
        sys.stdout.write(f"{found.strip()} would run: nothing would be proved\n")
        return 1
    command = [sys.executable, "-m", "virtha.lab.chaos", "--dir", DIRECTORY, "--out", str(out)]
    command += ["--minutes", str(given.minutes), "--seed", str(given.seed)]
    command += ["--stretch", str(given.stretch)]
    command += ["--kinds", given.kinds, "--no-leases"]
    process = subprocess.Popen(command, cwd="/", env=environment)
    try:
        return process.wait(given.minutes * 60 + ENDS_S)
    finally:
        # So that its lab does not outlive an interrupt of this program.
        if process.poll() is None:
            process.terminate()
            process.wait(DOWN_S)


def control_problem(code: int) -> str | None:
    """Of the copy without the bug; None: nothing was found there."""
    return None if code == 0 else f"the control without the bug ended with exit code {code}"


def mutant_problem(code: int, figures: Path) -> str | None:
    """None: the bug was caught, for what it does, and in time."""
    if code != VIOLATED:
        return f"NOT caught (exit code {code})"
    after_s = violated_after_s(figures)
    if after_s is None:
        return f"NOT caught: {figures} does not say when a superseded copy wrote"
    if after_s > CAUGHT_WITHIN_S:
        return f"caught {after_s:g} s after the first strike, and not within {CAUGHT_WITHIN_S} s"
    return None


def violated_after_s(figures: Path) -> float | None:
    try:
        told = json.loads(figures.read_bytes())["chaos"]["violated_after_s"]
    except (OSError, ValueError, KeyError):
        return None
    return None if told is None else float(told)


def run_copy(given: argparse.Namespace, out: Path, patch: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="virtha-chaos-") as name:
        folder = Path(name)
        copy_base(folder)
        if patch is not None and (problem := apply(patch, folder)) is not None:
            sys.stdout.write(f"{patch.stem} does not apply: {problem}\n")
            return 1
        return run_chaos(folder, given, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutant", default="engine-trusts-silence")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--stretch", type=float, default=4.0, help="hangs long enough for a boot")
    parser.add_argument("--kinds", default="host_hung")
    parser.add_argument(
        "--out", type=Path, default=None, help="default: a new directory of its own"
    )
    given = parser.parse_args()
    patch = MUTANTS / f"{given.mutant}.patch"
    if not patch.exists():
        parser.error(f"there is no {patch}")
    out = (given.out or Path(f"{DIRECTORY}-runs", str(int(time.time())))).absolute()
    began_s = time.monotonic()
    problem = control_problem(run_copy(given, out / "control", None))
    if problem is None:
        sys.stdout.write("oracle: nothing was found without the bug\n")
        sys.stdout.flush()
        problem = mutant_problem(
            run_copy(given, out / given.mutant, patch), out / given.mutant / FIGURES
        )
    took_s = time.monotonic() - began_s
    if problem is not None:
        sys.stdout.write(f"oracle: {given.mutant}: {problem}; {took_s:.0f} s in all\n")
        return 1
    after_s = violated_after_s(out / given.mutant / FIGURES)
    sys.stdout.write(
        f"oracle: {given.mutant} was caught {after_s:g} s after the first strike; {took_s:.0f} s in all\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
