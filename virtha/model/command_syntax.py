"""The execution syntax of the source document (F5), such as

    $IPMI_EXEC --username $IPMI_USERNAME --password $IPMI_PASSWORD --command $IPMI_ACTION --host $IPMI_HOST

made into the words of a program's command line without any shell: a value is one word, whatever is in it. Only the action,
which the administrator wrote, is split into words where it stands alone and unquoted, as a shell would.
"""

import re
from collections.abc import Mapping

from virtha.model.errors import InvalidInput

VARIABLES = (
    "IPMI_EXEC",
    "IPMI_USERNAME",
    "IPMI_PASSWORD",
    "IPMI_ACTION",
    "IPMI_HOST",
    "IPMI_PORT",
    "IPMI_PLUG",
)
"""In any mixture of cases: the document itself writes ``$IPMI_Username`` and ``$IPMI_password``."""
SYNTAX_LENGTH_MAX = 4_000
_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[^}]*)\}|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|(?P<dollar>\$))"
)
_ACTION_ALONE = re.compile(r"\$(?:\{IPMI_ACTION\}|IPMI_ACTION)", re.IGNORECASE)
_FOR_A_SHELL = "|&;<>()`"
_NO_SHELL = "put it into a script, and name that as executable"


def command_words(syntax: str, values: Mapping[str, str]) -> list[str]:
    """``values``: by the names in ``VARIABLES``. Raises InvalidInput."""
    made: list[str] = []
    for word, quoted in syntax_words(syntax):
        if not quoted and _ACTION_ALONE.fullmatch(word):
            made += action_words(values["IPMI_ACTION"])
        else:
            made.append(_VARIABLE.sub(lambda found: _value(found, values), word))
    return made


def variables_of(syntax: str) -> frozenset[str]:
    return frozenset(
        name.upper()
        for word, _ in syntax_words(syntax)
        for found in _VARIABLE.finditer(word)
        if (name := found["braced"] or found["plain"])
    )


def check_syntax(syntax: str, *, field: str = "syntax") -> None:
    """Raises InvalidInput: empty, unknown variables, quotes left open, what only a shell would do."""
    if len(syntax) > SYNTAX_LENGTH_MAX:
        raise InvalidInput(f"more than {SYNTAX_LENGTH_MAX} characters", field=field)
    words = syntax_words(syntax, field=field)
    if not words:
        raise InvalidInput("it is empty", field=field, fix="leave it out for the usual one")
    for word, _ in words:
        rest = _VARIABLE.sub("", word)
        if "$" in rest:
            raise InvalidInput(
                f"a $ without a variable in {word}", field=field, fix="write $$ for the character"
            )
        for found in _VARIABLE.finditer(word):
            name = found["plain"] if found["braced"] is None else found["braced"]
            if name is not None and name.upper() not in VARIABLES:
                raise InvalidInput(
                    f"there is no variable ${name}",
                    field=field,
                    allowed=tuple(f"${one}" for one in VARIABLES),
                )
    if not _VARIABLE.match(words[0][0]) and not words[0][0].startswith("/"):
        raise InvalidInput(
            "its first word is the program: $IPMI_EXEC or an absolute path", field=field
        )
    if "IPMI_ACTION" not in variables_of(syntax):
        raise InvalidInput(
            "it does not name $IPMI_ACTION: all actions would be the same", field=field
        )


def action_words(action: str, *, field: str = "action") -> list[str]:
    """Of an action's string, which holds no variables."""
    return [word.replace("$$", "$") for word, _ in syntax_words(action, field=field)]


def syntax_words(text: str, *, field: str = "syntax") -> list[tuple[str, bool]]:
    """Words, each with whether quotes or backslashes were in it. A ``$`` that stands for itself, in single quotes or after
    a backslash, comes out as ``$$``. Raises InvalidInput."""
    words: list[tuple[str, bool]] = []
    word: list[str] = []
    quote, in_word, quoted, escaped = "", False, False, False
    for character in text:
        if escaped:
            word.append("$$" if character == "$" else character)
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = in_word = quoted = True
        elif quote:
            if character == quote:
                quote = ""
            else:
                word.append("$$" if character == "$" and quote == "'" else character)
        elif character in "'\"":
            quote, in_word, quoted = character, True, True
        elif character.isspace():
            if in_word:
                words.append(("".join(word), quoted))
            word, in_word, quoted = [], False, False
        elif character in _FOR_A_SHELL:
            raise InvalidInput(
                f"there is no shell that would understand {character}", field=field, fix=_NO_SHELL
            )
        else:
            word.append(character)
            in_word = True
    if quote or escaped:
        raise InvalidInput("a quotation mark is not closed", field=field)
    if in_word:
        words.append(("".join(word), quoted))
    return words


def _value(found: re.Match[str], values: Mapping[str, str]) -> str:
    if found["dollar"] is not None:
        return "$"
    return values[(found["braced"] or found["plain"]).upper()]
