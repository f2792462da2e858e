"""`virtha host power` and `virtha cluster power`: the devices that switch hosts off and on."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.options import options
from virtha.cli.output import Column, Object, View, at, moment, write_data
from virtha.cli.parsing import confirm
from virtha.cli.progress import failure_of, finish, wait_for
from virtha.cli.session import (
    TimeoutOption,
    WaitOption,
    WatchOption,
    YesOption,
    connected,
    read_secret,
    report,
    show_list,
    show_one,
)
from virtha.model.errors import Failed, InvalidInput, VirthaError

ANSWER_S = 120.0
"""A slow device's reading or test is waited for."""
DEVICE = "bmc"
DIGITS_MAX = 9
NUMBERS = ("level", "port", "cipher")
FIELDS = (
    *("driver", "level", "address", "port", "plug", "user", "asked_from"),
    *("executable", "syntax"),
    *("stop", "start", "reboot", "blink", "test", "status", "status_on", "status_off"),
    *("password_by", "cipher", "privilege", "certificate", "authority_pem", "agent"),
)
host_app = typer.Typer(no_args_is_help=True, help="The devices that switch a host off and on.")
cluster_app = typer.Typer(
    no_args_is_help=True, help="What a cluster's hosts have in common in their power devices."
)
agent_app = typer.Typer(no_args_is_help=True, help="Fence agents on the server.")
host_app.add_typer(agent_app, name="agent")
HostArgument = typer.Argument(metavar="HOST", help="Name or id.")
ClusterArgument = typer.Argument(metavar="CLUSTER", help="Name or id.")
OnlyDeviceOption = typer.Option(
    None, "--device", metavar="NAME", help="Only this device. Default: all, level by level."
)
ForceOption = typer.Option(False, "--force", help="Although VMs run there.")
DeviceOption = typer.Option(DEVICE, "--device", metavar="NAME", help="Which device.")
FieldsArgument = typer.Argument(
    None,
    metavar="[FIELD=VALUE]...",
    help="driver=command|ipmi|redfish|fence-agent, address=…, user=…; parameters.NAME=… for a fence agent; "
    "FIELD=@FILE reads a file; FIELD= (empty): none, whatever the cluster says.",
)
UnsetOption = typer.Option(
    None, "--unset", metavar="FIELD", help="Back to the cluster's value, or the default."
)
PasswordOption = typer.Option(False, "--password", help="Ask for a password.")
PasswordStdinOption = typer.Option(
    False, "--password-stdin", help="Read the password from stdin's first line."
)


def _whole(item: Object) -> Object:
    return dict(item["whole"]) if "whole" in item else dict(item["power"]["settings"])


def _state(item: Object) -> str:
    if not item["usable"]:
        return "unusable"
    if item["tested"]:
        return "tested"
    return "changed since its test" if item["test"] and item["test"]["passed"] else "untested"


def _host_details(item: Object) -> list[tuple[str, Any]]:
    test = item["test"] or {}
    lines: list[tuple[str, Any]] = [
        ("name", item["name"]),
        ("host", item["host"]),
        ("state", _state(item)),
        ("problem", item["problem"]),
        *[(f"{name} {_of(item, name)}", value) for name, value in _shown(item["whole"])],
        ("secrets set", item["secrets"]),
        ("can prove", "yes" if item["proves"] else "no"),
        ("warnings", item["warning_texts"]),
        ("last test", _last_test(test)),
        ("last passed", moment(test.get("passed_at"))),
        ("it said", test.get("state")),
        ("identity", test.get("identity")),
        ("why", test.get("code")),
        ("its words", test.get("detail")),
        ("revision", item["power"]["revision"] if item["power"] else None),
    ]
    return [(label, value) for label, value in lines if value not in (None, "", [])]


def _last_test(test: Object) -> str:
    by = ", by the server itself" if test.get("scheduled") else ""
    return f"{moment(test.get('at'))}{by}" if test else ""


def _of(item: Object, name: str) -> str:
    return "(cluster)" if name in item["inherited"] else ""


def _shown(settings: Object) -> list[tuple[str, Any]]:
    return [
        (name, "given" if name == "authority_pem" else value)
        for name, value in settings.items()
        if value not in (None, {})
    ]


