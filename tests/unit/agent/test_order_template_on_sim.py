"""Orders about templates, with real qemu-img: sealed copies, full and thin disks, nothing half, nothing torn."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agent_bench import HOST, INSTALLATION, WEB1, Bench, prepared, stop

from virtha.model.facts import Progress, Result
from virtha.model.ids import Incarnation, TemplateId
from virtha.model.orders import CopyDisk, CreateDisk, DeleteTemplate
from virtha.model.vm import Disk

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
GOLD = TemplateId("gold-1")
SEALED = f"templates/{GOLD}/disk0.qcow2"
MIB = 1 << 20


def _info(bench: Bench, path: str) -> dict[str, Any]:
    command = ["qemu-img", "info", "--output=json", f"{bench.storage.path}/{path}"]
    done = subprocess.run(command, check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def _compare(bench: Bench, one: str, other: str) -> bool:
    paths = [f"{bench.storage.path}/{path}" for path in (one, other)]
    return subprocess.run(["qemu-img", "compare", "-q", *paths], check=False).returncode == 0


async def _source(bench: Bench) -> Disk:
    """web1's disk, with something in it."""
    await prepared(bench)
    disk = bench.disk(size_bytes=4 * MIB)
    assert (await bench.do(CreateDisk(disk=disk))).result is Result.OK
    path = f"{bench.storage.path}/{disk.path}"
    subprocess.run(["qemu-io", "-c", "write -P 7 0 1M", path], check=True, capture_output=True)
    return disk


def _to_template(bench: Bench, source: Disk, incarnation: int = 0) -> CopyDisk:
    return CopyDisk(
        source=source,
        target=bench.disk(SEALED, size_bytes=4 * MIB),
        sealed=True,
        vm_id=WEB1,
        incarnation=Incarnation(incarnation),
    )


@pytest.mark.req("W5")
def test_a_template_is_sealed_and_disks_from_it_are_full_or_thin(bench: Bench) -> None:
    async def story() -> None:
        source = await _source(bench)
        assert (await bench.do(_to_template(bench, source))).result is Result.OK
        sealed = Path(bench.storage.path, SEALED)
        assert sealed.stat().st_mode & 0o777 == 0o444
        assert _compare(bench, source.path, SEALED)
        template = bench.disk(SEALED, size_bytes=4 * MIB)
        full, thin = (bench.disk(f"vms/{name}/disk0.qcow2") for name in ("full", "thin"))
        assert (await bench.do(CopyDisk(source=template, target=full))).result is Result.OK
        assert "backing-filename" not in _info(bench, full.path)
        assert (await bench.do(CopyDisk(source=template, target=thin, thin=True))).result is (
            Result.OK
        )
        info = _info(bench, thin.path)
        assert info["backing-filename"] == f"../../{SEALED}"
        assert info["backing-filename-format"] == "qcow2"
        assert info["virtual-size"] == 4 * MIB
        for disk in (full, thin):
            assert _compare(bench, SEALED, disk.path)
            mode = Path(bench.storage.path, disk.path).stat().st_mode
            assert mode & 0o200, "a VM writes to it"
        path = f"{bench.storage.path}/{thin.path}"
        subprocess.run(["qemu-io", "-c", "write -P 9 0 64k", path], check=True, capture_output=True)
        assert _compare(bench, source.path, SEALED), "what a thin disk writes stays its own"
        deleted = await bench.do(DeleteTemplate(template_id=GOLD, disks=(template,)))
        assert deleted.result is Result.OK
        assert not sealed.parent.exists()
        again = await bench.do(DeleteTemplate(template_id=GOLD, disks=(template,)))
        assert again.result is Result.OK

    bench.run(story)
    assert any(isinstance(fact.body, Progress) for fact in bench.facts())


