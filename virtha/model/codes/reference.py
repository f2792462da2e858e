"""The reference page of all codes, made from the registry."""

from virtha.model.codes import EVENTS, PROBLEMS, REASONS, REPLACES, SOLVES
from virtha.model.codes.entry import Code

_SECTIONS = (
    ("Events", "Facts in the audit log and the event stream.", EVENTS),
    ("Reasons", "Why something was done, was not done, or what is awaited.", REASONS),
    ("Problems", "Errors of API, CLI and agent protocol.", PROBLEMS),
)
_PAIRS = (
    "What the event of the first column ends. Routes pair them, an Alertmanager's alerts end by them, and only such problems "
    "can inhibit others ([notifications](../guide/notifications.md))."
)


def reference_markdown() -> str:
    """`docs/reference/codes.md`: one table per kind, in order of number."""
    lines = [
        "# Codes",
        "",
        "Generated from the registry by `make docs`. Names and numbers are stable; wording is not.",
    ]
    for title, about, codes in _SECTIONS:
        lines += ["", f"## {title}", "", about, ""]
        lines += ["| number | code | severity | text | what to do |", "|---|---|---|---|---|"]
        lines += [_row(code) for code in sorted(codes, key=lambda code: code.number)]
    lines += [
        "",
        "## Problems and their ends",
        "",
        _PAIRS,
        "",
        "| end | ends, of the same object |",
    ]
    lines += ["|---|---|"]
    for end, problems in {**SOLVES, **REPLACES}.items():
        lines.append(f"| `{end}` | {', '.join(f'`{one}`' for one in problems)} |")
    return "\n".join(lines) + "\n"


def _row(code: Code) -> str:
    cells = (str(code.number), f"`{code.name}`", str(code.severity), code.template, code.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
