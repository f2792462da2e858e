"""What a host says of a storage domain that is read-only, without rights, nearly full, or another one than its neighbour's. Real file
systems that fill up and turn read-only are at the end; others in `tests/contract/test_storage_mark.py`."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agent_bench import CLUSTER, DOMAIN, INSTALLATION, Bench, prepared
from msgspec import UNSET
from msgspec.structs import replace
from storage_mounts import LoopMount

from virtha.agent import ceph_records, storage_probe
from virtha.agent.files import Files
from virtha.agent.storage import prepare_storage
from virtha.agent.storage_mark import MARK
from virtha.agent.storage_probe import Probed, low_space, probe
from virtha.model.errors import Failed
from virtha.model.facts import Result, StorageReport
from virtha.model.host import CephPool, StorageDomain

GIB, TIB = 1 << 30, 1 << 40
READ_ONLY = os.ST_RDONLY | os.ST_NOSUID


def directory(path: Path) -> StorageDomain:
    domain = StorageDomain(id=DOMAIN, name="ds1", cluster_id=CLUSTER, path=str(path))
    prepare_storage(domain, INSTALLATION, Files())
    return domain


def seen_as(monkeypatch: pytest.MonkeyPatch, *, flags: int = 0, size: int = TIB, free: int) -> None:
    """The file system of any path."""
    space = SimpleNamespace(
        f_flag=flags, f_frsize=4_096, f_blocks=size // 4_096, f_bavail=free // 4_096
    )
    monkeypatch.setattr(storage_probe, "os", SimpleNamespace(**_os_with(space)))


def _os_with(space: Any) -> dict[str, Any]:
    names = ("ST_RDONLY", "W_OK", "access")
    return {**{name: getattr(os, name) for name in names}, "statvfs": lambda _path: space}


def reports(bench: Bench) -> list[StorageReport]:
    return [fact.body for fact in bench.facts() if isinstance(fact.body, StorageReport)]


def is_usable(bench: Bench) -> bool:
    """By its last word, if there is one yet."""
    return bool(reports(bench)) and reports(bench)[-1].usable


@pytest.mark.bad_input("storage that is nearly full")
@pytest.mark.parametrize(
    ("size", "free", "is_low"),
    [
        (0, 0, False),  # nobody counts it
        (TIB, TIB // 20, False),
        (TIB, TIB // 20 - 1, True),
        (60 * GIB, 4 * GIB, False),
        (60 * GIB, 4 * GIB - 1, True),
        # A small one is not nearly full merely because it is small: a laboratory's, say.
        (20 * GIB, 2 * GIB, False),
        (20 * GIB, 2 * GIB - 1, True),
        (32 << 20, 31 << 20, False),
        (32 << 20, 4 << 20, False),
        (32 << 20, 3 << 20, True),
        (TIB, 0, True),
    ],
)
def test_what_is_nearly_full(size: int, free: int, is_low: bool) -> None:
    assert bool(low_space(size, free)) is is_low
    if is_low:
        assert low_space(size, free).startswith("nearly full: ")


@pytest.mark.bad_input("storage that is nearly full")
def test_a_nearly_full_domain_can_be_used_and_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        seen_as(monkeypatch, free=10 * GIB)
        assert (await prepared(bench)).result is Result.OK
        await bench.until(lambda: is_usable(bench))
        told = reports(bench)[-1]
        assert told.detail == "nearly full: 10GiB of 1TiB are free"
        assert told.low_space == told.detail
        seen_as(monkeypatch, free=600 * GIB)
        bench.agent.on_settings(bench.settings(bench.vm(), revision=2))
        await bench.until(lambda: not reports(bench)[-1].low_space)
        assert is_usable(bench) and not reports(bench)[-1].detail

    bench.run(story)


@pytest.mark.bad_input("storage that is read-only")
def test_a_domain_that_is_mounted_read_only_can_not_be_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        assert (await prepared(bench)).result is Result.OK
        await bench.until(lambda: is_usable(bench))
        mark = reports(bench)[-1].mark
        assert mark
        seen_as(monkeypatch, flags=READ_ONLY, free=600 * GIB)
        bench.agent.on_settings(bench.settings(bench.vm(), revision=2))
        await bench.until(lambda: not is_usable(bench))
        assert "is mounted read-only" in reports(bench)[-1].detail
        assert not reports(bench)[-1].mark, "it is told of what can be used"
        seen_as(monkeypatch, free=600 * GIB)
        bench.agent.on_settings(bench.settings(bench.vm(), revision=3))
        await bench.until(lambda: is_usable(bench))
        assert reports(bench)[-1].mark == mark

    bench.run(story)


@pytest.mark.bad_input("storage that is read-only")
def test_a_read_only_domain_without_a_mark_is_told_as_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = directory(tmp_path)
    seen_as(monkeypatch, flags=READ_ONLY, free=600 * GIB)
    with pytest.raises(Failed, match="is mounted read-only"):
        probe(domain, INSTALLATION, Files())
    assert not Path(tmp_path, MARK).exists()


@pytest.mark.bad_input("storage that is read-only")
def test_a_domain_that_its_export_lets_nobody_write_can_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server that exports it read-only: the mount itself is writable. It answers the kernel's question."""
    domain = directory(tmp_path)
    monkeypatch.setattr(storage_probe.os, "access", lambda path, _mode: Path(path) == tmp_path)
    with pytest.raises(Failed, match="can't be written") as failed:
        probe(domain, INSTALLATION, Files())
    assert "root_squash" in (failed.value.fix or "")


