"""``make chaos-oracle``: what proves that chaos can fail, and what does not."""

import argparse
import json
from pathlib import Path
from types import ModuleType

import pytest
from loaded_script import load_script

from virtha.lab.chaos_report import STRAY_WRITE, VIOLATED


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    return load_script("chaos_oracle")


def _figures(path: Path, after_s: float | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"chaos": {"violated_after_s": after_s}}))
    return path


def test_only_a_superseded_copys_write_in_time_is_a_proof(
    oracle: ModuleType, tmp_path: Path
) -> None:
    figures = _figures(tmp_path / "figures.json", 600.0)
    assert oracle.mutant_problem(VIOLATED, figures) is None
    # 3: something was not found, which is no proof of anything.
    for code in (0, 1, 2, 3, 130, -9, STRAY_WRITE):
        assert "NOT caught" in oracle.mutant_problem(code, figures), code
    assert "not within 600 s" in oracle.mutant_problem(VIOLATED, _figures(figures, 600.1))
    assert "NOT caught" in oracle.mutant_problem(VIOLATED, _figures(figures, None))
    assert "NOT caught" in oracle.mutant_problem(VIOLATED, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("codes", "after_s", "ends", "played"),
    [
        ([0, VIOLATED], 42.0, 0, 2),
        ([0, VIOLATED], 601.0, 1, 2),
        ([0, STRAY_WRITE], None, 1, 2),
        ([VIOLATED, VIOLATED], 42.0, 1, 1),
        ([1, VIOLATED], 42.0, 1, 1),
    ],
    ids=["caught", "too late", "a stray write", "caught without the bug", "no control"],
)
def test_a_control_without_the_bug_goes_first_and_must_find_nothing(
    oracle: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    codes: list[int],
    after_s: float | None,
    ends: int,
    played: int,
) -> None:
    runs: list[tuple[str, bool, dict[str, object]]] = []

    def run_chaos(folder: Path, given: argparse.Namespace, out: Path) -> int:
        _figures(out / oracle.FIGURES, after_s)
        runs.append((out.name, (folder / "mutated").exists(), dict(vars(given))))
        return codes[len(runs) - 1]

    monkeypatch.setattr(oracle, "copy_base", lambda _: None)
    monkeypatch.setattr(oracle, "apply", lambda _, folder: (folder / "mutated").touch())
    monkeypatch.setattr(oracle, "run_chaos", run_chaos)
    monkeypatch.setattr("sys.argv", ["chaos_oracle", "--out", str(tmp_path)])
    assert oracle.main() == ends
    assert [(name, mutated) for name, mutated, _ in runs] == [
        ("control", False),
        ("engine-trusts-silence", True),
    ][:played]
    assert all(given == runs[0][2] for _, _, given in runs), "the same seed and options"
    if ends == 0:
        assert "caught 42 s after the first strike" in capsys.readouterr().out


def test_a_mutant_that_does_not_apply_proves_nothing(
    oracle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "copy_base", lambda _: None)
    monkeypatch.setattr(oracle, "apply", lambda *_: "hunk 1 failed")
    monkeypatch.setattr(oracle, "run_chaos", lambda *_: 0)
    monkeypatch.setattr("sys.argv", ["chaos_oracle", "--out", str(tmp_path)])
    assert oracle.main() == 1
