"""Seeded bugs: each patch breaks one rule in a copy of the package; scenarios and checkers must notice.

    python tests/mutants/run.py [--jobs N] [--hint] [NAME...]

The unit test of the patched function is not run: what protects a rule must see it from outside.
A patch that no longer applies fails, as does one that nothing catches, and one whose catcher fails without it too.
A patch may name in its head, as ``# first: TEST``, the judge that is asked before all others: a hint, which saves time
where it is right and costs some where it is not; as ``# slow: TEST`` one that sees the bug by waiting for what never
comes. Those begin first, and the others go on meanwhile. ``--hint`` writes those that are missing or wrong.
"""

import argparse
import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from _pytest.config import default_plugins

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
        "late_orders",
        "power_on",
        "silent_hosts",
        "migration",
        "move_orders_lost",
        "halves",
        "forgotten_sides",
        "drain",
        "move_asked",
        "failback",
        "disks_watched_anew",
        "given_back",
        "boots_nobody_heard_of",
        "guessed_incarnations",
        "removed_hosts",
        "storage_fence",
        "stale_copies",
        "cut_removed",
        "removed_while_nobody_led",
        "hold_and_ignore",
        "lease_domains",
        "restored",
        "restored_judgements",
        "restored_untold",
        "without_guardian",
        "operators_word",
        "odd_power_devices",
        "host_dies",
        "engine_fuzz",
        "late_facts",
    )
)
ROUTED = (
    "tests/unit/alerts/test_router_bounds.py",
    "tests/unit/alerts/test_router.py",
    "tests/unit/server/test_routed_notifications.py",
    "tests/unit/server/test_routing_faults.py",
    "tests/unit/alerts/test_router_at_random.py",
)
# The first that fits.
STORIES = {
    "virtha/agent/disk_looks": ("tests/unit/agent/test_disk_looks.py",),
    "virtha/wire/probes": ("tests/unit/link/test_neighbour_probes.py",),
    "virtha/drivers/reference_address": ("tests/unit/server/test_reference_watch.py",),
    "virtha/server/reference_watch": ("tests/unit/server/test_reference_watch.py",),
    "virtha/server/witness_desk": ("tests/unit/server/test_led_witnesses.py",),
    "virtha/agent/": (
        "tests/unit/agent/test_never_two_writers.py",
        "tests/unit/agent/test_gate_hook.py",
        "tests/unit/agent/test_start_permits_on_sim.py",
    ),
    "virtha/server/power_desk": (
        "tests/unit/server/test_power_desk.py",
        "tests/unit/server/test_led_power.py",
    ),
    "virtha/control/engine_power": (
        "tests/unit/server/test_power_desk.py",
        "tests/unit/server/test_led_power.py",
    ),
    "virtha/control/keyed_requests": ("tests/unit/control/test_control_keyed_requests.py",),
    "virtha/control/events": ("tests/unit/control/test_control_facts.py",),
    "virtha/store/store": ("tests/unit/control/test_control_keyed_requests.py",),
    "virtha/api/stream": ("tests/api/test_stream.py",),
    "virtha/api/ovirt/": ("tests/api/test_ovirt_protection.py",),
    "virtha/alerts/": ROUTED,
    "virtha/control/event_routing": ROUTED,
    "virtha/control/": (
        "tests/unit/control/test_control_safety.py",
        "tests/unit/server/test_leader.py",
    ),
    "virtha/server/": (
        "tests/unit/server/test_leader.py",
        "tests/unit/server/test_leader_safety.py",
        "tests/unit/server/test_engines.py",
        "tests/unit/server/test_lease_desks.py",
        "tests/unit/server/test_led_leases.py",
    ),
    "virtha/engine/lease_desk": ("tests/unit/server/test_lease_desks.py", "tests/scenarios"),
    "virtha/engine/lease": LEASE_WORLD,
    "virtha/engine/waiver": ("tests/scenarios",),
    "virtha/engine/turn": (
        "tests/unit/engine/test_turn.py",
        "tests/unit/engine/test_late_orders.py",
    ),
    "virtha/engine/": ENGINE_PLAYS,
    "virtha/sentinel/lease": LEASE_WORLD,
    "virtha/sentinel/guardian_lease": LEASE_WORLD,
    "virtha/sentinel/host_watchdog": LEASE_WORLD,
}
FIRST, SLOW = "# first: ", "# slow: "
SLOW_S = 30
"""Less than the bound of the shortest wait for what never comes, more than most judges take on a slow machine."""
# Without the plugins that no judge needs: loading them would take longer than many a judge.
# A story that is expected to fail says nothing when it does otherwise.
OPEN = "--deselect=tests/scenarios/test_open_stories.py"
# Of a failure only its test's name is read: the lines around it would be looked for in whole modules.
OPTIONS = ("-q", "-x", "--tb=native", "-p", "no:cacheprovider", "-p", "pytest_timeout", OPEN)
# Loaded once, before the judges are forked off; nothing of virtha, which is another one for each of them.
PRELOADED = (
    "pytest",
    *(f"_pytest.{name}" for name in default_plugins),
    "hypothesis",
    "hypothesis.stateful",
    "hypothesis.strategies",
    "msgspec",
    "yaml",
    "sqlalchemy.ext.asyncio",
    "litestar",
    "structlog",
    "httpx",
)
DEADLINE_S = 300
WAITS_S, SLOW_WAITS_S = 10, 2
"""A judge that has taken as long is most likely asleep: it no longer counts among those that compute."""
AT_ONCE_PER_JOB = 8
POLL_S = 0.02
GREEN, FOUND, BROKEN = 0, 1, 70


