"""What nearly every command does: connect, fetch, show, watch, wait for an operation."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from virtha.cli.client import Client, find_target
from virtha.cli.options import Options, Output, options
from virtha.cli.output import View, chosen_output, emit_list, emit_one, write_data
from virtha.model.errors import InvalidInput, Unavailable
from virtha.model.time import parse_duration_ms
from virtha.search.lexer import check_length

WATCH_S = 1.0

WatchOption = typer.Option(False, "--watch", "-w", help="Show again at every change, until Ctrl-C.")
SearchOption = typer.Option(
    None,
    "--search",
    metavar="TEXT",
    help="Only what this search finds, for example 'status = up and name = web*'.",
)
IgnoreCaseOption = typer.Option(
    False, "--ignore-case", help="With --search: either case of a letter will do."
)
WaitOption = typer.Option(
    True, "--wait/--no-wait", help="Wait until it is done, showing its steps."
)


def search_params(search: str | None, *, ignore_case: bool) -> dict[str, Any]:
    """Of a list's request."""
    if search is None and ignore_case:
        raise InvalidInput("goes with --search only", field="--ignore-case", fix="leave it out")
    if search is not None:
        check_length(search)
    return {"search": search, "case_sensitive": False if ignore_case else None}


def _check_timeout(text: str) -> str:
    """Before anything is asked of the server: a typing mistake must not surface when it is done."""
    parse_duration_ms(text, field="--timeout")
    return text


TimeoutOption = typer.Option(
    "10m",
    "--timeout",
    metavar="TIME",
    help="How long to wait for the end, for example 90s.",
    callback=_check_timeout,
)
YesOption = typer.Option(False, "--yes", "-y", help="Don't ask.")


@contextmanager
def connected(ctx: typer.Context) -> Iterator[Client]:
    with Client(find_target(options(ctx))) as client:
        yield client


def show_list(
    ctx: typer.Context, fetch: Callable[[Client], list[Any]], view: View, *, watch: bool = False
) -> None:
    show(ctx, fetch, lambda given, items: emit_list(given, items, view), watch=watch)


def show_one(
    ctx: typer.Context, fetch: Callable[[Client], Any], view: View, *, watch: bool = False
) -> None:
    show(ctx, fetch, lambda given, item: emit_one(given, item, view), watch=watch)


def show(
    ctx: typer.Context,
    fetch: Callable[[Client], Any],
    write: Callable[[Options, Any], None],
    *,
    watch: bool,
) -> None:
    given = options(ctx)
    with connected(ctx) as client:
        if not watch:
            write(given, fetch(client))
            return
        try:
            _watch(client, given, fetch, write)
        except KeyboardInterrupt:
            # That is how watching ends; nothing went wrong.
            raise typer.Exit(0) from None


def _watch(
    client: Client,
    given: Options,
    fetch: Callable[[Client], Any],
    write: Callable[[Options, Any], None],
) -> None:
    """Until Ctrl-C. On a terminal the screen is redrawn and a lost server is waited for, with a
    line that says so; in a pipe each change is written once, and a lost server ends it."""
    screen = sys.stdout.isatty() and chosen_output(given) in (Output.TABLE, Output.WIDE)
    shown: Any = None
    first = True
    while True:
        trouble = ""
        try:
            data = fetch(client)
        except Unavailable as exc:
            if not screen or first:
                raise
            data, trouble = shown, str(exc)
        if first or trouble or data != shown or screen:
            if screen:
                # Home, clear: one write per round would flicker less than a full-screen program.
                typer.echo("\x1b[H\x1b[2J\x1b[3J", nl=False)
            write(given, data)
            if trouble:
                typer.echo(f"(not up to date: {trouble})", err=True)
            sys.stdout.flush()
        shown, first = data, False
        time.sleep(WATCH_S)


def read_secret(prompt: str, *, from_stdin: bool, twice: bool = False) -> str:
    """A password: from stdin's first line, or asked for without echo. Raises InvalidInput."""
    if from_stdin:
        secret = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        secret = str(typer.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True))
    else:
        raise InvalidInput(
            "a password is needed and nobody is here to type it",
            field="--password-stdin",
            fix="give --password-stdin and pipe it in",
        )
    if not secret:
        raise InvalidInput("the password is empty", field="--password-stdin", fix="pipe one line")
    return secret


def report(ctx: typer.Context, data: Any, text: str) -> None:
    """The end of a command that changed something: the API's object, or one line about it."""
    given = options(ctx)
    if write_data(given, data) or given.quiet:
        return
    typer.echo(text)
