"""`virtha simulate --seed`: many random worlds in parallel processes, and what came of all of them."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import typer

from virtha.cli.options import Options
from virtha.cli.output import chosen_output, note, print_table, stderr_console, write_data
from virtha.cli.run_journal import RunJournal, code_digest
from virtha.cli.worker_pool import worker_pool
from virtha.model.errors import InvalidInput
from virtha.sim.swarm import WorldResult, run_seed
from virtha.sim.swarm_kinds import KINDS

SEED_MAX = (1 << 63) - 1
WORLDS_MAX = 10_000_000
SHARE_PERCENT_MIN = 1.0
"""A kind of fault that fewer worlds meet is hardly tested."""
SHARES_FROM = 1_000
"""Worlds from which on a share below that counts as a failure; with fewer it is chance."""
AHEAD = 4
"""Worlds handed out per worker: enough that none waits, few enough that a stop is soon one."""
FAILED_SHOWN = 20


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
    journal = None
    results: dict[int, WorldResult] = {}
    if resume is not None:
        what = f"seeds {seeds.first}..{seeds.last}"
        journal = RunJournal(resume, what=what, code=code_digest())
        played = (msgspec.json.decode(line, type=WorldResult) for line in journal.lines)
        results = {one.seed: one for one in played}
    if results:
        note(given, f"{len(results)} of {seeds.worlds} worlds were played before")
    began_s = time.monotonic()
    until_s = None if seconds is None else began_s + seconds
    todo = (seed for seed in range(seeds.first, seeds.last + 1) if seed not in results)
    try:
        with _progress(given, seeds.worlds, len(results)) as told:
            for result in _played(todo, jobs, until_s):
                results[result.seed] = result
                if journal is not None:
                    journal.add(msgspec.json.encode(result))
                if result.rule:
                    _tell_failure(given, result, save)
                told(len(results), sum(bool(one.rule) for one in results.values()))
    except KeyboardInterrupt:
        note(given, f"stopped after {len(results)} worlds")
        if journal is not None:
            note(given, f"go on with the same command: {journal.path} keeps what was played")
        raise
    finally:
        if journal is not None:
            journal.close()
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
        yield from map(run_seed, more())
        return
    waiting = more()
    with worker_pool(jobs) as pool:
        running: set[Future[WorldResult]] = set()
        try:
            while True:
                while len(running) < jobs * AHEAD and (seed := next(waiting, None)) is not None:
                    running.add(pool.submit(run_seed, seed))
                if not running:
                    return
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for each in ended:
                    yield each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def usable_processors() -> int:
    return len(os.sched_getaffinity(0))


def _progress(given: Options, total: int, already: int) -> Any:
    """A bar on a terminal, nothing elsewhere."""
    if given.quiet or not sys.stderr.isatty() or total - already < 2:
        return nullcontext(lambda _done, _failed: None)
    return _Bar(total, already)


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


def _tell_failure(given: Options, result: WorldResult, save: Path) -> None:
    save.mkdir(parents=True, exist_ok=True)
    path = save / f"seed-{result.seed}.txt"
    path.write_text(result.story, encoding="utf-8")
    note(given, f"seed {result.seed}: {result.rule}: {result.message}; {path} tells it")


# What came of it


def show_swarm(
    given: Options, results: Sequence[WorldResult], seeds: Seeds, *, took_s: float, digest: bool
) -> int:
    rare = rare_kinds(results)
    failed = any(one.rule for one in results)
    data = {**_data(results, seeds), "seconds": round(took_s, 1), "rare": rare}
    if digest:
        data["digests"] = {str(one.seed): one.digest for one in results}
    if not write_data(given, data) and not given.quiet:
        _show(given, results, data)
        if digest:
            for one in results:
                typer.echo(f"digest {one.seed} {one.digest}")
        if rare and len(results) >= SHARES_FROM:
            typer.echo(f"\nHardly met, in less than {SHARE_PERCENT_MIN:g} %: {', '.join(rare)}")
    return 1 if failed or (rare and len(results) >= SHARES_FROM) else 0


def shares(results: Sequence[WorldResult]) -> dict[str, int]:
    """How many worlds had each: first what came of them, then each kind of fault."""
    met: Counter[str] = Counter()
    for one in results:
        met.update(one.kinds)
    return {
        "a fence": sum(one.fenced for one in results),
        "a recovery": sum(one.recovered for one in results),
        "a contradiction": sum(one.contradicted for one in results),
        **{kind.name: met[kind.name] for kind in KINDS},
    }


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
    }


def _show(given: Options, results: Sequence[WorldResult], data: dict[str, Any]) -> None:
    plain = chosen_output(given) is None
    names = ("worlds", "virtual_seconds", "virtual_seconds_min", "safety_violations",
             "liveness_failures", "broken_worlds", "late_worlds", "seconds")  # fmt: skip
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
    }.get(name, name.replace("_", " "))
