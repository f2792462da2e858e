"""The figures of all rounds, and a table that says where the seconds go."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from report import Figure, at_least, at_most, quantile, shown
from rich.table import Table

from host_failures.cases import FLOOR, POWER_SEEN_FAST, RECOVERS, Case, Fault
from host_failures.played import Round
from virtha.lab.journals import Replayed

Rounds = Mapping[Case, Sequence[Round]]
SHOWN_S = 5.0
LAST_AFTER_FIRST_S = 5.0
PHASES = ("detect", "prove", "fence", "start")


def figures(played: Rounds, single: Sequence[Round]) -> dict[str, Figure]:
    """Of the cases that have rounds. ``first``: of the VMs on the dead host the one that ran first; with one VM, that one.
    ``single``: rounds of POWER_SEEN_FAST, whether or not it is among the cases."""
    found: dict[str, Figure] = {}
    floor_s = _floor(found, [one for one in played.get(FLOOR, ()) if not one.failed])
    for case, rounds in played.items():
        whole = [one for one in rounds if not one.failed]
        if case.fault in (*RECOVERS, Fault.QEMU_KILLED) and whole:
            _recovery(found, case, whole, floor_s if case.fault in RECOVERS else None)
        if case.vms > 1 and whole:
            _many(found, case, whole, single)
        if case.libvirtd_hangs and whole:
            _hung_target(found, case, whole)
        if case.fault in _QUIET and whole:
            _QUIET[case.fault](found, case, whole)
        if case is not FLOOR:
            found[f"{case.name}_runs"] = at_least(
                case.rounds, len(rounds), "", "failed ones included"
            )
            found[f"{case.name}_failed"] = at_most(0, len(rounds) - len(whole), "")
    every = [one for case, rounds in played.items() if case is not FLOOR for one in rounds]
    if every:
        twice = sum(one.double_runs or 0 for one in every)
        found["double_runs"] = at_most(0, twice, "", f"in {len(every)} runs, from outside")
        unseen = sum(one.double_runs is None for one in every)
        found["double_runs_unseen"] = at_most(0, unseen, "", "runs of which nobody can say that")
        suspected = sum(one.suspected for one in every)
        found["false_suspicions"] = at_most(0, suspected, "", "of hosts that nothing was done to")
    return found


def replay_figures(
    replays: Mapping[Case, Sequence[Replayed]], not_replayed: Mapping[Case, int]
) -> dict[str, Figure]:
    """Of the engine's journals, case by case. ``not_replayed``: rounds whose journal went with the lab of a run that was killed."""
    every = [one for replayed in replays.values() for one in replayed]
    turns = sum(one.turns for one in every)
    wrong = sum(not one.is_the_same for one in every)
    left = [f"{case.name}: {number}" for case, number in not_replayed.items() if number]
    return {
        "replayed_turns": at_least(1, turns, "", "of the engine's journals"),
        "replays_that_differ": at_most(0, wrong, "", f"of {len(every)}, one after each case"),
        "rounds_not_replayed": at_most(0, sum(not_replayed.values()), "", ", ".join(left)),
    }


def _floor(found: dict[str, Figure], rounds: Sequence[Round]) -> float | None:
    if not rounds:
        return None
    names = {
        "status_s": "one BMC status",
        "off_s": "one off with read-back",
        "start_s": "`virsh start`",
    }
    parts = {name: quantile([one.measured[name] for one in rounds], 0.5) for name in names}
    for name, what in names.items():
        found[f"floor_{name.removesuffix('_s')}_p50_s"] = shown(parts[name], "s", what)
    floor_s = sum(parts.values())
    found["floor_s"] = shown(floor_s, "s", "the sum: nobody can be quicker")
    return floor_s


def _recovery(
    found: dict[str, Figure], case: Case, rounds: Sequence[Round], floor_s: float | None
) -> None:
    firsts = [one.started_s[0] for one in rounds]
    p50_s, worst_s = quantile(firsts, 0.5), max(firsts)
    found[f"{case.name}_p50_s"] = _against(case.p50_s, p50_s, case.what)
    found[f"{case.name}_p95_s"] = shown(quantile(firsts, 0.95), "s")
    found[f"{case.name}_worst_s"] = _against(case.worst_s, worst_s, "")
    later = [one.resumed_s[0] - one.started_s[0] for one in rounds]
    found[f"{case.name}_runs_later_s"] = shown(
        max(later), "s", "its processors run, at most so much later"
    )
    if floor_s is not None:
        found[f"{case.name}_ratio"] = shown(p50_s / floor_s, "x", "median over the floor")


def _against(target: float | None, value: float, note: str) -> Figure:
    return shown(value, "s", note) if target is None else at_most(target, value, "s", note)


