"""Snapshots inside disks, with real qemu-img: under an incarnation of their own, given back when nothing writes any more."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_bench import WEB1, Bench, prepared

from virtha.agent import images, order_idle_disks, order_storage
from virtha.model.facts import Outcome, Result
from virtha.model.ids import BootId, Incarnation, SnapshotId
from virtha.model.orders import (
    CancelWork,
    ChangeSnapshots,
    CreateDisk,
    Grant,
    GrowDisk,
    SnapshotAction,
)
from virtha.model.vm import DiskFormat, Vm

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
ONE = SnapshotId("snapshot-1")
MIB = 1 << 20
CREATE, REVERT, DELETE = SnapshotAction.CREATE, SnapshotAction.REVERT, SnapshotAction.DELETE


async def _vm(bench: Bench) -> Vm:
    await prepared(bench)
    disks = tuple(
        bench.disk(f"vms/web1/disk{number}.qcow2", size_bytes=4 * MIB) for number in (0, 1)
    )
    for disk in disks:
        assert (await bench.do(CreateDisk(disk=disk))).result is Result.OK
    return bench.vm(disks=disks)


def _write(bench: Bench, vm: Vm, pattern: int) -> None:
    for disk in vm.disks:
        path = f"{bench.storage.path}/{disk.path}"
        command = ["qemu-io", "-c", f"write -P {pattern} 0 1M", path]
        subprocess.run(command, check=True, capture_output=True)


def _holds(bench: Bench, vm: Vm, pattern: int) -> bool:
    for disk in vm.disks:
        path = f"{bench.storage.path}/{disk.path}"
        command = ["qemu-io", "-c", f"read -P {pattern} 0 1M", path]
        done = subprocess.run(command, check=True, capture_output=True)
        if b"Pattern verification failed" in done.stdout:
            return False
    return True


def _tags(bench: Bench, vm: Vm) -> list[set[str]]:
    found = []
    for disk in vm.disks:
        command = ["qemu-img", "info", "--output=json", f"{bench.storage.path}/{disk.path}"]
        info = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        found.append({one["name"] for one in info.get("snapshots", [])})
    return found


def _order(
    bench: Bench, vm: Vm, action: SnapshotAction, incarnation: int, boot: BootId | None = None
) -> ChangeSnapshots:
    grant = Grant(
        vm_id=vm.id,
        incarnation=Incarnation(incarnation),
        boot=boot or bench.boot,
        beat_monotonic_ms=bench.agent.host.clock.monotonic_ms(),
        duration_ms=30_000,
    )
    return ChangeSnapshots(vm=vm, grant=grant, snapshot_id=ONE, action=action, by="admin")


async def _released(bench: Bench, incarnation: int) -> None:
    await bench.until(lambda: incarnation in [fact.incarnation for fact in bench.released()])


@pytest.mark.req("G1", "G4")
def test_a_snapshot_is_made_gone_back_to_and_deleted(bench: Bench) -> None:
    record = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")

    async def story() -> None:
        vm = await _vm(bench)
        _write(bench, vm, 1)
        assert (await bench.do(_order(bench, vm, CREATE, 1))).result is Result.OK
        assert json.loads(record.read_text())["incarnation"] == 1, "claimed, as for a start"
        await _released(bench, 1)
        assert _tags(bench, vm) == [{ONE}, {ONE}]
        _write(bench, vm, 2)
        assert (await bench.do(_order(bench, vm, REVERT, 2))).result is Result.OK
        await _released(bench, 2)
        assert _holds(bench, vm, 1)
        assert (await bench.do(_order(bench, vm, DELETE, 3))).result is Result.OK
        await _released(bench, 3)
        assert _tags(bench, vm) == [set(), set()]
        gone = await bench.do(_order(bench, vm, REVERT, 4))
        assert gone.result is Result.REFUSED and "not every disk" in gone.message
        await _released(bench, 4)
        assert (await bench.start(vm, incarnation=5)).result is Result.OK

    bench.run(story)


@pytest.mark.req("G1", "G2", "G4")
def test_a_late_order_writes_nothing(bench: Bench) -> None:
    record = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")

    async def story() -> None:
        vm = await _vm(bench)
        early = _order(bench, vm, CREATE, 1)
        await bench.do(_order(bench, vm, DELETE, 2))
        claim = json.loads(record.read_text())
        late: list[tuple[ChangeSnapshots, str]] = [
            (early, "order.refused.incarnation"),
            (_order(bench, vm, CREATE, 3, BootId("former")), "order.refused.boot"),
        ]
        for order, code in late:
            outcome = await bench.do(order)
            assert (outcome.result, outcome.code) == (Result.REFUSED, code)
        record.write_text(json.dumps({**claim, "incarnation": 9, "host_id": "another"}))
        outcome = await bench.do(_order(bench, vm, CREATE, 4))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        record.write_text(json.dumps(claim))
        assert (await bench.start(vm, incarnation=10)).result is Result.OK
        running = await bench.do(_order(bench, vm, CREATE, 11))
        assert (running.result, running.code) == (Result.REFUSED, "order.refused.running")
        assert 11 not in [fact.incarnation for fact in bench.released()]
        assert _tags(bench, vm) == [set(), set()]

    bench.run(story)


@pytest.mark.req("G1")
def test_nothing_is_given_back_while_something_may_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(*_: Any) -> None:
        raise images.ToolHangs("qemu-img snapshot hangs in the kernel")

    async def story() -> Outcome:
        vm = await _vm(bench)
        path = f"{bench.storage.path}/{vm.disks[1].path}"
        # A process of that name with that file, as the kernel lists it.
        orphan = subprocess.Popen(
            ["qemu-img", "-f", path], executable="/usr/bin/tail", stdout=subprocess.DEVNULL
        )
        words = Path(f"/proc/{orphan.pid}/cmdline")
        await bench.until(
            lambda: bool(words.read_bytes())
        )  # the kernel begins a program before its words
        try:
            outcome = await bench.do(_order(bench, vm, CREATE, 1))
            assert (outcome.result, outcome.code) == (
                Result.UNKNOWN,
                "order.unknown.interrupted",
            )
            assert _tags(bench, vm) == [set(), set()]
        finally:
            orphan.kill()
            orphan.wait()
        monkeypatch.setattr(order_idle_disks, "change_snapshot", hangs)
        outcome = await bench.do(_order(bench, vm, CREATE, 2))
        assert outcome.result is Result.UNKNOWN
        assert bench.released() == []
        return outcome

    bench.run(story)


def test_a_snapshot_is_of_all_disks_or_of_none(bench: Bench) -> None:
    async def story() -> None:
        vm = await _vm(bench)
        second = Path(bench.storage.path, vm.disks[1].path)
        kept = second.read_bytes()
        holder = subprocess.Popen(
            ["qemu-io", str(second)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert holder.stdin is not None and holder.stdout is not None
            holder.stdin.write(b"length\n")
            holder.stdin.flush()
            holder.stdout.read(8)  # it has opened the image, and holds QEMU's lock on it
            outcome = await bench.do(_order(bench, vm, CREATE, 1))
            assert outcome.result is Result.FAILED and "lock" in outcome.message
        finally:
            holder.kill()
            holder.communicate()
        await _released(bench, 1)
        assert _tags(bench, vm) == [set(), set()]
        assert second.read_bytes() == kept

    bench.run(story)


@pytest.mark.req("G4")
def test_a_revert_that_was_cut_off_is_never_taken_for_one_that_did_not_begin(bench: Bench) -> None:
    """Refused when it comes again, it may have put back some of the disks before."""

    async def story() -> None:
        await prepared(bench)
        vm = bench.vm()
        for boot, code in ((None, "order.refused.running"), ("former", "order.refused.boot")):
            order = bench.order(_order(bench, vm, REVERT, 0))
            bench.agent.host.outcomes.begin(order.operation_id, order.step)
            if boot is not None:
                order = msgspec.structs.replace(order, host_boot=BootId(boot))
            else:
                assert (await bench.start(vm)).result is Result.OK
            outcome = await bench.give(order)
            assert (outcome.result, outcome.code) == (Result.FAILED, code)

    bench.run(story)


def _growth(bench: Bench, vm: Vm, size_bytes: int, incarnation: int, disk: int = 0) -> GrowDisk:
    return GrowDisk(
        vm=vm,
        grant=bench.grant(vm.id, incarnation),
        disk_id=vm.disks[disk].id,
        size_bytes=size_bytes,
        by="admin",
    )


def _size(bench: Bench, vm: Vm) -> int:
    command = ["qemu-img", "info", "--output=json", f"{bench.storage.path}/{vm.disks[0].path}"]
    info = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return int(info["virtual-size"])


@pytest.mark.req("G1", "G2", "G4")
@pytest.mark.bad_input("disk that is to shrink")
def test_a_disk_of_a_vm_that_is_down_grows_under_an_incarnation_of_its_own(bench: Bench) -> None:
    async def story() -> None:
        vm = await _vm(bench)
        _write(bench, vm, 7)
        assert (await bench.do(_growth(bench, vm, 8 * MIB, 1))).result is Result.OK
        await _released(bench, 1)
        assert (_size(bench, vm), _holds(bench, vm, 7)) == (8 * MIB, True)
        assert (await bench.do(_growth(bench, vm, 8 * MIB, 2))).result is Result.OK, "done already"
        smaller = await bench.do(_growth(bench, vm, 4 * MIB, 3))
        assert (smaller.result, smaller.code) == (Result.REFUSED, "problem.disk.shrink")
        late = await bench.do(_growth(bench, vm, 16 * MIB, 1))
        assert (late.result, late.code) == (Result.REFUSED, "order.refused.incarnation")
        assert (await bench.do(_order(bench, vm, CREATE, 4))).result is Result.OK
        # The server has no record of it, or it would not have asked: nobody goes back to that one.
        assert (await bench.do(_growth(bench, vm, 16 * MIB, 5))).result is Result.OK
        await _released(bench, 5)
        assert _size(bench, vm) == 16 * MIB
        assert (await bench.start(vm, incarnation=6)).result is Result.OK
        running = await bench.do(_growth(bench, vm, 16 * MIB, 7))
        assert (running.result, running.code) == (Result.REFUSED, "order.refused.running")

    bench.run(story)


@pytest.mark.bad_input("disk that is to shrink")
def test_a_raw_disk_is_as_large_as_its_file_whatever_is_in_it(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        disk = msgspec.structs.replace(
            bench.disk("vms/web1/raw.raw", size_bytes=MIB), format=DiskFormat.RAW
        )
        assert (await bench.do(CreateDisk(disk=disk))).result is Result.OK
        inner = Path(bench.storage.path, "inner.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(inner), "1T"], check=True)
        path = Path(bench.storage.path, disk.path)
        with path.open("r+b") as file:
            file.write(inner.read_bytes()[: 1 << 19])
        vm = bench.vm(disks=(disk,))
        assert (await bench.do(_growth(bench, vm, 2 * MIB, 1))).result is Result.OK
        assert path.stat().st_size == 2 * MIB

    bench.run(story)


def test_the_making_of_a_disk_is_stopped_and_nothing_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def slow(*_: Any) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def story() -> None:
        await prepared(bench)
        monkeypatch.setattr(order_storage, "create_empty", slow)
        making = bench.order(CreateDisk(disk=bench.disk("vms/web1/new.qcow2")))
        bench.agent.on_order(making)
        await begun.wait()
        stop = CancelWork(operation_id=making.operation_id, step=making.step)
        assert (await bench.do(stop)).result is Result.OK
        await bench.until(lambda: bool(bench.outcomes(making)))
        (outcome,) = bench.outcomes(making)
        assert (outcome.result, outcome.code) == (Result.FAILED, "order.failed.cancelled")
        assert list(Path(bench.storage.path, "vms/web1").iterdir()) == []
        monkeypatch.setattr(order_storage, "create_empty", images.create_empty)
        assert (await bench.do(stop)).result is Result.OK, "of work that is over nothing is to do"
        again = await bench.give(making)
        assert again.code == "order.failed.cancelled", "an order that comes again is answered"
        assert (await bench.do(CreateDisk(disk=bench.disk()))).result is Result.OK

    bench.run(story)
