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
from virtha.cli.views import GRANT, USER
from virtha.model.errors import InvalidInput, NotFound
from virtha.model.user import Role

app = typer.Typer(no_args_is_help=True, help="Users and their roles.")
UserArgument = typer.Argument(metavar="USER", help="Name or id.")
GrantedArgument = typer.Argument(metavar="ROLE", help="A role's name (virtha role list).")
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
    """End a lock-out after failed sign-ins."""
    with connected(ctx) as client:
        answer = client.post(f"{_path(name)}/unlock")
    report(ctx, answer, f"user {name} may sign in again")


@app.command("grants")
def list_grants(ctx: typer.Context, name: str = UserArgument) -> None:
    """List the roles that a user has in clusters."""

    def fetch(client: Client) -> list[Any]:
        return client.items(f"{_path(name)}/grants")

    show_list(ctx, fetch, GRANT)


@app.command("grant")
def grant_role(
    ctx: typer.Context,
    name: str = UserArgument,
    role: str = GrantedArgument,
    cluster: str | None = typer.Option(
        None, help="In that cluster. Default: in all, for roles that you made."
    ),
) -> None:
    """Give a user a role in a cluster."""
    with connected(ctx) as client:
        body = {"role": role} | ({"cluster": cluster} if cluster else {})
        answer = client.post(f"{_path(name)}/grants", body)
    report(ctx, answer, f"{name} has the role {role} in {cluster or 'all clusters'}")


@app.command("revoke")
def revoke_role(
    ctx: typer.Context,
    name: str = UserArgument,
    role: str = GrantedArgument,
    cluster: str | None = typer.Option(None, help="In that cluster. Default: in all."),
) -> None:
    """Take a role from a user that was given in a cluster."""
    with connected(ctx) as client:
        found = _grant(client.items(f"{_path(name)}/grants"), name, role, cluster)
        answer = client.delete(f"{_path(name)}/grants/{found['grant']['id']}")
    report(ctx, answer, f"{name} has the role {role} no more in {cluster or 'all clusters'}")


def _grant(grants: list[Any], name: str, role: str, cluster: str | None) -> Any:
    """Raises NotFound, which lists what there is."""
    for one in grants:
        places = (one["cluster_name"], one["grant"]["cluster_id"])
        if one["grant"]["role"] == role and cluster in places:
            return one
    raise NotFound(
        f"{name} has not the role {role} in {cluster or 'all clusters'}",
        allowed=tuple(
            f"{one['grant']['role']} in {one['cluster_name'] or 'all'}" for one in grants
        ),
        fix=f"'virtha user grants {name}' shows them",
    )


@app.command("delete")
def delete_user(ctx: typer.Context, name: str = UserArgument, yes: bool = YesOption) -> None:
    """Delete a user; its sign-ins end."""
    confirm(f"Delete user {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(_path(name))
    report(ctx, answer, f"user {name} is deleted")
