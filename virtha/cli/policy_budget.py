"""A policy's time budget as people and programs read it."""

from typing import Any

import typer

from virtha.cli.options import Options
from virtha.cli.output import chosen_output, note, print_table, write_data
from virtha.model.policy import Policy
from virtha.model.policy.budget import Budget, BudgetStep, WayBudget, budget
from virtha.model.policy.names import shown_path
from virtha.model.time import format_duration_ms

NOT_COUNTED = (
    "Typical is the median to expect; worst is when every answer comes at its deadline. Not counted: "
    "waiting behind other VMs at the start limits, caps, brakes and quiet times, and storage that "
    "stalls."
)


def budget_data(name: str, sums: Budget) -> dict[str, Any]:
    """For programs: milliseconds."""
    return {
        "policy": name,
        "ways": [
            {
                "way": way.way.value,
                "meaning": way.meaning,
                "blocked": way.blocked,
                "typical_ms": way.typical_ms,
                "worst_ms": way.worst_ms,
                "steps": [
                    {
                        "name": step.name,
                        "typical_ms": step.typical_ms,
                        "worst_ms": step.worst_ms,
                        "meaning": step.meaning,
                        "settings": [shown_path(path) for path in step.settings],
                    }
                    for step in way.steps
                ],
            }
            for way in sums.ways
        ],
    }


def show_budget(given: Options, name: str, policy: Policy) -> None:
    sums = budget(policy)
    if write_data(given, budget_data(name, sums)):
        return
    if given.quiet:
        for way in sums.ways:
            typer.echo(f"{way.way.value}\t{way.typical_ms}\t{way.worst_ms}")
        return
    plain = chosen_output(given) is None
    if plain:
        rows = [
            [way.way.value, *cells] for way in sums.ways for cells in (*_rows(way), _total(way))
        ]
        print_table(("way", "step", "typical", "worst", "why", "settings"), rows, plain=True)
        return
    typer.echo(f"Time budget of {name}: from the failure until the VM runs elsewhere")
    for way in sums.ways:
        typer.echo(f"\n{way.meaning}")
        titles = ("step", "typical", "worst", "why", "settings")
        print_table(titles, [*_rows(way), _total(way)], plain=False)
    typer.echo(f"\n{NOT_COUNTED}")


def _rows(way: WayBudget) -> list[list[str]]:
    return [_row(step) for step in way.steps if step.worst_ms]


def _row(step: BudgetStep) -> list[str]:
    times = (format_duration_ms(step.typical_ms), format_duration_ms(step.worst_ms))
    return [step.name, *times, step.meaning, ", ".join(shown_path(path) for path in step.settings)]


def _total(way: WayBudget) -> list[str]:
    if way.blocked:
        return ["sum", "never", "never", f"Its VMs wait for a person: {way.blocked}.", ""]
    return ["sum", format_duration_ms(way.typical_ms), format_duration_ms(way.worst_ms), "", ""]


def show_sums(given: Options, before: Policy, after: Policy) -> None:
    """What a change does to the sums, one line per way that it touches (X6)."""
    old = budget(before)
    for way in budget(after).ways:
        was = old.of(way.way)
        if was == way:
            continue
        note(given, f"{way.meaning} {_range(was)} -> {_range(way)}")


def _range(way: WayBudget) -> str:
    if way.blocked:
        return f"never ({way.blocked})"
    return f"{format_duration_ms(way.typical_ms)}, at worst {format_duration_ms(way.worst_ms)}"
