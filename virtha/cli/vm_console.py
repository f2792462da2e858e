"""`virtha vm console-log` and `virtha vm screenshot`: what a VM shows."""

import re
import sys
import time
from pathlib import Path
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import note, write_data
from virtha.cli.session import connected
from virtha.cli.text import clean
from virtha.model.console import LOG_LINES_MAX
from virtha.model.errors import Failed, InvalidInput, Unavailable

TAIL = 1_000
WAIT_MS = 10_000
AGAIN_S = 1.0
"""At least between two questions: a guest that writes all the time must not keep the server busy."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def console_log(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="VM", help="Name or id."),
    tail: int = typer.Option(TAIL, "--tail", "-n", min=1, help="The newest so many lines."),
    grep: str | None = typer.Option(
        None, metavar="PATTERN", help="Only lines in which this regular expression is found."
    ),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes."),
    raw: bool = typer.Option(False, "--raw", help="With the guest's escape sequences."),
) -> None:
    """What a VM wrote to its serial port.

    All hosts that have some of it are asked; each keeps about 8 MiB. --grep looks through all that the hosts send (4 MiB each).
    """
    pattern = _pattern(grep)
    if tail > LOG_LINES_MAX:
        raise InvalidInput(
            f"{tail} is too much", field="--tail", allowed=(f"up to {LOG_LINES_MAX}",)
        )
    # The pattern is tried here: a host must not compute whatever somebody thinks up.
    asked = LOG_LINES_MAX if pattern is not None else tail
    path = f"/v1/vms/{ref(name, field='VM')}/console-log"
    given = options(ctx)
    with connected(ctx) as client:
        log = client.get(path, lines=asked)
        for lost in log["missing"]:
            note(given, f"not asked: host {lost['host']}: {lost['reason']}")
        if given.output is not None:
            write_data(given, log)
            return
        shown = [(part, _lines(part["text"], pattern)) for part in log["parts"]]
        left = tail
        for index in range(len(shown) - 1, -1, -1):
            part, lines = shown[index]
            lines = lines[-left:] if left else []
            left -= len(lines)
            shown[index] = (part, lines)
        for part, lines in shown:
            if len(shown) > 1 and lines:
                note(given, f"host {part['host']}, written until {part['written_at']}:")
            _write(lines, raw=raw)
        if follow:
            _follow(client, path, log["parts"], pattern, raw=raw)


def _follow(
    client: Client, path: str, parts: list[Any], pattern: re.Pattern[str] | None, *, raw: bool
) -> None:
    after = parts[-1]["end"] if parts else None
    pending = ""
    try:
        while True:
            began = time.monotonic()
            try:
                log = client.call(
                    "GET",
                    path,
                    params={
                        "lines": LOG_LINES_MAX,
                        "after": after,
                        "wait_ms": WAIT_MS if after else None,
                    },
                    answer_s=60.0,
                ).body
            except Unavailable:
                log = {"parts": []}  # the server restarts, or the host is away: it may come back
            for part in log["parts"]:
                after = part["end"]
                # A line may come in pieces, and a pattern is for whole ones.
                text = pending + part["text"]
                whole, feed, pending = text.rpartition("\n")
                _write(_lines(whole + feed, pattern), raw=raw)
            time.sleep(max(0.0, AGAIN_S - (time.monotonic() - began)))
    except KeyboardInterrupt:
        # That is how following ends; nothing went wrong.
        raise typer.Exit(0) from None


def screenshot(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="VM", help="Name or id."),
    file: Path | None = typer.Option(
        None, "-o", "--file", help="Where to. Default: NAME.png here; - is standard output."
    ),
) -> None:
    """Save what a VM's screen shows, as PNG."""
    with connected(ctx) as client:
        picture = client.get_bytes(f"/v1/vms/{ref(name, field='VM')}/screenshot")
    if str(file) == "-":
        sys.stdout.buffer.write(picture)
        return
    target = file or Path(f"{ref(name, field='VM')}.png")
    try:
        target.write_bytes(picture)
    except OSError as exc:
        raise Failed(f"can't write {target}: {exc.strerror}", field="--file") from exc
    note(options(ctx), f"wrote {target}, {len(picture)} bytes")


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as exc:
        raise InvalidInput(
            f"'{text}' is no regular expression: {exc}",
            field="--grep",
            fix="put a backslash before signs that have a meaning, such as [ ( * + ?",
        ) from exc


def _lines(text: str, pattern: re.Pattern[str] | None) -> list[str]:
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if pattern is None:
        return lines
    return [line for line in lines if pattern.search(_ESCAPES.sub("", line))]


def _write(lines: list[str], *, raw: bool) -> None:
    for line in lines:
        # A guest's escape sequences would drive the reader's terminal.
        typer.echo(line if raw else clean(_ESCAPES.sub("", line.rstrip("\r"))))
