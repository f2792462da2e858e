"""`virtha cluster`."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.parsing import confirm
from virtha.cli.power import cluster_app as power_app
from virtha.cli.session import (
    IgnoreCaseOption,
    SearchOption,
    WatchOption,
    YesOption,
    connected,
    report,
    search_params,
    show_list,
    show_one,
)
from virtha.cli.views import CLUSTER
from virtha.model.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Clusters of hosts.")
app.add_typer(power_app, name="power")
ClusterArgument = typer.Argument(metavar="CLUSTER", help="Name or id.")


def cluster_path(name: str, *more: str) -> str:
    return "/".join(["/v1/clusters", ref(name, field="CLUSTER"), *more])


def chosen_cluster(client: Client, name: str | None) -> str:
    """``name``, or the only cluster there is. Raises InvalidInput that lists them."""
    if name:
        return name
    clusters = client.items("/v1/clusters")
    if len(clusters) == 1:
        return str(clusters[0]["id"])
    raise InvalidInput(
        "which cluster?" if clusters else "there is no cluster",
        field="--cluster",
        allowed=tuple(sorted(item["name"] for item in clusters)),
        fix="name the one that is meant" if clusters else "virtha cluster create NAME",
    )


@app.command("list")
def list_clusters(
    ctx: typer.Context,
    search: str | None = SearchOption,
    ignore_case: bool = IgnoreCaseOption,
    watch: bool = WatchOption,
) -> None:
    """List clusters."""
    wanted = search_params(search, ignore_case=ignore_case)

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/clusters", **wanted)

    show_list(ctx, fetch, CLUSTER, watch=watch)


@app.command("show")
def show_cluster(
    ctx: typer.Context, name: str = ClusterArgument, watch: bool = WatchOption
) -> None:
    """Show one cluster."""
    show_one(ctx, lambda client: client.get(cluster_path(name)), CLUSTER, watch=watch)


@app.command("create")
def create_cluster(
    ctx: typer.Context,
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    description: str = typer.Option("", help="A remark."),
) -> None:
    """Create a cluster."""
    with connected(ctx) as client:
        answer = client.post("/v1/clusters", {"name": name, "description": description})
    report(ctx, answer, f"cluster {name} is created")


@app.command("edit")
def edit_cluster(
    ctx: typer.Context,
    name: str = ClusterArgument,
    rename: str | None = typer.Option(None, "--name", metavar="NEW", help="New name."),
    description: str | None = typer.Option(None, help="New remark."),
    revision: int | None = typer.Option(None, help="Only if it is still at this revision."),
) -> None:
    """Change a cluster's name or remark (its policy: virtha policy set)."""
    body = {"name": rename, "description": description}
    body = {key: value for key, value in body.items() if value is not None}
    if not body:
        raise InvalidInput("nothing to change is given", fix="give --name or --description")
    with connected(ctx) as client:
        match = f'"{revision}"' if revision is not None else None
        answer = client.call("PATCH", cluster_path(name), body=body, if_match=match).body
    report(ctx, answer, f"cluster {answer['name']} is changed")


@app.command("delete")
def delete_cluster(ctx: typer.Context, name: str = ClusterArgument, yes: bool = YesOption) -> None:
    """Delete an empty cluster."""
    confirm(f"Delete cluster {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(cluster_path(name))
    report(ctx, answer, f"cluster {name} is deleted")


@app.command("brake")
def brake(
    ctx: typer.Context,
    name: str = ClusterArgument,
    lift: bool = typer.Option(False, "--lift", help="Let power orders go out again."),
    yes: bool = YesOption,
) -> None:
    """Show, or lift, the brake on power orders.

    It is on where too many hosts fell silent at once.
    """
    path = cluster_path(name, "brake")
    if not lift:
        with connected(ctx) as client:
            answer = client.get(path)
        report(ctx, answer, _brake_text(answer))
        return
    question = f"Let hosts of cluster {name} be switched off again?"
    confirm(question, yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(path)
    report(ctx, answer, _brake_text(answer))


def _brake_text(found: dict[str, Any]) -> str:
    if not found["on"]:
        return f"the brake of cluster {found['cluster']} is not on: it holds back no power order"
    return f"{found['hosts']} hosts of cluster {found['cluster']} fell silent at once: no power order goes out"
