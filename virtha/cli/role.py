"""`virtha role`: named sets of permissions."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.parsing import confirm
from virtha.cli.session import YesOption, connected, report, show_list
from virtha.cli.views import ROLE
from virtha.model.access import RESERVED_PERMISSIONS, Permission
from virtha.model.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Roles: what their users may do.")
RoleArgument = typer.Argument(metavar="ROLE", help="Name or id.")
PermissionsArgument = typer.Argument(
    None, metavar="[PERMISSION]...", help="What it may beyond seeing, for example vms.operate."
)


def _path(name: str) -> str:
    return f"/v1/roles/{ref(name, field='ROLE')}"


def _permissions(words: list[str] | None) -> list[str]:
    """Raises InvalidInput, which lists those that there are."""
    known = [one.value for one in Permission if one not in RESERVED_PERMISSIONS]
    for word in words or ():
        if word not in known:
            raise InvalidInput(
                f"'{word}' is no permission that a role may have",
                field="PERMISSION",
                allowed=tuple(known),
            )
    return list(words or ())


@app.command("list")
def list_roles(ctx: typer.Context) -> None:
    """List roles with their permissions, the fixed ones first."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/roles")

    show_list(ctx, fetch, ROLE)


@app.command("create")
def create_role(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    permissions: list[str] | None = PermissionsArgument,
    description: str = typer.Option("", help="A remark."),
) -> None:
    """Create a role. Without permissions its users only see."""
    wanted = _permissions(permissions)
    with connected(ctx) as client:
        body = {"name": name, "permissions": wanted, "description": description}
        answer = client.post("/v1/roles", body)
    report(ctx, answer, f"role {name} is created; 'virtha user grant USER {name}' gives it")


@app.command("set")
def set_role(
    ctx: typer.Context,
    name: str = RoleArgument,
    permissions: list[str] | None = PermissionsArgument,
    description: str | None = typer.Option(None, help="A remark."),
) -> None:
    """Replace a role's permissions. It holds from the next request of those who have it."""
    body: dict[str, Any] = {"permissions": _permissions(permissions)}
    if description is not None:
        body["description"] = description
    with connected(ctx) as client:
        answer = client.call("PATCH", _path(name), body=body).body
    report(ctx, answer, f"role {name} is changed")


@app.command("delete")
def delete_role(ctx: typer.Context, name: str = RoleArgument, yes: bool = YesOption) -> None:
    """Delete a role that nobody has."""
    confirm(f"Delete role {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(_path(name))
    report(ctx, answer, f"role {name} is deleted")
