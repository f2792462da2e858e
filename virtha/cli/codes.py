"""`virtha codes` (offline, from the registry) and `virtha capabilities`."""

from difflib import get_close_matches
from typing import Any

import msgspec
import typer

from virtha.cli.options import options
from virtha.cli.output import Column, View, at, chosen_output, emit_list, emit_one, print_table
from virtha.cli.session import show
from virtha.cli.text import clean
from virtha.model.codes import REGISTRY, Code, Kind
from virtha.model.errors import NotFound

codes_app = typer.Typer()
capabilities_app = typer.Typer()

CODE = View(
    name=at("name"),
    columns=(
        Column("NUMBER", at("number")),
        Column("CODE", at("name")),
        Column("KIND", at("kind")),
        Column("SEVERITY", at("severity")),
        Column("TEXT", at("template")),
        Column("WHAT TO DO", at("help"), wide=True),
    ),
    details=lambda item: [
        ("code", item["name"]),
        ("number", item["number"]),
        ("kind", item["kind"]),
        ("severity", item["severity"]),
        ("text", item["template"]),
        *[("fields", item["fields"])] * bool(item["fields"]),
        *[("what to do", item["help"])] * bool(item["help"]),
    ],
)


@codes_app.command()
def codes(
    ctx: typer.Context,
    code: str | None = typer.Argument(
        None, metavar="CODE", help="A name, a number, or vm.watchdog.*"
    ),
    kind: Kind | None = typer.Option(None, help="Only events, reasons or problems."),
) -> None:
    """Explain a code of an event, reason or problem, or list them all. Needs no server."""
    given = options(ctx)
    everything = sorted(REGISTRY.values(), key=lambda entry: entry.number)
    chosen = [entry for entry in everything if kind is None or entry.kind is kind]
    if code is None or code.endswith("*"):
        prefix = (code or "").rstrip("*")
        chosen = [entry for entry in chosen if entry.name.startswith(prefix)]
        emit_list(given, [_plain(entry) for entry in chosen], CODE)
        return
    found = [entry for entry in chosen if code in (entry.name, str(entry.number))]
    if not found:
        near = get_close_matches(code, REGISTRY, 1)
        raise NotFound(
            f"there is no code '{code}'",
            field="CODE",
            fix=f"did you mean '{near[0]}'?" if near else "virtha codes lists all",
        )
    emit_one(given, _plain(found[0]), CODE)


def _plain(entry: Code) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(entry)
    return built


@capabilities_app.command()
def capabilities(ctx: typer.Context) -> None:
    """Which watchdog models and actions VMs may use, and what each host accepts."""
    from virtha.cli.output import write_data

    def write(given: Any, found: dict[str, Any]) -> None:
        if write_data(given, found):
            return
        plain = chosen_output(given) is None
        offers = [
            [
                offer["architecture"],
                offer["machine"],
                clean(offer["models"]),
                clean(offer["accepted"]),
            ]
            for offer in found["watchdogs"]
        ]
        print_table(["ARCHITECTURE", "MACHINE", "MODELS", "ACCEPTED BY HOSTS"], offers, plain=plain)
        typer.echo()
        hosts = [[name, clean(models)] for name, models in sorted(found["hosts"].items())]
        print_table(["HOST", "ACCEPTS"], hosts, plain=plain)
        typer.echo(f"\nactions: {clean(found['actions'])}")

    show(ctx, lambda client: client.get("/v1/capabilities"), write, watch=False)
