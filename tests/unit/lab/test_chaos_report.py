"""What a run of chaos counts and judges, from files as the lab's programs write them."""

import json
from pathlib import Path

import pytest

from virtha.agent.paths import AgentPaths
from virtha.lab import state
from virtha.lab.chaos_report import Replayed, add_replay, holds
from virtha.lab.chaos_run import Finding, Tally, back_within_s, chaos_policy
from virtha.lab.lab import Lab
from virtha.lab.record_ledger import MARK, SECTOR
from virtha.lab.recording_vms import Recorders, RecordingVm
from virtha.model.errors import Failed


def _segment(**fields: object) -> dict[str, object]:
    return {"file": "1.journal", "turns": 10, "differ": 0, "fault": None, "failure": "", **fields}


def _replayed(path: Path, *segments: dict[str, object]) -> Replayed:
    path.write_text(json.dumps({"version": "1", "segments": segments}))
    return add_replay(Replayed(), path, 0)


@pytest.mark.req("X2")
def test_a_replay_is_the_same_unless_a_turn_differs_or_a_segment_is_broken(tmp_path: Path) -> None:
    log = tmp_path / "replay.json"
    cut = {"kind": "truncated", "offset": 9, "detail": "…"}
    good = _replayed(log, _segment(), _segment(fault=cut))
    assert good == Replayed(turns=20, cut=1)
    assert good.is_the_same, "a kill -9 of the server cuts its last record short"
    assert not _replayed(log, _segment(differ=1)).is_the_same
    assert not _replayed(log, _segment(fault={**cut, "kind": "damaged"})).is_the_same
    assert not _replayed(log, _segment(failure="AssertionError")).is_the_same
    assert not _replayed(log).is_the_same, "nothing was replayed"
    assert add_replay(good, log, 0).turns == 20
    log.write_text("virtha: no such file")
    with pytest.raises(Failed, match="can't be read"):
        add_replay(Replayed(), log, 1)


def test_a_run_holds_only_with_rounds_and_without_findings() -> None:
    same = Replayed(turns=1)
    assert holds(Tally(rounds=1), same)
    assert not holds(Tally(rounds=0), same), "nothing was shown"
    assert not holds(Tally(rounds=1, findings=[Finding(what="vm lost", detail="")]), same)
    assert not holds(Tally(rounds=1), Replayed(turns=1, differ=1))


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