HOST_POWER = View(
    name=at("name"),
    columns=(
        Column("DEVICE", at("name")),
        Column("DRIVER", at("whole", "driver")),
        Column("LEVEL", lambda item: item["whole"]["level"] or 1),
        Column("ADDRESS", at("whole", "address")),
        Column("STATE", _state),
        Column("IDENTITY", at("test", "identity")),
    ),
    details=_host_details,
)
CLUSTER_POWER = View(
    name=at("power", "name"),
    columns=(
        Column("DEVICE", at("power", "name")),
        Column("DRIVER", at("power", "settings", "driver")),
        Column("SETTINGS", lambda item: ", ".join(name for name, _ in _shown(_whole(item)))),
        Column("SECRETS", lambda item: ", ".join(item["power"]["secrets"])),
    ),
)
AGENT = View(
    name=at("name"),
    columns=(Column("NAME", at("name")),),
    details=lambda item: [
        ("name", item["name"]),
        ("title", item["title"]),
        *([("can't be used", item["unfit"])] if item["unfit"] else []),
        ("actions", item["actions"]),
        *[(_parameter(one), one["help"]) for one in item["parameters"]],
    ],
)


def _parameter(one: Object) -> str:
    kind = "|".join(one["options"]) or one["kind"]
    marks = (" required" if one["required"] else "") + (" secret" if one["secret"] else "")
    default = f" [{one['default']}]" if one["default"] else ""
    return f"{one['name']} ({kind}{marks}){default}"


def _host_path(host: str, *more: str) -> str:
    return "/".join(["/v1/hosts", ref(host, field="HOST"), "power", *more])


def _cluster_path(cluster: str, *more: str) -> str:
    return "/".join(["/v1/clusters", ref(cluster, field="CLUSTER"), "power", *more])


@host_app.command("list")
def list_power(ctx: typer.Context, host: str = HostArgument, watch: bool = WatchOption) -> None:
    """List a host's power devices."""
    show_list(ctx, lambda client: client.items(_host_path(host)), HOST_POWER, watch=watch)


@host_app.command("show")
def show_power(
    ctx: typer.Context,
    host: str = HostArgument,
    device: str = DeviceOption,
    watch: bool = WatchOption,
) -> None:
    """Show one power device and its last test. Its password is never shown."""
    show_one(
        ctx,
        lambda client: client.get(_host_path(host, ref(device, field="--device"))),
        HOST_POWER,
        watch=watch,
    )


@host_app.command("set")
def set_power(
    ctx: typer.Context,
    host: str = HostArgument,
    given: list[str] | None = FieldsArgument,
    device: str = DeviceOption,
    unset: list[str] | None = UnsetOption,
    password: bool = PasswordOption,
    password_stdin: bool = PasswordStdinOption,
) -> None:
    """Set up a power device of a host. What is not given stays, or is the cluster's."""
    changes = _changes(given, unset)  # before a password is asked for
    secrets = _secrets(password, password_stdin)
    answer = _set(ctx, _host_path, host, device, changes, secrets)
    text = f"power device {device} of {host} is set; try it: virtha host power test {host}"
    report(ctx, answer, text if device == DEVICE else f"{text} --device {device}")


@cluster_app.command("list")
def list_cluster_power(
    ctx: typer.Context, cluster: str = ClusterArgument, watch: bool = WatchOption
) -> None:
    """List what a cluster says of its hosts' power devices."""
    show_list(ctx, lambda client: client.items(_cluster_path(cluster)), CLUSTER_POWER, watch=watch)


@cluster_app.command("set")
def set_cluster_power(
    ctx: typer.Context,
    cluster: str = ClusterArgument,
    given: list[str] | None = FieldsArgument,
    device: str = DeviceOption,
    unset: list[str] | None = UnsetOption,
    password: bool = PasswordOption,
    password_stdin: bool = PasswordStdinOption,
) -> None:
    """Set up what the hosts of a cluster have in common. Addresses are each host's own."""
    changes = _changes(given, unset)  # before a password is asked for
    secrets = _secrets(password, password_stdin)
    answer = _set(ctx, _cluster_path, cluster, device, changes, secrets)
    report(ctx, answer, f"power device {device} of cluster {cluster} is set")


