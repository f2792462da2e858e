"""`virtha template`: what VMs are made from; `virtha vm create --template` makes them."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.output import Column, Object, View, at, size
from virtha.cli.parsing import confirm
from virtha.cli.progress import finish
from virtha.cli.session import (
    IgnoreCaseOption,
    SearchOption,
    TimeoutOption,
    WaitOption,
    WatchOption,
    YesOption,
    connected,
    search_params,
    show_list,
    show_one,
)
from virtha.cli.several import each
from virtha.cli.watchdog import CardHelp, card_or_none, watchdog_app
from virtha.model.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Templates that VMs are made from.")
TemplateArgument = typer.Argument(metavar="TEMPLATE", help="Name or id.")
TemplatesArgument = typer.Argument(metavar="TEMPLATE", help="Names or ids.")


def _watchdog(item: Object) -> str:
    card = item["template"]["watchdog"]
    return f"{card['model']}:{card['action']}" if card else ""


def _disk(disk: Object) -> str:
    return f"{disk['name']}: {size(disk['size_bytes'])} {disk['format']} {disk['path']}"


TEMPLATE = View(
    name=at("template", "name"),
    columns=(
        Column("NAME", at("template", "name")),
        Column("STATE", at("template", "state")),
        Column("FROM", at("template", "source_vm")),
        Column("MEMORY", lambda item: size(item["template"]["memory_bytes"])),
        Column("VCPUS", at("template", "vcpus")),
        Column("WATCHDOG", lambda item: _watchdog(item)),
        Column("DISKS", lambda item: len(item["template"]["disks"])),
        Column("USED BY", lambda item: len(item["used_by"])),
        Column("CLUSTER", at("cluster_name"), wide=True),
        Column("ID", at("template", "id"), wide=True),
    ),
    details=lambda item: [
        ("name", item["template"]["name"]),
        ("id", item["template"]["id"]),
        ("state", item["template"]["state"]),
        ("made from", item["template"]["source_vm"]),
        ("description", item["template"]["description"]),
        ("cluster", item["cluster_name"]),
        ("memory", size(item["template"]["memory_bytes"])),
        ("vcpus", item["template"]["vcpus"]),
        ("machine", f"{item['template']['machine']} ({item['template']['architecture']})"),
        ("watchdog", _watchdog(item)),
        ("ha", item["template"]["ha"]),
        ("priority", item["template"]["priority"]),
        ("on I/O error", item["template"]["on_io_error"]),
        *[("disk", _disk(disk)) for disk in item["template"]["disks"]],
        *[("card", f"{nic['model']} on {nic['bridge']}") for nic in item["template"]["nics"]],
        *[("used by", name) for name in item["used_by"]],
    ],
)


def template_path(name: str, *verb: str) -> str:
    return "/".join(["/v1/templates", ref(name, field="TEMPLATE"), *verb])


app.add_typer(watchdog_app("template", TemplateArgument, template_path), name="watchdog")
_TEMPLATES_OWN = ("image", "machine", "architecture", "disk", "cluster")
"""Options of `vm create` that say what the template says already."""
_ALTERS = ("name", "start", "storage_domain")


def from_template(ctx: typer.Context, body: dict[str, Any], *, thin: bool) -> dict[str, Any]:
    """Of a `vm create` body what was typed: the rest is the template's. Raises InvalidInput."""
    typed = {name for name in ctx.params if _was_typed(ctx, name)}
    for name in _TEMPLATES_OWN:
        if name in typed:
            raise InvalidInput(
                f"--{name} is the template's", field=f"--{name}", fix="leave it out with --template"
            )
    options = {"memory_bytes": "memory", "nics": "nic"}
    wanted = {
        key: value
        for key, value in body.items()
        if key in _ALTERS or options.get(key, key) in typed
    }
    return {**wanted, "thin": thin}


def _was_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@app.command("list")
def list_templates(
    ctx: typer.Context,
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
    watch: bool = WatchOption,
) -> None:
    """List templates and how many VMs need each."""
    wanted = search_params(search, ignore_case=ignore_case)

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/templates", **wanted)

    show_list(ctx, fetch, TEMPLATE, watch=watch)


@app.command("show")
def show_template(
    ctx: typer.Context, name: str = TemplateArgument, watch: bool = WatchOption
) -> None:
    """Show one template, with the VMs that need it."""
    show_one(ctx, lambda client: client.get(template_path(name)), TEMPLATE, watch=watch)


@app.command("create")
def create_template(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    source: str = typer.Option(
        ..., "--from", metavar="VM", help="The VM to copy; it must be down."
    ),
    description: str = typer.Option("", help="A remark."),
    watchdog: str | None = typer.Option(
        None,
        metavar="MODEL:ACTION",
        help=f"In place of the VM's card. {CardHelp} 'none': without a card.",
    ),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Make a template from a VM that is down.

    It has the VM's settings, its watchdog and full copies of its disks.
    For example: virtha template create web --from web1
    """
    body: dict[str, Any] = {"name": name, "vm": source}
    if description:
        body["description"] = description
    if watchdog is not None:
        body["watchdog"] = card_or_none(watchdog)
    with connected(ctx) as client:
        operation = client.post("/v1/templates", body)
        finish(ctx, client, operation, f"template {name} is ready", wait=wait, timeout=timeout)


@app.command("delete")
def delete_template(
    ctx: typer.Context,
    names: list[str] = TemplatesArgument,
    yes: bool = YesOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Delete templates that no VM needs, with their disks."""
    confirm(f"Delete {', '.join(names)}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:

        def one(name: str) -> None:
            operation = client.delete(template_path(name))
            finish(
                ctx, client, operation, f"template {name} is deleted", wait=wait, timeout=timeout
            )

        each(names, one)
