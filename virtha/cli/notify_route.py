"""`virtha notify route`: which events go to which receiver, and how."""

import sys
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.notify_views import ROUTE, weight_lines
from virtha.cli.options import Output, options
from virtha.cli.output import note
from virtha.cli.parsing import confirm, parse_label, parse_quiet_hours
from virtha.cli.session import WatchOption, YesOption, connected, report, show_list, show_one
from virtha.model.codes.entry import Severity
from virtha.model.errors import InvalidInput
from virtha.model.routing import GroupBy
from virtha.model.time import parse_duration_ms

app = typer.Typer(no_args_is_help=True, help="Which events go to which receiver, and how.")
RouteArgument = typer.Argument(metavar="SUBSCRIPTION", help="The route's name or id.")
AddressOption = typer.Option(None, help="Mail: to this address.")
UserOption = typer.Option(None, help="Mail: to this user's address.")
CodeOption = typer.Option(
    None, "--code", metavar="CODE", help="Only this event; may end in *. Repeatable."
)
SeverityOption = typer.Option(
    None, help="The least severity. Default: info with --code, else warning."
)
ClusterOption = typer.Option(None, help="Only of this cluster.")
HostOption = typer.Option(None, help="Only of this host.")
VmOption = typer.Option(None, help="Only of this VM.")
LabelOption = typer.Option(
    None,
    "--label",
    metavar="FIELD=VALUE",
    help="Only with this field; may end in *. Repeatable; '' for none.",
)
GroupOption = typer.Option(
    None, "--group", help="Tell events of one cause, host or cluster together. Default: none."
)
WaitOption = typer.Option(
    None, metavar="DURATION", help="How long a group's first message waits for more. Default: 10s."
)
IntervalOption = typer.Option(
    None, metavar="DURATION", help="Least time between two messages of a group. Default: 5m."
)
SolvedOption = typer.Option(
    None,
    "--solved/--no-solved",
    help="Tell the end of each problem that was told? Default: with --group.",
)
RepeatOption = typer.Option(
    None, metavar="DURATION", help="Tell problems that go on again this often, or 'never'."
)
SameOption = typer.Option(
    None, metavar="DURATION", help="Don't tell the same again within this time. Default: 0s."
)
QuietOption = typer.Option(
    None,
    "--quiet-hours",
    metavar="SPAN",
    help="Only alerts then: '22:00-07:00', 'mon-fri 18:00-08:00 Europe/Berlin'. Repeatable; '' for none.",
)


def route_path(name: str) -> str:
    return f"/v1/subscriptions/{ref(name, field='SUBSCRIPTION')}"


@app.command("add")
def add_route(
    ctx: typer.Context,
    receiver: str = typer.Argument(metavar="RECEIVER", help="By which receiver."),
    name: str | None = typer.Option(None, help="Name. Default: the receiver's with a number."),
    address: str | None = AddressOption,
    user: str | None = UserOption,
    code: list[str] | None = CodeOption,
    severity: Severity | None = SeverityOption,
    cluster: str | None = ClusterOption,
    host: str | None = HostOption,
    vm: str | None = VmOption,
    label: list[str] | None = LabelOption,
    group: GroupBy | None = GroupOption,
    group_wait: str | None = WaitOption,
    group_interval: str | None = IntervalOption,
    solved: bool | None = SolvedOption,
    repeat: str | None = RepeatOption,
    same_again: str | None = SameOption,
    quiet_hours: list[str] | None = QuietOption,
) -> None:
    """Send events from now on to a receiver. All limits that are given must fit."""
    body = {
        "receiver": receiver,
        "name": name,
        "address": address,
        "user": user,
        "codes": code or None,
        "severity": severity.value if severity else None,
        "cluster": cluster,
        "host": host,
        "vm": vm,
        **_how(label, group, group_wait, group_interval, solved, repeat, same_again, quiet_hours),
    }
    with connected(ctx) as client:
        answer = client.post(
            "/v1/subscriptions", {key: value for key, value in body.items() if value is not None}
        )
    report(ctx, answer, f"subscription {answer['subscription']['name']} is created")
    _tell_weight(ctx, answer)


