"""`virtha status`, `hold` and `unhold`: am I protected, and by what not?"""

from typing import Any

import typer

from virtha.cli.options import Options, Output
from virtha.cli.output import chosen_output, print_table, size, stdout_console, styled, write_data
from virtha.cli.session import WatchOption, connected, report, show
from virtha.cli.text import clean
from virtha.model.codes import REGISTRY
from virtha.model.errors import InvalidInput

status_app = typer.Typer()
hold_app = typer.Typer()
unhold_app = typer.Typer()

_VERDICT_STYLE = {"protected": "bold green", "degraded": "bold yellow", "unprotected": "bold red"}


@status_app.command()
def status(
    ctx: typer.Context,
    every: bool = typer.Option(False, "--all", "-a", help="Also VMs with which nothing is wrong."),
    watch: bool = WatchOption,
) -> None:
    """Am I protected? The verdict first, then hosts, and VMs with what is wrong and what to do."""

    def write(given: Options, found: dict[str, Any]) -> None:
        if write_data(given, found):
            return
        if given.quiet:
            typer.echo(clean(found["verdict"]))
            return
        _write_status(given, found, every=every or chosen_output(given) is Output.WIDE)

    show(ctx, lambda client: client.get("/v1/status"), write, watch=watch)


def _write_status(given: Options, found: dict[str, Any], *, every: bool) -> None:
    plain = chosen_output(given) is None
    verdict = f"{found['verdict'].upper()}: {found['verdict_text']}"
    _say(verdict, _VERDICT_STYLE.get(found["verdict"], "bold"), plain=plain)
    if found["hold"] is not None:
        _say(
            f"ON HOLD: {found['hold']} (no automatic action; lift it: virtha unhold)",
            "bold yellow",
            plain=plain,
        )
    totals = found["totals"]
    typer.echo(
        f"{totals['hosts_up']} of {totals['hosts']} hosts up, "
        f"{totals['vms_running']} of {totals['vms']} VMs running, "
        f"{totals['vms_protected']} of {totals['vms_ha']} HA VMs protected\n"
    )
    if not found["hosts"]:
        typer.echo(
            "no host has joined yet: virtha token create, then `virtha agent join` on the host"
        )
        return
    rows = [[clean(cell) for cell in _host_row(host)] for host in found["hosts"]]
    print_table(["HOST", "STATE", "VMS", "MEMORY", "FREE", "WHAT IS WRONG"], rows, plain=plain)
    shown = [vm for vm in found["vms"] if every or (vm["ha"] and not _is_fine(vm))]
    if shown:
        typer.echo()
        rows = [[clean(cell) for cell in _vm_row(vm)] for vm in shown]
        print_table(["VM", "STATE", "HOST", "PROTECTED", "WHY", "WHAT TO DO"], rows, plain=plain)
    left = len(found["vms"]) - len(shown)
    if left:
        typer.echo(
            f"\n{left} more VMs are as they should be or not marked as HA (--all shows them)"
        )


def _say(text: str, style: str, *, plain: bool) -> None:
    if plain:
        typer.echo(clean(text))
        return
    line = styled(clean(text))
    line.stylize(style)
    stdout_console().print(line)


def _is_fine(vm: dict[str, Any]) -> bool:
    return all(reason["code"] == "protection.ok" for reason in vm["protection"])


def _host_row(host: dict[str, Any]) -> list[Any]:
    wrong = list(host["reason_text"])
    return [
        host["name"],
        host["state"],
        host["vms"],
        size(host["memory_bytes"]),
        size(host["free_memory_bytes"]),
        "; ".join(wrong),
    ]


def _vm_row(vm: dict[str, Any]) -> list[Any]:
    helps = [REGISTRY[r["code"]].help for r in vm["protection"] if r["code"] in REGISTRY]
    return [
        vm["name"],
        vm["state"],
        vm["host_name"],
        "yes" if vm["protected"] else "no",
        "; ".join(vm["protection_text"]),
        "; ".join(dict.fromkeys(text for text in helps if text)),
    ]


@hold_app.command()
def hold(
    ctx: typer.Context,
    reason: str | None = typer.Argument(None, metavar="REASON", help="Why; everybody sees it."),
    lift: bool = typer.Option(False, "--lift", help="Let automatic action run again."),
) -> None:
    """Stop all automatic action, with a reason; without one, show whether it is stopped."""
    if lift and reason:
        raise InvalidInput(
            "a reason and --lift exclude each other", field="--lift", fix="give one of them"
        )
    with connected(ctx) as client:
        if lift:
            _lift(ctx, client)
        elif reason is None:
            found = client.get("/v1/hold")
            held = found["reason"]
            report(
                ctx, found, "automatic action runs" if held is None else f"on hold: {clean(held)}"
            )
        else:
            answer = client.call("PUT", "/v1/hold", body={"reason": reason}).body
            report(ctx, answer, f"automatic action is on hold: {clean(reason)}")


@unhold_app.command()
def unhold(ctx: typer.Context) -> None:
    """Let automatic action run again."""
    with connected(ctx) as client:
        _lift(ctx, client)


def _lift(ctx: typer.Context, client: Any) -> None:
    report(ctx, client.delete("/v1/hold"), "automatic action runs again")
