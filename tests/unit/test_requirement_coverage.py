"""The list of bad input can't rot: each line has its tests, and each marker a line."""

from pathlib import Path
from types import ModuleType

import pytest
from loaded_script import load_script


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    return load_script("requirement_coverage")


def test_each_line_of_bad_input_is_proved_as_a_part_and_as_a_story(coverage: ModuleType) -> None:
    found = set(coverage.covered("bad_input"))
    wanted = {
        coverage.Marked(name, is_story) for name in coverage.BAD_INPUT for is_story in (False, True)
    }
    assert not wanted - found, "lines without a test (is_story: as a user meets it)"
    assert not found - wanted, "markers that name no line of BAD_INPUT"


def test_a_marker_is_found_wherever_it_may_stand(
    coverage: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_sample.py").write_text(
        "pytestmark = [pytest.mark.bad_input('a')]\n"
        "@pytest.mark.bad_input('b', 'c', story=True)\n"
        "def test_one(): ...\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.bad_input('d'))])\n"
        "def test_two(): ...\n"
        "@pytest.mark.bad_input('e')\n"
        "def no_test(): ...\n"
    )
    monkeypatch.setattr(coverage, "ROOT", tmp_path)
    one, two = "tests/test_sample.py::test_one", "tests/test_sample.py::test_two"
    assert coverage.covered("bad_input") == {
        ("a", False): [one, two],
        ("b", True): [one],
        ("c", True): [one],
        ("d", False): [two],
    }
