"""The scenario language: one story per text. The simulator plays all of it; a lab of real hosts plays the stories whose verbs it has.

    # A QEMU is killed with -9: the sentinel starts the VM again at once.
    hosts h1
    vm web on=h1 ha watchdog=i6300esb:reset
    start web
    advance 5s
    kill-qemu web
    advance 5s
    ----
    ...what was recorded, and the end state: written by --rewrite, reviewed by people

Lines above ``----`` are commands: a verb, its words, then options as ``name=value`` or flags.
"""

from collections.abc import Sequence

from virtha.model.errors import InvalidInput
from virtha.model.value import Value
from virtha.scenario.verbs import VERBS

SEPARATOR = "----"


class Step(Value, frozen=True, kw_only=True):
    """One command of a scenario."""

    line: int
    verb: str
    words: tuple[str, ...] = ()
    options: dict[str, str] = {}

    def text(self) -> str:
        options = [name if value == "yes" else f"{name}={value}" for name, value in _sorted(self)]
        return " ".join((self.verb, *self.words, *options))


class Scenario(Value, frozen=True, kw_only=True):
    """``story``: the comment on top; ``expected``: the lines below the separator."""

    story: tuple[str, ...]
    body: tuple[str, ...]
    """All lines above the separator, as written."""
    steps: tuple[Step, ...]
    expected: tuple[str, ...]


def parse(text: str) -> Scenario:
    """Raises InvalidInput that names the line and what is allowed there."""
    lines = text.splitlines()
    end = lines.index(SEPARATOR) if SEPARATOR in lines else len(lines)
    story = tuple(line[1:].strip() for line in lines[:end] if line.startswith("#"))
    if not story:
        raise InvalidInput(
            "a scenario begins with its story",
            field="line 1",
            fix="write '# what happens, and why'",
        )
    steps = [
        _parse_step(line, number)
        for number, line in enumerate(lines[:end], 1)
        if line.strip() and not line.startswith("#")
    ]
    return Scenario(
        story=story,
        body=tuple(lines[:end]),
        steps=tuple(steps),
        expected=tuple(line for line in lines[end + 1 :] if line.strip()),
    )


def render(scenario: Scenario, outcome: Sequence[str]) -> str:
    """The scenario's text with ``outcome`` below the separator: what --rewrite writes."""
    return "\n".join((*scenario.body, SEPARATOR, *outcome)) + "\n"


def _parse_step(line: str, number: int) -> Step:
    name, *rest = line.split()
    verb = VERBS.get(name)
    if verb is None:
        raise InvalidInput(
            f"'{name}' is no command", field=f"line {number}", allowed=tuple(sorted(VERBS))
        )
    words: list[str] = []
    options: dict[str, str] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if equals or key in verb.options:
            options[key] = value if equals else "yes"
        else:
            words.append(part)
    unknown = sorted(set(options) - set(verb.options))
    if unknown:
        raise InvalidInput(
            f"'{unknown[0]}' is no option of {name}",
            field=f"line {number}",
            allowed=verb.options,
            fix=verb.help,
        )
    if not verb.words[0] <= len(words) <= verb.words[1]:
        raise InvalidInput(f"{name} with {len(words)} words", field=f"line {number}", fix=verb.help)
    return Step(line=number, verb=name, words=tuple(words), options=options)


def _sorted(step: Step) -> list[tuple[str, str]]:
    return sorted(step.options.items())
