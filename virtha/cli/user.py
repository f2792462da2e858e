"""`virtha user`."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.parsing import confirm
from virtha.cli.session import (
    IgnoreCaseOption,
    SearchOption,
    YesOption,
    connected,
    read_secret,
    report,
    search_params,
    show_list,
)
from virtha.cli.views import USER
from virtha.model.errors import InvalidInput
from virtha.model.user import Role

app = typer.Typer(no_args_is_help=True, help="Users and their roles.")
UserArgument = typer.Argument(metavar="USER", help="Name or id.")
StdinOption = typer.Option(False, "--password-stdin", help="Read the password's line from stdin.")


def _path(name: str) -> str:
    return f"/v1/users/{ref(name, field='USER')}"


@app.command("list")
def list_users(
    ctx: typer.Context,
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
) -> None:
    """List users."""
    wanted = search_params(search, ignore_case=ignore_case)

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/users", **wanted)

    show_list(ctx, fetch, USER)


@app.command("create")
def create_user(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    role: Role = typer.Option(Role.VIEWER, help="What it may do."),
    email: str | None = typer.Option(None, help="Where notifications for them go."),
    password_stdin: bool = StdinOption,
) -> None:
    """Create a user."""
    password = read_secret(f"Password of {name}", from_stdin=password_stdin, twice=True)
    with connected(ctx) as client:
        body = {"name": name, "role": str(role), "password": password}
        if email:
            body["email"] = email
        answer = client.post("/v1/users", body)
    report(ctx, answer, f"user {name} is created, role {role}")


@app.command("edit")
def edit_user(
    ctx: typer.Context,
    name: str = UserArgument,
    role: Role | None = typer.Option(None, help="What it may do."),
    enabled: bool | None = typer.Option(None, "--enable/--disable", help="May it sign in?"),
    email: str | None = typer.Option(None, help="Where notifications go; '' for nowhere."),
    revision: int | None = typer.Option(None, help="Only if it is still at this revision."),
) -> None:
    """Change a user's role or e-mail address, or lock it out."""
    body: dict[str, Any] = {"role": str(role) if role else None, "enabled": enabled}
    body = {key: value for key, value in body.items() if value is not None}
    if email is not None:
        body["email"] = email or None
    if not body:
        raise InvalidInput(
            "nothing to change is given", fix="give --role, --email, --enable or --disable"
        )
    with connected(ctx) as client:
        match = f'"{revision}"' if revision is not None else None
        answer = client.call("PATCH", _path(name), body=body, if_match=match).body
    report(ctx, answer, f"user {name} is changed")


@app.command("password")
def change_password(
    ctx: typer.Context, name: str = UserArgument, password_stdin: bool = StdinOption
) -> None:
    """Give a user a new password."""
    password = read_secret(f"New password of {name}", from_stdin=password_stdin, twice=True)
    with connected(ctx) as client:
        answer = client.call("PATCH", _path(name), body={"password": password}).body
    report(ctx, answer, f"user {name} has a new password")


@app.command("unlock")
def unlock_user(ctx: typer.Context, name: str = UserArgument) -> None:
    """Let a user sign in again at once who was locked out after failed sign-ins."""
    with connected(ctx) as client:
        answer = client.post(f"{_path(name)}/unlock")
    report(ctx, answer, f"user {name} may sign in again")


@app.command("delete")
def delete_user(ctx: typer.Context, name: str = UserArgument, yes: bool = YesOption) -> None:
    """Delete a user; its sign-ins end."""
    confirm(f"Delete user {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(_path(name))
    report(ctx, answer, f"user {name} is deleted")
