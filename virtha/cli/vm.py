"""`virtha vm`: virtual machines."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.console_terminal import console
from virtha.cli.event import follow_events
from virtha.cli.options import options
from virtha.cli.output import emit_list, note
from virtha.cli.parsing import confirm, parse_disk, parse_nic, parse_size
from virtha.cli.progress import finish
from virtha.cli.session import (
    IgnoreCaseOption,
    SearchOption,
    TimeoutOption,
    WaitOption,
    WatchOption,
    YesOption,
    connected,
    report,
    search_params,
    show_list,
    show_one,
)
from virtha.cli.several import each
from virtha.cli.snapshot import app as snapshot_app
from virtha.cli.template import from_template, template_path
from virtha.cli.views import EVENT, FOREIGN, VM, pending_lines
from virtha.cli.vm_console import console_log, screenshot
from virtha.cli.vm_devices import disk_app, nic_app
from virtha.cli.watchdog import CardHelp, card_body, card_or_none, watchdog_app
from virtha.model.errors import InvalidInput
from virtha.model.machine import MachineType
from virtha.model.policy import PermissionGrade
from virtha.model.vm import PRIORITY_MAX, OnIoError, VmState

MIB = 1 << 20
app = typer.Typer(no_args_is_help=True, help="Virtual machines.")
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(disk_app, name="disk")
app.add_typer(nic_app, name="nic")

NameArgument = typer.Argument(metavar="VM", help="Name or id.")
NamesArgument = typer.Argument(metavar="VM", help="Names or ids.")
GradeHelp = (
    "How far automatic action may go with it at most; at first: fence, as far as in its cluster."
)
OnIoErrorHelp = "What becomes of it when a disk's I/O error has paused it; at first: auto_resume."
PriorityHelp = "Of VMs that come back after a failure, the higher is started first; at first: 0."


def vm_path(name: str, *verb: str) -> str:
    return "/".join(["/v1/vms", ref(name, field="VM"), *verb])


app.add_typer(watchdog_app("VM", NameArgument, vm_path), name="watchdog")


@app.command("list")
def list_vms(
    ctx: typer.Context,
    cluster: str | None = typer.Option(None, help="Only of this cluster."),
    host: str | None = typer.Option(None, help="Only on this host."),
    state: VmState | None = typer.Option(None, help="Only in this state."),
    ha: bool | None = typer.Option(None, "--ha/--no-ha", help="Only (not) highly available ones."),
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
    watch: bool = WatchOption,
) -> None:
    """List VMs: state, host, and whether each is protected."""
    wanted = search_params(search, ignore_case=ignore_case)
    wanted |= {"cluster": cluster, "host": host, "state": state, "ha": ha}

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/vms", **wanted)

    show_list(ctx, fetch, VM, watch=watch)


@app.command("show")
def show_vm(ctx: typer.Context, name: str = NameArgument, watch: bool = WatchOption) -> None:
    """Show one VM: what it is, what it does and why."""
    path = vm_path(name)
    show_one(ctx, lambda client: client.get(path), VM, watch=watch)


@app.command("create")
def create_vm(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    image: str | None = typer.Option(None, help="Image for the boot disk (virtha image list)."),
    template: str | None = typer.Option(
        None, help="Make it from a template (virtha template list)."
    ),
    thin: bool = typer.Option(
        False, "--thin", help="With --template: keep only what differs; the template must stay."
    ),
    storage: str | None = typer.Option(None, help="Storage domain. Default: the only one."),
    memory: str = typer.Option("1GiB", metavar="SIZE", help="Memory, for example 512MiB."),
    vcpus: int = typer.Option(1, min=1, help="Virtual processors."),
    machine: MachineType = typer.Option(MachineType.Q35, help="Machine type."),
    architecture: str = typer.Option("x86_64", help="Processor architecture."),
    watchdog: str | None = typer.Option(None, metavar="MODEL:ACTION", help=CardHelp),
    ha: bool = typer.Option(False, "--ha/--no-ha", help="Restart it after a failure."),
    priority: int | None = typer.Option(None, min=0, max=PRIORITY_MAX, help=PriorityHelp),
    grade: PermissionGrade | None = typer.Option(None, help=GradeHelp),
    on_io_error: OnIoError | None = typer.Option(None, help=OnIoErrorHelp),
    disk: list[str] = typer.Option(
        [], metavar="KEY=VALUE,…", help="A further disk: name=, size=, path=, image=, format=."
    ),
    nic: list[str] = typer.Option(
        [], metavar="bridge=BR,…", help="A card: bridge=, mac=, model=, name=."
    ),
    cluster: str | None = typer.Option(None, help="Cluster. Default: the only one."),
    description: str = typer.Option("", help="A remark."),
    start: bool = typer.Option(False, "--start", help="Start it when it is made."),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Create a VM from an image, a template or nothing.

    For example: virtha vm create web1 --image tiny --memory 128MiB --ha --start
    """
    if template is None and thin:
        raise InvalidInput("--thin goes with --template only", field="--thin", fix="leave it out")
    body: dict[str, Any] = {
        "name": name,
        "image": image,
        "storage_domain": storage,
        "memory_bytes": parse_size(memory, field="--memory"),
        "vcpus": vcpus,
        "machine": str(machine),
        "architecture": architecture,
        "watchdog": card_body(watchdog) if watchdog is not None else None,
        "ha": ha,
        "priority": priority,
        "grade": str(grade) if grade else None,
        "on_io_error": str(on_io_error) if on_io_error else None,
        "disks": [parse_disk(text) for text in disk],
        "nics": [parse_nic(text) for text in nic],
        "cluster": cluster,
        "description": description,
        "start": start,
    }
    # What was not said is left to the server, whose defaults may be newer than ours.
    body = {key: value for key, value in body.items() if value not in (None, [], "")}
    path = "/v1/vms"
    if template is not None:
        path = template_path(template, "vms")
        body = from_template(ctx, body, thin=thin)
    with connected(ctx) as client:
        operation = client.post(path, body)
        done = f"VM {name} is created" + (" and started" if start else "")
        finish(ctx, client, operation, done, wait=wait, timeout=timeout)


