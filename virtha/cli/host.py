"""`virtha host`: the KVM hosts."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import emit_list, write_data
from virtha.cli.parsing import confirm
from virtha.cli.progress import failure_of, wait_for
from virtha.cli.session import (
    TimeoutOption,
    WatchOption,
    YesOption,
    connected,
    report,
    show_list,
    show_one,
)
from virtha.cli.views import FOREIGN, HOST

app = typer.Typer(no_args_is_help=True, help="KVM hosts that have joined.")
HostArgument = typer.Argument(metavar="HOST", help="Name or id.")


def _path(name: str, *verb: str) -> str:
    return "/".join(["/v1/hosts", ref(name, field="HOST"), *verb])


@app.command("list")
def list_hosts(ctx: typer.Context, watch: bool = WatchOption) -> None:
    """List hosts: how each answers, what it holds, what is free."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/hosts")

    show_list(ctx, fetch, HOST, watch=watch)


@app.command("show")
def show_host(ctx: typer.Context, name: str = HostArgument, watch: bool = WatchOption) -> None:
    """Show one host and what it can do."""
    show_one(ctx, lambda client: client.get(_path(name)), HOST, watch=watch)


@app.command("scan")
def scan_host(ctx: typer.Context, name: str = HostArgument, timeout: str = TimeoutOption) -> None:
    """List a host's libvirt VMs that virtha does not manage, and what adopting would change."""
    given = options(ctx)
    with connected(ctx) as client:
        operation = wait_for(client, given, client.post(_path(name, "scan")), timeout)
        if error := failure_of(operation):
            raise error
        found = client.get(f"/v1/operations/{operation['id']}/foreign")
    emit_list(given, found["items"], FOREIGN)


@app.command("remove")
def remove_host(ctx: typer.Context, name: str = HostArgument, yes: bool = YesOption) -> None:
    """Take a host without VMs out; its certificate is no longer accepted."""
    confirm(f"Remove host {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(_path(name))
    if not write_data(options(ctx), answer):
        report(ctx, answer, f"host {name} is removed")
