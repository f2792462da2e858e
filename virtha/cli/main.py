"""`virtha`: the nouns, each loaded when it is used, and the one place that ends a command.

Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 not found, 4 refused by policy or safety (the
reason is printed), 5 the server can't be reached, 6 not signed in or not allowed. 130: interrupted.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from virtha import __version__
from virtha.cli.completion import COMPLETING, answer
from virtha.cli.file_errors import error_from_file, error_from_words
from virtha.cli.options import Options, global_options, spread_options
from virtha.cli.text import describe
from virtha.cli.usage import as_invalid_input
from virtha.model.errors import Failed, InvalidInput, VirthaError


class Noun(NamedTuple):
    """Where a word of the command line is found, and what the overview says of it."""

    module: str
    attribute: str
    help: str
    extra: str = ""
    """The extra of the package that brings its imports; empty: always there."""


NOUNS: dict[str, Noun] = {
    "status": Noun("status", "status_app", "Am I protected? Hosts, VMs and what is wrong."),
    "doctor": Noun("doctor", "doctor_app", "What would fail today, and what to do about it."),
    "explain": Noun("doctor", "explain_app", "Why a host or VM is as it is; what is waited for."),
    "vm": Noun("vm", "app", "Virtual machines: create, start, stop, watch over, adopt."),
    "host": Noun("host", "app", "KVM hosts that have joined."),
    "cluster": Noun("cluster", "app", "Clusters of hosts."),
    "policy": Noun("policy", "app", "What is done by itself when something fails."),
    "storage": Noun("storage", "app", "Shared storage for disks and images."),
    "image": Noun("image", "app", "Images that VMs can be created from."),
    "template": Noun("template", "app", "Templates that VMs are made from."),
    "event": Noun("event", "app", "The audit log: list it or follow it live."),
    "notify": Noun("notify", "app", "Tell people and machines: mail, SNMP, webhooks."),
    "incident": Noun(
        "incident", "app", "Failures of hosts: what was seen and done, how long it took."
    ),
    "operation": Noun("operation", "app", "Long work: what runs and how it ended."),
    "hold": Noun("status", "hold_app", "Stop all automatic action, with a reason."),
    "unhold": Noun("status", "unhold_app", "Let automatic action run again."),
    "login": Noun("signin", "login_app", "Sign in to a server."),
    "logout": Noun("signin", "logout_app", "Forget the sign-in."),
    "whoami": Noun("signin", "whoami_app", "Which server, which user, which role."),
    "token": Noun("join_token", "app", "Tokens that let hosts join."),
    "user": Noun("user", "app", "Users and their roles."),
    "role": Noun("role", "app", "Roles: what their users may do."),
    "session": Noun("sign_ins", "app", "Sign-ins, and access tokens for programs."),
    "sign-in-provider": Noun(
        "sign_in_provider", "app", "Who else says who somebody is (OpenID Connect)."
    ),
    "setting": Noun("setting", "app", "Settings: global, per cluster, per host."),
    "capabilities": Noun("codes", "capabilities_app", "Watchdog models and actions on offer."),
    "codes": Noun("codes", "codes_app", "Explain a code, or list all of them (works offline)."),
    "replay": Noun("replay", "app", "What the engine decided, and whether it still would."),
    "server": Noun("server", "app", "Run and set up the server.", "server"),
    "agent": Noun("agent", "app", "Run the host agent, join a server.", "agent"),
    "guardian": Noun("agent", "guardian_app", "Run the host's guardian.", "agent"),
    "lab": Noun("lab", "app", "Real hosts on this machine, to try and to break.", "agent,server"),
    "simulate": Noun("simulate", "app", "What if hosts lost power? Which VMs return, and when."),
    "completion": Noun("completion", "app", "Shell completion for bash, zsh and fish."),
    "man": Noun("man", "app", "Man pages: read one, or write all."),
}


_COMPLETION_PARAMS = ("install_completion", "show_completion")


def load(name: str) -> Any:
    """The command behind a noun. Raises Failed that names the extra to install."""
    noun = NOUNS[name]
    try:
        module = importlib.import_module(f"virtha.cli.{noun.module}")
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if not noun.extra or missing == "virtha":
            raise
        raise Failed(
            f"'virtha {name}' needs the Python package '{missing}', which is not installed",
            fix=f"pip install 'virtha[{noun.extra}]'",
        ) from exc
    command = typer.main.get_command(getattr(module, noun.attribute))
    command.name = name
    # Typer offers installing completion with every part; the whole program has `virtha completion`.
    command.params = [p for p in command.params if p.name not in _COMPLETION_PARAMS]
    # Words of the programs (`agent join --token`) are their own; only --root is common to all.
    wanted = (lambda param: param == "root") if noun.extra else (lambda param: True)
    spread_options(command, _global_params(), wanted=wanted, markup=_markup())
    if os.environ.get(COMPLETING):
        from virtha.cli.live_names import offer_names

        offer_names(name, command, is_program=bool(noun.extra))
    return command


def _global_params() -> list[Any]:
    app = typer.Typer(add_completion=False)
    app.command()(global_options)
    return list(typer.main.get_command(app).params)


def _markup() -> Literal["rich"] | None:
    return "rich" if sys.stdout.isatty() else None


class LazyNouns(TyperGroup):
    """The top group: shows each noun from the table, imports it only when it is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.rich_markup_mode = _markup()
        self.params = [*_global_params(), *self.params]
        for name, noun in NOUNS.items():
            self.add_command(TyperCommand(name=name, help=noun.help), name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in NOUNS else command, rest


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"virtha {__version__}")
        raise typer.Exit


app = typer.Typer(cls=LazyNouns, add_completion=False, no_args_is_help=True)


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Show the version.", is_eager=True, callback=_version
    ),
) -> None:
    """High availability for virtual machines on plain KVM/libvirt hosts."""
    if ctx.obj is None:
        ctx.obj = Options()


def command() -> Any:
    """The whole command line as one command."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    if shell := os.environ.get(COMPLETING):
        sys.stdout.write(answer(shell, arguments))
        return _flush()
    try:
        ended = command().main(args=arguments, prog_name="virtha", standalone_mode=False)
    except VirthaError as error:
        return _told(error)
    except typer.Abort:
        _flush()
        typer.echo("nothing was done", err=True)
        return 1
    except typer.TyperException as error:
        if wrong := as_invalid_input(error):
            return _told(wrong)
        _flush()
        typer.echo(str(error), err=True)  # the help page; a terminal has had it with colours
        return InvalidInput.exit_code
    except OSError as error:
        if (unusable := error_from_file(error)) is None:
            raise
        return _told(unusable)
    except UnicodeEncodeError:
        if (unreadable := error_from_words(arguments)) is None:
            raise
        return _told(unreadable)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return code or _flush()
    return (ended if isinstance(ended, int) else 0) or _flush()


def _open_closed_streams() -> None:
    """Started with closed ones (`>&-`, some daemons): what is said goes nowhere, the command does its work."""
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until this process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open until this process ends


def _told(error: VirthaError) -> int:
    _flush()
    typer.echo(describe(error), err=True)
    return error.exit_code


def _flush() -> int:
    """Hand over what is still buffered; 1 if nobody takes it (`virtha codes | head -1`), without the
    interpreter's own complaint at its end."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
