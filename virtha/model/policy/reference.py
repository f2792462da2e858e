"""The reference page of the policy, made from the field table, the rules, the profiles and the budget."""

from virtha.model.policy.budget import WAY_MEANINGS, budget
from virtha.model.policy.document import FIELD_TABLE, SECTIONS, Policy
from virtha.model.policy.field import PolicyField
from virtha.model.policy.profiles import PROFILE_FIELDS, PROFILES, Profile
from virtha.model.policy.rule import Rule
from virtha.model.time import format_duration_ms

_INTRODUCTION = (
    "# Policy",
    "",
    "Generated from the program by `make docs`. The guide is `docs/guide/policy.md`.",
    "",
    "Durations are written with a unit (`1.5s`, `200ms`, `10m`, `1h30m`). The API has the same fields "
    "with whole milliseconds and `_ms` in their names: `detection.beat_interval` is "
    "`detection.beat_interval_ms`.",
)


def reference_markdown() -> str:
    """`docs/reference/policy.md`."""
    lines = [*_INTRODUCTION, *_profiles(), *_budgets()]
    for section in SECTIONS:
        lines += ["", f"## {section.NAME}", "", _first_paragraph(section.__doc__ or ""), ""]
        lines += ["| field | default | allowed | meaning | where the default is from |"]
        lines += ["|---|---|---|---|---|"]
        lines += [_row(one) for one in FIELD_TABLE.values() if one.section == section.NAME]
        lines += _rules("Rules within this section:", section.RULES)
    lines += ["", "## Rules between sections"]
    lines += _rules("A policy that breaks one is refused, with both numbers:", Policy.RULES)
    return "\n".join(lines) + "\n"


def _first_paragraph(text: str) -> str:
    return _cell(" ".join(text.split("\n\n")[0].split()).replace("``", "`"))


def _row(one: PolicyField) -> str:
    allowed = ", ".join(f"`{word}`" for word in one.allowed)
    cells = (f"`{one.name_shown}`", f"`{one.text(one.default)}`", allowed)
    return "| " + " | ".join((*cells, _cell(one.about.meaning), _cell(one.about.source))) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _rules(title: str, rules: tuple[Rule, ...]) -> list[str]:
    if not rules:
        return []
    return ["", title, "", *(_rule(rule) for rule in rules)]


def _rule(rule: Rule) -> str:
    when = "" if rule.when is None else f" (where `{rule.when[0]}` is {_word(rule.when[1])})"
    return f"- {rule.says}{when}: else {rule.why}."


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"`{value}`"


def _profiles() -> list[str]:
    titles = " | ".join(Profile)
    lines = ["", "## Profiles", "", "What a profile decides; all else is yours and stays.", ""]
    lines += [f"| field | {titles} |", "|---" * (1 + len(Profile)) + "|"]
    for path in PROFILE_FIELDS:
        one = FIELD_TABLE[path]
        cells = " | ".join(one.text(PROFILES[profile].read(path)) for profile in Profile)
        lines.append(f"| `{one.shown}` | {cells} |")
    return lines


def _budgets() -> list[str]:
    titles = " | ".join(f"{profile}: typical | worst" for profile in Profile)
    lines = ["", "## What the profiles add up to", ""]
    lines += ["From the failure until the VM's process runs on another host. Step by step: "]
    lines[-1] += "`virtha policy budget balanced`."
    lines += ["", f"| failure | {titles} |", "|---" * (1 + 2 * len(Profile)) + "|"]
    sums = {profile: budget(PROFILES[profile]) for profile in Profile}
    for way, meaning in WAY_MEANINGS.items():
        cells = []
        for profile in Profile:
            found = sums[profile].of(way)
            cells += [format_duration_ms(found.typical_ms), format_duration_ms(found.worst_ms)]
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return lines