@host_app.command("remove")
def remove_power(
    ctx: typer.Context,
    host: str = HostArgument,
    device: str = DeviceOption,
    yes: bool = YesOption,
) -> None:
    """Remove a power device from a host."""
    path = _host_path(host, ref(device, field="--device"))
    why = " Without one it can't be fenced."
    _remove(ctx, path, f"power device {device} of {host}", why, yes=yes)


@cluster_app.command("remove")
def remove_cluster_power(
    ctx: typer.Context,
    cluster: str = ClusterArgument,
    device: str = DeviceOption,
    yes: bool = YesOption,
) -> None:
    """Remove a power device's settings from a cluster.

    Its hosts keep what they have of their own.
    """
    path = _cluster_path(cluster, ref(device, field="--device"))
    _remove(ctx, path, f"power device {device} of cluster {cluster}", yes=yes)


@host_app.command("status")
def read_power(ctx: typer.Context, host: str = HostArgument, device: str = DeviceOption) -> None:
    """Ask a power device for its state now."""
    answer = _ask(ctx, host, device, "status")
    report(ctx, answer, f"{host}: {answer['state']} ({answer['took_ms']} ms){_why(answer)}")
    if answer["state"] == "unknown":
        raise Failed(f"{device} gave no state: {answer['reason']}", code=answer["code"])


@host_app.command("test")
def test_power(ctx: typer.Context, host: str = HostArgument, device: str = DeviceOption) -> None:
    """Test a power device. Nothing is switched; the result is kept."""
    answer = _ask(ctx, host, device, "test")
    test = answer["test"]
    word = "passed" if test["passed"] else "failed"
    told = {**test, "reason": answer["reason"]}
    report(
        ctx, answer, f"{host}: {word}; it says {test['state']}, {test['took_ms']} ms{_why(told)}"
    )
    if not test["passed"]:
        why = answer["reason"] or "the host is not up: test it again when it is"
        raise Failed(f"the test of {device} failed: {why}", code=test["code"])


