"""How long HA VMs are gone when their host fails, on real hosts: from the fault to libvirt's `started` on another one.

    CASE=power_seen_fast,hung_fast    only these (all: see host_failures/cases.py)
    ROUNDS=3                          of each, in place of 20 (40 VMs: 5)

Three lab hosts with BMCs (`ipmi_sim`), their own libvirtd, guardian and watchdog each, real guests. What is measured is seen from
outside: libvirt's events, who writes which disk, what the BMCs were told. Rounds are kept in `.stamp/failover`: a run that is
killed goes on, until something in `virtha/`, in `host_failures/` or in the case changes. After each case the engine's journal is
replayed. The floor is measured in the same run, by hand.
"""

import json
import os
import sys

from host_failures.cases import CASES, FLOOR, POWER_SEEN_FAST, Case
from host_failures.ledger import Ledger, program_state
from host_failures.play import play
from host_failures.played import Round
from host_failures.results import figures, phase_table, replay_figures
from host_failures.stage import Stage
from report import finish
from rich.console import Console

from virtha.lab.journals import Journals, Replayed
from virtha.lab.lab import Lab
from virtha.lab.progress import Steps
from virtha.lab.story import bmcs, temporary_directory, temporary_lab
from virtha.model.errors import NotFound, VirthaError
from virtha.model.policy import FIELD_TABLE, Policy

HOSTS = 3
LAB = "bench-failover"
MEASURED = "measured-program"
"""In the lab's directory: of which program its journal is."""


def main() -> int:
    cases, rounds = _chosen()
    steps, ledger = Steps(), Ledger(program_state())
    _replay_what_was_left(ledger, steps)
    missing = {case: rounds.get(case, case.rounds) - len(ledger.rounds(case)) for case in cases}
    if any(number > 0 for number in missing.values()):
        with (
            temporary_lab(LAB, hosts=HOSTS, steps=steps) as story,
            bmcs(story) as made,
        ):
            (story.lab.directory / MEASURED).write_text(ledger.program)
            stage = Stage(story, made, steps)
            for case, number in missing.items():
                if number > 0:
                    _play(stage, case, number, ledger)
    played = {case: ledger.rounds(case) for case in cases}
    console = Console(width=None if os.isatty(1) else 120)
    for case in cases:
        console.print(f"{case.name}: {case.what}; policy: {_policy(case)}", highlight=False)
    console.print(phase_table(played))
    single = ledger.rounds(POWER_SEEN_FAST)
    replays = {case: ledger.replays(case) for case in cases}
    left = {case: ledger.rounds_not_replayed(case) for case in cases}
    return finish("failover", {**figures(played, single), **replay_figures(replays, left)})


def _replay_what_was_left(ledger: Ledger, steps: Steps) -> None:
    """By a run of this very program that was killed: its rounds count, and their journal is in its lab."""
    cases = [case for case in CASES if ledger.rounds_not_replayed(case)]
    directory = temporary_directory(LAB)
    try:
        made, program = Lab.open(directory), (directory / MEASURED).read_text()
    except (NotFound, FileNotFoundError):
        return
    if cases and program == ledger.program:
        with steps.step("the engine's journal of a run that was killed is replayed"):
            replayed = Journals(made).replay()
        steps.say(f"replay: {replayed}")
        for case in cases:
            ledger.add_replay(case, replayed)


def _chosen() -> tuple[list[Case], dict[Case, int]]:
    by_name = {case.name: case for case in CASES}
    names = os.environ.get("CASE", "").replace(",", " ").split() or list(by_name)
    unknown = [name for name in names if name not in by_name]
    if unknown:
        sys.exit(f"CASE: there is no {', '.join(unknown)}; there are {', '.join(by_name)}")
    given = os.environ.get("ROUNDS", "")
    if given and not (given.isdecimal() and int(given) > 0):
        sys.exit(f"ROUNDS: {given!r} is no number of rounds; write ROUNDS=3")
    chosen = [case for case in CASES if case.name in names or case is FLOOR]
    return chosen, {case: int(given) for case in chosen} if given else {}


def _policy(case: Case) -> str:
    """What of it isn't the default."""
    policy, default = case.checked_policy, Policy()
    changed = [
        f"{path}={policy.read(path)}"
        for path in FIELD_TABLE
        if policy.read(path) != default.read(path)
    ]
    return f"{case.profile}; {', '.join(changed)}"


def _play(stage: Stage, case: Case, number: int, ledger: Ledger) -> None:
    steps = stage.steps
    with steps.step(f"{case.name}: {case.what}"):
        stage.prepare(case)
    try:
        for left in range(number, 0, -1):
            _play_round(stage, case, ledger, left - 1)
    finally:
        _replay(stage, case, ledger)


def _play_round(stage: Stage, case: Case, ledger: Ledger, to_go: int) -> None:
    steps = stage.steps
    try:
        stage.rest(case)
    except VirthaError:
        steps.say(stage.why())
        raise
    played = play(stage, case)
    # One that failed is on record, too, and not left out of the count: it may be the product that failed.
    ledger.add(case, played)
    if played.failed:
        steps.say(f"{case.name}: FAILED: {played.failed}; double runs: {played.double_runs}")
        steps.say(stage.why())
    else:
        steps.say(f"{case.name}, {to_go} to go: {_brief(played)}")


def _replay(stage: Stage, case: Case, ledger: Ledger) -> None:
    """Of this case: journals are a bounded ring. Raises Failed when a replay says nothing that can be read."""
    journals = stage.story.journals
    before = journals.replayed or Replayed()
    with stage.steps.step(f"{case.name}: the engine's journal is replayed"):
        replayed = journals.replay() - before
    stage.steps.say(f"{case.name}, replay: {replayed}")
    ledger.add_replay(case, replayed)


def _brief(played: Round) -> str:
    told = dict(played.measured)
    if played.started_s:
        told["first_s"], told["last_s"] = played.started_s[0], played.started_s[-1]
    text = json.dumps({**told, **played.phases, "double": played.double_runs})
    return f"{text} {' '.join(played.orders)}"


if __name__ == "__main__":
    sys.exit(main())