@app.command("edit")
def edit_vm(
    ctx: typer.Context,
    name: str = NameArgument,
    rename: str | None = typer.Option(None, "--name", metavar="NEW", help="New name."),
    description: str | None = typer.Option(None, help="New remark."),
    memory: str | None = typer.Option(None, metavar="SIZE", help="Memory, from the next start on."),
    vcpus: int | None = typer.Option(None, min=1, help="Processors, from the next start on."),
    machine: MachineType | None = typer.Option(None, help="Machine type, from the next start on."),
    watchdog: str | None = typer.Option(
        None, metavar="MODEL:ACTION", help=f"{CardHelp} 'none' removes the card."
    ),
    ha: bool | None = typer.Option(None, "--ha/--no-ha", help="Restart it after a failure."),
    priority: int | None = typer.Option(None, min=0, max=PRIORITY_MAX, help=PriorityHelp),
    grade: PermissionGrade | None = typer.Option(None, help=GradeHelp),
    on_io_error: OnIoError | None = typer.Option(None, help=OnIoErrorHelp),
    nic: list[str] | None = typer.Option(None, metavar="bridge=BR,…", help="Replaces all cards."),
    revision: int | None = typer.Option(None, min=0, help="Only if it is still at this revision."),
    drop_pending: bool = typer.Option(
        False, "--drop-pending", help="Take back what waits for its next start; disks stay."
    ),
) -> None:
    """Change a VM. A running one takes up hardware changes at its next start: until then
    virtha vm show lists them as pending."""
    body: dict[str, Any] = {
        "name": rename,
        "description": description,
        "memory_bytes": parse_size(memory, field="--memory"),
        "vcpus": vcpus,
        "machine": str(machine) if machine else None,
        "ha": ha,
        "priority": priority,
        "grade": str(grade) if grade else None,
        "on_io_error": str(on_io_error) if on_io_error else None,
        "nics": [parse_nic(text) for text in nic] if nic else None,
    }
    body = {key: value for key, value in body.items() if value is not None}
    if watchdog is not None:
        body["watchdog"] = card_or_none(watchdog)
    if drop_pending:
        if body:
            raise InvalidInput(
                "changes and takes back at once",
                field="--drop-pending",
                fix="give it alone, then the changes",
            )
        with connected(ctx) as client:
            match = f'"{revision}"' if revision is not None else None
            view = client.call("POST", vm_path(name, "drop-pending"), if_match=match).body
        report(ctx, view, f"VM {view['vm']['name']} has no changes waiting for its next start")
        for line in pending_lines(view):
            note(options(ctx), f"still waits: {line}")
        return
    if not body:
        raise InvalidInput("nothing to change is given", fix="see: virtha vm edit --help")
    with connected(ctx) as client:
        match = f'"{revision}"' if revision is not None else None
        view = client.call("PATCH", vm_path(name), body=body, if_match=match).body
    report(ctx, view, f"VM {view['vm']['name']} is changed")
    for line in pending_lines(view):
        note(options(ctx), f"applies at its next start: {line}")


