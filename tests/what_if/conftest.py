"""Questions and their answers: each file is one command and what it prints. ``--rewrite`` writes the answers."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "question_path" in metafunc.fixturenames:
        paths = sorted(FOLDER.glob("*.txt"))
        metafunc.parametrize("question_path", paths, ids=[path.stem for path in paths])
