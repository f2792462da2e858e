"""`virtha notify receiver`: mail servers, SNMP managers, webhooks, Alertmanagers."""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from virtha.cli.client import Client, ref
from virtha.cli.notify_views import RECEIVER
from virtha.cli.parsing import confirm
from virtha.cli.session import (
    WatchOption,
    YesOption,
    connected,
    read_secret,
    report,
    show_list,
    show_one,
)
from virtha.model.errors import InvalidInput
from virtha.model.notification import (
    SECRET_NAMES,
    MailSecurity,
    SnmpAuthentication,
    SnmpPrivacy,
    SnmpVersion,
)

app = typer.Typer(
    no_args_is_help=True, help="Those who are told: mail, SNMP, webhook, Alertmanager."
)
ReceiverArgument = typer.Argument(metavar="RECEIVER", help="Name or id.")
TYPES = tuple(SECRET_NAMES)

HostOption = typer.Option(None, help="Mail, SNMP: host name or address.")
PortOption = typer.Option(None, help="Mail, SNMP: port. Default: 587 or 162.")
SecurityOption = typer.Option(None, help="Mail: encryption. Default: starttls.")
UserOption = typer.Option(None, help="Mail, SNMP 3: who signs in; '' for nobody.")
SenderOption = typer.Option(None, help="Mail: the sender's address.")
ReplyToOption = typer.Option(None, help="Mail: where answers go; '' for nowhere.")
HtmlOption = typer.Option(None, "--html/--no-html", help="Mail: HTML beside the text?")
AuthorityOption = typer.Option(
    None, metavar="FILE", help="Mail, webhook: PEM of who signed its certificate."
)
VersionOption = typer.Option(None, "--snmp-version", help="SNMP: version. Default: 3.")
InformOption = typer.Option(None, "--inform/--trap", help="SNMP: acknowledged, or sent once?")
AuthenticationOption = typer.Option(None, help="SNMP 3: authentication. Default: sha256.")
PrivacyOption = typer.Option(None, help="SNMP 3: encryption. Default: aes128.")
EngineOption = typer.Option(None, metavar="HEX", help="SNMP 3 traps: our engine id.")
UrlOption = typer.Option(None, help="Webhook: its URL.")
PrivateOption = typer.Option(
    None, "--private-addresses/--public-addresses", help="Webhook: may it go to private addresses?"
)
SecretsOption = typer.Option(
    False, "--secrets-stdin", help="Read secrets from stdin, one NAME=VALUE a line."
)


def receiver_path(name: str) -> str:
    return f"/v1/receivers/{ref(name, field='RECEIVER')}"


def _settings(
    host: str | None = HostOption,
    port: int | None = PortOption,
    security: MailSecurity | None = SecurityOption,
    user: str | None = UserOption,
    sender: str | None = SenderOption,
    reply_to: str | None = ReplyToOption,
    html: bool | None = HtmlOption,
    authority: Path | None = AuthorityOption,
    version: SnmpVersion | None = VersionOption,
    inform: bool | None = InformOption,
    authentication: SnmpAuthentication | None = AuthenticationOption,
    privacy: SnmpPrivacy | None = PrivacyOption,
    engine_id: str | None = EngineOption,
    url: str | None = UrlOption,
    private_addresses: bool | None = PrivateOption,
) -> dict[str, Any]:
    """What was given of a receiver's settings, by the API's names; None: nothing was."""
    return {
        "host": host,
        "port": port,
        "security": security,
        "user": user,
        "sender": sender,
        "reply_to": reply_to,
        "html": html,
        "authority_pem": read_authority(authority),
        "version": version,
        "inform": inform,
        "authentication": authentication,
        "privacy": privacy,
        "engine_id": engine_id,
        "url": url,
        "private_addresses": private_addresses,
    }


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options of a receiver's settings in the place of the parameter ``given``, which gets what came of them."""
    options = inspect.signature(_settings).parameters
    parameters: list[inspect.Parameter] = []
    for name, own in inspect.signature(command).parameters.items():
        parameters += options.values() if name == "given" else [own]

    @wraps(command)
    def call(**words: Any) -> None:
        given = _settings(**{name: words.pop(name) for name in options})
        command(given=given, **words)

    # Typer reads both.
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # functions may carry one (PEP 362)
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    )
    return call


@app.command("list")
def list_receivers(ctx: typer.Context, watch: bool = WatchOption) -> None:
    """List receivers and how their messages fare."""

    def fetch(client: Client) -> list[Any]:
        return client.items("/v1/receivers")

    show_list(ctx, fetch, RECEIVER, watch=watch)


@app.command("show")
def show_receiver(
    ctx: typer.Context, name: str = ReceiverArgument, watch: bool = WatchOption
) -> None:
    """Show one receiver. Its secrets are never shown."""
    show_one(ctx, lambda client: client.get(receiver_path(name)), RECEIVER, watch=watch)


@app.command("add")
@_with_settings
def add_receiver(
    ctx: typer.Context,
    kind: str = typer.Argument(metavar="TYPE", help="mail, snmp, webhook or alertmanager."),
    name: str = typer.Argument(metavar="NAME", help="Its name."),
    *,
    given: dict[str, Any],
    secrets_stdin: bool = SecretsOption,
) -> None:
    """Add a receiver. Secrets are asked for, or read from stdin; never on the command line."""
    if kind not in TYPES:
        raise InvalidInput(f"'{kind}' is no type of receiver", field="TYPE", allowed=TYPES)
    settings = _chosen(kind, given)
    secrets = _read_secrets(kind) if secrets_stdin else _ask_secrets(kind, settings)
    with connected(ctx) as client:
        body = {"name": name, "settings": {"type": kind, **settings}, "secrets": secrets}
        answer = client.post("/v1/receivers", body)
    report(ctx, answer, f"receiver {name} is added; try it: virtha notify test {name}")


