"""Orders about storage: domains, disks, claims of an incarnation; nothing foreign, nothing outside."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from agent_bench import CLUSTER, DOMAIN, HOST, INSTALLATION, WEB1, Bench, prepared, qemu, stop

from virtha.agent.files import Files
from virtha.agent.storage import prepare_storage
from virtha.agent.storage_mark import MARK
from virtha.model.facts import Progress, Result
from virtha.model.host import StorageDomain
from virtha.model.ids import Incarnation, InstallationId
from virtha.model.orders import (
    CreateDisk,
    ForgetVm,
    PrepareStorage,
)


def test_storage_is_prepared_once_and_a_foreign_one_refused(bench: Bench) -> None:
    header = Path(bench.storage.path, ".virtha", "domain.json")

    async def story() -> None:
        assert (await prepared(bench)).result is Result.OK
        assert (await prepared(bench)).result is Result.OK
        assert Path(bench.storage.path, "images").is_dir()
        assert Path(bench.storage.path, MARK).exists(), "slow storage has time for it now"
        content = json.loads(header.read_text())
        assert content["installation_id"] == INSTALLATION
        header.write_text(json.dumps({**content, "installation_id": "somebody-else"}))
        outcome = await prepared(bench)
        assert (outcome.result, outcome.code) == (
            Result.REFUSED,
            "order.refused.storage_foreign",
        )
        assert json.loads(header.read_text())["installation_id"] == "somebody-else"
        disk = await bench.do(CreateDisk(disk=bench.disk()))
        assert disk.code == "order.refused.storage_foreign"
        other = await bench.do(
            PrepareStorage(domain=bench.storage, installation_id=InstallationId("x"))
        )
        assert other.code == "order.refused.storage_foreign"
        missing = StorageDomain(
            id=DOMAIN, name="ds2", cluster_id=CLUSTER, path=f"{bench.storage.path}/nowhere"
        )
        gone = await bench.do(PrepareStorage(domain=missing, installation_id=INSTALLATION))
        assert gone.result is Result.FAILED

    bench.run(story)


def test_a_prepared_domain_outlasts_a_power_cut_with_its_directories(tmp_path: Path) -> None:
    """Without the entry of its directory the header is gone, and anybody may take the domain for a new one."""
    synced: list[Path] = []

    class Noted(Files):
        def sync_directory(self, directory: Path) -> None:
            synced.append(directory)
            super().sync_directory(directory)

    domain = StorageDomain(id=DOMAIN, name="ds1", cluster_id=CLUSTER, path=str(tmp_path))
    for _ in range(2):  # also of one that was interrupted
        synced.clear()
        prepare_storage(domain, INSTALLATION, Noted())
        assert {tmp_path, tmp_path / ".virtha"} <= set(synced)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
def test_disks_are_made_empty_or_copied_and_never_overwritten(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        image = Path(bench.storage.path, "images", "tiny.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "4M"], check=True)
        assert (await bench.do(CreateDisk(disk=bench.disk()))).result is Result.OK
        target = Path(bench.storage.path, "disks", "web1.qcow2")
        before = target.stat().st_ino
        again = await bench.do(CreateDisk(disk=bench.disk()))
        assert (again.result, again.code) == (Result.REFUSED, "problem.disk.in_use")
        assert target.stat().st_ino == before
        copied = bench.disk("disks/web2.qcow2", size_bytes=8 << 20)
        assert (await bench.do(CreateDisk(disk=copied, image="tiny"))).result is Result.OK
        info = subprocess.run(
            ["qemu-img", "info", "--output=json", f"{bench.storage.path}/disks/web2.qcow2"],
            check=True,
            capture_output=True,
        )
        assert json.loads(info.stdout)["virtual-size"] == 8 << 20
        small = bench.disk("disks/web3.qcow2", size_bytes=1 << 20)
        refused = await bench.do(CreateDisk(disk=small, image="tiny"))
        assert refused.result is Result.REFUSED
        assert "larger than the disk" in refused.message
        assert not Path(bench.storage.path, "disks", "web3.qcow2").exists()
        nothing = await bench.do(CreateDisk(disk=small, image="huge"))
        assert nothing.result is Result.FAILED
        assert "no image 'huge'" in nothing.message
        assert list(Path(bench.storage.path, "disks").glob(".*")) == []

    bench.run(story)
    assert any(isinstance(fact.body, Progress) for fact in bench.facts())


def test_a_disk_made_just_before_a_crash_is_recognised(bench: Bench) -> None:
    async def story() -> None:
        await prepared(bench)
        order = bench.order(CreateDisk(disk=bench.disk()))
        assert (await bench.give(order)).result is Result.OK
        # As if the agent had died after the file was there and before its outcome was kept.
        for path in bench.paths.outcomes.glob(f"{order.operation_id}*"):
            path.unlink()
        bench.agent.host.outcomes.begin(order.operation_id, order.step)
        assert (await bench.give(order)).result is Result.OK

    bench.run(story)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "disks/../../x", "", "disks//x", ".virtha/domain.json", "l/x"]
)
def test_a_path_outside_the_domain_is_refused(bench: Bench, path: str) -> None:
    async def story() -> None:
        await prepared(bench)
        link = Path(bench.storage.path, "l")
        link.symlink_to("/tmp")
        outcome = await bench.do(CreateDisk(disk=bench.disk(path)))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.disk.outside")
        kept = await bench.do(ForgetVm(vm_id=WEB1, disks=(bench.disk(path),)))
        assert kept.code == "problem.disk.outside"

    bench.run(story)


def test_an_incarnation_is_claimed_on_the_storage_and_a_higher_one_refuses(bench: Bench) -> None:
    vm = bench.vm(disks=(bench.disk(),))
    record = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")

    async def story() -> None:
        await prepared(bench)
        assert (await bench.start(vm, incarnation=3)).result is Result.OK
        content = json.loads(record.read_text())
        assert (content["incarnation"], content["host_id"]) == (3, HOST)
        await bench.do(stop(incarnation=Incarnation(3)))
        await bench.until(lambda: len(bench.released()) == 1)
        record.write_text(json.dumps({**content, "incarnation": 9}))
        outcome = await bench.start(vm, incarnation=4)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "order.refused.incarnation")
        # M2: a server that was restored from a backup learns whose start it does not remember.
        assert outcome.fields == {"incarnation": 9, "current": 9, "holder_host": HOST}
        record.write_text(json.dumps({**content, "incarnation": 5, "host_id": "another"}))
        outcome = await bench.start(vm, incarnation=5)
        assert outcome.code == "order.refused.incarnation"
        assert outcome.fields == {"incarnation": 5, "current": 5, "holder_host": "another"}
        record.write_text(json.dumps({**content, "installation_id": "another"}))
        assert (await bench.start(vm, incarnation=6)).code == "order.refused.storage_foreign"
        record.write_text("{")
        assert (await bench.start(vm, incarnation=7)).result is Result.FAILED
        assert qemu(bench) is None
        assert [fact.incarnation for fact in bench.released()] == [3, 4, 5, 6, 7]

    bench.run(story)
