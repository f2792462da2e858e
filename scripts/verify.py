"""The long runs: all that proves virtha and takes longer than a submission may.

    python scripts/verify.py [--seeds 1..20000] [--only STEP]... [--list]

Lab rounds mostly wait for real guests: they go first, and beside them, at the lowest rank, what only computes. Then the
benchmarks, with nothing beside them. A step that succeeded is not run again as long as nothing it runs has changed;
random worlds and crash points go on where they were killed. What each step says is in ``.stamp/verify/STEP.log``.
Ends with a table and one line of JSON; exit code 1 when a step failed, 130 when it was interrupted.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / ".stamp" / "verify"
PYTEST = (sys.executable, "-m", "pytest", "-q")
DECIDES_WORLDS = ("virtha", "tests/scenarios", "tests/crash_points")
"""All that decides what the random worlds and crash points do: a run goes on only where it is still the same."""
READ_BY_TESTS = ("pyproject.toml", "requirements.lock", "docs/guide", "scripts/wheel.py")
CHAOS_SEEDS, CHAOS_MINUTES = range(1, 5), 30
KILL_AFTER_S = 60
"""A lab that is interrupted stops its hosts by then."""


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    places: Sequence[str]
    """Files and directories that decide what it does."""

    @property
    def state(self) -> str:
        """Another one: its success of before says nothing."""
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([digest(self.places), *environment, *self.command])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    seconds: float
    ended: str
    earlier: bool = False

    @property
    def words(self) -> str:
        ended = "ok" if self.code == 0 else f"failed ({self.code})"
        return f"{ended}, as run before" if self.earlier else ended


def digest(places: Iterable[str]) -> str:
    content = hashlib.sha256()
    for place in places:
        root = ROOT / place
        files = (
            [root] if root.is_file() else sorted(each for each in root.rglob("*") if each.is_file())
        )
        for each in files:
            if "__pycache__" not in each.parts:
                content.update(str(each.relative_to(ROOT)).encode() + b"\0" + each.read_bytes())
    return content.hexdigest()[:16]


def test_files(pattern: str) -> list[str]:
    """Those in which it is found."""
    found = re.compile(pattern, re.MULTILINE)
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(each.relative_to(ROOT)) for each in files if found.search(each.read_text())]


def test_modules_of(files: Iterable[str]) -> set[str]:
    """They, and the tests that they import, by way of each other and of what tests share: all are imported by their bare names."""
    by_name: dict[str, list[Path]] = {}
    for each in (ROOT / "tests").rglob("*.py"):
        by_name.setdefault(each.stem, []).append(each)
    found, left = set[Path](), [*by_name.get("conftest", ()), *(ROOT / file for file in files)]
    while left:
        if (each := left.pop()) not in found:
            found.add(each)
            for name in re.findall(r"\b(?:from|import)\s+(\w+)", each.read_text()):
                left += by_name.get(name, ())
    return {str(each.relative_to(ROOT)) for each in found if each.name.startswith("test_")}


def beside_tests() -> set[str]:
    """What is in their directories and is no test: modules that they share, and what they read. Seeded bugs are for their own step."""
    return {
        str(each.relative_to(ROOT))
        for each in (ROOT / "tests").rglob("*")
        if each.is_file()
        and not each.match("test_*.py")
        and {"__pycache__", "mutants"}.isdisjoint(each.parts)
    }


def pytest_step(
    name: str, files: Sequence[str], *options: str, environment: Mapping[str, str] | None = None
) -> Step:
    """Decided by its files and the tests that they import, by all that tests share, and by what tests read and follow beside them."""
    return Step(
        name=name,
        command=(*PYTEST, *options, *files),
        environment=environment or {},
        places=("virtha", *READ_BY_TESTS, *sorted(beside_tests() | test_modules_of(files))),
    )


def lab_steps() -> list[Step]:
    on_machines = set(test_files(r"pytest\.mark\.lab\b"))
    long = [
        pytest_step(f"lab-{Path(file).stem.removeprefix('test_')}", [file], "-m", "lab and long")
        for file in test_files(r"pytest\.mark\.long\b")
        if file in on_machines
    ]
    kills = pytest_step(
        "lab-agent-kills",
        ["tests/lab/test_lab_agents.py"],
        *("-m", "lab", "-k", "kill_9"),
        environment={"VIRTHA_LAB_ROUNDS": "7"},
    )
    restarts = pytest_step(
        "lab-twenty-restarts",
        ["tests/lab/test_lab_crashes.py"],
        *("-m", "lab", "-k", "server_stopped"),
        environment={"VIRTHA_LAB_KILLS": "20"},
    )
    moves = pytest_step(
        "lab-fifty-moves",
        ["tests/lab/test_lab_migration.py"],
        *("-m", "lab", "-k", "to_and_fro"),
        environment={"VIRTHA_LAB_MOVES": "50"},
    )
    return [*long, kills, restarts, moves, *chaos_steps()]


def chaos_steps() -> list[Step]:
    """Two hours altogether; before them the proof that they can fail."""
    oracle = Step(
        name="chaos-oracle",
        command=(sys.executable, "scripts/chaos_oracle.py"),
        places=(
            *("virtha", "scripts/chaos_oracle.py"),
            *("tests/mutants/run.py", "tests/mutants/engine-trusts-silence.patch"),
        ),
    )
    runs = [
        Step(
            name=f"chaos-seed-{seed}",
            command=(
                *(sys.executable, "-m", "virtha.lab.chaos"),
                *("--minutes", str(CHAOS_MINUTES), "--seed", str(seed)),
            ),
            places=("virtha",),
        )
        for seed in CHAOS_SEEDS
    ]
    return [oracle, *runs]


def waiting_steps() -> list[Step]:
    return [
        pytest_step(
            "receivers-away-5-minutes",
            ["tests/api/test_notification_story.py"],
            environment={"VIRTHA_OUTAGE_S": "300"},
        )
    ]


def computing_steps(seeds: str) -> list[Step]:
    python, worlds = sys.executable, digest(DECIDES_WORLDS)
    crash_points = ("--all", "--resume", f".stamp/crash-points-{worlds}.journal")
    journal = ("--resume", f".stamp/swarm-{seeds}-{worlds}.journal")
    simulate = ("simulate", "--seed", seeds, "--save", ".stamp/swarm-failures", *journal)
    return [
        pytest_step(
            "queue-of-100000",
            [
                "tests/unit/server/test_notifier_crashes.py",
                "tests/api/test_notification_story.py",
            ],
            *("-k", "hundred_thousand or lose_no_mail"),
            environment={"VIRTHA_WHOLE_QUEUE": "1"},
        ),
        pytest_step(
            "api-against-its-document",
            ["tests/api/test_schemathesis.py"],
            *("-k", "whole"),
            environment={"VIRTHA_SCHEMATHESIS_S": "1800"},
        ),
        pytest_step(
            "outbox-cut-at-every-byte",
            ["tests/unit/agent/test_outbox_cut.py"],
            *("-n", "2"),
            environment={"VIRTHA_EVERY_BYTE": "1"},
        ),
        pytest_step(
            "facade-fuzz-10-minutes",
            ["tests/api/test_ovirt_fuzz.py"],
            environment={"VIRTHA_FUZZ_S": "600"},
        ),
        pytest_step(
            "properties-with-new-examples",
            test_files(r"^(from|import) hypothesis"),
            *("-n", "2", "-m", "not lab", "--hypothesis-profile=search"),
        ),
        pytest_step(
            "stories-without-shortcuts", ["tests/properties/test_shortcuts.py"], *("-n", "2")
        ),
        Step(
            name="mutants",
            command=(python, "tests/mutants/run.py"),
            places=("virtha", "tests", "pyproject.toml"),
        ),
        Step(
            name="crash-points",
            command=(python, "tests/crash_points/run.py", *crash_points),
            places=DECIDES_WORLDS,
        ),
        Step(
            name="random-worlds",
            command=(python, "-m", "virtha.cli.main", *simulate),
            places=DECIDES_WORLDS,
        ),
    ]


def benchmarks() -> list[Step]:
    return [
        Step(
            name=f"bench-{each.stem}",
            command=(sys.executable, str(each.relative_to(ROOT))),
            places=("virtha", "bench", "examples"),
        )
        for each in sorted((ROOT / "bench").glob("*.py"))
        if each.stem != "report"
    ]


class Verification:
    """Runs steps and remembers which of them succeeded, in which state."""

    def __init__(self) -> None:
        self._record = LOGS / "succeeded.json"
        self.outcomes: dict[str, Outcome] = {}
        self._known: dict[str, dict[str, float | str]] = {}
        if self._record.exists():
            self._known = json.loads(self._record.read_text())
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = Lock()
        self.interrupted = Event()

    def run(self, steps: Sequence[Step], *, rank: int) -> None:
        """One after the other. ``rank``: as of ``nice``."""
        for step in steps:
            if self.interrupted.is_set():
                return
            known = self._known.get(step.name)
            if known is not None and known["state"] == step.state:
                outcome = Outcome(
                    code=0, seconds=float(known["seconds"]), ended=str(known["ended"]), earlier=True
                )
            else:
                outcome = self._run(step, rank)
            if not self.interrupted.is_set():
                self.outcomes[step.name] = outcome
                print(f"==> {step.name}: {outcome.words} ({outcome.seconds:.0f} s)", flush=True)

    def _run(self, step: Step, rank: int) -> Outcome:
        began, state = time.monotonic(), step.state
        with (LOGS / f"{step.name}.log").open("wb") as log:
            # A group of its own: an interrupt of the terminal reaches it by ``interrupt`` alone, once.
            process = subprocess.Popen(
                ("nice", "-n", str(rank), *step.command),
                cwd=ROOT,
                env={**os.environ, **step.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
            with self._lock:
                self._running.add(process)
            if self.interrupted.is_set():
                process.send_signal(signal.SIGINT)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        outcome = Outcome(code=code, seconds=round(time.monotonic() - began, 1), ended=ended)
        if code == 0:
            self._remember(step, state, outcome)
        return outcome

    def _remember(self, step: Step, state: str, outcome: Outcome) -> None:
        with self._lock:
            self._known[step.name] = {
                "state": state,
                "seconds": outcome.seconds,
                "ended": outcome.ended,
            }
            new = self._record.with_suffix(".new")
            new.write_text(json.dumps(self._known, indent=1))
            new.replace(self._record)

    def interrupt(self) -> None:
        """pytest takes an interrupt for the time to stop its labs; a termination it would not survive."""
        self.interrupted.set()
        with self._lock:
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def commit() -> str:
    said = subprocess.run(
        ("git", "describe", "--always", "--dirty"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def report(outcomes: Mapping[str, Outcome], wanted: Sequence[str] = ()) -> int:
    """Prints; the exit code. ``wanted``: what of it has no outcome, for a lane broke, has failed, too."""
    width = max(map(len, outcomes), default=0)
    for name, outcome in outcomes.items():
        print(f"{name:{width}}  {outcome.seconds:8.0f} s  {outcome.ended}  {outcome.words}")
    failed = [name for name, outcome in outcomes.items() if outcome.code != 0]
    for name in failed:
        print(f"==> failed: {name} (.stamp/verify/{name}.log)")
    left_out = [name for name in wanted if name not in outcomes]
    for name in left_out:
        print(f"==> not run: {name}")
    failed += left_out
    steps = {
        name: {"code": outcome.code, "seconds": outcome.seconds, "ended": outcome.ended}
        for name, outcome in outcomes.items()
    }
    print(json.dumps({"verify": steps, "failed": failed, "commit": commit()}))
    return 1 if failed else 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="1..20000")
    parser.add_argument(
        "--only", action="append", metavar="STEP", help="this step; may be given again"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all steps")
    wanted = parser.parse_args(arguments)
    lanes = [lab_steps(), waiting_steps(), computing_steps(wanted.seeds), benchmarks()]
    names = [step.name for lane in lanes for step in lane]
    if wanted.list:
        print("\n".join(names))
        return 0
    unknown = [name for name in wanted.only or () if name not in names]
    if unknown:
        parser.error(f"--only: no step {', '.join(unknown)}; --list prints all names")
    only = wanted.only or names
    lab, waiting, computing, bench = (
        [step for step in lane if step.name in only] for lane in lanes
    )
    LOGS.mkdir(parents=True, exist_ok=True)
    verification = Verification()
    for number in (signal.SIGINT, signal.SIGTERM):
        # In the background of a shell an interrupt would be ignored.
        signal.signal(number, signal.default_int_handler)
    beside = [
        Thread(target=verification.run, args=(lane,), kwargs={"rank": 19})
        for lane in (waiting, computing)
    ]
    for lane in beside:
        lane.start()
    try:
        verification.run(lab, rank=0)
        for lane in beside:
            lane.join()
        verification.run(bench, rank=0)
    except KeyboardInterrupt:
        verification.interrupt()
        for lane in beside:
            lane.join()
        report(verification.outcomes)
        print("==> interrupted: the same command goes on", file=sys.stderr)
        return 130
    return report(verification.outcomes, [name for name in names if name in only])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
