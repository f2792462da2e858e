"""`virtha policy`: what is done by itself when something fails."""

import sys
from pathlib import Path
from typing import Any

import typer

from virtha.cli.cluster import chosen_cluster, cluster_path
from virtha.cli.options import Options
from virtha.cli.output import write_data
from virtha.cli.policy_text import (
    BYTES_MAX,
    Change,
    apply_changes,
    change_from_assignment,
    changes_from_yaml,
    policy_to_yaml,
)
from virtha.cli.session import WatchOption, connected, report, show
from virtha.model.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="What is done by itself when something fails.")
ClusterOption = typer.Option(None, "--cluster", help="Of this cluster. Default: the only one.")


@app.command("show")
def show_policy(
    ctx: typer.Context, cluster: str | None = ClusterOption, watch: bool = WatchOption
) -> None:
    """Show a cluster's policy as YAML that `policy set --file` takes back."""

    def write(given: Options, policy: dict[str, Any]) -> None:
        if not write_data(given, policy):
            typer.echo(policy_to_yaml(policy), nl=False)

    def fetch(client: Any) -> Any:
        return client.get(cluster_path(chosen_cluster(client, cluster), "policy"))

    show(ctx, fetch, write, watch=watch)


@app.command("set")
def set_policy(
    ctx: typer.Context,
    values: list[str] | None = typer.Argument(
        None, metavar="[FIELD=VALUE…]", help="For example restart.delay=1.5s"
    ),
    file: str | None = typer.Option(
        None, "--file", "-f", metavar="FILE", help="YAML; - reads stdin."
    ),
    cluster: str | None = ClusterOption,
    reset: bool = typer.Option(
        False, "--reset", help="What is not given goes back to its default instead of staying."
    ),
) -> None:
    """Change a cluster's policy: single values, or a file. What is not given stays as it is."""
    changes: list[Change] = changes_from_yaml(_read(file)) if file else []
    changes += [change_from_assignment(text) for text in values or ()]
    if not changes and not reset:
        raise InvalidInput(
            "nothing to change is given", field="policy", fix="give FIELD=VALUE or --file"
        )
    with connected(ctx) as client:
        path = cluster_path(chosen_cluster(client, cluster), "policy")
        present = client.call("GET", path)
        policy = apply_changes({} if reset else present.body, changes)
        # If somebody else changed it since we read it, theirs must not be lost: 412, try again.
        answer = client.call("PUT", path, body=policy, if_match=present.etag).body
    report(ctx, answer, "the policy is changed; hosts get it at once")


def _read(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read(BYTES_MAX + 1)
        with Path(name).open(encoding="utf-8") as stream:
            return stream.read(BYTES_MAX + 1)
    except OSError as exc:
        raise InvalidInput(f"can't read {name}: {exc.strerror}", field="--file") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"{name} is not UTF-8 text", field="--file") from exc
