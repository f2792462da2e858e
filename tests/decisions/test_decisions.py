"""Decides every file anew and compares."""

from pathlib import Path

import pytest
from placement_language import Case

from virtha.model.errors import InvalidInput


@pytest.mark.req("X1")
def test_decision(decision_path: Path, rewrite: bool) -> None:
    case = Case(decision_path.read_text())
    outcome = case.decide()
    if rewrite:
        decision_path.write_text(case.rendered(outcome))
        return
    assert case.expected, f"{decision_path.name} expects nothing: use --rewrite, then review it"
    assert outcome == case.expected


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("host h1 memory=1GiB", "line 1", "begins with its story"),
        ("# s\nhosts h1", "line 2", "'hosts' is nothing that can be said"),
        ("# s\n\nhost h1 memory=1GB", "line 3", "'1GB' is not a size"),
        ("# s\nhost h1 memory=1GiB colour=red", "line 2", "'colour' is no option of host"),
        ("# s\nruns web on=h9", "line 2", "no host 'h9'"),
        ("# s\nplace web memory=1GiB groups=db", "line 2", "no group 'db'"),
        ("# s\ngroup db apart", "line 2", "group takes 3 words, not 2"),
    ],
)
def test_wrong_lines_are_named(text: str, line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        Case(text)
    assert caught.value.field == line
