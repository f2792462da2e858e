"""Seeded bugs: each patch breaks one rule in a copy of the package; scenarios and checkers must notice.

    python tests/mutants/run.py [NAME...]

The unit test of the patched function is not run: what protects a rule must see it from outside.
A patch that no longer applies fails, as does one that nothing catches. A patch may name in its head, as ``# first: TEST``,
the judge that is asked before all others: a hint, which saves time where it is right and costs some where it is not.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
JUDGES = ("tests/scenarios", "tests/properties")
# What the simulator does not run is judged by the tests that tell each finding's story from outside.
LEASE_WORLD = ("tests/properties/test_lease_proof.py",)
# Each test plays a cluster around the whole engine; quick ones first.
ENGINE_PLAYS = tuple(
    f"tests/unit/engine/test_{name}.py"
    for name in (
        "engine_rules",
        "engine_review",
        "engine_review_recovery",
        "migration",
        "drain",
        "failback",
        "host_dies",
        "engine_fuzz",
    )
)
# The first that fits.
STORIES = {
    "virtha/agent/": (
        "tests/unit/agent/test_never_two_writers.py",
        "tests/unit/agent/test_gate_hook.py",
    ),
    "virtha/control/": ("tests/unit/control/test_control_safety.py",),
    "virtha/engine/lease": LEASE_WORLD,
    "virtha/engine/turn": ("tests/unit/engine/test_turn.py",),
    "virtha/engine/": ENGINE_PLAYS,
    "virtha/sentinel/lease": LEASE_WORLD,
    "virtha/sentinel/guardian_lease": LEASE_WORLD,
    "virtha/sentinel/host_watchdog": LEASE_WORLD,
}
FIRST = "# first: "
# Without the plugins that no judge needs: loading them would take longer than many a judge.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x")
PYTEST += ("-p", "no:cacheprovider", "-p", "pytest_timeout")
DEADLINE_S = 300


def headline(patch: Path) -> str:
    """The comment on top names the rule and what must catch it."""
    return patch.read_text().splitlines()[0].removeprefix("# ")


def copy_to(folder: Path) -> None:
    for name in ("virtha", "tests"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)


def apply(patch: Path, folder: Path) -> str | None:
    """None, or why it does not apply."""
    done = subprocess.run(
        ["git", "apply", "-p1", str(patch)],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return None if done.returncode == 0 else done.stderr.strip() or "git apply failed"


def judges_of(patch: Path) -> tuple[tuple[str, ...], ...]:
    """Groups that are asked one after the other, until one catches it."""
    text = patch.read_text()
    known = (stories for room, stories in STORIES.items() if f"+++ b/{room}" in text)
    judges = next(known, JUDGES)
    hint = text.splitlines()[1]
    if hint.startswith(FIRST):
        return (hint.removeprefix(FIRST),), judges
    return (judges,)


def judge(folder: Path, judges: tuple[str, ...]) -> tuple[int, str]:
    """Exit code of the judges on that copy, and the first failing test."""
    done = subprocess.run(
        [*PYTEST, *judges],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    # Only its own package counts: a copy that imports the original would prove nothing.
    return done.returncode, failed[0].split(" - ")[0] if failed else done.stdout[-300:]


def run(patch: Path) -> tuple[str, str, float]:
    """The verdict, what caught it or why nothing did, and how long that took, in s."""
    began = time.monotonic()
    verdict, detail = verdict_on(patch)
    return verdict, detail, time.monotonic() - began


def verdict_on(patch: Path) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="virtha-mutant-") as name:
        folder = Path(name)
        copy_to(folder)
        problem = apply(patch, folder)
        if problem is not None:
            return "does not apply", problem.splitlines()[-1]
        code, caught_by = 0, ""
        try:
            for judges in judges_of(patch):
                code, caught_by = judge(folder, judges)
                if code == 1:
                    break
        except subprocess.TimeoutExpired:
            return "caught", "it never came to an end"
    if code == 1:
        return "caught", caught_by.removeprefix("FAILED ")
    return ("survived" if code == 0 else "broken run"), caught_by


def imports_the_copy() -> bool:
    """The judges must load the copy, not the installed package."""
    with tempfile.TemporaryDirectory(prefix="virtha-mutant-") as name:
        folder = Path(name)
        copy_to(folder)
        done = subprocess.run(
            [sys.executable, "-c", "import virtha; print(virtha.__file__)"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            check=True,
            capture_output=True,
            text=True,
        )
        return Path(done.stdout.strip()).is_relative_to(folder)


def main() -> int:
    wanted = set(sys.argv[1:])
    patches = [
        patch for patch in sorted(HERE.glob("*.patch")) if not wanted or patch.stem in wanted
    ]
    if not patches:
        sys.stdout.write("no such mutant\n")
        return 2
    if not imports_the_copy():
        sys.stdout.write("the copy is not what is imported: nothing would be proved\n")
        return 2
    counts = {"caught": 0, "survived": 0, "does not apply": 0, "broken run": 0}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
        for patch, (verdict, detail, took) in zip(patches, workers.map(run, patches), strict=True):
            counts[verdict] += 1
            sys.stdout.write(f"{verdict:15}{patch.stem:40}{took:6.1f} s  {detail[-100:]}\n")
            sys.stdout.write(f"{'':15}{headline(patch)}\n")
            sys.stdout.flush()
    told = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
    sys.stdout.write(f"mutants: {len(patches)}; {told}\n")
    return 0 if counts["caught"] == len(patches) else 1


if __name__ == "__main__":
    raise SystemExit(main())
