"""The registry: numbers and names are unique, numbers stay in their block, every code is used."""

import re
from collections import Counter
from pathlib import Path

import pytest

from virtha.model.codes import EVENTS, PROBLEMS, REASONS, REGISTRY, render
from virtha.model.codes.entry import Code, Kind, Severity

PACKAGE = Path(__file__).resolve().parents[3] / "virtha"
ALL = (*EVENTS, *REASONS, *PROBLEMS)


def test_names_and_numbers_are_unique() -> None:
    assert [name for name, n in Counter(code.name for code in ALL).items() if n > 1] == []
    assert [number for number, n in Counter(code.number for code in ALL).items() if n > 1] == []
    assert len(REGISTRY) == len(ALL)


@pytest.mark.parametrize(
    ("codes", "low", "high"), [(EVENTS, 1000, 3999), (REASONS, 5000, 7999), (PROBLEMS, 8000, 9499)]
)
def test_numbers_stay_in_their_block(codes: tuple[Code, ...], low: int, high: int) -> None:
    assert [code.name for code in codes if not low <= code.number <= high] == []


def test_names_are_dotted_words() -> None:
    wrong = [code.name for code in ALL if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", code.name)]
    assert wrong == []


def test_render_fills_fields_and_survives_missing_ones() -> None:
    assert render("vm.watchdog.fired", {"vm": "web1", "action": "reset"}) == (
        "Watchdog of web1 fired, action reset"
    )
    assert render("vm.watchdog.fired", {"vm": "web1"}) == "Watchdog of web1 fired, action ?"
    assert render("from.the.future", {}) == "from.the.future"


def test_a_template_may_not_use_an_undeclared_field() -> None:
    with pytest.raises(AssertionError, match="undeclared"):
        Code(
            name="a.b",
            number=1000,
            kind=Kind.EVENT,
            severity=Severity.INFO,
            template="{missing}",
        )


def test_every_code_is_used_somewhere() -> None:
    registry = PACKAGE / "model" / "codes"
    text = "\n".join(
        path.read_text() for path in PACKAGE.rglob("*.py") if registry not in path.parents
    )
    assert [code.name for code in ALL if f'"{code.name}"' not in text] == []
