"""The scenario language: what it reads, and how it says what is wrong."""

import pytest

from virtha.model.errors import InvalidInput
from virtha.scenario.language import parse, render
from virtha.scenario.verbs import VERBS
from virtha.sim.play import Player

GOOD = "# a story\nhosts h1\nvm web on=h1 ha\n\nadvance 5s\n----\nend\n"


def test_reads_words_options_and_flags() -> None:
    scenario = parse(GOOD)
    assert [(step.verb, step.words, step.options) for step in scenario.steps] == [
        ("hosts", ("h1",), {}),
        ("vm", ("web",), {"on": "h1", "ha": "yes"}),
        ("advance", ("5s",), {}),
    ]
    assert scenario.expected == ("end",)


def test_what_is_rendered_is_read_as_the_same() -> None:
    scenario = parse(GOOD)
    assert render(scenario, scenario.expected) == GOOD


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("hosts h1\n", "line 1", "begins with its story"),
        ("# s\nexplode h1\n", "line 2", "'explode' is no command"),
        ("# s\n\nvm web on=h1 colour=red\n", "line 3", "'colour' is no option of vm"),
        ("# s\nadvance\n", "line 2", "advance with 0 words"),
        ("# s\nunhold now\n", "line 2", "unhold with 1 words"),
    ],
)
def test_wrong_lines_are_named(text: str, field: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        parse(text)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("hosts h1\nkill-qemu web", "no VM 'web'"),
        ("hosts h1\npower-cut h2", "no host 'h2'"),
        ("hosts h1\ncrash-agent h1 at=lunch", "no point 'lunch'"),
        ("hosts h1\nadvance soon", "'soon' is not a duration"),
    ],
)
def test_what_is_not_there_is_named(body: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Player().play(parse(f"# s\n{body}\n"))


def test_every_verb_can_be_played() -> None:
    assert set(VERBS) == set(Player()._verbs)