@app.command("delete")
def delete_vm(
    ctx: typer.Context,
    names: list[str] = NamesArgument,
    delete_data: bool = typer.Option(
        False, "--delete-data", help="With the files of the disks that it writes to."
    ),
    yes: bool = YesOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Delete stopped VMs. The files of their disks stay where they are, unless --delete-data is given."""
    what = "with all that is on its disks" if delete_data else "and leave its disks' files"
    confirm(f"Delete {', '.join(names)} {what}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:

        def one(name: str) -> None:
            kept = [] if delete_data else client.get(vm_path(name))["vm"]["disks"]
            operation = client.delete(vm_path(name), delete_data=delete_data or None)
            done = f"VM {name} is deleted"
            finish(ctx, client, operation, done, wait=wait, timeout=timeout)
            for disk in kept:
                note(options(ctx), f"its disk {disk['name']} stays: {disk['path']}")

        each(names, one)


@app.command("start")
def start_vm(
    ctx: typer.Context,
    names: list[str] = NamesArgument,
    host: str | None = typer.Option(None, help="Start it there. Default: the best that fits."),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Start VMs."""
    body = {"host": host} if host else {}
    with connected(ctx) as client:

        def one(name: str) -> None:
            operation = client.post(vm_path(name, "start"), body)
            finish(ctx, client, operation, f"VM {name} runs", wait=wait, timeout=timeout)

        each(names, one)


@app.command("migrate")
def migrate_vm(
    ctx: typer.Context,
    names: list[str] = NamesArgument,
    to: str | None = typer.Option(
        None, "--to", metavar="HOST", help="Move it there. Default: the best that fits."
    ),
    bandwidth: str | None = typer.Option(
        None, metavar="SIZE", help="At most so much a second, for example 100MiB."
    ),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Move running VMs to another host. They run on meanwhile."""
    body: dict[str, Any] = {"host": to} if to else {}
    if bandwidth is not None:
        size = parse_size(bandwidth, field="--bandwidth")
        if not size or size % MIB:
            raise InvalidInput(
                f"'{bandwidth}' is not a whole number of MiB",
                field="--bandwidth",
                fix="for example 100MiB",
            )
        body["bandwidth_mib_s"] = size // MIB
    with connected(ctx) as client:

        def one(name: str) -> None:
            operation = client.post(vm_path(name, "migrate"), body)
            finish(ctx, client, operation, f"VM {name} is moved", wait=wait, timeout=timeout)

        each(names, one)


@app.command("cancel-migration")
def cancel_migration(ctx: typer.Context, names: list[str] = NamesArgument) -> None:
    """Call moves off. One that is past its switch-over goes on."""
    with connected(ctx) as client:

        def one(name: str) -> None:
            operation = client.post(vm_path(name, "cancel-migration"))
            note(options(ctx), f"asked; see 'virtha operation wait {operation['id']}'")

        each(names, one)


@app.command("free")
def free(ctx: typer.Context, names: list[str] = NamesArgument) -> None:
    """Let VMs be brought back that are kept down.

    Two hosts died with them on, or no start succeeded.
    """
    with connected(ctx) as client:

        def one(name: str) -> None:
            answer = client.post(vm_path(name, "free"))
            next_up = f"started where it fits, unless 'virtha explain vm/{name}' says why not"
            report(ctx, answer, f"VM {name} is free: it is {next_up}")

        each(names, one)


def _verb(verb: str, done: str, about: str) -> None:
    """Register one of the verbs that are alike: POST, an operation, one line at the end."""

    def run(
        ctx: typer.Context,
        names: list[str] = NamesArgument,
        wait: bool = WaitOption,
        timeout: str = TimeoutOption,
    ) -> None:
        with connected(ctx) as client:

            def one(name: str) -> None:
                operation = client.post(vm_path(name, verb))
                finish(ctx, client, operation, f"VM {name} {done}", wait=wait, timeout=timeout)

            each(names, one)

    app.command(verb, help=about)(run)


_verb("shutdown", "is shut down", "Ask guests to shut down (ACPI and guest agent).")
_verb("power-off", "is powered off", "Pull the plug: stop VMs at once.")
_verb("reboot", "reboots", "Ask guests to reboot.")
_verb("reset", "is reset", "Press the reset button.")
_verb("pause", "is paused", "Stop the processors of VMs; memory stays.")
_verb("resume", "runs again", "Let paused VMs run again.")
_verb("release", "is released", "Give adopted VMs back to libvirt, as they were.")


@app.command("adopt")
def adopt_vms(
    ctx: typer.Context,
    names: list[str] | None = typer.Argument(None, metavar="NAME", help="libvirt's names."),
    every: bool = typer.Option(False, "--all", help="All that can be adopted."),
    host: str | None = typer.Option(None, help="Where they are. Default: the only host."),
    ha: bool = typer.Option(False, "--ha/--no-ha", help="Restart them after a failure."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show what would change."),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Take over libvirt's own VMs as they are, running or not.

    virtha host scan lists them, and what adopting would change.
    """
    if bool(names) == every:
        raise InvalidInput(
            "give the names of VMs, or --all" if not names else "give names or --all, not both",
            field="NAME",
            fix="virtha host scan HOST lists what is there",
        )
    body = {"names": names or [], "all": every, "ha": ha, "dry_run": dry_run}
    with connected(ctx) as client:
        host = host or _only_host(client)
        operation = client.post(f"/v1/hosts/{ref(host, field='--host')}/adopt", body)
        done = "nothing was changed (--dry-run)" if dry_run else "adopted"
        finish(ctx, client, operation, done, wait=wait, timeout=timeout)
        given = options(ctx)
        if wait and given.output is None and not given.quiet:
            found = client.get(f"/v1/operations/{operation['id']}/foreign")
            if found["items"]:
                emit_list(given, found["items"], FOREIGN)
            for change in found.get("changes") or ():
                note(given, change)


def _only_host(client: Client) -> str:
    hosts = client.items("/v1/hosts")
    if len(hosts) == 1:
        return str(hosts[0]["host"]["id"])
    raise InvalidInput(
        "which host?" if hosts else "no host has joined",
        field="--host",
        allowed=tuple(sorted(item["host"]["name"] for item in hosts)),
        fix="name the host whose VMs are meant" if hosts else "virtha token create",
    )


@app.command("events")
def vm_events(
    ctx: typer.Context,
    name: str = NameArgument,
    code: str | None = typer.Option(None, help="Only this code; vm.watchdog.* takes all below."),
    limit: int = typer.Option(100, min=1, help="The newest so many."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes."),
) -> None:
    """What happened to a VM, oldest first."""
    with connected(ctx) as client:
        ident = client.get(vm_path(name))["vm"]["id"]
        found = client.items("/v1/events", vm=ident, code=code, order="desc", limit=limit)
    emit_list(options(ctx), found[::-1], EVENT)
    if follow:
        newest = found[0]["revision"] if found else None
        follow_events(ctx, {"vm": ident, "code": code}, after=newest)


app.command("console-log")(console_log)
app.command("console")(console)
app.command("screenshot")(screenshot)
