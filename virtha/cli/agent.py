"""`virtha agent` and `virtha guardian`: run, join, check, configure a host."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
import typer

from virtha.agent import host_shutdown
from virtha.agent.agent_process import run_agent
from virtha.agent.checks import Check, check_host
from virtha.agent.files import Files
from virtha.agent.gate import hook_path, install_gate
from virtha.agent.guardian_process import run_guardian
from virtha.agent.host_clock import read_boot_id
from virtha.agent.host_installation import install_host_units, uninstall
from virtha.agent.join import join as join_server
from virtha.agent.journal import replay as replay_journal
from virtha.agent.migration_setup import set_up
from virtha.agent.paths import AgentPaths
from virtha.agent.properties import (
    get_property,
    load_properties,
    set_property,
    unset_property,
    write_properties,
)
from virtha.agent.property_table import TABLE
from virtha.cli.text import clean
from virtha.model.errors import Failed, InvalidInput, NotFound

app = typer.Typer(help="Run the host agent, join a server.", invoke_without_command=True)
properties_app = typer.Typer(help="agent.properties of this host.", no_args_is_help=True)
app.add_typer(properties_app, name="properties")
guardian_app = typer.Typer(help="Run the host's guardian.", invoke_without_command=True)

Root = Annotated[
    Path,
    typer.Option(
        "--root", metavar="DIR", envvar="VIRTHA_ROOT", help="Move every path of virtha below DIR."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The property's name.")]
Text = Annotated[str, typer.Argument(metavar="VALUE", help="What it shall be.")]
SLASH = Path("/")


def _paths(root: Path) -> AgentPaths:
    # Verbs may be given --root before them; that one is in the environment then.
    chosen = Path(os.environ.get("VIRTHA_ROOT", root)) if root == SLASH else root
    return AgentPaths(root=str(chosen.absolute()))


def _configure_logs() -> None:
    level = os.environ.get("VIRTHA_LOG_LEVEL", "info").upper()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping().get(level, logging.INFO)
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@app.callback()
def agent(ctx: typer.Context, root: Root = SLASH) -> None:
    """Run the agent (without a verb), or one of its verbs."""
    if root != SLASH:
        os.environ["VIRTHA_ROOT"] = str(root.absolute())  # for the verb that follows
    if ctx.invoked_subcommand is None:
        _run(root)


@app.command("run")
def run(root: Root = SLASH) -> None:
    """Run the agent until SIGTERM. Stopping it touches no VM."""
    _run(root)


def _run(root: Path) -> None:
    _configure_logs()
    asyncio.run(run_agent(_paths(root)))


@guardian_app.callback()
def guardian(root: Root = SLASH) -> None:
    """Run the guardian until SIGTERM: beats for this host, and the end of ungranted VMs."""
    _configure_logs()
    asyncio.run(run_guardian(_paths(root)))


@app.command()
def join(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The server, for example https://manager:8443.")
    ],
    token: Annotated[
        str | None,
        typer.Option(help="Join token (virtha token create). '-' or nothing: from standard input."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="This host's name. Default: its host name.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Although it has joined an installation already.")
    ] = False,
    root: Root = SLASH,
) -> None:
    """Make this host a member of a cluster. Installs the start gate."""
    if token in (None, "-"):
        token = sys.stdin.readline().strip()
        if not token:
            raise InvalidInput(
                "is missing", field="--token", fix="make one on the server: virtha token create"
            )
    paths = _paths(root)
    joined = join_server(paths, url, token or "", name=name, force=force)
    identity = joined.identity
    typer.echo(f"{identity.name} joined cluster {identity.cluster} as host {identity.number}")
    if joined.gate_is_new:
        typer.echo("start gate installed; restart libvirtd once so that it loads it (VMs run on):")
        typer.echo("  systemctl restart libvirtd")
    else:
        typer.echo("start gate is installed")
    install_host_units(paths)
    typer.echo("then start: systemctl enable --now virtha-agent   (its guardian with it)")


@app.command()
def check(root: Root = SLASH, as_json: AsJson = False) -> None:
    """Say what keeps this host from protecting VMs. Looks at gate, libvirt, servers, storage."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    found = asyncio.run(check_host(_paths(root)))
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
    else:
        for item in found:
            typer.echo(_line(item))
    wrong = [item.name for item in found if item.ok is not True]
    if wrong:
        raise Failed(f"not in order: {', '.join(wrong)}")


def _line(item: Check) -> str:
    word = {True: "ok     ", False: "wrong  ", None: "unknown"}[item.ok]
    fix = f"; {item.fix}" if item.fix else ""
    return f"{word}  {item.name}: {item.detail}{fix}"


@app.command("install-gate")
def install_gate_again(root: Root = SLASH) -> None:
    """Write libvirt's hook anew, as this version has it."""
    paths = _paths(root)
    is_new = install_gate(paths, Files())
    typer.echo(f"start gate is in {hook_path(paths)}")
    if is_new:
        typer.echo("restart libvirtd once so that it loads it (VMs run on)")


