"""The benchmarks' verdict is computed: a figure that misses its target says so, and fails the run."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "bench" / "report.py"
    spec = importlib.util.spec_from_file_location("bench_report", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["bench_report"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("maker", "target", "value", "holds"),
    [
        ("at_least", 10, 10, True),
        ("at_least", 10, 9.99, False),
        ("at_most", 10, 10, True),
        ("at_most", 10, 10.01, False),
    ],
)
def test_holds(report: ModuleType, maker: str, target: float, value: float, holds: bool) -> None:
    assert getattr(report, maker)(target, value, "s").holds is holds


def test_a_shown_figure_promises_nothing(report: ModuleType) -> None:
    assert report.shown(1, "s").holds is None


@pytest.mark.parametrize(
    ("fraction", "value"), [(0.5, 2), (0.51, 3), (0.95, 4), (1.0, 4), (0.01, 1)]
)
def test_quantile_is_a_measured_value(report: ModuleType, fraction: float, value: int) -> None:
    assert report.quantile([4, 2, 1, 3], fraction) == value


@pytest.mark.parametrize(("value", "code"), [(1, 0), (3, 1)])
def test_last_line_is_the_json(
    report: ModuleType, capsys: pytest.CaptureFixture[str], value: float, code: int
) -> None:
    figures = {"a_s": report.at_most(2, value, "s"), "b_s": report.shown(5, "s")}
    assert report.finish("demo", figures) == code
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["bench"] == "demo"
    assert last["figures"]["a_s"] == {
        "value": value,
        "unit": "s",
        "target": 2,
        "holds": code == 0,
    }
    assert last["figures"]["b_s"]["holds"] is None
    assert set(last) == {"bench", "figures", "machine", "commit"}
