"""`virtha server`: set up, run, check, back up and restore the server."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from virtha.drivers.machine_clock import MachineClock
from virtha.model.errors import InvalidInput, VirthaError
from virtha.model.time import format_utc
from virtha.server import app as server_app
from virtha.server.checks import CheckState, check_installation
from virtha.server.config import ServerPaths, read_config
from virtha.server.files import only_server
from virtha.server.logs import configure_logs
from virtha.server.maintenance import back_up_installation, restore_installation
from virtha.server.secret_key import write_new_key
from virtha.server.setup import InitAnswers, InitResult, install_server_units, set_up

app = typer.Typer(
    help="Run and set up the server.", invoke_without_command=True, no_args_is_help=False
)
PASSWORD_BYTES_MAX = 4_096

Root = Annotated[
    Path,
    typer.Option(
        "--root", metavar="DIR", envvar="VIRTHA_ROOT", help="Move every path of virtha below DIR."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
SLASH = Path("/")
_INIT_OPTIONS = {
    "name": "--admin",
    "password": "--password-stdin",
    "names": "--names",
    "listen": "--listen",
    "gateway_listen": "--gateway-listen",
}
"""The options of ``init`` by the fields that the errors of setting up name."""


def _paths(root: Path) -> ServerPaths:
    return ServerPaths(server_app.absolute_root(root))


@app.callback()
def server(ctx: typer.Context, root: Root = SLASH) -> None:
    """Run the server (without a verb), or set it up."""
    if ctx.invoked_subcommand is None:
        _run(root, as_json=False)


@app.command()
def init(
    admin: Annotated[str, typer.Option(help="Name of the first administrator.")] = "admin",
    password_stdin: Annotated[
        bool,
        typer.Option("--password-stdin", help="Read the password from standard input."),
    ] = False,
    names: Annotated[
        str | None,
        typer.Option(
            help="DNS names and addresses, separated by commas, under which users and hosts "
            "reach this server. Default: this machine's name."
        ),
    ] = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="REST API. Default 0.0.0.0:8443.")
    ] = None,
    gateway_listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Agents. Default 0.0.0.0:8250.")
    ] = None,
    as_json: AsJson = False,
    root: Root = SLASH,
) -> None:
    """Set up a new installation. Its secrets are shown this once."""
    wanted = InitAnswers(
        admin=admin,
        password=_password_from(sys.stdin.buffer.read) if password_stdin else None,
        listen=listen,
        gateway_listen=gateway_listen,
        names=_split(names),
    )
    paths = _paths(root)
    try:
        result = asyncio.run(set_up(paths, wanted, MachineClock()))
    except VirthaError as error:
        error.field = _INIT_OPTIONS.get(error.field or "", error.field)
        raise
    if as_json:
        typer.echo(msgspec.json.encode(result).decode())
    else:
        _show_result(result)
    sys.stdout.flush()  # the password is shown this once, whatever follows
    install_server_units(paths)


def _split(names: str | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    found = tuple(part.strip() for part in names.split(",") if part.strip())
    if not found:
        raise InvalidInput("names no name", field="--names", fix="write --names server1,192.0.2.1")
    return found


def _password_from(read: Callable[[int], bytes]) -> str:
    """One line, without its end. Raises InvalidInput for none, a too long one or no text."""
    raw = read(PASSWORD_BYTES_MAX + 1)
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidInput(
            "the password is no UTF-8 text", field="--password-stdin", fix="pipe one line"
        ) from None
    if not text or len(raw) > PASSWORD_BYTES_MAX or "\n" in text:
        raise InvalidInput(
            "one line with the password is expected on standard input",
            field="--password-stdin",
            fix="pipe in one line, or leave the option out: one is made up and shown",
        )
    return text


def _show_result(result: InitResult) -> None:
    lines = [
        f"Installation {result.installation_id} is set up.",
        f"  configuration   {result.config}",
        f"  REST API        {result.listen}",
        f"  agents          {result.gateway_listen}",
        f"  names           {', '.join(result.names)}",
        f"  authority       {result.authority_fingerprint}",
        f"  administrator   {result.user}",
    ]
    if result.password is not None:
        lines.append(f"  password        {result.password}   (shown this once)")
    typer.echo("\n".join(lines))
    typer.echo(
        "\nNext: systemctl enable --now virtha-server   (or, in the foreground: virtha server run)",
        err=True,
    )


@app.command("install-units")
def install_units_again(root: Root = SLASH) -> None:
    """Write the systemd unit anew. Nothing is started or stopped."""
    changed = install_server_units(_paths(root))
    typer.echo(f"written: {', '.join(changed)}" if changed else "nothing to change")


@app.command()
def run(
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON object.")
    ] = False,
    root: Root = SLASH,
) -> None:
    """Run the server in the foreground. SIGTERM or SIGINT ends it."""
    _run(root, as_json=as_json)


def _run(root: Path, *, as_json: bool) -> None:
    paths = _paths(root)
    config = read_config(paths)
    configure_logs(config.log_level)

    def on_ready(ready: server_app.Ready) -> None:
        if as_json:
            typer.echo(msgspec.json.encode(ready).decode())
        else:
            typer.echo(f"virtha server is ready: {ready.url}, agents on {ready.gateway}")
        sys.stdout.flush()

    server_app.run(paths, config, on_ready=on_ready)


@app.command()
def check(as_json: AsJson = False, root: Root = SLASH) -> None:
    """Check the installation. Configuration, authority, certificate and database; nothing is changed."""
    found = check_installation(_paths(root), MachineClock())
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        for one in found:
            typer.echo(f"{one.state:8} {one.name:12} {one.detail}")
            if one.fix:
                typer.echo(f"{'':21} {one.fix}")
    if any(one.state is CheckState.FAILED for one in found):
        raise typer.Exit(1)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    as_json: AsJson = False,
    root: Root = SLASH,
) -> None:
    """Back up the installation. Database, authority and configuration; the server may run meanwhile.

    The file holds the authority's private key: keep it as you keep passwords.
    """
    manifest = asyncio.run(back_up_installation(_paths(root), file, MachineClock()))
    if as_json:
        typer.echo(msgspec.json.encode(manifest).decode())
        return
    typer.echo(f"Installation {manifest.installation_id} backed up to {file}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    force: Annotated[
        bool,
        typer.Option("--force", help="Move an installation that is there aside (not deleted)."),
    ] = False,
    as_json: AsJson = False,
    root: Root = SLASH,
) -> None:
    """Restore a backup; the server must be stopped."""
    work = restore_installation(_paths(root), file, force=force, clock=MachineClock())
    manifest = asyncio.run(work)
    if as_json:
        typer.echo(msgspec.json.encode(manifest).decode())
        return
    typer.echo(
        f"Installation {manifest.installation_id} restored as of {format_utc(manifest.made)}"
    )
    typer.echo(
        "Users, passwords, roles and grants are those of the backup: look through them before others do "
        "('virtha user list'). All sign-ins and access tokens have ended; join tokens are those of the backup."
    )


@app.command(name="renew-certificate")
def renew_certificate(as_json: AsJson = False, root: Root = SLASH) -> None:
    """Make the server a new certificate. It is for the names in server.toml; its key is new too."""
    paths = _paths(root)
    config = read_config(paths)
    names = server_app.certificate_names(config.names)
    authority = server_app.load_authority(paths, MachineClock())
    server_app.renew_certificate(paths, authority, names)
    if as_json:
        typer.echo(msgspec.json.encode({"names": names}).decode())
        return
    typer.echo(f"New certificate for {', '.join(names)}; restart the server to use it")


@app.command(name="new-secrets-key")
def new_secrets_key(root: Root = SLASH) -> None:
    """Make a new key for secrets, the old one being lost. The server must be stopped.

    What was encrypted with the old one can't be read by the new one: give each receiver its secrets anew.
    """
    paths = _paths(root)
    with only_server(paths):
        aside = write_new_key(paths)
    typer.echo(f"New key in {paths.secrets_key}")
    if aside is not None:
        typer.echo(f"The old one is kept as {aside}")
