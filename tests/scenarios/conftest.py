"""Scenario files: one story each, played on the simulator. ``--rewrite`` writes their outcome."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario_path" in metafunc.fixturenames:
        paths = sorted(FOLDER.glob("*.txt"))
        metafunc.parametrize("scenario_path", paths, ids=[path.stem for path in paths])