class Verdict(NamedTuple):
    """``detail``: what caught it, or why nothing did."""

    word: str
    detail: str
    took_s: float


def headline(patch: Path) -> str:
    """The comment on top names the rule and what must catch it."""
    return patch.read_text().splitlines()[0].removeprefix("# ")


def copy_base(folder: Path) -> None:
    """With what Python compiled of it: a copy keeps the times by which that is known to be of this source."""
    for name in ("virtha", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("lab", "mutants"))
    # The package's own lab is no test.
    if not (folder / "virtha" / "lab").exists():
        shutil.copytree(ROOT / "virtha" / "lab", folder / "virtha" / "lab")
    shutil.copy(ROOT / "pyproject.toml", folder)
    compileall = (sys.executable, "-m", "compileall", "-q", "virtha")
    subprocess.run(compileall, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def copy_linked(base: Path, folder: Path, patch: Path) -> None:
    """The same files as the base's, but for those that the patch changes."""
    shutil.copytree(base, folder, copy_function=os.link)
    for line in patch.read_text().splitlines():
        if line.startswith("+++ b/"):
            path = folder / line.removeprefix("+++ b/").strip()
            if path.exists():
                path.unlink()
                shutil.copy2(base / path.relative_to(folder), path)


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
    hint = hint_of(patch)
    return (judges,) if hint is None else ((hint,), judges)


def hint_of(patch: Path) -> str | None:
    hint = _hint_line(patch)
    return hint.partition(": ")[2] if hint else None


def is_slow(patch: Path) -> bool:
    return _hint_line(patch).startswith(SLOW)


def _hint_line(patch: Path) -> str:
    second = patch.read_text().splitlines()[1]
    return second if second.startswith((FIRST, SLOW)) else ""


def write_hint(patch: Path, test: str, *, slow: bool) -> None:
    hint = _hint_line(patch)
    first, *rest = patch.read_text().splitlines(keepends=True)
    kept = rest[1:] if hint else rest
    patch.write_text("".join((first, f"{SLOW if slow else FIRST}{test}\n", *kept)))


# Judging: pytest in a process that is forked off this one


class Judging:
    """One run of pytest in ``folder``. Only its own package counts: a copy that imports the original would prove
    nothing, so that is asked first."""

    def __init__(
        self, folder: Path, judges: Sequence[str], *, options: Sequence[str], compiles: bool = False
    ) -> None:
        """``compiles``: what it compiles is kept, for all copies that are made of that folder later."""
        self.began_s = time.monotonic()
        self._compiles = compiles
        self._output = folder / "judged.log"
        # In a copy it would be a hard link to the base's, and all would write into one file.
        self._output.unlink(missing_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = BROKEN
            try:
                code = self._judge(folder, judges, options)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)

    def _judge(self, folder: Path, judges: Sequence[str], options: Sequence[str]) -> int:
        os.setsid()
        log = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        # Of the runner's own folder and of the original nothing is imported.
        sys.path[:] = [
            str(folder),
            *(path for path in sys.path if path not in (str(HERE), str(ROOT))),
        ]
        sys.dont_write_bytecode = not self._compiles
        os.environ.update(
            PYTHONPATH=str(folder),
            PYTHONDONTWRITEBYTECODE="1",
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        )
        virtha = importlib.import_module("virtha")
        if not Path(str(virtha.__file__)).is_relative_to(folder):
            sys.stderr.write(f"{virtha.__file__} was imported: nothing would be proved\n")
            return BROKEN
        pytest = importlib.import_module("pytest")
        code = int(pytest.main([*options, *judges]))
        sys.stdout.flush()
        return code

    @property
    def took_s(self) -> float:
        return time.monotonic() - self.began_s

    def ended(self, code: int) -> tuple[int, str]:
        """The exit code, and the first test that failed."""
        text = self._output.read_text(errors="replace")
        failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return code, failed[0].split(" - ")[0] if failed else text[-300:]

    def stop(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Mutant:
    """Its copy, and the judges that are still to be asked."""

    def __init__(self, patch: Path, base: Path, room: Path) -> None:
        self.patch = patch
        self.began_s = time.monotonic()
        self.folder = room / patch.stem
        copy_linked(base, self.folder, patch)
        self.problem = apply(patch, self.folder)
        self._groups = list(judges_of(patch))
        self._broke: list[str] = []
        self.judging: Judging | None = None
        if self.problem is None:
            self._next()

    def _next(self) -> None:
        self.judging = Judging(self.folder, self._groups.pop(0), options=OPTIONS)

    def take(self, code: int) -> Verdict | None:
        """The judging process ended. None: another one is asked now."""
        assert self.judging is not None
        code, told = self.judging.ended(code)
        if code == FOUND:
            return self._verdict("caught", told.removeprefix("FAILED "))
        if code != GREEN:
            # Neither green nor red (killed, no such test): the others may see the bug; if not, this is why it was missed.
            self._broke.append(f"a judge ended with {code}: {told}")
        if self._groups:
            self._next()
            return None
        if self._broke:
            return self._verdict("broken run", "\n".join(self._broke))
        return self._verdict("survived", told)

    def computes(self) -> bool:
        """As far as can be told by how long it has been at it."""
        assert self.judging is not None
        waits_s = SLOW_WAITS_S if is_slow(self.patch) else WAITS_S
        return self.judging.took_s < waits_s

    def overdue(self) -> Verdict | None:
        if self.judging is None or self.judging.took_s < DEADLINE_S:
            return None
        self.judging.stop()
        return self._verdict("caught", "it never came to an end")

    def _verdict(self, word: str, detail: str) -> Verdict:
        return Verdict(word, detail, time.monotonic() - self.began_s)

    def not_applied(self) -> Verdict:
        assert self.problem is not None
        return self._verdict("does not apply", self.problem.splitlines()[-1])


def run_all(
    patches: Sequence[Path], base: Path, room: Path, jobs: int
) -> Iterator[tuple[Path, Verdict]]:
    """As they end, of those that compute ``jobs`` at a time. This process has no threads, so that it may fork."""
    waiting = sorted(patches, key=is_slow, reverse=True)
    running: dict[int, Mutant] = {}
    while waiting or running:
        while waiting and _computing(running.values()) < jobs > len(running) // AT_ONCE_PER_JOB:
            mutant = Mutant(waiting.pop(0), base, room)
            if mutant.judging is None:
                yield mutant.patch, mutant.not_applied()
            else:
                running[mutant.judging.pid] = mutant
        for pid in list(running):
            mutant = running[pid]
            ended, status = os.waitpid(pid, os.WNOHANG)
            verdict = mutant.overdue() if not ended else mutant.take(_code(status))
            if ended and verdict is None and mutant.judging is not None:
                del running[pid]
                running[mutant.judging.pid] = mutant
            elif verdict is not None:
                del running[pid]
                shutil.rmtree(mutant.folder)
                yield mutant.patch, verdict
        time.sleep(POLL_S)


def _computing(running: Iterable[Mutant]) -> int:
    return sum(one.computes() for one in running)


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def not_green(base: Path, tests: Sequence[str]) -> str | None:
    """Asked on the unchanged copy: a judge that fails there catches nothing. None: all are green."""
    if not tests:
        return None
    judging = Judging(base, tests, options=OPTIONS, compiles=True)
    _, status = os.waitpid(judging.pid, 0)
    code, told = judging.ended(_code(status))
    return None if code == GREEN else told


def preload() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or each judge would go through all of it, more than once


def tests_there(tests: Sequence[str]) -> list[str]:
    """Of hints whose file has gone nothing is asked; the others' tests are looked for by pytest."""
    return sorted({test for test in tests if (ROOT / test.partition("::")[0]).exists()})


def judge_all(patches: Sequence[Path], jobs: int, *, hint: bool) -> dict[str, int]:
    counts = {"caught": 0, "survived": 0, "does not apply": 0, "broken run": 0, "judge is red": 0}
    with tempfile.TemporaryDirectory(prefix="virtha-mutants-") as name:
        room = Path(name)
        base = room / "base"
        copy_base(base)
        hinted = tests_there([test for patch in patches if (test := hint_of(patch))])
        red = not_green(base, hinted)
        if red is not None:
            sys.stdout.write(f"without any mutant: {red}\n")
            sys.stdout.write("a judge is not green, or is gone (--hint writes the hints anew)\n")
            counts["judge is red"] += 1
            if not hint:
                return counts
        caught_by: dict[Path, str] = {}
        for patch, verdict in run_all(patches, base, room, jobs):
            counts[verdict.word] += 1
            if verdict.word == "caught" and "::" in verdict.detail:
                caught_by[patch] = verdict.detail
                slow = verdict.took_s >= SLOW_S
                if hint and (hint_of(patch), is_slow(patch)) != (verdict.detail, slow):
                    write_hint(patch, verdict.detail, slow=slow)
            sys.stdout.write(
                f"{verdict.word:15}{patch.stem:40}{verdict.took_s:6.1f} s  {verdict.detail[-100:]}\n"
            )
            sys.stdout.write(f"{'':15}{headline(patch)}\n")
            sys.stdout.flush()
        unasked = sorted(set(caught_by.values()) - set(hinted if red is None else ()))
        red = not_green(base, unasked)
        if red is not None:
            sys.stdout.write(f"without any mutant: {red}\n")
            counts["judge is red"] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description="seeded bugs; each must be caught")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--hint", action="store_true", help="write which judge catches each")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    wanted = set(given.names)
    patches = [
        patch for patch in sorted(HERE.glob("*.patch")) if not wanted or patch.stem in wanted
    ]
    unknown = sorted(wanted - {patch.stem for patch in patches})
    if unknown or not patches or given.jobs < 1:
        sys.stdout.write(
            f"no such mutant: {', '.join(unknown)}\n" if unknown else "nothing to do\n"
        )
        return 2
    preload()
    began_s = time.monotonic()
    counts = judge_all(patches, given.jobs, hint=given.hint)
    told = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    sys.stdout.write(f"{told or 'none'}; {time.monotonic() - began_s:.0f} s\n")
    sys.stdout.write(f"mutants: {counts['caught']}/{len(patches)} caught\n")
    return 0 if counts["caught"] == len(patches) and not counts["judge is red"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
