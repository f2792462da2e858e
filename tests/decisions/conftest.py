"""Decision files: one snapshot each, and what is decided. ``--rewrite`` writes the decisions."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "decision_path" in metafunc.fixturenames:
        paths = sorted(FOLDER.glob("*.txt"))
        metafunc.parametrize("decision_path", paths, ids=[path.stem for path in paths])
