"""How results are shown: tables for people, tab-separated text in pipes, JSON and YAML as the API's.

Results go to stdout, everything else (progress, questions, notes) to stderr.
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import typer
import yaml

from virtha.cli.options import Options, Output
from virtha.cli.text import clean
from virtha.model.size import format_size

Object = dict[str, Any]


class Column(NamedTuple):
    """``value`` reads one cell out of an API object; ``wide`` columns show with `-o wide` only."""

    title: str
    value: Callable[[Object], Any]
    wide: bool = False


class View(NamedTuple):
    """How one kind of API object is shown in lists (``columns``) and alone (``details``)."""

    name: Callable[[Object], str]
    columns: tuple[Column, ...]
    details: Callable[[Object], list[tuple[str, Any]]] | None = None

    def lines(self, item: Object) -> list[tuple[str, Any]]:
        if self.details is not None:
            return self.details(item)
        return [(column.title, column.value(item)) for column in self.columns]


def at(*path: str) -> Callable[[Object], Any]:
    """A reader of a nested field; None where a part is missing."""

    def read(item: Object) -> Any:
        found: Any = item
        for part in path:
            found = found.get(part) if isinstance(found, dict) else None
        return found

    return read


def size(value: Any) -> str:
    return "" if value is None else format_size(int(value))


def moment(value: Any) -> str:
    """The API's `2026-01-31T12:00:00.123Z` for people: `2026-01-31 12:00:00Z`."""
    day, _, clock = ("" if value is None else str(value)).partition("T")
    return f"{day} {clock.partition('.')[0].rstrip('Z')}Z" if clock else day


def chosen_output(given: Options) -> Output | None:
    """The format; None means the plain text that pipes get when nothing was asked for."""
    if given.output is not None:
        return given.output
    return Output.TABLE if sys.stdout.isatty() else None


def write_data(given: Options, data: Any) -> bool:
    """Print ``data`` as JSON or YAML when that was asked for, exactly as the API sent it."""
    match given.output:
        case Output.JSON:
            typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        case Output.YAML:
            typer.echo(
                yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=False),
                nl=False,
            )
        case _:
            return False
    return True


def emit_list(given: Options, items: Sequence[Object], view: View) -> None:
    if write_data(given, list(items)):
        return
    if given.quiet:
        for item in items:
            typer.echo(clean(view.name(item)))
        return
    output = chosen_output(given)
    columns = [c for c in view.columns if not c.wide or output is Output.WIDE]
    rows = [[clean(column.value(item)) for column in columns] for item in items]
    print_table([column.title for column in columns], rows, plain=output is None)


def emit_one(given: Options, item: Object, view: View) -> None:
    if write_data(given, item) or given.quiet:
        return
    pairs = [(label, clean(value)) for label, value in view.lines(item)]
    if chosen_output(given) is None:
        for label, value in pairs:
            typer.echo(f"{label}\t{value}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in pairs:
        table.add_row(Text(label, style="bold"), styled(value))
    stdout_console().print(table)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, plain: bool) -> None:
    """``plain``: a header and one line per row, tab-separated."""
    if plain:
        for row in (titles, *rows):
            typer.echo("\t".join(row))
        return
    stdout_console().print(make_table(titles, rows))


def make_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*(styled(cell) for cell in row))
    return table


_STYLES = {
    "green": ("running", "up", "done", "protected", "ok", "yes"),
    "yellow": ("warning", "paused", "starting", "stopping", "agent_down", "pending", "on hold"),
    "red": ("error", "alert", "failed", "unreachable", "crashed", "unknown", "not protected"),
}
_STYLE_OF = {word: style for style, words in _STYLES.items() for word in words}


def styled(cell: str) -> Any:
    """Never markup: what a name contains is shown, not obeyed."""
    from rich.text import Text

    return Text(cell, style=_STYLE_OF.get(cell, ""))


def stdout_console() -> Any:
    from rich.console import Console

    # `-o table` into a file: as wide as it needs to be, no cut at an imagined terminal's edge.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 2_000)


def stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(given: Options, text: str) -> None:
    """A word to the person at the keyboard: stderr, and not when --quiet."""
    if not given.quiet:
        typer.echo(clean(text), err=True)
