"""`virtha simulate --seed`: many random worlds in parallel processes, and what came of all of them."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import typer

from virtha import __version__
from virtha.cli.failing_stories import FailingStories
from virtha.cli.options import Options
from virtha.cli.output import chosen_output, note, print_table, stderr_console, write_data
from virtha.cli.run_journal import RunJournal, code_digest
from virtha.cli.worker_pool import worker_pool
from virtha.model.errors import Failed, InvalidInput
from virtha.model.proof import ProofKind
from virtha.model.time import format_duration_ms
from virtha.sim.swarm import SEEN, WorldResult, run_seed
from virtha.sim.swarm_ceph import CEPH_KINDS
from virtha.sim.swarm_kinds import KINDS
from virtha.sim.swarm_story import write_story

SEED_MAX = (1 << 63) - 1
WORLDS_MAX = 10_000_000
SHARE_PERCENT_MIN = 1.0
"""A kind of fault that fewer worlds meet is hardly tested."""
SHARES_FROM = 1_000
"""Worlds from which on a share below that counts as a failure; with fewer it is chance."""
AHEAD = 4
"""Worlds handed out per worker: enough that none waits, few enough that a stop is soon one."""
FAILED_SHOWN = 20
PROOFS = {
    "a proof by power off": ProofKind.POWER_OFF,
    "a proof by lease": ProofKind.LEASE,
    "a proof by an operator": ProofKind.OPERATOR,
}
"""Of those that an incident waits for: a host that reports a new boot ends it."""
WORLD_S_MAX = 3_600
"""Processor time of one world, shortening included: a thousand times what one takes. One that never ends must not hold up
the others."""
TOLD_EVERY_S = 60
"""Where nobody sees a bar."""


class Seeds(NamedTuple):
    first: int
    last: int

    @property
    def worlds(self) -> int:
        return self.last - self.first + 1


def parse_seeds(text: str) -> Seeds:
    """``17`` or ``1..20000``. Raises InvalidInput."""
    first, dots, last = text.partition("..")
    ends = (first, last if dots else first)
    if not all(end.isascii() and end.isdecimal() and len(end) < 20 for end in ends):
        raise InvalidInput(
            f"'{text}' is no seed and no range of them",
            field="--seed",
            allowed=("a number", "FIRST..LAST"),
            fix="write for example 17 or 1..20000",
        )
    seeds = Seeds(int(ends[0]), int(ends[1]))
    if seeds.last > SEED_MAX:
        raise InvalidInput(f"'{text}' is too large", field="--seed", allowed=(f"0 to {SEED_MAX}",))
    if seeds.first > seeds.last:
        raise InvalidInput(
            f"'{text}' ends before it begins",
            field="--seed",
            fix=f"write {seeds.last}..{seeds.first}",
        )
    if seeds.worlds > WORLDS_MAX:
        raise InvalidInput(
            f"'{text}' are {seeds.worlds} worlds", field="--seed", allowed=(f"up to {WORLDS_MAX}",)
        )
    return seeds


def swarm(
    given: Options,
    seeds: Seeds,
    *,
    jobs: int,
    resume: Path | None,
    save: Path,
    seconds: int | None,
    digest: bool,
) -> int:
    """Exit code 1: a world failed, or a kind of fault was hardly met. ``save``: directory of failing stories.
    ``seconds``: no world is begun after so many of real time."""
    if save.exists() and not save.is_dir():
        raise InvalidInput(f"{save} is no directory", field="--save", fix="name a directory")
    journal, code = None, code_digest()
    stories = FailingStories(given, save)
    results: dict[int, WorldResult] = {}
    if resume is not None:
        what = f"seeds {seeds.first}..{seeds.last}"
        journal = RunJournal(resume, what=what, code=code)
        results = {one.seed: one for one in journal.decoded(WorldResult)}
    if results:
        note(given, f"{len(results)} of {seeds.worlds} worlds were played before")
    for one in results.values():
        stories.keep_again(one)
    began_s = time.monotonic()
    until_s = None if seconds is None else began_s + seconds
    todo = (seed for seed in range(seeds.first, seeds.last + 1) if seed not in results)
    try:
        with _progress(given, seeds.worlds, len(results)) as told:
            for result in _played(todo, jobs, until_s):
                results[result.seed] = result
                if result.rule:
                    stories.keep(result)
                if journal is not None:
                    journal.add(msgspec.json.encode(result))
                told(len(results), sum(bool(one.rule) for one in results.values()))
    except KeyboardInterrupt:
        # Between the two a result may be in one and not yet in the other: what the file has is what goes on.
        played = len(results) if journal is None else journal.count()
        note(given, f"stopped after {played} worlds")
        if journal is not None:
            note(given, f"go on with the same command: {journal.path} keeps what was played")
        raise
    finally:
        if journal is not None:
            journal.close()
        stories.end()
    return show_swarm(
        given,
        [results[seed] for seed in sorted(results)],
        seeds,
        took_s=time.monotonic() - began_s,
        digest=digest,
    )


def _played(seeds: Iterator[int], jobs: int, until_s: float | None) -> Iterator[WorldResult]:
    """As they end, in any order."""

    def more() -> Iterator[int]:
        for seed in seeds:
            if until_s is not None and time.monotonic() >= until_s:
                return
            yield seed

    if jobs == 1:
        yield from map(run_limited, more())
        return
    waiting = more()
    with worker_pool(jobs) as pool:
        running: set[Future[WorldResult]] = set()
        try:
            while True:
                while len(running) < jobs * AHEAD and (seed := next(waiting, None)) is not None:
                    running.add(pool.submit(run_limited, seed))
                if not running:
                    return
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for each in ended:
                    yield each.result()
        except BrokenProcessPool as error:
            raise Failed(
                "a process that plays worlds was ended from outside",
                fix="look whether memory ran out; fewer --jobs need less; with --resume the same command goes on",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _TooLong(BaseException):
    """Not an error of the world's: nothing in it may catch it."""


