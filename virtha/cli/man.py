"""`virtha man`: man pages, made from the commands themselves."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup

from virtha import __version__
from virtha.cli.options import argument_word, option_default, option_flags, option_value
from virtha.model.errors import Failed, InvalidInput

app = typer.Typer()
_FILES = (
    (
        "/run/virtha/server.sock",
        "where the server's own machine reaches it, as root, without signing in",
    ),
    ("~/.config/virtha", "sign-ins"),
)
_VARIABLES = (
    ("VIRTHA_URL", "the server to talk to"),
    ("VIRTHA_TOKEN", "an access token"),
    ("VIRTHA_AUTHORITY", "the certificate of the server's authority, a file"),
    ("VIRTHA_ROOT", "every path of virtha is below this directory"),
)


@app.command()
def man(
    noun: str = typer.Argument("", metavar="NOUN", help="The page of one noun, for example vm."),
    write: Path | None = typer.Option(
        None, metavar="DIR", help="Write all pages there, for example /usr/local/share/man/man1."
    ),
) -> None:
    """Print a man page (virtha man vm | man -l -), or write all."""
    from virtha.cli.main import NOUNS

    if write is not None:
        if noun:
            raise InvalidInput("all pages are written", field="NOUN", fix="leave it out")
        _write_all(write)
        return
    if noun and noun not in NOUNS:
        raise InvalidInput(f"'{noun}' is no noun", field="NOUN", allowed=tuple(NOUNS))
    sys.stdout.write(noun_page(noun) if noun else overview_page())


def _write_all(directory: Path) -> None:
    from virtha.cli.main import NOUNS

    if directory.exists() and not directory.is_dir():
        raise InvalidInput(f"{directory} is no directory", field="--write", fix="name a directory")
    if not directory.is_dir():
        raise InvalidInput(
            f"there is no directory {directory}", field="--write", fix=f"mkdir -p {directory}"
        )
    (directory / "virtha.1").write_text(overview_page())
    written, missing = 1, []
    for noun in NOUNS:
        try:
            page = noun_page(noun)
        except Failed:  # its extra is not installed: nor are its commands
            missing.append(noun)
            continue
        (directory / f"virtha-{noun}.1").write_text(page)
        written += 1
    typer.echo(f"{written} pages written to {directory}")
    if missing:
        typer.echo(f"not installed here: {', '.join(missing)}", err=True)


def overview_page() -> str:
    """virtha(1)."""
    from virtha.cli.main import NOUNS, command
    from virtha.cli.reference import EXIT_CODES

    top = command()
    lines = _head("virtha", str(top.help))
    lines += [
        ".SH SYNOPSIS",
        ".B virtha",
        r"[\fIOPTIONS\fR] \fINOUN\fR [\fIVERB\fR] [\fIARGUMENTS\fR]",
    ]
    lines += [".SH DESCRIPTION", _text(top.help)]
    lines += ["Each noun has a page of its own: for example", r".BR virtha\-vm (1)."]
    lines += [".SH NOUNS"]
    for name, noun in NOUNS.items():
        lines += [".TP", rf".BR {_text('virtha-' + name)} (1)", _text(noun.help)]
    lines += [".SH OPTIONS", "Before or after noun and verb, of every command:", *_options(top)]
    lines += [".SH EXIT STATUS", *_pairs((str(code), said) for code, said in EXIT_CODES)]
    lines += [".SH ENVIRONMENT", *_pairs(_VARIABLES), ".SH FILES", *_pairs(_FILES)]
    return "\n".join(lines) + "\n"


def noun_page(noun: str) -> str:
    """virtha-NOUN(1). Raises Failed where the noun's extra is not installed."""
    from virtha.cli.main import NOUNS, load

    found = load(noun)
    lines = _head(f"virtha-{noun}", NOUNS[noun].help)
    commands = _commands(found, f"virtha {noun}")
    lines += [".SH SYNOPSIS"]
    for place, (path, one) in enumerate(commands):
        lines += [*([".br"] if place else []), rf"\fB{_text(path)}\fR {_usage(one)}".rstrip()]
    lines += [".SH DESCRIPTION", *_paragraphs(found.help or NOUNS[noun].help)]
    if len(commands) == 1:
        lines += [".SH OPTIONS", *_options(commands[0][1])]
    else:
        lines += [".SH COMMANDS"]
        for path, one in commands:
            heading = rf".SS {_text(path)} {_usage(one)}".rstrip()
            lines += [heading, *_paragraphs(one.help), *_options(one)]
    lines += [".SH SEE ALSO", ".BR virtha (1)"]
    return "\n".join(lines) + "\n"


def _head(name: str, said: str) -> list[str]:
    brief = _text(said).rstrip(".")
    return [
        rf'.TH "{_text(name.upper())}" 1 "" "virtha {_text(__version__)}" "virtha"',
        # Words are typed as they stand: none is broken at the end of a line, or stretched.
        *(".nh", ".ad l"),
        ".SH NAME",
        rf"{_text(name)} \- {brief}",
    ]


def _commands(found: Any, path: str) -> list[tuple[str, Any]]:
    """All that can be run, by what is typed."""
    if not isinstance(found, TyperGroup):
        return [(path, found)]
    commands = [(path, found)] if found.invoke_without_command else []
    for name, sub in found.commands.items():
        if not sub.hidden:
            commands += _commands(sub, f"{path} {name}")
    return commands


def _usage(one: Any) -> str:
    arguments = [param for param in one.params if isinstance(param, TyperArgument)]
    words = [r"[\fIOPTIONS\fR]"] if _options(one, but=arguments) else []
    for param in arguments:
        word = _argument(param)
        word += r"\ ..." if argument_word(param)[1] else ""
        words.append(word if param.required else f"[{word}]")
    return " ".join(words)


def _argument(param: Any) -> str:
    return rf"\fI{_text(argument_word(param)[0])}\fR"


def _options(one: Any, but: Sequence[Any] = ()) -> list[str]:
    """What can be given, argument by argument and option by option, without ``but``."""
    lines = []
    for param in one.params:
        if getattr(param, "hidden", False) or (param.name in ("output", "help") and one.name):
            continue
        if param in but:
            continue
        if isinstance(param, TyperArgument):
            shown = _argument(param)
        else:
            shown = ", ".join(rf"\fB{_text(flag)}\fR" for flag in option_flags(param))
            shown += rf" \fI{_text(value)}\fR" if (value := option_value(param)) else ""
        default = option_default(param)
        said = _text(param.help) + (f" Default: {_text(default)}." if default else "")
        lines += [".TP", shown, said or r"\&"]
    return lines


def _paragraphs(text: str | None) -> list[str]:
    found = [_text(one) for one in (text or "").split("\n\n") if one.strip()]
    return [line for one in found for line in (".PP", one)][1:] or [r"\&"]


def _pairs(pairs: Any) -> list[str]:
    return [line for left, right in pairs for line in (".TP", rf".B {_text(left)}", _text(right))]


def _text(text: str | None) -> str:
    """Words as roff takes them: no line of it is an order, no minus becomes a hyphen."""
    said = " ".join((text or "").split()).replace("\\", r"\e").replace("-", r"\-")
    said = said.replace("…", "...").replace('"', r"\(dq")
    return rf"\&{said}" if said[:1] in (".", "'") else said