@pytest.mark.req("W5")
@pytest.mark.bad_input("template of a running VM")
def test_a_disk_that_may_be_written_is_not_copied(bench: Bench) -> None:
    async def story() -> None:
        source = await _source(bench)
        vm = bench.vm(disks=(source,))
        assert (await bench.start(vm, incarnation=3)).result is Result.OK
        running = await bench.do(_to_template(bench, source, 3))
        assert (running.result, running.code) == (Result.REFUSED, "order.refused.running")
        await bench.do(stop(incarnation=Incarnation(3)))
        await bench.until(lambda: len(bench.released()) == 1)
        # Asked for before that start, and late: another start may be under way anywhere.
        late = await bench.do(_to_template(bench, source, 2))
        assert (late.result, late.code) == (Result.REFUSED, "order.refused.incarnation")
        assert HOST in late.message
        assert not Path(bench.storage.path, SEALED).exists()
        assert (await bench.do(_to_template(bench, source, 3))).result is Result.OK

    bench.run(story)


@pytest.mark.req("W5")
def test_a_start_in_the_midst_of_a_copy_voids_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Path(bench.storage.path, ".virtha", "vms", f"{WEB1}.json")

    async def story() -> None:
        from virtha.agent import order_template

        source = await _source(bench)
        copy = order_template.copy_image

        async def started_meanwhile(*arguments: Any, **named: Any) -> None:
            await copy(*arguments, **named)
            claim = {
                "installation_id": INSTALLATION,
                "vm_id": WEB1,
                "incarnation": 1,
                "host_id": "another",
                "boot": "b",
            }
            record.write_text(json.dumps(claim))

        monkeypatch.setattr(order_template, "copy_image", started_meanwhile)
        torn = await bench.do(_to_template(bench, source))
        assert (torn.result, torn.code) == (Result.REFUSED, "order.refused.incarnation")
        assert not Path(bench.storage.path, SEALED).exists()
        assert list(Path(bench.storage.path, SEALED).parent.iterdir()) == []

    bench.run(story)


def test_the_half_file_of_a_killed_agent_is_never_taken_for_a_disk(bench: Bench) -> None:
    async def story() -> None:
        source = await _source(bench)
        order = bench.order(_to_template(bench, source))
        sealed = Path(bench.storage.path, SEALED)
        sealed.parent.mkdir(parents=True)
        half = sealed.with_name(f".{sealed.name}.{order.operation_id}.part")
        half.write_bytes(b"half")
        other = sealed.with_name(f".{sealed.name}.given-up.part")
        other.write_bytes(b"half")
        bench.agent.host.outcomes.begin(order.operation_id, order.step)
        assert (await bench.give(order)).result is Result.OK
        assert _compare(bench, source.path, SEALED)
        assert not half.exists()
        template = bench.disk(SEALED)
        await bench.do(DeleteTemplate(template_id=GOLD, disks=(template,)))
        assert not sealed.parent.exists(), "also what an order that was given up has left"

    bench.run(story)


@pytest.mark.parametrize("path", ["vms/web1/disk0.qcow2", "templates/other/x.qcow2", "../x"])
def test_only_the_templates_own_files_are_deleted(bench: Bench, path: str) -> None:
    async def story() -> None:
        await prepared(bench)
        outcome = await bench.do(DeleteTemplate(template_id=GOLD, disks=(bench.disk(path),)))
        assert (outcome.result, outcome.code) == (Result.REFUSED, "problem.disk.outside")

    bench.run(story)


def test_copies_that_can_not_be_are_refused_and_leave_nothing(bench: Bench) -> None:
    async def story() -> None:
        source = await _source(bench)
        target = bench.disk("vms/x/disk0.qcow2")
        missing = await bench.do(CopyDisk(source=bench.disk("disks/no.qcow2"), target=target))
        assert missing.result is Result.FAILED and "no file" in missing.message
        # It is there and belongs to somebody: never overwritten.
        taken = await bench.do(CopyDisk(source=source, target=source))
        assert (taken.result, taken.code) == (Result.REFUSED, "problem.disk.in_use")
        thin = await bench.do(
            CopyDisk(source=bench.disk("disks/no.qcow2"), target=target, thin=True)
        )
        assert thin.result is Result.FAILED
        assert list(Path(bench.storage.path, "vms/x").iterdir()) == []

    bench.run(story)
