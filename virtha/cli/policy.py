"""`virtha policy`: what is done by itself when something fails."""

import sys
from pathlib import Path
from typing import Any

import typer

from virtha.cli.cluster import chosen_cluster, cluster_path
from virtha.cli.options import Options, options
from virtha.cli.output import chosen_output, note, print_table, write_data
from virtha.cli.policy_budget import show_budget, show_sums
from virtha.cli.session import WatchOption, connected, report, show
from virtha.model.errors import InvalidInput
from virtha.model.policy import FIELD_TABLE, Policy
from virtha.model.policy.profiles import PROFILES, Profile, profile_of
from virtha.model.policy.text import (
    BYTES_MAX,
    Change,
    Document,
    apply_changes,
    changes_from_assignment,
    changes_from_yaml,
    differences,
    document_of,
    policy_of,
    policy_to_yaml,
    read_policy,
)

app = typer.Typer(no_args_is_help=True, help="What is done by itself when something fails.")
ClusterOption = typer.Option(None, "--cluster", help="Of this cluster. Default: the only one.")
DryRunOption = typer.Option(False, "--dry-run", help="Show what would change; change nothing.")
ResetOption = typer.Option(
    False, "--reset", help="What is not given goes back to its default instead of staying."
)


@app.command("show")
def show_policy(
    ctx: typer.Context, cluster: str | None = ClusterOption, watch: bool = WatchOption
) -> None:
    """Show a cluster's policy. It is YAML that `policy set --file` takes back."""

    def write(given: Options, policy: Document) -> None:
        if not write_data(given, policy):
            typer.echo(f"# times: {_profile_text(policy_of(policy))}")
            typer.echo(policy_to_yaml(policy), nl=False)

    def fetch(client: Any) -> Any:
        return client.get(cluster_path(chosen_cluster(client, cluster), "policy"))

    show(ctx, fetch, write, watch=watch)


def _profile_text(policy: Policy) -> str:
    found = profile_of(policy)
    return f"profile {found}" if found is not None else "its own"


@app.command("set")
def set_policy(
    ctx: typer.Context,
    values: list[str] | None = typer.Argument(
        None, metavar="FIELD=VALUE", help="For example restart.delay=1.5s, or profile=fast"
    ),
    file: str | None = typer.Option(
        None, "--file", "-f", metavar="FILE", help="YAML; - reads stdin."
    ),
    cluster: str | None = ClusterOption,
    reset: bool = ResetOption,
    dry_run: bool = DryRunOption,
) -> None:
    """Change a cluster's policy: single values, or a file. What is not given stays as it is.

    Shows what changes, and what the new times add up to, before it is saved.
    """
    called = "stdin" if file == "-" else file
    changes = changes_from_yaml(_read(file, field="--file"), file=called or "") if file else []
    changes += _assigned(values)
    if not changes and not reset:
        raise InvalidInput(
            "nothing to change is given", field="policy", fix="give FIELD=VALUE or --file"
        )
    _save(ctx, cluster, changes, reset=reset, dry_run=dry_run)


@app.command("profile")
def choose_profile(
    ctx: typer.Context,
    name: Profile = typer.Argument(metavar="PROFILE", help="fast, balanced or conservative."),
    cluster: str | None = ClusterOption,
    dry_run: bool = DryRunOption,
) -> None:
    """Give a cluster the times of a profile. Caps, grades, actions and quiet times stay."""
    changes = changes_from_assignment(f"profile={name}")
    _save(ctx, cluster, changes, reset=False, dry_run=dry_run)


def _assigned(values: list[str] | None) -> list[Change]:
    return [change for text in values or () for change in changes_from_assignment(text)]


