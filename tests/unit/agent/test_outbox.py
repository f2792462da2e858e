"""The outbox through crashes, damage, full disks, and the numbers that go on for ever."""

import contextlib
from pathlib import Path

import pytest
from crash_files import Crash, CrashingFiles, FullDisk

from virtha.agent.files import Files
from virtha.agent.outbox import SEGMENT_BYTES_MAX, WAITING_MAX, Outbox
from virtha.drivers.machine_clock import MachineClock
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import FactBody, Happened, Inventory, Progress, Released, VmReport
from virtha.model.ids import BootId, Incarnation, OperationId, VmId
from virtha.model.vm import VmState

pytestmark = pytest.mark.req("W7")


def event(number: int) -> Happened:
    return Happened(code="vm.watchdog.fired", fields={"vm": "web1", "count": number})


def opened(path: Path, files: Files | None = None, **changes: int) -> Outbox:
    outbox = Outbox(path, boot=BootId("b"), clock=MachineClock(), files=files or Files(), **changes)
    outbox.open()
    return outbox


def counts(outbox: Outbox, after: int = 0) -> list[object]:
    return [
        fact.body.fields.get("count", fact.body.code) if isinstance(fact.body, Happened) else None
        for fact in outbox.facts_after(after, 100_000)
    ]


def sequences(outbox: Outbox, after: int = 0) -> list[int]:
    return [fact.sequence for fact in outbox.facts_after(after, 100_000)]


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.seg"))


def test_facts_survive_and_numbers_go_on(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert (outbox.first_sequence, outbox.last_sequence) == (1, 0)
    outbox.append([event(1), event(2)])
    outbox.append([event(3)])
    outbox.close()
    outbox = opened(tmp_path)
    assert counts(outbox) == [1, 2, 3]
    assert (outbox.first_sequence, outbox.last_sequence) == (1, 3)
    assert outbox.facts_after(1, 1)[0].sequence == 2
    outbox.on_facts_acknowledged(3)
    outbox.append([event(4)])
    outbox.close()
    outbox = opened(tmp_path)
    assert outbox.last_sequence == 4
    assert outbox.first_sequence == 4
    assert counts(outbox, after=3) == [4]


def test_acknowledged_segments_are_deleted_and_numbers_still_go_on(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    big = Happened(code="x", fields={"text": "y" * 500_000})
    while len(segments(tmp_path)) < 3:
        outbox.append([big])
    assert sum(path.stat().st_size for path in segments(tmp_path)) > 2 * SEGMENT_BYTES_MAX
    last = outbox.last_sequence
    assert sequences(outbox) == list(range(1, last + 1))
    outbox.on_facts_acknowledged(last)
    assert len(segments(tmp_path)) == 1
    outbox.close()
    outbox = opened(tmp_path)
    outbox.on_facts_acknowledged(last)
    outbox.append([event(1)])
    outbox.close()
    for path in segments(tmp_path):
        path.unlink()  # even with every segment gone
    outbox = opened(tmp_path)
    assert counts(outbox) == ["host.outbox.truncated"]
    assert sequences(outbox) == [last + 2]


def test_old_facts_come_from_disk(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for start in range(0, 6_000, 500):
        outbox.append([event(number) for number in range(start, start + 500)])
    found: list[int] = []
    while batch := outbox.facts_after(len(found), 256):
        found += [fact.sequence for fact in batch]
    assert found == list(range(1, 6_001))


@pytest.mark.parametrize("steps", range(12))
def test_a_crash_at_any_step_loses_nothing_that_was_promised(tmp_path: Path, steps: int) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1)])
    outbox.close()
    promised = [1]
    crashing = CrashingFiles(steps)
    try:
        outbox = opened(tmp_path, crashing)
        for number in (2, 3, 4):
            assert outbox.append([event(number)])
            promised.append(number)
    except Crash:
        pass
    outbox = opened(tmp_path)
    kept = counts(outbox)
    assert kept[: len(promised)] == promised
    assert len(kept) <= len(promised) + 1
    assert not outbox.damage.promised
    # And on it goes: every number once, in order.
    outbox.append([event(9)])
    numbers = sequences(outbox)
    assert numbers == list(range(1, len(numbers) + 1))
    assert counts(outbox)[-1] == 9


