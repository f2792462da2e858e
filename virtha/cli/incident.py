"""`virtha incident`: failures of hosts, as they went."""

from collections.abc import Iterator
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import Options
from virtha.cli.output import Column, Object, View, at, moment, write_data
from virtha.cli.session import WatchOption, show, show_list
from virtha.cli.text import clean

app = typer.Typer(
    no_args_is_help=True, help="Failures of hosts: what was seen and done, and how long it took."
)
WORDS = {
    "unproven": "NOT PROVEN DEAD: its VMs wait for proof",
    "fencing": "BEING FENCED: its VMs wait for proof",
    "recovering": "RECOVERING: its VMs are not all settled",
    "awaiting_host": "VMS SETTLED: the host is not back",
    "closed": "CLOSED",
}


def _vms(item: Object) -> str:
    """`4: 3 run, 1 waits`."""
    vms = item["vms"]
    parts = [
        f"{vms[name]} {word}"
        for name, word in (
            ("running", "run"),
            ("starting", "starting"),
            ("waiting", "waiting"),
            ("down", "down"),
            ("unharmed", "unharmed"),
            ("deleted", "deleted"),
        )
        if vms[name]
    ]
    return f"{vms['all']}: {', '.join(parts)}" if parts else str(vms["all"])


def _seconds(value: int | None) -> str:
    return "" if value is None else f"{value / 1_000:.1f}s"


INCIDENT = View(
    name=at("id"),
    columns=(
        Column("ID", at("id")),
        Column("HOST", at("host")),
        Column("STAGE", at("stage")),
        Column("OPENED", lambda item: moment(item["opened"])),
        Column("CLOSED", lambda item: moment(item["closed"])),
        Column("VMS", _vms),
        Column("PROOF", at("proof")),
        Column("SILENT BEFORE", lambda item: _seconds(item["silent_ms"]), wide=True),
        Column("LASTED", lambda item: _seconds(item["lasted_ms"]), wide=True),
        Column("CAUSE", at("cause"), wide=True),
        Column("BOOT", at("boot"), wide=True),
    ),
)


@app.command("list")
def list_incidents(
    ctx: typer.Context,
    running: bool | None = typer.Option(None, "--open/--closed", help="Only those not closed yet."),
    host: str | None = typer.Option(None, "--host", help="Only of this host."),
    vm: str | None = typer.Option(None, "--vm", help="Only those that this VM was in."),
    cluster: str | None = typer.Option(None, "--cluster", help="Only of this cluster."),
    limit: int = typer.Option(50, min=1, help="The newest so many."),
    watch: bool = WatchOption,
) -> None:
    """The newest failures of hosts."""

    def fetch(client: Client) -> list[Any]:
        return client.items(
            "/v1/incidents", open=running, host=host, vm=vm, cluster=cluster, limit=limit
        )

    show_list(ctx, fetch, INCIDENT, watch=watch)


@app.command("show")
def show_incident(
    ctx: typer.Context,
    ident: str = typer.Argument(metavar="ID", help="The incident's id."),
    watch: bool = WatchOption,
) -> None:
    """One failure: what each step took, what became of each VM."""
    path = f"/v1/incidents/{ref(ident, field='ID')}"
    show(ctx, lambda client: client.get(path), _write, watch=watch)


def _write(given: Options, found: dict[str, Any]) -> None:
    if write_data(given, found):
        return
    if given.quiet:
        typer.echo(clean(found["incident"]["stage"]))
        return
    for line in shown_lines(found):
        typer.echo(line)


def shown_lines(found: dict[str, Any]) -> Iterator[str]:
    """The worst first: how it stands, then the VMs, then how it came to that."""
    head = found["incident"]
    yield f"{clean(head['host'])}: {WORDS.get(head['stage'], clean(head['stage']))}"
    yield f"incident {clean(head['id'])}"
    yield f"opened   {moment(head['opened'])}, {_seconds(head['silent_ms'])} after the last sign of life"
    if head["closed"] is not None:
        yield f"closed   {moment(head['closed'])}, after {_seconds(head['lasted_ms'])}"
    yield f"proof    {clean(head['proof']) or 'none'}"
    for text in found["engine_text"]:
        yield f"now      {clean(text)}"
    yield f"VMs      {_vms(head)}"
    for one in found["vms"]:
        yield from _vm_lines(one)
    if found["vms_left_out"]:
        yield f"  and {found['vms_left_out']} more that are not kept"
    yield ""
    yield "took"
    for one in found["phases"]:
        if one["ms"] is not None:
            mark = "~" if one["clock"] == "wall" else " "
            yield f"  {one['name']:8}{mark}{_seconds(one['ms']):>8}  {clean(one['text'])}"
    yield ""
    yield "timeline, in seconds since the last sign of life (~: by the wall clock)"
    for one in found["timeline"]:
        yield from _timeline_lines(one)
    if found["left_out"]:
        yield f"{found['left_out']} lines in between are not kept"


def _vm_lines(one: dict[str, Any]) -> Iterator[str]:
    line = f"  {clean(one['vm'])}: {one['state']}"
    if one["host"] is not None and one["state"] in ("starting", "runs", "answers"):
        line += f" on {clean(one['host'])}"
    if one["runs_after_ms"] is not None:
        line += f", after {_seconds(one['runs_after_ms'])}"
    if one["start_ms"] is not None:
        line += f" (its start took {_seconds(one['start_ms'])})"
    if one["answer_ms"] is not None:
        line += f", guest agent ~{_seconds(one['answer_ms'])} later"
    yield line
    if one["text"] is not None and one["state"] not in ("runs", "answers"):
        yield f"    {clean(one['text'])} ({clean(one['code'])})"
    for text in one["engine_text"]:
        yield f"    now: {clean(text)}"


def _timeline_lines(one: dict[str, Any]) -> Iterator[str]:
    mark = "~" if one["clock"] == "wall" else " "
    clock = moment(one["at"]).rpartition(" ")[2]
    after = f"+{one['after_ms'] / 1_000:.1f}"
    yield f"{clock} {mark}{after:>9}  {clean(one['text'])} [{clean(one['code'])}]"
    for seen in one["seen"]:
        age = _seconds(seen["age_ms"])
        yield f"{'':20}  {clean(seen['by'])}, {clean(seen['via'])}: {clean(seen['said'])} ({age} ago)"
    for text in one["reason_text"]:
        yield f"{'':20}  because: {clean(text)}"
