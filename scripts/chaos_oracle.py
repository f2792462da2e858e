#!/usr/bin/env python3
"""Proves that chaos in the lab can fail: a copy of the sources with a seeded bug must be caught by its oracle.

    python scripts/chaos_oracle.py [--mutant engine-trusts-silence] [--minutes 10] [--seed 4] [--stretch 4]

The mutant is applied to a copy, all of whose programs then run in a lab of its own: no leases and no watchdogs, so that what is
left between two writers is the proof that the mutant does without; and hosts that hang and go on. Exit code 0: a superseded
copy wrote, and that was seen. Else the oracle is worth nothing, or the copy did not run.
"""

import argparse
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

from virtha.lab.chaos import VIOLATED  # noqa: E402 - as the one above

DIRECTORY = "/var/lib/virtha-chaos-oracle"
ENDS_S = 1_800
"""Over the minutes that were wanted: building the lab, the last round, and its replay."""


def run_mutated(folder: Path, given: argparse.Namespace) -> int:
    """The exit code of chaos, run by the copy in ``folder`` and nothing else."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    where = [sys.executable, "-c", "import virtha; print(virtha.__file__)"]
    found = subprocess.run(
        where, cwd="/", env=environment, check=True, capture_output=True, text=True
    ).stdout
    if not Path(found.strip()).is_relative_to(folder):
        sys.stdout.write(f"{found.strip()} would run: nothing would be proved\n")
        return 1
    command = [sys.executable, "-m", "virtha.lab.chaos", "--dir", DIRECTORY]
    command += ["--minutes", str(given.minutes), "--seed", str(given.seed)]
    command += ["--stretch", str(given.stretch)]
    command += ["--kinds", given.kinds, "--no-leases"]
    if given.out is not None:
        command += ["--out", str(given.out.absolute())]
    limit_s = given.minutes * 60 + ENDS_S
    return subprocess.run(
        command, cwd="/", env=environment, timeout=limit_s, check=False
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutant", default="engine-trusts-silence")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--stretch", type=float, default=4.0, help="hangs long enough for a boot")
    parser.add_argument("--kinds", default="host_hung")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    patch = MUTANTS / f"{given.mutant}.patch"
    if not patch.exists():
        parser.error(f"there is no {patch}")
    with tempfile.TemporaryDirectory(prefix="virtha-chaos-") as name:
        folder = Path(name)
        copy_base(folder)
        if (problem := apply(patch, folder)) is not None:
            sys.stdout.write(f"{given.mutant} does not apply: {problem}\n")
            return 1
        began_s = time.monotonic()
        code = run_mutated(folder, given)
    took_s = time.monotonic() - began_s
    if code == VIOLATED:
        sys.stdout.write(f"oracle: {given.mutant} was caught; {took_s:.0f} s with its lab\n")
        return 0
    sys.stdout.write(f"oracle: {given.mutant} was NOT caught (exit code {code}, {took_s:.0f} s)\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