@pytest.mark.bad_input("truncated outbox")
def test_a_torn_end_is_no_damage_but_a_cut_promise_is(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2)])
    outbox.close()
    (path,) = segments(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0\0\x40abc")
    outbox = opened(tmp_path)
    assert (outbox.damage.lost_bytes, outbox.damage.promised) == (7, False)
    assert counts(outbox) == [1, 2]
    outbox.close()
    path.write_bytes(whole[:-5])
    outbox = opened(tmp_path)
    assert outbox.damage.promised
    assert counts(outbox) == [1, "host.outbox.truncated"]
    # 2 was used for the lost fact and never comes again.
    assert sequences(outbox) == [1, 3]
    assert list((tmp_path / "damaged").iterdir())


def test_flipped_bits_keep_the_prefix_and_all_later_segments(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2), event(3)])
    outbox.close()
    outbox = opened(tmp_path)
    outbox.append([event(4)])
    outbox.close()
    first, _ = segments(tmp_path)
    data = bytearray(first.read_bytes())
    data[data.index(b"count", data.index(b"count") + 1)] ^= 0xFF
    first.write_bytes(bytes(data))
    outbox = opened(tmp_path)
    assert counts(outbox) == [1, 4, "host.outbox.truncated"]
    outbox.align(0)
    # Told under numbers that nobody has used, without a gap between them.
    assert counts(outbox) == [1, 4, "host.outbox.truncated"]
    numbers = sequences(outbox)
    assert numbers == list(range(numbers[0], numbers[0] + 3))
    assert numbers[0] > 4
    assert outbox.first_sequence == numbers[0]
    outbox.close()
    reopened = opened(tmp_path)
    assert sequences(reopened) == numbers


def test_facts_that_the_server_has_are_not_told_again_after_damage(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2), event(3)])
    outbox.close()
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    outbox = opened(tmp_path)
    outbox.align(2)
    assert counts(outbox, after=2) == ["host.outbox.truncated"]


def test_a_lost_outbox_continues_after_the_servers_number(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2)])
    outbox.align(100)
    assert counts(outbox) == [1, 2]
    assert sequences(outbox) == [101, 102]
    assert outbox.facts_after(100, 10) == outbox.facts_after(0, 10)
    outbox.append([event(3)])
    assert sequences(outbox) == [101, 102, 103]


@pytest.mark.parametrize("steps", range(6))
def test_renumbering_survives_a_crash(tmp_path: Path, steps: int) -> None:
    outbox = opened(tmp_path)
    outbox.append([event(1), event(2)])
    outbox.close()
    with contextlib.suppress(Crash):
        opened(tmp_path, CrashingFiles(steps)).align(50)
    outbox = opened(tmp_path)
    assert counts(outbox) == [1, 2]
    outbox.align(50)
    assert counts(outbox) == [1, 2]
    assert sequences(outbox) == [51, 52]


@pytest.mark.bad_input("full disk")
def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    files = FullDisk()
    outbox = opened(tmp_path, files)
    outbox.append([event(1)])
    files.full = True
    assert not outbox.append([event(2)])
    assert not outbox.append([event(3), Released(vm_id=VmId("v"), incarnation=Incarnation(1))])
    assert outbox.waiting == 4
    assert counts(outbox) == [1]
    files.full = False
    assert outbox.append(())
    assert counts(outbox) == [1, 2, "host.disk.full", 3, None]
    assert sequences(outbox) == [1, 2, 3, 4, 5]
    outbox.close()
    assert counts(opened(tmp_path)) == [1, 2, "host.disk.full", 3, None]