@app.command("set")
@_with_settings
def set_receiver(
    ctx: typer.Context,
    name: str = ReceiverArgument,
    rename: str | None = typer.Option(None, "--name", metavar="NEW", help="New name."),
    *,
    given: dict[str, Any],
    enabled: bool | None = typer.Option(None, "--enable/--disable", help="Is it used?"),
    secrets_stdin: bool = SecretsOption,
) -> None:
    """Change a receiver. Switched off, it drops what waits for it."""
    with connected(ctx) as client:
        found = client.call("GET", receiver_path(name))
        present = found.body["receiver"]
        kind = present["settings"]["type"]
        changed = _chosen(kind, given)
        secrets: dict[str, str | None] = dict(_read_secrets(kind)) if secrets_stdin else {}
        led = {"host", "url", "authority_pem"} & changed.keys() and kind != "webhook"
        if led and present["secrets"] and not secrets:
            # The server takes no new place with the old secrets.
            secrets = dict(_ask_secrets(kind, {**present["settings"], **changed}))
        secrets |= _no_longer_used(present, {**present["settings"], **changed})
        body: dict[str, Any] = {"name": rename, "enabled": enabled, "secrets": secrets or None}
        if changed:
            body["settings"] = {**present["settings"], **changed}
        body = {key: value for key, value in body.items() if value is not None}
        if not body:
            raise InvalidInput(
                "nothing to change is given", fix="see: virtha notify receiver set --help"
            )
        answer = client.call("PATCH", receiver_path(name), body=body, if_match=found.etag).body
    report(ctx, answer, f"receiver {answer['receiver']['name']} is changed")


@app.command("remove")
def remove_receiver(
    ctx: typer.Context, name: str = ReceiverArgument, yes: bool = YesOption
) -> None:
    """Remove a receiver that no subscription uses."""
    confirm(f"Remove receiver {name}?", yes=yes, stdin_is_terminal=sys.stdin.isatty())
    with connected(ctx) as client:
        answer = client.delete(receiver_path(name))
    report(ctx, answer, f"receiver {name} is removed")


_FIELDS = {
    "mail": (
        "host",
        "port",
        "security",
        "user",
        "sender",
        "reply_to",
        "html",
        "authority_pem",
    ),
    "snmp": (
        "host",
        "port",
        "version",
        "inform",
        "user",
        "authentication",
        "privacy",
        "engine_id",
    ),
    "webhook": ("url", "authority_pem", "private_addresses"),
    "alertmanager": ("url", "user", "authority_pem", "private_addresses"),
}
_MAY_BE_EMPTY = ("user", "reply_to", "engine_id")
OPTION_OF_FIELD = {"authority_pem": "--authority", "version": "--snmp-version", "type": "TYPE"}


def _chosen(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """What was given, as the API reads it. Raises InvalidInput for options of another type."""
    chosen: dict[str, Any] = {}
    for field, value in given.items():
        if value is None:
            continue
        if field not in _FIELDS[kind]:
            option = OPTION_OF_FIELD.get(field, "--" + field.replace("_", "-"))
            raise InvalidInput(
                f"a receiver of type {kind} has none",
                field=option,
                allowed=tuple(
                    OPTION_OF_FIELD.get(one, "--" + one.replace("_", "-")) for one in _FIELDS[kind]
                ),
            )
        chosen[field] = None if value == "" and field in _MAY_BE_EMPTY else value
    return chosen


def read_authority(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidInput(
            f"can't read {path}: {why}", field="--authority", fix="name a PEM file"
        ) from None


def _read_secrets(kind: str) -> dict[str, str]:
    """Lines ``NAME=VALUE``. What is wrong is told without a value."""
    found: dict[str, str] = {}
    for number, line in enumerate(sys.stdin.read().splitlines(), 1):
        if not line.strip():
            continue
        name, equals, value = line.partition("=")
        if not equals or name.strip() not in SECRET_NAMES[kind]:
            raise InvalidInput(
                f"line {number} names none of the secrets of type {kind}",
                field="--secrets-stdin",
                allowed=SECRET_NAMES[kind],
                fix=f"write {SECRET_NAMES[kind][0]}=…",
            )
        found[name.strip()] = value
    if not found:
        raise InvalidInput("nothing came", field="--secrets-stdin", fix="pipe NAME=VALUE in")
    return found


def _ask_secrets(kind: str, settings: dict[str, Any]) -> dict[str, str]:
    """Those that the settings need, from a terminal; elsewhere the server says what is missing."""
    if not sys.stdin.isatty():
        return {}
    return {
        name: read_secret(name.replace("_", " ").capitalize(), from_stdin=False, twice=True)
        for name in _needed(kind, settings)
    }


def _needed(kind: str, settings: dict[str, Any]) -> tuple[str, ...]:
    if kind in ("mail", "alertmanager"):
        return ("password",) if settings.get("user") else ()
    if kind == "webhook":
        return ("secret",)
    if settings.get("version") == SnmpVersion.V2C:
        return ("community",)
    return tuple(
        name
        for name, field in (
            ("authentication_password", "authentication"),
            ("privacy_password", "privacy"),
        )
        if settings.get(field) != "none"
    )


def _no_longer_used(present: dict[str, Any], settings: dict[str, Any]) -> dict[str, None]:
    """A secret whose use was just switched off goes with it."""
    kind = settings["type"]
    if kind == "webhook":
        return {}
    needed = _needed(kind, settings)
    if kind == "alertmanager" and not needed:
        needed = ("token",)
    return {name: None for name in present["secrets"] if name not in needed}