@app.command("set")
def set_route(
    ctx: typer.Context,
    name: str = RouteArgument,
    rename: str | None = typer.Option(None, "--name", metavar="NEW", help="New name."),
    address: str | None = AddressOption,
    user: str | None = UserOption,
    code: list[str] | None = CodeOption,
    severity: Severity | None = SeverityOption,
    cluster: str | None = typer.Option(None, help="Only of this cluster; '' for any."),
    host: str | None = typer.Option(None, help="Only of this host; '' for any."),
    vm: str | None = typer.Option(None, help="Only of this VM; '' for any."),
    label: list[str] | None = LabelOption,
    group: GroupBy | None = GroupOption,
    group_wait: str | None = WaitOption,
    group_interval: str | None = IntervalOption,
    solved: bool | None = SolvedOption,
    repeat: str | None = RepeatOption,
    same_again: str | None = SameOption,
    quiet_hours: list[str] | None = QuietOption,
    enabled: bool | None = typer.Option(None, "--enable/--disable", help="Is it used?"),
) -> None:
    """Change a route. What is given replaces what was; switched off, it drops what waits."""
    body: dict[str, Any] = {
        "name": rename,
        "codes": code or None,
        "severity": severity.value if severity else None,
        "enabled": enabled,
        **_how(label, group, group_wait, group_interval, solved, repeat, same_again, quiet_hours),
    }
    body = {key: value for key, value in body.items() if value is not None}
    if repeat == "never":
        body["repeat_ms"] = None
    subjects = {"cluster": cluster, "host": host, "vm": vm, "address": address, "user": user}
    body |= {key: value or None for key, value in subjects.items() if value is not None}
    if not body:
        raise InvalidInput("nothing to change is given", fix="see: virtha notify route set --help")
    with connected(ctx) as client:
        found = client.call("GET", route_path(name))
        answer = client.call("PATCH", route_path(name), body=body, if_match=found.etag).body
    report(ctx, answer, f"subscription {answer['subscription']['name']} is changed")
    _tell_weight(ctx, answer)


@app.command("list")
def list_routes(ctx: typer.Context, watch: bool = WatchOption) -> None:
    """List routes (subscriptions)."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/subscriptions")

    show_list(ctx, fetch, ROUTE, watch=watch)


@app.command("show")
def show_route(ctx: typer.Context, name: str = RouteArgument, watch: bool = WatchOption) -> None:
    """Show one route, and what it would have told of the last events."""
    show_one(ctx, lambda client: client.get(route_path(name)), ROUTE, watch=watch)


@app.command("remove")
def remove_route(ctx: typer.Context, name: str = RouteArgument, yes: bool = YesOption) -> None:
    """End a route (a subscription). Its messages that still wait are dropped."""
    confirm(f"End subscription {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(route_path(name))
    report(ctx, answer, f"subscription {name} has ended")


def _how(
    label: list[str] | None,
    group: GroupBy | None,
    group_wait: str | None,
    group_interval: str | None,
    solved: bool | None,
    repeat: str | None,
    same_again: str | None,
    quiet_hours: list[str] | None,
) -> dict[str, Any]:
    """By the API's names; None: it was not given."""
    spans = None if quiet_hours is None else [one for one in quiet_hours if one.strip()]
    return {
        "labels": None if not label else dict(parse_label(one) for one in label if one.strip()),
        "group_by": group.value if group else None,
        "group_wait_ms": _duration(group_wait, "--group-wait"),
        "group_interval_ms": _duration(group_interval, "--group-interval"),
        "solved": solved,
        "repeat_ms": None if repeat == "never" else _duration(repeat, "--repeat"),
        "same_again_ms": _duration(same_again, "--same-again"),
        "quiet": None if not quiet_hours else [parse_quiet_hours(one) for one in spans or ()],
    }


def _duration(text: str | None, field: str) -> int | None:
    return None if text is None else parse_duration_ms(text, field=field)


def _tell_weight(ctx: typer.Context, answer: dict[str, Any]) -> None:
    """Beside the result, as a note."""
    if options(ctx).output in (None, Output.TABLE, Output.WIDE):
        for line in weight_lines(answer):
            note(options(ctx), line)
