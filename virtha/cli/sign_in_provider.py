"""`virtha sign-in-provider`: who else may say who somebody is."""

import sys
from pathlib import Path
from typing import Any

import typer

from virtha.cli.notify_receiver import read_authority
from virtha.cli.options import options
from virtha.cli.output import View, emit_one
from virtha.cli.parsing import confirm
from virtha.cli.session import YesOption, connected, read_secret, report
from virtha.model.errors import InvalidInput
from virtha.model.user import Role

app = typer.Typer(no_args_is_help=True, help="Sign-in by a provider (OpenID Connect).")
PATH = "/v1/sign-in-provider"

PROVIDER = View(
    name=lambda item: str(item["provider"]["issuer"]),
    columns=(),
    details=lambda item: [
        ("issuer", item["provider"]["issuer"]),
        ("client id", item["provider"]["client_id"]),
        ("secret", "given" if item["has_secret"] else "none"),
        ("scopes", " ".join(item["provider"]["scopes"])),
        ("name from", item["provider"]["name_claim"]),
        ("role from", item["provider"]["roles_claim"]),
        *((f"  {value}", role) for value, role in sorted(item["provider"]["roles"].items())),
        *(("browsers return to", one) for one in item["provider"]["redirect_uris"]),
        *[("its authority", "given")] * bool(item["provider"]["authority_pem"]),
    ],
)


@app.command("show")
def show_provider(ctx: typer.Context) -> None:
    """Show who it is, and what its word is worth here."""
    with connected(ctx) as client:
        found = client.get(PATH)
    emit_one(options(ctx), found, PROVIDER)


@app.command("set")
def set_provider(
    ctx: typer.Context,
    issuer: str = typer.Argument(metavar="ISSUER", help="Its URL, as it names itself."),
    client_id: str = typer.Option(..., help="What it calls virtha."),
    role: list[str] = typer.Option(
        ..., metavar="VALUE=ROLE", help="What a value of the claim stands for; several."
    ),
    secret_stdin: bool = typer.Option(
        False, "--secret-stdin", help="Read the client's secret from stdin; else it stays."
    ),
    no_secret: bool = typer.Option(False, "--no-secret", help="It knows virtha without a secret."),
    name_claim: str = typer.Option("preferred_username", help="The claim with the user's name."),
    roles_claim: str = typer.Option("groups", help="The claim with what stands for roles."),
    scope: list[str] = typer.Option(["openid", "profile", "email"], help="What is asked for."),
    redirect_uri: list[str] = typer.Option([], help="Where browsers may return to; several."),
    authority: Path | None = typer.Option(
        None, metavar="FILE", help="Whom its certificate is of (PEM)."
    ),
) -> None:
    """Set it up; everything that is not given is as the help says."""
    body: dict[str, Any] = {
        "issuer": issuer,
        "client_id": client_id,
        "scopes": scope,
        "name_claim": name_claim,
        "roles_claim": roles_claim,
        "roles": dict(_role(one) for one in role),
        "redirect_uris": redirect_uri,
        "authority_pem": read_authority(authority),
    }
    if no_secret and secret_stdin:
        raise InvalidInput("--secret-stdin and --no-secret exclude each other", field="--no-secret")
    if no_secret:
        body["client_secret"] = None
    elif secret_stdin:
        body["client_secret"] = read_secret("Secret", from_stdin=True)
    with connected(ctx) as client:
        answer = client.call("PUT", PATH, body=body).body
    report(ctx, answer, f"sign-ins by {issuer} are set up; try one: virtha login URL --provider")


def _role(text: str) -> tuple[str, str]:
    value, _, role = text.rpartition("=")
    if not value or role not in tuple(Role):
        raise InvalidInput(
            f"'{text}' is no VALUE=ROLE",
            field="--role",
            allowed=tuple(f"VALUE={one}" for one in Role),
        )
    return value, role


@app.command("remove")
def remove_provider(ctx: typer.Context, yes: bool = YesOption) -> None:
    """Forget it. Its users stay, are signed out, and can't sign in."""
    confirm("Forget the provider of sign-ins?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        client.delete(PATH)
    report(ctx, {}, "there is no provider of sign-ins any more")
