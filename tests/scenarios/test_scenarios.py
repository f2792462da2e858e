"""Plays every scenario; the checkers run after each action of the world."""

from pathlib import Path

import pytest

from virtha.scenario.language import parse, render
from virtha.sim.play import Player


@pytest.mark.req("W6", "W7", "W12", "A8", "X1")
def test_scenario(scenario_path: Path, rewrite: bool) -> None:
    scenario = parse(scenario_path.read_text())
    outcome = Player().play(scenario)
    if rewrite:
        scenario_path.write_text(render(scenario, outcome))
        return
    assert scenario.expected, f"{scenario_path.name} expects nothing: use --rewrite, then review it"
    assert tuple(outcome) == scenario.expected
