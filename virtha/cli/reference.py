"""The reference page of all commands: `python -m virtha.cli.reference` prints it as Markdown."""

import sys
from typing import Any

from typer.core import TyperArgument, TyperGroup

from virtha.cli.main import NOUNS, command, load
from virtha.cli.options import argument_word, option_default, option_flags, option_value

EXIT_CODES = (
    (0, "done"),
    (1, "failed, or clashes with what is there"),
    (2, "usage: the command line or a value is wrong"),
    (3, "not found"),
    (4, "refused by policy or safety; the reason is printed"),
    (5, "the server can't be reached, or did not answer in time"),
    (6, "not signed in, or not allowed"),
    (130, "interrupted (watching and following end with 0)"),
)


def reference_markdown() -> str:
    """`docs/reference/commands.md`: options of all commands, exit codes, then every command."""
    lines = [
        "# Command line",
        "",
        "Generated from the program by `make docs`. Names and ids work wherever a thing is named.",
        "",
        "## Options of every command",
        "",
        *_options(command()),
        "",
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES),
    ]
    for name in NOUNS:
        lines += _section(load(name), f"virtha {name}")
    return "\n".join(lines) + "\n"


def _section(found: Any, path: str) -> list[str]:
    if isinstance(found, TyperGroup):
        lines = ["", f"## {path}", "", _text(found.help)]
        if found.invoke_without_command:
            lines += ["", f"`{path}`", "", *_options(found)]
        for name, sub in found.commands.items():
            if not sub.hidden:
                lines += _section(sub, f"{path} {name}")
        return lines
    arguments = [_argument(param) for param in found.params if isinstance(param, TyperArgument)]
    usage = " ".join([path, *arguments])
    level = "##" if path.count(" ") == 1 else "###"
    return ["", f"{level} {usage}", "", _text(found.help), "", *_options(found)]


def _argument(param: Any) -> str:
    word, several = argument_word(param)
    name = word + ("…" if several else "")
    return name if param.required else f"[{name}]"


def _options(found: Any) -> list[str]:
    rows = []
    for param in found.params:
        if getattr(param, "hidden", False) or (param.name in ("output", "help") and found.name):
            continue
        if isinstance(param, TyperArgument):
            shown = f"`{_text(argument_word(param)[0])}`"
        else:
            shown = ", ".join(f"`{flag}`" for flag in option_flags(param))
            shown += f" `{_text(value)}`" if (value := option_value(param)) else ""
        default = _default(param)
        rows.append(f"| {shown} | {_text(param.help)} | {default} |")
    return ["| option | meaning | default |", "|---|---|---|", *rows] if rows else []


def _default(param: Any) -> str:
    shown = option_default(param)
    return f"`{shown}`" if shown else ""


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference_markdown())