@host_app.command("on")
def power_on(
    ctx: typer.Context,
    host: str = HostArgument,
    device: str | None = OnlyDeviceOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Switch a host on."""
    _order(ctx, host, {"action": "on", "device": device}, wait=wait, timeout=timeout)


@host_app.command("off")
def power_off(
    ctx: typer.Context,
    host: str = HostArgument,
    device: str | None = OnlyDeviceOption,
    force: bool = ForceOption,
    yes: bool = YesOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Switch a host off, hard, and read it back. VMs that run there are cut off with it."""
    confirm(f"Cut the power of {host}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    body = {"action": "off", "device": device, "force": force}
    _order(ctx, host, body, wait=wait, timeout=timeout)


@host_app.command("reboot")
def power_reboot(
    ctx: typer.Context,
    host: str = HostArgument,
    device: str | None = OnlyDeviceOption,
    force: bool = ForceOption,
    yes: bool = YesOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Switch a host off, hard, read it back, and switch it on again."""
    confirm(f"Cut the power of {host}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    body = {"action": "reboot", "device": device, "force": force}
    _order(ctx, host, body, wait=wait, timeout=timeout)


@host_app.command("blink")
def blink(
    ctx: typer.Context,
    host: str = HostArgument,
    device: str | None = OnlyDeviceOption,
    wait: bool = WaitOption,
    timeout: str = TimeoutOption,
) -> None:
    """Light a host's identify LED: which machine is it?"""
    _order(ctx, host, {"action": "blink", "device": device}, wait=wait, timeout=timeout)


@agent_app.command("list")
def list_agents(ctx: typer.Context) -> None:
    """List the fence agents that are installed on the server."""

    def fetch(client: Client) -> list[Any]:
        return [{"name": one} for one in client.get("/v1/power/agents")]

    show_list(ctx, fetch, AGENT)


@agent_app.command("show")
def show_agent(
    ctx: typer.Context, name: str = typer.Argument(metavar="AGENT", help="Such as fence_apc.")
) -> None:
    """Show what a fence agent can be told."""
    show_one(ctx, lambda client: client.get(f"/v1/power/agents/{ref(name, field='AGENT')}"), AGENT)


def _ask(ctx: typer.Context, host: str, device: str, verb: str) -> Any:
    path = _host_path(host, ref(device, field="--device"), verb)
    with connected(ctx) as client:
        return client.call("POST", path, answer_s=ANSWER_S).body


def _order(ctx: typer.Context, host: str, body: Object, *, wait: bool, timeout: str) -> None:
    with connected(ctx) as client:
        operation = client.post(_host_path(host), body)
        if not wait:
            finish(ctx, client, operation, "", wait=False, timeout=timeout)
            return
        operation = wait_for(client, options(ctx), operation, timeout)
    if error := failure_of(operation):
        write_data(options(ctx), operation)
        raise error
    report(ctx, operation, f"{host}: {body['action']} done, {operation['message']}")


def _why(answer: Object) -> str:
    words = [one for one in (answer.get("reason"), answer.get("detail")) if one]
    return f"; {': '.join(words)}" if words else ""


def _set(
    ctx: typer.Context,
    path_of: Callable[..., str],
    whose: str,
    device: str,
    changes: Callable[[Object], Object],
    secrets: dict[str, str],
) -> Any:
    """Of a host or a cluster (``path_of``): what is there with the changes, unless somebody else changed it meanwhile."""
    path = path_of(whose, ref(device, field="--device"))
    with connected(ctx) as client:
        there = [one["power"] for one in client.items(path_of(whose)) if one["power"]]
        present = next((one for one in there if one["name"] == device), None)
        body = {"settings": changes(present["settings"] if present else {}), "secrets": secrets}
        if_match = f'"{present["revision"]}"' if present else None
        try:
            return client.call("PUT", path, body=body, if_match=if_match).body
        except VirthaError as error:
            # FIELD=VALUE, not options as a receiver's settings are
            error.field = (error.field or "").removeprefix("settings.") or None
            raise


def _remove(ctx: typer.Context, path: str, what: str, why: str = "", *, yes: bool) -> None:
    confirm(f"Remove {what}?{why}", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(path)
    report(ctx, answer, f"{what} is removed")


def _changes(given: list[str] | None, unset: list[str] | None) -> Callable[[Object], Object]:
    """What makes new settings of the present ones. Raises InvalidInput."""
    values: dict[str, Any] = {}
    parameters: dict[str, str | None] = {}
    for one in given or []:
        name, equals, text = one.partition("=")
        if not equals:
            raise InvalidInput(f"'{one}' is no FIELD=VALUE", field="FIELD", allowed=FIELDS)
        if text.startswith("@"):
            text = _file(text[1:], name)
        if name.startswith("parameters."):
            parameters[name.removeprefix("parameters.")] = text
        else:
            values[_field(name)] = _value(name, text)
    for name in unset or []:
        if name.startswith("parameters."):
            parameters[name.removeprefix("parameters.")] = None
        else:
            values[_field(name)] = None

    def change(present: Object) -> Object:
        after = {**present, **values}
        kept = {**(present.get("parameters") or {}), **parameters}
        after["parameters"] = {name: one for name, one in kept.items() if one is not None} or None
        return {name: value for name, value in after.items() if value is not None}

    return change


def _field(name: str) -> str:
    if name in ("password", "secrets"):
        raise InvalidInput(
            "is never given on the command line", field=name, fix="give --password-stdin"
        )
    if name not in FIELDS:
        raise InvalidInput(
            f"there is no field '{name}'", field="FIELD", allowed=(*FIELDS, "parameters.NAME")
        )
    return name


def _value(name: str, text: str) -> Any:
    if name not in NUMBERS:
        return text
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS_MAX):
        raise InvalidInput(f"'{text}' is no number", field=name)
    return int(text)


def _file(path: str, name: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidInput(f"can't read {path}: {why}", field=name) from None


def _secrets(password: bool, from_stdin: bool) -> dict[str, str]:
    if not password and not from_stdin:
        return {}
    return {"password": read_secret("Password", from_stdin=from_stdin, twice=True)}
