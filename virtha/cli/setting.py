"""`virtha setting`: global values, and what clusters and hosts say otherwise."""

from difflib import get_close_matches
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.cluster import cluster_path
from virtha.cli.options import options
from virtha.cli.output import emit_list
from virtha.cli.session import connected, report, show_list
from virtha.cli.views import SETTING
from virtha.model.errors import InvalidInput, NotFound

app = typer.Typer(no_args_is_help=True, help="Settings.")
KeyArgument = typer.Argument(metavar="KEY", help="The setting's name (virtha setting list).")
ClusterOption = typer.Option(None, "--cluster", help="The value of this cluster.")
HostOption = typer.Option(None, "--host", help="The value of this host.")


def _where(client: Client, cluster: str | None, host: str | None) -> dict[str, str]:
    """Scope and subject as the API names them; subjects are ids."""
    if cluster and host:
        raise InvalidInput(
            "--cluster and --host exclude each other", field="--cluster", fix="give one of them"
        )
    if cluster:
        return {"scope": "cluster", "subject": client.get(cluster_path(cluster))["id"]}
    if host:
        found = client.get(f"/v1/hosts/{ref(host, field='--host')}")
        return {"scope": "host", "subject": found["host"]["id"]}
    return {"scope": "global"}


@app.command("list")
def list_settings(ctx: typer.Context) -> None:
    """List all settings and their values."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/settings")

    show_list(ctx, fetch, SETTING)


@app.command("get")
def get_setting(
    ctx: typer.Context,
    key: str = KeyArgument,
    cluster: str | None = ClusterOption,
    host: str | None = HostOption,
) -> None:
    """Show one setting at all scopes, or its value at one."""
    with connected(ctx) as client:
        every = client.items("/v1/settings")
        where = _where(client, cluster, host) if cluster or host else {}
    found = [item for item in every if item["key"] == key]
    if not found:
        near = get_close_matches(key, sorted({item["key"] for item in every}), 1)
        raise NotFound(
            f"there is no setting '{key}'",
            field="KEY",
            fix=f"did you mean '{near[0]}'?" if near else "virtha setting list shows all",
        )
    here = [item for item in found if all(item[name] == value for name, value in where.items())]
    # A narrower scope without a value of its own is ruled by the global one: show that.
    emit_list(options(ctx), here or found, SETTING)


@app.command("set")
def set_setting(
    ctx: typer.Context,
    key: str = KeyArgument,
    value: str = typer.Argument(metavar="VALUE", help="Its new value."),
    cluster: str | None = ClusterOption,
    host: str | None = HostOption,
) -> None:
    """Give a setting a value, for all or for one cluster or host."""
    with connected(ctx) as client:
        where = _where(client, cluster, host)
        path = f"/v1/settings/{ref(key, field='KEY')}"
        answer = client.call("PUT", path, body={"value": value}, params=where).body
    report(ctx, answer, f"{key} is {value}")


@app.command("unset")
def unset_setting(
    ctx: typer.Context,
    key: str = KeyArgument,
    cluster: str | None = ClusterOption,
    host: str | None = HostOption,
) -> None:
    """Remove a value, so that the wider scope's or the default holds."""
    with connected(ctx) as client:
        where = _where(client, cluster, host)
        answer = client.delete(f"/v1/settings/{ref(key, field='KEY')}", **where)
    report(ctx, answer, f"{key} is back to the wider scope's value or the default")