def _many(
    found: dict[str, Figure], case: Case, rounds: Sequence[Round], single: Sequence[Round]
) -> None:
    """As fast as a single one: the median of the firsts lies within what a single one takes (its p95)."""
    first_s = quantile([one.started_s[0] for one in rounds], 0.5)
    alone = [one.started_s[0] for one in single if not one.failed]
    note = "median of the firsts; a single one's p95"
    if not alone:
        note = f"nothing to compare it with: CASE={POWER_SEEN_FAST.name},{case.name}"
    limit_s = quantile(alone, 0.95) if alone else 0.0
    found[f"{case.name}_first_p50_s"] = at_most(limit_s, first_s, "s", note)
    middle = quantile([median(one.started_s) for one in rounds], 0.5)
    found[f"{case.name}_median_p50_s"] = shown(middle, "s", "median VM, median of all runs")
    last_s = quantile([one.started_s[-1] for one in rounds], 0.5)
    found[f"{case.name}_last_p50_s"] = shown(last_s, "s", "last VM, median of all runs")
    behind = max(one.started_s[-1] - one.started_s[0] for one in rounds)
    note = "last after first, worst"
    again = sum(one.started_again for one in rounds)
    found[f"{case.name}_started_again"] = shown(
        again, "", "starts that were taken back, of all runs"
    )
    wanted = LAST_AFTER_FIRST_S if case.vms == 16 else None
    found[f"{case.name}_last_after_first_s"] = _against(wanted, behind, note)


def _hung_target(found: dict[str, Figure], case: Case, rounds: Sequence[Round]) -> None:
    recovery = case.checked_policy.recovery
    grant_s = (recovery.start_deadline_ms + recovery.grant_margin_ms) / 1_000
    firsts = [one.started_s[0] for one in rounds]
    assert POWER_SEEN_FAST.p50_s is not None and POWER_SEEN_FAST.worst_s is not None
    note = f"as {POWER_SEEN_FAST.name}, and a grant of {grant_s:g} s"
    limit = POWER_SEEN_FAST.p50_s + grant_s
    found[f"{case.name}_p50_s"] = at_most(limit, quantile(firsts, 0.5), "s", note)
    limit = POWER_SEEN_FAST.worst_s + grant_s
    found[f"{case.name}_worst_s"] = at_most(limit, max(firsts), "s", note)


def _sum(rounds: Sequence[Round], name: str) -> float:
    return sum(one.measured[name] for one in rounds)


def _network_cut(found: dict[str, Figure], case: Case, rounds: Sequence[Round]) -> None:
    isolated = [one.measured["isolated_s"] for one in rounds]
    found["network_cut_isolated_p50_s"] = shown(quantile(isolated, 0.5), "s", "until it is shown")
    found["network_cut_isolated_p95_s"] = shown(quantile(isolated, 0.95), "s")
    found["network_cut_isolated_worst_s"] = at_most(SHOWN_S, max(isolated), "s")
    found["network_cut_fences"] = at_most(0, _sum(rounds, "fences"), "")
    starts = _sum(rounds, "starts") + _sum(rounds, "recoveries")
    found["network_cut_starts"] = at_most(0, starts, "", "ordered, and by libvirt on any host")
    writes = min(one.measured["writes"] for one in rounds)
    found["network_cut_writes_seen"] = at_least(
        1, writes, "", "per run, the least: disks are written"
    )


def _agent_killed(found: dict[str, Figure], case: Case, rounds: Sequence[Round]) -> None:
    down = [one.measured["shown_s"] for one in rounds]
    found["agent_killed_shown_p50_s"] = shown(
        quantile(down, 0.5), "s", "until `agent down` is shown"
    )
    found["agent_killed_shown_p95_s"] = shown(quantile(down, 0.95), "s")
    found["agent_killed_shown_worst_s"] = shown(max(down), "s")
    back = [one.measured["back_s"] for one in rounds]
    found["agent_killed_back_p50_s"] = shown(quantile(back, 0.5), "s", "from its restart")
    found["agent_killed_back_p95_s"] = shown(quantile(back, 0.95), "s")
    found["agent_killed_back_worst_s"] = at_most(SHOWN_S, max(back), "s")
    touched = _sum(rounds, "touched")
    found["agent_killed_actions"] = at_most(0, touched, "", "events of VMs, orders to BMCs")


_QUIET: dict[Fault, Callable[[dict[str, Figure], Case, Sequence[Round]], None]] = {
    Fault.NETWORK_CUT: _network_cut,
    Fault.AGENT_KILLED: _agent_killed,
}


def phase_table(played: Rounds) -> Table:
    """Medians of what the server itself measured; from the last sign of life, which comes before the fault."""
    table = Table(title="where the seconds go (medians, from incidents)", title_justify="left")
    table.add_column("case")
    for column in ("runs", *PHASES, "from outside"):
        table.add_column(column, justify="right")
    for case, rounds in played.items():
        whole = [one for one in rounds if one.phases and not one.failed]
        if not whole:
            continue
        cells = []
        for phase in PHASES:
            took = [one.phases[phase] for one in whole if phase in one.phases]
            cells.append(f"{quantile(took, 0.5) / 1_000:.2f} s" if took else "")
        outside = quantile([one.started_s[0] for one in whole], 0.5)
        table.add_row(case.name, str(len(whole)), *cells, f"{outside:.2f} s")
    return table
