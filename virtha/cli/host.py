"""`virtha host`: the KVM hosts."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import emit_list, write_data
from virtha.cli.parsing import confirm, confirm_by_name
from virtha.cli.power import host_app as power_app
from virtha.cli.progress import failure_of, wait_for
from virtha.cli.session import (
    IgnoreCaseOption,
    SearchOption,
    TimeoutOption,
    WatchOption,
    YesOption,
    connected,
    report,
    search_params,
    show_list,
    show_one,
)
from virtha.cli.views import FOREIGN, HOST
from virtha.model.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="KVM hosts that have joined.")
app.add_typer(power_app, name="power")
HostArgument = typer.Argument(metavar="HOST", help="Name or id.")
IT_IS_OFF = "--yes-it-is-off"


def _path(name: str, *verb: str) -> str:
    return "/".join(["/v1/hosts", ref(name, field="HOST"), *verb])


def _take_the_word(client: Client, given: str, *, certain: bool, stdin_is_terminal: bool) -> None:
    """The operator's word (safety rule P6) has nothing behind it but the operator: --yes is not enough."""
    name = str(client.get(_path(given))["host"]["name"])
    confirm_by_name(
        f"virtha will take it that {name} is off and that no VM runs there. If {name} still runs, the "
        "same VM can start a second time on another host, both copies write to its disks, and its data "
        "is lost. Look at the machine or its power interface: silence on the network proves nothing.",
        name=name,
        certain=certain,
        flag=IT_IS_OFF,
        stdin_is_terminal=stdin_is_terminal,
    )


@app.command("list")
def list_hosts(
    ctx: typer.Context,
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
    watch: bool = WatchOption,
) -> None:
    """List hosts: how each answers, what it holds, what is free."""
    wanted = search_params(search, ignore_case=ignore_case)

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/hosts", **wanted)

    show_list(ctx, fetch, HOST, watch=watch)


@app.command("show")
def show_host(ctx: typer.Context, name: str = HostArgument, watch: bool = WatchOption) -> None:
    """Show one host and what it can do."""
    show_one(ctx, lambda client: client.get(_path(name)), HOST, watch=watch)


@app.command("scan")
def scan_host(ctx: typer.Context, name: str = HostArgument, timeout: str = TimeoutOption) -> None:
    """List a host's VMs that virtha does not manage. Shows what adopting would change."""
    given = options(ctx)
    with connected(ctx) as client:
        operation = wait_for(client, given, client.post(_path(name, "scan")), timeout)
        if error := failure_of(operation):
            raise error
        found = client.get(f"/v1/operations/{operation['id']}/foreign")
    emit_list(given, found["items"], FOREIGN)


@app.command("maintenance")
def maintenance(
    ctx: typer.Context,
    name: str = HostArgument,
    on: bool | None = typer.Option(
        None, "--on/--off", help="Begin it, or end it; without either it is shown."
    ),
    stay: bool = typer.Option(
        False, "--stay", help="With --on: its VMs stay there, and the host is never fenced."
    ),
) -> None:
    """Begin, end or show a host's maintenance.

    No VM starts on it then, and its VMs leave it by live migration.
    """
    if stay and not on:
        raise InvalidInput("goes with --on only", field="--stay", fix="leave it out, or give both")
    with connected(ctx) as client:
        path = _path(name, "maintenance")
        if on is None:
            found = client.get(path)
        else:
            found = client.post(path, {"on": on, "drain": on and not stay})
    if not write_data(options(ctx), found):
        report(ctx, found, _maintenance_text(found))


def _maintenance_text(found: dict[str, Any]) -> str:
    if not found["on"]:
        return f"host {found['host']} is not in maintenance"
    vms = ", ".join(found["vms"]) or "none"
    stay = "are to leave it" if found["drain"] else "stay there, and it is not fenced"
    return f"host {found['host']} is in maintenance, by {found['by']}; its VMs ({vms}) {stay}"


IT_IS_DEAD = "--yes-it-is-dead"


@app.command("confirm-dead")
def confirm_dead(
    ctx: typer.Context,
    name: str = HostArgument,
    force: str | None = typer.Option(
        None,
        "--force",
        metavar="REASON",
        help="How you know it, although something speaks against it.",
    ),
    it_is_dead: bool = typer.Option(
        False, IT_IS_DEAD, help="You saw it off; don't have its name typed."
    ),
) -> None:
    """Give your word that a host is dead.

    Where virtha can't prove it: its VMs start elsewhere then.
    """
    with connected(ctx) as client:
        ticket = client.post(_path(name, "death-tickets"), {})
        host, vms = ticket["host"], ", ".join(ticket["vms"]) or "none is on record"
        confirm_by_name(
            f"virtha will take it that {host} (boot {ticket['boot']}, failure {ticket['incident']}) is dead, and start "
            f"its VMs elsewhere: {vms}. If {host} still runs, each of them runs twice, both copies write to its "
            "disks, and its data is lost. Look at the machine or its power interface: silence on the network "
            "proves nothing. Pull its power before you go on.",
            name=host,
            certain=it_is_dead,
            flag=IT_IS_DEAD,
            stdin_is_terminal=sys.stdin.isatty(),
        )
        body = {"ticket": ticket["ticket"], "name": host, "force_reason": force}
        answer = client.post(_path(name, "confirm-dead"), body)
    if not write_data(options(ctx), answer):
        report(ctx, answer, f"host {host} is taken for dead; its VMs start elsewhere")


@app.command("remove")
def remove_host(
    ctx: typer.Context,
    name: str = HostArgument,
    powered_off: bool = typer.Option(
        False,
        "--powered-off",
        help="Your word that it is off: for a host that has not reported since a restore.",
    ),
    it_is_off: bool = typer.Option(
        False, IT_IS_OFF, help="With --powered-off: you saw it off; don't have its name typed."
    ),
    yes: bool = YesOption,
) -> None:
    """Take a host without VMs out. Its certificate is no longer accepted."""
    here = sys.stdin.isatty()
    if it_is_off and not powered_off:
        raise InvalidInput(
            "goes with --powered-off only", field=IT_IS_OFF, fix="leave it out, or give both"
        )
    with connected(ctx) as client:
        if powered_off:
            _take_the_word(client, name, certain=it_is_off, stdin_is_terminal=here)
        else:
            confirm(f"Remove host {name}?", yes=yes, stdin_is_terminal=here)
        answer = client.delete(_path(name), powered_off=powered_off or None)
    if not write_data(options(ctx), answer):
        report(ctx, answer, f"host {name} is removed")