def run_limited(seed: int) -> WorldResult:
    """As ``run_seed``, within ``WORLD_S_MAX``; in a process's main thread."""

    def stop(_signal: int, _frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, WORLD_S_MAX)
    try:
        return run_seed(seed)
    except _TooLong:
        return WorldResult(
            seed=seed,
            virtual_ms=0,
            digest="",
            rule="broken",
            message=f"took more than {WORLD_S_MAX} s of processor time",
            story="\n".join((f"# Seed {seed} of the swarm.", *write_story(seed).lines)) + "\n",
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def usable_processors() -> int:
    return len(os.sched_getaffinity(0))


def _progress(given: Options, total: int, already: int) -> Any:
    """A bar on a terminal, a line each minute elsewhere."""
    if given.quiet or total - already < 2:
        return nullcontext(lambda _done, _failed: None)
    if not sys.stderr.isatty():
        return nullcontext(_Lines(given, total, already).told)
    return _Bar(total, already)


class _Lines:
    def __init__(self, given: Options, total: int, already: int) -> None:
        self._given = given
        self._total = total
        self._already = already
        self._began_s = self._told_s = time.monotonic()

    def told(self, done: int, failed: int) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s < TOLD_EVERY_S:
            return
        self._told_s = now_s
        each_ms = 1_000 * (now_s - self._began_s) / max(done - self._already, 1)
        left = format_duration_ms((int(each_ms * (self._total - done)) // 60_000 + 1) * 60_000)
        note(self._given, f"{done} of {self._total} worlds, {failed} failed, about {left} to go")


class _Bar:
    def __init__(self, total: int, already: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._bar = Progress(
            TextColumn("worlds"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            Remaining(),
            console=stderr_console(),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total, completed=already, failed=0)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, failed: self._bar.update(self._task, completed=done, failed=failed)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


# What came of it


def show_swarm(
    given: Options, results: Sequence[WorldResult], seeds: Seeds, *, took_s: float, digest: bool
) -> int:
    rare = rare_kinds(results)
    failed = any(one.rule for one in results)
    data = {**_data(results, seeds), "seconds": round(took_s, 1), "rare": rare}
    data |= {"version": __version__, "code": code_digest()}
    if digest:
        data["digests"] = {str(one.seed): one.digest for one in results}
    if not write_data(given, data) and not given.quiet:
        _show(given, results, data)
        if digest:
            for one in results:
                typer.echo(f"digest {one.seed} {one.digest}")
        if rare and len(results) >= SHARES_FROM:
            typer.echo(f"\nHardly met, in less than {SHARE_PERCENT_MIN:g} %: {', '.join(rare)}")
    enough = len(results) < SHARES_FROM or not set(rare) & MUST_BE_MET
    return 0 if enough and not failed else 1


def shares(results: Sequence[WorldResult]) -> dict[str, int]:
    """How many worlds had each: first what came of them, then each kind of fault."""
    met: Counter[str] = Counter()
    for one in results:
        met.update((*one.kinds, *one.seen, *one.proofs))
    return {
        "a fence": sum(one.fenced for one in results),
        "a recovery": sum(one.recovered for one in results),
        "a contradiction": sum(one.contradicted for one in results),
        **{name: met[kind] for name, kind in PROOFS.items()},
        **{name: met[name] for name in (*SEEN, *(kind.name for kind in (*KINDS, *CEPH_KINDS)))},
    }


MUST_BE_MET = frozenset(
    {"a fence", "a recovery", "a contradiction", *(kind.name for kind in (*KINDS, *CEPH_KINDS))}
)
"""Of a thousand worlds and more: what is drawn, and what it is drawn for. What else came of them, chance and the engine
decide: the better the engine, the rarer some of it."""


def rare_kinds(results: Sequence[WorldResult]) -> list[str]:
    enough = len(results) * SHARE_PERCENT_MIN / 100
    return [name for name, count in shares(results).items() if count < enough]


def _data(results: Sequence[WorldResult], seeds: Seeds) -> dict[str, Any]:
    rules = Counter(one.rule for one in results)
    return {
        "first": seeds.first,
        "last": seeds.last,
        "worlds": len(results),
        "virtual_seconds": sum(one.virtual_ms for one in results) // 1_000,
        "virtual_seconds_min": min((one.virtual_ms for one in results if not one.rule), default=0)
        // 1_000,
        "safety_violations": rules["safety"],
        "liveness_failures": rules["liveness"],
        "broken_worlds": rules["broken"],
        "late_worlds": sum(bool(one.late) for one in results),
        "failed": [
            {"seed": one.seed, "rule": one.rule, "message": one.message}
            for one in results
            if one.rule
        ],
        "shares": shares(results),
        "reasons": dict(sorted(Counter(code for one in results for code in one.reasons).items())),
    }


def _show(given: Options, results: Sequence[WorldResult], data: dict[str, Any]) -> None:
    plain = chosen_output(given) is None
    names = ("worlds", "virtual_seconds", "virtual_seconds_min", "safety_violations",
             "liveness_failures", "broken_worlds", "late_worlds", "seconds", "code")  # fmt: skip
    print_table(
        ("of all", "count"), [[_words(name), str(data[name])] for name in names], plain=plain
    )
    if not plain:
        typer.echo()
    count = max(len(results), 1)
    rows = [
        [name, str(worlds), f"{100 * worlds / count:.1f} %"]
        for name, worlds in data["shares"].items()
    ]
    print_table(("worlds with", "count", "share"), rows, plain=plain)
    for one in data["failed"][:FAILED_SHOWN]:
        typer.echo(f"seed {one['seed']}: {one['rule']}: {one['message']}")
    if len(data["failed"]) > FAILED_SHOWN:
        typer.echo(f"… {len(data['failed']) - FAILED_SHOWN} more failed: -o json has all")


def _words(name: str) -> str:
    """``late_worlds`` took more than twice the policy's budget, and named what they waited for."""
    return {
        "virtual_seconds_min": "virtual seconds of the shortest",
        "late_worlds": "worlds later than twice the budget, with a reason",
        "seconds": "seconds this run took",
        "code": "digest of the program's sources",
    }.get(name, name.replace("_", " "))
