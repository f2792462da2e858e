"""`virtha vm disk` and `virtha vm nic`: devices of a VM, plugged where it runs."""

from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import Column, View, at, emit_list, size
from virtha.cli.parsing import parse_nic, parse_size
from virtha.cli.progress import finish
from virtha.cli.session import TimeoutOption, WaitOption, connected
from virtha.model.errors import VirthaError

disk_app = typer.Typer(no_args_is_help=True, help="A VM's disks.")
nic_app = typer.Typer(no_args_is_help=True, help="A VM's network cards.")

VmArgument = typer.Argument(metavar="VM", help="Name or id.")
RevisionOption = typer.Option(None, min=0, help="Only if the VM is still at this revision.")

DISK = View(
    name=at("name"),
    columns=(
        Column("NAME", at("name")),
        Column("SIZE", lambda item: size(item["size_bytes"])),
        Column("FORMAT", at("format")),
        Column("BUS", at("bus")),
        Column("PATH", at("path")),
        Column("STATE", at("state")),
        Column("ID", at("id"), wide=True),
    ),
)
NIC = View(
    name=at("mac"),
    columns=(
        Column("MAC", at("mac")),
        Column("BRIDGE", at("bridge")),
        Column("MODEL", at("model")),
        Column("NAME", at("name"), wide=True),
        Column("STATE", at("state")),
        Column("ID", at("id"), wide=True),
    ),
)


def _path(vm: str, *rest: str) -> str:
    return "/".join(["/v1/vms", ref(vm, field="VM"), *rest])


def _change(
    ctx: typer.Context,
    method: str,
    path: str,
    done: str,
    *,
    body: dict[str, Any] | None = None,
    revision: int | None,
    wait: bool,
    timeout: str,
) -> None:
    """Ask for it and wait for its end; ``done`` says that it is done."""
    match = f'"{revision}"' if revision is not None else None
    with connected(ctx) as client:
        answer = client.call(method, path, body=body, if_match=match)
        finish(ctx, client, answer.body, done, wait=wait, timeout=timeout)


def _listed(client: Client, vm: str, kind: str, key: str) -> list[Any]:
    """With those that wait: ``state`` is empty where record and running copy agree."""
    view = client.get(_path(vm))
    waits = {one["field"] for one in view.get("pending") or ()}
    return [
        {**one, "state": "from its next start on" if f"{kind}.{one[key]}" in waits else ""}
        for one in view["vm"][kind]
    ]


@disk_app.command("list")
def list_disks(ctx: typer.Context, vm: str = VmArgument) -> None:
    """List a VM's disks."""
    with connected(ctx) as client:
        emit_list(options(ctx), _listed(client, vm, "disks", "name"), DISK)


@disk_app.command("add")
def add_disk(
    ctx: typer.Context,
    vm: str = VmArgument,
    disk_size: str | None = typer.Option(None, "--size", metavar="SIZE", help="An empty disk."),
    name: str | None = typer.Option(None, help="Its name. Default: disk1, disk2 …"),
    image: str | None = typer.Option(None, help="A copy of this image (virtha image list)."),
    path: str | None = typer.Option(None, help="A file that is there, or is to be made."),
    storage: str | None = typer.Option(None, help="Storage domain. Default: the only one."),
    disk_format: str | None = typer.Option(None, "--format", help="qcow2 (default) or raw."),
    bus: str | None = typer.Option(None, help="virtio (default), scsi, sata or ide."),
    revision: int | None = RevisionOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Add a disk. A running VM has a new one at once, one that is there already from its next start on.

    For example: virtha vm disk add web1 --size 10GiB --name data
    """
    body = {
        "size_bytes": parse_size(disk_size, field="--size"),
        "name": name,
        "image": image,
        "path": path,
        "storage_domain": storage,
        "format": disk_format,
        "bus": bus,
    }
    body = {key: value for key, value in body.items() if value is not None}
    path, done = _path(vm, "disks"), f"VM {vm} has the disk"
    try:
        _change(ctx, "POST", path, done, body=body, revision=revision, wait=wait, timeout=timeout)
    except VirthaError as error:
        error.field = "--size" if error.field == "size_bytes" else error.field
        raise


@disk_app.command("remove")
def remove_disk(
    ctx: typer.Context,
    vm: str = VmArgument,
    name: str = typer.Argument(metavar="DISK", help="Its name or id."),
    revision: int | None = RevisionOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Remove a disk. A running VM's guest is asked to give it up, and may refuse. Its file stays."""
    path = _path(vm, "disks", ref(name, field="DISK"))
    done = f"VM {vm} no longer has {name}; its file stays"
    _change(ctx, "DELETE", path, done, revision=revision, wait=wait, timeout=timeout)


@disk_app.command("resize")
def resize_disk(
    ctx: typer.Context,
    vm: str = VmArgument,
    name: str = typer.Argument(metavar="DISK", help="Its name or id."),
    disk_size: str = typer.Argument(metavar="SIZE", help="What it is to have, for example 20GiB."),
    revision: int | None = RevisionOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Make a disk larger, of a running VM at once. Partitions and file systems are its guest's to grow.

    For example: virtha vm disk resize web1 data 20GiB
    """
    body = {"size_bytes": parse_size(disk_size, field="SIZE")}
    path = _path(vm, "disks", ref(name, field="DISK"), "resize")
    done = f"{name} of VM {vm} has {disk_size}"
    _change(ctx, "POST", path, done, body=body, revision=revision, wait=wait, timeout=timeout)


@nic_app.command("list")
def list_nics(ctx: typer.Context, vm: str = VmArgument) -> None:
    """List a VM's network cards."""
    with connected(ctx) as client:
        emit_list(options(ctx), _listed(client, vm, "nics", "mac"), NIC)


@nic_app.command("add")
def add_nic(
    ctx: typer.Context,
    vm: str = VmArgument,
    nic: str = typer.Argument(
        metavar="bridge=BR,…", help="bridge=, mac=, model=, name=; or the bridge."
    ),
    revision: int | None = RevisionOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Add a network card, to a running VM at once."""
    path, done = _path(vm, "nics"), f"VM {vm} has the card"
    body = parse_nic(nic)
    _change(ctx, "POST", path, done, body=body, revision=revision, wait=wait, timeout=timeout)


@nic_app.command("remove")
def remove_nic(
    ctx: typer.Context,
    vm: str = VmArgument,
    mac: str = typer.Argument(metavar="MAC", help="Its address or id."),
    revision: int | None = RevisionOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Remove a network card. A running VM's guest is asked to give it up, and may refuse."""
    path, done = _path(vm, "nics", ref(mac, field="MAC")), f"VM {vm} no longer has {mac}"
    _change(ctx, "DELETE", path, done, revision=revision, wait=wait, timeout=timeout)
