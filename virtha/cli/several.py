"""One verb over several names: each is tried, each failure is told, the first decides the exit code."""

from collections.abc import Callable, Sequence

import typer

from virtha.cli.text import describe
from virtha.model.errors import Forbidden, Unauthenticated, Unavailable, VirthaError


def each(names: Sequence[str], act: Callable[[str], None]) -> None:
    if len(names) == 1:
        act(names[0])
        return
    first: VirthaError | None = None
    for name in names:
        try:
            act(name)
        except (Unavailable, Unauthenticated, Forbidden):
            # The rest would fail the same way, each after its own time-out.
            raise
        except VirthaError as error:
            typer.echo(f"{name}: {describe(error)}", err=True)
            first = first or error
    if first is not None:
        raise typer.Exit(first.exit_code)
