"""What a run of chaos came to: figures, a table, one line of JSON; and what is kept when it failed."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from virtha.lab.api import Json
from virtha.lab.chaos_run import STRAY, VIOLATION, ChaosRun, Tally
from virtha.lab.journals import Replayed
from virtha.lab.node import Node
from virtha.lab.write_judge import Violation
from virtha.model.errors import VirthaError

EVIDENCE_EVENTS = 2_000
FIGURES = "figures.json"
VIOLATED = 20
"""Exit code of a run in which a superseded copy wrote: what a run that is to prove the oracle must end with. No error of virtha's
own ends with it, nor with the next one."""
STRAY_WRITE = 21
"""Of one in which somebody wrote who is no copy that the witness knows: perhaps the witness is wrong."""
_COUNTED = {
    "fences": "fence.began",
    "hosts_proven_dead": "host.proven_dead",
    "recoveries": "vm.recovered",
    "vms_quarantined": "vm.quarantined",
    "local_restarts": "vm.restarted",
    "hosts_isolated": "host.isolated",
    "vms_killed_for_their_lease": "host.lease.killed_vm",
}
"""Key -> the event that is counted for it."""
_WRONG = {"records_lost": "record lost", "vms_lost": "vm lost"}
"""Key -> ``Finding.what``."""


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
        "violations": sum(one.newer is not None for one in run.writes.violations),
        "stray_writes": sum(one.newer is None for one in run.writes.violations),
        "violated_after_s": violated_after_s(tally.struck_at_ms, run.writes.violations),
        **{key: found.pop(what, 0) for key, what in _WRONG.items()},
        "other_findings": sum(found.values()) - found[VIOLATION] - found[STRAY],
        "back_s_median": round(back[len(back) // 2], 1) if back else None,
        "back_s_worst": round(back[-1], 1) if back else None,
        "replayed_turns": replayed.turns,
        "replay_differs": replayed.differ + len(replayed.broken),
        "journals_cut": replayed.cut,
        "journals_gone_unread": replayed.gone,
    }


def violated_after_s(struck_at_ms: Sequence[int], violations: Sequence[Violation]) -> float | None:
    """From the first strike to the first write of a superseded copy, on the machine's own clock; None: there was none."""
    written_ms = [one.write.at_ms for one in violations if one.newer is not None]
    if not written_ms or not struck_at_ms:
        return None
    return round((min(written_ms) - min(struck_at_ms)) / 1_000, 1)


def _events(run: ChaosRun) -> dict[str, int | None]:
    try:
        return {key: len(run.story.api.events(code=code)) for key, code in _COUNTED.items()}
    except VirthaError:
        return dict.fromkeys(_COUNTED)  # its server does not answer; that is a finding of its own


def holds(tally: Tally, replayed: Replayed) -> bool:
    return not tally.findings and tally.rounds > 0 and replayed.is_the_same


def exit_code(tally: Tally, replayed: Replayed) -> int:
    found = {one.what for one in tally.findings}
    if VIOLATION in found:
        return VIOLATED
    if STRAY in found:
        return STRAY_WRITE
    return 0 if holds(tally, replayed) else 1


def show(told: dict[str, Any], tally: Tally, path: Path) -> None:
    """The table for people; the JSON line comes last, and is in the file as well."""
    path.write_text(json.dumps({"chaos": told}))
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
