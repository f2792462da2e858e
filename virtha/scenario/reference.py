"""The reference page of the scenario language, made from its table of verbs."""

from virtha.scenario.language import SEPARATOR, VERBS

_INTRODUCTION = (
    "# Scenario language",
    "",
    "Generated from `virtha/scenario/language.py` by `make docs`.",
    "",
    "A scenario is one story: a comment that tells it, commands, then `"
    + SEPARATOR
    + "` and what was "
    "recorded, with the end state of each VM. `pytest tests/scenarios --rewrite` writes that part; read "
    "what it wrote. Lines of hosts carry the host's own time, in seconds since the story began; lines of "
    "the server carry the server's, so after an outage they are not in the order of time.",
    "",
    "The hosts of the first `hosts` line are connected when the story begins. An order or a setting takes "
    "2 ms to its host: a fault on the very next line comes before it, an `advance 10ms` between them lets "
    "it arrive.",
    "",
    "Agent and guardian each keep a real session (`virtha/wire`) over simulated bytes. A link is directed: "
    "`cut-link h1 server` keeps what h1 says from the server, while the server's words still arrive. What "
    "a cut link holds arrives when it is healed, if the connection is still there; nobody is told of a "
    "cut, only the session's own silence ends it. A reset is seen by both sides. With `after=BYTES` the "
    "cut or the reset comes when so many more bytes went that way: in the middle of a frame.",
    "",
    "| command | what it does |",
    "|---|---|",
)


def reference_markdown() -> str:
    """`docs/reference/scenarios.md`."""
    lines = [*_INTRODUCTION]
    for name in sorted(VERBS):
        usage, _, meaning = VERBS[name].help.partition(": ")
        lines.append(f"| `{_cell(usage)}` | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
