"""The options that every command takes, before or after the verb, and where they are kept."""

import copy
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup

from virtha.model.errors import InvalidInput


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    WIDE = "wide"


class Options(msgspec.Struct, kw_only=True):
    """What was given on the command line; None means: look further (environment, login, default)."""

    output: Output | None = None
    url: str | None = None
    token: str | None = None
    root: Path | None = None
    quiet: bool = False

    @property
    def root_given(self) -> Path | None:
        """``--root`` or ``VIRTHA_ROOT``; None when neither says which installation is meant."""
        if self.root is not None:
            return self.root
        named = os.environ.get("VIRTHA_ROOT")
        return Path(named) if named else None


def options(ctx: typer.Context) -> Options:
    """The options of this call."""
    found = ctx.find_root().obj
    assert isinstance(found, Options)
    return found


def _remember(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    top = ctx.find_root()
    if top.obj is None:
        top.obj = Options()
    # The default of a later position must not undo what an earlier one said.
    if value is None or value is False:
        return value
    if param.name == "output" and value not in list(Output):
        if ctx.resilient_parsing:  # a line that is still being typed
            return value
        raise InvalidInput(
            f"'{value}' is no output format", field="--output", allowed=tuple(Output)
        )
    if param.name == "root":
        # The programs (server, agent, guardian, lab) read it from here, whichever way it was given.
        value = Path(value).absolute()
        os.environ["VIRTHA_ROOT"] = str(value)
    setattr(top.obj, str(param.name), Output(value) if param.name == "output" else value)
    return value


def global_options(
    output: str | None = typer.Option(
        None,
        "--output",
        "-o",
        metavar="FORMAT",
        help="table, json, yaml or wide. Default: table on a terminal, else tab-separated text.",
        callback=_remember,
        expose_value=False,
    ),
    url: str | None = typer.Option(
        None,
        "--url",
        metavar="URL",
        help="Server to talk to (VIRTHA_URL). Default: where you logged in; else the local socket.",
        callback=_remember,
        expose_value=False,
    ),
    token: str | None = typer.Option(
        None,
        "--token",
        metavar="TEXT",
        help="Access token (VIRTHA_TOKEN, which other users of this machine can't see).",
        callback=_remember,
        expose_value=False,
    ),
    root: str | None = typer.Option(
        None,
        "--root",
        metavar="DIR",
        help="Move every path of virtha below DIR (VIRTHA_ROOT).",
        callback=_remember,
        expose_value=False,
    ),
    quiet: bool = typer.Option(
        False,
        "--quiet",
        "-q",
        help="Lists print names only; nothing else is printed but errors.",
        callback=_remember,
        expose_value=False,
    ),
) -> None:
    """Only its parameters matter: they are copied to each command, so that they work after the verb."""


def _flags(param: Any) -> set[str]:
    return {*param.opts, *param.secondary_opts}


def spread_options(
    command: Any,
    params: list[Any],
    *,
    wanted: Callable[[str], bool],
    markup: Literal["rich"] | None,
) -> None:
    """Give ``command`` and all below it the global ``params`` whose flags it does not use itself."""
    if isinstance(command, TyperGroup | TyperCommand):
        command.rich_markup_mode = markup
    if isinstance(command, TyperGroup):
        for sub in command.commands.values():
            spread_options(sub, params, wanted=wanted, markup=markup)
        return
    if command.context_settings.get("ignore_unknown_options"):
        # It hands words on to another program; ours would steal from them.
        return
    taken = set().union(*(_flags(param) for param in command.params))
    for param in params:
        free = _flags(param) - taken
        if not wanted(param.name) or not any(flag.startswith("--") for flag in free):
            continue
        ours = copy.copy(param)
        ours.opts = [flag for flag in param.opts if flag in free]
        # One that every reader of a help page looks for; the others are in the overview.
        ours.hidden = param.name != "output"
        command.params.append(ours)


def option_flags(param: Any) -> tuple[str, ...]:
    """All that can be typed for it."""
    return (*param.opts, *param.secondary_opts)


def option_default(param: Any) -> str:
    """As it would be typed; empty: there is none worth showing."""
    value = param.default
    if param.required or value is None or value is False or value in ([], ()) or callable(value):
        return ""
    return str(param.opts[0]) if value is True else str(getattr(value, "value", value))


def option_value(param: Any) -> str:
    """What is to be written for its value: a word in capitals, or those that it takes; empty: it takes none."""
    if getattr(param, "is_flag", False) or param.count:
        return ""
    if param.metavar:
        return str(param.metavar)
    described = param.type_descriptor
    if described.is_choice:
        return "|".join(str(getattr(one, "value", one)) for one in described.choices)
    return "N" if int in (described.annotation, *get_args(described.annotation)) else "TEXT"


def argument_word(param: Any) -> tuple[str, bool]:
    """How an argument is named, and whether several may be given. What it shows in help pages has both in one."""
    shown = str(param.metavar or param.name.upper())
    bare = shown.removesuffix("...").strip("[]")
    return bare if bare.endswith(",…") else bare.rstrip("…"), param.nargs == -1
