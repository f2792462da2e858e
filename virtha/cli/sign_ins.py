"""`virtha session`: sign-ins and access tokens."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import chosen_output, moment, write_data
from virtha.cli.parsing import confirm
from virtha.cli.session import YesOption, connected, report, show_list
from virtha.cli.views import SESSION
from virtha.model.time import parse_duration_ms

app = typer.Typer(no_args_is_help=True, help="Sign-ins, and access tokens for programs.")


@app.command("list")
def list_sessions(
    ctx: typer.Context,
    user: str | None = typer.Option(None, help="Whose, for administrators. Default: yours."),
) -> None:
    """List sign-ins and access tokens that are good now."""
    wanted: dict[str, Any] = {"user": user} if user else {}

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/sessions", **wanted)

    show_list(ctx, fetch, SESSION)


@app.command("token")
def create_token(
    ctx: typer.Context,
    description: str = typer.Argument(metavar="DESCRIPTION", help="What it is for."),
    expires: str = typer.Option("90d", metavar="TIME", help="Good for so long, at most 366d."),
    role: str | None = typer.Option(None, help="Good for that role at most. Default: as you."),
    cluster: str | None = typer.Option(None, help="Good in that cluster only."),
) -> None:
    """Make an access token for a program, also one that may less than you. It is shown this once; in a pipe nothing else is printed."""
    given = options(ctx)
    body: dict[str, Any] = {
        "description": description,
        "expires_ms": parse_duration_ms(expires, field="--expires"),
    }
    body |= {key: value for key, value in (("role", role), ("cluster", cluster)) if value}
    with connected(ctx) as client:
        answer = client.post("/v1/sessions/tokens", body)
    if write_data(given, answer):
        return
    if given.quiet or chosen_output(given) is None:
        typer.echo(answer["token"])
        return
    typer.echo(f"{answer['token']}\n")
    typer.echo(f"Shown this once; good until {moment(answer['session']['expires'])}. Programs take")
    typer.echo("it from VIRTHA_TOKEN, or send it as Authorization: Bearer TOKEN.")


@app.command("end")
def end_session(
    ctx: typer.Context,
    ident: str = typer.Argument(metavar="ID", help="The session's id (virtha session list)."),
    yes: bool = YesOption,
) -> None:
    """End a sign-in or an access token at once."""
    confirm(f"End session {ident}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(f"/v1/sessions/{ref(ident, field='ID')}")
    report(ctx, answer, f"session {ident} has ended")
