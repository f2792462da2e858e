"""``bench/api``: each request that it makes is one that the server answers, from its first case to its last line."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loaded_script import ROOT, load_script

VMS, EVENTS = 200, 1_000
IMPORTED = ("large_installation", "report")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """With its parts, imported as ``python bench/api.py`` does."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield load_script("api", folder="bench")
    for name in [name for name in sys.modules if name.split(".")[0] in IMPORTED]:
        del sys.modules[name]


def test_it_runs_to_its_end_and_each_case_finds_what_it_asks_for(
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In an installation that is too small for whole pages, and with too few requests for a p99."""
    given = {"vms": VMS, "events": EVENTS, "seconds": 0, "requests": 3, "directory": tmp_path}
    monkeypatch.setattr(sys, "argv", ["api", *(f"--{name}={one}" for name, one in given.items())])
    monkeypatch.setattr(bench, "WARM_UP", 0)
    measure, items = bench.measure, dict[tuple[int, str], float]()
    names = {case.what: name for name, case in bench.CASES.items()}

    def looked_at(case: Any, served: Any, places: Any, **told: Any) -> Any:
        found = measure(case, served, places, **told)
        items[places.size.vms, names[case.what]] = found.items
        if case is bench.CASES["facade_list"]:
            up = replace(
                bench.CASES["vms_by_state"],
                given=lambda _drawn: {"search": "status = up"},
                limit=bench.LIST,
            )
            assert measure(up, served, places, **told).items == found.items
            _ends_where_less_or_nothing_is_found(bench, measure, served, places)
        return found

    monkeypatch.setattr(bench, "measure", looked_at)
    bench.main()  # how long the answers took says how busy this machine is
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {*said["figures"]} == {
        f"{name}_{what}" for name in bench.CASES for what in ("p99", "rate", "growth")
    }
    pages = {f"{name}_p99" for name in bench.CASES} - {"facade_list_p99"}
    assert {name: one["target"] for name, one in said["figures"].items() if one["target"]} == (
        dict.fromkeys(pages, 50.0)
    )
    found = {name: items[VMS, name] for name in bench.CASES}
    assert [name for name, case in bench.CASES.items() if case.least and not found[name]] == []
    assert found["facade_list"] > bench.PAGE == found["vms_by_cluster"]
    # Those of the same VMs, asked for in three ways.
    asked = ("events_of_vm", "events_searched_of_vm", "facade_events_of_vm")
    assert len({found[name] for name in asked}) == 1


def _ends_where_less_or_nothing_is_found(
    bench: ModuleType, measure: Any, served: Any, places: Any
) -> None:
    whole = replace(places, size=bench.FULL_PAGES_FROM)
    told = {"seconds": 0, "requests_min": 1}
    with pytest.raises(SystemExit, match="where 1000 and more were expected"):
        measure(bench.CASES["facade_list"], served, whole, **told)
    refused = replace(bench.CASES["vms_plain"], given=lambda _drawn: {"after": "web"})
    with pytest.raises(SystemExit, match=r"after=web.*: 400 "):
        measure(refused, served, places, **told)


def test_pages_are_whole_in_both_sizes_that_are_measured_unless_told_otherwise(
    bench: ModuleType,
) -> None:
    large = bench.Size(vms=20_000, hosts=1_000, events=5_000_000)
    small = bench.Size(vms=2_000, hosts=100, events=500_000)
    assert large.holds(bench.FULL_PAGES_FROM) and small.holds(bench.FULL_PAGES_FROM)
    fewer = (replace(small, vms=1_999), replace(small, hosts=99), replace(large, events=4_999_999))
    assert not any(one.holds(bench.FULL_PAGES_FROM) for one in fewer)
    less = {name: one.least for name, one in bench.CASES.items() if one.least != bench.PAGE}
    assert less == {
        "vms_by_host": 16,
        "vms_by_rare_text": 0,
        "events_by_code_and_time": 0,
        "events_by_text": 0,
        "facade_list": 1_000,
    }
