"""`virtha vm watchdog` and `virtha template watchdog`: the card of either."""

from collections.abc import Callable
from typing import Any

import typer

from virtha.cli.output import View
from virtha.cli.session import connected, report, show_one
from virtha.model.watchdog import WatchdogAction, WatchdogModel, parse_watchdog

MODELS = ", ".join(WatchdogModel)
ACTIONS = ", ".join(WatchdogAction)
CardHelp = f"MODEL:ACTION. Models: {MODELS}. Actions: {ACTIONS}."
CARD = View(
    name=lambda item: f"{item['model']}:{item['action']}",
    columns=(),
    details=lambda item: [("model", item["model"]), ("action", item["action"])],
)


def card_body(text: str) -> dict[str, str]:
    card = parse_watchdog(text)
    return {"model": str(card.model), "action": str(card.action)}


def card_or_none(text: str) -> dict[str, str] | None:
    """Where there may be one already: ``none`` is no card."""
    return None if text == "none" else card_body(text)


def watchdog_app(owner: str, argument: Any, path: Callable[..., str]) -> typer.Typer:
    """``owner`` is what messages call it (`VM`), ``argument`` its name on the command line, ``path`` its own in the API."""
    app = typer.Typer(no_args_is_help=True, help=f"A {owner}'s watchdog card.")

    @app.command("show")
    def show_watchdog(ctx: typer.Context, name: str = argument) -> None:
        """Show the card: its model, and what is done when it fires."""
        show_one(ctx, lambda client: client.get(path(name, "watchdog")), CARD)

    @app.command("set", help=f"Give a {owner} this card, in place of the one it has.")
    def set_watchdog(
        ctx: typer.Context,
        name: str = argument,
        card: str = typer.Argument(metavar="MODEL:ACTION", help=CardHelp),
    ) -> None:
        body = card_body(card)
        with connected(ctx) as client:
            answer = client.call("PUT", path(name, "watchdog"), body=body).body
        report(ctx, answer, f"{owner} {name} has watchdog {card}")

    @app.command("remove")
    def remove_watchdog(ctx: typer.Context, name: str = argument) -> None:
        """Remove the card."""
        with connected(ctx) as client:
            answer = client.delete(path(name, "watchdog"))
        report(ctx, answer, f"{owner} {name} has no watchdog now")

    return app
