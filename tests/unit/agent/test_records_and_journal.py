"""Records, settings, outcomes through crashes; the journal and its replay."""

import contextlib
from pathlib import Path

import pytest
from agent_bench import WEB1, Bench
from crash_files import Crash, CrashingFiles

from virtha.agent.files import Files
from virtha.agent.journal import Journal, replay
from virtha.agent.records import OUTCOMES_MAX, OutcomeMemory, RecordStore, SettingsStore, safe_name
from virtha.model.facts import Outcome, Result
from virtha.model.ids import BootId, Incarnation, OperationId
from virtha.model.time import Millis
from virtha.model.vm import VmState
from virtha.sentinel.events import (
    Decision,
    DropRecord,
    SaveRecord,
    SaveWatched,
    SentinelEvent,
    SentinelRecords,
    VmRecord,
    Watched,
)
from virtha.sentinel.sentinel import Sentinel


def record(bench: Bench, state: VmState = VmState.RUNNING) -> VmRecord:
    return VmRecord(vm=bench.vm(), incarnation=Incarnation(3), boot=BootId("boot-1"), state=state)


@pytest.mark.req("A8")
@pytest.mark.parametrize("steps", range(5))
def test_a_record_is_the_old_or_the_new_one_after_a_crash(bench: Bench, steps: int) -> None:
    directory = bench.paths.records
    old, new = record(bench), record(bench, VmState.DOWN)
    RecordStore(directory, Files()).write((SaveRecord(record=old),))
    with contextlib.suppress(Crash):
        RecordStore(directory, CrashingFiles(steps)).write((SaveRecord(record=new),))
    (found,) = RecordStore(directory, Files()).load()
    assert found in (old, new)
    if steps >= 4:
        assert found == new


def test_a_damaged_record_is_set_aside(bench: Bench) -> None:
    store = RecordStore(bench.paths.records, Files())
    store.write((SaveRecord(record=record(bench)),))
    path = bench.paths.records / f"{WEB1}.json"
    path.write_bytes(path.read_bytes()[:40])
    assert store.load() == ()
    assert path.with_name(f"{WEB1}.json.damaged").exists()


def test_records_can_be_dropped_twice(bench: Bench) -> None:
    store = RecordStore(bench.paths.records, Files())
    watched = Watched(boot=BootId("boot-1"), until_ms=5)
    store.write((SaveRecord(record=record(bench)), SaveWatched(watched=watched)))
    assert store.load_watched() == watched
    store.write((DropRecord(vm_id=WEB1), DropRecord(vm_id=WEB1)))
    assert store.load() == ()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a\0", "x" * 80, ".hidden"])
def test_an_id_that_would_leave_its_directory_is_no_id(name: str) -> None:
    with pytest.raises(ValueError, match="is no id"):
        safe_name(name)


def test_settings_survive(bench: Bench) -> None:
    store = SettingsStore(bench.paths.settings, Files())
    assert store.load() is None
    settings = bench.settings(bench.vm(), revision=7, hold="maintenance")
    store.save(settings)
    assert store.load() == settings


def outcome(number: int, step: int = 0) -> Outcome:
    return Outcome(operation_id=OperationId(f"op-{number}"), step=step, result=Result.OK)


def test_outcomes_are_remembered_by_operation_and_step_and_bounded(bench: Bench) -> None:
    memory = OutcomeMemory(bench.paths.outcomes, Files())
    memory.open()
    memory.begin(OperationId("op-1"), 0)
    assert memory.begun(OperationId("op-1"), 0)
    memory.save(outcome(1))
    assert not memory.begun(OperationId("op-1"), 0)
    again = OutcomeMemory(bench.paths.outcomes, Files())
    again.open()
    assert again.find(OperationId("op-1"), 0) == outcome(1)
    assert again.find(OperationId("op-1"), 1) is None
    for number in range(OUTCOMES_MAX + 150):
        (bench.paths.outcomes / f"old-{number}.0.json").write_bytes(b"{}")
    again.open()
    assert len(list(bench.paths.outcomes.iterdir())) == OUTCOMES_MAX


@pytest.mark.req("X2")
def test_a_journal_replays_to_the_same_decisions(bench: Bench) -> None:
    async def story() -> None:
        await bench.start()
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: bench.codes().count("vm.restarted") == 1)
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: bench.codes().count("vm.restarted") == 2)

    bench.run(story)
    path = bench.paths.journal / "current.journal"
    assert list(replay(path)) == []
    # A torn end is left out; everything before it still replays.
    path.write_bytes(path.read_bytes()[:-7])
    assert list(replay(path)) == []


def test_a_replay_shows_what_is_decided_differently(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await bench.start()
        bench.hypervisor.libvirt.kill_qemu(WEB1)
        await bench.until(lambda: "vm.restarted" in bench.codes())

    bench.run(story)
    real = Sentinel.step

    def timid(self: Sentinel, now: Millis, events: list[SentinelEvent]) -> Decision:
        decision = real(self, now, events)
        return type(decision)(intents=decision.intents, wake_at=decision.wake_at)

    monkeypatch.setattr(Sentinel, "step", timid)
    differences = list(replay(bench.paths.journal / "current.journal"))
    assert any('"Restart"' in difference.recorded for difference in differences)
    assert not any('"Restart"' in difference.replayed for difference in differences)


def test_the_ring_keeps_two_segments(bench: Bench) -> None:
    journal = Journal(bench.paths.journal, boot=BootId("b"))
    for now in range(3):
        journal.begin(Millis(now), SentinelRecords(), from_start=True)
    assert sorted(path.name for path in bench.paths.journal.iterdir()) == [
        "current.journal",
        "previous.journal",
    ]


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"hello"])
def test_what_is_no_journal_is_said_so(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.journal"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is no decision journal"):
        list(replay(path))
