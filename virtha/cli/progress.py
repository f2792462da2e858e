"""Waiting for operations: their steps on stderr, a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any, Protocol

import typer

from virtha.cli.client import Client
from virtha.cli.options import Options, options
from virtha.cli.output import note, stderr_console, write_data
from virtha.cli.text import clean
from virtha.model.codes import REGISTRY, render
from virtha.model.errors import Failed, Refused, Unavailable, VirthaError
from virtha.model.time import parse_duration_ms, parse_utc

POLL_MS = 1_000
"""One long poll: short enough that steps show while they run."""
RETRY_S = 0.5
_OVER = ("done", "failed", "cancelled")


class _Display(Protocol):
    def update(self, operation: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class _Silent:
    def update(self, operation: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """Each step's change is one line, once: what a log wants to see."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}

    def update(self, operation: dict[str, Any]) -> None:
        for number, step in enumerate(operation.get("steps") or ()):
            if step["state"] != "pending" and self._seen.get(number) != step["state"]:
                self._seen[number] = step["state"]
                detail = f" ({step['detail']})" if step.get("detail") else ""
                typer.echo(clean(f"{step['name']}: {step['state']}{detail}"), err=True)

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=stderr_console(),
            transient=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=100)

    def update(self, operation: dict[str, Any]) -> None:
        steps = operation.get("steps") or ()
        running = [step["name"] for step in steps if step["state"] == "running"]
        text = clean(running[0] if running else operation["kind"])
        self._progress.update(
            self._task,
            description=text,
            completed=operation.get("progress") or 0,
            refresh=True,  # a step may be over before the next round of drawing
        )

    def close(self) -> None:
        self._progress.stop()


def _display(given: Options) -> _Display:
    if given.quiet:
        return _Silent()
    return _Bar() if sys.stderr.isatty() else _Lines()


def wait_for(client: Client, given: Options, operation: dict[str, Any], timeout: str) -> Any:
    """Follow ``operation`` to its end and return it then, whatever the end is.

    A server that restarts meanwhile is waited for: operations outlive it. Raises Unavailable when
    ``timeout`` (as people write durations) is over; the operation goes on.
    """
    deadline = time.monotonic() + parse_duration_ms(timeout, field="--timeout") / 1_000
    display = _display(given)
    trouble: Unavailable | None = None
    try:
        display.update(operation)
        while operation["state"] not in _OVER:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                why = f"; last: {trouble}" if trouble else ""
                raise Unavailable(
                    f"{operation['kind']} is not over after {timeout}{why}",
                    field="--timeout",
                    fix=f"it goes on; wait more: virtha operation wait {operation['id']}",
                )
            wait_ms = max(1, min(POLL_MS, int(left_s * 1_000)))
            try:
                operation = client.get(f"/v1/operations/{operation['id']}", wait_ms=wait_ms)
                trouble = None
            except Unavailable as exc:
                trouble = exc
                time.sleep(min(RETRY_S, max(0.0, left_s)))
                continue
            display.update(operation)
    except KeyboardInterrupt:
        note(given, f"it goes on all the same; see: virtha operation wait {operation['id']}")
        raise
    finally:
        display.close()
    return operation


def failure_of(operation: dict[str, Any]) -> VirthaError | None:
    """The error that an operation ended with; None when it is done."""
    if operation["state"] == "done":
        return None
    code = operation.get("code") or "problem.failed"
    fields = operation.get("fields") or {}
    text = operation.get("message") or render(code, fields)
    known = REGISTRY.get(code)
    refused = any(word in code.split(".") for word in ("refused", "blocked", "unfit"))
    refused = refused or code in ("problem.no_host_fits", "problem.vm.state")
    kind = Refused if refused else Failed
    return kind(
        f"{operation['kind']} {operation['state']}: {text}",
        code=code,
        fix=known.help if known else "",
    )


def finish(
    ctx: typer.Context,
    client: Client,
    operation: dict[str, Any],
    done: str,
    *,
    wait: bool,
    timeout: str,
) -> dict[str, Any]:
    """The end of a command that started an operation: wait if asked to, then print.

    JSON and YAML print the operation, also when it failed. Raises what it failed with.
    """
    given = options(ctx)
    if not wait and operation["state"] not in _OVER:
        if not write_data(given, operation) and not given.quiet:
            typer.echo(operation["id"])
            note(
                given, f"{operation['kind']} started; see: virtha operation wait {operation['id']}"
            )
        return operation
    operation = wait_for(client, given, operation, timeout)
    if error := failure_of(operation):
        write_data(given, operation)
        raise error
    if not write_data(given, operation) and not given.quiet:
        typer.echo(clean(done) + _took(operation))
    return operation


def _took(operation: dict[str, Any]) -> str:
    created, ended = operation.get("created"), operation.get("ended")
    if not created or not ended:
        return ""
    taken_ms = parse_utc(ended, field="ended") - parse_utc(created, field="created")
    return f" ({taken_ms / 1_000:.1f} s)"
