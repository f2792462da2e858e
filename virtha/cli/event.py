"""`virtha event`: the audit log, as a list or live."""

import json
import sys
import time
from typing import Any

import typer

from virtha.cli.client import Client
from virtha.cli.options import Options, Output, options
from virtha.cli.output import emit_list, note, styled
from virtha.cli.session import IgnoreCaseOption, SearchOption, connected, search_params
from virtha.cli.text import clean
from virtha.cli.views import EVENT, event_line
from virtha.model.codes import Severity
from virtha.model.errors import Failed, InvalidInput, Unavailable
from virtha.model.time import parse_duration_ms

app = typer.Typer(no_args_is_help=True, help="The audit log.")

RETRY_S = 0.5
RETRY_S_MAX = 10.0

VmOption = typer.Option(None, "--vm", help="Only of this VM.")
HostOption = typer.Option(None, "--host", help="Only of this host.")
CodeOption = typer.Option(None, "--code", help="Only this code; vm.watchdog.* takes all below.")
SeverityOption = typer.Option(None, "--severity", help="Only this severe or worse.")


@app.command("list")
def list_events(
    ctx: typer.Context,
    vm: str | None = VmOption,
    host: str | None = HostOption,
    code: str | None = CodeOption,
    severity: Severity | None = SeverityOption,
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
    limit: int = typer.Option(100, min=1, help="The newest so many."),
    after: int | None = typer.Option(None, help="Those above this revision, from the oldest on."),
) -> None:
    """The newest events, oldest first.

    Those that a search finds come in its order, newest first unless it says another.
    """
    wanted = search_params(search, ignore_case=ignore_case)
    order = "desc" if after is None else "asc"
    with connected(ctx) as client:
        found = client.items(
            "/v1/events",
            **wanted,
            vm=vm,
            host=host,
            code=code,
            severity=severity,
            after=after,
            order=order,
            limit=limit,
        )
    turned = after is None and search is None
    emit_list(options(ctx), found[::-1] if turned else found, EVENT)


@app.command("follow")
def follow(
    ctx: typer.Context,
    vm: str | None = VmOption,
    host: str | None = HostOption,
    code: str | None = CodeOption,
    severity: Severity | None = SeverityOption,
    after: int | None = typer.Option(None, help="Begin above this revision. Default: from now."),
    count: int | None = typer.Option(None, min=1, help="End after so many."),
    give_up: str = typer.Option(
        "1h", "--give-up", metavar="TIME", help="End when the server is away for longer."
    ),
) -> None:
    """Events as they come, until Ctrl-C. Lost connections are resumed; nothing is lost or doubled."""
    wanted = {"vm": vm, "host": host, "code": code, "severity": severity}
    follow_events(ctx, wanted, after=after, count=count, give_up=give_up)


def follow_events(
    ctx: typer.Context,
    wanted: dict[str, Any],
    *,
    after: int | None,
    count: int | None = None,
    give_up: str = "1h",
) -> None:
    given = options(ctx)
    if given.output is Output.YAML:
        raise InvalidInput(
            "a stream has no end, so it can't be one YAML document",
            field="--output",
            allowed=("table", "wide", "json (one line per event)"),
        )
    try:
        with connected(ctx) as client:
            _Follower(client, given, wanted, after, count).run(
                parse_duration_ms(give_up, field="--give-up") / 1_000
            )
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


class _Follower:
    """Keeps the revision of the last event shown: the place to resume from, and the guard against
    showing one twice when a server repeats it."""

    def __init__(
        self,
        client: Client,
        given: Options,
        wanted: dict[str, Any],
        after: int | None,
        count: int | None,
    ) -> None:
        self._client = client
        self._given = given
        self._wanted = wanted
        self._after = after
        self._last_id = ""
        self._left = count

    def run(self, give_up_s: float) -> None:
        if self._after is None:
            # Pinned before the stream opens: a stream "from now" that broke before its first event
            # could not be resumed, and what happened in between would be lost.
            self._after = int(
                self._client.call("GET", "/v1/events", params={"limit": 1}).body["revision"]
            )
        lost_since: float | None = None
        pause_s = RETRY_S
        first = True
        while self._left is None or self._left > 0:
            try:
                wanted = {**self._wanted, "last_id": self._last_id}
                with self._client.events(self._after, **wanted) as stream:
                    if lost_since is not None:
                        note(self._given, f"connected again; going on after revision {self._after}")
                    lost_since, pause_s, first = None, RETRY_S, False
                    for event in stream:
                        self._take(event.data)
                        self._last_id = event.id
                        if self._left == 0:
                            return
                trouble = "the server ended the stream"
            except Unavailable as exc:
                if first:
                    raise
                trouble = exc.message
            now = time.monotonic()
            if lost_since is None:
                lost_since = now
                note(self._given, f"{trouble}; trying again")
            elif now - lost_since > give_up_s:
                raise Unavailable(
                    f"{trouble}; gave up after {give_up_s:.0f} s",
                    fix=f"go on with: virtha event follow --after {self._after}",
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_S_MAX)

    def _take(self, data: str) -> None:
        try:
            event = json.loads(data)
            revision = int(event["revision"])
        except (ValueError, KeyError, TypeError) as exc:
            raise Failed("the event stream has something that is no event") from exc
        if self._after is not None and revision <= self._after:
            return
        self._after = revision
        self._show(event)
        if self._left is not None:
            self._left -= 1

    def _show(self, event: dict[str, Any]) -> None:
        if self._given.output is Output.JSON:
            typer.echo(json.dumps(event, ensure_ascii=False))
        elif self._given.quiet:
            typer.echo(str(event["revision"]))
        elif sys.stdout.isatty():
            from virtha.cli.output import stdout_console

            line = styled(clean(event_line(event)))
            line.stylize(
                {"warning": "yellow", "error": "red", "alert": "bold red"}.get(
                    event["severity"], ""
                )
            )
            stdout_console().print(line)
        else:
            typer.echo(
                "\t".join(clean(column.value(event)) for column in EVENT.columns if not column.wide)
            )
        sys.stdout.flush()
