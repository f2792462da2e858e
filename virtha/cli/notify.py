"""`virtha notify`: who is told of what, and what became of each message."""

from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.notify_receiver import app as receiver_app
from virtha.cli.notify_receiver import list_receivers, receiver_path
from virtha.cli.notify_route import add_route, list_routes, remove_route
from virtha.cli.notify_route import app as route_app
from virtha.cli.notify_silence import inhibition_app, silence_app
from virtha.cli.notify_views import DELIVERY, FATE, tested_line
from virtha.cli.options import options
from virtha.cli.output import emit_list, write_data
from virtha.cli.session import WatchOption, connected, report, show_list, show_one
from virtha.cli.several import each
from virtha.cli.text import clean
from virtha.drivers.mib import mib_text
from virtha.model.errors import Failed
from virtha.model.notification import DeliveryState

app = typer.Typer(no_args_is_help=True, help="Tell people and machines what happens.")
app.add_typer(receiver_app, name="receiver")
app.command("receivers")(list_receivers)
app.add_typer(route_app, name="route")
app.command("subscribe")(add_route)
app.command("unsubscribe")(remove_route)
app.command("subscriptions")(list_routes)
app.add_typer(silence_app, name="silence")
app.add_typer(inhibition_app, name="inhibition")
LIST_MAX = 100


@app.command("test")
def test(
    ctx: typer.Context,
    receiver: str = typer.Argument(metavar="RECEIVER", help="Name or id."),
    address: str | None = typer.Option(None, help="Mail: to whom. Default: your own address."),
) -> None:
    """Send a test message now and say how it fared. Exit code 1 if it was not accepted."""
    given = options(ctx)
    body = {"address": address} if address is not None else {}
    with connected(ctx) as client:
        # Longer than the longest deadline that can be set (notification.deadline).
        answer = client.call(
            "POST", f"{receiver_path(receiver)}/test", body=body, answer_s=TEST_ANSWER_S
        ).body
    if answer["outcome"] != "accepted":
        write_data(given, answer)
        raise Failed(f"{receiver}: {tested_line(answer)}", code=answer["code"], fix=_fix_of(answer))
    report(ctx, answer, f"{receiver}: {tested_line(answer)}")


TEST_ANSWER_S = 130.0


def _fix_of(answer: dict[str, Any]) -> str:
    from virtha.model.codes import REGISTRY

    known = REGISTRY.get(answer["code"])
    return known.help if known is not None else ""


@app.command("list")
def list_messages(
    ctx: typer.Context,
    receiver: str | None = typer.Option(None, help="Only of this receiver."),
    subscription: str | None = typer.Option(None, help="Only of this subscription."),
    state: DeliveryState | None = typer.Option(None, help="Only in this state."),
    event: int | None = typer.Option(None, metavar="REVISION", help="Only about this event."),
    limit: int = typer.Option(LIST_MAX, "--limit", "-n", min=1, help="At most so many."),
    watch: bool = WatchOption,
) -> None:
    """List messages and what became of each, newest first."""

    def fetch(client: Client) -> list[Any]:
        return client.items(
            "/v1/deliveries",
            limit=limit,
            receiver=receiver,
            subscription=subscription,
            state=state.value if state else None,
            event=event,
        )

    show_list(ctx, fetch, DELIVERY, watch=watch)


@app.command("show")
def show_message(
    ctx: typer.Context,
    ident: str = typer.Argument(metavar="ID", help="The message's id."),
    watch: bool = WatchOption,
) -> None:
    """Show one message, what became of it, and its event."""
    show_one(ctx, lambda client: client.get(_path(ident)), DELIVERY, watch=watch)


@app.command("retry")
def retry_messages(
    ctx: typer.Context,
    idents: list[str] = typer.Argument(metavar="ID…", help="The messages' ids."),
) -> None:
    """Send messages again, now. Also refused and expired ones; not what was sent."""
    with connected(ctx) as client:

        def retry(ident: str) -> None:
            answer = client.call("POST", f"{_path(ident)}/retry").body
            report(ctx, answer, f"{ident} is sent again")

        each(idents, retry)


@app.command("why")
def why(
    ctx: typer.Context,
    event: int = typer.Argument(metavar="EVENT", help="The event's number (REVISION)."),
) -> None:
    """What became of an event at each route, and why."""
    given = options(ctx)
    with connected(ctx) as client:
        answer = client.get(f"/v1/events/{event}/fates")
    if write_data(given, answer):
        return
    told = answer["event"]
    typer.echo(clean(f"{told['severity']} {told['code']}: {told['message']}"))
    emit_list(given, answer["routes"], FATE)


@app.command("mib")
def print_mib() -> None:
    """Print the MIB of our SNMP notifications (works offline)."""
    typer.echo(mib_text(), nl=False)


def _path(ident: str) -> str:
    return f"/v1/deliveries/{ref(ident, field='ID')}"