def test_what_ceph_warns_of_comes_before_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = StorageDomain(
        id=DOMAIN,
        name="rbd1",
        cluster_id=CLUSTER,
        path="ceph:vms",
        ceph=CephPool(monitors=("10.0.0.9",), pool="vms"),
    )
    monkeypatch.setattr(storage_probe, "check_header", lambda *_: None)
    monkeypatch.setattr(storage_probe, "mark_of", lambda *_: "m")
    monkeypatch.setattr(ceph_records, "space", lambda _pool: (TIB, GIB, "1 nearfull osd(s)"))
    seen = probe(domain, INSTALLATION, Files())
    assert seen == Probed(size_bytes=TIB, free_bytes=GIB, mark="m", warning="1 nearfull osd(s)")


@pytest.mark.bad_input("storage that is nearly full", "storage that is read-only")
@pytest.mark.lab  # mounting needs root
def test_a_real_file_system_that_fills_up_and_turns_read_only_is_told(bench: Bench) -> None:
    """What the whole agent tells the server, whose doctor says it on: `tests/api/test_storage_story.py`."""
    mount = LoopMount(Path(bench.storage.path), megabytes=64)
    bench.storage = replace(bench.storage, path=str(mount.path))
    revision = iter(range(2, 100))

    def last() -> StorageReport:
        return reports(bench)[-1]

    async def looked_again(expected: Callable[[StorageReport], bool]) -> None:
        bench.agent.on_settings(bench.settings(bench.vm(), revision=next(revision)))
        await bench.until(lambda: expected(last()))

    async def story() -> None:
        assert (await prepared(bench)).result is Result.OK
        await bench.until(lambda: is_usable(bench))
        mark, size = last().mark, last().size_bytes
        assert (last().low_space, last().detail) == (UNSET, "")
        assert 32 << 20 < size <= 64 << 20
        space = os.statvfs(mount.path)
        fill_bytes = space.f_bavail * space.f_frsize - size // 12
        fill = mount.path / "dump"
        with fill.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, fill_bytes)
        await looked_again(lambda one: one.low_space is not UNSET)
        assert last().usable and last().size_bytes == size
        assert 0 < last().free_bytes < size // 10
        assert last().low_space == last().detail == low_space(size, last().free_bytes)
        assert last().detail.startswith("nearly full: ")
        mount.remount("ro")
        await looked_again(lambda one: not one.usable)
        assert "is mounted read-only" in last().detail and not last().mark
        mount.remount("rw")
        fill.unlink()
        await looked_again(lambda one: one.usable and one.low_space is UNSET)
        assert (last().detail, last().mark) == ("", mark)

    try:
        bench.run(story)
    finally:
        mount.close()
