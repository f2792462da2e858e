"""`virtha doctor`: what would fail today, and `virtha explain`: why something is as it is."""

from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import Options
from virtha.cli.output import moment, write_data
from virtha.cli.session import WatchOption, show
from virtha.cli.text import clean
from virtha.model.codes import REGISTRY
from virtha.model.errors import InvalidInput, NotFound

doctor_app = typer.Typer()
explain_app = typer.Typer()
PATHS = {"host": "/v1/hosts", "vm": "/v1/vms", "cluster": "/v1/clusters"}
WORDS = {
    "ready": "READY: nothing found that would fail",
    "at_risk": "AT RISK: protected, but not against everything",
    "not_ready": "NOT READY: something would fail today",
}
_FAILS = {"error", "alert"}


def _path(about: str, *kinds: str) -> str:
    """Of ``host/h1``. Raises InvalidInput."""
    kind, slash, name = about.partition("/")
    if not slash or kind not in kinds:
        raise InvalidInput(
            f"'{about}' is none of these",
            field="ABOUT",
            allowed=tuple(f"{one}/NAME" for one in kinds),
        )
    return f"{PATHS[kind]}/{ref(name, field='ABOUT')}"


@doctor_app.command()
def doctor(
    ctx: typer.Context,
    about: str | None = typer.Argument(
        None, metavar="[host/NAME|vm/NAME|cluster/NAME]", help="Without: all there is."
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit with 1 for warnings, too."),
    watch: bool = WatchOption,
) -> None:
    """What would fail today, before it is needed, and what to do about it.

    Exit code 1: something would fail.
    """
    path = "/v1" if about is None else _path(about, *PATHS)
    verdicts: list[str] = []

    def write(given: Options, found: dict[str, Any]) -> None:
        verdicts.append(found["verdict"])
        if not write_data(given, found):
            _write(given, found)

    show(ctx, lambda client: client.get(f"{path}/readiness"), write, watch=watch)
    if verdicts[-1] == "not_ready" or (strict and verdicts[-1] == "at_risk"):
        raise typer.Exit(1)


def _write(given: Options, found: dict[str, Any]) -> None:
    if given.quiet:
        typer.echo(clean(found["verdict"]))
        return
    typer.echo(WORDS.get(found["verdict"], clean(found["verdict"])))
    typer.echo(f"{clean(found['about'])}: {found['hosts']} hosts and {found['vms']} VMs looked at")
    if found["findings"]:
        typer.echo()
        for one in found["findings"]:
            word = "FAILS" if one["severity"] in _FAILS else one["severity"].upper()
            typer.echo(f"{word:8}{clean(one['about'])}: {clean(one['text'])}")
            if one["fix"]:
                typer.echo(f"{'':8}-> {clean(one['fix'])}")
    typer.echo("\nnot looked at: " + "; ".join(clean(one) for one in found["not_looked_at"]))


@explain_app.command()
def explain(
    ctx: typer.Context,
    about: str = typer.Argument(metavar="host/NAME|vm/NAME", help="What is to be explained."),
    watch: bool = WatchOption,
) -> None:
    """Why is it so, what is waited for, and what can be done."""
    path = _path(about, "host", "vm")
    kind, _, name = about.partition("/")

    def fetch(client: Client) -> dict[str, Any]:
        explained = _explained(about, client.get(path))
        return {**explained, "incident": _last_incident(client, kind, name)}

    def write(given: Options, found: dict[str, Any]) -> None:
        if write_data(given, found):
            return
        typer.echo(f"{clean(found['about'])}: {clean(found['state'])}")
        for one in found["reasons"]:
            typer.echo(f"- {clean(one['text'])} ({clean(one['code'])})")
            if one["help"]:
                typer.echo(f"  -> {clean(one['help'])}")
        if found["incident"] is not None:
            one = found["incident"]
            word = "incident" if one["open"] else "last incident"
            typer.echo(
                f"{word}: {clean(one['stage'])}, opened {moment(one['opened'])}\n"
                f"  -> virtha incident show {clean(one['id'])}"
            )

    show(ctx, fetch, write, watch=watch)


def _last_incident(client: Client, kind: str, name: str) -> dict[str, Any] | None:
    """None: there is none, or the server is of a version that keeps no such record."""
    try:
        found = client.get("/v1/incidents", limit=1, **{kind: name})["items"]
    except NotFound:
        return None
    last: dict[str, Any] | None = found[0] if found else None
    return last


def _explained(about: str, item: dict[str, Any]) -> dict[str, Any]:
    """From what the API shows of it: its own reasons first, the engine's after them."""
    told = [*zip(item["engine"], item["engine_text"], strict=True)]
    if "vm" in item:
        state = item["status"]["state"]
        told = [
            *zip(item["status"]["reasons"], item["reason_text"], strict=True),
            *told,
            *zip(item["protection"], item["protection_text"], strict=True),
        ]
    else:
        state = item["verdict"] or item["status"]["state"]
    reasons = [
        {
            "code": reason["code"],
            "text": text,
            "help": REGISTRY[reason["code"]].help if reason["code"] in REGISTRY else "",
            "fields": reason["fields"],
        }
        for reason, text in told
    ]
    return {"about": about, "state": state, "reasons": reasons}