def _save(
    ctx: typer.Context, cluster: str | None, changes: list[Change], *, reset: bool, dry_run: bool
) -> None:
    given = options(ctx)
    with connected(ctx) as client:
        path = cluster_path(chosen_cluster(client, cluster), "policy")
        present = client.call("GET", path)
        document = apply_changes({} if reset else present.body, changes)
        before, after = policy_of(present.body), policy_of(document)
        found = differences(before, after)
        for one in found:
            note(given, f"{one.shown}: {one.before} -> {one.after}")
        if found:
            show_sums(given, before, after)
        if dry_run:
            report(ctx, document, "nothing is changed: --dry-run")
            return
        # If somebody else changed it since we read it, theirs must not be lost: 412, try again.
        answer = client.call("PUT", path, body=document, if_match=present.etag).body
    report(ctx, answer, "the policy is changed; hosts get it at once")


@app.command("budget")
def budget_of_policy(
    ctx: typer.Context,
    policy: str | None = typer.Argument(
        None,
        metavar="PROFILE|CLUSTER|FILE",
        help="A profile, a cluster, or a YAML file (- reads stdin). Default: the only cluster.",
    ),
    values: list[str] | None = typer.Option(
        None, "--set", metavar="FIELD=VALUE", help="As if this were changed; may be repeated."
    ),
    cluster: str | None = typer.Option(
        None, "--cluster", help="A cluster, also one that is called like a profile."
    ),
) -> None:
    """Show what a policy adds up to. Step by step, from a failure until the VM starts elsewhere.

    Profiles and files need no server.
    """
    if policy is not None and cluster is not None:
        raise InvalidInput("two policies are named", field="--cluster", fix="give one of them")
    name, document = _named_policy(ctx, policy, cluster)
    document = apply_changes(document, _assigned(values))
    show_budget(options(ctx), name, policy_of(document))


def _named_policy(
    ctx: typer.Context, name: str | None, cluster: str | None
) -> tuple[str, Document]:
    """What to call it, and the policy."""
    if name in tuple(Profile):
        return f"profile {name}", document_of(PROFILES[Profile(name)])
    if name is not None and _is_file(name):
        called = "stdin" if name == "-" else name
        return called, document_of(read_policy(_read(name, field="FILE"), file=called))
    with connected(ctx) as client:
        found = chosen_cluster(client, cluster or name)
        document = client.get(cluster_path(found, "policy"))
    return f"cluster {cluster or name}" if cluster or name else "the cluster's policy", document


def _is_file(name: str) -> bool:
    return name == "-" or "/" in name or name.endswith((".yaml", ".yml")) or Path(name).is_file()


@app.command("fields")
def list_fields(
    ctx: typer.Context,
    word: str = typer.Argument("", metavar="WORD", help="Only those with this word in them."),
) -> None:
    """List every field. With its default, its range and its meaning (works offline)."""
    given = options(ctx)
    found = [
        field
        for field in FIELD_TABLE.values()
        if word.lower() in f"{field.shown} {field.about.meaning}".lower()
    ]
    data = [
        {
            "field": field.shown,
            "default": field.text(field.default),
            "allowed": list(field.allowed),
            "meaning": field.about.meaning,
            "source": field.about.source,
        }
        for field in found
    ]
    if write_data(given, data):
        return
    if given.quiet:
        for field in found:
            typer.echo(field.shown)
        return
    rows = [
        [one.shown, one.text(one.default), ", ".join(one.allowed), one.about.meaning]
        for one in found
    ]
    titles = ("field", "default", "allowed", "meaning")
    print_table(titles, rows, plain=chosen_output(given) is None)


def _read(name: str, *, field: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read(BYTES_MAX + 1)
        with Path(name).open(encoding="utf-8") as stream:
            return stream.read(BYTES_MAX + 1)
    except OSError as exc:
        raise InvalidInput(
            f"can't read {name}: {exc.strerror}",
            field=field,
            fix="name a YAML file, or - for stdin",
        ) from exc
    except UnicodeDecodeError as exc:
        raise InvalidInput(
            f"{name} is not UTF-8 text", field=field, fix="name a YAML file"
        ) from exc
