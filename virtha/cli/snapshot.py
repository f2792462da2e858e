"""`virtha vm snapshot`: the disks of a VM as they were."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.output import Column, View, at, moment
from virtha.cli.parsing import confirm
from virtha.cli.progress import finish
from virtha.cli.session import (
    TimeoutOption,
    WaitOption,
    YesOption,
    connected,
    show_list,
)

app = typer.Typer(no_args_is_help=True, help="Snapshots of a VM's disks.")
VmArgument = typer.Argument(metavar="VM", help="Name or id.")
SnapshotArgument = typer.Argument(metavar="SNAPSHOT", help="Name or id.")

_GUEST = {None: "down", True: "frozen", False: "not frozen"}
"""What its VM was like when it was made."""

SNAPSHOT = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("STATE", at("state")),
        Column("MADE", lambda item: moment(item["created"])),
        Column("GUEST", lambda item: _GUEST[item.get("frozen")]),
        Column("DISKS", at("disks")),
        Column("DESCRIPTION", at("description")),
        Column("ID", at("id"), wide=True),
    ),
)


def snapshot_path(vm: str, *more: str) -> str:
    names = [ref(name, field="SNAPSHOT") for name in more[:1]]
    return "/".join(["/v1/vms", ref(vm, field="VM"), "snapshots", *names, *more[1:]])


@app.command("list")
def list_snapshots(ctx: typer.Context, vm: str = VmArgument) -> None:
    """List a VM's snapshots, oldest first."""

    def fetch(client: Client) -> list[Any]:
        return list(client.get(snapshot_path(vm))["items"])

    show_list(ctx, fetch, SNAPSHOT)


@app.command("create")
def create_snapshot(
    ctx: typer.Context,
    vm: str = VmArgument,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    description: str = typer.Option("", help="A remark."),
    crash_consistent: bool = typer.Option(
        False,
        "--crash-consistent",
        help="Don't freeze its guest: the disks as they would be after a power failure.",
    ),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Make a snapshot of all disks of a VM. The guest of one that runs is frozen for it by its guest agent."""
    body = {
        "name": name,
        **({"description": description} if description else {}),
        **({"crash_consistent": True} if crash_consistent else {}),
    }
    with connected(ctx) as client:
        operation = client.post(snapshot_path(vm), body)
        done = f"snapshot {name} of {vm} is made"
        finish(ctx, client, operation, done, wait=wait, timeout=timeout)


@app.command("revert")
def revert_snapshot(
    ctx: typer.Context,
    vm: str = VmArgument,
    name: str = SnapshotArgument,
    yes: bool = YesOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Put the disks of a VM that is down back. What was written since is lost."""
    question = f"Put {vm} back to {name}? What was written since is lost."
    confirm(question, yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        operation = client.post(snapshot_path(vm, name, "revert"), {})
        done = f"{vm} is back at {name}"
        finish(ctx, client, operation, done, wait=wait, timeout=timeout)


@app.command("delete")
def delete_snapshot(
    ctx: typer.Context,
    vm: str = VmArgument,
    name: str = SnapshotArgument,
    yes: bool = YesOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Delete a snapshot. The disks stay as they are."""
    confirm(f"Delete snapshot {name} of {vm}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        operation = client.delete(snapshot_path(vm, name))
        done = f"snapshot {name} of {vm} is deleted"
        finish(ctx, client, operation, done, wait=wait, timeout=timeout)
