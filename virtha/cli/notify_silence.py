"""`virtha notify silence` and `virtha notify inhibition`: what is not told for a while, or beside its cause."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.notify_views import INHIBITION, SILENCE
from virtha.cli.output import moment
from virtha.cli.parsing import confirm, parse_label
from virtha.cli.session import WatchOption, YesOption, connected, report, show_list, show_one
from virtha.model.codes.entry import Severity
from virtha.model.errors import InvalidInput
from virtha.model.routing import Same
from virtha.model.time import parse_duration_ms

silence_app = typer.Typer(no_args_is_help=True, help="Tell nothing of some events for a while.")
inhibition_app = typer.Typer(
    no_args_is_help=True, help="Tell nothing of what an open problem explains."
)
SilenceArgument = typer.Argument(metavar="SILENCE", help="The silence's id.")


@silence_app.command("add")
def add_silence(
    ctx: typer.Context,
    reason: str = typer.Argument(metavar="REASON", help="Why, for those who wonder."),
    for_: str | None = typer.Option(
        None, "--for", metavar="DURATION", help="How long, for example 2h."
    ),
    until: str | None = typer.Option(None, metavar="TIME", help="Until when (RFC 3339)."),
    begins: str | None = typer.Option(None, metavar="TIME", help="From when. Default: now."),
    code: list[str] | None = typer.Option(
        None, "--code", metavar="CODE", help="Only this event; may end in *. Repeatable."
    ),
    severity: Severity | None = typer.Option(None, help="Only so severe or worse."),
    cluster: str | None = typer.Option(None, help="Only of this cluster."),
    host: str | None = typer.Option(None, help="Only of this host."),
    vm: str | None = typer.Option(None, help="Only of this VM."),
    label: list[str] | None = typer.Option(
        None, "--label", metavar="FIELD=VALUE", help="Only with this field. Repeatable."
    ),
) -> None:
    """Silence events. What still goes on when the silence ends is told then."""
    matcher = {
        "codes": code or None,
        "severity": severity.value if severity else None,
        "cluster": cluster,
        "host": host,
        "vm": vm,
        "labels": dict(parse_label(one) for one in label) if label else None,
    }
    if (for_ is None) == (until is None):
        raise InvalidInput(
            "is missing" if for_ is None else "excludes --until",
            field="--for",
            fix="say --for 2h or --until 2026-01-31T12:00:00Z",
        )
    body = {
        "reason": reason,
        "matcher": {key: value for key, value in matcher.items() if value is not None},
        "begins": begins,
        "ends": until,
        "duration_ms": None if for_ is None else parse_duration_ms(for_, field="--for"),
    }
    with connected(ctx) as client:
        answer = client.post(
            "/v1/silences", {key: value for key, value in body.items() if value is not None}
        )
    made = answer["silence"]
    report(ctx, answer, f"silence {made['id']} holds until {moment(made['ends'])}")


@silence_app.command("list")
def list_silences(
    ctx: typer.Context,
    ended: bool = typer.Option(False, "--ended", help="Those too that are over."),
    watch: bool = WatchOption,
) -> None:
    """List silences, the next to end first."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/silences", ended=True if ended else None)

    show_list(ctx, fetch, SILENCE, watch=watch)


@silence_app.command("show")
def show_silence(ctx: typer.Context, ident: str = SilenceArgument) -> None:
    """Show one silence: who set it, why, until when."""
    show_one(ctx, lambda client: client.get(_silence(ident)), SILENCE)


@silence_app.command("end")
def end_silence(ctx: typer.Context, ident: str = SilenceArgument) -> None:
    """End a silence now. What still goes on is told."""
    with connected(ctx) as client:
        answer = client.call("POST", f"{_silence(ident)}/end").body
    report(ctx, answer, f"silence {ident} has ended")


def _silence(ident: str) -> str:
    return f"/v1/silences/{ref(ident, field='SILENCE')}"


@inhibition_app.command("add")
def add_inhibition(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    source: list[str] = typer.Option(
        ..., "--source", metavar="CODE", help="While such a problem is open; may end in *."
    ),
    target: list[str] = typer.Option(
        ..., "--target", metavar="CODE", help="Such events are not told; may end in *."
    ),
    same: Same = typer.Option(Same.HOST, help="What both must have in common."),
    source_severity: Severity | None = typer.Option(None, help="Only so severe or worse."),
    target_severity: Severity | None = typer.Option(None, help="Only so severe or worse."),
) -> None:
    """Add a rule of what an open problem explains."""
    body = {
        "name": name,
        "source": _matcher(source, source_severity),
        "target": _matcher(target, target_severity),
        "same": same.value,
    }
    with connected(ctx) as client:
        answer = client.post("/v1/inhibitions", body)
    report(ctx, answer, f"inhibition {name} is created")


def _matcher(codes: list[str], severity: Severity | None) -> dict[str, Any]:
    found: dict[str, Any] = {"codes": codes}
    return found if severity is None else {**found, "severity": severity.value}


@inhibition_app.command("list")
def list_inhibitions(ctx: typer.Context) -> None:
    """List the rules."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/inhibitions")

    show_list(ctx, fetch, INHIBITION)


@inhibition_app.command("remove")
def remove_inhibition(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="INHIBITION", help="Name or id."),
    yes: bool = YesOption,
) -> None:
    """Remove a rule. What it held back and still goes on is told."""
    confirm(f"Remove inhibition {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(f"/v1/inhibitions/{ref(name, field='INHIBITION')}")
    report(ctx, answer, f"inhibition {name} is removed")
