"""What a run of chaos came to: figures, a table, one line of JSON; and what is kept when it failed."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from virtha.engine.journal import FaultKind as JournalFault
from virtha.lab.api import Json
from virtha.lab.chaos_run import ChaosRun, Tally
from virtha.lab.lab import Lab
from virtha.lab.node import Node
from virtha.model.errors import Failed, VirthaError
from virtha.model.value import Value
from virtha.server.config import ServerPaths

REPLAY_S = 1_800
EVIDENCE_EVENTS = 2_000
_COUNTED = {
    "fences": "fence.began",
    "hosts_proven_dead": "host.proven_dead",
    "recoveries": "vm.recovered",
    "local_restarts": "vm.restarted",
    "hosts_isolated": "host.isolated",
    "vms_killed_for_their_lease": "host.lease.killed_vm",
}
"""Key -> the event that is counted for it."""
_WRONG = {"records_lost": "record lost", "vms_lost": "vm lost"}
"""Key -> ``Finding.what``."""


class Replayed(Value, frozen=True, kw_only=True):
    """Of all engines' journals."""

    turns: int = 0
    differ: int = 0
    cut: int = 0
    """Segments whose last record was cut short by a kill -9 of the server."""
    broken: tuple[str, ...] = ()

    @property
    def is_the_same(self) -> bool:
        return self.turns > 0 and not self.differ and not self.broken


def replay(made: Lab, out: Path) -> Replayed:
    """Each journal through the very program that wrote it. Raises Failed when that says nothing that can be read."""
    journals = ServerPaths(made.server.root).journals
    total = Replayed()
    for directory in sorted(journals.iterdir()):
        command = [sys.executable, "-m", "virtha.cli.main", "replay", str(directory), "-o", "json"]
        log = out / f"replay-{directory.name}.json"
        with log.open("wb") as sink:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=sink, timeout=REPLAY_S, check=False
            )
        total = add_replay(total, log, done.returncode)
    return total


def add_replay(total: Replayed, log: Path, code: int) -> Replayed:
    """``log``: what `virtha replay -o json` said, which ended with ``code``. Raises Failed when that can't be read."""
    try:
        segments = json.loads(log.read_bytes())["segments"]
    except (ValueError, KeyError) as error:
        raise Failed(
            f"virtha replay ended with {code}, and {log} can't be read: {error}"
        ) from error
    faults = [one for one in segments if one["fault"] is not None]
    cut = [one for one in faults if one["fault"]["kind"] == JournalFault.TRUNCATED.value]
    broken = [f"{one['file']}: {one['fault']}" for one in faults if one not in cut]
    broken += [f"{one['file']}: {one['failure']}" for one in segments if one["failure"]]
    return Replayed(
        turns=total.turns + sum(one["turns"] for one in segments),
        differ=total.differ + sum(one["differ"] for one in segments),
        cut=total.cut + len(cut),
        broken=(*total.broken, *broken),
    )


def figures(run: ChaosRun, replayed: Replayed) -> dict[str, Any]:
    tally = run.tally
    found = Counter(one.what for one in tally.findings)
    back = sorted(tally.back_s)
    return {
        "seed": run.options.seed,
        "minutes": round(tally.struck_s / 60, 1),
        "rounds": tally.rounds,
        "strikes": dict(sorted(tally.strikes.items())),
        "strikes_missed": tally.missed,
        **_events(run),
        "writes": run.writes.judge.writes,
        "records_acknowledged": run.records.acknowledged(),
        "violations": len(run.writes.violations),
        **{key: found.pop(what, 0) for key, what in _WRONG.items()},
        "other_findings": sum(found.values()) - found["violation"],
        "back_s_median": round(back[len(back) // 2], 1) if back else None,
        "back_s_worst": round(back[-1], 1) if back else None,
        "replayed_turns": replayed.turns,
        "replay_differs": replayed.differ + len(replayed.broken),
        "journals_cut": replayed.cut,
    }


def _events(run: ChaosRun) -> dict[str, int | None]:
    try:
        return {key: len(run.story.api.events(code=code)) for key, code in _COUNTED.items()}
    except VirthaError:
        return dict.fromkeys(_COUNTED)  # its server does not answer; that is a finding of its own


def holds(tally: Tally, replayed: Replayed) -> bool:
    return not tally.findings and tally.rounds > 0 and replayed.is_the_same


def show(told: dict[str, Any], tally: Tally) -> None:
    """The table for people; the JSON line comes last."""
    table = Table("FIGURE", "MEASURED", box=None)
    for key, value in told.items():
        if not isinstance(value, dict):
            table.add_row(key, "-" if value is None else str(value))
    for kind, number in told["strikes"].items():
        table.add_row(f"  {kind}", str(number))
    console = Console()
    console.print(table)
    for one in tally.findings:
        console.print(f"found: {one.what}: {one.detail}", markup=False)
    sys.stdout.write(f"{json.dumps({'chaos': told})}\n")
    sys.stdout.flush()


def keep_evidence(run: ChaosRun) -> Path:
    """What only living programs can say, before the lab goes; its files stay besides. Never raises VirthaError."""
    path = run.options.out / "evidence.json"
    kept: Json = {"findings": [f"{one.what}: {one.detail}" for one in run.tally.findings]}
    for name in run.scene.vms:
        kept[f"vm {name}"] = _asked(partial(run.story.api.vm, name))
        kept[f"copies of {name}"] = _asked(partial(run.lab.copies_of, name))
    for host in run.lab.hosts:
        kept[f"host {host.name}"] = _asked(partial(run.story.api.get, f"/v1/hosts/{host.name}"))
        kept[f"domains of {host.name}"] = _asked(partial(_domains, host))
    kept["events"] = _asked(lambda: run.story.api.events()[-EVIDENCE_EVENTS:])
    path.write_text(json.dumps(kept, indent=1, default=str))
    return path


def _domains(host: Node) -> list[str]:
    return host.run(["virsh", "list", "--all"], timeout_s=20).stdout.splitlines()


def _asked(question: Callable[[], object]) -> object:
    try:
        return question()
    except (VirthaError, OSError) as error:
        return f"no answer: {error}"
