"""`virtha storage`: shared directories and Ceph pools."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.parsing import confirm
from virtha.cli.progress import failure_of, wait_for
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
from virtha.cli.views import STORAGE
from virtha.model.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Shared storage for disks and images.")
StorageArgument = typer.Argument(metavar="STORAGE", help="Name or id.")


def _path(name: str) -> str:
    return f"/v1/storage-domains/{ref(name, field='STORAGE')}"


@app.command("list")
def list_storage(
    ctx: typer.Context,
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
    watch: bool = WatchOption,
) -> None:
    """List storage domains and which hosts can use each."""
    wanted = search_params(search, ignore_case=ignore_case)

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/storage-domains", **wanted)

    show_list(ctx, fetch, STORAGE, watch=watch)


@app.command("show")
def show_storage(
    ctx: typer.Context, name: str = StorageArgument, watch: bool = WatchOption
) -> None:
    """Show one storage domain."""
    show_one(ctx, lambda client: client.get(_path(name)), STORAGE, watch=watch)


@app.command("add")
def add_storage(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    path: str | None = typer.Option(
        None, metavar="DIR", help="The directory, the same on all hosts."
    ),
    cluster: str | None = typer.Option(None, help="Cluster. Default: the only one."),
    ceph_monitor: list[str] = typer.Option(
        [], metavar="HOST[:PORT]", help="Of a Ceph cluster: a monitor's address. Several times."
    ),
    ceph_pool: str | None = typer.Option(None, metavar="POOL", help="Its pool for RBD images."),
    ceph_user: str | None = typer.Option(
        None, metavar="NAME", help="User without 'client.'. Left out: a cluster without keys."
    ),
    ceph_keyring: str | None = typer.Option(
        None,
        metavar="FILE",
        help="Its key, on each host. Default: /etc/ceph/ceph.client.NAME.keyring",
    ),
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Add a directory that hosts share, or a Ceph pool.

    --path: all hosts see the directory under the same one. --ceph-monitor and --ceph-pool: RBD images."""
    given_ceph = {
        "monitors": ceph_monitor or None,
        "pool": ceph_pool,
        "user": ceph_user,
        "keyring": ceph_keyring,
    }
    ceph = {key: value for key, value in given_ceph.items() if value is not None}
    body: dict[str, Any] = {"name": name, "path": path, "cluster": cluster}
    if not ceph and path is None:
        ways = "give a directory that all hosts share, or --ceph-monitor and --ceph-pool"
        raise InvalidInput("is missing", field="--path", fix=ways)
    if ceph:
        body |= {"kind": "ceph-rbd", "ceph": {"monitors": [], "pool": "", **ceph}}
    given = options(ctx)
    with connected(ctx) as client:
        answer = client.call(
            "POST", "/v1/storage-domains", body={k: v for k, v in body.items() if v is not None}
        )
        ident = answer.body["domain"]["id"]
        # Its hosts prepare it in operations of their own, one per host.
        for operation in client.items("/v1/operations", subject=ident) if wait else ():
            if error := failure_of(wait_for(client, given, operation, timeout)):
                raise error
        view = client.get(_path(ident))
    report(ctx, view, f"storage {name} is added")


@app.command("remove")
def remove_storage(ctx: typer.Context, name: str = StorageArgument, yes: bool = YesOption) -> None:
    """Forget a storage domain that no VM uses. Its files stay."""
    confirm(f"Remove storage {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(_path(name))
    report(ctx, answer, f"storage {name} is removed; its files are where they were")
