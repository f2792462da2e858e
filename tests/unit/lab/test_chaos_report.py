"""What a run of chaos counts and judges, from files as the lab's programs write them."""

from pathlib import Path
from types import SimpleNamespace

from virtha.agent.paths import AgentPaths
from virtha.lab import state
from virtha.lab.chaos_report import (
    STRAY_WRITE,
    VIOLATED,
    exit_code,
    holds,
    violated_after_s,
)
from virtha.lab.chaos_run import (
    STRAY,
    VIOLATION,
    ChaosRun,
    Finding,
    Tally,
    back_within_s,
    chaos_policy,
)
from virtha.lab.journals import Replayed
from virtha.lab.lab import Lab
from virtha.lab.record_ledger import MARK, SECTOR
from virtha.lab.recording_vms import Recorders, RecordingVm
from virtha.lab.write_judge import Copy, Violation, Write, WriteJudge
from virtha.model import errors


def test_a_run_holds_only_with_rounds_and_without_findings() -> None:
    same = Replayed(turns=1)
    assert holds(Tally(rounds=1), same)
    assert not holds(Tally(rounds=0), same), "nothing was shown"
    assert not holds(Tally(rounds=1, findings=[Finding(what="vm lost", detail="")]), same)
    assert not holds(Tally(rounds=1), Replayed(turns=1, differ=1))


def _write(at_ms: int, copy: Copy | None = None) -> Write:
    return Write(at_ms=at_ms, vm="rec1", disk="boot", host="h1", copy=copy)


OLD, NEW = (Copy(host=f"h{n}", pid=n, start_ticks=n) for n in (1, 2))


def _found(*writes: Write) -> ChaosRun:
    """A run whose witness saw them."""
    judge = WriteJudge()
    for one in writes:
        judge.saw(one)
    run = object.__new__(ChaosRun)
    run.tally = Tally(rounds=1)
    run.writes = SimpleNamespace(
        violated=SimpleNamespace(is_set=lambda: True), error=None, violations=judge.violations
    )
    run._log = SimpleNamespace(note=lambda **_: None)
    run._steps = SimpleNamespace(say=lambda _: None)
    assert run._violated()
    return run


def test_only_a_superseded_copys_write_proves_the_oracle() -> None:
    """A write of nobody that the witness knows may be its own error."""
    same = Replayed(turns=1)
    stray = _found(*[_write(n) for n in range(20)])
    assert {one.what for one in stray.tally.findings} == {STRAY}
    assert exit_code(stray.tally, same) == STRAY_WRITE
    both = _found(*[_write(n) for n in range(20)], _write(30, NEW), _write(40, OLD))
    assert {one.what for one in both.tally.findings} == {STRAY, VIOLATION}
    assert exit_code(both.tally, same) == VIOLATED
    assert exit_code(Tally(rounds=1, findings=[Finding(what="vm lost", detail="")]), same) == 1
    assert exit_code(Tally(rounds=1), same) == 0
    codes = [one.exit_code for one in vars(errors).values() if hasattr(one, "exit_code")]
    assert not {VIOLATED, STRAY_WRITE} & {0, 1, 2, 130, *codes}, "no failure is taken for it"


def test_a_violation_counts_from_the_first_strike() -> None:
    stray, superseded = Violation(write=_write(2_000)), _write(9_500, OLD)
    found = [stray, Violation(write=superseded, newer=_write(9_000, NEW))]
    assert violated_after_s([5_000, 4_000], found) == 5.5
    assert violated_after_s([5_000, 4_000], [stray]) is None
    assert violated_after_s([], found) is None


def test_all_have_to_be_back_within_the_policys_longest_way_and_the_boots() -> None:
    with_leases = back_within_s(chaos_policy(leases=True))
    assert 300 < with_leases < 600
    assert back_within_s(chaos_policy(leases=False)) < with_leases


def test_acknowledgements_are_read_from_all_hosts_over_rotations_of_their_logs(
    tmp_path: Path,
) -> None:
    nodes = [state.NodeState(name=f"h{n}", number=n, kind="host") for n in (1, 2)]
    state.write_state(state.LabState(id="vl1", directory=str(tmp_path), nodes=tuple(nodes)))
    logs = [
        Path(AgentPaths(root=str(tmp_path / node.name / "root")).serial) / "id1.log"
        for node in nodes
    ]
    for log in logs:
        log.parent.mkdir(parents=True)
    disk = tmp_path / "records.raw"
    lines = [f"record {n} aaaaaaaa".encode().ljust(SECTOR) for n in range(1, 5)]
    disk.write_bytes(b"".join([MARK.ljust(SECTOR, b"\0"), *lines]))
    recorders = Recorders(Lab.open(tmp_path), [RecordingVm("rec1", "id1", {}, disk)])
    logs[0].write_bytes(b"boot\r\nack 1 aaaaaaaa ok\r\nack 2 aaaa")
    recorders.look()
    assert recorders.newest() == {"rec1": 1}
    with logs[0].open("ab") as log:
        log.write(b"aaaa ok\r\n")
    recorders.look()
    logs[0].rename(f"{logs[0]}.0")
    with Path(f"{logs[0]}.0").open("ab") as log:
        log.write(b"ack 3 aaaaaaaa ok\r\n")
    logs[0].write_bytes(b"ack 4 aaaaaaaa ok\r\n")
    recorders.look()
    assert recorders.acknowledged() == 4 and list(recorders.lost()) == []
    logs[1].write_bytes(b"ack 5 bbbbbbbb ok\r\n")
    recorders.look()
    (name, lost) = next(recorders.lost())
    assert (name, lost.number, lost.found) == ("rec1", 5, None)
    with logs[1].open("ab") as log:
        log.write(b"ack 2 bbbbbbbb ok\r\n")
    recorders.look()
    assert [one.number for _, one in recorders.lost()] == [2, 5], "told twice, by two writers"
