"""Words that the command line does not take, as our own errors: which one, what is right, where to look."""

import re

import typer

from virtha.model.errors import InvalidInput

# Typer hands on pydantic's sentences; these parts say nothing to the one who typed.
_NOISE = re.compile(r"^Value error, |, unable to parse string as an? \w+|\.$")


def as_invalid_input(error: typer.TyperException) -> InvalidInput | None:
    """Typer's error as ours; None for the help page that a bare `virtha vm` ends with."""
    context: typer.Context | None = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "virtha"
    look = f"see: {path} --help"
    if not isinstance(error, typer.BadParameter) or error.param is None:
        text = str(getattr(error, "message", ""))
        if not text or "\n" in text.strip():
            return None
        return InvalidInput(_plain(text), fix=look)
    field = max(error.param.opts, key=len)
    if not field.startswith("-"):
        field = error.param.metavar or str(error.param.name).upper()
    if error.message or context is None:
        return InvalidInput(_plain(error.message), field=field, fix=look)
    usage = context.get_usage().removeprefix("Usage: ")
    return InvalidInput("is missing", field=field, fix=f"write {usage}; {look}")


def _plain(text: str) -> str:
    text = _NOISE.sub("", text).replace("Input should be ", "must be ")
    return text[:1].lower() + text[1:]
