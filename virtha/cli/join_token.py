"""`virtha token`: what a host needs once, to join."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import chosen_output, moment, write_data
from virtha.cli.parsing import confirm
from virtha.cli.session import YesOption, connected, report, show_list
from virtha.cli.views import TOKEN
from virtha.model.errors import InvalidInput
from virtha.model.time import parse_duration_ms

app = typer.Typer(no_args_is_help=True, help="Tokens that let hosts join.")


@app.command("create")
def create_token(
    ctx: typer.Context,
    cluster: str | None = typer.Option(
        None, help="Hosts join this cluster. Default: the only one."
    ),
    uses: str = typer.Option("1", metavar="N", help="For so many hosts, or 'any'."),
    expires: str = typer.Option("1h", metavar="TIME", help="Good for so long, for example 1d."),
    description: str = typer.Option("", help="A remark."),
) -> None:
    """Create a join token. It is shown this once; in a pipe nothing else is printed."""
    given = options(ctx)
    body: dict[str, Any] = {
        "uses_max": _uses(uses),
        "expires_ms": parse_duration_ms(expires, field="--expires"),
        "description": description,
    }
    if cluster:
        body["cluster"] = cluster
    with connected(ctx) as client:
        answer = client.post("/v1/tokens", body)
    if write_data(given, answer):
        return
    if given.quiet or chosen_output(given) is None:
        typer.echo(answer["secret"])
        return
    typer.echo(f"{answer['secret']}\n")
    typer.echo(f"Shown this once; good until {moment(answer['token']['expires'])}. On the host:")
    typer.echo("  virtha agent join https://SERVER:8443 --token TOKEN")


def _uses(text: str) -> int | None:
    if text == "any":
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InvalidInput(
            f"'{text}' is no number of uses", field="--uses", allowed=("1 or more", "any")
        )
    return int(text)


@app.command("list")
def list_tokens(ctx: typer.Context) -> None:
    """List tokens, without their secrets."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/tokens")

    show_list(ctx, fetch, TOKEN)


@app.command("revoke")
def revoke_token(
    ctx: typer.Context,
    ident: str = typer.Argument(metavar="ID", help="The token's id (virtha token list)."),
    yes: bool = YesOption,
) -> None:
    """Make a token useless. Hosts that have joined with it stay."""
    confirm(f"Revoke token {ident}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(f"/v1/tokens/{ref(ident, field='ID')}")
    report(ctx, answer, f"token {ident} is revoked")
