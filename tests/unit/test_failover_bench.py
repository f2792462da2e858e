"""``bench/failover``: rounds outlive a run that is killed, those of another program don't count, and targets are computed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from loaded_script import ROOT

from virtha.lab.journals import Replayed
from virtha.lab.watching import Seen
from virtha.model.errors import Failed


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its parts, imported as ``python bench/failover.py`` does."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    from host_failures import cases, ledger, play, played, results, twice

    yield SimpleNamespace(
        cases=cases, ledger=ledger, play=play, played=played, results=results, twice=twice
    )
    for name in [name for name in sys.modules if name.split(".")[0] in ("host_failures", "report")]:
        del sys.modules[name]


def test_rounds_outlive_a_run_that_is_killed_while_it_writes(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    case = bench.cases.POWER_SEEN_FAST
    first, second = (bench.played.Round(started_s=(one,), orders=("h1 off",)) for one in (2.5, 3.5))
    bench.ledger.Ledger("program", tmp_path).add(case, first)
    with (tmp_path / f"{case.name}.jsonl").open("a") as file:
        file.write('{"program": "prog')
    again = bench.ledger.Ledger("program", tmp_path)
    assert again.rounds(case) == [first]
    again.add(case, second)
    assert again.rounds(case) == [first, second]


def test_rounds_of_another_program_or_case_do_not_count(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    case, other = bench.cases.CASES[1], bench.cases.CASES[2]
    bench.ledger.Ledger("before", tmp_path).add(case, bench.played.Round())
    ledger = bench.ledger.Ledger("now", tmp_path)
    ledger.add(other, bench.played.Round())
    assert ledger.rounds(case) == []
    (tmp_path / f"{other.name}.jsonl").rename(tmp_path / f"{case.name}.jsonl")
    assert ledger.rounds(case) == [], "it was measured under another policy"


def test_rounds_that_were_measured_otherwise_do_not_count(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in bench.ledger.PLACES:
        assert (ROOT / place).is_dir()
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "one.py").write_text("a = 1\n")
    monkeypatch.setattr(bench.ledger, "ROOT", tmp_path)
    states = [bench.ledger.program_state()]
    for place in bench.ledger.PLACES:
        (tmp_path / place / "one.py").write_text("a = 2\n")
        states.append(bench.ledger.program_state())
    assert len(set(states)) == 3


def test_each_case_has_a_policy_that_can_be_and_a_state_of_its_own(bench: SimpleNamespace) -> None:
    cases = bench.cases.CASES
    assert len({case.name for case in cases}) == len({case.state for case in cases}) == len(cases)
    for case in cases:
        assert case.checked_policy.fencing.cap_count == bench.cases.CAP_COUNT
        # Else it would be the policy, and not the product, that keeps the VM down after the second round.
        assert case.rounds >= 20 or case.vms == 40


def test_figures_hold_or_not_by_what_was_measured(bench: SimpleNamespace) -> None:
    case, cut = (
        bench.cases.POWER_SEEN_FAST,
        next(one for one in bench.cases.CASES if one.fault is bench.cases.Fault.NETWORK_CUT),
    )
    floor = {"status_s": 0.1, "off_s": 0.3, "start_s": 0.6}
    rounds = [
        bench.played.Round(started_s=(one,), resumed_s=(one + 0.1,)) for one in (2.0, 2.5, 9.0)
    ]
    seen = {"isolated_s": 5.5, "fences": 0, "starts": 1, "recoveries": 0, "writes": 12}
    found = bench.results.figures(
        {
            bench.cases.FLOOR: [
                bench.played.Round(measured=floor),
                bench.played.Round(failed="never", double_runs=None),
            ],
            case: [*rounds, bench.played.Round(failed="never", double_runs=1)],
            cut: [bench.played.Round(measured=seen)],
        },
        [],
    )
    held = {name: (figure.value, figure.holds) for name, figure in found.items()}
    assert held["floor_s"] == (1.0, None)
    assert held[f"{case.name}_p50_s"] == (2.5, True)
    assert held[f"{case.name}_worst_s"] == (9.0, False)
    assert held[f"{case.name}_ratio"] == (2.5, None)
    assert held[f"{case.name}_runs"] == (4, False)
    assert held[f"{case.name}_failed"] == (1, False)
    assert held["network_cut_isolated_worst_s"] == (5.5, False)
    assert held["network_cut_fences"] == (0, True)
    assert held["network_cut_starts"] == (1, False)
    assert held["network_cut_isolated_p95_s"] == (5.5, None)
    assert held["double_runs"] == (1, False)
    assert held["double_runs_unseen"] == (0, True)


def test_an_agent_that_was_killed_has_all_figures_of_how_it_is_shown(
    bench: SimpleNamespace,
) -> None:
    case = next(one for one in bench.cases.CASES if one.name == "agent_killed")
    measured = {"shown_s": 1.0, "back_s": 0.5, "touched": 0}
    found = bench.results.figures({case: [bench.played.Round(measured=measured)] * 20}, [])
    for which in ("shown", "back"):
        assert {f"agent_killed_{which}_{one}_s" for one in ("p50", "p95", "worst")} <= found.keys()


def test_many_vms_are_compared_with_a_single_one_whichever_cases_are_played(
    bench: SimpleNamespace,
) -> None:
    case = next(one for one in bench.cases.CASES if one.vms == 16)
    many = bench.played.Round(started_s=(2.0, 3.0), resumed_s=(2.1, 3.1))
    alone = [bench.played.Round(started_s=(2.1,)), bench.played.Round(failed="never")]
    name = f"{case.name}_first_p50_s"
    found = bench.results.figures({case: [many]}, alone)[name]
    assert (found.value, found.target, found.holds) == (2.0, 2.1, True)
    for none in ([], alone[1:]):
        found = bench.results.figures({case: [many]}, none)[name]
        assert (found.value, found.holds) == (2.0, False), "nothing to compare it with"


@pytest.mark.parametrize("fault", ["POWER_SEEN", "NETWORK_CUT", "AGENT_KILLED", "QEMU_KILLED"])
def test_a_round_that_fails_says_how_often_a_vm_ran_twice(
    bench: SimpleNamespace, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = bench.cases.Fault[fault]
    case = next(one for one in bench.cases.CASES if one.fault is kind)
    ends: list[object] = []

    class Outside:
        blind = False

        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> "Outside":
            return self

        def __exit__(self, *_: object) -> None: ...
        def double_runs(self, vms: list[str], dead: object) -> int:
            assert vms == ["web1"]
            ends.append(dead)
            if self.blind:
                raise Failed("nobody saw who wrote")
            return 1

    def breaks(_: object) -> None:
        raise Failed("not within 150 s")

    monkeypatch.setattr(bench.play, "Outside", Outside)
    monkeypatch.setattr(bench.play, "End", lambda process: f"end of {process}")
    monkeypatch.setitem(bench.play._PLAYS, kind, breaks)
    stage = SimpleNamespace(
        lab=SimpleNamespace(hosts=[]), others=[], victim_process="h1", disks=lambda _: {}
    )
    stage.vms, stage.orders = (lambda _: ["web1"]), (lambda: ("h1 off",))
    played = bench.play.play(stage, case)
    assert (played.failed, played.double_runs) == ("not within 150 s", 1)
    assert played.orders == ("h1 off",)
    assert ends == ["end of h1" if kind in bench.cases.RECOVERS else None]
    Outside.blind = True
    played = bench.play.play(stage, case)
    assert played.failed == "not within 150 s; nobody saw who wrote" and played.double_runs is None
    held = bench.results.figures({case: [played]}, [])
    assert held["double_runs_unseen"].holds is False


def test_rounds_count_as_replayed_once_a_replay_stands_behind_them(
    bench: SimpleNamespace, tmp_path: Path
) -> None:
    case = bench.cases.POWER_SEEN_FAST
    ledger = bench.ledger.Ledger("program", tmp_path)
    for _ in range(2):
        ledger.add(case, bench.played.Round())
    assert ledger.rounds_not_replayed(case) == 2
    ledger.add_replay(case, Replayed(turns=9))
    ledger.add(case, bench.played.Round())
    assert (len(ledger.rounds(case)), ledger.rounds_not_replayed(case)) == (3, 1)
    assert ledger.replays(case) == [Replayed(turns=9)]
    other = bench.ledger.Ledger("another", tmp_path)
    assert (other.replays(case), other.rounds_not_replayed(case)) == ([], 0)


def test_a_replay_that_differs_or_was_never_made_does_not_hold(bench: SimpleNamespace) -> None:
    case = bench.cases.POWER_SEEN_FAST
    for replayed, left, holds in (
        ([Replayed(turns=9)], 0, (True, True, True)),
        ([Replayed(turns=9, differ=1)], 0, (True, False, True)),
        ([Replayed(turns=9, gone=1)], 0, (True, False, True)),
        ([Replayed(turns=9)], 1, (True, True, False)),
        ([], 1, (False, True, False)),
    ):
        found = bench.results.replay_figures({case: replayed}, {case: left})
        assert tuple(one.holds for one in found.values()) == holds, (replayed, left)


def told(*events: str) -> list[tuple[str, Seen]]:
    """Each ``HOST VM KIND``."""
    words = [event.split() for event in events]
    return [
        (host, Seen(at_s=float(at), vm=vm, kind=kind)) for at, (host, vm, kind) in enumerate(words)
    ]


@pytest.mark.parametrize(
    ("events", "twice"),
    [
        (("h2 a started", "h3 b started"), set()),
        (("h2 a started", "h2 a stopped", "h3 a started"), set()),
        (("h2 a started", "h2 a crashed", "h2 a started"), set()),
        (("h2 a started", "h3 a started", "h2 a stopped"), {"a"}),
        (("h2 a started", "h3 a stopped", "h3 a started"), {"a"}),
    ],
)
def test_a_vm_that_is_taken_back_and_started_again_ran_once_at_a_time(
    bench: SimpleNamespace, events: tuple[str, ...], twice: set[str]
) -> None:
    assert bench.twice.ran_at_once(told(*events)) == twice


def test_whoever_writes_without_a_start_of_its_own_writes_after_another_had_begun(
    bench: SimpleNamespace,
) -> None:
    assert bench.twice.starts_of(told("h2 a started", "h2 a stopped", "h3 a started")) == {"a": 2}
    assert not bench.twice.wrote_in_turn(["h1", "h2", "h3"], 2)
    assert not bench.twice.wrote_in_turn([], 0)
    assert bench.twice.wrote_in_turn(["h1", "h2", "h1"], 1)
    assert bench.twice.wrote_in_turn(["h1", "h2"], 0)