@app.command("setup-migration")
def setup_migration(
    address: Annotated[
        str,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Name or address under which other hosts reach this host.",
        ),
    ],
    root: Root = SLASH,
) -> None:
    """Let live migrations in and out. Makes a certificate, and libvirt's configuration to use it."""
    changed = set_up(_paths(root), address)
    typer.echo(
        f"other hosts reach this one at {address} (16514/tcp, and 49152 to 49215/tcp for QEMU)"
    )
    if changed:
        typer.echo(f"written: {', '.join(changed)}")
    typer.echo("then (VMs run on):")
    typer.echo(
        "  systemctl stop libvirtd; systemctl enable --now libvirtd-tls.socket; systemctl start libvirtd"
    )
    typer.echo("  systemctl restart virtha-agent")


@app.command("install-units")
def install_units_again(root: Root = SLASH) -> None:
    """Write the systemd units anew. Nothing is started or stopped."""
    changed = install_host_units(_paths(root))
    typer.echo(f"written: {', '.join(changed)}" if changed else "nothing to change")


@app.command("uninstall")
def uninstall_host(
    force: Annotated[
        bool,
        typer.Option("--force", help="Although this host holds protected VMs, or its agent runs."),
    ] = False,
    root: Root = SLASH,
) -> None:
    """Remove start gate and systemd units. The state below /var/lib/virtha stays."""
    guardian_runs = uninstall(_paths(root), force=force)
    typer.echo("start gate and units removed; restart libvirtd once so that it forgets the gate")
    if guardian_runs:
        typer.echo("the guardian runs on, for it may feed this host's watchdog; its unit stays:")
        typer.echo("  now: systemctl disable virtha-guardian")
        typer.echo("  after the next boot once more: virtha agent uninstall")


@app.command("host-shutdown")
def host_is_shutting_down(
    cancel: Annotated[
        bool, typer.Option("--cancel", help="It does not go down after all.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if systemd does not say that it stops.")
    ] = False,
    root: Root = SLASH,
) -> None:
    """Tell the agent that this host goes down. VMs that stop now are not restarted here."""
    paths = _paths(root)
    if cancel:
        host_shutdown.unmark(paths)
        return
    if not force and host_shutdown.systemd_is_stopping() is False:
        typer.echo(
            "systemd does not stop this host; nothing was told (--force tells it all the same)"
        )
        return
    host_shutdown.mark(paths, read_boot_id())


@app.command()
def replay(
    journal: Annotated[Path, typer.Argument(help="A file of .../agent/journal.", exists=True)],
) -> None:
    """Run a decision journal through this version. Shows where it decides differently."""
    count = 0
    try:
        for difference in replay_journal(journal):
            count += 1
            typer.echo(f"at {difference.now}\n  then {difference.recorded}")
            typer.echo(f"  now  {difference.replayed}")
    except ValueError as error:
        raise InvalidInput(str(error), field="journal") from error
    if count:
        raise Failed(f"{count} steps are decided differently")
    typer.echo("every step is decided the same")


# agent.properties


def _text(paths: AgentPaths) -> str:
    try:
        return load_properties(paths.properties)
    except FileNotFoundError:
        return ""


@properties_app.command("list")
def list_properties(root: Root = SLASH, as_json: AsJson = False) -> None:
    """All keys: what is set, else the default."""
    text = _text(_paths(root))
    rows = []
    for item in TABLE:
        written = get_property(text, item.key)
        rows.append(
            {
                "key": item.key,
                "value": item.default if written is None else written,
                "set": written is not None,
                "unit": item.unit,
                "meaning": item.meaning,
            }
        )
    if as_json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    for row in rows:
        mark = "*" if row["set"] else " "
        typer.echo(f"{mark} {row['key']}={clean(row['value'])}\n      {row['meaning']}")


@properties_app.command("get")
def get(key: Key, root: Root = SLASH) -> None:
    """One value: what is set, else the default."""
    written = get_property(_text(_paths(root)), key)
    known = {item.key: item.default for item in TABLE}
    if written is None and key not in known:
        raise NotFound(
            f"there is no property '{key}'", field="KEY", fix="virtha agent properties list"
        )
    typer.echo(written if written is not None else known[key])


@properties_app.command("set")
def set_(key: Key, value: Text, root: Root = SLASH) -> None:
    """Set one key; comments and order stay. The agent reads it at its next start."""
    paths = _paths(root)
    text = set_property(_text(paths), key, value)
    paths.properties.parent.mkdir(parents=True, exist_ok=True)
    write_properties(paths.properties, text)


@properties_app.command("unset")
def unset(key: Key, root: Root = SLASH) -> None:
    """Remove one key: its default holds."""
    paths = _paths(root)
    write_properties(paths.properties, unset_property(_text(paths), key))
