"""`virtha operation`: long work."""

from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import note
from virtha.cli.progress import finish, wait_for
from virtha.cli.session import (
    TimeoutOption,
    WatchOption,
    connected,
    report,
    show_list,
    show_one,
)
from virtha.cli.views import OPERATION

app = typer.Typer(no_args_is_help=True, help="Long work.")
IdArgument = typer.Argument(metavar="ID", help="The operation's id.")


@app.command("list")
def list_operations(
    ctx: typer.Context,
    running: bool | None = typer.Option(None, "--open/--over", help="Only those not yet over."),
    kind: str | None = typer.Option(None, help="Only of this kind, for example vm.start."),
    subject: str | None = typer.Option(None, help="Only about the thing with this id."),
    limit: int = typer.Option(50, min=1, help="The newest so many."),
    watch: bool = WatchOption,
) -> None:
    """The newest operations."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/operations", open=running, kind=kind, subject=subject, limit=limit)

    show_list(ctx, fetch, OPERATION, watch=watch)


@app.command("show")
def show_operation(ctx: typer.Context, ident: str = IdArgument, watch: bool = WatchOption) -> None:
    """Show one operation with its steps."""
    path = f"/v1/operations/{ref(ident, field='ID')}"
    show_one(ctx, lambda client: client.get(path), OPERATION, watch=watch)


@app.command("wait")
def wait_operation(
    ctx: typer.Context, ident: str = IdArgument, timeout: str = TimeoutOption
) -> None:
    """Wait for the end of an operation; the exit code says how it ended."""
    with connected(ctx) as client:
        operation = client.get(f"/v1/operations/{ref(ident, field='ID')}")
        finish(ctx, client, operation, f"{operation['kind']} done", wait=True, timeout=timeout)


@app.command("cancel")
def cancel_operation(
    ctx: typer.Context, ident: str = IdArgument, timeout: str = TimeoutOption
) -> None:
    """Take an operation back, as long as it only makes or copies disks. What it made is removed."""
    with connected(ctx) as client:
        operation = client.post(f"/v1/operations/{ref(ident, field='ID')}/cancel")
        operation = wait_for(client, options(ctx), operation, timeout)
        report(ctx, operation, f"{operation['kind']} is {operation['state']}")
        for step in operation["steps"]:
            if step["state"] == "failed" and step.get("detail"):
                note(options(ctx), f"{step['name']}: {step['detail']}")