@pytest.mark.bad_input("full disk")
def test_the_reserve_carries_the_news_of_a_full_disk(tmp_path: Path) -> None:
    class Tight(Files):
        """Full until the reserve is given up."""

        def write(self, descriptor: int, data: bytes) -> None:
            if (tmp_path / "reserve").exists() and b"late" in data:
                raise OSError(28, "No space left on device")
            super().write(descriptor, data)

    outbox = opened(tmp_path, Tight())
    assert (tmp_path / "reserve").stat().st_size > 1 << 20
    assert outbox.append([Happened(code="late")])
    assert counts(outbox) == ["late", "host.disk.full"]


def test_waiting_is_bounded_and_what_is_dropped_is_told(tmp_path: Path) -> None:
    files = FullDisk()
    outbox = opened(tmp_path, files)
    files.full = True
    for _ in range(3):
        outbox.append([event(0)] * (WAITING_MAX // 2))
    files.full = False
    outbox.append(())
    outbox.append(())
    told = [fact.body for fact in outbox.facts_after(WAITING_MAX - 1, 10)]
    assert told[-1] == Happened(
        code="host.outbox.truncated", fields={"name": "", "lost": WAITING_MAX // 2 + 1}
    )


def report(state: VmState, vm: str = "v") -> VmReport:
    return VmReport(vm_id=VmId(vm), incarnation=Incarnation(1), state=state)


def bodies(outbox: Outbox) -> list[FactBody]:
    return [fact.body for fact in outbox.facts_after(0, 1_000)]


def test_above_its_bound_only_the_newest_states_wait_and_events_are_still_kept(
    tmp_path: Path,
) -> None:
    outbox = opened(tmp_path, bytes_soft_max=100)
    outbox.append([event(1), event(2)])
    progress = Progress(operation_id=OperationId("o"), step=0, percent=5)
    outbox.append([report(VmState.RUNNING), progress, event(3), report(VmState.DOWN)])
    outbox.append([report(VmState.PAUSED, "w")])
    assert bodies(outbox) == [event(1), event(2), event(3)]
    assert outbox.waiting == 2
    outbox.on_facts_acknowledged(3)
    outbox.close()
    outbox = opened(tmp_path, bytes_soft_max=100_000)
    outbox.append([report(VmState.DOWN)])
    assert bodies(outbox)[-1] == report(VmState.DOWN)


def test_states_that_waited_are_written_when_there_is_room(tmp_path: Path) -> None:
    files = FullDisk()
    outbox = opened(tmp_path, files)
    files.full = True
    outbox.append([event(1)])
    outbox.append([report(VmState.RUNNING), report(VmState.DOWN)])
    files.full = False
    outbox.append(())
    outbox.append(())
    assert bodies(outbox)[-1] == report(VmState.DOWN)
    assert report(VmState.RUNNING) not in bodies(outbox)


def test_a_fact_that_fits_no_frame_is_named_and_blocks_nothing(tmp_path: Path) -> None:
    domains = tuple(
        DomainReport(vm_id=VmId(f"{number:036d}"), name="x" * 200, state=DomainState.RUNNING)
        for number in range(5_000)
    )
    outbox = opened(tmp_path)
    outbox.append([Inventory(revision=1, domains=domains), event(1)])
    assert counts(outbox) == ["host.fact.too_large", 1]
    outbox.close()
    assert counts(opened(tmp_path)) == ["host.fact.too_large", 1]


def test_an_outbox_that_knows_no_number_writes_none_before_the_first_hello(tmp_path: Path) -> None:
    """Its directory was lost; numbered from 1 again, facts would be taken for those the server has."""

    def awaiting() -> Outbox:
        outbox = Outbox(
            tmp_path, boot=BootId("b"), clock=MachineClock(), files=Files(), awaits_hello=True
        )
        outbox.open()
        return outbox

    outbox = awaiting()
    assert not outbox.append([event(1)])
    assert sequences(outbox) == []
    assert outbox.waiting == 1
    outbox.align(2)
    assert outbox.append(())
    assert (sequences(outbox), counts(outbox)) == ([3], [1])
    outbox.close()
    outbox = awaiting()
    assert outbox.append([event(2)])
    assert sequences(outbox) == [3, 4]
    outbox.close()
