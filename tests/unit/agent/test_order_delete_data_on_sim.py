"""A VM's data goes as a whole, whatever ends in between; nothing goes that others need or write to."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from agent_bench import WEB1, Bench, prepared, stop

from virtha.agent.files import Files
from virtha.agent.storage import read_vm_header
from virtha.model.facts import Result
from virtha.model.ids import DiskId, Incarnation
from virtha.model.orders import CreateDisk, ForgetVm
from virtha.model.vm import Disk


class CutFiles(Files):
    """Its storage is gone after so many removals."""

    left = 1_000

    def remove(self, path: Path) -> None:
        if self.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.left -= 1
        super().remove(path)


def _disks(bench: Bench) -> tuple[Disk, Disk]:
    return tuple(
        msgspec.structs.replace(
            bench.disk(f"vms/{WEB1}/{name}.qcow2"), id=DiskId(f"disk-{name}"), name=name
        )
        for name in ("one", "two")
    )


def _forget(bench: Bench, incarnation: int = 1) -> ForgetVm:
    return ForgetVm(vm_id=WEB1, disks=_disks(bench), incarnation=Incarnation(incarnation))


async def _ran(bench: Bench) -> None:
    await prepared(bench)
    await bench.listed()
    for disk in _disks(bench):
        assert (await bench.do(CreateDisk(disk=disk))).result is Result.OK
    assert (await bench.start(bench.vm(disks=_disks(bench)))).result is Result.OK
    assert (await bench.do(stop())).result is Result.OK


def _left(bench: Bench) -> list[str]:
    """Of the VM, on its storage."""
    root = Path(bench.storage.path)
    found = [*root.glob(f"vms/{WEB1}/**"), *root.glob(f".virtha/vms/{WEB1}.json")]
    return sorted(str(path.relative_to(root)) for path in found)


@pytest.mark.parametrize("removals", range(4))
@pytest.mark.bad_input("deletion of a VM that may run")
def test_half_a_deletion_is_finished_by_the_next_order(bench: Bench, removals: int) -> None:
    files = bench.files = CutFiles()
    half = Path(bench.storage.path, "vms", WEB1, ".one.qcow2.some-operation.part")

    async def first() -> None:
        await _ran(bench)
        half.write_bytes(b"of a copy that was killed")
        files.left = removals
        outcome = await bench.do(_forget(bench))
        assert outcome.result is Result.FAILED
        assert _left(bench) != []
        assert bench.hypervisor.libvirt.find(WEB1) is None, "nothing starts from what is left"

    async def second() -> None:
        files.left = 1_000
        bench.agent.on_settings(bench.settings(bench.vm()))
        outcome = await bench.do(_forget(bench))
        assert outcome.result is Result.OK
        assert _left(bench) == []
        assert bench.agent.loop.record(WEB1) is None
        assert (await bench.do(_forget(bench))).result is Result.OK, "absent is done already"

    bench.run(first)
    bench.run(second)


@pytest.mark.req("M2", "G4")
@pytest.mark.bad_input("deletion of a VM that may run")
def test_nothing_goes_where_the_storage_knows_of_a_later_start(bench: Bench) -> None:
    async def story() -> None:
        await _ran(bench)
        header = read_vm_header(bench.storage, WEB1)
        assert header is not None
        path = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")
        path.write_bytes(
            msgspec.json.encode(msgspec.structs.replace(header, incarnation=Incarnation(9)))
        )
        before = _left(bench)
        outcome = await bench.do(_forget(bench))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        assert _left(bench) == before
        assert bench.hypervisor.libvirt.find(WEB1) is not None, "not even its definition"
        assert (await bench.do(_forget(bench, 9))).result is Result.OK
        assert _left(bench) == []

    bench.run(story)


@pytest.mark.bad_input("deletion of a VM that may run")
@pytest.mark.parametrize("path", ["images/tiny.qcow2", "templates/t1/disk0.qcow2"])
def test_what_others_need_stays(bench: Bench, path: str) -> None:
    async def story() -> None:
        await prepared(bench)
        file = Path(bench.storage.path, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"precious")
        outcome = await bench.do(ForgetVm(vm_id=WEB1, disks=(bench.disk(path),)))
        assert (outcome.result, outcome.code) == (Result.FAILED, "problem.disk.outside")
        assert file.read_bytes() == b"precious"

    bench.run(story)


def test_files_of_others_in_its_directory_stay(bench: Bench) -> None:
    async def story() -> None:
        await _ran(bench)
        stranger = Path(bench.storage.path, "vms", WEB1, "notes.txt")
        stranger.write_text("mine")
        assert (await bench.do(_forget(bench))).result is Result.OK
        assert stranger.read_text() == "mine"

    bench.run(story)
