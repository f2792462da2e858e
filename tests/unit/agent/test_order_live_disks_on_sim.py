"""Disks of a running VM, changed by its own QEMU; a guest that was frozen for it is thawed whatever ends in between."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from agent_bench import WEB1, Bench, SilentGuest, prepared, stop
from test_orders_to_move_on_sim import migrate

from virtha.agent import freezer
from virtha.model.facts import Outcome, Result
from virtha.model.ids import Incarnation, SnapshotId, VmId
from virtha.model.orders import ChangeLiveSnapshots, CreateDisk, GrowLiveDisk, SnapshotAction
from virtha.ports.hypervisor import HypervisorFailed, HypervisorTimeout, LiveDisk

MIB = 1 << 20
TAG = SnapshotId("snapshot-1")
CREATE, DELETE = SnapshotAction.CREATE, SnapshotAction.DELETE


class PlayedGuest(SilentGuest):
    """Its own agent answers while ``alive``, and ``dies`` of a freeze; ``lets_go``: it thaws by itself, as Windows does."""

    def __init__(self, file_systems: int = 1) -> None:
        self.alive = True
        self.dies = False
        self.held = False
        self.lets_go = False
        self.file_systems = file_systems
        self.said: list[str] = []

    async def ping(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        return self.alive

    async def freeze(self, vm_id: VmId, *, deadline_ms: int) -> int:
        self.said.append("freeze")
        self.held = self.file_systems > 0
        if self.dies:
            self.alive = False
            raise HypervisorTimeout("the guest agent did not answer; it may yet happen")
        return self.file_systems

    async def thaw(self, vm_id: VmId, *, deadline_ms: int) -> bool:
        if self.alive:
            self.said.append("thaw")
            self.held = False
        return self.alive

    async def is_frozen(self, vm_id: VmId, *, deadline_ms: int) -> bool | None:
        return self.held and not self.lets_go if self.alive else None


def _path(bench: Bench) -> str:
    return f"{bench.storage.path}/{bench.disk().path}"


async def _running(bench: Bench) -> None:
    await prepared(bench)
    await bench.listed()
    await bench.do(CreateDisk(disk=bench.disk()))
    assert (await bench.start(bench.vm(disks=(bench.disk(),)))).result is Result.OK
    bench.hypervisor.opened = {_path(bench): LiveDisk(path=_path(bench), size_bytes=MIB)}


def _grow(bench: Bench, size_bytes: int, incarnation: int = 1) -> GrowLiveDisk:
    return GrowLiveDisk(
        vm=bench.vm(disks=(bench.disk(),)),
        incarnation=Incarnation(incarnation),
        disk_id=bench.disk().id,
        size_bytes=size_bytes,
    )


def _order(
    bench: Bench, action: SnapshotAction = CREATE, *, freeze: bool = True, incarnation: int = 1
) -> ChangeLiveSnapshots:
    return ChangeLiveSnapshots(
        vm=bench.vm(disks=(bench.disk(),)),
        incarnation=Incarnation(incarnation),
        snapshot_id=TAG,
        action=action,
        freeze=freeze,
    )


def _tags(bench: Bench) -> set[str]:
    return set(bench.hypervisor.opened[_path(bench)].snapshots)


def _notes(bench: Bench) -> list[str]:
    return [path.name for path in bench.paths.frozen.glob("*")]


@pytest.mark.req("G1", "G4")
@pytest.mark.bad_input("disk that is to shrink")
def test_a_disk_grows_once_and_never_shrinks(bench: Bench) -> None:
    async def story() -> None:
        await _running(bench)
        for _ in range(2):
            assert (await bench.do(_grow(bench, 2 * MIB))).result is Result.OK
        assert bench.hypervisor.disk_calls == [f"grow web1.qcow2 {2 * MIB}"]
        smaller = await bench.do(_grow(bench, MIB))
        assert (smaller.result, smaller.code) == (Result.REFUSED, "problem.disk.shrink")
        other = await bench.do(_grow(bench, 4 * MIB, incarnation=2))
        assert other.code == "order.refused.incarnation"
        bench.hypervisor.opened = {}
        pending = await bench.do(_grow(bench, 4 * MIB))
        assert (pending.result, pending.code) == (Result.REFUSED, "order.refused.not_plugged")
        await bench.do(stop())
        assert (await bench.do(_grow(bench, 4 * MIB))).result is Result.REFUSED

    bench.run(story)


@pytest.mark.bad_input("full disk")
def test_a_freeze_that_could_not_be_noted_leaves_nothing_held(bench: Bench) -> None:
    guest = bench.guest = PlayedGuest()

    async def story() -> None:
        await _running(bench)
        freezer_of_host, notes = bench.agent.host.freezer, bench.paths.frozen
        if notes.exists():
            notes.rmdir()
        notes.write_bytes(b"")  # no note can be put there
        failed = await bench.do(_order(bench))
        assert (failed.result, guest.said) == (Result.FAILED, []), "never asked to freeze"
        assert not freezer_of_host.holds(WEB1), "it can be moved away, and frozen later"
        notes.unlink()
        assert (await bench.do(_order(bench))).result is Result.OK

    bench.run(story)


@pytest.mark.req("G1")
def test_a_guest_is_frozen_for_a_snapshot_and_thawed(bench: Bench) -> None:
    guest = bench.guest = PlayedGuest()

    async def story() -> None:
        await _running(bench)
        made = await bench.do(_order(bench))
        assert (made.result, made.fields) == (Result.OK, {"frozen": True})
        assert (guest.said, guest.held, _notes(bench)) == (["freeze", "thaw"], False, [])
        assert _tags(bench) == {TAG}
        for _ in range(2):  # absent is done already
            assert (await bench.do(_order(bench, DELETE))).result is Result.OK
        assert _tags(bench) == set()
        made = await bench.do(_order(bench, freeze=False))
        assert (made.result, made.fields) == (Result.OK, {"frozen": False})
        assert guest.said == ["freeze", "thaw"]
        late = await bench.do(_order(bench, incarnation=2))
        assert late.code == "order.refused.incarnation"
        back = await bench.do(_order(bench, SnapshotAction.REVERT))
        assert (back.result, back.code) == (Result.REFUSED, "problem.vm.state")

    bench.run(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_whatever_goes_wrong_the_guest_is_thawed(bench: Bench) -> None:
    guest = bench.guest = PlayedGuest()

    async def story() -> None:
        await _running(bench)
        guest.lets_go = True
        outcome = await bench.do(_order(bench))
        assert (outcome.result, outcome.code) == (Result.FAILED, "order.failed.not_frozen")
        assert _tags(bench) == set(), "it would not be what it says"
        guest.lets_go = False
        for error, result in (
            (HypervisorFailed("no space"), Result.FAILED),
            (HypervisorTimeout("it may yet happen"), Result.UNKNOWN),
        ):
            bench.hypervisor.fails_once = error
            assert (await bench.do(_order(bench))).result is result
            left = set() if result is Result.FAILED else {TAG}
            assert _tags(bench) == left, "what is known to have failed leaves nothing"
            assert (guest.held, guest.said[-1], _notes(bench)) == (False, "thaw", [])
            await bench.do(_order(bench, DELETE))
        guest.file_systems = 0  # nothing is mounted that could be let go
        assert (await bench.do(_order(bench))).result is Result.OK

    bench.run(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_a_guest_without_an_agent_is_refused_and_nobody_is_alarmed(bench: Bench) -> None:
    async def story() -> None:
        await _running(bench)
        outcome = await bench.do(_order(bench))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.guest_silent")
        assert bench.hypervisor.disk_calls == []
        assert _notes(bench) == []
        assert "vm.guest_frozen" not in bench.codes()

    bench.run(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_a_guest_that_falls_silent_is_asked_to_thaw_until_it_is_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezer, "PATIENCE_S", 0.1)
    monkeypatch.setattr(freezer, "THAW_AGAIN_S", 0.01)
    guest = bench.guest = PlayedGuest()
    guest.dies = True

    async def story() -> None:
        await _running(bench)
        outcome = await bench.do(_order(bench))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.guest_silent")
        assert bench.hypervisor.disk_calls == []
        await bench.until(lambda: "vm.guest_frozen" in bench.codes())
        assert _notes(bench) == [f"{WEB1}.frozen"]
        again = await bench.do(_order(bench))
        assert again.code == "order.refused.guest_silent"
        await bench.do(stop())
        await bench.until(lambda: "vm.guest_thawed" in bench.codes())
        assert _notes(bench) == []

    bench.run(story)


@pytest.mark.bad_input("snapshot of a running VM")
def test_the_next_agent_thaws_what_the_one_before_left_frozen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezer, "PATIENCE_S", 0.1)
    monkeypatch.setattr(freezer, "THAW_AGAIN_S", 0.01)
    guest = bench.guest = PlayedGuest()

    async def first() -> None:
        await _running(bench)
        # As kill -9 between freeze and thaw leaves it: frozen, and a note of it.
        guest.held = True
        bench.paths.frozen.mkdir(parents=True, exist_ok=True)
        Path(bench.paths.frozen, f"{WEB1}.frozen").write_text(bench.boot)
        Path(bench.paths.frozen, "of-a-boot-that-is-over.frozen").write_text("boot-0")

    async def second() -> None:
        await bench.until(lambda: "vm.guest_frozen" in bench.codes())
        assert guest.held, "its own agent is dead, too"
        guest.alive = True
        await bench.until(lambda: not guest.held)
        await bench.until(lambda: _notes(bench) == [])
        await bench.until(lambda: "vm.guest_thawed" in bench.codes())
        made: Outcome = await bench.do(_order(bench))
        assert made.result is Result.OK

    bench.run(first)
    guest.alive = False
    bench.run(second)


@pytest.mark.bad_input("snapshot of a running VM")
def test_a_snapshot_of_a_try_that_nobody_saw_end_is_made_anew(bench: Bench) -> None:
    guest = bench.guest = PlayedGuest()

    async def story() -> None:
        await _running(bench)
        disk = bench.hypervisor.opened[_path(bench)]
        bench.hypervisor.opened[_path(bench)] = msgspec.structs.replace(
            disk, snapshots=frozenset({TAG})
        )
        assert (await bench.do(_order(bench))).result is Result.OK
        assert bench.hypervisor.disk_calls == ["delete in web1.qcow2", "snapshot of 1"]
        assert guest.said == ["freeze", "thaw"]

    bench.run(story)


class SlowGuest(PlayedGuest):
    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def freeze(self, vm_id: VmId, *, deadline_ms: int) -> int:
        self.asked.set()
        await self.answers.wait()
        return await super().freeze(vm_id, deadline_ms=deadline_ms)


def test_a_power_off_does_not_wait_for_a_freeze(bench: Bench) -> None:
    guest = SlowGuest()
    bench.guest = guest

    async def story() -> None:
        await _running(bench)
        making = asyncio.ensure_future(bench.do(_order(bench)))
        await guest.asked.wait()
        assert (await bench.do(stop())).result is Result.OK
        guest.answers.set()
        outcome = await making
        assert outcome.result is Result.REFUSED
        assert bench.hypervisor.disk_calls == []
        assert _notes(bench) == []

    bench.run(story)


@pytest.mark.req("G6")
def test_a_guest_that_is_frozen_is_not_moved_away_from_who_thaws_it(bench: Bench) -> None:
    guest = SlowGuest()
    bench.guest = guest

    async def story() -> None:
        await _running(bench)
        making = asyncio.ensure_future(bench.do(_order(bench)))
        await guest.asked.wait()
        move = await bench.do(migrate())
        assert (move.result, move.code) == (Result.REFUSED, "order.refused.state")
        guest.answers.set()
        assert (await making).result is Result.OK
        assert not guest.held

    bench.run(story)
