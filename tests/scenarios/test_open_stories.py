"""Stories that the program does not get right yet, each found by a review or by the simulator.

What is below ``----`` is the beginning of lines that the outcome should have; with nothing below, the checkers should
have nothing to say. A story that comes out right fails here: it is mended, so move it up to the others and
``--rewrite`` it.
"""

from pathlib import Path

import pytest

from virtha.scenario.language import parse
from virtha.sim.checkers import Violation
from virtha.sim.play import Player

STILL_OPEN = pytest.mark.xfail(
    strict=True, raises=(Violation, AssertionError), reason="known, not mended yet"
)
OPEN = [
    pytest.param(path, id=path.stem, marks=STILL_OPEN)
    for path in sorted((Path(__file__).parent / "open").glob("*.txt"))
]


@pytest.mark.parametrize("path", OPEN or [pytest.param(None, id="there-are-none")])
def test_open_story(path: Path | None) -> None:
    if path is None:
        return
    scenario = parse(path.read_text())
    outcome = Player().play(scenario)
    for wanted in scenario.expected:
        assert any(line.startswith(wanted) for line in outcome), f"{wanted} is not the outcome"
