"""Block devices and libvirt's storage pools behind which images of a managed Ceph pool lie, as the start gate finds them (G3)."""

import os
import stat
from pathlib import Path

import pytest

from virtha.agent import gate_disks
from virtha.agent.gate_disks import image_path
from virtha.agent.gate_hook import Domain, Refusal, _refuse_managed_paths

pytestmark = [pytest.mark.req("A8"), pytest.mark.req("F3")]

MANAGED = frozenset({"/rbd:vms:", "/srv/ds1"})


class Kernel:
    """Its files about one block device of this machine, which is said to be another one."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root / "sys"
        monkeypatch.setattr(gate_disks, "SYS", str(self._root))
        with os.scandir("/dev") as entries:
            found = next(
                (one for one in entries if stat.S_ISBLK(one.stat(follow_symlinks=False).st_mode)),
                None,
            )
        if found is None:
            pytest.skip("this machine shows no block device")
        self.path = found.path
        number = found.stat().st_rdev
        self._number = f"{os.major(number)}:{os.minor(number)}"

    def names(self, name: str) -> None:
        """What the device is called."""
        at = self._root / "dev/block" / self._number
        at.parent.mkdir(parents=True)
        at.symlink_to(f"../../devices/{name}")

    def stack(self, upper: str, lower: str) -> None:
        (self._root / "class/block" / upper / "slaves" / lower).mkdir(parents=True)

    def maps(self, number: int, pool: str, image: str, namespace: str | None = "") -> None:
        at = self._root / "bus/rbd/devices" / str(number)
        at.mkdir(parents=True)
        (at / "pool").write_text(f"{pool}\n")
        (at / "name").write_text(f"{image}\n")
        if namespace is not None:
            (at / "pool_ns").write_text(f"{namespace}\n")

    def serves(self, name: str, pid: int) -> None:
        at = self._root / "class/block" / name
        at.mkdir(parents=True)
        (at / "pid").write_text(f"{pid}\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def refused(domain: Domain) -> str:
    try:
        _refuse_managed_paths(domain, "x", MANAGED)
    except Refusal as refusal:
        assert refusal.code == "gate.refused.disk"
        return str(refusal)
    return ""


def of_path(path: str) -> Domain:
    domain = Domain()
    domain.paths.append(path)
    return domain


@pytest.mark.parametrize("name", ["rbd0", "rbd0p1"])
@pytest.mark.parametrize("namespace", ["", None])
def test_a_mapped_image_is_found(kernel: Kernel, name: str, namespace: str | None) -> None:
    kernel.names(name)
    kernel.maps(0, "vms", "web1", namespace)
    assert "/rbd:vms:/web1" in refused(of_path(kernel.path))


def test_another_pools_image_is_none_of_ours(kernel: Kernel) -> None:
    kernel.names("rbd0")
    kernel.maps(0, "other", "web1")
    assert refused(of_path(kernel.path)) == ""


def test_what_lies_on_a_mapped_image_is_found(kernel: Kernel) -> None:
    kernel.names("dm-3")
    kernel.stack("dm-3", "dm-1")
    kernel.stack("dm-3", "sda")
    kernel.stack("dm-1", "rbd12p2")
    kernel.maps(12, "vms", "web1", "")
    assert "/rbd:vms:/web1" in refused(of_path(kernel.path))


def test_a_disk_of_another_kind_starts(kernel: Kernel) -> None:
    kernel.names("sda")
    assert refused(of_path(kernel.path)) == ""


@pytest.mark.bad_input("disk that can't be told")
def test_a_device_of_which_it_cannot_be_told_is_refused(kernel: Kernel) -> None:
    kernel.names("rbd0")
    assert "it can't be told" in refused(of_path(kernel.path))
    assert "it can't be told" in refused(of_path("/dev/rbd4096"))


def test_an_image_behind_another_process_is_refused(kernel: Kernel) -> None:
    kernel.names("nbd0p1")
    assert refused(of_path(kernel.path)) == ""  # connected to nothing
    kernel.serves("nbd0", 4711)
    assert "process 4711" in refused(of_path(kernel.path))


def test_udevs_names_are_known_before_they_are_there() -> None:
    assert "/rbd:vms:/web1" in refused(of_path("/dev/rbd/vms/web1"))
    assert refused(of_path("/dev/rbd/other/web1")) == ""


def test_without_a_managed_pool_no_device_is_looked_at(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.names("rbd0")
    _refuse_managed_paths(of_path(kernel.path), "x", frozenset({"/srv/ds1"}))


POOLS = {
    "images": "<pool type='rbd'><name>images</name><source><name>vms</name></source></pool>",
    "elsewhere": "<pool type='rbd'><name>elsewhere</name><source><name>other</name></source></pool>",
    "files": "<poolstate><pool type='dir'><name>files</name><target><path>/srv/ds1</path></target></pool></poolstate>",
    "plain": "<pool type='dir'><name>plain</name><target><path>/srv/other</path></target></pool>",
    "damaged": "<pool type='rbd'>",
}


@pytest.mark.bad_input("disk that can't be told")
@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("images", "/rbd:vms:/web1"),
        ("elsewhere", ""),
        ("files", "/srv/ds1/web1"),
        ("plain", ""),
        ("damaged", "can't be read"),
        ("missing", "storage pool missing is not known"),
        ("../files", "it can't be told"),
    ],
)
def test_a_volume_of_libvirts_is_what_its_pool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: str, words: str
) -> None:
    monkeypatch.setattr(gate_disks, "LIBVIRT_POOLS", (str(tmp_path / "run"), str(tmp_path)))
    for name, text in POOLS.items():
        (tmp_path / f"{name}.xml").write_text(text)
    domain = Domain()
    domain.volumes.append((pool, "web1"))
    answer = refused(domain)
    assert words in answer
    assert bool(answer) is bool(words)


def test_a_namespace_is_a_place_of_its_own() -> None:
    assert image_path("vms/web1") == "/rbd:vms:/web1"
    assert image_path("vms/one/web1") == "/rbd:vms:one/web1"
