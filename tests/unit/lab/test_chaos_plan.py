"""Chaos is drawn from its seed and from nothing else, and what is drawn makes sense."""

from collections import Counter
from pathlib import Path

import pytest

from virtha.lab import chaos
from virtha.lab.chaos_plan import (
    OPERATORS_WORK,
    SHAPES,
    WHOLE_HOST,
    FaultKind,
    Scene,
    draw_round,
    rounds,
)
from virtha.model.errors import Failed, InvalidInput

HOSTS = ("h1", "h2", "h3")
VMS = ("rec1", "rec2", "rec3")
SCENE = Scene(hosts=HOSTS, vms=VMS, server="s1")


def test_a_seed_gives_the_same_list_each_time_and_another_gives_another() -> None:
    drawn = [draw_round(7, number, SCENE) for number in range(1, 30)]
    assert drawn == [draw_round(7, number, SCENE) for number in range(1, 30)]
    assert drawn != [draw_round(8, number, SCENE) for number in range(1, 30)]
    endless = rounds(7, SCENE)
    assert [next(endless) for _ in drawn] == drawn, "each is drawn by itself"


def test_every_fault_is_drawn_and_strikes_whom_it_can() -> None:
    strikes = [one for number in range(1, 400) for one in draw_round(1, number, SCENE).strikes]
    count = Counter(one.kind for one in strikes)
    assert set(count) == set(FaultKind)
    for one in strikes:
        if one.kind is FaultKind.SERVER_KILLED:
            assert one.target == "s1"
        elif one.kind in (FaultKind.QEMU_KILLED, *OPERATORS_WORK):
            assert one.target in VMS
        else:
            assert one.target in HOSTS
        shape = SHAPES[one.kind]
        assert one.lasts_ms is None or one.lasts_ms // 1_000 in shape.lasts_s
        assert (one.amount_ms != 0) == bool(shape.amounts_ms)
    assert {one.target for one in strikes} == {*HOSTS, *VMS, "s1"}


def test_a_round_spares_one_host_and_is_healed_after_its_last_strike() -> None:
    for number in range(1, 400):
        drawn = draw_round(2, number, SCENE)
        struck = {one.target for one in drawn.strikes if one.kind in WHOLE_HOST}
        assert len(struck) < len(HOSTS)
        assert [one.at_ms for one in drawn.strikes] == sorted(one.at_ms for one in drawn.strikes)
        assert drawn.strikes and 0 <= drawn.strikes[-1].at_ms < drawn.heal_at_ms
        twice = Counter((one.kind, one.target) for one in drawn.strikes)
        assert max(twice.values()) == 1
        assert any(one.kind not in OPERATORS_WORK for one in drawn.strikes)


def test_only_the_kinds_that_are_wanted() -> None:
    only = Scene(hosts=HOSTS, vms=VMS, server="s1", kinds=frozenset({FaultKind.HOST_HUNG}))
    for number in range(1, 50):
        assert {one.kind for one in draw_round(3, number, only).strikes} == {FaultKind.HOST_HUNG}


def test_a_round_can_be_stretched() -> None:
    drawn = draw_round(4, 1, SCENE)
    longer = drawn.stretched(2.5)
    assert longer.heal_at_ms == round(drawn.heal_at_ms * 2.5)
    for one, long in zip(drawn.strikes, longer.strikes, strict=True):
        assert (long.kind, long.target) == (one.kind, one.target)
        assert long.at_ms == round(one.at_ms * 2.5)
        assert long.lasts_ms == (None if one.lasts_ms is None else one.lasts_ms * 2.5)


def test_the_list_of_a_seed_is_printed_without_a_lab(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seed", "7", "--list", "3"]
    assert chaos.main(words) == 0
    first = capsys.readouterr().out
    assert chaos.main(words) == 0
    assert capsys.readouterr().out == first
    assert first.count("round ") == 3
    assert f" {draw_round(7, 1, SCENE).heal_at_ms / 1_000:g} s" in first


def test_what_can_t_be_run_is_refused_before_anything_is_built() -> None:
    with pytest.raises(InvalidInput, match="earthquake") as refused:
        chaos.kinds_of("host_hung, earthquake")
    assert refused.value.field == "--kinds"
    assert "host_hung" in refused.value.allowed
    with pytest.raises(Failed, match="no fault among"):
        chaos.kinds_of("vm_moved,vm_stopped")
    with pytest.raises(InvalidInput) as refused:
        chaos.options_of(chaos.parse(["--minutes", "0"]))
    assert refused.value.field == "--minutes"
    with pytest.raises(InvalidInput) as refused:
        chaos.options_of(chaos.parse(["--stretch", "0"]))
    assert refused.value.field == "--stretch" and refused.value.allowed
    assert chaos.main(["--kinds", "earthquake"]) != 0
    assert chaos.kinds_of("host_hung, power_cut") == {FaultKind.HOST_HUNG, FaultKind.POWER_CUT}
    assert chaos.kinds_of("") == set(FaultKind)


def test_the_directory_of_another_run_is_refused_and_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its seed may be the same: another version draws other faults from it."""
    (tmp_path / "faults.jsonl").write_text('{"seed": 1, "version": "0.0.9"}\n')
    before = (tmp_path / "faults.jsonl").read_bytes()
    words = ["--seed", "1", "--dir", "/run/virtha-no-lab", "--out", str(tmp_path)]
    assert chaos.main(words) == 2
    assert "holds the log of another run" in capsys.readouterr().err
    assert (tmp_path / "faults.jsonl").read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["faults.jsonl"]
